"""What an issuer is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mirror_agent.certificates import Pair
from mirror_agent.model import Certificate, CertificateSettings, Mirror, Paths


@dataclass(frozen=True, slots=True)
class Order:
    """One certificate for one mirror."""

    mirror: Mirror
    settings: CertificateSettings
    paths: Paths
    last: Certificate | None  # the mirror's certificate so far
    now: datetime
    brought: Pair | None = None  # by an admin, for this mirror
