"""Floor 1: what certificates look like and when a new one is due.  Keys and PEM in, PEM out; nothing is written.

The profile satisfies OpenSSL's strict checks, Python's default context, pyca/cryptography's verifier and Go at
once: none of them catches all of what the others refuse.  Rules: RFC 5280 section 4.2, CA/Browser Forum section 7.
Times are aware and in UTC; `now` is always the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirror_agent.model import Certificate, CertificateSettings, Issuer, LeafKey, Mirror, Suggestion, Trouble

CA_BACKDATE = timedelta(days=1)  # more than the leaves', so that no leaf begins before its CA
LEAF_BACKDATE = timedelta(hours=1)  # for clients whose clock is late
JITTER = 1 / 20  # of the life, so that mirrors made together are not renewed together
RETRY_FIRST, RETRY_LONGEST = timedelta(minutes=1), timedelta(hours=6)
ASK_EVERY = timedelta(hours=6)  # RFC 9773, 4.3.2
RETRY_URGENT = timedelta(minutes=5)
WAY_OUT = "choose another host or address; or mirror-agent ca roll: a new CA that permits it"
COMMON_NAME = 64  # longest commonName (RFC 5280, ub-common-name)

type SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Pair(NamedTuple):
    """A private key and its certificate (for a leaf below an intermediate CA: its chain), both PEM."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return "Pair(key=…, certificate=…)"  # a key must not end up in a log or a traceback


# --- making --------------------------------------------------------------------------------------------------


def make_authority(
    suffixes: Sequence[str], networks: Sequence[IPv4Network], host: str, now: datetime, days: int
) -> Pair:
    """A new self-signed CA that can vouch for nothing but names below `suffixes` and addresses in `networks`.

    `host` is the machine's own name, for the subject.  `days` of life, counted from `now`.  No path length: it
    would block a cross-signed roll-over.  The constraints cannot be widened later (see `forbids`).
    """
    if not suffixes or not networks:
        raise ValueError("a CA without name constraints would be trusted for every name")
    key = ec.generate_private_key(ec.SECP256R1())
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The key's digits tell two CAs of one host apart, for people and for verifiers that search by subject.
    head, tail = "mirror-agent CA on ", f" ({ski.digest.hex()[:8]})"
    name = _name(head + host[: COMMON_NAME - len(head) - len(tail)] + tail)
    permitted: list[x509.GeneralName] = [x509.DNSName(suffix.strip(".").lower()) for suffix in suffixes]
    permitted += [x509.IPAddress(network) for network in networks]
    start = now.astimezone(UTC).replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CA_BACKDATE)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(ski, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .sign(key, SHA256())
    )
    return Pair(key_pem(key), certificate.public_bytes(Encoding.PEM))


def issue(
    authority: Pair,
    host: str,
    address: IPv4Address,
    now: datetime,
    days: int,
    last: Certificate | None = None,
    cross: bytes = b"",
    kind: LeafKey = LeafKey.P256,
) -> Pair:
    """A fresh key and a TLS server certificate for one mirror, valid for `days` from `now`, or until the CA ends.

    `last` is the mirror's certificate so far: a clock that stands before it is wrong.  `cross` is what
    `cross_sign` made of this CA: it is sent along.  Raises Trouble where a certificate would be no good: clock, end
    of the CA, a name that the CA may not vouch for, a CA that is none.
    """
    chain, signer = _signer(authority)
    ca = chain[0]
    start = now.astimezone(UTC).replace(microsecond=0)
    _check_times(ca, start, last)
    end = min(start + timedelta(days=days), ca.not_valid_after_utc)
    if reason := forbids(authority.certificate, host, address):
        raise Trouble(_title(ca), reason, WAY_OUT)
    key = make_key(kind)
    certificate = (
        x509.CertificateBuilder()
        # Never empty: then subjectAltName need not be critical.  Too long a host is in subjectAltName only.
        .subject_name(_name(host if len(host) <= COMMON_NAME else None))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(start - LEAF_BACKDATE, ca.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(address)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(_subject_key(ca)), None, None), critical=False)
        .sign(signer, SHA256())
    )
    # Clients know roots only: what stands between the leaf and a root is sent along.
    sent = [certificate, *(above for above in chain if above.issuer != above.subject)]
    if cross and _certificates(cross)[0].not_valid_after_utc > start:
        sent += _certificates(cross)
    return Pair(key_pem(key), b"".join(each.public_bytes(Encoding.PEM) for each in sent))


