"""What clients did, from lines of the edge's log."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_agent.usage import Counters, Usage, account, is_of_a_killed_worker

AT = datetime(2026, 5, 1, 12, 30, 59, 999, tzinfo=UTC)
MINUTE = AT.replace(second=0, microsecond=0)
DIGEST = f"sha256:{'a' * 64}"
MANIFEST, BLOB = "/v2/library/app/manifests/1.0", f"/v2/library/app/blobs/{DIGEST}"


def line(uri: str = MANIFEST, status: int = 200, cache: str = "HIT", digest: str = DIGEST, sent: int = 7,
         up_bytes: str = "") -> str:  # fmt: skip
    told = {"uri": uri, "status": status, "cache": cache, "digest": digest, "sent": sent, "up_bytes": up_bytes}
    return json.dumps(told)


def counted(*lines: str) -> Counters:
    return account(Usage(), [(AT, each) for each in lines]).counters


@pytest.mark.parametrize(
    ("uri", "image"),
    [
        (MANIFEST, ("library/app", DIGEST)),
        (f"/v2/a/b/c_d.e/manifests/{DIGEST}", ("a/b/c_d.e", DIGEST)),
        ("/v2/library/app/manifests/1.0?ns=docker.io", ("library/app", DIGEST)),  # containerd's
        (BLOB, None),
        ("/v2/", None),
        ("/v2/../etc/manifests/x/y", None),
        ("/v2/UPPER/manifests/1.0", None),
    ],
)
def test_an_answered_manifest_is_a_use_of_its_image(uri: str, image: tuple[str, str] | None) -> None:
    assert account(Usage(), [(AT, line(uri))]).used == ({image: MINUTE} if image else {})


@pytest.mark.parametrize("answer", [{"status": 404}, {"status": 503}, {"digest": ""}, {"digest": "sha256:x"}])
def test_what_was_not_given_is_no_use(answer: dict[str, object]) -> None:
    assert account(Usage(), [(AT, json.dumps({**json.loads(line()), **answer}))]).used == {}


def test_the_latest_use_counts_whatever_the_order() -> None:
    lines = [(AT, line()), (AT - timedelta(days=1), line())]
    assert account(Usage(), lines).used == account(Usage(), lines[::-1]).used == {("library/app", DIGEST): MINUTE}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (line(BLOB, cache=""), Counters(requests=1, hits=1, sent=7)),
        (line(BLOB, cache="HIT"), Counters(requests=1, hits=1, sent=7)),
        (line(BLOB, cache="MISS", up_bytes="1000"), Counters(requests=1, misses=1, sent=7, fetched=1000)),
        (line(cache="EXPIRED", up_bytes="0, 12 : 30"), Counters(requests=1, misses=1, sent=7, fetched=42)),
        (line(cache="STALE"), Counters(requests=1, stale=1, sent=7)),
        (line(cache="UPDATING"), Counters(requests=1, stale=1, sent=7)),
        (line(cache="MISS", status=404), Counters(requests=1, sent=7)),
        (line(cache="MISS", status=503), Counters(requests=1, errors=1, sent=7)),
        (line("/v2/", cache=""), Counters(requests=1, sent=7)),
        ("nginx: a warning", Counters()),
        ("[1]", Counters()),
        ('{"status": "200"}', Counters()),
        ('{"status": true, "uri": null}', Counters()),
        ('{"status": 200, "uri": 5, "cache": [], "sent": "x", "up_bytes": {"a": 1}}', Counters(requests=1)),
    ],
)  # fmt: skip
def test_what_is_counted(text: str, expected: Counters) -> None:
    assert counted(text) == expected


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_line_stops_the_reading(text: str) -> None:
    assert account(Usage(), [(AT, text), (AT, line())]).used == {("library/app", DIGEST): MINUTE}


def test_in_pieces_or_at_once_it_is_the_same() -> None:
    lines = [(AT, line()), (AT, line(BLOB, cache="MISS", up_bytes="9")), (AT, line(cache="STALE"))]
    pieces = Usage()
    for each in lines:
        pieces = account(pieces, [each])
    assert pieces == account(Usage(), lines)


def test_images_that_are_gone_are_forgotten_and_counters_are_not() -> None:
    kept, gone, young = ("r", "sha256:1"), ("r", "sha256:2"), ("r", "sha256:3")
    usage = Usage({kept: AT - timedelta(9), gone: AT - timedelta(9), young: AT}, Counters(requests=3))
    assert usage.only([kept], AT - timedelta(1)) == Usage({kept: AT - timedelta(9), young: AT}, Counters(requests=3))


def test_the_edge_logs_what_is_read() -> None:
    conf = (Path(__file__).parents[2] / "quadlets/nginx.conf").read_text()
    logged = set(re.findall(r'"(\w+)":"?\$', conf))
    assert logged >= {"uri", "status", "sent", "cache", "digest", "up_bytes"}


@pytest.mark.parametrize(
    ("says", "killed"),
    [
        ("2026/11/24 19:40:00 [alert] 1#1: worker process 29 exited on signal 9", True),
        ("2026/11/24 19:40:00 [alert] 1#1: worker process 29 exited on signal 11 (core dumped)", True),
        ("2026/11/24 19:40:00 [alert] 1#1: cache manager process 31 exited on signal 9", False),  # holds no locks
        ("2026/11/24 19:40:00 [notice] 1#1: worker process 29 exited with code 0", False),
        ('{"agent":" worker process 29 exited on signal 9"}', False),  # a client that says so
    ],
)
def test_what_nginx_says_of_a_killed_worker(says: str, killed: bool) -> None:
    assert is_of_a_killed_worker(says) is killed
