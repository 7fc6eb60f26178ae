"""The registry's store on disk: what is in it, and taking things out of it while it is in use.

The layout is that of distribution's file system driver.  Deleting from outside is safe as long as the registry has
no descriptor cache (quadlets/config.yml): a blob that is gone is fetched again, a file that is being sent is sent to
its end.  The store belongs to the container: names and contents are checked, links are not followed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from mirror_agent.host import disk
from mirror_agent.model import Blob, Eviction, ImageName, Store

MANIFEST_LIMIT = 4 * 2**20  # bytes: what registries accept as a manifest (OCI distribution-spec, "Pushing Manifests")
_LINK_LIMIT = 256  # bytes; a link holds one digest
_V2 = Path("docker/registry/v2")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_ALGORITHMS = ("sha256", "sha512")


class Stores:
    """Reads stores.  Remembers what manifests name, as long as they are there: a digest never changes its meaning."""

    def __init__(self) -> None:
        self._needs: dict[Path, dict[str, tuple[str, ...]]] = {}  # by store and manifest

    def scan(self, root: Path) -> Store | None:
        """What is in the store below `root`; None when there is none yet.

        What goes or comes meanwhile may be in it or not.
        """
        if not root.is_dir():
            return None
        # manifests before blobs: one that comes in between is not taken for a blob that nobody needs
        revisions = list(_revisions(root / _V2 / "repositories"))
        blobs = dict(_blobs(root / _V2 / "blobs"))
        images = [image for image in revisions if image[1] in blobs]
        known = self._needs.get(root, {})
        self._needs[root] = named = {}
        for _, digest in images:
            with suppress(OSError, ValueError, RecursionError):  # gone meanwhile, or no manifest: it needs nothing
                named[digest] = known[digest] if digest in known else _digests(root, digest)
        needs = {image: _with_stored(root, image[0], named.get(image[1], ())) for image in images}
        return Store(blobs, needs, disk.free(root))


def has(root: Path, repository: str, digest: str) -> bool:
    """Is this blob of a repository in the store, verified and whole?"""
    return _data(root, _stored(root, repository, digest)).is_file()


def has_image(root: Path, image: ImageName) -> bool:
    """Is this manifest in the store, as one of its repository?"""
    repository, digest = image
    link = root / _V2 / "repositories" / repository / "_manifests" / "revisions" / _place(digest) / "link"
    return link.is_file() and has(root, repository, digest)


@contextmanager
def read_blob(root: Path, repository: str, digest: str) -> Iterator[BinaryIO]:
    """A blob of the store, open for reading.  Raises OSError, also for what is no regular file."""
    with _opened(_data(root, _stored(root, repository, digest))) as file:
        yield file


def confirmed(root: Path, repository: str, tag: str) -> datetime | None:
    """When the upstream last said what a tag means: each of its answers writes the link anew, none of its silences."""
    link = root / _V2 / "repositories" / repository / "_manifests" / "tags" / tag / "current" / "link"
    try:
        return datetime.fromtimestamp(os.lstat(link).st_mtime, UTC)
    except OSError:
        return None


def tags(root: Path) -> Mapping[ImageName, list[str]]:
    """The tags by which clients asked for the images of a store."""
    found: dict[ImageName, list[str]] = {}
    repositories = root / _V2 / "repositories"
    for folder, names, _ in os.walk(repositories):
        if "_manifests" in names:
            repository = Path(folder).relative_to(repositories).as_posix()
            for tag in sorted(_folders(Path(folder) / "_manifests" / "tags")):
                found.setdefault((repository, _link(tag / "current" / "link")), []).append(tag.name)
        names[:] = [name for name in names if not name.startswith("_")]
    return found


def evict(root: Path, eviction: Eviction, store: Store) -> None:
    """Take images and blobs out of the store.  Killed in the middle, it leaves blobs that nobody needs: they go next.

    Raises OSError.
    """
    repositories = root / _V2 / "repositories"
    blobs = set(eviction.blobs)
    leaving: dict[str, set[str]] = {}
    for repository, digest in eviction.images:
        leaving.setdefault(repository, set()).add(digest)
    for repository, digests in leaving.items():
        home = repositories / repository
        for tag in _folders(home / "_manifests" / "tags"):  # once: a repository may have thousands
            if _link(tag / "current" / "link") in digests:
                shutil.rmtree(tag, ignore_errors=True)
        for digest in digests:
            _unlink(home / "_manifests" / "revisions" / _place(digest) / "link")
            for need in store.needs[repository, digest]:
                if _stored(root, repository, need) in blobs:
                    _unlink(home / "_layers" / _place(need) / "link")
    for digest in eviction.blobs:
        _unlink(_data(root, digest))


def _unlink(path: Path) -> None:
    """Remove a file and the folder that was made for it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or gone: neither is ours to worry about
        path.parent.rmdir()


