"""Build outputs outside the tree, named by what they are made of.

A stage's folder is NAME-KEY, KEY being a hash of its ingredients: when they change, the name changes and
the stage is made again. A folder appears by rename when it is whole, so a build may be killed anywhere.
Who uses a folder holds a shared flock on it, and a box that is to be booted again has a link to it; only folders
without either are ever removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .report import BoxError, say, step

CACHE = Path(os.environ.get("MIRROR_AGENT_BOX_CACHE") or "/var/cache/mirror-agent-box")

PAUSE_SECONDS = 10  # before what could not be fetched is fetched once more
GENERATIONS = 2  # of each stage: the current one, and the one before for going back and forth


@dataclass(frozen=True)
class Stage:
    """One thing to build: `make` fills a new folder, `ingredients` (JSON) say when it must be made again."""

    name: str
    ingredients: object
    make: Callable[[Path], None]
    needs: tuple[Stage, ...] = ()
    fetches: bool = False  # from package registries: they are busy at times, and asked once more then

    @property
    def path(self) -> Path:
        """Where the finished stage is, or will be."""
        return CACHE / f"{self.name}-{self.key}"

    @property
    def key(self) -> str:
        made_of = [self.ingredients, [stage.key for stage in self.needs]]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def content(folder: Path) -> dict[str, str]:
    """The files of a source folder with their mode and hash: an ingredient."""
    return {
        str(file.relative_to(folder)): f"{file.stat().st_mode:o} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def build(stages: Sequence[Stage]) -> None:
    """Make what is missing, in order. Cheap when there is nothing to do; two builds wait for each other."""
    if all(stage.path.is_dir() for stage in stages):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "build.lock", "another build is running, waiting for it"):
        for leftover in CACHE.glob(".making-*"):
            remove(leftover)
        for stage in stages:
            if not stage.path.is_dir():
                _make(stage)
        _remove_old(stages)


def _make(stage: Stage) -> None:
    staging = CACHE / f".making-{stage.name}"  # ours alone: the build is locked
    staging.mkdir()
    with step(f"building {stage.name}"):
        try:
            stage.make(staging)
        except BoxError as error:
            if not stage.fetches:
                raise
            say(f"{error}\nonce more, in {PAUSE_SECONDS} s")
            for leftover in CACHE.glob(f".making-{stage.name}*"):
                remove(leftover)
            time.sleep(PAUSE_SECONDS)
            staging.mkdir()
            stage.make(staging)
    os.sync()  # whole on disk before it gets its name
    staging.rename(stage.path)


def _linked() -> set[Path]:
    """What boxes are made of.  They come and go meanwhile."""
    found = set()
    for state in CACHE.glob("boxes/*"):
        with suppress(OSError):
            found |= {link.readlink() for link in state.iterdir() if link.is_symlink()}
    return found


def _remove_old(stages: Sequence[Stage]) -> None:
    linked = _linked()
    for stage in stages:
        os.utime(stage.path)
        generations = sorted(CACHE.glob(f"{stage.name}-*"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in set(generations[GENERATIONS:]) - linked:
            with suppress(BlockingIOError), _folder_lock(old, fcntl.LOCK_EX | fcntl.LOCK_NB):
                say(f"removing {old.name}, which nothing uses any more")
                remove(old)


def hold(folder: Path) -> int:
    """Keep a stage from being removed for as long as the returned descriptor is open (also in children)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(descriptor)  # used now: the older ones go first
    return descriptor


@contextmanager
def _folder_lock(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, notice: str) -> Iterator[None]:
    """Hold an exclusive lock; say `notice` when that means waiting. The kernel frees it if we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(notice)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(folder: Path) -> None:
    """Remove a folder; renamed first, so that a removal cut short never looks like the real thing."""
    trash = folder.with_name(f".making-trash-{folder.name}-{os.getpid()}")
    folder.rename(trash)
    shutil.rmtree(trash)
