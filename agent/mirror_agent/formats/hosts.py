"""hosts: names and addresses of the mirrors, in the form of /etc/hosts, which dnsmasq and CoreDNS read too."""

from __future__ import annotations

from mirror_agent.formats.text import comment
from mirror_agent.model import Document, Publication


def render(publication: Publication) -> tuple[Document, ...]:
    """One line `ADDRESS HOST` per mirror, in the order of the addresses."""
    pairs = sorted((mirror.address, mirror.host) for mirror in publication.mirrors)
    if not pairs:
        return ()
    width = max(len(str(address)) for address, _ in pairs)
    head = comment("For the DNS server of the LAN, or for /etc/hosts of every client.")
    lines = "".join(f"{address!s:<{width}}  {host}\n" for address, host in pairs)
    return (Document("hosts", (head + lines).encode("ascii")),)
