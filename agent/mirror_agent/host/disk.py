"""The file system that the caches lie on."""

from __future__ import annotations

import os
from pathlib import Path


def free(path: Path) -> int:
    """Bytes that an ordinary process may still write there; 0 where there is nothing yet, or it cannot be asked.

    A file system with a fixed number of inodes is as full as they are: without one, no byte can be written.
    """
    try:
        facts = os.statvfs(path)
    except OSError:
        return 0
    space = facts.f_bavail * facts.f_frsize
    if not facts.f_files:  # btrfs, which has no limit
        return space
    return min(space, facts.f_favail * (facts.f_blocks * facts.f_frsize // facts.f_files))
