"""What the loop remembers between two looks: when to try again, what ran well, what waits for what."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from simulator import GHCR, NOW, QUAY, SETTINGS, Failed, Host, Written, settle

from mirror_agent import actions, plan
from mirror_agent.actions import Action
from mirror_agent.memory import BACKOFF_SECONDS, Memory
from mirror_agent.plan import Desired

BOTH = Written({"quay": QUAY, "ghcr": GHCR})
MOVED = BOTH.but(quay=QUAY.replace("10.0.0.4", "10.0.0.5"))
HOST = Host()
DESIRED = HOST.desired(BOTH)
OTHER = HOST.desired(MOVED)
START = actions.StartUnits("quay", "not running", ("mirror-quay-pod.service",))
CLAIM = actions.ClaimAddress("quay", "", DESIRED.leases["quay"])
PULL = actions.PullImage("", "", "nginx")
SECOND = timedelta(seconds=1)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize("step", [CLAIM, PULL, START], ids=lambda step: step.action)
def test_each_failure_waits_longer_up_to_a_limit(step: Action) -> None:
    memory, now = Memory(), NOW
    for wait in (*BACKOFF_SECONDS, BACKOFF_SECONDS[-1], BACKOFF_SECONDS[-1]):
        assert memory.may(step, DESIRED, now)
        memory.failed(step, "no", DESIRED, now)
        assert not memory.may(step, DESIRED, now + timedelta(seconds=wait) - SECOND)
        now += timedelta(seconds=wait)
    assert tuple(sorted(BACKOFF_SECONDS)) == BACKOFF_SECONDS


def test_a_mirror_is_unwell_for_as_long_as_it_does_not_answer_without_a_break() -> None:
    memory = Memory()
    assert memory.unwell({"quay"}, 100.0) == {"quay": 0.0}
    assert memory.unwell({"quay", "ghcr"}, 160.0) == {"quay": 60.0, "ghcr": 0.0}
    assert memory.unwell({"ghcr"}, 200.0) == {"ghcr": 40.0}
    assert memory.unwell({"quay"}, 220.0) == {"quay": 0.0}


def test_what_it_is_for_has_changed_so_it_is_tried_at_once_and_counts_anew() -> None:
    memory = Memory()
    for second in range(4):
        memory.failed(CLAIM, "taken", DESIRED, at(second))
    assert not memory.may(CLAIM, DESIRED, at(5))
    assert memory.may(CLAIM, OTHER, at(5))
    memory.failed(CLAIM, "taken", OTHER, at(5))
    assert memory.may(CLAIM, OTHER, at(5 + BACKOFF_SECONDS[0]))


def test_another_mirror_image_or_kind_of_step_does_not_wait() -> None:
    memory = Memory()
    memory.failed(CLAIM, "taken", DESIRED, NOW)
    memory.failed(PULL, "no route", DESIRED, NOW)
    others: list[Action] = [
        actions.ClaimAddress("ghcr", "", DESIRED.leases["ghcr"]),
        START,
        actions.PullImage("", "", "registry"),
        actions.CreateAuthority("", ""),
    ]
    assert memory.due([CLAIM, PULL, *others], DESIRED, NOW) == [others[0], *others[2:]]


def test_later_steps_of_a_mirror_wait_for_the_one_that_failed() -> None:
    memory = Memory()
    issue = actions.IssueCertificate("quay", "no certificate")
    pod = DESIRED.pods["quay"]
    before = [actions.MakeFolder("quay", "", folder) for folder in pod.folders]
    after: list[Action] = [actions.WriteUnits("quay", "", pod.units)]
    other: list[Action] = [
        actions.WriteUnits("ghcr", "", DESIRED.pods["ghcr"].units),
        actions.ReloadSystemd("", "", ()),
    ]
    todo = [*before, issue, *after, *other]
    assert memory.due(todo, DESIRED, NOW) == todo
    memory.failed(issue, "the clock is wrong", DESIRED, NOW)
    assert memory.due(todo, DESIRED, NOW) == [*before, *other]
    assert memory.due(todo, DESIRED, NOW + timedelta(days=1)) == todo


def test_steps_that_stand_alone_neither_wait_nor_hold_back() -> None:
    memory = Memory()
    announce = actions.AnnounceAddress("quay", "", "1")
    prove = actions.ProveMirror("quay", "", "hello")
    memory.failed(announce, "no", DESIRED, NOW)
    assert memory.due([announce, prove], DESIRED, NOW) == [prove]
    memory = Memory()
    memory.failed(CLAIM, "taken", DESIRED, NOW)
    assert memory.due([CLAIM, prove], DESIRED, NOW) == [prove]


def test_what_was_begun_is_not_begun_again_and_holds_back_only_what_needs_it() -> None:
    memory, pod = Memory(), DESIRED.pods["quay"]
    units = actions.WriteUnits("quay", "", pod.units)
    other = actions.WriteUnits("ghcr", "", DESIRED.pods["ghcr"].units)
    needed, spare = (actions.IssueCertificate("quay", "", NOW, spare) for spare in (False, True))
    under_way = {("issue-certificate", "quay")}
    assert memory.due([needed, units, other], DESIRED, NOW, under_way) == [other]
    assert memory.due([spare, units, other], DESIRED, NOW, under_way) == [units, other]
    memory.failed(spare, "no answer", DESIRED, NOW)
    assert memory.due([spare, units, other], DESIRED, NOW) == [units, other]


def test_a_failure_is_forgotten_when_its_step_is_no_longer_wanted() -> None:
    memory = Memory()
    memory.failed(CLAIM, "taken", DESIRED, NOW)
    memory.failed(PULL, "no route", DESIRED, NOW)
    memory.settle(DESIRED, HOST.observed(DESIRED), [PULL])
    assert memory.may(CLAIM, DESIRED, NOW)
    assert not memory.may(PULL, DESIRED, NOW)


def test_failures_are_told_by_mirror_or_subject() -> None:
    memory = Memory()
    memory.failed(CLAIM, "10.0.0.4: is taken", DESIRED, NOW)
    memory.failed(PULL, "no route", DESIRED, NOW)
    memory.failed(actions.CreateAuthority("", ""), "no space", DESIRED, NOW)
    told = memory.failures()
    assert told.keys() == {"quay", "nginx", "create-authority"}
    assert (told["quay"].mirror, told["quay"].step) == ("quay", "claim-address")
    assert (told["quay"].reason, told["quay"].again) == ("10.0.0.4: is taken", at(BACKOFF_SECONDS[0]))


# --- the pod that ran well ---------------------------------------------------------------------------------------

BROKEN = Written(BOTH.definitions, SETTINGS + '[images]\nedge = "docker.io/library/nginx:broken"\n')


class Machine(Host):
    """A host on which no pod starts that has the broken image."""

    def do(self, step: Action, desired: Desired) -> None:
        if isinstance(step, actions.StartUnits | actions.RestartUnits):
            used = self.files[next(u.path for u in desired.pods[step.mirror].units if "edge" in u.path.name)]
            if b"nginx:broken" in used.content:
                for service in step.units:
                    self._stop(service)
                raise Failed(step)
        super().do(step, desired)


def burst(host: Host, written: Written, memory: Memory, now: datetime) -> list[str]:
    """The loop's burst of work, on the host in memory; what the admin is told."""
    problems: list[str] = []
    for _ in range(20):
        desired, fallen = memory.fall_back(host.desired(written))
        problems = [problem.reason for problem in fallen]
        observed = host.observed(desired)
        todo = plan.plan(desired, observed, now)
        memory.settle(desired, observed, todo)
        due = memory.due(todo, desired, now)
        if not due:
            return problems
        for step in due:
            try:
                host.do(step, desired)
            except Failed:
                memory.failed(step, "does not start", desired, now)
    raise AssertionError("does not settle")


