"""The page in a real browser: readable, copies the exact bytes also without HTTPS, asks for nothing, runs nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from simulator import GHCR, QUAY, Host, Written, settle
from test_page import EVIL, hostile
from test_status import described

from browser.chromium import SITE, Browser, browser
from mirror_agent import config, page
from mirror_agent.config.settings import parse_settings
from mirror_agent.model import Candidate
from mirror_agent.report import Status

BOTH = Written({"quay": QUAY, "ghcr": GHCR})
SCHEMES = ("light", "dark")
_WIDTHS = {"phone": 360, "tablet": 820, "small": 1160, "desktop": 1280}

# Contrast of each text with what lies behind it (WCAG 2.2, 1.4.3), of those that have less than 4.5.
_CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map(
  (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (element) => { for (let e = element; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c.slice(0, 3); }
  return [255, 255, 255]; };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.matches("script, style")) continue;
  const [a, b] = [parse(getComputedStyle(element).color).slice(0, 3), behind(element)].map(light);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push(walker.currentNode.data.trim() + " " + ratio.toFixed(2));
}
return low;
"""


# Remembers which buttons have said so: they do for two seconds.
_WATCH = """
window.copied = new Set();
for (const button of document.querySelectorAll("button[data-copy]")) {
  const look = () => { if (button.textContent === "Copied") window.copied.add(button.dataset.copy); };
  new MutationObserver(look).observe(button, {childList: true, characterData: true, subtree: true});
}
"""
_COPIED = "return window.copied.has(arguments[0]);"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as window:
        yield window


