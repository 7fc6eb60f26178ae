"""What can happen to an upstream, and is undone at the end: each is a context manager that takes the box.

The upstream is quay.io's.  Where connections that are open would outlive the fault, they are closed: a mirror has to
ask anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import by_hand
from box import Box
from box.topology import upstream
from client import black_hole

QUAY = upstream("quay.io")
SERVICE = "box-upstream@quay.io"
LIE = "/root/lie"
_PKI = "/etc/box/pki"
_NO_DNS = """
table ip no_dns {
  chain input { type filter hook input priority 0; udp dport 53 drop; tcp dport 53 drop; }
}
"""
_LISTENS = f"""i=0; until ss -ltnH src {QUAY.address}:443 | grep -q .; do
    i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done"""


@contextmanager
def imposter(box: Box, lie: str, certificate: str = QUAY.host) -> Iterator[None]:
    """liar.py in the upstream's place."""
    by_hand.send(box, ("tests/system/liar.py",))
    box.exec("systemctl", "stop", SERVICE)
    tell(box, lie)
    pair = (f"{_PKI}/{certificate}.crt", f"{_PKI}/{certificate}.key")
    script = f"{by_hand.WORK}/tests/system/liar.py"
    inside = ("-p", "NetworkNamespacePath=/run/netns/inet")
    box.exec("systemd-run", "--quiet", "--collect", "--unit=liar", *inside, "python3", script, QUAY.address, *pair, LIE)
    try:
        box.inet("sh", "-c", _LISTENS)
        yield
    finally:
        box.exec("systemctl", "stop", "liar", check=False)
        box.exec("systemctl", "start", SERVICE)


def tell(box: Box, lie: str) -> None:
    """Change what the imposter does."""
    box.exec("sh", "-c", f"cat > {LIE}", input=lie)


def asked(box: Box) -> list[str]:
    """What the imposters were asked so far: METHOD PATH."""
    said = box.journal("-u", "liar", "-o", "cat")
    return [line for line in said.splitlines() if line.startswith(("GET /v2/", "HEAD /v2/"))]


@contextmanager
def refused(box: Box) -> Iterator[None]:
    """Nobody listens."""
    box.exec("systemctl", "stop", SERVICE)
    try:
        yield
    finally:
        box.exec("systemctl", "start", SERVICE)


@contextmanager
def no_such_name(box: Box) -> Iterator[None]:
    """NXDOMAIN."""
    names = "/etc/box/internet.hosts"
    box.exec("sed", "-i", "s/ quay.io$/ quay.gone/", names)
    box.exec("systemctl", "restart", "box-internet-dns", SERVICE)
    try:
        yield
    finally:
        box.exec("sed", "-i", "s/ quay.gone$/ quay.io/", names)
        box.exec("systemctl", "restart", "box-internet-dns")


@contextmanager
def silent_dns(box: Box) -> Iterator[None]:
    """Queries vanish.  (Dropped on the far side: a sender is told when its own packets are dropped.)"""
    box.inet("nft", "-f", "-", input=_NO_DNS)
    box.exec("systemctl", "restart", SERVICE)
    try:
        yield
    finally:
        box.inet("nft", "delete", "table", "ip", "no_dns")


@contextmanager
def hole(box: Box) -> Iterator[None]:
    """Packets vanish, those of open connections too."""
    black_hole(box)
    try:
        yield
    finally:
        box.gw("nft", "delete", "table", "ip", "hole")


@contextmanager
def trickle(box: Box) -> Iterator[None]:
    """A kilobit a second: a TLS handshake takes half a minute."""
    box.inet("tc", "qdisc", "add", "dev", "wan", "root", "tbf", "rate", "1kbit", "burst", "1600", "limit", "1m")
    box.exec("systemctl", "restart", SERVICE)
    try:
        yield
    finally:
        box.inet("tc", "qdisc", "del", "dev", "wan", "root")


def _imposter(lie: str, certificate: str = QUAY.host) -> Callable[[Box], AbstractContextManager[None]]:
    return lambda box: imposter(box, lie, certificate)


FAULTS: dict[str, Callable[[Box], AbstractContextManager[None]]] = {
    "refused": refused,
    "no such name": no_such_name,
    "silent DNS": silent_dns,
    "black hole": hole,
    "another's certificate": _imposter("truth", "gcr.io"),
    **{f"{code}": _imposter(f"{code}") for code in (401, 403, 404, 429, 500, 503)},
    "a page": _imposter("page"),
    "no answer": _imposter("silence"),
    "reset": _imposter("reset"),
    "trickle": trickle,
}
