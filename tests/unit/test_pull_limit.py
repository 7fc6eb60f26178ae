"""What an upstream says of its pull limit, whatever it sends, and who may be told the account."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from simulator import NOW, Host, Written, settle, steps

from mirror_agent import actions, pull_limit
from mirror_agent.model import PullLimit
from mirror_agent.report import PullLimitStatus, pulls

HUB = "registry-1.docker.io"
ASKED = PullLimit(NOW, 100, 76, 21600)

# --- what it says


@pytest.mark.parametrize(
    ("limit", "remaining", "found"),
    [
        ("100;w=21600", "76;w=21600", (100, 76, 21600)),
        (" 100 ; w=21600 ", "0", (100, 0, 21600)),
        ("100", "76;w=3600", (100, 76, 3600)),
        ("200, 200;w=60;comment=x", "199", (200, 199, 60)),
        ("100", "76", (100, 76, 0)),
        (None, None, (None, 0, 0)),
    ],
)
def test_what_the_headers_say(limit: str | None, remaining: str | None, found: tuple[int | None, int, int]) -> None:
    said = pull_limit.read(limit, remaining, "198.51.100.7", NOW)
    assert (said.limit, said.remaining, said.window) == found
    assert said.source == ("198.51.100.7" if limit else "")


@pytest.mark.parametrize(
    "source",
    ["198.51.100.7", "2001:db8::", "9b7f2f2e-3f6b-4e0c-8f5a-1d2c3b4a5f60", None, "[bold]", "a\x1b[2J", "x" * 65],
)
def test_a_source_is_an_address_or_an_id(source: str | None) -> None:
    named = pull_limit.read("1", "1", source, NOW).source
    assert named == (source if source and source[0] in "129" else "")


HEADER = st.none() | st.text() | st.from_regex(r"\d{0,12}[;,]?( ?w=\d{0,12})?", fullmatch=True)


@given(HEADER, HEADER, HEADER)
@example("9" * 5000, "1", None)
@example("100;w=" + "9" * 5000, "1", None)
@example("\u0661\u0660;w=\u0661", "1", None)  # digits of another script
def test_no_header_is_believed_that_is_not_understood(limit: str | None, left: str | None, source: str | None) -> None:
    try:
        said = pull_limit.read(limit, left, source, NOW)
    except ValueError:
        return
    assert said.limit is None or 0 <= said.limit < 10**9
    assert 0 <= said.remaining < 10**9
    assert 0 <= said.window < 10**9
    assert said.source.isprintable()
    assert len(said.source) <= 64


def test_for_people() -> None:
    assert pulls(76, 100, 21600) == "76 of 100 pulls in 6 h"
    assert [pulls(1, 2, n) for n in (0, 90, 120, 86400)] == [
        "1 of 2 pulls", "1 of 2 pulls in 90 s", "1 of 2 pulls in 2 min", "1 of 2 pulls in 1 d",
    ]  # fmt: skip
    shown = PullLimitStatus("2026-11-24T07:00:00+00:00", 100, 76, 21600)
    assert shown.words("docker.io") == "76 of 100 pulls in 6 h are left at docker.io"
    assert "tells of no" in replace(shown, limit=None).words("docker.io")
    assert "HTTP 404" in replace(shown, error="HTTP 404").words("docker.io")
    assert "not asked yet" in PullLimitStatus().words("docker.io")


# --- what is low


def test_it_is_told_once_that_few_are_left() -> None:
    last, low = None, []
    for left in (50, 11, 10, 11, 9, 20, 21, 10, 0):
        last = pull_limit.noted(last, replace(ASKED, remaining=left))
        low.append(last.low)
    assert low == [False, False, True, True, True, True, False, True, True]


def test_while_nothing_is_known_it_stays_as_it_was() -> None:
    low = pull_limit.noted(None, replace(ASKED, remaining=3))
    away = pull_limit.noted(low, PullLimit(NOW, error="no answer"))
    assert away.low
    assert pull_limit.noted(away, replace(ASKED, remaining=15)).low
    assert not pull_limit.noted(away, PullLimit(NOW)).low, "an account without a limit"
    assert not pull_limit.noted(None, PullLimit(NOW, error="no answer")).low


@given(st.lists(st.integers(0, 200)), st.integers(0, 100))
def test_low_is_nothing_but_few(rest: list[int], limit: int) -> None:
    last = None
    for left in rest:
        last = pull_limit.noted(last, replace(ASKED, limit=limit, remaining=left))
        assert last.low or left * 10 > limit
        assert not last.low or left * 5 <= limit


# --- when it is asked


def test_it_is_asked_every_quarter_of_an_hour_whatever_came_of_it() -> None:
    for said in (ASKED, PullLimit(NOW, error="no answer"), PullLimit(NOW)):
        assert not pull_limit.due(said, NOW)
        assert not pull_limit.due(said, NOW + timedelta(minutes=14, seconds=59))
        assert pull_limit.due(said, NOW + timedelta(minutes=15))
        assert pull_limit.due(said, NOW - timedelta(seconds=1)), "the clock has leapt back"
    assert pull_limit.due(None, NOW)


@pytest.mark.parametrize(
    ("definition", "image"),
    [
        ('source = "docker.io"\n', "ratelimitpreview/test:latest"),
        ('source = "docker.io"\n[upstream]\npull_limit = false\n', ""),
        ('source = "quay.io"\n', ""),
        ('source = "quay.io"\n[upstream]\npull_limit = true\n', "podman/hello:latest"),
        ('source = "lab.example"\nprobe = "a/b:1"\n[upstream]\npull_limit = true\n', "a/b:1"),
    ],
)
def test_who_is_asked(definition: str, image: str) -> None:
    host, written = Host(), Written({"one": definition})
    done = [step for batch in settle(host, written) for step in batch]
    (mirror,) = host.desired(written).mirrors
    assert mirror.pull_limit == (image or None)
    asked = [step for step in done if isinstance(step, actions.AskPullLimit)]
    assert len(asked) == bool(image)
    host.now += timedelta(minutes=16)
    assert [type(step) for step in steps(host, written)] == [actions.AskPullLimit] * bool(image)
    host.edges.clear()
    assert not [step for step in steps(host, written) if isinstance(step, actions.AskPullLimit)], "it does not serve"


# --- who asks


def test_challenges() -> None:
    hub = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'
    wanted = pull_limit.Challenge(True, "https://auth.docker.io/token", "registry.docker.io")
    assert pull_limit.challenge([hub]) == pull_limit.challenge(["Negotiate", hub]) == wanted
    assert pull_limit.challenge(['basic realm="x"']) == pull_limit.Challenge(False)
    for headers in ([], ["Digest x=1"], ["Bearer realm"], ["Bearer realm="], [""]):
        with pytest.raises(ValueError, match=r"."):
            pull_limit.challenge(headers)


@pytest.mark.parametrize(
    ("url", "registry", "target"),
    [
        ("https://auth.docker.io/token", HUB, "/token"),
        ("https://auth.docker.io:444/token?x=1#y", HUB, "/token?x=1"),
        ("https://docker.io", HUB, "/"),
        ("https://quay.io/v2/auth", "quay.io", "/v2/auth"),
        ("https://10.1.2.3:5000/token", "10.1.2.3", "/token"),
    ],
)
def test_where_the_account_may_be_told(url: str, registry: str, target: str) -> None:
    found = pull_limit.realm(url, registry)
    assert (found.host, found.target) == (urlsplit(url).hostname, target)
    assert found.port == (urlsplit(url).port or 443)


@pytest.mark.parametrize(
    ("url", "registry"),
    [
        ("http://auth.docker.io/token", HUB),
        ("https://auth.docker.io.evil.example/token", HUB),
        ("https://evildocker.io/token", HUB),
        ("https://user:secret@auth.docker.io/token", HUB),
        ("https://auth.docker.io:99999/token", HUB),
        ("https://auth.docker.io/a b", HUB),
        ("https://auth.docker.io/a\r\nX: y", HUB),
        ("https://evil.io/token", "quay.io"),
        ("https://10.1.2.4/token", "10.1.2.3"),
        ("https://169.254.169.254/latest", HUB),
        ("//auth.docker.io/token", HUB),
        ("", HUB),
    ],
)
def test_where_it_may_not(url: str, registry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        pull_limit.realm(url, registry)


@given(st.lists(st.text()), st.text())
@example(["Bearer " + 'realm="' * 1000], "")
def test_no_challenge_breaks_it(headers: list[str], url: str) -> None:
    for text in (url, f"https://{url}", f"https://auth.docker.io/{url}"):
        try:
            found = pull_limit.realm(text, HUB)
        except ValueError:
            continue
        assert found.host == "docker.io" or found.host.endswith(".docker.io")
        assert not set(found.target) & set(" \r\n")
    with suppress(ValueError):
        pull_limit.challenge(headers)
