"""The pure parts of a real pull, and what is found in a registry's store."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mirror_agent.host import pull
from mirror_agent.model import Trouble

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("library/busybox:1.36", ("library/busybox", "1.36")),
        ("pause:3.10", ("pause", "3.10")),
        ("a/b__c/d-e.f:v1_2-3", ("a/b__c/d-e.f", "v1_2-3")),
        (f"library/busybox@{A}", ("library/busybox", A)),
    ],
)
def test_images(image: str, parts: tuple[str, str]) -> None:
    assert pull.parse_image(image) == parts


@pytest.mark.parametrize(
    "image", ["", "busybox", "Busy:1", "a/../b:1", "a:b:c", "a@sha256:12", "a:1\r\nHost: x", "/a:1", "a b:1", "a:1\n"]
)
def test_what_is_no_image(image: str) -> None:
    with pytest.raises(Trouble, match="is neither"):
        pull.parse_image(image)


def test_what_the_host_trusts_is_found() -> None:
    assert "BEGIN CERTIFICATE" in pull.public_roots()


def entry(digest: str, system: str | None, machine: str = "amd64") -> dict[str, Any]:
    platform = {"platform": {"os": system, "architecture": machine}} if system else {}
    return {"digest": digest, **platform}


def test_of_an_index_linux_amd64_is_chosen() -> None:
    assert pull.choose([entry(A, "linux", "s390x"), entry(B, "unknown", "unknown"), entry(C, "linux")]) == C


def test_else_the_first_image_but_no_attestation() -> None:
    assert pull.choose([entry(A, "unknown", "unknown"), entry(B, "linux", "arm64"), entry(C, None)]) == B
    assert pull.choose([entry(C, None)]) == C
    assert pull.choose([entry(A, "unknown", "unknown"), {"digest": "../.."}, "text"]) is None


def test_the_smallest_blob_that_the_registry_serves() -> None:
    manifest = {
        "config": {"digest": A, "size": 1500},
        "layers": [{"digest": B, "size": 900}, {"digest": C, "size": 3, "urls": ["https://elsewhere"]}],
    }
    assert pull.smallest(manifest) == (B, 900)
    assert pull.smallest({"config": {"digest": A, "size": "7"}, "layers": None}) is None


def test_what_an_oci_error_body_says() -> None:
    body = {"errors": [{"code": "UNAVAILABLE", "message": "upstream is\nunreachable"}, {"code": "X"}]}
    assert pull.oci_errors(json.dumps(body).encode()) == "UNAVAILABLE: upstream is unreachable; X: "
    for other in (b"<html>", b"[]", b'{"errors": 3}', b'{"errors": ["x"]}', b'{"errors": [{"message": "x"}]}'):
        assert pull.oci_errors(other) == ""


class Store:
    """A registry's store, laid out as CNCF distribution does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "docker/registry/v2"

    def blob(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        path = self.root / "blobs/sha256" / digest[:2] / digest / "data"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return f"sha256:{digest}"

    def manifest(self, repository: str, document: dict[str, Any]) -> str:
        digest = self.blob(json.dumps(document).encode())
        name = digest.removeprefix("sha256:")
        link = self.root / "repositories" / repository / "_manifests/revisions/sha256" / name / "link"
        link.parent.mkdir(parents=True)
        link.write_text(digest)
        return digest


def test_an_image_that_a_client_has_pulled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert pull.find_cached(tmp_path) is None
    config = store.blob(b"{}")
    store.manifest("a/index", {"schemaVersion": 2, "manifests": [{"digest": A}]})
    store.manifest("b/blob-gone", {"schemaVersion": 2, "config": {"digest": B, "size": 9}})
    assert pull.find_cached(tmp_path) is None
    image = store.manifest("team/app", {"schemaVersion": 2, "config": {"digest": config, "size": 2}})
    assert pull.find_cached(tmp_path) == f"team/app@{image}"


def test_a_store_is_not_trusted(tmp_path: Path) -> None:
    """The container may write there: odd names, links and pipes neither mislead nor block the agent."""
    store = Store(tmp_path)
    config = store.blob(b"{}")
    good = {"schemaVersion": 2, "config": {"digest": config, "size": 2}}
    store.manifest("Bad Name", good)
    for kind in ("pipe", "link"):
        digest = store.manifest(kind, {**good, "kind": kind}).removeprefix("sha256:")
        data = store.root / "blobs/sha256" / digest[:2] / digest / "data"
        data.unlink()
        if kind == "pipe":
            os.mkfifo(data)
        else:
            data.symlink_to(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps(good))
    assert pull.find_cached(tmp_path) is None
