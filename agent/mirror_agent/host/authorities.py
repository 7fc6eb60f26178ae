"""The CAs of this host on disk.  None is ever overwritten, and what signs changes in one step.

The folder (0700) has a folder for each CA, a-KEY/{ca.key, ca.crt}, and the links `current` and, while a CA is
replaced, `next`.  All others are old ones: still trusted, without a key.  cross.crt beside a CA's certificate is that
CA signed by the one before it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath

from mirror_agent.certificates import Pair, making, reading
from mirror_agent.host import files, pairs, state
from mirror_agent.model import Authorities, Authority, Certificate, Folder, Rollover, Trouble

_CURRENT, _NEXT = "current", "next"
_KEY, _CERTIFICATE, _CROSS = "ca.key", "ca.crt", "cross.crt"
_ROLLOVER = "rollover.json"
_NAME = re.compile(r"a-[0-9a-f]{16}")
_HINT = "bring back both from a backup; for a new CA, which all readers must learn to trust, move the folder away"


def read(place: PurePosixPath) -> Authorities | None:
    """All CAs; None where there is none yet.  Raises Trouble where the current or the next one is damaged.

    So is a folder that has CAs and does not say which of them signs, unless it is the first one, whole: there the
    making of it was interrupted, and `create` goes on.
    """
    if files.folder(place) is None:
        return None
    with pairs.opened(place, "read") as folder:
        current, coming = _target(folder, _CURRENT), _target(folder, _NEXT)
        names = _names(folder)
    if not current:
        if names:
            _pair(place / _only(place, names))
        return None
    whole = {name: _read(place, name, name in (current, coming)) for name in {*names, current}}
    old = [whole[name] for name in names if name not in (current, coming)]
    return Authorities(
        whole[current],
        whole[coming] if coming in names and coming != current else None,
        tuple(sorted(old, key=lambda ca: (ca.facts.not_before, ca.key))),
    )


def load(place: PurePosixPath) -> Pair:
    """Key and certificate of the current CA.  Raises Trouble where one is missing or they do not match."""
    with pairs.opened(place, "read") as folder:
        name = _target(folder, _CURRENT)
    if not name:
        raise Trouble(str(place / _CURRENT), "is missing", _HINT)
    return _pair(place / name)


def cross(place: PurePosixPath) -> bytes:
    """The current CA signed by the one before, b"" where there was none or it is not trusted any more."""
    known = read(place)
    if not known or not known.old:
        return b""
    return files.read(place / _CURRENT / _CROSS, pairs.LIMIT) or b""


def trust(place: PurePosixPath) -> bytes:
    """PEM of all CAs, b"" where there is none yet.  Raises Trouble where one is damaged."""
    known = read(place)
    return b"".join(each.pem for each in known.all) if known else b""


def create(place: PurePosixPath, make: Callable[[], Pair], owner: int = 0) -> Pair:
    """The current CA; made, if this host has none yet.  Never another one: what is damaged is a Trouble."""
    files.ensure_folder(Folder(place, 0o700, owner))
    with locked(place) as folder:
        files.sweep_in(folder)
        if not _target(folder, _CURRENT):
            names = _names(folder)
            name = _only(place, names) if names else _install(folder, make(), owner)
            _pair(place / name)
            files.swap_link(folder, _CURRENT, name)
    return load(place)


def prepare(place: PurePosixPath, pair: Pair, owner: int = 0) -> str:
    """Make a pair the next CA; its key.  Raises Trouble where it cannot be one, or another one is prepared already."""
    name = _name(pair)
    known = read(place)
    if known and (known.current.key == _key(pair) or (known.coming and known.coming.key != _key(pair))):
        raise Trouble(str(place / _NEXT), "another CA is current or next already", "mirror-agent ca show")
    with locked(place) as folder:
        files.sweep_in(folder)
        files.swap_link(folder, _NEXT, name)  # first: without the link it would look like an old one
        _install(folder, pair, owner)
    return _key(pair)


def switch(place: PurePosixPath, ends: datetime, now: datetime, owner: int = 0) -> None:
    """Issue from the next CA from now on; `ends` is when the last leaf of the one before will have ended.

    The old CA's key signs the new CA, and then nothing more: it is removed.
    """
    known = read(place)
    if known is None or known.coming is None:
        return
    before, pair = load(place), _pair(place / _folder(known.coming.key))
    signed = making.cross_sign(before, pair.certificate, now)
    with locked(place) as folder:
        with files.opened(PurePosixPath(_folder(known.coming.key)), inside=folder, follow=False) as inner:
            if signed:
                files.write_in(inner, _CROSS, signed, 0o644, owner)
        remembered = recall(place)
        remember(place, replace(remembered, ends={**remembered.ends, known.current.key: ends}), owner)
        files.swap_link(folder, _CURRENT, _folder(known.coming.key))
        files.remove(place / _NEXT)
        files.remove(place / _folder(known.current.key) / _KEY)


def drop(place: PurePosixPath, key: str, owner: int = 0) -> None:
    """Forget a CA that is not the current one.  Raises Trouble for that."""
    with locked(place) as folder:
        name = _folder(key)
        if name == _target(folder, _CURRENT):
            raise Trouble(str(place / name), "is the current CA")
        gone = files.temporary_name()
        with suppress(FileNotFoundError):
            os.rename(name, gone, src_dir_fd=folder, dst_dir_fd=folder)  # at once: half a CA would be a damaged one
            os.fsync(folder)
        files.sweep_in(folder)
        if _target(folder, _NEXT) == name:
            files.remove(place / _NEXT)
        was = recall(place)
        kept = {each.removeprefix("a-") for each in _names(folder)}
        now = Rollover(
            {ca: at for ca, at in was.published.items() if ca[:16] in kept},
            frozenset(ca for ca in was.confirmed if ca[:16] in kept),
            {ca: at for ca, at in was.ends.items() if ca[:16] in kept},
        )
        remember(place, now, owner)


def recall(place: PurePosixPath) -> Rollover:
    """What is remembered of a roll-over.  Raises Trouble where the file is damaged."""
    return state.load_rollover(place / _ROLLOVER)


def remember(place: PurePosixPath, rollover: Rollover, owner: int = 0) -> None:
    """Remember moments of a roll-over."""
    state.save_rollover(place / _ROLLOVER, rollover, owner)


@contextmanager
def locked(place: PurePosixPath) -> Iterator[int]:
    """Hold the CAs and all certificates of this host against another process that would change them.

    These are the agent and the commands.  Gives a descriptor of the folder.  Raises Trouble where there is none.
    """
    with pairs.opened(place, "written") as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder


# --- details -------------------------------------------------------------------------------------------------


def _key(pair: Pair) -> str:
    return reading.facts(pair.certificate, pair.key).subject_key


def _folder(key: str) -> str:
    return f"a-{key[:16]}"


def _name(pair: Pair) -> str:
    return _folder(_key(pair))


def _names(folder: int) -> list[str]:
    return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))


def _target(folder: int, link: str) -> str:
    with suppress(OSError):
        target = os.readlink(link, dir_fd=folder)
        return target if _NAME.fullmatch(target) else ""
    return ""


def _only(place: PurePosixPath, names: list[str]) -> str:
    if len(names) > 1:
        raise Trouble(str(place / _CURRENT), "is missing", f"ln -s {names[0]} {place / _CURRENT}, or another")
    return names[0]


def _install(folder: int, pair: Pair, owner: int) -> str:
    name = _name(pair)
    pairs.make_generation(folder, name, {_KEY: pair.key, _CERTIFICATE: pair.certificate}, owner)
    return name


def _read(place: PurePosixPath, name: str, signs: bool) -> Authority:
    """A CA as readers know it.  One that signs is there with its key, or it is a Trouble."""
    if signs:
        pair = _pair(place / name)
        return Authority(reading.facts(pair.certificate, pair.key), pair.certificate)
    return Authority(_facts(place / name), _part(place / name / _CERTIFICATE))


def _pair(place: PurePosixPath) -> Pair:
    pair = Pair(_part(place / _KEY), _part(place / _CERTIFICATE))
    _facts(place)
    if not reading.facts(pair.certificate, pair.key).key_matches:
        raise Trouble(str(place / _KEY), f"is not the key of {_CERTIFICATE}, or cannot be read", _HINT)
    return pair


def _facts(place: PurePosixPath) -> Certificate:
    try:
        return reading.facts(_part(place / _CERTIFICATE), None)
    except ValueError as error:
        raise Trouble(str(place / _CERTIFICATE), "holds no certificate that can be read", _HINT) from error


def _part(path: PurePosixPath) -> bytes:
    if (part := files.read(path, pairs.LIMIT)) is None:
        raise Trouble(str(path), "is missing", _HINT)
    return part
