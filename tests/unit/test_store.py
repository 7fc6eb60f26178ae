"""The registry's store on a real file system, laid out as distribution does."""

import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256, sha512
from pathlib import Path

import pytest

from mirror_agent.eviction import GRACE, Cached, choose
from mirror_agent.host import edge_cache
from mirror_agent.host.store import Stores, evict, has, read_blob
from mirror_agent.model import Eviction, ImageName, Store

V2 = "docker/registry/v2"


class Registry:
    """Writes what distribution writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / V2).mkdir(parents=True)

    def blob(self, content: bytes) -> str:
        name = sha256(content).hexdigest()
        self.write(f"blobs/sha256/{name[:2]}/{name}/data", content)
        return f"sha256:{name}"

    def manifest(self, repository: str, document: object, tag: str = "") -> ImageName:
        digest = self.blob(json.dumps(document).encode())
        name, home = digest.removeprefix("sha256:"), f"repositories/{repository}"
        self.write(f"{home}/_manifests/revisions/sha256/{name}/link", digest.encode())
        if tag:
            self.write(f"{home}/_manifests/tags/{tag}/current/link", digest.encode())
            self.write(f"{home}/_manifests/tags/{tag}/index/sha256/{name}/link", digest.encode())
        return repository, digest

    def image(self, repository: str, layers: Iterable[str], tag: str = "") -> ImageName:
        for layer in layers:
            name = layer.removeprefix("sha256:")
            self.write(f"repositories/{repository}/_layers/sha256/{name}/link", layer.encode())
        document = {"config": {"digest": self.blob(b"{}")}, "layers": [{"digest": layer} for layer in layers]}
        return self.manifest(repository, document, tag)

    def data(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.root / V2 / "blobs/sha256" / name[:2] / name / "data"

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root / V2)) for path in self.root.rglob("*") if path.is_file()}

    def write(self, path: str, content: bytes) -> None:
        file = self.root / V2 / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def scan(registry: Registry, stores: Stores | None = None) -> Store:
    store = (stores or Stores()).scan(registry.root)
    assert store
    return store


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_no_store_is_none_and_not_a_full_disk(tmp_path: Path) -> None:
    assert Stores().scan(tmp_path / "nothing") is None


def test_an_empty_store_tells_the_free_space(registry: Registry) -> None:
    store = scan(registry)
    assert (store.blobs, store.needs) == ({}, {})
    assert store.free > 0


def test_what_is_there_is_found(registry: Registry) -> None:
    one, two = registry.blob(b"1" * 5000), registry.blob(b"2" * 9000)
    image = registry.image("library/app", [one, two], "1.0")
    nested = registry.image("library/app/nested", [one])
    index = registry.manifest("library/app", {"manifests": [{"digest": image[1]}, {"digest": f"sha256:{'0' * 64}"}]})
    os.utime(registry.data(two), (1_700_000_000, 1_700_000_000))
    store = scan(registry)
    config = registry.blob(b"{}")
    assert store.needs == {
        image: (config, one, two), nested: (config, one), index: (image[1], f"sha256:{'0' * 64}")
    }  # fmt: skip
    assert store.blobs.keys() == {one, two, config, image[1], nested[1], index[1]}
    assert store.blobs[two].fetched == datetime.fromtimestamp(1_700_000_000, UTC)
    assert all(blob.size % 512 == 0 for blob in store.blobs.values())  # what it takes of the disk
    assert store.blobs[two].size >= 9000


def test_a_manifest_is_read_once_and_forgotten_with_its_file(registry: Registry) -> None:
    stores, layer = Stores(), registry.blob(b"layer")
    image = registry.image("app", [layer])
    first = scan(registry, stores)
    content = registry.data(image[1]).read_bytes()
    registry.data(image[1]).write_bytes(b"not read again")
    assert scan(registry, stores).needs == first.needs
    registry.data(image[1]).unlink()
    assert scan(registry, stores).needs == {}
    registry.data(image[1]).write_bytes(content.replace(layer.encode(), b"sha256:" + b"5" * 64))
    assert scan(registry, stores).needs != first.needs


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{", id="torn"),
        pytest.param(b'{"layers": 5, "manifests": {"a": 1}, "config": []}', id="types"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(
            b'{"config": {"digest": "sha256:../../../etc/passwd"}, "layers": [{"digest": 5}, null]}', id="path"
        ),
    ],
)
def test_what_is_no_manifest_needs_nothing(registry: Registry, content: bytes) -> None:
    image = registry.manifest("app", {})
    registry.data(image[1]).write_bytes(content)
    store = scan(registry)
    assert store.needs == {image: ()}


def test_nothing_leads_out_of_the_store_or_makes_it_wait(registry: Registry, tmp_path: Path) -> None:
    """The store is the container's: it may hold links, pipes and names of any kind."""
    image, pipe = registry.manifest("app", {}), registry.manifest("app", {"pipe": 1})
    outside = tmp_path / "outside"
    outside.write_text(json.dumps({"layers": [{"digest": f"sha256:{'1' * 64}"}]}))
    registry.data(image[1]).unlink()
    registry.data(image[1]).symlink_to(outside)
    registry.data(pipe[1]).unlink()
    os.mkfifo(registry.data(pipe[1]))
    (registry.root / V2 / "blobs/sha256/aa/not-a-digest").mkdir(parents=True)
    (registry.root / V2 / "blobs/sha256/aa/not-a-digest/data").write_bytes(b"x")
    (registry.root / V2 / "blobs/sha256/bb").symlink_to("/usr")
    (registry.root / V2 / "repositories/link").symlink_to(registry.root / V2 / "repositories/app")
    store = scan(registry)
    assert store.needs == {image: (), pipe: ()}
    assert store.blobs.keys() == {image[1], pipe[1]}


