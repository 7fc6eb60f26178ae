"""What admins bring: taken when it is good, told when it is not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from issued import CA, LAN, LEAF, MIRROR, own_ca

from mirror_agent.certificates import Pair
from mirror_agent.host import bring
from mirror_agent.host.issuers import dns
from mirror_agent.model import (
    AcmeSettings,
    CertificateSettings,
    NetworkSettings,
    Paths,
    Settings,
    Tls,
    Trouble,
)

NETWORK = NetworkSettings("eth1", LAN, IPv4Address("10.0.0.1"), IPv4Address("10.0.0.4"), IPv4Address("10.0.0.60"))
SETTINGS = Settings("mirror.lan", NETWORK)


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(
        put(tmp_path, "quay.crt", LEAF.certificate),
        put(tmp_path, "quay.key", LEAF.key),
        put(tmp_path, "ca", CA.certificate),
    )


def told(tls: Tls, settings: Settings = SETTINGS) -> list[tuple[str, str]]:
    found = bring.read([replace(MIRROR, tls=tls)], settings, Paths())
    assert bool(found.leaves) == (not any(problem.key == "tls.certificate" for problem in found.problems))
    assert all(problem.hint for problem in found.problems)
    return [(problem.key, problem.reason.partition(": ")[2]) for problem in found.problems]


def test_a_good_pair_is_taken(tls: Tls) -> None:
    found = bring.read([replace(MIRROR, tls=tls), replace(MIRROR, name="gcr")], SETTINGS, Paths())
    assert found == bring.Brought({"quay": LEAF}, None, (CA.certificate,), ())
    assert "PRIVATE" not in repr(found)


@pytest.mark.parametrize(
    ("what", "content", "key", "reason"),
    [
        ("certificate", None, "tls.certificate", "there is no such file"),
        ("key", None, "tls.certificate", "there is no such file"),
        ("certificate", b"x", "tls.certificate", "holds no certificate that can be read"),
        ("key", CA.key, "tls.certificate", "the private key does not belong to the certificate, or cannot be read"),
        ("key", b"", "tls.certificate", "the private key does not belong to the certificate, or cannot be read"),
        ("ca", b"", "tls.ca", "holds no certificate that can be read"),
        ("ca", None, "tls.ca", "there is no such file"),
    ],
)
def test_what_is_not_good_is_told(tls: Tls, what: str, content: bytes | None, key: str, reason: str) -> None:
    path = getattr(tls, what)
    path.unlink() if content is None else path.write_bytes(content)
    assert told(tls) == [(key, reason)]


def test_an_own_ca_is_taken_whole(tmp_path: Path) -> None:
    root, middle = own_ca()
    chain = middle.certificate if middle.certificate.count(b"BEGIN") > 1 else middle.certificate + root.certificate
    put(tmp_path, "ca.key", middle.key)
    put(tmp_path, "ca.crt", chain)
    settings = replace(SETTINGS, certificates=CertificateSettings(ca=tmp_path))
    assert bring.read([], settings, Paths()).authority == Pair(middle.key, chain)
    put(tmp_path, "ca.key", LEAF.key)
    found = bring.read([], settings, Paths())
    assert found.authority is None
    assert [(problem.key, problem.file) for problem in found.problems] == [("certificates.ca", str(Paths().settings))]


def test_a_key_for_updates_is_read_as_bind_writes_it(tmp_path: Path) -> None:
    text = b'# made by tsig-keygen\nkey "mirrors" {\n\talgorithm hmac-sha256;\n\tsecret "c2VjcmV0";\n};\n'
    key = dns.read_key(put(tmp_path, "key", text))
    assert tuple(key) == ("mirrors", "hmac-sha256", "c2VjcmV0")
    assert "c2VjcmV0" not in repr(key)
    for broken in (b"", text.replace(b"secret", b"sekret"), text.replace(b"algorithm", b"al")):
        with pytest.raises(Trouble, match="holds no TSIG key"):
            dns.read_key(put(tmp_path, "key", broken))
    with pytest.raises(Trouble, match="no such file"):
        dns.read_key(tmp_path / "none")


def test_a_hook_is_told_what_to_do_and_believed(tmp_path: Path) -> None:
    hook = put(
        tmp_path, "hook", b'#!/bin/sh\necho "$@" >> "$0.log"\n[ "$1" = add ] || { echo no such zone >&2; exit 3; }\n'
    )
    settings = AcmeSettings("https://acme.example/dir", hook=hook)
    with pytest.raises(Trouble, match="cannot be run"):
        dns.add(settings, "_acme-challenge.quay", "x")
    hook.chmod(0o755)
    dns.add(settings, "_acme-challenge.quay", "a b;c")
    assert (tmp_path / "hook.log").read_text() == "add _acme-challenge.quay a b;c\n"
    with pytest.raises(Trouble, match=r"exit code 3 \(no such zone\)"):
        dns.remove(settings, "_acme-challenge.quay", "x")
    hook.chmod(0o775)
    with pytest.raises(Trouble, match="nobody else can write"):
        dns.add(settings, "_acme-challenge.quay", "x")
