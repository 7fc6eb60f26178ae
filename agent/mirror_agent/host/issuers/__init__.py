"""Where the mirrors' certificates come from.

An issuer is one file with `issue(order)`, which returns a key and its certificate and raises Trouble, and one row
in ISSUERS.  Whether one is due is decided elsewhere (judging.due); here it is got and put in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mirror_agent import pods
from mirror_agent.certificates import Pair, judging
from mirror_agent.host import authorities, pairs
from mirror_agent.host.issuers import acme, brought, own
from mirror_agent.host.issuers.order import Order
from mirror_agent.model import Issuer

__all__ = ["ISSUERS", "Order", "get", "put"]

ISSUERS: Mapping[Issuer, Callable[[Order], Pair]] = {
    Issuer.OWN: own.issue,
    Issuer.ACME: acme.issue,
    Issuer.BROUGHT: brought.issue,
}


def get(order: Order) -> Pair:
    """A key and its certificate, from whoever makes this mirror's.  May take minutes.  Raises Trouble."""
    return ISSUERS[judging.issuer_of(order.mirror, order.settings)](order)


def put(order: Order, pair: Pair) -> None:
    """Make a pair the mirror's current one; the edge takes it at its next reload or start.

    The agent and `mirror-agent renew` may do so at the same time: one waits for the other.  Raises Trouble.
    """
    with authorities.locked(order.paths.authority):
        pairs.install(order.paths.mirror(order.mirror.name) / "tls", pair.key, pair.certificate, pods.EDGE_ID)
