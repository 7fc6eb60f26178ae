"""When an upstream is looked at, what clients' requests say of it, and what is told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator import NOW, QUAY, Host, Written, settle, steps

from mirror_agent import actions, reach, report, status
from mirror_agent.actions import Action
from mirror_agent.clients import SHARED, Clients
from mirror_agent.host import edge_log, state, store
from mirror_agent.metrics import render
from mirror_agent.model import Paths, PullLimit, Reach
from mirror_agent.usage import Wanted, wanted

REMOTE, ERROR = "https://quay.io", "quay.io: no answer: Connection refused"
UP, AWAY = Reach(REMOTE, NOW), Reach(REMOTE, NOW, NOW - timedelta(minutes=3), ERROR)
MINUTE, LONG = timedelta(minutes=1), timedelta(hours=1)
BLOB = f"/v2/a/b/blobs/sha256:{'a' * 64}"
ONE = Written({"quay": QUAY})

# --- when


def test_while_clients_get_what_they_want_nobody_looks() -> None:
    assert not reach.due(None, None, NOW)
    assert not reach.due(UP, None, NOW + 24 * LONG)
    assert not reach.due(UP, NOW - MINUTE, NOW + 24 * LONG), "that was before it was reached"


def test_a_doubt_is_looked_into_at_once_and_then_not_for_a_while() -> None:
    assert reach.due(None, NOW, NOW)
    assert reach.due(UP, NOW + LONG, NOW + LONG)
    assert not reach.due(UP, NOW + MINUTE, NOW + 2 * MINUTE)


def test_one_that_is_away_is_tried_at_each_look_without_any_client() -> None:
    assert not reach.due(AWAY, None, NOW + MINUTE / 2)
    assert reach.due(AWAY, None, NOW + MINUTE)
    assert reach.due(AWAY, None, NOW - MINUTE), "the clock has leapt back"


def test_those_that_are_away_can_be_tried_at_once() -> None:
    known = reach.overdue({"quay": AWAY, "ghcr": UP})
    assert reach.due(known["quay"], None, NOW)
    assert (known["quay"].since, known["ghcr"]) == (AWAY.since, UP)


def test_an_upstream_that_comes_and_goes_is_told_a_bounded_number_of_times() -> None:
    """Away and back at each minute of an hour, and a client at each that wants something."""
    last, lines = None, 0
    for minute in range(60):
        now = NOW + minute * MINUTE
        if reach.due(last, now, now):
            after = reach.noted(last, REMOTE, ERROR if minute % 2 else "", now, now)
            lines += bool(after.since) != bool(last and last.since)
            last = after
    assert 2 <= lines <= 2 * 60 / 6


def test_it_is_away_since_a_client_noticed_it_and_until_it_is_reached() -> None:
    first = reach.noted(UP, REMOTE, ERROR, NOW - MINUTE, NOW)
    assert (first.since, first.error) == (NOW - MINUTE, ERROR)
    later = reach.noted(first, REMOTE, "quay.io: no answer within the time limit", NOW + MINUTE, NOW + 2 * MINUTE)
    assert (later.since, later.tried) == (NOW - MINUTE, NOW + 2 * MINUTE)
    assert later.error.endswith("within the time limit")
    assert reach.noted(later, REMOTE, "", None, NOW + LONG) == Reach(REMOTE, NOW + LONG)
    assert reach.noted(None, REMOTE, ERROR, NOW + LONG, NOW).since == NOW, "not in the future"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 600)), max_size=30))
def test_since_is_there_with_an_error_and_never_later_than_the_try(tries: list[tuple[bool, int]]) -> None:
    last, now = None, NOW
    for works, seconds in tries:
        now += timedelta(seconds=seconds)
        last = reach.noted(last, REMOTE, "" if works else ERROR, now, now)
        assert bool(last.since) == bool(last.error) == (not works)
        assert last.since is None or last.since <= last.tried


def test_for_people() -> None:
    assert reach.away("quay.io", NOW, ERROR, NOW + LONG) == f"quay.io cannot be reached since 07:00 UTC ({ERROR})"
    assert "since 2026-11-24 07:00 UTC" in reach.away("quay.io", NOW, ERROR, NOW + 24 * LONG)
    spans = {0: "0 s", 59: "59 s", 60: "1 min", 3599: "59 min", 7200: "2 h", 11100: "3 h 5 min", 187200: "2 d 4 h"}
    assert {seconds: reach.lasted(timedelta(seconds=seconds)) for seconds in spans} == spans


# --- what clients' requests say


def line(uri: str = "/v2/a/b/manifests/1", status: int = 200, cache: str = "EXPIRED", up: str = "200",
         seconds: float = 0.5) -> str:  # fmt: skip
    return json.dumps({"uri": uri, "status": status, "cache": cache, "up_status": up, "seconds": seconds})


@pytest.mark.parametrize(
    ("text", "tags", "missed"),
    [
        (line(), True, False),
        (line(uri="/v2/a/b/manifests/1?ns=quay.io", cache="STALE"), True, False),
        (line(cache="UPDATING"), True, False),
        (line(cache="HIT", up=""), False, False),
        (line(cache="MISS"), False, False),
        (line(uri=f"/v2/a/b/manifests/sha256:{'a' * 64}"), False, False),
        (line(uri="/v2/a/../../b/manifests/1"), False, False),
        (line(status=404, cache="MISS", up="404"), False, True),
        (line(uri=f"/v2/a/b/manifests/sha256-{'a' * 64}.sig", status=404, up="404"), False, False),
        (line(uri=BLOB, status=404, cache="MISS", up="404"), False, False),
        (line(uri=BLOB, status=503, cache="MISS", up="500"), False, True),
        (line(uri=BLOB, status=503, cache="", up=""), False, False),  # the disk is full: nobody was asked
        (line(uri="/v2/", status=503, cache="", up="502"), False, False),
        (json.dumps({"uri": 5, "status": 503, "up_status": [], "seconds": "x"}), False, False),
        (json.dumps({"uri": "/v2/a/manifests/1", "status": 200, "cache": [], "seconds": -1}), False, False),
        ("nginx: a warning", False, False),
    ],
)  # fmt: skip
def test_what_of_a_request_the_upstream_had_to_be_asked_for(text: str, tags: bool, missed: bool) -> None:
    found = wanted([(NOW, text)])
    assert found.tags == ({("a/b", "1"): NOW - timedelta(seconds=0.5)} if tags else {})
    assert found.missed == (NOW if missed else None)


def test_the_last_request_counts_whatever_the_order() -> None:
    lines = [(NOW, line()), (NOW - LONG, line()), (NOW - LONG, line(BLOB, 503)), (NOW, line(BLOB, 503))]
    assert wanted(lines) == wanted(lines[::-1]) == Wanted({("a/b", "1"): NOW - timedelta(seconds=0.5)}, NOW)


@pytest.fixture
def doubts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubts:
    return Doubts(tmp_path, monkeypatch)


class Doubts:
    """What the agent makes of an edge's log and of the store beside it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._lines, self._cursor = root, list[edge_log.Line](), 0
        self._clients = Clients(replace(Paths(), state=PurePosixPath(root)))
        monkeypatch.setattr(edge_log, "read", self._read)
        host = Host()
        settle(host, ONE)
        desired = host.desired(ONE)
        cache = replace(desired.settings.cache, path=root)
        self._desired = replace(desired, settings=replace(desired.settings, cache=cache))

    def _read(self, _containers: object, cursor: str) -> tuple[list[edge_log.Line], str]:
        lines, self._lines = self._lines, []
        return lines, cursor

    def confirm(self, tag: str, at: datetime) -> None:
        """The upstream has said what the tag means."""
        registry = self._root / "quay/registry"
        link = registry / f"docker/registry/v2/repositories/a/b/_manifests/tags/{tag}/current/link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text("sha256:")
        os.utime(link, (at.timestamp(), at.timestamp()))
        assert store.confirmed(registry, "a/b", tag) == at

    def after(self, *lines: tuple[datetime, str]) -> datetime | None:
        self._lines = [edge_log.Line("mirror-quay-edge", "1f2e", at, text) for at, text in lines]
        self._clients.look(self._desired)
        return self._clients.doubts.get("quay")


