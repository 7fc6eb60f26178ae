"""What the box says to people: errors with a way out, and progress with times."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class BoxError(Exception):
    """Something a person must act on: what went wrong, why, and what to do about it."""

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__("\n".join(filter(None, (what, why, hint and f"hint: {hint}"))))


def say(text: str) -> None:
    """One line of progress. On stderr, so that stdout stays what a verb answers."""
    print(f"box: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step before it starts, and tell how long it took once it is done."""
    say(f"{text} …")
    start = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - start:.1f} s")
