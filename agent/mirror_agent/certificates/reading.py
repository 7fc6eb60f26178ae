"""What a certificate says.  PEM in, facts out."""

from __future__ import annotations

from ipaddress import IPv4Address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from mirror_agent.model import Certificate, LeafKey


def told(made: Certificate) -> str:
    """A new certificate in words."""
    return f"has a certificate until {made.not_after:%Y-%m-%d %H:%M} UTC by {made.issuer}, serial {made.serial:x}"


def facts(certificate_pem: bytes, key_pem: bytes | None) -> Certificate:
    """What the first certificate of a PEM text says.  A missing or unreadable key does not match.

    Raises ValueError where the text holds no certificate that can be read.
    """
    certificate = load(certificate_pem)[0]
    own_key = key_identifier(certificate)
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
        signer = own_key
    return Certificate(
        hosts=tuple(hosts),
        addresses=tuple(addresses),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        issuer_key=(signer or b"").hex(),
        key_matches=key_pem is not None and belongs(certificate, key_pem),
        subject_key=own_key.hex(),
        subject=title(certificate.subject),
        issuer=title(certificate.issuer),
        key=_kind(certificate),
    )


def trust_bundle(*pems: bytes) -> str:
    """The certificates of all texts as one PEM text, re-encoded, each once, in the order given.

    Raises ValueError where one of them holds no certificate: a bundle is never silently shorter.
    """
    blocks = [each.public_bytes(Encoding.PEM).decode("ascii") for pem in pems for each in load(pem)]
    return "".join(block.strip() + "\n" for block in dict.fromkeys(blocks))


def load(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM text, at least one; else ValueError."""
    return x509.load_pem_x509_certificates(pem)


def belongs(certificate: x509.Certificate, key_pem: bytes) -> bool:
    """Is this the certificate's private key?  Not, where it is encrypted or cannot be read."""
    try:
        key = load_pem_private_key(key_pem, password=None)
        return _public(key.public_key()) == _public(certificate.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def key_identifier(certificate: x509.Certificate) -> bytes:
    """Its subject key identifier; where it has none, the one that RFC 5280 would give (4.2.1.2, method 1)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest


def title(name: x509.Name) -> str:
    """What people call a subject or issuer: its common name, else all of it."""
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else name.rfc4514_string() or "CA"


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _kind(certificate: x509.Certificate) -> LeafKey | None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return LeafKey.RSA if key.key_size == 3072 else None
    return LeafKey.P256 if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" else None