def _blobs(folder: Path) -> Iterator[tuple[str, Blob]]:
    for algorithm in _ALGORITHMS:
        for start in _folders(folder / algorithm):
            for blob in _folders(start):
                digest = f"{algorithm}:{blob.name}"
                with suppress(OSError):
                    facts = (blob / "data").stat(follow_symlinks=False)
                    if _DIGEST.fullmatch(digest):
                        size = max(facts.st_size, facts.st_blocks * 512)  # small files take a block of the disk
                        yield digest, Blob(size, datetime.fromtimestamp(facts.st_mtime, UTC))


def _revisions(repositories: Path) -> Iterator[ImageName]:
    """The manifests that each repository has.  Repositories nest, and their own folders begin with `_`."""
    for folder, names, _ in os.walk(repositories):
        if "_manifests" in names:
            repository = Path(folder).relative_to(repositories).as_posix()
            for algorithm in _ALGORITHMS:
                for revision in _folders(Path(folder) / "_manifests" / "revisions" / algorithm):
                    digest = f"{algorithm}:{revision.name}"
                    if _DIGEST.fullmatch(digest) and (revision / "link").exists():
                        yield repository, digest
        names[:] = [name for name in names if not name.startswith("_")]


def _digests(root: Path, digest: str) -> tuple[str, ...]:
    """All that a manifest names: OCI or Docker, image or index.

    Raises OSError, and ValueError or RecursionError for what is no manifest.
    """
    with read_blob(root, "", digest) as file:
        if os.fstat(file.fileno()).st_size > MANIFEST_LIMIT:
            raise ValueError("too large for a manifest")
        manifest: Any = json.loads(file.read(MANIFEST_LIMIT))
    if not isinstance(manifest, dict):
        raise ValueError("not a manifest")
    lists = [entries for key in ("layers", "manifests") if isinstance(entries := manifest.get(key), list)]
    named = [manifest.get("config"), *(entry for entries in lists for entry in entries)]
    digests = [entry.get("digest") for entry in named if isinstance(entry, dict)]
    return tuple(digest for digest in digests if isinstance(digest, str) and _DIGEST.fullmatch(digest))


def _with_stored(root: Path, repository: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """What a manifest names, and where that lies if it is elsewhere."""
    others = (name for name in names if not name.startswith("sha256:"))
    return *names, *(_stored(root, repository, name) for name in others)


def _stored(root: Path, repository: str, digest: str) -> str:
    """The digest that a blob lies under.

    distribution stores by sha256; a blob that was asked for by sha512 has a link of its repository to it.
    """
    if digest.startswith("sha256:"):
        return digest
    target = _link(root / _V2 / "repositories" / repository / "_layers" / _place(digest) / "link")
    return target if _DIGEST.fullmatch(target) else digest


def _folders(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return [Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    return []


def _link(path: Path) -> str:
    with suppress(OSError), _opened(path) as file:
        return file.read(_LINK_LIMIT).decode("ascii", "replace").strip()
    return ""


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def _data(root: Path, digest: str) -> Path:
    place = _place(digest)
    return root / _V2 / "blobs" / place.parent / place.name[:2] / place.name / "data"


def _place(digest: str) -> Path:
    return Path(*digest.split(":"))
