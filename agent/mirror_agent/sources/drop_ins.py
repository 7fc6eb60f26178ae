"""Folders in which people put files: definitions, settings, credentials.

inotify follows a folder itself, not its name: one that is deleted and made again, or did not exist, would never be
seen.  So for each folder the nearest ancestor that exists is watched too, and whenever a folder on the way stirs,
the watches are laid anew.  Where a folder is a link (to a checkout; in a container to the host's), both of its ends
are watched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from mirror_agent.model import Trouble
from mirror_agent.sources.watched import Hint, Stop, Watched

# not opened, not closed without a write: our own reading causes them
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


def start(watched: Watched, hint: Hint) -> Stop:
    """Hint at each file that changes in a folder, and at each folder that comes or goes.

    Raises Trouble when the kernel gives no more inotify watches.
    """
    observer = Observer()
    handler = _Handler(observer, watched.folders, hint)
    observer.start()
    try:
        handler.lay()
    except OSError as error:
        observer.stop()
        raise Trouble("inotify", error.strerror or str(error), _advice(error)) from error

    def stop() -> None:
        observer.stop()
        observer.join()

    return stop


def _advice(error: OSError) -> str:
    return {
        errno.ENOSPC: "raise the sysctl fs.inotify.max_user_watches",
        errno.EMFILE: "raise the sysctl fs.inotify.max_user_instances",
    }.get(error.errno or 0, "")


class _Handler(FileSystemEventHandler):
    """Lays watches and hears what they tell.  Events come one after another, in the observer's thread."""

    def __init__(self, observer: BaseObserver, folders: Iterable[Path], hint: Hint) -> None:
        self._observer = observer
        self._folders = tuple(folders)
        self._hint = hint
        self._places: set[Path] = set()  # where the folders really lie
        self._ways: set[str] = set()  # all that leads there
        self._laid: dict[str, tuple[ObservedWatch, tuple[int, int]]] = {}  # with device and inode
        self._lock = threading.Lock()

    def dispatch(self, event: FileSystemEvent) -> None:
        """One event of any watch."""
        paths = {os.fsdecode(path) for path in (event.src_path, event.dest_path) if path}
        told = {path for path in paths if Path(path).parent in self._places}
        if not isinstance(event, DirModifiedEvent) and (stirred := paths & self._ways):
            told |= stirred
            with contextlib.suppress(OSError):  # the loop looks at everything once a minute without us
                told |= self.lay(stirred)
        for path in sorted(told):
            self._hint(path)

    def lay(self, stirred: Iterable[str] = ()) -> set[str]:
        """Watch what should be watched now and nothing else; the folders that were not watched so far.

        The watches of what stirred are laid anew in any case: a folder made again may have its old inode.
        Raises OSError.
        """
        laid: set[str] = set()
        with self._lock:
            for path in stirred:
                self._drop(path)
            # again until it is quiet: a folder may come or go before its ancestor is watched
            while (new := self._lay_once()) is not None:
                laid |= new
        return laid & {str(place) for place in self._places}

    def _lay_once(self) -> set[str] | None:
        """Lay what is missing; None when nothing was."""
        self._places = {Path(os.path.realpath(folder)) for folder in self._folders}
        ends = {*self._folders, *self._places}
        self._ways = {str(path) for end in ends for path in (end, *end.parents)}
        wanted = {str(path): identity for end in ends for path, identity in _around(end)}
        for path in list(self._laid):
            if wanted.get(path) != self._laid[path][1]:
                self._drop(path)
        missing = {path: identity for path, identity in wanted.items() if identity and path not in self._laid}
        laid = set()
        for path, identity in sorted(missing.items()):
            with contextlib.suppress(FileNotFoundError):  # gone since it was looked at
                self._laid[path] = self._observer.schedule(self, path, event_filter=_EVENTS), identity
                laid.add(path)
        return laid if missing else None

    def _drop(self, path: str) -> None:
        if path in self._laid:
            self._observer.unschedule(self._laid.pop(path)[0])


def _around(folder: Path) -> Iterator[tuple[Path, tuple[int, int] | None]]:
    """The folder, and its nearest ancestor that exists: found by the very look that tells which one it is."""
    yield folder, _identity(folder)
    yield next((path, identity) for path in folder.parents if (identity := _identity(path)))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return (facts.st_dev, facts.st_ino) if stat.S_ISDIR(facts.st_mode) else None
