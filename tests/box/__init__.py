"""The test host: Debian 13 with systemd and podman, a LAN, an internet and a node, in one folder (README.md)."""

from .host import Box, Traffic
from .report import BoxError

__all__ = ["Box", "BoxError", "Traffic"]
