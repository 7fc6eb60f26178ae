"""How things are, in one true line, in states and as JSON; on the host in memory, at every moment of a life."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from simulator import GHCR, NOW, QUAY, SETTINGS, TARGET, Host, Written, one_round, settle, steps

from mirror_agent import actions, plan, report, status
from mirror_agent.model import Problem
from mirror_agent.report import Failure, PullLimitStatus, State, Status
from schema import conforms

BOTH = Written({"quay": QUAY, "ghcr": GHCR})
FAILED = Failure("quay", "claim-address", "10.0.0.4: is taken by 02:00:00:00:00:01", NOW + timedelta(seconds=2))
PROBLEM = Problem("quay.toml", "source", "is missing", "say what it mirrors", "quay")


def described(
    host: Host, written: Written, failures: tuple[Failure, ...] = (), problems: tuple[Problem, ...] = ()
) -> Status:
    desired = host.desired(written)
    observed = host.observed(desired)
    todo = plan.plan(desired, observed, NOW)
    return status.describe(desired, observed, todo, {f.mirror or f.step: f for f in failures}, problems, NOW)


def states(shown: Status) -> dict[str, State]:
    return {row.name: row.state for row in shown.mirrors}


def running() -> Host:
    host = Host()
    settle(host, BOTH)
    return host


def test_the_life_of_a_mirror_goes_one_way() -> None:
    host, seen = Host(), []
    while True:
        shown = described(host, BOTH)
        assert set(states(shown).values()) == {states(shown)["quay"]}
        seen.append((states(shown)["quay"], shown.mirrors[0].published))
        if not one_round(host, BOTH):
            break
    assert list(dict.fromkeys(seen)) == [
        (State.PREPARING, False),
        (State.UNPROVED, False),
        (State.SERVING, False),
        (State.SERVING, True),
    ]


def test_what_was_told_to_systemd_and_does_not_run_yet_is_starting() -> None:
    host = Host()
    while not any(isinstance(step, actions.StartUnits) for step in steps(host, BOTH)):
        one_round(host, BOTH)
    desired = host.desired(BOTH)
    observed = host.observed(desired)
    busy = {service: replace(unit, active="activating") for service, unit in observed.units.items()}
    observed = replace(observed, units=busy)
    shown = status.describe(desired, observed, plan.plan(desired, observed, NOW), {}, (), NOW)
    assert set(states(shown).values()) == {State.STARTING}


def test_a_mirror_that_serves_is_serving_whatever_waits_about_it() -> None:
    shown = described(running(), BOTH, (FAILED,))
    assert states(shown) == {"ghcr": State.SERVING, "quay": State.SERVING}
    assert shown.mirrors[1].reason == FAILED.reason


def test_a_failure_before_it_serves_is_one() -> None:
    shown = described(Host(), BOTH, (FAILED,))
    assert states(shown) == {"ghcr": State.PREPARING, "quay": State.FAILED}
    assert shown.mirrors[0].reason == ""


def test_a_mirror_that_has_moved_is_not_serving_before_it_is_proved_again() -> None:
    host, after = running(), BOTH.but(quay=QUAY + 'host = "images"\n')
    while not any(isinstance(step, actions.ProveMirror) for step in steps(host, after)):
        one_round(host, after)
    shown = described(host, after)
    assert states(shown) == {"ghcr": State.SERVING, "quay": State.UNPROVED}
    assert shown.mirrors[1].published, "it is still published as it was"


def test_published_is_what_the_folder_says() -> None:
    host = running()
    host.published["hosts"] = host.published["hosts"].replace(b"quay.mirror.lan", b"other-quay.mirror.lan")
    for name in list(host.published):
        if name != "hosts":
            del host.published[name]
    assert [row.published for row in described(host, BOTH).mirrors] == [True, False]


@pytest.mark.parametrize(
    ("written", "failures", "problems", "line"),
    [
        (BOTH, (), (), "2 mirrors: 2 serving"),
        (BOTH.but(quay=None), (), (), "1 mirror: 1 serving; publication waits: "),
        (Written({}), (), (), "no mirrors defined; publication waits: "),
        (BOTH, (), (PROBLEM,), "2 mirrors: 2 serving; 1 problem in files"),
        (BOTH, (), (PROBLEM, replace(PROBLEM, key="host")), "2 mirrors: 2 serving; 2 problems in files"),
        (
            BOTH.but(docker='source = "docker.io"\n', lab='source = "lab.example"\n'),
            (replace(FAILED, mirror="docker"),),
            (),
            "4 mirrors: 1 preparing, 2 serving, 1 failed",
        ),
    ],
)
def test_the_line(written: Written, failures: tuple[Failure, ...], problems: tuple[Problem, ...], line: str) -> None:
    assert described(running(), written, failures, problems).line.startswith(line)


def test_the_publication_in_words() -> None:
    host = running()
    assert described(host, BOTH).publication == "up to date"
    host.published["hosts"] = b""
    assert described(host, BOTH).publication == "waits: hosts"
    narrow = SETTINGS.replace("10.0.0.4-", "10.0.0.6-")
    shown = described(running(), replace(BOTH, settings=narrow))
    assert shown.publication == "waits: quay would be missing (mend the definition, or remove it)"
    desired = host.desired(BOTH)
    unreachable = replace(host.observed(desired), published={})
    assert status.describe(desired, unreachable, (), {}, (), NOW).publication == f"waits: {TARGET} cannot be reached"
    nowhere = replace(BOTH, settings=SETTINGS.partition("[publish")[0])
    assert (described(running(), nowhere).publication, described(running(), nowhere).folder) == ("", "")


def test_json_is_plain_and_complete() -> None:
    shown = described(running(), BOTH, (FAILED,), (PROBLEM,))
    ghcr, *others = shown.mirrors
    asked = replace(ghcr, pull_limit=PullLimitStatus(limit=100, remaining=76, window=21600))
    shown = replace(shown, mirrors=(asked, *others))
    plain = json.loads(json.dumps(shown.as_json()))
    conforms("status", plain)
    assert list(plain)[:2] == ["version", "line"]
    assert plain["line"] == shown.line
    quay = plain["mirrors"][1]
    assert (quay["name"], quay["upstream"], quay["host"]) == ("quay", "quay.io", "quay.mirror.lan")
    assert (quay["address"], quay["policy"], quay["state"]) == ("10.0.0.4", "NeverContactSource", "serving")
    assert (quay["published"], quay["proved"]) == (True, "podman/hello:latest")
    assert quay["not_after"] == (NOW + timedelta(days=90)).isoformat()
    assert plain["problems"] == [
        {"file": "quay.toml", "key": "source", "reason": "is missing", "hint": "say what it mirrors", "mirror": "quay"}
    ]
    assert plain["failures"][0]["again"] == FAILED.again.isoformat()
    assert plain["folder"] == TARGET
    assert plain["at"] == NOW.isoformat(timespec="seconds")


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 * 2**30, "200 GiB"), (2**52, "4096 TiB")],
)
def test_sizes_in_words(number: int, words: str) -> None:
    assert report.size(number) == words
