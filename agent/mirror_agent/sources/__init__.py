"""Event sources: each says where to look again, and carries no facts.

A source is one file with `start(watched, hint)`, which returns a function that stops it, and one row in SOURCES.
It calls `hint` from a thread of its own, with a few words for the log; it may call too often, in bursts, and for
nothing: waiting for quiet, and looking at everything once a minute, is the loop's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mirror_agent.sources import cluster, containers, disk, drop_ins, units
from mirror_agent.sources.watched import Hint, Stop, Watched

__all__ = ["SOURCES", "Hint", "Start", "Stop", "Watched"]

type Start = Callable[[Watched, Hint], Stop]

SOURCES: Mapping[str, Start] = {
    "drop-ins": drop_ins.start,
    "units": units.start,
    "containers": containers.start,
    "cluster": cluster.start,
    "disk": disk.start,
}
