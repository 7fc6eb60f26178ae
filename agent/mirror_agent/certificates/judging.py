"""Whether a certificate is good for a mirror, and when another one is due."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network

from cryptography import x509

from mirror_agent.certificates import reading
from mirror_agent.model import Certificate, CertificateSettings, Issuer, LeafKey, Mirror, Suggestion

JITTER = 1 / 20  # of the life, so that mirrors made together are not renewed together
RETRY_FIRST, RETRY_LONGEST = timedelta(minutes=1), timedelta(hours=6)
RETRY_URGENT = timedelta(minutes=5)
ASK_EVERY = timedelta(hours=6)  # RFC 9773, 4.3.2
WAY_OUT = "choose another host or address; or mirror-agent ca roll: a new CA that permits it"


def issuer_of(mirror: Mirror, settings: CertificateSettings) -> Issuer:
    """Who makes this mirror's certificate."""
    if mirror.tls:
        return Issuer.BROUGHT
    return Issuer.ACME if settings.acme else Issuer.OWN


def next_due(certificate: Certificate) -> datetime:
    """When a certificate is to be renewed: at 2/3 of its life plus up to 1/20, by its serial number."""
    life = certificate.not_after - certificate.not_before
    digest = sha256(str(certificate.serial).encode("ascii")).digest()
    share = int.from_bytes(digest[:4]) / 2**32  # [0, 1)
    return certificate.not_before + life * (2 / 3 + JITTER * share)


def valid(certificate: Certificate, now: datetime) -> bool:
    """Is it now within its life?"""
    return certificate.not_before <= now < certificate.not_after


def serves(certificate: Certificate, mirror: Mirror, now: datetime) -> bool:
    """Is it good for a mirror as it is now, whoever signed it?  An ACME server's names no address."""
    named = any(_covers(name, mirror.host) for name in certificate.hosts)
    placed = not certificate.addresses or mirror.address in certificate.addresses
    return certificate.key_matches and named and placed and valid(certificate, now)


def unfit(certificate: Certificate, host: str) -> str:
    """Why a certificate that an admin brings is no good for a host at any time, "" when it is."""
    if not certificate.key_matches:
        return "the private key does not belong to the certificate, or cannot be read"
    if not any(_covers(name, host) for name in certificate.hosts):
        return f"is for {', '.join(certificate.hosts) or 'no name'}, not for {host}"
    return ""


def forbids(authority_certificate: bytes, host: str, address: IPv4Address) -> str:
    """Why the CA's name constraints refuse this mirror, "" when they do not (RFC 5280, 4.2.1.10)."""
    ca = reading.load(authority_certificate)[0]
    try:
        constraints = ca.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return ""
    permitted, excluded = constraints.permitted_subtrees or (), constraints.excluded_subtrees or ()
    names = [each.value for each in permitted if isinstance(each, x509.DNSName)]
    networks = [each.value for each in permitted if isinstance(each, x509.IPAddress)]
    if names and not any(_below(host, name) for name in names):
        return f"may not vouch for host {host}, only for names below {', '.join(names)}"
    if networks and not any(_inside(address, network) for network in networks):
        return f"may not vouch for address {address}, only for {', '.join(map(str, networks))}"
    for each in excluded:
        if isinstance(each, x509.DNSName) and _below(host, each.value):
            return f"may not vouch for names below {each.value}"
        if isinstance(each, x509.IPAddress) and _inside(address, each.value):
            return f"may not vouch for addresses in {each.value}"
    return ""


def due(
    certificate: Certificate | None,
    mirror: Mirror,
    authority: Certificate,
    now: datetime,
    trusted: Collection[str] = (),
    kind: LeafKey = LeafKey.P256,
) -> str:
    """Why a mirror needs a new certificate, "" when it needs none.

    `trusted` are the keys of further CAs whose leaves are still good: those that the current one replaces.  A
    certificate that is not valid yet is due as well: `issue` then says what is wrong with the clock.
    """
    if certificate is None:
        return "has no certificate"
    own = certificate.issuer_key == authority.subject_key
    latest = authority.not_after if own else datetime.max.replace(tzinfo=UTC)
    wrong = _wrong(certificate, mirror, {authority.subject_key, *trusted})
    return wrong or _other_key(certificate, kind) or _ended(certificate, latest, now)


