"""Files and folders: written whole and durable or not at all, read without following links or waiting.

A write is a new file beside the old one, synced, renamed over it, and the folder synced: a reader sees the old bytes
or the new ones, a power cut leaves one of them.  What is already as it should be is not touched.  The last part of a
path is never followed as a link.  Every failure is a Trouble that names the file.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from mirror_agent.model import Candidate, Denied, File, Folder, Trouble

DEFINITION_LIMIT = 64 * 1024  # bytes of a drop-in file that are read at most
TREE_LIMIT = 1024 * 1024  # bytes of a file in a folder of ours; none of ours comes near
ANYONE = -1  # as an owner: user and group differ, which is never what we want

_TEMPORARY = re.compile(r"\.mirror-agent-[0-9a-f]{16}\.tmp")
# Not blocking: opening a FIFO would wait for its other end.  Not a terminal: a device could become ours.
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_HINTS = {
    errno.EACCES: "run as root",
    errno.EPERM: "run as root; an immutable file must be released by chattr -i",
    errno.ENOENT: "its folder does not exist",
    errno.ENOSPC: "make room on this file system",
    errno.EDQUOT: "raise the quota of this file system",
    errno.EROFS: "the file system is mounted read-only",
    errno.ELOOP: "it is a link; put the file itself there",
    errno.ENOTDIR: "a folder is needed there, not a file or a link",
    errno.EISDIR: "a folder has this name; move it away",
    errno.ENAMETOOLONG: "shorten the name",
}


# --- writing -------------------------------------------------------------------------------------------------


def write(file: File) -> bool:
    """Make a file be there byte for byte, with its mode and owner.  True when it was not already."""
    with told(file.path, "written"), opened(file.path.parent) as folder:
        return write_in(folder, file.path.name, file.content, file.mode, file.owner)


def write_in(folder: int, name: str, content: bytes, mode: int, owner: int) -> bool:
    """`write` in a folder that is open already, so that nobody can put another in its place meanwhile."""
    if _is(folder, name, content, mode, owner):
        return False
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _replacing(folder, name) as temporary:
        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
            own(fd, mode, owner)
            os.fsync(fd)
        finally:
            os.close(fd)
    return True


def remove(path: PurePosixPath) -> bool:
    """Make a file (or link) be gone, durably.  True when it was there."""
    with told(path, "removed"):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        with opened(path.parent) as folder:
            os.fsync(folder)
        return True


def ensure_folder(folder: Folder) -> bool:
    """Make a folder be there with its mode and owner, durably.  True when it was not already.

    Missing folders above it are made with mode 0755 for the user that runs us.
    """
    path = folder.path
    if not os.path.isdir(path.parent):
        ensure_folder(Folder(path.parent, owner=os.geteuid()))
    with told(path, "made a folder"), opened(path.parent) as parent:
        try:
            os.mkdir(path.name, 0o700, dir_fd=parent)
            made = True
        except FileExistsError:
            made = False
        with opened(PurePosixPath(path.name), inside=parent, follow=False) as fd:
            changed = own(fd, folder.mode, folder.owner)
            if made or changed:
                os.fsync(fd)
                os.fsync(parent)
    return made or changed


def swap_link(folder: int, name: str, target: str) -> bool:
    """Make a symbolic link in an open folder point to `target` in one step, durably.  True when it did not already."""
    with suppress(OSError):
        if os.readlink(name, dir_fd=folder) == target:
            return False
    with _replacing(folder, name) as temporary:
        os.symlink(target, temporary, dir_fd=folder)
    return True


@contextmanager
def _replacing(folder: int, name: str) -> Iterator[str]:
    """A name to make something under; then it takes the place of `name` in one step, durably, or goes away again."""
    temporary = temporary_name()
    try:
        yield temporary
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def sweep(folder: PurePosixPath) -> int:
    """Remove what interrupted writes left behind.  The number of things removed; a missing folder has none."""
    if not os.path.isdir(folder):
        return 0
    with told(folder, "swept"), opened(folder) as fd:
        return sweep_in(fd)


def sweep_in(folder: int) -> int:
    """`sweep` in a folder that is open already."""
    left = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
    for name in left:
        remove_tree_in(folder, name)
    return len(left)


def remove_tree_in(folder: int, name: str) -> None:
    """Remove a file, a link or a whole folder; links in it are not followed.  Gone already is fine."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def temporary_name() -> str:
    """A name that `sweep` knows and that neither quadlet nor nginx reads."""
    return f".mirror-agent-{secrets.token_hex(8)}.tmp"


# --- reading -------------------------------------------------------------------------------------------------


def read(path: PurePosixPath, limit: int) -> bytes | None:
    """The bytes of a regular file, None when there is none.  Raises Trouble where it has more than `limit`."""
    with told(path, "read"):
        content = read_in(None, path, limit)
    if content is not None and len(content) > limit:
        raise Trouble(str(path), f"is larger than {limit} bytes", "that is no file of ours")
    return content


