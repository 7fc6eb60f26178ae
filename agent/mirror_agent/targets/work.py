"""Work that may hang, in a thread of its own: a share whose server is gone does not answer, for hours maybe.

The caller has the answer within the call, which is waited for a little.  An errand (host/errands.py) is the other kind:
begun at one look of the loop and taken at a later one, with a hint when it has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from mirror_agent.targets.target import TargetError


class Work[T]:
    """A function in a thread of its own that nobody has to wait for."""

    def __init__(self, place: str, function: Callable[[], T]) -> None:
        self.result: T | None = None
        self.error: TargetError | None = None
        self._place = place
        self._function = function
        self._thread = threading.Thread(target=self._run, name=place, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except TargetError as error:
            self.error = error
        except Exception as error:  # what a library raises is told, not lost
            self.error = TargetError(self._place, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def wait(self, seconds: float) -> bool:
        """Is it done, at the latest after this time?"""
        self._thread.join(seconds)
        return not self._thread.is_alive()


class Patience:
    """One place that may hang: at most one piece of work at a time, and nobody waits longer than they said."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._work: Work[Any] | None = None

    def have[T](self, seconds: float, function: Callable[[], T]) -> T:
        """What the function returns or raises.  Raises TargetError when that, or what was begun before, takes longer.

        Work that is late is not broken off, nothing could: it goes on, and its result is dropped.
        """
        if self._work and not self._work.wait(0):
            raise self._silent()
        self._work = work = Work(self._place, function)
        if not work.wait(seconds):
            raise self._silent()
        self._work = None
        if work.error:
            raise work.error
        return cast(T, work.result)

    def _silent(self) -> TargetError:
        hint = "is it a share whose server is away? The mirrors go on, and it is tried again"
        return TargetError(self._place, "it does not answer", hint)
