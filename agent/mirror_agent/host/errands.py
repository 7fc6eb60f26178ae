"""What waits for somebody on the network, in threads: the agent has more to do meanwhile.

An errand is begun when it is first asked for, and what came of it is taken when it is asked for again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from mirror_agent.model import Trouble

LIMIT_SECONDS = 900.0  # then it is told that there is no answer; the errand is still waited for
STOP_SECONDS = 5.0  # that an agent which ends waits for its errands

type Key = tuple[str, str]  # kind of step, subject


class Errands:
    """One errand for a key at a time.  `hint` is called from a thread, when one has ended."""

    def __init__(self, hint: Callable[[str], None], limit: float = LIMIT_SECONDS) -> None:
        self._hint = hint
        self._limit = limit
        self._open: dict[Key, _Errand] = {}

    @property
    def open(self) -> frozenset[Key]:
        """Those that were begun, and of which nothing was taken yet."""
        return frozenset(self._open)

    @property
    def under_way(self) -> frozenset[Key]:
        """Those for which it is too early to ask again."""
        return frozenset(key for key, errand in self._open.items() if not errand.ended and not errand.late)

    def take[T](self, key: Key, cause: object, errand: Callable[[], T]) -> T | None:
        """What came of an errand; None while it is under way, also where this call has begun it.

        What was begun for another cause is of no use any more, and begun anew.  Raises Trouble: the errand's own, or
        that it takes too long.
        """
        found = self._open.get(key)
        if found and found.ended:
            del self._open[key]
            if found.cause == cause:
                result: T = found.outcome()
                return result
            found = None
        if found is None:
            self._open[key] = _Errand(cause, errand, lambda: self._hint(" ".join(key)), self._limit)
        elif found.late:
            raise Trouble(key[0], f"no end of it for {self._limit / 60:.0f} minutes", "it is looked at again")
        return None

    def close(self) -> None:
        """Wait a moment for what has not ended: what it has put somewhere it takes away again."""
        deadline = time.monotonic() + STOP_SECONDS
        for errand in self._open.values():
            errand.join(max(deadline - time.monotonic(), 0.0))


class _Errand:
    def __init__(self, cause: object, errand: Callable[[], Any], ended: Callable[[], None], limit: float) -> None:
        self.cause = cause
        self._errand = errand
        self._told = ended
        self._result: Any = None
        self._error: Trouble | None = None
        self._end = threading.Event()
        self._deadline = time.monotonic() + limit
        self._thread = threading.Thread(target=self._run, name="errand", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._end.is_set()

    @property
    def late(self) -> bool:
        return time.monotonic() >= self._deadline

    def outcome(self) -> Any:
        if self._error:
            raise self._error
        return self._result

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._result = self._errand()
        except Trouble as trouble:
            self._error = trouble
        except Exception as error:  # what a library raises is told, not lost
            self._error = Trouble(type(error).__name__, " ".join(str(error).split()) or "no more is known")
        self._end.set()
        self._told()
