"""certificates/making.py: the profile, and what is not made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from issued import (
    ADDRESS,
    CA,
    CROSS,
    HOST,
    LAN,
    LEAF,
    MIRROR,
    NEW_CA,
    NOW,
    authority,
    facts,
    openssl,
    pem,
    ski,
)

from mirror_agent.certificates import Pair, judging, making
from mirror_agent.model import (
    LeafKey,
    Trouble,
)


def test_a_ca_is_what_the_profile_says() -> None:
    ca = x509.load_pem_x509_certificate(CA.certificate)
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=None)
    limits = ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert limits.value.permitted_subtrees == [x509.DNSName("mirror.lan"), x509.IPAddress(LAN)]
    assert ca.not_valid_before_utc == NOW.replace(microsecond=0) - timedelta(days=1)
    assert ca.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(days=3650)
    title = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert title == f"mirror-agent CA on appliance ({facts(CA).subject_key[:8]})"


@pytest.mark.parametrize("kind", LeafKey)
def test_a_leaf_is_what_the_profile_says(kind: LeafKey) -> None:
    leaf = x509.load_pem_x509_certificate(making.issue(CA, HOST, ADDRESS, NOW, 90, kind=kind).certificate)
    key = leaf.public_key()
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    assert (isinstance(key, rsa.RSAPublicKey), key.key_size) == ((True, 3072) if kind is LeafKey.RSA else (False, 256))
    ca = x509.load_pem_x509_certificate(CA.certificate).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert [(each.critical, each.value) for each in leaf.extensions] == [
        (False, x509.SubjectAlternativeName([x509.DNSName(HOST), x509.IPAddress(ADDRESS)])),
        (True, x509.BasicConstraints(ca=False, path_length=None)),
        (True, x509.KeyUsage(True, False, False, False, False, False, False, False, False)),
        (False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
        (False, x509.SubjectKeyIdentifier.from_public_key(key)),
        (False, x509.AuthorityKeyIdentifier(ca.value.digest, None, None)),
    ]


def test_a_ca_of_a_host_with_a_long_name_can_be_made() -> None:
    ca = making.make_authority(("mirror.lan",), (LAN,), "h" * 253, NOW, 10)
    title = x509.load_pem_x509_certificate(ca.certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0]
    assert len(title.value) == 64


def test_a_ca_without_constraints_is_not_made() -> None:
    with pytest.raises(ValueError, match="trusted for every name"):
        making.make_authority((), (LAN,), "appliance", NOW, 10)


def test_each_leaf_has_its_own_key_and_serial() -> None:
    other = making.issue(CA, HOST, ADDRESS, NOW, 90)
    assert other.key != LEAF.key
    assert facts(other).serial != facts(LEAF).serial


def test_a_key_does_not_show_in_a_repr() -> None:
    assert "PRIVATE" not in repr(LEAF)
    assert "PRIVATE" not in f"{LEAF}"


# --- what may be made ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address", "reason"),
    [
        ("quay.mirror.lan", "10.0.0.4", ""),
        ("mirror.lan", "10.0.0.255", ""),
        ("quay.Mirror.LAN", "10.0.0.4", ""),
        ("quay.example.org", "10.0.0.4", ""),
        ("quaymirror.lan", "10.0.0.4", "may not vouch for host"),
        ("quay.io", "10.0.0.4", "may not vouch for host"),
        ("quay.mirror.lan", "10.0.1.4", "may not vouch for address"),
    ],
)
def test_names_outside_the_constraints_are_refused(tmp_path: Path, host: str, address: str, reason: str) -> None:
    ca = authority(suffixes=("mirror.lan", ".Example.org."))
    assert judging.forbids(ca.certificate, host, IPv4Address(address)).startswith(reason)
    if reason:
        with pytest.raises(Trouble, match=reason):
            making.issue(ca, host, IPv4Address(address), NOW, 90)
    else:
        leaf = making.issue(ca, host, IPv4Address(address), NOW, 90)
        assert openssl(tmp_path, ca, leaf, "-verify_hostname", host).returncode == 0


@pytest.mark.parametrize(
    ("now", "days", "reason"),
    [
        (NOW - timedelta(days=1, hours=1), 90, "but the clock says"),
        (datetime(1970, 1, 1, tzinfo=UTC), 90, "but the clock says"),
        (NOW + timedelta(days=3649), 90, ""),
        (NOW + timedelta(days=3650), 90, "ended at"),
        (NOW + timedelta(days=3651), 1, "ended at"),
    ],
)
def test_a_wrong_clock_and_the_end_of_the_ca(now: datetime, days: int, reason: str) -> None:
    if not reason:
        making.issue(CA, HOST, ADDRESS, now, days)
        return
    with pytest.raises(Trouble, match=reason) as caught:
        making.issue(CA, HOST, ADDRESS, now, days)
    assert caught.value.hint


def test_a_clock_before_the_last_certificate_is_refused() -> None:
    ahead = facts(making.issue(CA, HOST, ADDRESS, NOW + timedelta(days=400), 90))
    with pytest.raises(Trouble, match="before the last certificate was made"):
        making.issue(CA, HOST, ADDRESS, NOW, 90, ahead)
    making.issue(CA, HOST, ADDRESS, NOW - timedelta(minutes=30), 90, facts(LEAF))  # a small step back is fine


def test_a_leaf_never_begins_before_its_ca() -> None:
    early = NOW - timedelta(days=1) + timedelta(minutes=1)
    leaf = facts(making.issue(CA, HOST, ADDRESS, early, 90))
    assert leaf.not_before == facts(CA).not_before


def test_a_ca_that_is_none_is_refused() -> None:
    with pytest.raises(Trouble, match="may not sign"):
        making.issue(LEAF, HOST, ADDRESS, NOW, 1)
    with pytest.raises(Trouble, match="does not belong"):
        making.issue(Pair(LEAF.key, CA.certificate), HOST, ADDRESS, NOW, 1)
    with pytest.raises(Trouble, match="cannot be read"):
        making.issue(Pair(b"", CA.certificate), HOST, ADDRESS, NOW, 1)
    edwards = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(Trouble, match="neither ECDSA nor RSA"):
        making.issue(Pair(pem(edwards), CA.certificate), HOST, ADDRESS, NOW, 1)


def test_an_own_root_without_key_identifiers_is_understood() -> None:
    """As `openssl req -x509` without extensions made them for years; RFC 5280 method 1 stands in."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Old Company")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=99))
    bare = Pair(pem(key), builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    assert facts(bare).issuer_key == facts(bare).subject_key == ski(key)
    with pytest.raises(Trouble, match="O=Old Company: may not sign"):
        making.issue(bare, HOST, ADDRESS, NOW, 1)
    builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
    root = Pair(pem(key), builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    leaf = making.issue(root, HOST, ADDRESS, NOW, 90)
    assert judging.due(facts(leaf), MIRROR, facts(root), NOW) == ""
    assert (facts(root).hosts, facts(root).addresses) == ((), ())


# --- one CA after another ------------------------------------------------------------------------------------


def test_a_crossed_ca_is_the_new_one_for_the_old_one_s_readers() -> None:
    cross, new = x509.load_pem_x509_certificate(CROSS), x509.load_pem_x509_certificate(NEW_CA.certificate)
    assert (cross.subject, cross.public_key()) == (new.subject, new.public_key())
    assert facts(Pair(b"", CROSS)).issuer_key == facts(CA).subject_key
    limits = [each.extensions.get_extension_for_class(x509.NameConstraints) for each in (cross, new)]
    assert limits[0] == limits[1]


def test_what_cannot_be_crossed_is_not() -> None:
    ended = NOW + timedelta(days=3651)
    assert making.cross_sign(CA, authority(ended).certificate, ended) == b""
    assert making.issue(NEW_CA, HOST, ADDRESS, NOW, 90, cross=b"").certificate.count(b"BEGIN") == 1
    late = making.issue(authority(ended), HOST, ADDRESS, ended, 90, cross=CROSS)
    assert late.certificate.count(b"BEGIN") == 1, "a crossed CA that has ended is not sent along"
