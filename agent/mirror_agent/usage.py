"""Floor 1: what clients did, from the lines of the edges' logs.  Pure.

The edge logs one JSON object a request (quadlets/nginx.conf, log_format).  From it come the last use of each image,
which eviction goes by, and the counters that status and metrics show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from mirror_agent.model import ImageName

_MANIFEST = re.compile(r"/v2/(?P<repository>[a-z0-9._/-]+)/manifests/[^/]+")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# as quadlets/nginx.conf has them: both become a path
_REPOSITORY = r"[a-z0-9]+(?:(?:/|\.|_|__|-+)[a-z0-9]+)*"
_TAG = re.compile(rf"/v2/(?P<repository>{_REPOSITORY})/manifests/(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})")
_SIGNATURE = re.compile(r"sha256-[0-9a-f]{64}")  # asked for with each image, and seldom there
_NUMBER = re.compile(r"\d{1,18}")  # of $upstream_bytes_received, one for each try: "0, 12 : 30"
_CONTENT = re.compile(r"/(manifests|blobs)/[^/]+$")
_KILLED = re.compile(r" worker process \d+ exited on signal \d+")  # nginx: src/os/unix/ngx_process.c


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the mirror was first defined."""

    requests: int = 0
    hits: int = 0  # answered from what is cached
    misses: int = 0  # the upstream was asked
    stale: int = 0  # answered with a tag older than its freshness: the upstream is being asked, or does not answer
    errors: int = 0  # 5xx
    sent: int = 0  # bytes to clients
    fetched: int = 0  # bytes from the upstream, as the registry handed them on

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Usage:
    """What clients did with one mirror."""

    used: Mapping[ImageName, datetime] = field(default_factory=dict)  # last use, to the minute
    counters: Counters = Counters()

    def only(self, images: Collection[ImageName], since: datetime) -> Usage:
        """Without images that are not there any more; what was used after `since` may be on its way."""
        kept = {image: at for image, at in self.used.items() if image in images or at >= since}
        return Usage(kept, self.counters)


def is_of_a_killed_worker(line: str) -> bool:
    """Whether nginx says that one of its workers ended without being asked: out of memory, or by a crash."""
    return not line.startswith("{") and bool(_KILLED.search(line))


def account(usage: Usage, lines: Iterable[tuple[datetime, str]]) -> Usage:
    """What was known, and these lines of the edge's log with their times.  What is no line of it is passed over."""
    used, counters = dict(usage.used), usage.counters
    for at, request in _requests(lines):
        counters += _count(request)
        if image := _image(request):
            used[image] = max(used.get(image, at), at).replace(second=0, microsecond=0)
    return Usage(used, counters)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What clients wanted that the upstream had to be asked for."""

    tags: Mapping[tuple[str, str], datetime]  # (repository, tag) that were given and not fresh: when last asked for
    missed: datetime | None  # when something else was last not given


def wanted(lines: Iterable[tuple[datetime, str]]) -> Wanted:
    """From lines of the edge's log with their times."""
    tags: dict[tuple[str, str], datetime] = {}
    missed: list[datetime] = []
    for at, request in _requests(lines):
        uri, status = str(request.get("uri", "")).partition("?")[0], request["status"]
        if (tag := _TAG.fullmatch(uri)) and status < 400 and request.get("cache") in ("EXPIRED", "STALE", "UPDATING"):
            began, name = at - _duration(request), (tag["repository"], tag["tag"])
            tags[name] = max(tags.get(name, began), began)
        asked = str(request.get("up_status", "")) not in ("", "-")  # not where the disk is full
        absent = tag and status == 404 and not _SIGNATURE.match(tag["tag"])
        if asked and (absent or (status >= 500 and _CONTENT.search(uri))):
            missed.append(at)
    return Wanted(tags, max(missed, default=None))


def _duration(request: Mapping[str, Any]) -> timedelta:
    seconds = request.get("seconds")
    return timedelta(seconds=seconds if isinstance(seconds, int | float) and 0 <= seconds < 86400 else 0)


def _requests(lines: Iterable[tuple[datetime, str]]) -> Iterator[tuple[datetime, Mapping[str, Any]]]:
    for at, line in lines:
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if isinstance(request, dict) and type(request.get("status")) is int:
            yield at, request


def _count(request: Mapping[str, Any]) -> Counters:
    cache, status = str(request.get("cache", "")), request["status"]
    content = status < 400 and _CONTENT.search(str(request.get("uri", ""))) is not None
    sent, up_bytes = request.get("sent"), request.get("up_bytes")
    return Counters(
        requests=1,
        hits=int(content and cache in ("", "HIT")),  # "": a blob, sent as it lies in the store
        misses=int(content and cache in ("MISS", "EXPIRED")),
        stale=int(content and cache in ("STALE", "UPDATING")),
        errors=int(status >= 500),
        sent=sent if isinstance(sent, int) else 0,
        fetched=sum(map(int, _NUMBER.findall(up_bytes))) if isinstance(up_bytes, str) else 0,
    )


def _image(request: Mapping[str, Any]) -> ImageName | None:
    """The manifest that was asked for and given, by the digest that the answer told."""
    match = _MANIFEST.fullmatch(str(request.get("uri", "")))
    digest = str(request.get("digest", ""))
    if not match or not _DIGEST.fullmatch(digest) or not 200 <= int(request["status"]) < 400:
        return None
    return match["repository"], digest
