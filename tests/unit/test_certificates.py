"""Certificates: four verifiers accept what is issued, and nothing else; renewal over simulated years."""

from __future__ import annotations

import itertools
import ssl
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from mirror_agent.certificates import Pair, judging, making, reading
from mirror_agent.model import Certificate, LeafKey, Mirror, Policy, Trouble

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


CA = authority()
LEAF = making.issue(CA, HOST, ADDRESS, NOW, 90)


def facts(pair: Pair) -> Certificate:
    return reading.facts(pair.certificate, pair.key)


# --- verifiers -----------------------------------------------------------------------------------------------


def openssl(folder: Path, ca: Pair, leaf: Pair, *names: str) -> subprocess.CompletedProcess[str]:
    (folder / "ca.pem").write_bytes(ca.certificate)
    (folder / "leaf.pem").write_bytes(leaf.certificate)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-no-CAstore"]
    command += ["-attime", str(int(NOW.timestamp())), "-CAfile", str(folder / "ca.pem"), *names]
    command += ["-untrusted", str(folder / "leaf.pem"), str(folder / "leaf.pem")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def handshake(ca: Pair, leaf: Pair, name: str, folder: Path) -> None:
    """A TLS handshake in memory, with Python's default (strict) client."""
    (folder / "tls.pem").write_bytes(leaf.key + leaf.certificate)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "tls.pem")
    client_side = ssl.create_default_context(cadata=ca.certificate.decode())
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # as Python 3.13 has it
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert done == {client, server}


def pyca(ca: Pair, leaf: Pair, name: x509.GeneralName) -> None:
    builder = PolicyBuilder().store(Store(x509.load_pem_x509_certificates(ca.certificate))).time(NOW)
    assert isinstance(name, x509.DNSName | x509.IPAddress)
    first, *others = x509.load_pem_x509_certificates(leaf.certificate)
    builder.build_server_verifier(name).verify(first, others)


@pytest.mark.parametrize("names", [("-verify_hostname", HOST), ("-verify_ip", str(ADDRESS))])
def test_openssl_accepts_it_strictly(tmp_path: Path, names: tuple[str, str]) -> None:
    result = openssl(tmp_path, CA, LEAF, *names)
    assert result.returncode == 0, result.stderr


def lint(*command: str | Path) -> str:
    """What pkilint finds from a notice on; its exit code is the number of findings."""
    tool = Path(sys.prefix) / "bin" / str(command[0])
    result = subprocess.run([tool, "lint", "-s", "NOTICE", *command[1:]], capture_output=True, text=True, check=False)
    found = (result.stdout + result.stderr).strip()
    assert bool(result.returncode) == bool(found)
    return found


def lint_chain(folder: Path, *chain: bytes) -> str:
    """Findings for certificates, root first: each alone, and each with the one that signed it."""
    files = [folder / f"{number}.pem" for number in range(len(chain))]
    for file, content in zip(files, chain, strict=True):
        file.write_bytes(content)
    alone = "".join(lint("lint_pkix_cert", file) for file in files)
    return alone + "".join(lint("lint_pkix_signer_signee_cert_chain", *two) for two in itertools.pairwise(files))


def test_pkilint_finds_nothing(tmp_path: Path) -> None:
    assert lint_chain(tmp_path, CA.certificate, LEAF.certificate) == ""
    long = making.issue(CA, f"{'a' * 60}.mirror.lan", ADDRESS, NOW, 90)
    assert lint_chain(tmp_path, CA.certificate, long.certificate) == ""


def test_pkilint_would_find_something(tmp_path: Path) -> None:
    assert "pkix." in lint_chain(tmp_path, authority().certificate, LEAF.certificate)


def test_openssl_refuses_another_name(tmp_path: Path) -> None:
    assert openssl(tmp_path, CA, LEAF, "-verify_hostname", "gcr.mirror.lan").returncode != 0


@pytest.mark.parametrize("name", [HOST, str(ADDRESS)])
def test_python_shakes_hands(tmp_path: Path, name: str) -> None:
    ca = authority(datetime.now(UTC))
    handshake(ca, making.issue(ca, HOST, ADDRESS, datetime.now(UTC), 90), name, tmp_path)


