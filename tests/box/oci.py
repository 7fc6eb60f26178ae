"""Container images from nothing: OCI layout folders, the same bytes for the same input."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Descriptor = dict[str, Any]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A path in a layer: a file of this machine, text, a link, or (nothing given) a folder."""

    path: str
    source: Path | None = None
    text: str | None = None
    link: str | None = None
    mode: int = 0o755


class Layout:
    """An OCI layout folder being filled (image-layout.md of the OCI image specification)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def layer(self, entries: Sequence[Entry]) -> tuple[Descriptor, str]:
        """A layer of files; its descriptor and diff id."""
        return self._compressed(lambda out: _tar(entries, out), level=1)

    def noise(self, size: int, seed: str) -> tuple[Descriptor, str]:
        """A layer with one file of `size` bytes that do not compress, stored as they are in the gzip."""
        return self._compressed(lambda out: _tar_noise(size, seed, out), level=0)

    def _compressed(self, write: Callable[[BinaryIO], None], level: int) -> tuple[Descriptor, str]:
        temporary = self.blobs / "temporary"
        with temporary.open("wb") as file:
            compressed = _Hashing(file)
            with gzip.GzipFile("", "wb", level, compressed, mtime=0) as zipped:
                plain = _Hashing(zipped)  # type: ignore[arg-type]
                write(plain)  # type: ignore[arg-type]
        temporary.rename(self.blobs / compressed.hash.hexdigest())
        descriptor = {"mediaType": LAYER, "digest": compressed.digest, "size": compressed.size}
        return descriptor, plain.digest

    def document(self, media_type: str, content: object) -> Descriptor:
        """A JSON blob; its descriptor."""
        data = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def manifest(
        self, layers: Sequence[tuple[Descriptor, str]], config: Mapping[str, object], arch: str = "amd64"
    ) -> Descriptor:
        """An image of these layers for one platform; its descriptor."""
        image = {
            "architecture": arch,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.document(CONFIG, image),
            "layers": [descriptor for descriptor, _ in layers],
        }
        return self.document(MANIFEST, manifest) | {"platform": {"architecture": arch, "os": "linux"}}

    def index(self, manifests: Sequence[Descriptor]) -> Descriptor:
        """A multi-platform image (what most tags of the real registries are); its descriptor."""
        return self.document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)})

    def finish(self, top: Descriptor) -> Descriptor:
        """Make `top` the one image of this layout."""
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
        return top


def noise_image(folder: Path, sizes: Sequence[int], seed: str) -> dict[str, Any]:
    """Build an image of incompressible layers; describe it as `describe` does."""
    layout = Layout(folder)
    layers = [layout.noise(size, f"{seed}/{number}") for number, size in enumerate(sizes)]
    top = layout.finish(layout.manifest(layers, {"Labels": {"seed": seed}}))
    return describe(top["digest"], lambda digest: (layout.blobs / digest.removeprefix("sha256:")).read_bytes())


def describe(digest: str, fetch: Callable[[str], bytes]) -> dict[str, Any]:
    """Digests and sizes of an image, by platform: what a test needs to know of it."""
    document = json.loads(fetch(digest))
    found = {"digest": digest, "mediaType": document["mediaType"]}
    if "manifests" not in document:
        return found | {"config": document["config"], "layers": document["layers"]}
    platforms = {f"{m['platform']['os']}/{m['platform']['architecture']}": m["digest"] for m in document["manifests"]}
    return found | {"platforms": {platform: describe(d, fetch) for platform, d in platforms.items()}}


class _Hashing:
    """A file that only gets written, hashed and counted on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _tar(entries: Sequence[Entry], out: BinaryIO) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path.lstrip("/"))
            info.mode = entry.mode
            if entry.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                tar.addfile(info)
            elif entry.source is not None or entry.text is not None:
                data = entry.source.read_bytes() if entry.source else (entry.text or "").encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)


def _tar_noise(size: int, seed: str, out: BinaryIO) -> None:
    info = tarfile.TarInfo("noise-" + hashlib.sha256(seed.encode()).hexdigest()[:12])
    info.size = size
    out.write(info.tobuf())
    for chunk in noise(size, seed):
        out.write(chunk)
    out.write(bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))


def noise(size: int, seed: str) -> Iterator[bytes]:
    """`size` bytes that no compressor shrinks, always the same for a seed."""
    source = random.Random(seed)
    while size > 0:
        yield source.randbytes(min(size, _CHUNK))
        size -= _CHUNK
