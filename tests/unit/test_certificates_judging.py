"""certificates/judging.py: what is good, when another one is due; renewal over simulated years."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from issued import (
    ADDRESS,
    CA,
    HOST,
    LEAF,
    MIDDLE,
    MIRROR,
    NEW_CA,
    NOW,
    facts,
    own_ca,
)

from mirror_agent.certificates import judging, making, reading
from mirror_agent.model import (
    AcmeSettings,
    Certificate,
    CertificateSettings,
    Issuer,
    LeafKey,
    Suggestion,
    Tls,
)


def test_who_makes_a_certificate() -> None:
    tls = Tls(Path("quay.crt"), Path("quay.key"))
    acme = CertificateSettings(acme=AcmeSettings("https://acme.example/dir"))
    assert judging.issuer_of(MIRROR, CertificateSettings()) == Issuer.OWN
    assert judging.issuer_of(MIRROR, acme) == Issuer.ACME
    assert judging.issuer_of(replace(MIRROR, tls=tls), acme) == Issuer.BROUGHT


@pytest.mark.parametrize(
    ("host", "good"), [(HOST, True), ("Quay.Mirror.LAN", True), ("gcr.mirror.lan", False), ("a.quay.mirror.lan", False)]
)
def test_a_certificate_is_for_its_host(host: str, good: bool) -> None:
    assert (judging.unfit(facts(LEAF), host) == "") == good


@pytest.mark.parametrize(
    ("host", "good"), [("quay.mirror.lan", True), ("mirror.lan", False), ("a.quay.mirror.lan", False)]
)
def test_a_wildcard_stands_for_one_label(host: str, good: bool) -> None:
    assert (judging.unfit(replace(facts(LEAF), hosts=("*.mirror.lan",)), host) == "") == good


def test_what_an_own_ca_excludes_is_refused() -> None:
    limits = x509.NameConstraints(None, [x509.DNSName("quay.mirror.lan"), x509.IPAddress(IPv4Network("10.0.0.8/29"))])
    ca, _ = own_ca(limits)
    assert "below quay.mirror.lan" in judging.forbids(ca.certificate, HOST, ADDRESS)
    assert "in 10.0.0.8/29" in judging.forbids(ca.certificate, "gcr.mirror.lan", IPv4Address("10.0.0.9"))
    assert judging.forbids(ca.certificate, "gcr.mirror.lan", ADDRESS) == ""


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


def test_another_kind_of_key_is_a_reason_for_a_new_certificate() -> None:
    rsa_leaf = facts(making.issue(CA, HOST, ADDRESS, NOW, 90, kind=LeafKey.RSA))
    for leaf, kind in ((facts(LEAF), LeafKey.RSA), (rsa_leaf, LeafKey.P256)):
        why = judging.due(leaf, MIRROR, facts(CA), NOW, kind=kind)
        assert why == f"its key is not {kind}, as certificates.leaf_key says"
        assert judging.due_elsewhere(leaf, MIRROR, [], NOW, kind=kind) == why
        assert judging.due(leaf, MIRROR, facts(CA), NOW, kind=leaf.key or kind) == ""
    assert reading.facts(MIDDLE.certificate, None).key is None, "P-384 is neither"


def test_a_leaf_ends_with_its_ca() -> None:
    """And is not renewed for its age then: no other could last longer."""
    leaf = facts(making.issue(CA, HOST, ADDRESS, NOW + timedelta(days=3600), 90))
    end = facts(CA).not_after
    assert leaf.not_after == end
    assert judging.due(leaf, MIRROR, facts(CA), end - timedelta(seconds=1)) == ""
    assert "expired" in judging.due(leaf, MIRROR, facts(CA), end)
    later = replace(facts(CA), not_after=end + timedelta(days=1))
    assert "ends at" in judging.due(leaf, MIRROR, later, end - timedelta(days=1))


def test_a_leaf_of_the_old_ca_stays_until_it_is_due() -> None:
    old, new = facts(CA).subject_key, facts(NEW_CA)
    assert judging.due(facts(LEAF), MIRROR, new, NOW, [old]) == ""
    assert "another CA" in judging.due(facts(LEAF), MIRROR, new, NOW)
    assert "ends at" in judging.due(facts(LEAF), MIRROR, new, NOW + timedelta(days=70), [old])


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


# --- by an ACME server ---------------------------------------------------------------------------------------


def test_when_another_one_is_asked_of_an_acme_server() -> None:
    got = replace(facts(LEAF), issuer_key="ac3e", addresses=())
    own = [facts(CA).subject_key]
    assert judging.due_elsewhere(got, MIRROR, own, NOW) == ""
    for certificate, reason in (
        (None, "has no certificate"),
        (facts(LEAF), "by the host's CA"),
        (replace(got, key_matches=False), "does not belong"),
        (replace(got, hosts=("old.mirror.lan",)), "for old.mirror.lan, not for"),
        (replace(got, not_after=NOW), "expired"),
    ):
        assert reason in judging.due_elsewhere(certificate, MIRROR, own, NOW)
    assert "ends at" in judging.due_elsewhere(got, MIRROR, own, NOW + timedelta(days=70))


def test_an_acme_server_may_want_it_earlier() -> None:
    got = replace(facts(LEAF), issuer_key="ac3e", addresses=())
    early = NOW + timedelta(days=9)
    says = Suggestion(got.serial, NOW, early)
    assert judging.due_elsewhere(got, MIRROR, [], early - timedelta(seconds=1), says) == ""
    assert judging.due_elsewhere(got, MIRROR, [], early, says) == "the ACME server asks for it"
    assert judging.due_elsewhere(got, MIRROR, [], early, replace(says, serial=1)) == ""
    late = replace(says, at=NOW + timedelta(days=99))
    assert "ends at" in judging.due_elsewhere(got, MIRROR, [], NOW + timedelta(days=70), late)


def test_it_is_asked_every_six_hours_and_for_each_new_certificate() -> None:
    got = facts(LEAF)
    says = Suggestion(got.serial, NOW)
    assert not judging.to_be_asked(None, None, NOW)
    assert judging.to_be_asked(got, None, NOW)
    assert judging.to_be_asked(got, replace(says, serial=1), NOW)
    assert not judging.to_be_asked(got, says, NOW + timedelta(hours=5, minutes=59))
    assert judging.to_be_asked(got, says, NOW + timedelta(hours=6))
    assert judging.to_be_asked(got, says, NOW - timedelta(days=1)), "the clock was ahead when it was asked"


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