def test_a_tag_that_the_upstream_gave_anew_is_no_doubt(doubts: Doubts) -> None:
    doubts.confirm("1", NOW)
    assert doubts.after((NOW, line(seconds=0))) is None
    assert doubts.after((NOW + SHARED, line(seconds=0))) is None, "of those who asked at the same time"
    late = NOW + SHARED + timedelta(seconds=1)
    assert doubts.after((late, line(seconds=0))) == late
    assert doubts.after() == late, "until something is answered"
    doubts.confirm("1", late)
    assert doubts.after((late, line(seconds=0))) is None


def test_what_one_tag_leaves_in_doubt_another_one_settles(doubts: Doubts) -> None:
    """A tag that was deleted upstream is given as it was: no answer to that one, but the upstream is there."""
    doubts.confirm("gone", NOW - LONG)
    doubts.confirm("1", NOW)
    gone = line("/v2/a/b/manifests/gone", seconds=0)
    assert doubts.after((NOW - MINUTE, gone)) == NOW - MINUTE
    assert doubts.after((NOW - MINUTE, gone), (NOW, line(seconds=0))) is None
    assert doubts.after((NOW + MINUTE, line(BLOB, 503, "MISS", "500"))) == NOW + MINUTE


# --- what follows


def running(doubted: datetime | None = None) -> Host:
    host = Host()
    settle(host, ONE)
    host.doubts = {"quay": doubted} if doubted else {}
    return host


