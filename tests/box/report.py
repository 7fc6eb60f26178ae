"""What the box says to people: errors with a way out, and progress with times."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOG_SECONDS = 20


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
    """Announce a step before it starts, show that it goes on, and tell how long it took once it is done."""
    start = time.monotonic()
    over = threading.Event()
    ticking = threading.Thread(target=_tick, args=(text, start, over), daemon=True)
    say(f"{text} …")
    ticking.start()
    try:
        yield
    finally:
        over.set()
        ticking.join()
    say(f"{text}: {time.monotonic() - start:.1f} s")


def _tick(text: str, start: float, over: threading.Event) -> None:
    """The time that a step takes: a clock on a terminal, a line now and then in a log."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    while not over.wait(1 if terminal else LOG_SECONDS):
        line = f"box: {text} … {time.monotonic() - start:.0f} s"
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