def test_python_refuses_another_ca(tmp_path: Path) -> None:
    ca = authority(datetime.now(UTC))
    leaf = making.issue(ca, HOST, ADDRESS, datetime.now(UTC), 90)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority(datetime.now(UTC)), leaf, HOST, tmp_path)


@pytest.mark.parametrize("name", [x509.DNSName(HOST), x509.IPAddress(ADDRESS)])
def test_pyca_accepts_it(name: x509.GeneralName) -> None:
    pyca(CA, LEAF, name)


def test_a_host_too_long_for_a_common_name_is_accepted(tmp_path: Path) -> None:
    host = f"{'a' * 60}.{'b' * 60}.mirror.lan"
    leaf = making.issue(CA, host, ADDRESS, NOW, 90)
    assert openssl(tmp_path, CA, leaf, "-verify_hostname", host).returncode == 0
    pyca(CA, leaf, x509.DNSName(host))


def test_the_constraints_hold_at_the_verifiers(tmp_path: Path) -> None:
    """Somebody who steals the CA's key can still not pretend to be a bank."""
    certificate, key = x509.load_pem_x509_certificate(CA.certificate), CA.key
    stolen = load_key(key)
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bank.example")]))
        .issuer_name(certificate.subject)
        .public_key(leaf_key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(stolen.public_key()), critical=False)
        .sign(stolen, SHA256())
    )
    pair = Pair(LEAF.key, forged.public_bytes(Encoding.PEM))
    result = openssl(tmp_path, CA, pair, "-verify_hostname", "bank.example")
    assert "permitted subtree violation" in result.stderr
    with pytest.raises(VerificationError):
        pyca(CA, pair, x509.DNSName("bank.example"))


def test_an_intermediate_is_sent_along(tmp_path: Path) -> None:
    root, middle = own_ca()
    leaf = making.issue(middle, HOST, ADDRESS, NOW, 90)
    assert openssl(tmp_path, root, leaf, "-verify_hostname", HOST).returncode == 0
    assert leaf.certificate.count(b"BEGIN CERTIFICATE") == 2
    assert facts(leaf).issuer_key == facts(middle).subject_key != facts(root).subject_key
    assert judging.due(facts(leaf), MIRROR, facts(middle), NOW) == ""


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


# --- the profile ---------------------------------------------------------------------------------------------


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


def test_facts_are_what_was_issued() -> None:
    assert facts(LEAF) == Certificate(
        hosts=(HOST,),
        addresses=(ADDRESS,),
        serial=x509.load_pem_x509_certificate(LEAF.certificate).serial_number,
        not_before=NOW.replace(microsecond=0) - timedelta(hours=1),
        not_after=NOW.replace(microsecond=0) + timedelta(days=90),
        issuer_key=facts(CA).subject_key,
        key_matches=True,
        subject_key=facts(LEAF).subject_key,
        subject=HOST,
        issuer=facts(CA).subject,
    )
    assert facts(CA).issuer_key == facts(CA).subject_key


def test_each_leaf_has_its_own_key_and_serial() -> None:
    other = making.issue(CA, HOST, ADDRESS, NOW, 90)
    assert other.key != LEAF.key
    assert facts(other).serial != facts(LEAF).serial


@pytest.mark.parametrize("key", [None, b"", b"not a key", CA.key])
def test_a_key_that_does_not_belong_is_seen(key: bytes | None) -> None:
    assert not reading.facts(LEAF.certificate, key).key_matches


@pytest.mark.parametrize("text", [b"", b"not a certificate", LEAF.key, LEAF.certificate[:-200]])
def test_what_is_no_certificate_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        reading.facts(text, None)


def test_a_key_does_not_show_in_a_repr() -> None:
    assert "PRIVATE" not in repr(LEAF)
    assert "PRIVATE" not in f"{LEAF}"


# --- what may be issued --------------------------------------------------------------------------------------


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