def looks(host: Host, written: Written = ONE) -> list[Action]:
    return [step for step in steps(host, written) if isinstance(step, actions.ReachUpstream)]


def test_a_mirror_in_doubt_is_looked_into_once() -> None:
    assert looks(running()) == []
    host = running(NOW)
    assert looks(host) == [actions.ReachUpstream("quay", "", None)]
    settle(host, ONE)
    assert host.reaches["quay"].tried == NOW
    assert looks(host) == []
    host.edges.clear()
    host.reaches.clear()
    assert looks(host) == [], "a pod that does not answer has no way to its upstream"


def test_one_that_is_away_is_tried_until_it_is_back_or_is_another_one() -> None:
    host = running()
    host.reaches = {"quay": replace(AWAY, remote=host.desired(ONE).mirrors[0].remote)}
    host.now += MINUTE
    assert looks(host) == [actions.ReachUpstream("quay", "", NOW)]
    moved = Written({"quay": QUAY + 'remote = "https://quay.example"\n'})
    settle(host, moved)
    assert looks(host, moved) == []


def test_a_question_about_the_limit_that_came_to_nothing_is_a_doubt() -> None:
    hub = Written({"docker": 'source = "docker.io"\n'})
    host = Host()
    settle(host, hub)
    assert looks(host, hub) == []
    host.pull_limits["docker"] = PullLimit(NOW, error="no answer")
    assert looks(host, hub) == [actions.ReachUpstream("docker", "", None)]


def described(reaches: Mapping[str, Reach]) -> report.Status:
    host = running()
    host.reaches = dict(reaches)
    desired = host.desired(ONE)
    return status.describe(desired, host.observed(desired), (), {}, (), NOW)


def test_what_is_shown_of_it() -> None:
    metric = b'mirror_agent_upstream_away{mirror="quay",upstream="quay.io"} %d.0\n'
    for reaches in ({}, {"quay": UP}, {"quay": replace(AWAY, remote="https://quay.example")}):
        shown = described(reaches)
        assert shown.line == "1 mirror: 1 serving"
        assert shown.mirrors[0].reach.since == ""
        assert metric % 0 in render(shown)
    shown = described({"quay": AWAY})
    assert shown.line == "1 mirror: 1 serving; 1 upstream cannot be reached"
    (mirror,) = shown.mirrors
    assert (mirror.state, mirror.reach.error) == (report.State.SERVING, ERROR)
    assert mirror.reach.since == "2026-11-24T06:57:00+00:00"
    assert metric % 1 in render(shown)


def test_it_outlives_the_agent_and_is_found_out_again_where_it_is_damaged(tmp_path: Path) -> None:
    path = PurePosixPath(tmp_path / "upstreams.json")
    known = {"quay": AWAY, "ghcr": replace(UP, tried=datetime.now(UTC))}
    assert state.load_reaches(path) == {}
    assert state.save_reaches(path, known, os.geteuid())
    assert state.load_reaches(path) == known
    Path(path).write_text('{"version": 1, "mirrors": {"quay": {}}}')
    assert state.load_reaches(path) == {}
