"""The registry's store on disk: what is in it, and taking things out of it while it is in use.

The layout is that of distribution's file system driver.  Deleting from outside is safe as long as the registry has
no descriptor cache (quadlets/config.yml): a blob that is gone is fetched again, a file that is being sent is sent to
its end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mirror_agent.model import Blob, Eviction, ImageName, Store

MANIFEST_LIMIT = 4 * 2**20  # bytes: what registries accept as a manifest (OCI distribution-spec, "Pushing Manifests")
_V2 = Path("docker/registry/v2")


class Stores:
    """Reads stores.  Remembers what manifests name: a digest never changes its meaning."""

    def __init__(self) -> None:
        self._needs: dict[str, tuple[str, ...]] = {}

    def scan(self, root: Path) -> Store:
        """What is in the store below `root`.  What goes or comes meanwhile may be in it or not."""
        blobs = dict(_blobs(root / _V2 / "blobs" / "sha256"))
        needs = {
            (repository, digest): self._named(root, digest)
            for repository, digest in _revisions(root / _V2 / "repositories")
            if digest in blobs
        }
        try:
            facts = os.statvfs(root)
        except FileNotFoundError:
            return Store({}, {}, 0)
        return Store(blobs, needs, facts.f_bavail * facts.f_frsize)

    def _named(self, root: Path, digest: str) -> tuple[str, ...]:
        if digest not in self._needs:
            with suppress(OSError, ValueError):  # gone meanwhile: the next look sees it
                self._needs[digest] = _digests(_data(root, digest))
        return self._needs.get(digest, ())


def evict(root: Path, eviction: Eviction, store: Store) -> None:
    """Take images and blobs out of the store.  Killed in the middle, it leaves blobs that nobody needs: they go next.

    Raises OSError.
    """
    repositories = root / _V2 / "repositories"
    leaving = set(eviction.images)
    for repository, digest in eviction.images:
        home = repositories / repository
        for tag in _folders(home / "_manifests" / "tags"):
            if _link(tag / "current" / "link") == digest:
                shutil.rmtree(tag, ignore_errors=True)
        _unlink(home / "_manifests" / "revisions" / "sha256" / _hex(digest) / "link")
    for digest in eviction.blobs:
        _unlink(_data(root, digest))
    for repository, digest in leaving:
        for need in set(store.needs[repository, digest]) & set(eviction.blobs):
            _unlink(repositories / repository / "_layers" / "sha256" / _hex(need) / "link")


def _unlink(path: Path) -> None:
    """Remove a file and the folder that was made for it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or gone: neither is ours to worry about
        path.parent.rmdir()


def _blobs(folder: Path) -> Iterator[tuple[str, Blob]]:
    for start in _folders(folder):
        for blob in _folders(start):
            with suppress(FileNotFoundError):
                facts = (blob / "data").stat(follow_symlinks=False)
                size = max(facts.st_size, facts.st_blocks * 512)  # small files take a block of the disk
                yield f"sha256:{blob.name}", Blob(size, datetime.fromtimestamp(facts.st_mtime, UTC))


def _revisions(repositories: Path) -> Iterator[ImageName]:
    """The manifests that each repository has.  Repositories nest, and their own folders begin with `_`."""
    for folder, names, _ in os.walk(repositories):
        if "_manifests" in names:
            repository = Path(folder).relative_to(repositories).as_posix()
            for revision in _folders(Path(folder) / "_manifests" / "revisions" / "sha256"):
                if (revision / "link").exists():
                    yield repository, f"sha256:{revision.name}"
        names[:] = [name for name in names if not name.startswith("_")]


def _digests(path: Path) -> tuple[str, ...]:
    """All that a manifest names: OCI or Docker, image or index.  Raises ValueError for what is none."""
    if path.stat().st_size > MANIFEST_LIMIT:
        raise ValueError("too large for a manifest")
    manifest: Any = json.loads(path.read_bytes())
    if not isinstance(manifest, dict):
        raise ValueError("not a manifest")
    named = [manifest.get("config"), *(manifest.get("layers") or ()), *(manifest.get("manifests") or ())]
    digests = [entry.get("digest") for entry in named if isinstance(entry, dict)]
    return tuple(digest for digest in digests if isinstance(digest, str) and digest.startswith("sha256:"))


def _folders(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return [Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    return []


def _link(path: Path) -> str:
    with suppress(OSError):
        return path.read_text("ascii", "replace").strip()
    return ""


def _data(root: Path, digest: str) -> Path:
    return root / _V2 / "blobs" / "sha256" / _hex(digest)[:2] / _hex(digest) / "data"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
