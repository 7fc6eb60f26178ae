"""Floor 3: where publications go.  A target reads back what it holds and takes the documents that it should hold.

A new target is one module with `target` and one row in TARGETS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mirror_agent.model import PublishSettings
from mirror_agent.targets import folder
from mirror_agent.targets.target import Target, TargetError

__all__ = ["TARGETS", "Target", "TargetError", "targets"]

TARGETS: Mapping[str, Callable[[PublishSettings], Target | None]] = MappingProxyType({"folder": folder.target})


def targets(settings: PublishSettings) -> tuple[Target, ...]:
    """Those targets that the settings ask for, in the order of the table."""
    return tuple(found for make in TARGETS.values() if (found := make(settings)) is not None)
