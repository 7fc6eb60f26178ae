"""Folders in which people put files: definitions, settings, credentials.

inotify follows a folder itself, not its name: one that is deleted and made again, or did not exist, would never be
seen.  So for each folder the nearest ancestor that exists is watched too, and whenever a folder on the way stirs,
the watches are laid anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterable
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
        self._ways = {str(path) for folder in self._folders for path in (folder, *folder.parents)}
        self._laid: dict[str, tuple[ObservedWatch, tuple[int, int]]] = {}  # with device and inode
        self._lock = threading.Lock()

    def dispatch(self, event: FileSystemEvent) -> None:
        """One event of any watch."""
        paths = {os.fsdecode(path) for path in (event.src_path, event.dest_path) if path}
        stirred = paths & self._ways
        if stirred and not isinstance(event, DirModifiedEvent):  # those tell of content, not of the folder itself
            with contextlib.suppress(OSError):  # the loop looks at everything once a minute without us
                self.lay()
        for path in sorted(paths):
            if path in self._ways or any(Path(path).parent == folder for folder in self._folders):
                self._hint(path)

    def lay(self) -> None:
        """Watch what should be watched now, and nothing else.  Raises OSError."""
        with self._lock:
            wanted = {str(path) for folder in self._folders for path in _around(folder)}
            for path in list(self._laid):
                if path not in wanted or _identity(path) != self._laid[path][1]:
                    self._observer.unschedule(self._laid.pop(path)[0])
            for path in sorted(wanted - set(self._laid)):
                identity = _identity(path)
                if identity is not None:
                    watch = self._observer.schedule(self, path, event_filter=_EVENTS)
                    self._laid[path] = watch, identity


def _around(folder: Path) -> tuple[Path, Path]:
    """The folder, and its nearest ancestor that exists."""
    return folder, next(parent for parent in folder.parents if parent.is_dir())


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