class Site:
    """The published folder on a plain web server, as most have it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        handler = partial(_Handler, directory=str(root))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://{SITE}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, status: Status, documents: dict[str, bytes], at: datetime | None = None) -> None:
        for name, content in {**documents, page.NAME: page.draw(status, documents, at or datetime.now(UTC))}.items():
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_bytes(content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    yield found
    found.close()


@pytest.fixture
def both(site: Site) -> Site:
    """Two mirrors that serve, and all their documents."""
    host = Host()
    settle(host, BOTH)
    site.publish(described(host, BOTH), host.published)
    return site


@pytest.fixture
def opened(chromium: Browser, both: Site) -> Browser:
    chromium.said()
    chromium.asked()
    chromium.open(both.url)
    return chromium


def test_it_shows_the_mirrors_asks_for_nothing_and_has_nothing_to_complain_of(opened: Browser, both: Site) -> None:
    rows = opened.run("return [...document.querySelectorAll('tbody tr')].map((row) => row.innerText)")
    for row, facts in zip(rows, (("ghcr", "10.0.0.8", "serving"), ("quay", "10.0.0.4", "serving")), strict=True):
        for fact in facts:
            assert fact in row
    assert opened.asked() == [both.url]
    assert opened.said() == []
    assert opened.run("return document.getElementById('old').hidden")


@pytest.mark.parametrize("where", ["http", "file"])
def test_copying_gives_the_exact_bytes(chromium: Browser, both: Site, where: str) -> None:
    chromium.open(both.url if where == "http" else (both.root / page.NAME).as_uri())
    assert chromium.run("return isSecureContext") == (where == "file")
    names = chromium.run("return [...document.querySelectorAll('a[download]')].map((a) => a.getAttribute('href'))")
    assert len(names) > 5
    chromium.run(_WATCH)
    for number, name in enumerate(names, 1):
        chromium.click(f"[data-copy=text-{number}]")
        chromium.until(partial(chromium.run, _COPIED, f"text-{number}"), f"{name} to be copied")
        assert chromium.pasted().encode() == (both.root / name).read_bytes(), name
    assert chromium.said() == []


def test_a_document_can_be_downloaded(opened: Browser, both: Site, tmp_path: Path) -> None:
    got = opened.run("const all = [...document.querySelectorAll('a[download]')].map((a) => a.href); return all")
    assert len(got) == len([p for p in tmp_path.rglob("*") if p.is_file()]) - 1
    assert all((tmp_path / url.removeprefix(both.url)).is_file() for url in got)


@pytest.mark.parametrize("width", _WIDTHS)
@pytest.mark.parametrize("what", ["usual", "hostile"])
def test_nothing_is_wider_than_the_screen(opened: Browser, both: Site, width: str, what: str) -> None:
    if what == "hostile":
        both.publish(hostile(), {})
        opened.open(both.url)
    opened.size(_WIDTHS[width], 800, phone=width == "phone")
    opened.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert opened.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    small = opened.run(
        "return [...document.querySelectorAll('button, .button')].filter((b) => b.offsetHeight < 24).length"
    )
    assert small == 0, "too small for a finger (WCAG 2.2, 2.5.8)"


@pytest.mark.parametrize("width", _WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_stands_out(chromium: Browser, site: Site, scheme: str, width: str) -> None:
    site.publish(hostile(), {"hosts": b"10.0.0.4  quay.mirror.lan\n"}, datetime.now(UTC) - timedelta(days=1))
    chromium.size(_WIDTHS[width], 800)
    chromium.colours(scheme)
    chromium.open(site.url)
    chromium.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert chromium.run(_CONTRAST) == []
    dark = chromium.run("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_a_reader_that_hears_it_finds_a_table_on_every_screen(opened: Browser) -> None:
    for width in _WIDTHS.values():
        opened.size(width, 800)
        tree = opened.cdp("Accessibility.getFullAXTree")["nodes"]
        roles = [node["role"]["value"] for node in tree if not node["ignored"]]
        assert roles.count("table") == 1
        assert roles.count("rowheader") == 2
        assert roles.count("cell") == 12
        names = {node["name"]["value"] for node in tree if not node["ignored"] and node["role"]["value"] == "button"}
        assert {"Copy hosts", "Copy ca-bundle.pem"} <= names


def test_a_page_that_was_left_behind_says_so(chromium: Browser, site: Site) -> None:
    host = Host()
    settle(host, BOTH)
    site.publish(described(host, BOTH), host.published, datetime.now(UTC) - timedelta(hours=3))
    chromium.open(site.url)
    assert not chromium.run("return document.getElementById('old').hidden")


def bad_definitions() -> Status:
    """Files as somebody may drop them: what the agent says of them quotes them."""
    settings, _ = parse_settings("agent.toml", BOTH.settings.encode())
    assert settings
    texts = {
        f"{EVIL.replace('/', '')}.toml": 'source = "quay.io"',
        "a.toml": f"source = '''{EVIL}'''",
        "b.toml": """source = "ghcr.io"\nhost = "<b onmouseover=alert(1)>"\n"<script>alert(1)</script>" = 1""",
        "c.toml": 'source = "<svg/onload=alert(1)>"',
    }
    files = [Candidate(f"/etc/mirror-agent.d/{name}", "regular", content=text.encode()) for name, text in texts.items()]
    problems = config.select(files, {}, settings).problems
    assert "<img src=x onerror=alert(1)>" in "".join(map(str, problems)), "nothing hostile comes through"
    host = Host()
    settle(host, BOTH)
    return described(host, BOTH, problems=problems)


@pytest.mark.parametrize("made", [bad_definitions, hostile])
def test_what_definitions_say_never_runs(chromium: Browser, site: Site, made: object) -> None:
    assert callable(made)
    status = replace(made(), publication=EVIL)
    site.publish(status, {"hosts": f"{EVIL}\n".encode()})
    chromium.said()
    chromium.asked()
    chromium.open(site.url)
    assert chromium.run("return document.querySelectorAll('img, svg, b[onmouseover], script').length") == 1  # ours
    assert EVIL in chromium.run("return document.body.textContent")
    assert chromium.said() == []
    assert chromium.asked() == [site.url]
    chromium.run(_WATCH)
    chromium.click("[data-copy=text-1]")
    chromium.until(partial(chromium.run, _COPIED, "text-1"), "it to be copied")
    assert chromium.pasted() == f"{EVIL}\n"
    assert chromium.run("return document.querySelectorAll('img, svg').length") == 0
    # and what got in all the same would not run: the policy of the page stops it
    chromium.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    said: list[str] = []

    def refused() -> bool:
        said.extend(chromium.said())
        return any("Content Security Policy" in line for line in said)

    chromium.until(refused, "the policy to refuse it")
    assert chromium.run("return window.hacked") is None


def test_without_any_mirror_it_is_a_page_all_the_same(chromium: Browser, site: Site) -> None:
    site.publish(described(Host(), Written({})), {})
    chromium.open(site.url)
    assert "None is defined yet." in chromium.run("return document.body.innerText")
    assert chromium.said() == []
