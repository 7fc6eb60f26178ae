"""Containers of ours that started or ended: also those that podman, not systemd, ended."""

from __future__ import annotations

from mirror_agent.sources.watched import Hint, Stop, Watched


def start(watched: Watched, hint: Hint) -> Stop:
    """Hint at each container of ours that started, died or was removed."""
    return watched.container_events(lambda event: hint(f"container of {event}"))
