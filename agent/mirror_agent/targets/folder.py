"""A folder as target: files that clients, web servers and admins copy from.

The folder may be shared (NFS, SMB) and others may write to it, while the agent is root.  So every step below the
folder goes through directory descriptors and never follows a link, files that are not ours are neither replaced nor
removed, and no hard links or extended attributes are needed.  Which files are ours stands in a manifest beside them.

A share may have a mind of its own about modes and groups, or know none (SMB, vfat, NFS with root_squash): what it
refuses is let be, for there its mount and its server say who may read.  The manifest tells what was asked for, and by
its own mode and group what the share made of it; so neither is asked for again and again.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from mirror_agent import page
from mirror_agent.model import Document, FolderSettings, PublishSettings
from mirror_agent.targets.manifest import MANIFEST, Manifest
from mirror_agent.targets.target import Target, TargetError
from mirror_agent.targets.work import Patience

READ_SECONDS = 5.0  # that a look waits for the folder
WRITE_SECONDS = 20.0  # that it may take to write all there is
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
    """The folder of `[publish.folder] path`, if there is one.  It may be a share, which may hang."""
    if settings.folder is None:
        return None
    folder, patience = settings.folder, _patience(settings.folder.path)
    return Target(
        str(folder.path),
        lambda: patience.have(READ_SECONDS, partial(read, folder)),
        lambda documents: patience.have(WRITE_SECONDS, partial(publish, folder, documents)),
        show=lambda drawn: patience.have(WRITE_SECONDS, partial(show, folder, drawn)),
    )


@cache
def _patience(path: Path) -> Patience:
    return Patience(str(path))


def read(settings: FolderSettings) -> Mapping[str, bytes]:
    """What we published there, as it is now: names of the manifest with the bytes of their files.

    A file that is gone, that is no regular file any more, or that others may read than should, is left out: it has to
    be published again.  Raises TargetError if the folder or its manifest cannot be read, or there is no such group.
    """
    folder, access = settings.path, _access(settings)
    with _opened(folder) as root:
        manifest, right = _judge(root, settings, access)
        held = {}
        for name in manifest.files:
            if PLAIN.fullmatch(name):
                with suppress(TargetError):
                    found = _found(root, folder, name)
                    if found is not None and right(found):
                        held[name] = found.content
        return held


def show(settings: FolderSettings, drawn: Callable[[bytes | None], bytes | None]) -> None:
    """Write the page beside the documents, if it is to be another one (see Target.show).

    It waits for the documents where who may read them is to change.  Raises TargetError, also when there is a page of
    somebody else's.
    """
    folder, access = settings.path, _access(settings)
    with _opened(folder) as root:
        manifest, right = _judge(root, settings, access)
        if not _is_for(manifest, settings):
            return
        found = _found(root, folder, page.NAME)
        if found and not found.content.startswith(page.MARK):
            where = str(folder / page.NAME)
            raise TargetError(where, "a page of somebody else's stays", "remove it to get one about the mirrors")
        content = drawn(found.content if found and right(found) else None)
        if content is not None:
            _replace(root, folder, page.NAME, content, access)


def publish(settings: FolderSettings, documents: tuple[Document, ...]) -> tuple[str, ...]:
    """Make the folder hold exactly these documents of ours, and return the names that were written or removed.

    Files are written in the order given and replaced one by one (temporary file, fsync, rename, fsync of the folder),
    equal ones are not touched, removals come last.  Interrupted at any point, the next call goes on: the manifest
    names a file before the file is there.  Raises TargetError: the folder is missing, cannot be written, or holds
    something of somebody else's under one of our names.
    """
    folder, access = settings.path, _access(settings)
    wanted = {document.name: document.content for document in documents}
    for name in wanted:
        if not PLAIN.fullmatch(name):
            raise ValueError(f"not a plain document name: {name!r}")
    with _opened(folder) as root:
        old, right = _judge(root, settings, access)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()}
        new = Manifest(sums, f"{settings.mode:04o}", settings.group)
        current = {name: _found(root, folder, name) for name in wanted}
        _refuse_foreign(folder, old, wanted, current)
        stale = sorted(name for name in old.files if name not in wanted and PLAIN.fullmatch(name))
        if stale or any(name not in old.files for name in wanted):
            _replace(root, folder, MANIFEST, old.joined(new).text(), access)
        changed = [
            name for name, found in current.items() if not found or found.content != wanted[name] or not right(found)
        ]
        for name in changed:
            _replace(root, folder, name, wanted[name], access, renew=not _is_for(old, settings))
        removed = [name for name in stale if _remove(root, folder, name)]
        manifest = _found(root, folder, MANIFEST)
        if not manifest or manifest.content != new.text():
            _replace(root, folder, MANIFEST, new.text(), access)
    return (*changed, *removed)


def _refuse_foreign(
    folder: Path, old: Manifest, wanted: Mapping[str, bytes], current: Mapping[str, _Found | None]
) -> None:
    """A file under one of our names that we did not write stays: the path may be a folder such as /etc."""
    for name, found in current.items():
        if name not in old.files and found is not None and found.content != wanted[name]:
            raise TargetError(
                str(folder / name),
                "a file that mirror-agent did not write has the name of one to publish",
                "publish to a folder of its own, or remove that file",
            )


# --- who may read --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Access:
    """Mode and group that our files are to have."""

    mode: int
    gid: int | None  # None: the group that new files get there

    def is_of(self, status: os.stat_result) -> bool:
        return stat.S_IMODE(status.st_mode) == self.mode and self.gid in (None, status.st_gid)

    def grant(self, descriptor: int, *, enter: bool = False) -> None:
        """Whatever the umask; for a folder, who may read may enter.  What a share refuses is let be."""
        with _let_be():
            if self.gid is not None:
                os.fchown(descriptor, -1, self.gid)
        with _let_be():
            os.fchmod(descriptor, self.mode | (0o100 | (self.mode & 0o444) >> 2 if enter else 0))


@contextmanager
def _let_be() -> Iterator[None]:
    """Let a share refuse modes and groups.  EINVAL: NFSv4 has groups by name, and its server does not know this one."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def _access(settings: FolderSettings) -> _Access:
    """Mode and group as numbers.  Raises TargetError."""
    group = settings.group
    if not group or group.isdecimal():
        return _Access(settings.mode, int(group) if group else None)
    try:
        return _Access(settings.mode, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise TargetError(
            str(settings.path),
            f'there is no group "{group}" on this host; the folder stays as it is',
            f"groupadd {group}, or write another one",
            "publish.folder.group",
        ) from None


def _is_for(manifest: Manifest, settings: FolderSettings) -> bool:
    """Was what is there written for those who are to read it now?"""
    return (manifest.mode, manifest.group) == (f"{settings.mode:04o}", settings.group)


def _judge(root: int, settings: FolderSettings, access: _Access) -> tuple[Manifest, Callable[[_Found], bool]]:
    """The manifest, and whether a file of ours is for those who are to read it."""
    found = _found(root, settings.path, MANIFEST)
    manifest = Manifest.parse(found.content if found else None, settings.path)
    if not _is_for(manifest, settings):
        return manifest, lambda _: False
    if found is None or not access.is_of(found.status):  # a share with a mind of its own
        return manifest, lambda _: True
    return manifest, lambda each: access.is_of(each.status)


# --- one file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    content: bytes  # b"" when it is larger than anything of ours
    status: os.stat_result


def _found(root: int, folder: Path, name: str) -> _Found | None:
    """A regular file, None if there is none.  Raises TargetError for anything else under that name."""
    with _told(folder / name):
        try:
            with _parent(root, name) as parent:
                descriptor = os.open(_leaf(name), _READ, dir_fd=parent)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TargetError(str(folder / name), "this is not a regular file", "remove it")
            with open(descriptor, "rb", closefd=False) as file:
                return _Found(file.read(LIMIT) if status.st_size < LIMIT else b"", status)
        finally:
            os.close(descriptor)


def _replace(root: int, folder: Path, name: str, content: bytes, access: _Access, *, renew: bool = False) -> None:
    """Write a file under a temporary name of the same folder, then rename: readers see the old or the new one.

    With `renew` a sub folder of ours is opened to those who may read now, as one that is made here always is.
    """
    with _told(folder / name), _parent(root, name, access) as parent:
        with suppress(FileNotFoundError):
            os.unlink(TEMPORARY, dir_fd=parent)  # of a run that was interrupted
        descriptor = os.open(TEMPORARY, _CREATE, 0o600, dir_fd=parent)
        try:
            with open(descriptor, "wb") as file:
                uid = os.fstat(descriptor).st_uid
                _refuse_other_owner(parent, folder, name, uid)
                if renew and parent != root and os.fstat(parent).st_uid == uid:
                    access.grant(parent, enter=True)
                file.write(content)
                file.flush()
                access.grant(descriptor)
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
            with _parent(root, name) as parent:
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
def _parent(root: int, name: str, access: _Access | None = None) -> Iterator[int]:
    """A descriptor of the folder that a document lies in: the root, or a sub folder of it, made with `access`."""
    sub, slash, _ = name.partition("/")
    if not slash:
        yield root
        return
    try:
        descriptor = os.open(sub, _FOLDER, dir_fd=root)
    except FileNotFoundError:
        if access is None:
            raise
        os.mkdir(sub, 0o700, dir_fd=root)
        descriptor = os.open(sub, _FOLDER, dir_fd=root)
        access.grant(descriptor, enter=True)
        _sync(root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


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
