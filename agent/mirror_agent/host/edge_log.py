"""The edges' logs, as the journal has them, from a place on that is remembered.

The journal is bounded and outlives both the pods and the agent: what clients did while the agent was away is read
when it is back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from systemd import journal

MOST = 50_000  # lines at once; the rest follows at the next look


@dataclass(frozen=True, slots=True)
class Line:
    """One request that an edge answered, or what nginx says besides."""

    container: str
    id: str  # of this start of it
    at: datetime
    text: str


def read(containers: Collection[str], cursor: str) -> tuple[list[Line], str]:
    """Lines after `cursor` of these containers, and the cursor behind the last one.

    Without a cursor, or with one that the journal has forgotten, all that it has: a line is counted again then at
    worst, and none is lost.
    """
    if not containers:
        return [], cursor
    with journal.Reader() as reader:
        for container in containers:
            reader.add_match(CONTAINER_NAME=container)
        if cursor:
            reader.seek_cursor(cursor)
        lines: list[Line] = []
        for entry in _entries(reader):
            if entry["__CURSOR"] != cursor:
                cursor = str(entry["__CURSOR"])
                name, start = str(entry["CONTAINER_NAME"]), str(entry.get("CONTAINER_ID_FULL", ""))
                lines.append(Line(name, start, entry["__REALTIME_TIMESTAMP"], str(entry.get("MESSAGE", ""))))
        return lines, cursor


def _entries(reader: journal.Reader) -> Iterator[dict[str, Any]]:
    for _ in range(MOST):
        entry = reader.get_next()
        if not entry:
            return
        yield entry