def test_what_leaves_is_gone_with_its_tag_and_the_rest_is_untouched(registry: Registry) -> None:
    shared, own = registry.blob(b"shared"), registry.blob(b"own")
    kept = registry.image("app", [shared], "kept")
    before = registry.files()
    image = registry.image("app", [shared, own], "1.0")
    also = registry.image("app", [shared, own], "also")
    assert image == also
    store = scan(registry)
    evict(registry.root, Eviction((image,), (image[1], own), 0), store)
    assert registry.files() == before - {str(registry.data(own).relative_to(registry.root / V2))}
    rest = scan(registry)
    assert rest.needs.keys() == {kept}
    evict(registry.root, Eviction((image,), (image[1], own), 0), store)  # killed and done again


def test_a_moved_tag_stays_with_its_new_image(registry: Registry) -> None:
    old = registry.image("app", [registry.blob(b"old")], "1.0")
    new = registry.image("app", [registry.blob(b"new")], "1.0")
    store = scan(registry)
    evict(registry.root, Eviction((old,), (old[1],), 0), store)
    assert f"repositories/{new[0]}/_manifests/tags/1.0/current/link" in registry.files()


def test_a_file_that_is_being_sent_is_sent_to_its_end(registry: Registry) -> None:
    layer = registry.blob(b"x" * 100_000)
    image = registry.image("app", [layer])
    store = scan(registry)
    with registry.data(layer).open("rb") as file:
        file.read(10)
        evict(registry.root, Eviction((image,), (image[1], layer), 0), store)
        assert not registry.data(layer).exists()
        assert len(file.read()) == 100_000 - 10


# --- the edge's copies of manifests

DIGEST = f"sha256:{'a' * 64}"


def entry(key: str, digest: str = DIGEST) -> bytes:
    """A cache file of nginx: binary header, key, the answer's header, its body."""
    head = f"\nKEY: {key}\nHTTP/1.1 200 OK\r\nContent-Type: x\r\nDocker-Content-Digest: {digest}\r\nA: b\r\n\r\n"
    return os.urandom(336).replace(b"\n", b"") + head.encode() + b"{}"


