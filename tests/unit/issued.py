"""Certificates as the agent makes them, and those of a company: what tests of certificates share."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mirror_agent.certificates import Pair, making, reading
from mirror_agent.model import (
    Certificate,
    Mirror,
    Policy,
)

NOW = datetime(2026, 11, 24, 7, 0, 0, 123456, tzinfo=UTC)
HOST, ADDRESS = "quay.mirror.lan", IPv4Address("10.0.0.4")
LAN = IPv4Network("10.0.0.0/24")
MIRROR = Mirror(
    name="quay",
    sources=("quay.io",),
    remote="https://quay.io",
    host=HOST,
    address=ADDRESS,
    mac="02:00:0a:00:00:04",
    policy=Policy.NEVER,
    credentials=None,
    budget=1,
    fresh=60,
    probe=None,
)


def authority(now: datetime = NOW, suffixes: tuple[str, ...] = ("mirror.lan",), days: int = 3650) -> Pair:
    return making.make_authority(suffixes, (LAN,), "appliance", now, days)


def facts(pair: Pair) -> Certificate:
    return reading.facts(pair.certificate, pair.key)


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def ski(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()


def own_ca(limits: x509.NameConstraints | None = None) -> tuple[Pair, Pair]:
    """An RSA root and an intermediate below it, as a company would have them."""
    root_key = rsa.generate_private_key(65537, 3072)
    middle_key = ec.generate_private_key(ec.SECP384R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Root")])
    middle_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Issuing CA")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = []
    for name, key in ((root_name, root_key), (middle_name, middle_key)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=999))
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False)
        )
        if limits:
            builder = builder.add_extension(limits, True)
        made.append(Pair(pem(key), builder.sign(root_key, SHA256()).public_bytes(Encoding.PEM)))
    return made[0], made[1]


CA = authority()
LEAF = making.issue(CA, HOST, ADDRESS, NOW, 90)
NEW_CA = authority(suffixes=("mirror.lan", "more.example"))
CROSS = making.cross_sign(CA, NEW_CA.certificate, NOW)
CROSSED = making.issue(NEW_CA, HOST, ADDRESS, NOW, 90, cross=CROSS)
BOTH = Pair(b"", CA.certificate + NEW_CA.certificate)
ROOT, MIDDLE = own_ca()


def openssl(folder: Path, ca: Pair, leaf: Pair, *names: str) -> subprocess.CompletedProcess[str]:
    (folder / "ca.pem").write_bytes(ca.certificate)
    (folder / "leaf.pem").write_bytes(leaf.certificate)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-no-CAstore"]
    command += ["-attime", str(int(NOW.timestamp())), "-CAfile", str(folder / "ca.pem"), *names]
    command += ["-untrusted", str(folder / "leaf.pem"), str(folder / "leaf.pem")]
    return subprocess.run(command, capture_output=True, text=True, check=False)