def test_what_an_own_ca_excludes_is_refused() -> None:
    limits = x509.NameConstraints(None, [x509.DNSName("quay.mirror.lan"), x509.IPAddress(IPv4Network("10.0.0.8/29"))])
    ca, _ = own_ca(limits)
    assert "below quay.mirror.lan" in judging.forbids(ca.certificate, HOST, ADDRESS)
    assert "in 10.0.0.8/29" in judging.forbids(ca.certificate, "gcr.mirror.lan", IPv4Address("10.0.0.9"))
    assert judging.forbids(ca.certificate, "gcr.mirror.lan", ADDRESS) == ""


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


def test_a_bundle_has_each_certificate_once() -> None:
    other = authority()
    noisy = b"# the old one\r\n" + CA.certificate.replace(b"\n", b"\r\n") + b"\n\n" + other.certificate.rstrip()
    bundle = reading.trust_bundle(noisy, CA.certificate)
    assert bundle == CA.certificate.decode() + other.certificate.decode()
    with pytest.raises(ValueError, match=r".+"):
        reading.trust_bundle(CA.certificate, b"")


def test_a_leaf_ends_with_its_ca() -> None:
    """And is not renewed for its age then: no other could last longer."""
    leaf = facts(making.issue(CA, HOST, ADDRESS, NOW + timedelta(days=3600), 90))
    end = facts(CA).not_after
    assert leaf.not_after == end
    assert judging.due(leaf, MIRROR, facts(CA), end - timedelta(seconds=1)) == ""
    assert "expired" in judging.due(leaf, MIRROR, facts(CA), end)
    later = replace(facts(CA), not_after=end + timedelta(days=1))
    assert "ends at" in judging.due(leaf, MIRROR, later, end - timedelta(days=1))


# --- somebody's own CA ---------------------------------------------------------------------------------------


def load_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    loaded = load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded


def ski(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


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


# --- one CA after another ------------------------------------------------------------------------------------

NEW_CA = authority(suffixes=("mirror.lan", "more.example"))
CROSS = making.cross_sign(CA, NEW_CA.certificate, NOW)
CROSSED = making.issue(NEW_CA, HOST, ADDRESS, NOW, 90, cross=CROSS)
BOTH = Pair(b"", CA.certificate + NEW_CA.certificate)


@pytest.mark.parametrize("trusted", [CA, NEW_CA, BOTH], ids=["old only", "new only", "both"])
def test_after_the_switch_every_reader_is_served(tmp_path: Path, trusted: Pair) -> None:
    assert openssl(tmp_path, trusted, CROSSED, "-verify_hostname", HOST).returncode == 0
    pyca(trusted, CROSSED, x509.DNSName(HOST))
    pyca(trusted, CROSSED, x509.IPAddress(ADDRESS))


@pytest.mark.parametrize("trusted", [CA, BOTH], ids=["old only", "both"])
def test_before_the_switch_the_old_leaf_is_good(tmp_path: Path, trusted: Pair) -> None:
    assert openssl(tmp_path, trusted, LEAF, "-verify_hostname", HOST).returncode == 0
    pyca(trusted, LEAF, x509.DNSName(HOST))


@pytest.mark.parametrize("which", ["old only", "new only", "both"])
def test_python_shakes_hands_after_the_switch(tmp_path: Path, which: str) -> None:
    now = datetime.now(UTC)
    old, new = authority(now), authority(now)
    leaf = making.issue(new, HOST, ADDRESS, now, 90, cross=making.cross_sign(old, new.certificate, now))
    trusted = {"old only": old, "new only": new, "both": Pair(b"", old.certificate + new.certificate)}[which]
    handshake(trusted, leaf, HOST, tmp_path)


def test_pkilint_finds_nothing_in_a_crossed_chain(tmp_path: Path) -> None:
    leaf = CROSSED.certificate.removesuffix(CROSS)
    assert lint_chain(tmp_path, CA.certificate, CROSS, leaf) == ""
    assert lint_chain(tmp_path, NEW_CA.certificate, leaf) == ""


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


def test_a_leaf_of_the_old_ca_stays_until_it_is_due() -> None:
    old, new = facts(CA).subject_key, facts(NEW_CA)
    assert judging.due(facts(LEAF), MIRROR, new, NOW, [old]) == ""
    assert "another CA" in judging.due(facts(LEAF), MIRROR, new, NOW)
    assert "ends at" in judging.due(facts(LEAF), MIRROR, new, NOW + timedelta(days=70), [old])


# --- every chain that the life of a mirror can have, with every kind of key --------------------------------------

ROOT, MIDDLE = own_ca()
CHAINS = {  # name → (what readers trust, what signs, what the old CA adds)
    "own CA": (CA, CA, b""),
    "after the switch, old only": (CA, NEW_CA, CROSS),
    "after the switch, new only": (NEW_CA, NEW_CA, CROSS),
    "after the switch, both": (BOTH, NEW_CA, CROSS),
    "a brought root": (ROOT, ROOT, b""),
    "a brought intermediate": (ROOT, MIDDLE, b""),
    "after the switch to a brought CA, old only": (CA, ROOT, making.cross_sign(CA, ROOT.certificate, NOW)),
}


@pytest.mark.parametrize("kind", LeafKey)
@pytest.mark.parametrize("chain", CHAINS)
def test_every_verifier_accepts_every_chain(tmp_path: Path, chain: str, kind: LeafKey) -> None:
    trusted, signer, cross = CHAINS[chain]
    leaf = making.issue(signer, HOST, ADDRESS, NOW, 90, cross=cross, kind=kind)
    assert facts(leaf).key is kind
    for names in (("-verify_hostname", HOST), ("-verify_ip", str(ADDRESS))):
        result = openssl(tmp_path, trusted, leaf, *names)
        assert result.returncode == 0, result.stderr
    pyca(trusted, leaf, x509.DNSName(HOST))
    pyca(trusted, leaf, x509.IPAddress(ADDRESS))
    first = x509.load_pem_x509_certificates(leaf.certificate)[0].public_bytes(Encoding.PEM)
    assert lint_chain(tmp_path, signer.certificate, first) == ""


@pytest.mark.parametrize("kind", LeafKey)
@pytest.mark.parametrize("crossed", [False, True])
def test_python_shakes_hands_with_every_kind_of_key(tmp_path: Path, crossed: bool, kind: LeafKey) -> None:
    now = datetime.now(UTC)
    old, new = authority(now), authority(now)
    cross = making.cross_sign(old, new.certificate, now) if crossed else b""
    leaf = making.issue(new, HOST, ADDRESS, now, 90, cross=cross, kind=kind)
    handshake(old if crossed else new, leaf, HOST, tmp_path)


def test_another_kind_of_key_is_a_reason_for_a_new_certificate() -> None:
    rsa_leaf = facts(making.issue(CA, HOST, ADDRESS, NOW, 90, kind=LeafKey.RSA))
    for leaf, kind in ((facts(LEAF), LeafKey.RSA), (rsa_leaf, LeafKey.P256)):
        why = judging.due(leaf, MIRROR, facts(CA), NOW, kind=kind)
        assert why == f"its key is not {kind}, as certificates.leaf_key says"
        assert judging.due_elsewhere(leaf, MIRROR, [], NOW, kind=kind) == why
        assert judging.due(leaf, MIRROR, facts(CA), NOW, kind=leaf.key or kind) == ""
    assert reading.facts(MIDDLE.certificate, None).key is None, "P-384 is neither"


# --- when it is due ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (facts(LEAF), ""),
        (None, "has no certificate"),
        (replace(facts(LEAF), key_matches=False), "does not belong"),
        (replace(facts(LEAF), issuer_key="00"), "another CA"),
        (replace(facts(LEAF), hosts=("old.mirror.lan",)), "old.mirror.lan, 10.0.0.4, not for quay.mirror.lan"),
        (replace(facts(LEAF), hosts=(HOST, "more.mirror.lan")), "more.mirror.lan"),
        (replace(facts(LEAF), addresses=()), "not for"),
        (replace(facts(LEAF), not_before=NOW + timedelta(seconds=1)), "not valid before"),
        (replace(facts(LEAF), not_after=NOW), "expired"),
        (replace(facts(LEAF), not_before=NOW - timedelta(days=300)), "ends at"),
    ],
)
def test_why_a_certificate_is_due(certificate: Certificate | None, reason: str) -> None:
    why = judging.due(certificate, MIRROR, facts(CA), NOW)
    assert reason in why
    assert bool(why) == bool(reason)


