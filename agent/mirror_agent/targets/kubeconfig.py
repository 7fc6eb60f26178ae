"""A kubeconfig: which API server to speak to, and as whom.

It lets whoever may write it choose both, so it is taken from root only; no program is started for it.  Files that it
names are read with it: what was looked at is what is used, and a token that is replaced in its file is seen.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mirror_agent.targets.target import TargetError

LARGEST_FILE = 2**20
LOGIN = "a token, a tokenFile, or client-certificate and client-key (docs/publications.md)"
PARTS = ("certificate-authority", "client-certificate", "client-key")  # with -data: the content itself, in base64

type Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """What it says, whole, and the files it came from as they were then."""

    content: dict[str, Any]
    files: tuple[Path, ...]
    stamp: Stamp


def load(path: Path) -> Kubeconfig:
    """Read it and the files that it names.  Raises TargetError."""
    files, stamp = [path], [_facts(path)]

    def read(name: object) -> bytes:
        file = path.parent / str(name)
        files.append(file)
        stamp.append(_facts(file))
        return _read(file)

    try:
        config = yaml.safe_load(_read(path))
        context = _named(config, "contexts", config["current-context"])
        cluster, user = _named(config, "clusters", context["cluster"]), _named(config, "users", context["user"])
        _refuse_programs(path, user)
        for table in (cluster, user):
            for part in PARTS:
                if part in table and f"{part}-data" not in table:
                    table[f"{part}-data"] = base64.b64encode(read(table.pop(part))).decode()
        if "tokenFile" in user:
            user["token"] = read(user.pop("tokenFile")).decode().strip()
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise unusable(path, error) from error
    content = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": user}],
    }
    return Kubeconfig(content, tuple(files), tuple(stamp))


def stamp(files: Iterable[Path]) -> Stamp:
    """Changes when one of the files does."""
    return tuple(map(_facts, files))


def unusable(path: Path, error: Exception) -> TargetError:
    """What is no kubeconfig."""
    what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return TargetError(str(path), f"cannot be used: {what}", f"server, its CA, and {LOGIN}")


def _named(config: Any, kind: str, name: object) -> dict[str, Any]:
    """One of its clusters, users or contexts."""
    for each in config.get(kind) or ():
        if each["name"] == name:
            return dict(each[kind[:-1]])
    raise ValueError(f"none of its {kind} is named {name!r}")


def _refuse_programs(path: Path, user: dict[str, Any]) -> None:
    for key in ("exec", "auth-provider"):
        if key in user:
            reason = f"cannot be used: its user has {key}, and the agent starts no program to log in"
            raise TargetError(str(path), reason, LOGIN)


def _read(path: Path) -> bytes:
    """A file of root's, or of whoever asks.  Raises TargetError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would never be opened
        try:
            _check(path, os.fstat(descriptor))
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(LARGEST_FILE + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        hint = "sudo" if isinstance(error, PermissionError) else f"server, its CA, and {LOGIN}"
        raise TargetError(str(path), f"cannot be used: {error.strerror}", hint) from error
    if len(content) > LARGEST_FILE:
        raise TargetError(str(path), f"cannot be used: it is larger than {LARGEST_FILE // 2**20} MiB", "")
    return content


def _check(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise TargetError(str(path), "cannot be used: it is not a regular file", "")
    if facts.st_uid not in (0, os.geteuid()):
        reason = f"cannot be used: it is owned by uid {facts.st_uid}, not by root"
        raise TargetError(str(path), reason, f"chown root: {path}")
    if facts.st_mode & 0o022:
        raise TargetError(str(path), "cannot be used: others can write to it", f"chmod go-w {path}")


def _facts(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
