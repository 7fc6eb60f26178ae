"""The sets of images that are kept, as they are changed: by one thread and one command at a time."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from mirror_agent.host import files, state
from mirror_agent.model import Folder, ImageName, Paths, Trouble

PAUSE_S = 1.0  # between two writes of what `warm` pins

type Keeps = dict[str, dict[str, set[ImageName]]]  # set → mirror → images

_LOCK = threading.Lock()


@contextmanager
def changed(paths: Paths) -> Iterator[Keeps]:
    """The sets, to be changed; written at the end.  Raises Trouble."""
    files.ensure_folder(Folder(paths.state))
    place = paths.state / "keeps.lock"
    with _LOCK, files.told(place, "locked"), open(place, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keeps = {
            name: {mirror: set(images) for mirror, images in mirrors.items()}
            for name, mirrors in state.load_keeps(paths.keeps).items()
        }
        yield keeps
        state.save_keeps(paths.keeps, keeps)


class Pinning:
    """A context whose value pins an image of a mirror to a set; those of a moment in one write of the whole file.

    The first one is written at once, and none is waited for; what is left is written at the end, which raises Trouble.
    Killed, it loses those of the pause: their blobs are too young to leave the cache, and the next run pins them.
    """

    def __init__(self, paths: Paths, name: str, pause_s: float = PAUSE_S) -> None:
        self._paths, self._name, self._pause_s = paths, name, pause_s
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, ImageName]] = set()
        self._some, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="pins", daemon=True)

    def __enter__(self) -> Callable[[str, ImageName], None]:
        state.load_keeps(self._paths.keeps)  # what is damaged is said before anything is fetched
        self._thread.start()
        return self._pin

    def __exit__(self, _kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._over.set()
        self._some.set()
        self._thread.join()
        self._write()

    def _pin(self, mirror: str, image: ImageName) -> None:
        with self._lock:
            self._waiting.add((mirror, image))
        self._some.set()

    def _work(self) -> None:
        while self._some.wait() and not self._over.is_set():
            self._some.clear()
            try:
                self._write()
            except Trouble:  # tried again after the pause; the last write tells
                self._some.set()
            self._over.wait(self._pause_s)

    def _write(self) -> None:
        if not self._waiting:
            return
        with changed(self._paths) as keeps:
            with self._lock:
                waiting = frozenset(self._waiting)
            for mirror, image in waiting:
                keeps.setdefault(self._name, {}).setdefault(mirror, set()).add(image)
        with self._lock:
            self._waiting -= waiting