def read_in(folder: int | None, path: PurePosixPath, limit: int) -> bytes | None:
    """Up to `limit` + 1 bytes of a regular file, so that the caller sees whether there is more."""
    try:
        fd = os.open(path, _LOOK, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return _content(fd, limit + 1)
    finally:
        os.close(fd)


def folder(path: PurePosixPath, *, follow: bool = False) -> Folder | None:
    """A folder as it is, None when there is none (or a file in its place; or a link, if not told to follow it)."""
    try:
        facts = os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise trouble(path, "looked at", error) from error
    return Folder(path, stat.S_IMODE(facts.st_mode), _owner(facts)) if stat.S_ISDIR(facts.st_mode) else None


def tree(top: PurePosixPath) -> Mapping[PurePosixPath, File]:
    """The regular files in a folder and in the folders below it, as they are.  A missing folder is empty.

    Links and devices are left out: they are in the way of a file of ours at most, and a write replaces them.  Of a
    file that is larger than any of ours the beginning is enough to tell that it differs.
    """
    found: dict[PurePosixPath, File] = {}
    with told(top, "read"):
        try:
            entries = sorted(os.scandir(top), key=lambda entry: entry.name)
        except FileNotFoundError:
            return {}
        for entry in entries:
            path = top / entry.name
            if entry.is_dir(follow_symlinks=False):
                found |= tree(path)
            elif entry.is_file(follow_symlinks=False) and (file := _file(path)) is not None:
                found[path] = file
    return found


def scan(folders: Sequence[PurePosixPath]) -> tuple[Candidate, ...]:
    """The drop-in files of several folders, in the order of their names: the first folder that has a name wins.

    Rules: UAPI.6 configuration files.  A missing folder is empty; one that cannot be read is a Trouble, for it must
    not look as if every definition in it had been removed.
    """
    winners: dict[str, Candidate] = {}
    for place in folders:
        with told(place, "read"):
            try:
                names = os.listdir(place)
            except FileNotFoundError:
                continue
            for name in names:
                if name not in winners and (candidate := _candidate(place / name)) is not None:
                    winners[name] = candidate
    return tuple(winners[name] for name in sorted(winners))


# --- details -------------------------------------------------------------------------------------------------


@contextmanager
def told(where: object, doing: str) -> Iterator[None]:
    """Turn what the system refuses into a Trouble that says which file, what for, why, and what helps."""
    try:
        yield
    except OSError as error:
        raise trouble(where, doing, error) from error


def trouble(where: object, doing: str, error: OSError) -> Trouble:
    """What the system refused, for people."""
    reason = (error.strerror or str(error)).lower()
    kind = Denied if error.errno in (errno.EACCES, errno.EPERM) else Trouble
    return kind(str(where), f"cannot be {doing}: {reason}", _HINTS.get(error.errno or 0, ""))


@contextmanager
def opened(path: PurePosixPath, *, inside: int | None = None, follow: bool = True) -> Iterator[int]:
    """A descriptor of a folder.  Folders above ours may be links: an admin puts the state where there is room."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=inside)
    try:
        yield fd
    finally:
        os.close(fd)


def _is(folder: int, name: str, content: bytes, mode: int, owner: int) -> bool:
    """Tell whether exactly this file is there.  What cannot be opened is not."""
    try:
        fd = os.open(name, _LOOK, dir_fd=folder)
    except OSError:
        return False
    try:
        facts = os.fstat(fd)
        return (
            stat.S_ISREG(facts.st_mode)
            and stat.S_IMODE(facts.st_mode) == mode
            and _owner(facts) == owner
            and facts.st_size == len(content)
            and _content(fd, len(content) + 1) == content
        )
    finally:
        os.close(fd)


def own(fd: int, mode: int, owner: int) -> bool:
    """Owner first: giving a file away clears the set-user-ID bits of its mode.  True when something changed."""
    facts = os.fstat(fd)
    give, change = _owner(facts) != owner, stat.S_IMODE(facts.st_mode) != mode
    if give:
        os.fchown(fd, owner, owner)
    if give or change:
        os.fchmod(fd, mode)
    return give or change


def _owner(facts: os.stat_result) -> int:
    """User and group in one number.  Only root can give files away: for others their group does not count."""
    return facts.st_uid if facts.st_uid == facts.st_gid or os.geteuid() != 0 else ANYONE


def _content(fd: int, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit > 0 and (part := os.read(fd, min(limit, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def _file(path: PurePosixPath) -> File | None:
    """A regular file as it is; None when it went away or became something else meanwhile."""
    with told(path, "read"):
        try:
            fd = os.open(path, _LOOK)
        except FileNotFoundError:
            return None
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                return None
            return File(path, _content(fd, TREE_LIMIT), stat.S_IMODE(facts.st_mode), _owner(facts))
        finally:
            os.close(fd)


def _candidate(path: PurePosixPath) -> Candidate | None:
    """What lies at a path; None when it went away meanwhile.  Judged after opening, so that it cannot change."""
    try:
        fd = os.open(path, _LOOK)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _unopened(path, error)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return Candidate(str(path), "other", facts.st_uid, stat.S_IMODE(facts.st_mode))
        content = _content(fd, DEFINITION_LIMIT + 1)
        size = max(facts.st_size, len(content))
        kept = content if size <= DEFINITION_LIMIT else b""
        return Candidate(str(path), "regular", facts.st_uid, stat.S_IMODE(facts.st_mode), size, kept)
    finally:
        os.close(fd)


def _unopened(path: PurePosixPath, error: OSError) -> Candidate | None:
    """A link, a socket, or a file that we may not read."""
    try:
        facts = os.stat(path, follow_symlinks=False)
        masked = stat.S_ISLNK(facts.st_mode) and os.readlink(path) == os.devnull
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(facts.st_mode)
    if stat.S_ISLNK(facts.st_mode):
        return Candidate(str(path), "masked" if masked else "link", facts.st_uid, mode)
    if stat.S_ISREG(facts.st_mode):
        return Candidate(str(path), "unreadable", facts.st_uid, mode, facts.st_size)
    return Candidate(str(path), "other", facts.st_uid, mode)