def cross_sign(old: Pair, new: bytes, now: datetime) -> bytes:
    """The new CA's name, key and constraints, signed by the old CA: so whoever trusts only the old one trusts both.

    PEM; b"" where the old CA may not sign another one, or has ended.  Raises Trouble where it is no CA.
    """
    chain, signer = _signer(old)
    ca, made = chain[0], _certificates(new)[0]
    start = now.astimezone(UTC).replace(microsecond=0)
    end = min(ca.not_valid_after_utc, made.not_valid_after_utc)
    lowest = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    if lowest or end <= start:
        return b""
    builder = (
        x509.CertificateBuilder()
        .subject_name(made.subject)
        .issuer_name(ca.subject)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(start - LEAF_BACKDATE, ca.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(_subject_key(ca)), None, None), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(bytes.fromhex(_subject_key(made))), critical=False)
    )
    for extension in made.extensions:
        if isinstance(extension.value, x509.BasicConstraints | x509.KeyUsage | x509.NameConstraints):
            builder = builder.add_extension(extension.value, extension.critical)
    sent = [builder.sign(signer, SHA256()), *(above for above in chain if above.issuer != above.subject)]
    return b"".join(each.public_bytes(Encoding.PEM) for each in sent)


def make_key(kind: LeafKey) -> SigningKey:
    """A fresh private key for a mirror."""
    if kind is LeafKey.RSA:
        return rsa.generate_private_key(65537, 3072)
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: SigningKey) -> bytes:
    """A private key as PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_authority(authority: Pair) -> None:
    """Raises Trouble where these are no key and certificate of a CA that can sign what clients accept."""
    _signer(authority)


def forbids(authority_certificate: bytes, host: str, address: IPv4Address) -> str:
    """Why the CA's name constraints refuse this mirror, "" when they do not (RFC 5280, 4.2.1.10)."""
    ca = _certificates(authority_certificate)[0]
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


# --- reading -------------------------------------------------------------------------------------------------


def facts(certificate_pem: bytes, key_pem: bytes | None) -> Certificate:
    """What the first certificate of a PEM text says.  A missing or unreadable key does not match.

    Raises ValueError where the text holds no certificate that can be read.
    """
    certificate = _certificates(certificate_pem)[0]
    subject_key = _subject_key(certificate)
    hosts: list[str] = []
    addresses: list[IPv4Address] = []
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.DNSName)
        addresses = [each for each in names.get_values_for_type(x509.IPAddress) if isinstance(each, IPv4Address)]
    except x509.ExtensionNotFound:
        pass
    try:
        signer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        signer = None
    if signer is None and certificate.issuer == certificate.subject:
        signer = bytes.fromhex(subject_key)
    return Certificate(
        hosts=tuple(hosts),
        addresses=tuple(addresses),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        issuer_key=(signer or b"").hex(),
        key_matches=key_pem is not None and _belongs(certificate, key_pem),
        subject_key=subject_key,
        subject=_named(certificate.subject),
        issuer=_named(certificate.issuer),
        key=_kind(certificate),
    )


def trust_bundle(*pems: bytes) -> str:
    """The certificates of all texts as one PEM text, re-encoded, each once, in the order given.

    Raises ValueError where one of them holds no certificate: a bundle is never silently shorter.
    """
    blocks = [each.public_bytes(Encoding.PEM).decode("ascii") for pem in pems for each in _certificates(pem)]
    return "".join(block.strip() + "\n" for block in dict.fromkeys(blocks))


def issuer_of(mirror: Mirror, settings: CertificateSettings) -> Issuer:
    """Who makes this mirror's certificate."""
    if mirror.tls:
        return Issuer.BROUGHT
    return Issuer.ACME if settings.acme else Issuer.OWN


# --- deciding ------------------------------------------------------------------------------------------------


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
    unfit = _unfit(certificate, mirror, {authority.subject_key, *trusted})
    return unfit or _other_key(certificate, kind) or _ended(certificate, latest, now)


