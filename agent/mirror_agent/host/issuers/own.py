"""The agent's own CA as issuer: a leaf takes milliseconds and needs nobody."""

from __future__ import annotations

from mirror_agent import certificates
from mirror_agent.certificates import Pair
from mirror_agent.host import pairs
from mirror_agent.host.issuers.order import Order


def issue(order: Order) -> Pair:
    """Sign a fresh key with the CA of this host.  Raises Trouble."""
    authority = pairs.load(order.paths.authority)
    mirror, days = order.mirror, order.settings.leaf_days
    return certificates.issue(authority, mirror.host, mirror.address, order.now, days, order.last)
