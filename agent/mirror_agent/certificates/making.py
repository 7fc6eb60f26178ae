"""CAs and leaves.

The profile satisfies OpenSSL's strict checks, Python's default context, pyca/cryptography's verifier and Go at
once: none of them catches all of what the others refuse.  Rules: RFC 5280 section 4.2, CA/Browser Forum section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirror_agent.certificates import Pair, judging, reading
from mirror_agent.model import Certificate, LeafKey, Trouble

CA_BACKDATE = timedelta(days=1)  # more than the leaves', so that no leaf begins before its CA
LEAF_BACKDATE = timedelta(hours=1)  # for clients whose clock is late
COMMON_NAME = 64  # longest commonName (RFC 5280, ub-common-name)

type SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_authority(
    suffixes: Sequence[str], networks: Sequence[IPv4Network], host: str, now: datetime, days: int
) -> Pair:
    """A new self-signed CA that can vouch for nothing but names below `suffixes` and addresses in `networks`.

    `host` is the machine's own name, for the subject.  `days` of life, counted from `now`.  No path length: it
    would block a cross-signed roll-over.  The constraints cannot be widened later (see `judging.forbids`).
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
    if reason := judging.forbids(authority.certificate, host, address):
        raise Trouble(reading.title(ca.subject), reason, judging.WAY_OUT)
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
        .add_extension(x509.AuthorityKeyIdentifier(reading.key_identifier(ca), None, None), critical=False)
        .sign(signer, SHA256())
    )
    # Clients know roots only: what stands between the leaf and a root is sent along.
    sent = [certificate, *(above for above in chain if above.issuer != above.subject)]
    if cross and reading.load(cross)[0].not_valid_after_utc > start:
        sent += reading.load(cross)
    return Pair(key_pem(key), b"".join(each.public_bytes(Encoding.PEM) for each in sent))


def cross_sign(old: Pair, new: bytes, now: datetime) -> bytes:
    """The new CA's name, key and constraints, signed by the old CA: so whoever trusts only the old one trusts both.

    PEM; b"" where the old CA may not sign another one, or has ended.  Raises Trouble where it is no CA.
    """
    chain, signer = _signer(old)
    ca, made = chain[0], reading.load(new)[0]
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
        .add_extension(x509.AuthorityKeyIdentifier(reading.key_identifier(ca), None, None), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(reading.key_identifier(made)), critical=False)
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


def _check_times(ca: x509.Certificate, start: datetime, last: Certificate | None) -> None:
    title, began, ends = reading.title(ca.subject), ca.not_valid_before_utc, ca.not_valid_after_utc
    if start < began:
        raise Trouble(
            title,
            f"is valid from {judging.when(began)}, but the clock says {judging.when(start)}",
            "set the clock; no certificate is made until then",
        )
    if last is not None and start < last.not_before:
        made = judging.when(last.not_before)
        raise Trouble(
            ", ".join(last.hosts) or "certificate",
            f"the clock says {judging.when(start)}, before the last certificate was made ({made})",
            "set the clock; if the clock was ahead then, remove that certificate",
        )
    if start >= ends:
        raise Trouble(
            title, f"ended at {judging.when(ends)}", "mirror-agent ca roll makes a new one, if no clock is ahead"
        )


def _signer(authority: Pair) -> tuple[list[x509.Certificate], SigningKey]:
    """The CA's chain (itself first) and its key.  Raises Trouble where they cannot sign what clients accept."""
    try:
        chain = reading.load(authority.certificate)
        key = load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key is encrypted
        raise Trouble("CA", f"key or certificate cannot be read: {error}", "bring both as plain PEM") from error
    ca, title = chain[0], reading.title(chain[0].subject)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise Trouble(title, "its key is neither ECDSA nor RSA", "other kinds are refused by FIPS clients")
    if not reading.belongs(ca, authority.key):
        raise Trouble(title, "the private key does not belong to the certificate", "bring the right pair back")
    try:
        may_sign = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        may_sign = may_sign and ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = False
    if not may_sign:
        raise Trouble(
            title,
            "may not sign certificates",
            "it needs basicConstraints CA:true and keyUsage keyCertSign",
        )
    return chain, key


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
