"""Certificates: four verifiers accept what is made, and nothing else."""

from __future__ import annotations

import itertools
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from issued import (
    ADDRESS,
    BOTH,
    CA,
    CROSS,
    CROSSED,
    HOST,
    LEAF,
    MIDDLE,
    MIRROR,
    NEW_CA,
    NOW,
    ROOT,
    authority,
    facts,
    openssl,
    own_ca,
)

from mirror_agent.certificates import Pair, judging, making
from mirror_agent.model import (
    LeafKey,
)


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


@pytest.mark.parametrize("names", [("-verify_hostname", HOST), ("-verify_ip", str(ADDRESS))])
def test_openssl_accepts_it_strictly(tmp_path: Path, names: tuple[str, str]) -> None:
    result = openssl(tmp_path, CA, LEAF, *names)
    assert result.returncode == 0, result.stderr


def test_openssl_refuses_another_name(tmp_path: Path) -> None:
    assert openssl(tmp_path, CA, LEAF, "-verify_hostname", "gcr.mirror.lan").returncode != 0


def test_pkilint_finds_nothing(tmp_path: Path) -> None:
    assert lint_chain(tmp_path, CA.certificate, LEAF.certificate) == ""
    long = making.issue(CA, f"{'a' * 60}.mirror.lan", ADDRESS, NOW, 90)
    assert lint_chain(tmp_path, CA.certificate, long.certificate) == ""


def test_pkilint_would_find_something(tmp_path: Path) -> None:
    assert "pkix." in lint_chain(tmp_path, authority().certificate, LEAF.certificate)


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
    stolen = load_pem_private_key(key, None)
    assert isinstance(stolen, ec.EllipticCurvePrivateKey)
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


# --- one CA after another ------------------------------------------------------------------------------------


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


# --- every chain that the life of a mirror can have, with every kind of key ----------------------------------

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
