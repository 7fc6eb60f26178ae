"""The file system that the caches lie on."""

from __future__ import annotations

import os
from pathlib import Path


def free(path: Path) -> int:
    """Bytes that an ordinary process may still write there; 0 where there is nothing yet, or it cannot be asked."""
    try:
        facts = os.statvfs(path)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize
