"""The page of the published folder: true, for people, harmless whatever definitions say, and not drawn for nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from simulator import GHCR, NOW, QUAY, Host, Written, settle
from test_formats import PUBLICATION
from test_status import described

from mirror_agent import formats, page
from mirror_agent.model import Problem
from mirror_agent.report import (
    AuthorityStatus,
    CacheStatus,
    CertificateStatus,
    MirrorStatus,
    ReachStatus,
    State,
    Status,
)

BOTH = Written({"quay": QUAY, "ghcr": GHCR})
DOCUMENTS = {"hosts": b"10.0.0.4  quay.mirror.lan\n", "ca-bundle.pem": b"-----BEGIN CERTIFICATE-----\n"}
CACHE = CacheStatus(100 * 2**30, 5 * 2**30, 12, requests=1500, hits=980, misses=20, sent=7 * 2**30, fetched=2**30)
MIRROR = MirrorStatus(
    "quay", "quay.io", ("quay.io",), "quay.mirror.lan", "10.0.0.4", "NeverContactSource", State.SERVING, True,
    "podman/hello:latest", "2027-02-22T00:00:00+00:00", "", CACHE,
    CertificateStatus(not_after="2027-02-22T00:00:00+00:00", renewal="2027-01-25T00:00:00+00:00"),
)  # fmt: skip
STATUS = Status("", (MIRROR,), (), (), "up to date", "/srv", 0, 0, AuthorityStatus("steady", "CA on cache"))
EVIL = "<img src=x onerror=alert(1)>'\"><script>alert(2)</script>{{7*7}}</pre>&amp;"


class Reading(HTMLParser):
    """What a browser makes of it: elements with attributes, and the text of each kind of element."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "an element is not closed"

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def text(self, *inside: str) -> str:
        return " ".join(" ".join(data.split()) for tag, data in self.texts if not inside or tag in inside)


def test_it_tells_of_each_mirror_its_certificate_and_what_came_of_its_cache() -> None:
    said = Reading(page.draw(STATUS, DOCUMENTS, NOW)).text()
    for fact in ("1 mirror: 1 serving", "quay.io", "quay.mirror.lan", "10.0.0.4", "2027-02-22", "2027-01-25", "98 %",
                 "1,500", "5.0 GiB", "100 GiB", "12", "7.0 GiB", "1.0 GiB", "CA on cache", "up to date",
                 NOW.strftime("%Y-%m-%d %H:%M")):  # fmt: skip
        assert fact in said, fact


def test_every_document_is_there_whole_to_copy_and_to_download() -> None:
    documents = {d.name: d.content for render in formats.FORMATS.values() for d in render(PUBLICATION)}
    read = Reading(page.draw(STATUS, documents, NOW))
    shown = "".join(data for tag, data in read.texts if tag == "pre")
    links = {attrs["href"] for tag, attrs in read.tags if tag == "a" and "download" in attrs}
    assert links == documents.keys()
    for content in documents.values():
        assert f"\n{content.decode()}" in shown
    copied = [attrs["data-copy"] for tag, attrs in read.tags if tag == "button"]
    assert copied == [attrs["id"] for tag, attrs in read.tags if tag == "pre"]


def test_it_says_of_each_document_who_reads_it() -> None:
    for render in formats.FORMATS.values():
        for document in render(PUBLICATION):
            assert {document.name, document.name.partition("/")[0]} & page.READERS.keys(), document.name


def test_trust_comes_first_whatever_the_names() -> None:
    read = Reading(page.draw(STATUS, {"another": b"", **DOCUMENTS}, NOW))
    assert [attrs["href"] for tag, attrs in read.tags if tag == "a"] == ["ca-bundle.pem", "hosts", "another"]


@pytest.mark.parametrize("state", State)
def test_without_a_mirror_that_serves_it_tells_of_that(state: State) -> None:
    host = Host()
    assert "None is defined yet." in Reading(page.draw(described(host, Written({})), {}, NOW)).text()
    waits = replace(MIRROR, state=state, published=False, not_after="", reason="its address is taken")
    waits = replace(waits, certificate=CertificateStatus(), cache=CacheStatus(2**30))
    said = Reading(page.draw(replace(STATUS, mirrors=(waits,)), {}, NOW)).text()
    for fact in (state.value, "not published", "its address is taken", "none yet", "None is published yet."):
        assert fact in said


def test_an_upstream_that_is_away_is_told_of() -> None:
    away = replace(MIRROR, reach=ReachStatus("2026-11-24T07:00:00+00:00", "2026-11-24T06:57:00+00:00", "refused"))
    assert "cannot be reached" not in Reading(page.draw(STATUS, {}, NOW)).text()
    said = Reading(page.draw(replace(STATUS, mirrors=(away,)), {}, NOW)).text()
    assert f"{MIRROR.upstream} cannot be reached: what is cached is served" in said


def test_at_every_moment_of_a_life_it_can_be_drawn() -> None:
    host = Host()
    settle(host, BOTH)
    shown = described(host, BOTH)
    read = Reading(page.draw(shown, host.published, NOW))
    assert {"ghcr", "quay"} == {data.strip() for tag, data in read.texts if tag == "th"} & {"ghcr", "quay"}


def hostile() -> Status:
    """Every text that comes from somewhere else tries to be more than text."""
    mirror = replace(
        MIRROR, name=EVIL, upstream=EVIL, sources=(EVIL, EVIL), host=EVIL, address=EVIL, reason=EVIL, proved=EVIL,
        certificate=CertificateStatus(issuer=EVIL, error=EVIL, not_after=EVIL, renewal=EVIL),
    )  # fmt: skip
    problem = Problem(EVIL, EVIL, EVIL, EVIL)
    authority = AuthorityStatus(EVIL, EVIL, not_after=EVIL, coming=EVIL)
    return replace(STATUS, mirrors=(mirror,), problems=(problem,), publication=EVIL, authority=authority)


def test_what_definitions_say_stays_text() -> None:
    plain, evil = (Reading(page.draw(s, d, NOW)) for s, d in ((STATUS, {}), (hostile(), {EVIL: EVIL.encode()})))
    assert {tag for tag, _ in evil.tags} - {tag for tag, _ in plain.tags} <= {
        "article", "h3", "button", "a", "details", "summary", "pre", "ul", "li"
    }  # fmt: skip
    assert EVIL in "".join(data for tag, data in evil.texts if tag == "pre")
    assert [tag for tag, _ in evil.tags].count("script") == 1


def handlers(read: Reading) -> Iterator[str]:
    return (name for _, attrs in read.tags for name in attrs if name.startswith("on") or name == "style")


def test_it_asks_for_nothing_else_and_nothing_else_may_run() -> None:
    content = page.draw(hostile(), {EVIL: EVIL.encode(), **DOCUMENTS}, NOW)
    read = Reading(content)
    assert list(handlers(read)) == []
    asked = [attrs.get("src") or attrs.get("href") for tag, attrs in read.tags if tag not in ("a", "article")]
    assert [url for url in asked if url] == ["data:,"]
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv"))
    assert policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for element in ("style", "script"):
        [part] = re.findall(rf"<{element}>(.*?)</{element}>".encode(), content, re.DOTALL)
        assert f"{element}-src 'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" in policy


class TestWhenItIsDrawnAnew:
    """What is true is shown at once, what always changes now and then, and nothing is written for nothing."""

    @staticmethod
    def due(after: timedelta, status: Status = STATUS, documents: dict[str, bytes] = DOCUMENTS) -> bool:
        before = page.draw(STATUS, DOCUMENTS, NOW)
        return page.due(before, status, documents, NOW + after) is not None

    def test_where_there_is_none(self) -> None:
        assert page.due(None, STATUS, DOCUMENTS, NOW) == page.draw(STATUS, DOCUMENTS, NOW)

    def test_not_while_nothing_changes(self) -> None:
        assert not self.due(timedelta(0))
        assert not self.due(timedelta(minutes=59))

    def test_once_an_hour_so_that_an_agent_that_is_gone_is_seen(self) -> None:
        assert self.due(timedelta(hours=1))

    @pytest.mark.parametrize(
        "change",
        [
            {"state": State.STARTING},
            {"published": False},
            {"reason": "its address is taken"},
            {"certificate": replace(MIRROR.certificate, not_after="2027-05-01T00:00:00+00:00")},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_at_once_when_a_mirror_is_not_what_it_was(self, change: dict[str, object]) -> None:
        changed = replace(MIRROR, **change)  # type: ignore[arg-type]
        assert self.due(timedelta(0), replace(STATUS, mirrors=(changed,)))

    def test_at_once_when_a_document_or_a_problem_comes_or_goes(self) -> None:
        assert self.due(timedelta(0), documents={**DOCUMENTS, "hosts": b"10.0.0.5  quay.mirror.lan\n"})
        assert self.due(timedelta(0), documents={})
        assert self.due(timedelta(0), replace(STATUS, problems=(Problem("quay.toml", "", "is empty"),)))

    def test_figures_wait_for_ten_minutes_and_small_changes_of_them_do_not_show(self) -> None:
        figures = replace(CACHE, hits=5000, sent=2**40, images=13, size=6 * 2**30, requests=9000, fetched=2**31)
        changed = replace(STATUS, mirrors=(replace(MIRROR, cache=figures),))
        assert not self.due(timedelta(minutes=9), changed)
        assert self.due(timedelta(minutes=10), changed)
        small = replace(STATUS, mirrors=(replace(MIRROR, cache=replace(CACHE, sent=CACHE.sent + 2**20)),))
        assert not self.due(timedelta(minutes=59), small)

    def test_when_the_clock_was_wrong_or_somebody_edited_it(self) -> None:
        assert self.due(timedelta(days=-1))
        assert page.due(b"<!doctype html>", STATUS, DOCUMENTS, NOW)
