"""Units of ours that started, ended or failed, as D-Bus tells them."""

from __future__ import annotations

from mirror_agent.sources.watched import Hint, Stop, Watched


def start(watched: Watched, hint: Hint) -> Stop:
    """Hint at each unit of ours that changed, and at the loss of the bus."""
    return watched.unit_changes(lambda unit: hint(f"unit {unit}" if unit else "the bus is gone"))
