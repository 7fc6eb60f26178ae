"""Floor 1: what an upstream says of its limit on pulls, when it is asked again, and who may know who asks.  Pure.

Docker Hub tells in headers (docs.docker.com, "Docker Hub pull usage and limits"): `ratelimit-limit: 100;w=21600`,
`ratelimit-remaining: 76;w=21600`, `docker-ratelimit-source: 198.51.100.7`; to an account without a limit in none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

from mirror_agent.model import PullLimit

INTERVAL = timedelta(minutes=15)  # between two questions, whatever came of the first
LOW, ENOUGH = 10, 5  # a tenth left is low; it is so until more than a fifth is left

_COUNT = re.compile(r"\s*(\d{1,9})\s*(?:[;,].*)?", re.ASCII)
_WINDOW = re.compile(r";\s*w\s*=\s*(\d{1,9})(?!\d)", re.ASCII)
_SOURCE = re.compile(r"[0-9A-Za-z.:_-]{1,64}", re.ASCII)
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*", re.ASCII)
_TARGET = re.compile(r"[!-~]*", re.ASCII)


def due(last: PullLimit | None, now: datetime) -> bool:
    """Is it time to ask (again)?  A question of the future was asked by a clock that was wrong."""
    return last is None or not last.asked <= now < last.asked + INTERVAL


def read(limit: str | None, remaining: str | None, source: str | None, asked: datetime) -> PullLimit:
    """What the headers say; None for a header that is not there.  Raises ValueError."""
    if limit is None and remaining is None:
        return PullLimit(asked)
    numbers = [_COUNT.fullmatch(text or "") for text in (limit, remaining)]
    if not all(numbers):
        raise ValueError("its headers ratelimit-limit and ratelimit-remaining are not understood")
    allowed, left = (int(number[1]) for number in numbers if number)
    window = _WINDOW.search(limit or "") or _WINDOW.search(remaining or "")
    named = _SOURCE.fullmatch(source or "")
    return PullLimit(asked, allowed, left, int(window[1]) if window else 0, named[0] if named else "")


def noted(last: PullLimit | None, answer: PullLimit) -> PullLimit:
    """An answer, with what follows from the one before: what is low is so for a while, and while nothing is known."""
    was = last is not None and last.low
    if answer.error:
        return replace(answer, low=was)
    few = answer.limit is not None and answer.remaining * (ENOUGH if was else LOW) <= answer.limit
    return replace(answer, low=few)


# --- who asks ------------------------------------------------------------------------------------------------


class Challenge(NamedTuple):
    """How a registry wants to know who asks (RFC 9110, 11.6.1; RFC 6750; distribution's token specification)."""

    bearer: bool  # a token is wanted; else user name and password
    realm: str = ""
    service: str = ""


class Realm(NamedTuple):
    """Where tokens are given."""

    host: str
    port: int
    target: str  # path and query


def challenge(headers: Iterable[str]) -> Challenge:
    """The first challenge that can be met, of all WWW-Authenticate headers.  Raises ValueError."""
    from urllib.request import parse_http_list, parse_keqv_list  # noqa: PLC0415 - all of http.client comes with it

    for header in headers:
        scheme, _, rest = header.strip().partition(" ")
        if scheme.lower() == "basic":
            return Challenge(bearer=False)
        if scheme.lower() == "bearer":
            try:
                said = parse_keqv_list(parse_http_list(rest))
            except IndexError:  # a parameter without a value
                raise ValueError("it does not say how to ask it") from None
            return Challenge(True, said.get("realm", ""), said.get("service", ""))
    raise ValueError("it does not say how to ask it")


def realm(url: str, registry: str) -> Realm:
    """The place that a registry names for tokens.  Raises ValueError where no password should go.

    It must be https, and the registry's own host or one of its domain.  distribution, which asks with the same
    password, goes by the public suffix list instead (3.1.1, proxyauth.go): ours is never wider but for a registry
    directly below a suffix of two parts.
    """
    found = urlsplit(url)
    host, port = (found.hostname or "").rstrip("."), found.port or 443
    domain = registry.partition(".")[2]
    ours = host == registry or ("." in domain and not _is_address(registry) and f".{host}".endswith(f".{domain}"))
    if found.scheme != "https" or found.username is not None or not _HOST.fullmatch(host):
        raise ValueError("it names no https address for tokens")
    if not ours:
        raise ValueError(f"it names a host for tokens that is not of its domain: {host}")
    target = (found.path or "/") + (f"?{found.query}" if found.query else "")
    if not _TARGET.fullmatch(target):
        raise ValueError("it names no https address for tokens")
    return Realm(host, port, target)


def _is_address(host: str) -> bool:
    return not host.rpartition(".")[2].strip("0123456789")
