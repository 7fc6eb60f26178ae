"""A cluster that tells when something changes: one watch for each kind of object that counts.

A watch only says that it is time to look again.  It goes on after the version that it has seen last, however often its
connection ends; where the server does not know that version any more (410), all may have changed.  The protocol:
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mirror_agent.cluster import place, trust_name
from mirror_agent.model import ClusterSettings, ClusterState, Trouble
from mirror_agent.targets import cluster, kubeconfig
from mirror_agent.targets.api import CONFIG, CONFIG_MAPS, LISTS, POOLS, AnswerError, Api
from mirror_agent.targets.target import TargetError

TURN_SECONDS = 300  # after which the server ends a watch, and it is begun anew with what the kubeconfig says then
STEADY_SECONDS = 20.0  # a watch that was there for this long was a good one
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0)
TOLD_AFTER = 3  # failures in a row: an API server that is started anew is none
GONE, ABSENT = 410, 404

type Listener = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """Objects of one kind, or a single one of them."""

    path: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path.rpartition('/')[2]} {self.name}".strip()


class Watches:
    """All watches of the cluster that the settings name, as long as somebody listens."""

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._key: object = None  # of the cluster that is watched: the settings, and the kubeconfig as it is
        self._running: dict[Subject, Watch] = {}

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call it, from threads of their own, when something may have changed; until what is returned is called."""
        self._listener = listener

        def stop() -> None:
            self._listener = None
            self.follow(None, None)

        return stop

    def follow(self, settings: ClusterSettings | None, state: ClusterState | None) -> tuple[str, ...]:
        """Watch what is to be watched now: to be called at each look.  What had ended by itself, in words.

        `state` is None where the cluster cannot be read: what is watched stays so.
        """
        listener = self._listener
        key = settings and (settings, kubeconfig.stamp((settings.kubeconfig,)))
        same = key == self._key
        wanted = _subjects(state) if settings and listener else frozenset()
        if state is None and same and self._running:
            wanted = frozenset(self._running)
        ended = {subject: watch for subject, watch in self._running.items() if not watch.alive}
        kept = {s: watch for s, watch in self._running.items() if same and s in wanted and s not in ended}
        leaving = [watch for subject, watch in self._running.items() if subject not in kept]
        for watch in leaving:
            watch.stop()
        for watch in leaving:
            watch.join()
        self._key, self._running = key, kept
        if settings and listener:
            for subject in sorted(wanted - self._running.keys(), key=str):
                self._running[subject] = Watch(settings, subject, listener)
        return tuple(f"the watch of {s} ended ({ended[s].reason}) and is begun anew" for s in ended if s in wanted)

    @property
    def running(self) -> tuple[Watch, ...]:
        """All that there are now."""
        return tuple(self._running.values())

    def trouble(self) -> Trouble | None:
        """Why changes are not seen at once, for people; None while they are."""
        errors = [watch.error for watch in self.running if watch.error and watch.failures >= TOLD_AFTER]
        return errors[0] if errors else None


def _subjects(state: ClusterState | None) -> frozenset[Subject]:
    trust = trust_name(state.objects if state else ())
    lists = (*LISTS.values(), POOLS)
    return frozenset({*map(Subject, lists), Subject(f"{CONFIG}/images", "cluster"), Subject(CONFIG_MAPS, trust)})


class Watch:
    """One watch in a thread of its own, until stop()."""

    def __init__(self, settings: ClusterSettings, subject: Subject, listener: Listener) -> None:
        self.reason = ""  # why the thread ended, when nobody stopped it
        self.error: TargetError | None = None  # why it is not there
        self.opened = 0  # how often it was there
        self.failures = 0  # in a row
        self._settings, self._subject, self._listener = settings, subject, listener
        self._version = ""  # that was seen last; "": of nothing yet
        self._stopped = threading.Event()
        self._wire: socket.socket | None = None
        self._lock = threading.Lock()  # between stop() and a connection that is being made
        self._thread = threading.Thread(target=self._run, name=f"watch {subject}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Does the thread run?"""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Let the thread end, also out of a read; one that is about to connect ends a little later."""
        self._stopped.set()
        with self._lock:
            if self._wire is not None:
                with contextlib.suppress(OSError):
                    self._wire.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait a moment for a thread that was stopped."""
        self._thread.join(1.0)

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._turn()
                self._stopped.wait(BACKOFF_SECONDS[min(self.failures, len(BACKOFF_SECONDS) - 1)])
        except BaseException as error:
            self.reason = f"{type(error).__name__}: {error}"
            self._stir("watch ended")
            raise

    def _turn(self) -> None:
        """One connection, for as long as it lasts."""
        begun = time.monotonic()
        try:
            self._read()
        except TargetError as error:
            if isinstance(error, AnswerError) and error.status == GONE:
                self._version = ""
            if not (isinstance(error, AnswerError) and error.status in (GONE, ABSENT)):
                self.error = error
                if not self.failures:  # is it away?
                    self._stir(f"{self._subject}: not watched")
        except Exception as error:  # what a client library raises is told, not lost
            self.error = TargetError(place(self._settings), f"{type(error).__name__}: {error}")
        self.failures = 0 if time.monotonic() - begun >= STEADY_SECONDS else self.failures + 1

    def _read(self) -> None:
        query: dict[str, Any] = {"watch": True, "allowWatchBookmarks": True, "timeoutSeconds": TURN_SECONDS}
        if self._version:
            query["resourceVersion"] = self._version
        if self._subject.name:
            query["fieldSelector"] = f"metadata.name={self._subject.name}"
        events = Api(self._settings).watch(self._subject.path, query, self._open)
        try:
            for event in events:
                self._take(event)
        finally:
            events.close()
            self._shut()

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            raise AnswerError.of(place(self._settings), str(self._subject), dict(item))
        self._version = item["metadata"]["resourceVersion"]
        if kind != "BOOKMARK":
            self._stir(f"{item.get('kind', '')} {item['metadata'].get('name', '')} {kind.lower()}")

    def _open(self, descriptor: int) -> None:
        """Keep a second handle of the connection: shutting it down ends a read in this thread."""
        with self._lock:
            self._wire = socket.socket(fileno=os.dup(descriptor))
            if self._stopped.is_set():
                self._wire.shutdown(socket.SHUT_RDWR)
        self.error, self.opened = None, self.opened + 1
        if self.failures or not self._version:  # what happened meanwhile is not known
            self._stir(f"{self._subject}: watched")

    def _shut(self) -> None:
        with self._lock:
            if self._wire is not None:
                self._wire.close()
                self._wire = None

    def _stir(self, what: str) -> None:
        if not self._stopped.is_set():
            cluster.stir(self._settings)
            self._listener(what)
