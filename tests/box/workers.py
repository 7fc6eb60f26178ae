"""pytest plugin: each worker of a parallel run (`-n`) has a box of its own: NAME-gw0, NAME-gw1, ..."""

from __future__ import annotations

import os

from .host import Box


def pytest_configure() -> None:
    """Name it, for this process and all that it starts."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["BOX"] = f"{Box().name}-{worker}"
