"""Keys with their certificates on disk, so that no reader ever sees a key beside a foreign certificate.

A mirror's tls/ folder holds generations and one link: `current -> g-SERIAL/{tls.crt,tls.key}`.  A generation is made
under another name, synced, read back, renamed into place; then the link is swapped by rename.  The generation before
it is kept for a way back.  The folder belongs to the edge's user, so nothing in it is believed: every step works on
open folders and follows no link but `current`, whose target must be a plain generation name.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from mirror_agent.certificates import reading
from mirror_agent.host import files
from mirror_agent.model import Certificate, Trouble

LIMIT = 64 * 1024  # bytes of a key or of a certificate with its chain

_CURRENT = "current"
_KEY, _CERTIFICATE = "tls.key", "tls.crt"
_GENERATION = re.compile(r"g-[0-9a-f]{1,40}")
# No such file, a file for a folder or the reverse, a link, a device or socket, a bad sector.
DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EIO}


# --- a mirror's certificate ----------------------------------------------------------------------------------


def install(tls: PurePosixPath, key: bytes, certificate: bytes, owner: int) -> str:
    """Make a pair the current one of a mirror, readable by `owner` only.  The name of its generation.

    Safe to be killed at any point and to be repeated.  Raises Trouble where key and certificate do not belong
    together; then nothing has changed.
    """
    fresh = _facts(tls, certificate, key)
    if not fresh.key_matches:
        raise Trouble(str(tls), "the new key does not belong to the new certificate")
    name = f"g-{fresh.serial:x}"
    with opened(tls, "written") as folder:
        files.sweep_in(folder)
        before = _target(folder)
        if _pair(folder, name) != (key, certificate):
            make_generation(folder, name, {_KEY: key, _CERTIFICATE: certificate}, owner)
        files.swap_link(folder, _CURRENT, name)
        keep = before if before != name and _good(folder, before) else _previous(folder, name)
        _prune(folder, {name, keep})
    return name


def current(tls: PurePosixPath) -> Certificate | None:
    """What a mirror's certificate says, None where there is none that can be read.  Changes nothing."""
    if files.folder(tls) is None:
        return None
    with opened(tls, "read") as folder:
        key, certificate = _pair(folder, _target(folder))
    with suppress(ValueError):
        return reading.facts(certificate, key)
    return None


def repair(tls: PurePosixPath) -> str:
    """At start: where the current pair is broken, go back to a good one.  Its generation, "" when nothing was done.

    Where there is no good one either, all stays as it is: `current` then says so and a new one is issued.
    """
    if files.folder(tls) is None:
        return ""
    with opened(tls, "repaired") as folder:
        files.sweep_in(folder)
        target = _target(folder)
        if _good(folder, target) or not (good := _previous(folder, target)):
            return ""
        files.swap_link(folder, _CURRENT, good)
    return good


def rollback(tls: PurePosixPath) -> str:
    """Go back to the generation before the current one and forget the current one.  The name of what is current now.

    Raises Trouble where there is no good one to go back to.
    """
    with opened(tls, "rolled back") as folder:
        failed = _target(folder)
        good = _previous(folder, failed)
        if not good:
            raise Trouble(str(tls), "has no earlier certificate to go back to", "a new one is issued at the next pass")
        files.swap_link(folder, _CURRENT, good)
        _prune(folder, {good})
    return good


# --- details -------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: PurePosixPath, doing: str) -> Iterator[int]:
    """A descriptor of a folder of ours; what goes wrong with it is told as `doing`.  No link is followed."""
    with files.told(path, doing), files.opened(path, follow=False) as folder:
        yield folder


def make_generation(folder: int, name: str, contents: dict[str, bytes], owner: int) -> None:
    """A folder with files in it, all at once: built under another name, synced, read back, renamed into place."""
    temporary = files.temporary_name()
    os.mkdir(temporary, 0o700, dir_fd=folder)
    with files.opened(PurePosixPath(temporary), inside=folder, follow=False) as inner:
        for file, content in contents.items():
            files.write_in(inner, file, content, 0o600 if file.endswith(".key") else 0o644, owner)
        files.own(inner, 0o700, owner)
        os.fsync(inner)
        for file, content in contents.items():
            if files.read_in(inner, PurePosixPath(file), len(content)) != content:
                raise OSError(f"{file} reads back different from what was written")
    files.remove_tree_in(folder, name)  # a damaged one, if any: rename does not replace a folder that has files
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _facts(where: PurePosixPath, certificate: bytes, key: bytes) -> Certificate:
    try:
        return reading.facts(certificate, key)
    except ValueError as error:
        raise Trouble(str(where), f"the new certificate cannot be read: {error}") from error


def _target(folder: int) -> str:
    """The generation that is current, "" when there is none."""
    try:
        target = os.readlink(_CURRENT, dir_fd=folder)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return ""
    return target if _GENERATION.fullmatch(target) else ""


def _pair(folder: int, name: str) -> tuple[bytes, bytes]:
    """Key and certificate of a generation; what is missing or damaged is empty.

    What merely could not be read (permissions, no descriptor left) is an error: a good pair must not look damaged.
    """
    if not name:
        return b"", b""
    try:
        with files.opened(PurePosixPath(name), inside=folder, follow=False) as inner:
            parts = [files.read_in(inner, PurePosixPath(file), LIMIT) for file in (_KEY, _CERTIFICATE)]
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return b"", b""
    return parts[0] or b"", parts[1] or b""


def _good(folder: int, name: str) -> Certificate | None:
    """What a generation's certificate says, None where its key does not belong to it."""
    key, certificate = _pair(folder, name)
    with suppress(ValueError):
        found = reading.facts(certificate, key)
        return found if found.key_matches else None
    return None


def _previous(folder: int, but: str) -> str:
    """The good generation that was made last, `but` one; "" when there is none."""
    names = [name for name in _generations(folder) if name != but]
    found = [(good.not_before, name) for name in names if (good := _good(folder, name))]
    return max(found)[1] if found else ""


def _generations(folder: int) -> list[str]:
    return sorted(name for name in os.listdir(folder) if _GENERATION.fullmatch(name))


def _prune(folder: int, keep: set[str]) -> None:
    for name in _generations(folder):
        if name not in keep:
            files.remove_tree_in(folder, name)
    os.fsync(folder)
