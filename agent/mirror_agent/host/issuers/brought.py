"""An admin as issuer: key and certificate are taken over as they were brought."""

from __future__ import annotations

from mirror_agent.certificates import Pair
from mirror_agent.host.issuers.order import Order
from mirror_agent.model import Trouble


def issue(order: Order) -> Pair:
    """What the mirror's [tls] names.  Raises Trouble where that cannot be used (it was told why when it was read)."""
    if order.brought is None:
        raise Trouble(order.mirror.name, "no usable certificate was brought for it", "mirror-agent check")
    return order.brought