@pytest.mark.parametrize(
    ("key", "goes"),
    [
        (f"digest library/app {DIGEST}", True),
        ("tag /v2/library/app/manifests/1.0", True),
        (f"digest library/app/other {DIGEST}", False),
        ("tag /v2/other/library/app/manifests/1.0", False),
        ("tag /v2/library/app/tags/list?n=5&last=", False),
    ],
)
def test_the_edge_forgets_what_was_evicted(tmp_path: Path, key: str, goes: bool) -> None:
    (tmp_path / "a/bc").mkdir(parents=True)
    file, other = tmp_path / "a/bc/1", tmp_path / "a/bc/2"
    file.write_bytes(entry(key))
    other.write_bytes(entry(f"digest library/app sha256:{'b' * 64}", f"sha256:{'b' * 64}"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert edge_cache.forget(tmp_path, {("library/app", DIGEST)}) == int(goes)
    assert file.exists() is not goes
    assert other.exists()


def test_evicting_many_images_looks_at_each_tag_once(tmp_path: Path) -> None:
    """A repository of nightly builds has thousands of them."""
    registry = Registry(tmp_path / "store")
    images = [registry.manifest("nightly", {"n": number}, f"t{number}") for number in range(30)]
    store = scan(registry)
    opened: list[str] = []
    counting = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and counting else None)
    evict(registry.root, Eviction(tuple(images), tuple(digest for _, digest in images), 0), store)
    counting = False
    assert len([path for path in opened if path.endswith("/current/link")]) == len(images)
    assert not {path for path in registry.files() if path.endswith("/link")}


# --- blobs that are asked for by sha512: distribution stores them by sha256, and links them


def by_sha512(registry: Registry, repository: str, content: bytes) -> tuple[str, str]:
    """The name that a manifest gives it, and the one that it lies under."""
    name, stored = f"sha512:{sha512(content).hexdigest()}", registry.blob(content)
    for digest in (name, stored):
        registry.write(f"repositories/{repository}/_layers/{digest.replace(':', '/')}/link", stored.encode())
    return name, stored


def test_a_layer_by_sha512_is_found_where_it_lies(registry: Registry) -> None:
    name, stored = by_sha512(registry, "app", b"layer")
    image = registry.manifest("app", {"layers": [{"digest": name}]})
    store = scan(registry)
    assert store.needs == {image: (name, stored)}
    assert has(registry.root, "app", name)
    assert not has(registry.root, "other", name)
    with read_blob(registry.root, "app", name) as file:
        assert file.read() == b"layer"


def test_a_layer_by_sha512_stays_and_leaves_with_its_image(registry: Registry) -> None:
    """It would be a blob that nobody needs, which is the first to leave."""
    now = datetime.now(UTC) + 2 * GRACE
    before = registry.files()
    name, stored = by_sha512(registry, "app", b"layer")
    image = registry.manifest("app", {"layers": [{"digest": name}]})
    store = scan(registry)
    assert choose({"quay": Cached(store, 0, pinned={image})}, 0, now) == {}
    leaving = choose({"quay": Cached(store, 0)}, 0, now)["quay"]
    assert leaving.images == (image,)
    assert set(leaving.blobs) == {image[1], stored}
    evict(registry.root, leaving, store)
    assert registry.files() == before


@pytest.mark.parametrize("target", ["../../../../../etc/passwd", "sha256:0", ""])
def test_a_link_that_leads_nowhere_is_no_blob(registry: Registry, target: str) -> None:
    name = f"sha512:{'1' * 128}"
    registry.write(f"repositories/app/_layers/{name.replace(':', '/')}/link", target.encode())
    registry.manifest("app", {"layers": [{"digest": name}]})
    assert not has(registry.root, "app", name)
    scan(registry)


def test_a_link_that_is_a_pipe_makes_nobody_wait(registry: Registry) -> None:
    name = f"sha512:{'1' * 128}"
    registry.manifest("app", {"layers": [{"digest": name}]})
    link = registry.root / V2 / f"repositories/app/_layers/{name.replace(':', '/')}/link"
    link.parent.mkdir(parents=True)
    os.mkfifo(link)
    scan(registry)
    assert not has(registry.root, "app", name)
