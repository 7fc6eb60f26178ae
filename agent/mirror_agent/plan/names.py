"""Names of units and files that follow from a mirror's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from mirror_agent.model import (
    File,
    Pod,
)
from mirror_agent.plan.values import Desired


def unit_services(pod: Pod) -> tuple[str, ...]:
    """The services of a pod, the pod's own first."""
    return tuple(service_of(unit.path) for unit in pod.units)


def service_of(path: PurePosixPath) -> str:
    """The service that quadlet generates from a file (podman-systemd.unit(5))."""
    suffix = {".container": "", ".pod": "-pod", ".network": "-network"}.get(path.suffix, "")
    return f"{path.stem}{suffix}.service"


_OWNER = re.compile(rb"io\.mirror-agent\.mirror=([a-z0-9-]+)")


def unit_owner(file: File) -> str:
    """The mirror that a unit file on disk belongs to, "" for the network's."""
    found = _OWNER.search(file.content)
    return found[1].decode() if found else ""


_UPSTREAM = re.compile(rb"^LogExtraFields=UPSTREAM=(\S+)", re.MULTILINE)


def unit_upstream(mirror: str, files: Iterable[File]) -> str:
    """The upstream that a mirror's units on disk name, "" when there are none: of one whose definition is gone."""
    found = (_UPSTREAM.search(file.content) for file in files if unit_owner(file) == mirror)
    return next((match[1].decode() for match in found if match), "")


def hold_file(desired: Desired, name: str) -> PurePosixPath:
    """The file that tells a mirror's edge to fetch nothing new (quadlets/nginx.conf)."""
    return PurePosixPath(desired.settings.cache.path) / name / "edge" / "full"