def due_elsewhere(
    certificate: Certificate | None,
    mirror: Mirror,
    own: Collection[str],
    now: datetime,
    suggestion: Suggestion | None = None,
    kind: LeafKey = LeafKey.P256,
) -> str:
    """Why a mirror needs a new certificate of an ACME server, "" when it needs none.

    `own` are the keys of this host's CAs: theirs is not wanted.  Such a certificate names no address.  `suggestion`
    is what the server says; it may only be earlier than our own rule.
    """
    if certificate is None:
        return "has no certificate"
    if certificate.issuer_key in own:
        return "the certificate is by the host's CA, not by the ACME server"
    if not certificate.key_matches:
        return "the private key does not belong to the certificate"
    if mirror.host not in certificate.hosts:
        return f"the certificate is for {', '.join(certificate.hosts) or 'no name'}, not for {mirror.host}"
    if suggestion and suggestion.serial == certificate.serial and suggestion.at and now >= suggestion.at:
        return "the ACME server asks for it"
    return _other_key(certificate, kind) or _ended(certificate, datetime.max.replace(tzinfo=UTC), now)


def to_be_asked(certificate: Certificate | None, suggestion: Suggestion | None, now: datetime) -> bool:
    """Is it time to ask the ACME server when it would have a certificate renewed?"""
    if certificate is None:
        return False
    if suggestion is None or suggestion.serial != certificate.serial:
        return True
    return not suggestion.asked <= now < suggestion.asked + ASK_EVERY


def retry(failures: int, not_after: datetime | None, now: datetime) -> timedelta:
    """How long to wait after so many failed tries in a row: 1 min at first, doubled each time up to 6 h.

    `not_after` is the end of the certificate that is served meanwhile.  The nearer it is, the more often: ten more
    tries fit in; and every 5 min where nothing valid is served.
    """
    wait = min(RETRY_FIRST * (1 << min(failures - 1, 20)), RETRY_LONGEST)
    left = not_after - now if not_after else timedelta()
    return min(wait, max(left // 10, RETRY_URGENT))


def when(moment: datetime) -> str:
    """A moment for people."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _wrong(certificate: Certificate, mirror: Mirror, trusted: Collection[str]) -> str:
    if not certificate.key_matches:
        return "the private key does not belong to the certificate"
    if certificate.issuer_key not in trusted:
        return "the certificate is by another CA"
    if certificate.hosts != (mirror.host,) or certificate.addresses != (mirror.address,):
        names = ", ".join([*certificate.hosts, *map(str, certificate.addresses)])
        return f"the certificate is for {names or 'no name'}, not for {mirror.host}, {mirror.address}"
    return ""


def _other_key(certificate: Certificate, kind: LeafKey) -> str:
    return "" if certificate.key is kind else f"its key is not {kind}, as certificates.leaf_key says"


def _ended(certificate: Certificate, latest: datetime, now: datetime) -> str:
    """`latest` is the end that a new certificate could have: one that lasts as long is not renewed for its age."""
    if now < certificate.not_before:
        return f"the certificate is not valid before {when(certificate.not_before)}"
    if now >= certificate.not_after:
        return f"the certificate expired at {when(certificate.not_after)}"
    if now >= next_due(certificate) and certificate.not_after < latest:
        return f"the certificate ends at {when(certificate.not_after)}"
    return ""


def _covers(name: str, host: str) -> bool:
    """A name of a certificate, "*" for one label (RFC 6125, 6.4.3)."""
    name, host = name.lower(), host.lower()
    return name == host or (name.startswith("*.") and name[2:] == host.partition(".")[2])


def _below(host: str, suffix: str) -> bool:
    bare = suffix.lower().removeprefix(".")
    return host.lower() == bare or host.lower().endswith("." + bare)


def _inside(address: IPv4Address, network: object) -> bool:
    return isinstance(network, IPv4Network) and address in network
