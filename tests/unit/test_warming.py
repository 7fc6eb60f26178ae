"""What a release image of OpenShift names, read from a store on disk; and the sets that are kept."""

import gzip
import io
import json
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from test_store import Registry, by_sha512

from mirror_agent.host import state
from mirror_agent.host.warming import RELEASE_FILE, blobs, release_payload
from mirror_agent.model import ImageName, Trouble

PAYLOAD = [f"quay.io/openshift-release-dev/ocp-v4.0-art-dev@sha256:{digit * 64}" for digit in "12"]
STREAM = {
    "kind": "ImageStream",
    "spec": {
        "tags": [{"name": n, "from": {"kind": "DockerImage", "name": n}} for n in (*reversed(PAYLOAD), PAYLOAD[0])]
    },
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


def layer(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue())


def release(registry: Registry, *layers: bytes, label: str = "io.openshift.release") -> ImageName:
    config = registry.blob(json.dumps({"config": {"Labels": {label: "4.20.1"}}}).encode())
    entries = [{"digest": registry.blob(content), "size": len(content)} for content in layers]
    return registry.manifest("ocp/release", {"config": {"digest": config, "size": 1}, "layers": entries})


def test_a_release_names_its_payload(registry: Registry) -> None:
    text = json.dumps(STREAM)
    for where in (0, 1, 2):
        layers = [layer(**{"etc/hosts": "x"}) for _ in range(3)]
        layers[where] = layer(**{"etc/x": "y", RELEASE_FILE: text})
        assert list(release_payload(registry.root, [release(registry, *layers)])) == PAYLOAD


def test_any_other_image_names_none(registry: Registry) -> None:
    image = release(registry, layer(**{RELEASE_FILE: json.dumps(STREAM)}), label="io.openshift.tags")
    index = registry.manifest("ocp/release", {"manifests": []})
    assert list(release_payload(registry.root, [image, index, ("gone", f"sha256:{'0' * 64}")])) == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(layer(**{"other": "x"}), id="not there"),
        pytest.param(layer(**{RELEASE_FILE: "{"}), id="torn"),
        pytest.param(layer(**{RELEASE_FILE: '{"spec": {"tags": [5]}}'}), id="another form"),
        pytest.param(b"no archive", id="no archive"),
        pytest.param(layer(**{RELEASE_FILE: json.dumps(STREAM)})[:60], id="torn archive"),
    ],
)
def test_a_release_that_cannot_be_read_is_told(registry: Registry, content: bytes) -> None:
    with pytest.raises(Trouble, match="image-references"):
        list(release_payload(registry.root, [release(registry, content)]))


def test_a_release_with_layers_by_sha512_names_its_payload(registry: Registry) -> None:
    name, _ = by_sha512(registry, "ocp/release", layer(**{RELEASE_FILE: json.dumps(STREAM)}))
    config = registry.blob(json.dumps({"config": {"Labels": {"io.openshift.release": "4.20.1"}}}).encode())
    document = {"config": {"digest": config, "size": 1}, "layers": [{"digest": name, "size": 1}]}
    assert list(release_payload(registry.root, [registry.manifest("ocp/release", document)])) == PAYLOAD


def test_what_the_edge_does_not_serve_is_told_and_not_passed_over(registry: Registry) -> None:
    """Else the image would count as complete."""
    foreign = {"digest": f"sha384:{'1' * 96}", "size": 9, "urls": ["https://elsewhere"]}
    assert list(blobs("app", {"layers": [foreign]})) == []
    for entry in ({"digest": f"sha384:{'1' * 96}", "size": 9}, {"digest": f"sha256:{'1' * 64}"}, {"size": 9}):
        with pytest.raises(Trouble, match="app: has a layer that no mirror serves"):
            list(blobs("app", {"layers": [entry]}))


def test_kept_sets_are_remembered(tmp_path: Path) -> None:
    path = PurePosixPath(tmp_path / "keeps.json")
    assert state.load_keeps(path) == {}
    one, two = ("app", f"sha256:{'1' * 64}"), ("library/x", f"sha256:{'2' * 64}")
    owner = tmp_path.stat().st_uid
    state.save_keeps(path, {"cluster": {"quay": {two, one}, "gcr": set()}, "empty": {}}, owner)
    assert state.load_keeps(path) == {"cluster": {"quay": frozenset({one, two})}, "empty": {}}
    assert not state.save_keeps(path, {"cluster": {"quay": [one, two]}, "empty": {}}, owner)


def test_damaged_sets_are_never_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "keeps.json").write_text("{")
    with pytest.raises(Trouble):
        state.load_keeps(PurePosixPath(tmp_path / "keeps.json"))
