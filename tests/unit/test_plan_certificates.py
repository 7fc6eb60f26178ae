"""Certificates in the planner: what is told early, what is held back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

from simulator import GHCR, NOW, QUAY, Host, Written, settle

from mirror_agent import actions, certificates, plan, status
from mirror_agent.model import Authorities, Authority, Tls

BOTH = Written({"quay": QUAY, "ghcr": GHCR})


def settled() -> Host:
    host = Host()
    settle(host, BOTH)
    return host


def authority(suffix: str, days: int = 3650) -> Authority:
    pair = certificates.make_authority((suffix,), (IPv4Network("10.0.0.0/24"),), "appliance", NOW, days)
    return Authority(certificates.facts(pair.certificate, pair.key), pair.certificate)


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
    due = certificates.next_due(leaf)
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
