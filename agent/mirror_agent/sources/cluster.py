"""Objects of a cluster that changed: ours, and those of others that ours must agree with."""

from __future__ import annotations

from mirror_agent.sources.watched import Hint, Stop, Watched


def start(watched: Watched, hint: Hint) -> Stop:
    """Hint at each change, and whenever the cluster is there again."""
    return watched.cluster_events(lambda event: hint(f"cluster: {event}"))
