"""The agent's own CA as issuer: a leaf takes milliseconds and needs nobody."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from datetime import datetime

from mirror_agent.certificates import Pair, making
from mirror_agent.host import authorities
from mirror_agent.host.issuers.order import Order
from mirror_agent.model import Settings


def issue(order: Order) -> Pair:
    """Sign a fresh key with the CA of this host.  Raises Trouble."""
    place, mirror, settings = order.paths.authority, order.mirror, order.settings
    return making.issue(
        authorities.load(place),
        mirror.host,
        mirror.address,
        order.now,
        settings.leaf_days,
        order.last,
        authorities.cross(place),
        settings.leaf_key,
    )


def make_authority(settings: Settings, hosts: Iterable[str], now: datetime) -> Pair:
    """A new CA that may vouch for the settings' domain and LAN, and for those hosts that lie elsewhere."""
    below = "." + settings.domain
    elsewhere = {host for host in hosts if host != settings.domain and not host.endswith(below)}
    names, networks = [settings.domain, *sorted(elsewhere)], [settings.network.subnet]
    return making.make_authority(names, networks, socket.gethostname(), now, settings.certificates.ca_days)
