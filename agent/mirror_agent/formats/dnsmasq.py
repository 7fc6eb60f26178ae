"""Names and addresses of the mirrors for dnsmasq, with the way back from address to name (dnsmasq(8), host-record)."""

from __future__ import annotations

from mirror_agent.formats.text import comment
from mirror_agent.model import Document, Publication


def render(publication: Publication) -> tuple[Document, ...]:
    """One host-record per mirror, in the order of the addresses."""
    pairs = sorted((mirror.address, mirror.host) for mirror in publication.mirrors)
    if not pairs:
        return ()
    lines = "".join(f"host-record={host},{address}\n" for address, host in pairs)
    return (Document("dnsmasq.conf", (comment("Goes to /etc/dnsmasq.d/.") + lines).encode("ascii")),)
