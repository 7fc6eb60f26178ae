"""Images from nothing: well formed, and the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from . import oci


def test_the_same_input_makes_the_same_image(tmp_path: Path) -> None:
    one = oci.noise_image(tmp_path / "one", [1000, 3_000_000], "seed")
    two = oci.noise_image(tmp_path / "two", [1000, 3_000_000], "seed")
    other = oci.noise_image(tmp_path / "other", [1000, 3_000_000], "another seed")
    assert one == two
    assert not {layer["digest"] for layer in one["layers"]} & {layer["digest"] for layer in other["layers"]}


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, (1 << 20) + 1])
def test_a_layer_is_a_tar_of_the_size_that_was_asked_for(tmp_path: Path, size: int) -> None:
    image = oci.noise_image(tmp_path, [size], "seed")
    (layer,) = image["layers"]
    data = (tmp_path / "blobs/sha256" / layer["digest"].removeprefix("sha256:")).read_bytes()
    assert layer["size"] == len(data)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        assert [member.size for member in tar] == [size]


def test_every_blob_has_the_name_of_its_content(tmp_path: Path) -> None:
    layout = oci.Layout(tmp_path)
    layer = layout.layer([oci.Entry("/bin/sh", link="busybox"), oci.Entry("/etc"), oci.Entry("/etc/x", text="x")])
    layout.finish(layout.index([layout.manifest([layer], {"Cmd": ["/bin/sh"]})]))
    blobs = list((tmp_path / "blobs/sha256").iterdir())
    assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)
    assert len(blobs) == len(["layer", "config", "manifest", "index"])
    (top,) = json.loads((tmp_path / "index.json").read_text())["manifests"]
    described = oci.describe(top["digest"], lambda d: (tmp_path / "blobs/sha256" / d[7:]).read_bytes())
    assert described["platforms"]["linux/amd64"]["layers"] == [layer[0]]
