"""A cluster as target: reads what it says about images, and applies changes to it.

The API server may hang, however its connections are limited in time; so it is spoken to in a thread of its own, and
whoever asks waits a moment for the answer and goes on without one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from mirror_agent.cluster import place
from mirror_agent.model import Change, ClusterSettings, ClusterState
from mirror_agent.targets import kubeconfig
from mirror_agent.targets.api import Api, this_host
from mirror_agent.targets.target import TargetError
from mirror_agent.targets.work import Work

__all__ = ["publish", "read", "stir", "this_host"]

ANSWER_SECONDS = 5.0  # that a look waits for the cluster
APPLY_SECONDS = 60.0  # that a round of changes may take in all
FRESH_SECONDS = 10.0  # that what was read is good for
BACKOFF_SECONDS = (2, 5, 15, 30, 60, 120, 300)


def read(settings: ClusterSettings) -> ClusterState:
    """What the cluster says about images, at most FRESH_SECONDS old.  Raises TargetError, within ANSWER_SECONDS."""
    return _session(settings).state()


def stir(settings: ClusterSettings) -> None:
    """Something there has changed: what was read before is out of date."""
    _session(settings).stir()


def publish(settings: ClusterSettings, changes: Sequence[Change], alive: Callable[[], None]) -> None:
    """Apply the changes in their order, after a dry run of all.  Raises TargetError at the first that is refused."""
    _session(settings).apply(changes, alive)


@cache
def _session(settings: ClusterSettings) -> Session:
    return Session(settings)


class Session:
    """One cluster: at most one conversation at a time, and what it said last."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._work: Work[ClusterState | None] | None = None
        self._state: ClusterState | None = None
        self._error: TargetError | None = None
        self._failures = 0
        self._next = 0.0  # when to ask again (monotonic)
        self._read: tuple[tuple[Path, ...], kubeconfig.Stamp] = (settings.kubeconfig,), ()  # that was used last
        self._stirred = self._asked = 0  # how often something there has changed; when it was asked last
        self._lock = threading.Lock()
        self._api: Api | None = None

    def state(self) -> ClusterState:
        """See read()."""
        files, before = self._read
        stamp = kubeconfig.stamp(files)
        if stamp != before:  # a new token: what failed with the old one says nothing
            self._read, self._api, self._next, self._failures = (files, stamp), None, 0.0, 0
        patience = 0.0  # for an answer that was waited for before
        if self._work is None and (time.monotonic() >= self._next or self._asked != self._stirred):
            self._asked = self._stirred
            self._work, patience = Work(place(self._settings), self._look), ANSWER_SECONDS
        if self._work:
            self._collect(patience)
        if self._error:
            raise self._error
        if self._state is None:
            raise TargetError(place(self._settings), "it does not answer", "it is asked again")
        return self._state

    def _collect(self, seconds: float) -> None:
        assert self._work is not None  # noqa: S101 - both callers have looked
        if not self._work.wait(seconds):
            self._error = TargetError(place(self._settings), "it does not answer", "it is asked again")
            return
        work, self._work = self._work, None
        if work.result:
            self._state, self._error, self._failures = work.result, None, 0
            self._next = time.monotonic() + FRESH_SECONDS
        elif work.error:
            self._error = work.error
            self._next = time.monotonic() + BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
            self._failures += 1

    def apply(self, changes: Sequence[Change], alive: Callable[[], None]) -> None:
        """See publish().  What was read before is out of date afterwards, however it ends."""
        if self._work and not self._work.wait(0):
            raise TargetError(place(self._settings), "it does not answer", "it is asked again")
        work = self._work = Work(place(self._settings), lambda: self._connected().apply(changes))
        self._next = 0.0
        deadline = time.monotonic() + APPLY_SECONDS
        while not work.wait(min(5.0, max(deadline - time.monotonic(), 0.0))):
            alive()
            if time.monotonic() >= deadline:
                raise TargetError(place(self._settings), f"no answer for {APPLY_SECONDS:.0f} s", "it is tried again")
        self._work = None
        if work.error:
            raise work.error

    def stir(self) -> None:
        """Look anew when next asked, also where a look is under way: it may have been too early."""
        with self._lock:
            self._stirred += 1

    # --- in the thread ---

    def _connected(self) -> Api:
        if self._api is None:
            self._api = Api(self._settings)
            self._read = self._api.config.files, self._api.config.stamp
        return self._api

    def _look(self) -> ClusterState:
        try:
            return self._connected().look()
        except TargetError:
            self._api = None  # the next time with what the kubeconfig says then
            raise
