"""Free space that shrinks: a fast pull can fill a disk between two looks."""

from __future__ import annotations

import threading

from mirror_agent.sources.watched import Hint, Stop, Watched

POLL_SECONDS = 2.0  # one statvfs: 2 µs


def start(watched: Watched, hint: Hint) -> Stop:
    """Hint whenever a tenth of the free space is gone: the less there is, the more often."""
    over = threading.Event()

    def run() -> None:
        seen = watched.free()
        while not over.wait(POLL_SECONDS):
            free = watched.free()
            if free < seen - seen // 10:
                hint(f"{free} bytes free")
                seen = free
            seen = max(seen, free)

    thread = threading.Thread(target=run, name="disk", daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop
