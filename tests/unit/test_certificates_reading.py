"""certificates/reading.py: what a PEM text says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from issued import (
    ADDRESS,
    CA,
    HOST,
    LEAF,
    NOW,
    authority,
    facts,
)

from mirror_agent.certificates import reading
from mirror_agent.model import (
    Certificate,
)


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


@pytest.mark.parametrize("key", [None, b"", b"not a key", CA.key])
def test_a_key_that_does_not_belong_is_seen(key: bytes | None) -> None:
    assert not reading.facts(LEAF.certificate, key).key_matches


@pytest.mark.parametrize("text", [b"", b"not a certificate", LEAF.key, LEAF.certificate[:-200]])
def test_what_is_no_certificate_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        reading.facts(text, None)


def test_a_bundle_has_each_certificate_once() -> None:
    other = authority()
    noisy = b"# the old one\r\n" + CA.certificate.replace(b"\n", b"\r\n") + b"\n\n" + other.certificate.rstrip()
    bundle = reading.trust_bundle(noisy, CA.certificate)
    assert bundle == CA.certificate.decode() + other.certificate.decode()
    with pytest.raises(ValueError, match=r".+"):
        reading.trust_bundle(CA.certificate, b"")