LOOK = timedelta(minutes=10)  # how often the loop looks at the clock


def made(serial: int, now: datetime, days: int) -> Certificate:
    """A certificate as `issue` makes it, without the cost of its key."""
    start = now.replace(microsecond=0)
    end = start + timedelta(days=days)
    return replace(facts(LEAF), serial=serial, not_before=start - timedelta(hours=1), not_after=end)


@given(
    serials=st.lists(st.integers(1, 2**159), min_size=60, max_size=60),
    days=st.integers(1, 397),
    offset=st.timedeltas(timedelta(0), timedelta(days=1)),
    fails=st.integers(0, 12),
)
def test_years_of_renewals(serials: list[int], days: int, offset: timedelta, fails: int) -> None:
    """Looking every ten minutes, with some failed tries each time: never expired, never early, never twice."""
    now = NOW + offset
    forever = replace(facts(CA), not_after=datetime.max.replace(tzinfo=UTC))
    certificate = made(serials[0], now, days)
    for serial in serials[1:]:
        life = certificate.not_after - certificate.not_before
        ticks = (judging.next_due(certificate) - now) // LOOK
        assert judging.due(certificate, MIRROR, forever, now) == ""
        assert judging.due(certificate, MIRROR, forever, now + ticks * LOOK) == ""
        now += (ticks + 1) * LOOK
        assert "ends at" in judging.due(certificate, MIRROR, forever, now)
        assert life * 2 / 3 <= now - certificate.not_before <= life * (2 / 3 + 1 / 20) + LOOK
        now += fails * LOOK
        assert now < certificate.not_after
        certificate = made(serial, now, days)


@given(st.integers(1, 2**159))
def test_jitter_is_the_same_at_every_look(serial: int) -> None:
    certificate = made(serial, NOW, 90)
    assert judging.next_due(certificate) == judging.next_due(replace(certificate))


def test_mirrors_made_together_are_renewed_apart() -> None:
    moments = {judging.next_due(made(serial, NOW, 90)) for serial in range(1, 201)}
    assert max(moments) - min(moments) > timedelta(days=4)  # of 4.5
    assert len({moment.strftime("%j %H") for moment in moments}) > 50


# --- when it failed ------------------------------------------------------------------------------------------


def test_waits_grow_from_a_minute_to_six_hours() -> None:
    waits = [judging.retry(failures, NOW + timedelta(days=30), NOW) for failures in range(1, 15)]
    assert waits[:3] == [timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=4)]
    assert waits[9:] == [timedelta(hours=6)] * 5


@given(st.integers(1, 10_000), st.one_of(st.none(), st.timedeltas(timedelta(days=-900), timedelta(days=900))))
def test_near_the_end_it_is_tried_more_often(failures: int, left: timedelta | None) -> None:
    wait = judging.retry(failures, None if left is None else NOW + left, NOW)
    assert timedelta(minutes=1) <= wait <= timedelta(hours=6)
    if left is None or left <= timedelta(0):
        assert wait <= timedelta(minutes=5)
    elif wait > timedelta(minutes=5):
        assert wait * 10 <= left


@given(st.integers(1, 397))
def test_whatever_fails_is_tried_a_dozen_times_before_the_end(days: int) -> None:
    leaf = made(1, NOW, days)
    now, tries = judging.next_due(leaf), 0
    while now < leaf.not_after:
        tries += 1
        now += judging.retry(tries, leaf.not_after, now)
    assert tries >= 12
    assert now - leaf.not_after <= timedelta(minutes=5)
