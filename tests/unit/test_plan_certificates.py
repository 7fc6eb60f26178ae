"""Certificates in the planner: what is told early, what is held back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from simulator import GHCR, NOW, QUAY, Host, Written, settle

from mirror_agent import actions, plan, status
from mirror_agent.certificates import judging, making, reading
from mirror_agent.model import Authorities, Authority, CertificateSettings, Tls

LAN = IPv4Network("10.0.0.0/24")
BOTH = Written({"quay": QUAY, "ghcr": GHCR})


def settled() -> Host:
    host = Host()
    settle(host, BOTH)
    return host


def authority(suffix: str, days: int = 3650) -> Authority:
    pair = making.make_authority((suffix,), (IPv4Network("10.0.0.0/24"),), "appliance", NOW, days)
    return Authority(reading.facts(pair.certificate, pair.key), pair.certificate)


def test_a_mirror_that_the_ca_forbids_is_told_and_left_alone() -> None:
    host = settled()
    desired = host.desired(BOTH.but(ghcr=GHCR + 'host = "ghcr.elsewhere.example"\n'))
    seen = replace(host.observed(desired), authorities=Authorities(authority("mirror.lan")))
    (problem,) = plan.problems(desired, seen, NOW)
    assert (problem.file, problem.key, problem.mirror) == ("ghcr.toml", "host", "ghcr")
    assert "ca roll" in problem.hint
    assert not [step for step in plan.plan(desired, seen, NOW) if step.mirror == "ghcr"]
    coming = replace(seen, authorities=Authorities(authority("mirror.lan"), authority("elsewhere.example")))
    assert "the next CA permits it" in plan.problems(desired, coming, NOW)[0].hint
    free = replace(seen, authorities=Authorities(authority("example")))
    assert {each.mirror for each in plan.problems(desired, free, NOW)} == {"quay"}


def test_what_an_admin_brought_is_told_when_it_ends() -> None:
    host = settled()
    desired = host.desired(BOTH)
    tls = Tls(Path("/etc/mirror-agent/tls/quay.crt"), Path("/etc/mirror-agent/tls/quay.key"))
    mirrors = tuple(replace(mirror, tls=tls if mirror.name == "quay" else None) for mirror in desired.mirrors)
    own = replace(desired.settings.certificates, ca=Path("/etc/mirror-agent/ca"))
    desired = replace(desired, mirrors=mirrors, settings=replace(desired.settings, certificates=own))
    seen = replace(host.observed(desired), authorities=Authorities(authority("mirror.lan")))
    assert plan.problems(desired, seen, NOW) == ()
    leaf = seen.certificates["quay"]
    due = judging.next_due(leaf)
    assert [problem.key for problem in plan.problems(desired, seen, due)] == ["tls.certificate"]
    late = NOW + timedelta(days=3600)
    assert [problem.key for problem in plan.problems(desired, seen, late)] == ["tls.certificate", "certificates.ca"]
    # nothing was brought that could be used: what is there stays, and without any the mirror waits
    issued = [step for step in plan.plan(desired, seen, late) if isinstance(step, actions.IssueCertificate)]
    assert [step.mirror for step in issued] == ["ghcr"]
    bare = replace(seen, certificates={"ghcr": seen.certificates["ghcr"]})
    assert not [step for step in plan.plan(desired, bare, NOW) if step.mirror == "quay"]


def damaged(host: Host, written: Written) -> tuple[plan.Desired, plan.Observed]:
    """As observe.look() shows a host whose CA cannot be used."""
    desired = host.desired(written)
    return desired, replace(host.observed(desired), authority=None, trust="", damaged=True)


def test_a_damaged_ca_disturbs_nothing_that_runs() -> None:
    desired, seen = damaged(settled(), BOTH)
    for now in (NOW, NOW + timedelta(days=80), NOW + timedelta(days=100)):
        assert plan.plan(desired, seen, now) == ()
    assert status.describe(desired, seen, (), {}, (), NOW).publication == "waits: the CA is damaged"


def test_with_a_damaged_ca_running_mirrors_are_looked_after_and_others_wait() -> None:
    host = settled()
    service = "mirror-quay-edge.service"
    del host.active[service]
    desired, seen = damaged(host, BOTH.but(gcr='source = "gcr.io"\n'))
    steps = plan.plan(desired, seen, NOW)
    (started,) = [step for step in steps if isinstance(step, actions.StartUnits)]
    assert (started.mirror, started.units) == ("quay", (service,))
    assert not [step for step in steps if step.mirror == "gcr"]
    assert not [step for step in steps if isinstance(step, actions.CreateAuthority | actions.Publish)]
    moved = damaged(settled(), BOTH.but(quay=QUAY + 'host = "other.mirror.lan"\n'))
    assert not [step for step in plan.plan(*moved, NOW) if step.mirror == "quay"]


def test_with_a_damaged_ca_what_is_removed_is_taken_down_and_stays_published() -> None:
    host = settled()
    written, before = BOTH.but(ghcr=None), dict(host.published)
    while steps := plan.plan(*damaged(host, written), NOW):
        for step in steps:
            host.do(step, host.desired(written))
    assert host.active
    assert not [service for service in host.active if "ghcr" in service]
    assert host.published == before
    settle(host, written)
    assert host.published != before


# --- renewals that take their time ------------------------------------------------------------------------------


def test_a_renewal_holds_back_nothing_while_the_certificate_is_good() -> None:
    host = settled()
    del host.active["mirror-quay-edge.service"]
    host.now += timedelta(days=66)
    desired = host.desired(BOTH)
    steps = [step for step in plan.plan(desired, host.observed(desired), host.now) if step.mirror == "quay"]
    issue, start = steps
    assert isinstance(issue, actions.IssueCertificate)
    assert isinstance(start, actions.StartUnits)
    assert issue.alone


def test_without_a_certificate_that_is_good_all_waits_for_it() -> None:
    host = settled()
    del host.active["mirror-quay-edge.service"]
    host.now += timedelta(days=91)
    for written in (BOTH, BOTH.but(quay=QUAY + 'host = "other"\n')):
        desired = host.desired(written)
        steps = [step for step in plan.plan(desired, host.observed(desired), host.now) if step.mirror == "quay"]
        (issue,) = [step for step in steps if isinstance(step, actions.IssueCertificate)]
        assert not issue.alone
        assert not [step for step in steps if isinstance(step, actions.StartUnits)]


# --- what an admin brings --------------------------------------------------------------------------------------


def brought_leaf(now: datetime, days: int) -> tuple[plan.Desired, plan.Observed]:
    """A settled host, and then a definition that names a certificate of another CA, made at `now`."""
    host = settled()
    desired, seen = host.desired(BOTH), host.observed(host.desired(BOTH))
    tls = Tls(Path("/etc/mirror-agent/tls/quay.crt"), Path("/etc/mirror-agent/tls/quay.key"))
    mirrors = tuple(replace(m, tls=tls if m.name == "quay" else None) for m in desired.mirrors)
    ca = making.make_authority(("mirror.lan",), (LAN,), "company", now, 3650)
    leaf = making.issue(ca, "quay.mirror.lan", IPv4Address("10.0.0.4"), now, days)
    return replace(desired, mirrors=mirrors, leaves={"quay": leaf}), seen


def told(desired: plan.Desired, seen: plan.Observed, now: datetime = NOW) -> list[tuple[str, str, str]]:
    return [(each.file, each.key, each.reason) for each in plan.problems(desired, seen, now)]


@pytest.mark.parametrize(
    ("made", "days", "reason"),
    [
        (NOW, 90, ""),
        (NOW - timedelta(days=70), 90, "ends at 2026-12-14 07:00 UTC"),
        (NOW - timedelta(days=90), 90, "ended at 2026-11-24 07:00 UTC"),
        (NOW + timedelta(days=2), 90, "is not valid before 2026-11-26 06:00 UTC, and not used until then"),
    ],
)
def test_a_brought_leaf_is_used_in_its_life_only(made: datetime, days: int, reason: str) -> None:
    desired, seen = brought_leaf(made, days)
    issued = [step for step in plan.plan(desired, seen, NOW) if isinstance(step, actions.IssueCertificate)]
    good = made <= NOW < made + timedelta(days=days)
    assert [step.mirror for step in issued] == ["quay"] * good
    expected = [("quay.toml", "tls.certificate", f"/etc/mirror-agent/tls/quay.crt {reason}")] if reason else []
    assert told(desired, seen) == expected
    bare = replace(seen, certificates={"ghcr": seen.certificates["ghcr"]})
    waits = not [step for step in plan.plan(desired, bare, NOW) if step.mirror == "quay"]
    assert waits is not good, "without any other one it waits"


def brought_ca(made: datetime, suffix: str = "mirror.lan") -> tuple[plan.Desired, plan.Observed]:
    """A settled host with a CA of its own, and another one named by certificates.ca."""
    host = settled()
    desired, seen = host.desired(BOTH), host.observed(host.desired(BOTH))
    own, other = (
        making.make_authority((name,), (LAN,), "host", now, 400) for name, now in (("mirror.lan", NOW), (suffix, made))
    )
    facts = reading.facts(own.certificate, own.key)
    settings = replace(desired.settings, certificates=CertificateSettings(ca=Path("/etc/mirror-agent/ca")))
    known = Authorities(Authority(facts, own.certificate))
    leaves = {name: replace(leaf, issuer_key=facts.subject_key) for name, leaf in seen.certificates.items()}
    seen = replace(seen, authorities=known, authority=facts, certificates=leaves, trust=own.certificate.decode())
    return replace(desired, settings=settings, authority=other), seen


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (NOW, ""),
        (NOW - timedelta(days=300), "ends at 2027-03-04 07:00 UTC"),
        (NOW - timedelta(days=400), "ended at 2026-11-24 07:00 UTC"),
        (NOW + timedelta(days=2), "is not valid before 2026-11-25 07:00 UTC, and not used until then"),
    ],
)
def test_a_brought_ca_is_used_in_its_life_only(made: datetime, reason: str) -> None:
    desired, seen = brought_ca(made)
    steps = [step for step in plan.plan(desired, seen, NOW) if isinstance(step, actions.PrepareAuthority)]
    good = made <= NOW < made + timedelta(days=400)
    assert len(steps) == good
    where = (str(desired.paths.settings), "certificates.ca", f"the CA in /etc/mirror-agent/ca {reason}")
    assert told(desired, seen) == ([where] if reason else [])
    if not good:  # nor is one that was prepared before used
        other = desired.authority
        assert other
        coming = Authority(reading.facts(other.certificate, other.key), other.certificate)
        assert seen.authorities
        halfway = replace(seen, authorities=replace(seen.authorities, coming=coming))
        kinds = [type(step) for step in plan.plan(desired, halfway, NOW)]
        assert actions.DropAuthority in kinds
        assert not {actions.PrepareAuthority, actions.SwitchAuthority} & set(kinds)


def test_hosts_that_a_brought_ca_may_not_vouch_for_are_told_before_it_is_used() -> None:
    desired, seen = brought_ca(NOW, "other.lan")
    reasons = [f"the next CA may not vouch for host {name}.mirror.lan, only for names below other.lan"
               for name in ("ghcr", "quay")]  # fmt: skip
    assert [reason for _, _, reason in told(desired, seen)] == reasons
    assert [reason for _, _, reason in told(desired, replace(seen, authorities=None))] == reasons, "a new host"
    assert not [step for step in plan.plan(desired, seen, NOW) if step.mirror], "what runs goes on"


def test_without_the_ca_that_was_named_no_other_one_is_made() -> None:
    desired = Host().desired(BOTH)
    settings = replace(desired.settings, certificates=CertificateSettings(ca=Path("/etc/mirror-agent/ca")))
    assert not [step for step in plan.plan(replace(desired, settings=settings), plan.Observed(), NOW)
                if isinstance(step, actions.CreateAuthority)]  # fmt: skip