def test_what_does_not_start_is_replaced_by_what_ran_until_it_changes_again() -> None:
    host, memory = Machine(), Memory()
    assert burst(host, BOTH, memory, NOW) == []
    before = sorted((c.mirror, str(c.role), c.hash) for c in host.containers())
    assert burst(host, BROKEN, memory, at(1)) == ["the mirror does not start with it and runs as before"] * 2
    assert sorted((c.mirror, str(c.role), c.hash) for c in host.containers()) == before
    assert host.published["hosts"].count(b".mirror.lan") == 2
    running = dict(host.active)
    assert len(burst(host, BROKEN, memory, at(1000))) == 2
    assert host.active == running, "it was tried again without a change"
    mended = Written(BOTH.definitions, BROKEN.settings.replace("broken", "1.28"))
    assert burst(host, mended, memory, at(1001)) == []
    assert memory.rejected == {}
    assert host.active.keys() == running.keys()
    assert all("1.28" in f.content.decode() for s, (f, _) in host.active.items() if s.endswith("edge.service"))


SWAPPED = BOTH.but(quay=QUAY.replace("10.0.0.4", "10.0.0.8"), ghcr=GHCR.replace("10.0.0.8", "10.0.0.4"))


def test_two_that_swapped_addresses_and_do_not_start_go_back_together() -> None:
    host, memory = Machine(), Memory()
    burst(host, BOTH, memory, NOW)
    swapped = Written(SWAPPED.definitions, BROKEN.settings)
    assert burst(host, swapped, memory, at(1)) == ["the mirror does not start with it and runs as before"] * 2
    assert {name: str(host.address_of(name)) for name in ("quay", "ghcr")} == {"quay": "10.0.0.4", "ghcr": "10.0.0.8"}


