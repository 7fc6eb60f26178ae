"""Floor 2: index.html of the published folder, how the mirrors are and every document, for people.  Pure.

One file that asks for nothing else.  It is no document of the publication: that is the same for the same facts, this
changes with the hour.  What was drawn before tells when it must be drawn anew, so nothing has to be remembered.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from mirror_agent import __version__
from mirror_agent.report import State, Status, size

NAME = "index.html"
MARK = b"<!doctype html>\n<!-- Written by mirror-agent"  # what it begins with: another page is somebody else's
FIGURES = timedelta(minutes=10)  # figures change all the time: they are drawn anew no more often
ALIVE = timedelta(
    hours=1
)  # drawn anew at least so often: a page that is older was left behind by an agent that is gone

# Who reads which document, in the order of the page: the document's name, or the folder that it lies in.
READERS: Mapping[str, str] = {
    "ca-bundle.pem": "The CA that signs the mirrors' certificates. Every reader must trust it.",
    "additional-trusted-ca.yaml": "For a running OpenShift or OKD cluster: trust for its nodes' pulls.",
    "user-ca-bundle.yaml": "For a running or hosted cluster: trust for all that runs in it.",
    "hosts": "Names and addresses of the mirrors, for the name server or /etc/hosts.",
    "dnsmasq.conf": "The same for dnsmasq.",
    "install-config.fragment.yaml": "For the install-config.yaml of a new OpenShift or OKD cluster.",
    "agent-install-config.fragment.yaml": "The same for the agent-based installer.",
    "hypershift": "For a HostedCluster (hosted control planes).",
    "image-digest-mirror-set.yaml": "For a running OpenShift or OKD cluster, as a pair: images by digest.",
    "image-tag-mirror-set.yaml": "For a running OpenShift or OKD cluster, as a pair: images by tag.",
    "registries.conf.d": "For podman, CRI-O, skopeo and MicroShift.",
    "containerd": "For containerd: hosts.toml of this registry.",
    "rancher": "For k3s and RKE2.",
    "talos": "For Talos.",
    "docker": "For Docker: Docker Hub alone.",
}

_KINDS = {State.SERVING: "good", State.FAILED: "bad"}
_FIGURE = re.compile(rb'(<(?:span|time) class="figure">)[^<]*')
_AT = re.compile(rb'<time class="figure">([^<]*)')
_TIME = "%Y-%m-%d %H:%MZ"  # one of HTML's own forms


def due(before: bytes | None, status: Status, documents: Mapping[str, bytes], now: datetime) -> bytes | None:
    """The page, if what is there is not true any more or too old; else None.  `documents` are those that lie there."""
    page = draw(status, documents, now)
    if before is None or _FIGURE.sub(rb"\1", before) != _FIGURE.sub(rb"\1", page):
        return page
    age = now - _drawn(before)
    same = _AT.sub(b"", before) == _AT.sub(b"", page)
    return page if not timedelta(0) <= age < (ALIVE if same else FIGURES) else None


def draw(status: Status, documents: Mapping[str, bytes], now: datetime) -> bytes:
    """The page as it is to be now."""
    names = sorted(documents, key=lambda name: (_place(name), name))
    told = [
        (name, _reader(name), size(len(documents[name])), documents[name].decode(errors="replace")) for name in names
    ]
    text = _template().render(
        status=status,
        documents=told,
        at=now.astimezone(UTC).strftime(_TIME),
        version=__version__,
        style=_part("page.css"),
        script=_part("page.js"),
        policy=_policy(),
    )
    return text.encode()


def _drawn(page: bytes) -> datetime:
    """When it was drawn; long ago if it does not say."""
    match = _AT.search(page)
    try:
        return datetime.strptime(match[1].decode() if match else "", _TIME).replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _key(name: str) -> str:
    return name if name in READERS else name.partition("/")[0]


def _reader(name: str) -> str:
    return READERS.get(_key(name), "")


def _place(name: str) -> int:
    order = list(READERS)
    return order.index(_key(name)) if _key(name) in order else len(order)


@cache
def _part(name: str) -> Markup:
    """A file of this folder, which needs no escape."""
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))  # noqa: S704 - ours


@cache
def _policy() -> str:
    """Content Security Policy: this style, this script, and nothing else, from nowhere."""
    style, script = (
        "sha256-" + base64.b64encode(hashlib.sha256(_part(name).encode()).digest()).decode()
        for name in ("page.css", "page.js")
    )
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=size, day=lambda time: time[:10], kind=lambda state: _KINDS.get(state, "wait"))
    return environment.from_string(str(_part("page.html")))
