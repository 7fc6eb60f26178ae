"""A folder as target: files that clients, web servers and admins copy from.

The folder may be shared (NFS, SMB) and others may write to it, while the agent is root.  So every step below the
folder goes through directory descriptors and never follows a link, files that are not ours are neither replaced nor
removed, and no hard links or extended attributes are needed.  Which files are ours stands in a manifest beside them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mirror_agent.model import Document, PublishSettings
from mirror_agent.targets.manifest import MANIFEST, Manifest
from mirror_agent.targets.target import Target, TargetError

LIMIT = 4 * 2**20  # bytes; ours are far smaller, what is larger was put there by somebody else
TEMPORARY = ".mirror-agent.tmp"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

HINTS = {
    errno.ENOENT: "make the folder, or mount the share it lies on: the agent does not, so that it never fills an empty "
    "mount point",
    errno.ELOOP: "the agent follows no links; write the real path, or remove the link",
    errno.ENOTDIR: "a link or a file stands where a folder should be; the agent follows no links: write the real path, "
    "or remove it",
    errno.EACCES: "on a share, let root of this host write there (NFS: no_root_squash)",
    errno.EPERM: "on a share, let root of this host write there (NFS: no_root_squash)",
    errno.EROFS: "if it is writable outside of the service, add it to the sandbox: ReadWritePaths= in "
    "`systemctl edit mirror-agent`",
    errno.ENOSPC: "make room; what was published before is still there",
    errno.EDQUOT: "make room; what was published before is still there",
    errno.ESTALE: "the share was replaced on its server: mount it again",
}


def target(settings: PublishSettings) -> Target | None:
    """The folder of `[publish.folder] path`, if there is one."""
    if settings.folder is None:
        return None
    return Target(str(settings.folder), partial(read, settings.folder), partial(publish, settings.folder))


def read(folder: Path) -> Mapping[str, bytes]:
    """What we published there, as it is now: names of the manifest with the bytes of their files.

    A file that is gone, or that is no regular file any more, is left out: it has to be published again.
    Raises TargetError if the folder or its manifest cannot be read.
    """
    with _opened(folder) as root:
        held = {}
        for name in Manifest.parse(_content(root, folder, MANIFEST), folder).files:
            if PLAIN.fullmatch(name):
                with suppress(TargetError):
                    content = _content(root, folder, name)
                    if content is not None:
                        held[name] = content
        return held


def publish(folder: Path, documents: tuple[Document, ...]) -> tuple[str, ...]:
    """Make the folder hold exactly these documents of ours, and return the names that were written or removed.

    Files are written in the order given and replaced one by one (temporary file, fsync, rename, fsync of the folder),
    equal ones are not touched, removals come last.  Interrupted at any point, the next call goes on: the manifest
    names a file before the file is there.  Raises TargetError: the folder is missing, cannot be written, or holds
    something of somebody else's under one of our names.
    """
    wanted = {document.name: document.content for document in documents}
    for name in wanted:
        if not PLAIN.fullmatch(name):
            raise ValueError(f"not a plain document name: {name!r}")
    with _opened(folder) as root:
        old = Manifest.parse(_content(root, folder, MANIFEST), folder)
        new = Manifest({name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()})
        current = {name: _content(root, folder, name) for name in wanted}
        _refuse_foreign(folder, old, wanted, current)
        stale = sorted(name for name in old.files if name not in wanted and PLAIN.fullmatch(name))
        if stale or any(name not in old.files for name in wanted):
            _replace(root, folder, MANIFEST, old.joined(new).text())
        changed = [name for name in wanted if current[name] != wanted[name]]
        for name in changed:
            _replace(root, folder, name, wanted[name])
        removed = [name for name in stale if _remove(root, folder, name)]
        if _content(root, folder, MANIFEST) != new.text():
            _replace(root, folder, MANIFEST, new.text())
    return (*changed, *removed)


def _refuse_foreign(
    folder: Path, old: Manifest, wanted: Mapping[str, bytes], current: Mapping[str, bytes | None]
) -> None:
    """A file under one of our names that we did not write stays: the path may be a folder such as /etc."""
    for name, content in current.items():
        if name not in old.files and content is not None and content != wanted[name]:
            raise TargetError(
                str(folder / name),
                "a file that mirror-agent did not write has the name of one to publish",
                "publish to a folder of its own, or remove that file",
            )


# --- one file ------------------------------------------------------------------------------------------------


def _content(root: int, folder: Path, name: str) -> bytes | None:
    """The bytes of a regular file, None if there is none (or it is larger than anything of ours: b"")."""
    with _told(folder / name):
        try:
            with _parent(root, name, make=False) as parent:
                descriptor = os.open(_leaf(name), _READ, dir_fd=parent)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TargetError(str(folder / name), "this is not a regular file", "remove it")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(LIMIT) if status.st_size < LIMIT else b""
        finally:
            os.close(descriptor)


def _replace(root: int, folder: Path, name: str, content: bytes) -> None:
    """Write a file under a temporary name of the same folder, then rename: readers see the old or the new one."""
    with _told(folder / name), _parent(root, name, make=True) as parent:
        with suppress(FileNotFoundError):
            os.unlink(TEMPORARY, dir_fd=parent)  # of a run that was interrupted
        descriptor = os.open(TEMPORARY, _CREATE, 0o600, dir_fd=parent)
        try:
            with open(descriptor, "wb") as file:
                _refuse_other_owner(parent, folder, name, os.fstat(descriptor).st_uid)
                file.write(content)
                file.flush()
                _readable(descriptor, 0o644)
                os.fsync(descriptor)
            os.rename(TEMPORARY, _leaf(name), src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(TEMPORARY, dir_fd=parent)
            raise
        _sync(parent)


def _refuse_other_owner(parent: int, folder: Path, name: str, uid: int) -> None:
    """Where everybody may write (mode 1777) the manifest could be somebody else's, and name files that are not ours.

    Compared with the owner that a new file of ours gets there: on a share that need not be our own uid.
    """
    with suppress(FileNotFoundError):
        owner = os.stat(_leaf(name), dir_fd=parent, follow_symlinks=False).st_uid
        if owner != uid:
            raise TargetError(
                str(folder / name),
                f"it belongs to user {owner}, what mirror-agent writes here to user {uid}",
                "publish to a folder of its own; if the file is ours, give it back with chown, or remove it",
            )


def _remove(root: int, folder: Path, name: str) -> bool:
    """Remove a file of ours, if it is there.  A folder of that name stays; of a link the link goes, not its aim."""
    with _told(folder / name):
        try:
            with _parent(root, name, make=False) as parent:
                os.unlink(_leaf(name), dir_fd=parent)
                _sync(parent)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        return True


# --- folders -------------------------------------------------------------------------------------------------


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, reached without following any link: whoever may write to a folder on the way could
    otherwise lead root to another one, and we do publish a file named `hosts`.
    """
    with _told(folder):
        descriptor = os.open("/", _FOLDER)
        try:
            for part in folder.absolute().parts[1:]:
                below = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except OSError:
            os.close(descriptor)
            raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _parent(root: int, name: str, *, make: bool) -> Iterator[int]:
    """A descriptor of the folder that a document lies in: the root, or a sub folder of it."""
    sub, slash, _ = name.partition("/")
    if not slash:
        yield root
        return
    try:
        descriptor = os.open(sub, _FOLDER, dir_fd=root)
    except FileNotFoundError:
        if not make:
            raise
        os.mkdir(sub, 0o755, dir_fd=root)
        descriptor = os.open(sub, _FOLDER, dir_fd=root)
        _readable(descriptor, 0o755)
        _sync(root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def _readable(descriptor: int, mode: int) -> None:
    """For everybody, whatever the umask.  Shares without modes of their own (SMB, vfat) may refuse: the mount says."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise


def _sync(descriptor: int) -> None:
    """Make a rename durable.  Network file systems may know no fsync of a folder; there the server cares for it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise


@contextmanager
def _told(where: Path) -> Iterator[None]:
    """Tell an OSError to a person."""
    try:
        yield
    except OSError as error:
        reason = "this is a link" if error.errno == errno.ELOOP else (error.strerror or str(error)).lower()
        raise TargetError(str(where), reason, HINTS.get(error.errno or 0, "")) from error
