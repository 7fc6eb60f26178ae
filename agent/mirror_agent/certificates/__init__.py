"""Floor 1: what certificates look like, what they say, and when a new one is due.  PEM in, PEM out; nothing is written.

`making` makes CAs and leaves, `judging` says whether one is good and for how long, `reading` turns PEM into facts.
Times are aware and in UTC; `now` is always the caller's.
"""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """A private key and its certificate (for a leaf below an intermediate CA: its chain), both PEM."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return "Pair(key=…, certificate=…)"  # a key must not end up in a log or a traceback