def test_there_is_no_way_back_to_an_address_that_another_mirror_has_by_now() -> None:
    host, memory = Machine(), Memory()
    burst(host, BOTH, memory, NOW)
    swapped = host.desired(SWAPPED)
    good = {mirror.name: (mirror, host.desired(BOTH).pods[mirror.name]) for mirror in host.desired(BOTH).mirrors}
    memory.rejected["quay"] = (swapped.pods["quay"], *good["quay"])
    assert memory.fall_back(swapped) == (swapped, ()), "ghcr is to have 10.0.0.4"
    memory.rejected["ghcr"] = (swapped.pods["ghcr"], *good["ghcr"])
    back, problems = memory.fall_back(swapped)
    assert {mirror.name: str(mirror.address) for mirror in back.mirrors} == {"quay": "10.0.0.4", "ghcr": "10.0.0.8"}
    assert len(problems) == 2


def test_a_mirror_that_never_ran_has_nothing_to_fall_back_to() -> None:
    memory = Memory()
    host = Machine()
    assert burst(host, BROKEN, memory, NOW) == []
    assert memory.rejected == {}
    assert {failure.step for failure in memory.failures().values()} == {"start-units"}
    assert burst(host, BOTH, memory, at(1)) == []
    assert set(host.edges) == {"quay", "ghcr"}


def test_only_a_pod_that_answers_and_needs_nothing_is_a_good_one() -> None:
    memory, host = Memory(), Host()
    settle(host, BOTH)
    desired = host.desired(BOTH)
    observed = host.observed(desired)
    memory.settle(desired, observed, [START])
    assert memory.good.keys() == {"ghcr"}
    memory.settle(desired, observed, [actions.ProveMirror("quay", "", "hello")])
    assert memory.good["quay"] == (desired.mirrors[1], desired.pods["quay"])
    moved = host.desired(MOVED)
    memory.settle(moved, observed, plan.plan(moved, observed, NOW))
    assert memory.good["quay"] == (desired.mirrors[1], desired.pods["quay"])
