"""What the sources watch, handed in: they know neither the settings nor the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

type Hint = Callable[[str], None]  # a few words on what stirred, for the log
type Stop = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Watched:
    """Everything that may stir.  The functions with a hint subscribe a callback and return how to unsubscribe it."""

    folders: tuple[Path, ...]  # drop-ins, the settings' folder, folders of credentials; they need not exist
    unit_changes: Callable[[Hint], Stop]  # names of units of ours (Systemd.on_change)
    container_events: Callable[[Hint], Stop]  # "UNIT ACTION" (Containers.on_event)
    cluster_events: Callable[[Hint], Stop]  # "KIND NAME CHANGE" (Watches.on_change)
    free: Callable[[], int]  # bytes of the caches' file system, 0 where there is none yet