def retry(failures: int, not_after: datetime | None, now: datetime) -> timedelta:
    """How long to wait after so many failed tries in a row: 1 min at first, doubled each time up to 6 h.

    `not_after` is the end of the certificate that is served meanwhile.  The nearer it is, the more often: ten more
    tries fit in; and every 5 min where nothing valid is served.
    """
    wait = min(RETRY_FIRST * (1 << min(failures - 1, 20)), RETRY_LONGEST)
    left = not_after - now if not_after else timedelta()
    return min(wait, max(left / 10, RETRY_URGENT))


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


def unfit(certificate: Certificate, host: str) -> str:
    """Why a certificate that an admin brings is no good for a host at any time, "" when it is."""
    if not certificate.key_matches:
        return "the private key does not belong to the certificate, or cannot be read"
    if not any(_covers(name, host) for name in certificate.hosts):
        return f"is for {', '.join(certificate.hosts) or 'no name'}, not for {host}"
    return ""


# --- details -------------------------------------------------------------------------------------------------


def _unfit(certificate: Certificate, mirror: Mirror, trusted: Collection[str]) -> str:
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
        return f"the certificate is not valid before {_when(certificate.not_before)}"
    if now >= certificate.not_after:
        return f"the certificate expired at {_when(certificate.not_after)}"
    if now >= next_due(certificate) and certificate.not_after < latest:
        return f"the certificate ends at {_when(certificate.not_after)}"
    return ""


def _check_times(ca: x509.Certificate, start: datetime, last: Certificate | None) -> None:
    began, ends = ca.not_valid_before_utc, ca.not_valid_after_utc
    if start < began:
        raise Trouble(
            _title(ca),
            f"is valid from {_when(began)}, but the clock says {_when(start)}",
            "set the clock; no certificate is made until then",
        )
    if last is not None and start < last.not_before:
        raise Trouble(
            ", ".join(last.hosts) or "certificate",
            f"the clock says {_when(start)}, before the last certificate was made ({_when(last.not_before)})",
            "set the clock; if the clock was ahead then, remove that certificate",
        )
    if start >= ends:
        raise Trouble(
            _title(ca), f"ended at {_when(ends)}", "mirror-agent ca roll makes a new one, if no clock is ahead"
        )


def _signer(authority: Pair) -> tuple[list[x509.Certificate], SigningKey]:
    """The CA's chain (itself first) and its key.  Raises Trouble where they cannot sign what clients accept."""
    try:
        chain = _certificates(authority.certificate)
        key = load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key is encrypted
        raise Trouble("CA", f"key or certificate cannot be read: {error}", "bring both as plain PEM") from error
    ca = chain[0]
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise Trouble(_title(ca), "its key is neither ECDSA nor RSA", "other kinds are refused by FIPS clients")
    if not _belongs(ca, authority.key):
        raise Trouble(_title(ca), "the private key does not belong to the certificate", "bring the right pair back")
    try:
        may_sign = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        may_sign = may_sign and ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = False
    if not may_sign:
        raise Trouble(
            _title(ca),
            "may not sign certificates",
            "it needs basicConstraints CA:true and keyUsage keyCertSign",
        )
    return chain, key


def _certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM text, at least one; else ValueError."""
    return x509.load_pem_x509_certificates(pem)


def _belongs(certificate: x509.Certificate, key_pem: bytes) -> bool:
    try:
        key = load_pem_private_key(key_pem, password=None)
        return _public(key.public_key()) == _public(certificate.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _kind(certificate: x509.Certificate) -> LeafKey | None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return LeafKey.RSA if key.key_size == 3072 else None
    return LeafKey.P256 if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" else None


def _subject_key(certificate: x509.Certificate) -> str:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest.hex()


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mirror-agent")]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(attributes)


def _title(certificate: x509.Certificate) -> str:
    return _named(certificate.subject)


def _named(name: x509.Name) -> str:
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else name.rfc4514_string() or "CA"


def _covers(name: str, host: str) -> bool:
    """A name of a certificate, "*" for one label (RFC 6125, 6.4.3)."""
    name, host = name.lower(), host.lower()
    return name == host or (name.startswith("*.") and name[2:] == host.partition(".")[2])


def _below(host: str, suffix: str) -> bool:
    bare = suffix.lower().removeprefix(".")
    return host.lower() == bare or host.lower().endswith("." + bare)


def _inside(address: IPv4Address, network: object) -> bool:
    return isinstance(network, IPv4Network) and address in network


def _when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
