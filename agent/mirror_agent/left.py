"""Floor 4: what removed mirrors have left on this host.  Reads, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from mirror_agent import plan
from mirror_agent.config.definition import name_of
from mirror_agent.host import files, state
from mirror_agent.plan import Desired
from mirror_agent.wish import Remembered

_PARTS = ("edge", "registry")  # what a mirror's cache has (pods.py): no other folder is one


@dataclass(frozen=True, slots=True)
class Left:
    """What is there of one mirror that is defined no more."""

    name: str
    size: int  # bytes of its cache
    certificate: bool
    address: IPv4Address | None  # that nobody else gets
    pinned: int  # images of it that sets keep


def present(desired: Desired) -> frozenset[str]:
    """The mirrors that are defined, and those that the agent has not yet taken down."""
    owners = (plan.unit_owner(file) for file in files.tree(desired.paths.units).values())
    return frozenset((*desired.pods, *desired.frozen, *owners))


def find(desired: Desired, memory: Remembered) -> tuple[Left, ...]:
    """All of it, by name.  Raises Trouble."""
    paths, caches = desired.paths, Path(desired.settings.cache.path)
    pinned: dict[str, int] = {}
    for mirrors in state.load_keeps(paths.keeps).values():
        for name, images in mirrors.items():
            pinned[name] = pinned.get(name, 0) + len(images)
    cached = {name for name in _folders(caches) if any((caches / name / part).is_dir() for part in _PARTS)}
    names = {*memory.leases, *cached, *_folders(Path(paths.state) / "mirrors"), *pinned} - present(desired)
    return tuple(
        Left(
            name,
            _size(caches / name) if name in cached else 0,
            files.folder(paths.mirror(name) / "tls") is not None,
            memory.leases.get(name),
            pinned.get(name, 0),
        )
        for name in sorted(names)
        if name_of(f"{name}.toml") == name
    )


def _folders(folder: Path) -> Iterator[str]:
    with files.told(folder, "read"):
        if folder.is_dir():
            yield from (entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))


def _size(folder: Path) -> int:
    """Bytes that a folder takes of the disk.  What goes away meanwhile is left out."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return size
