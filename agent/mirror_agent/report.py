"""Floor 1: how things are, as values: what status.json, the page and the metrics tell, and `status` reads.  Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from mirror_agent.model import Problem

VERSION = 1  # of the JSON forms, docs/json.md; raised when a key goes away or comes to mean something else
ISSUING = "issue-certificate"  # the step whose failure is a certificate's
UNREAD = "waits: it cannot be read"  # of a cluster


class State(StrEnum):
    """What a mirror is doing, in the order of its life."""

    PREPARING = "preparing"  # images, certificate, address, units
    STARTING = "starting"
    UNPROVED = "unproved"  # it runs; no real pull was seen yet
    SERVING = "serving"
    FAILED = "failed"  # a step failed; it is tried again


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed, and when it is tried again."""

    mirror: str
    step: str
    reason: str
    again: datetime


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What a mirror has cached, and what came of it.  Bytes, and sums since the mirror was first defined."""

    budget: int
    size: int = 0
    images: int = 0
    requests: int = 0
    hits: int = 0
    misses: int = 0
    stale: int = 0
    errors: int = 0
    sent: int = 0  # to clients
    fetched: int = 0  # from the upstream

    @property
    def hit(self) -> int | None:
        """The share of manifests and blobs that did not wait for the upstream, in percent."""
        given = self.hits + self.misses + self.stale
        return 100 * (given - self.misses) // given if given else None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """A mirror's certificate; times are ISO 8601, "" for what is not there or not known."""

    serial: str = ""  # hexadecimal, as openssl shows it
    issuer: str = ""  # who signed it
    not_before: str = ""
    not_after: str = ""
    renewal: str = ""  # when the next one is due
    served: bool = False  # the edge shows it
    error: str = ""  # why it could not be renewed


@dataclass(frozen=True, slots=True)
class AuthorityStatus:
    """The CAs; times as above."""

    stage: str = ""  # of a roll-over: see rollover.Stage; "" before the first CA
    name: str = ""
    key: str = ""
    not_after: str = ""
    rolls: str = ""  # when replacing it begins by itself
    coming: str = ""  # the name of the next CA, "" for none
    switches: str = ""  # when the next CA is used at the latest
    old: tuple[str, ...] = ()  # names of those that are still trusted
    drops: str = ""  # when the last of them is not any more


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster that is told of the mirrors; all "" where there is none."""

    place: str = ""
    state: str = ""  # "up to date", or what is waited for
    cost: str = ""  # of what is to be applied: none, reload or drain; "" for nothing
    roll_out: str = ""  # how far its nodes are
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullLimitStatus:
    """What is left of an upstream's limit on pulls, as it said when it was last asked."""

    asked: str = ""  # ISO 8601; "" before the first time
    limit: int | None = None  # pulls in a window; None: it tells of no limit, or is not known
    remaining: int | None = None
    window: int | None = None  # seconds
    source: str = ""  # whose pulls it counts: an address, or the id of an account
    low: bool = False  # nearly used up
    error: str = ""  # why it is not known

    def words(self, upstream: str) -> str:
        """For people, without the mirror's name."""
        if self.error:
            return f"what is left of the pull limit is not known: {self.error}"
        if not self.asked:
            return f"{upstream} was not asked yet what is left of the pull limit"
        if self.limit is None:
            return f"{upstream} tells of no pull limit"
        return f"{pulls(self.remaining or 0, self.limit, self.window or 0)} are left at {upstream}"


@dataclass(frozen=True, slots=True)
class ReachStatus:
    """Whether an upstream could be reached when that was last tried; nobody tries while clients get what they want."""

    tried: str = ""  # ISO 8601; "" for never
    since: str = ""  # from when on it cannot be reached; "" for it can
    error: str = ""  # why it cannot


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """One line of the table."""

    name: str
    upstream: str
    sources: tuple[str, ...]
    host: str
    address: str
    policy: str
    state: State
    published: bool
    proved: str  # the image that was pulled, "" for none
    not_after: str  # ISO 8601, "" without a certificate
    reason: str  # of what holds it back, "" for nothing
    cache: CacheStatus
    certificate: CertificateStatus = CertificateStatus()
    pull_limit: PullLimitStatus | None = None  # None: its upstream is not asked
    waits: str = ""  # for what, though nothing failed; "" for nothing
    reach: ReachStatus = ReachStatus()


def told(problem: Problem) -> dict[str, str]:
    """A problem's JSON form."""
    return {key: value for key, value in asdict(problem).items() if key not in ("message_id", "denied")}


@dataclass(frozen=True, slots=True)
class Status:
    """All that `mirror-agent status` shows."""

    at: str  # ISO 8601
    mirrors: tuple[MirrorStatus, ...]
    problems: tuple[Problem, ...]
    failures: tuple[Failure, ...]
    publication: str  # "" without a target, else "up to date" or what is waiting
    folder: str
    free: int  # bytes of the caches' file system that are free, 0 before the first look
    floor: int  # bytes of it that are to be left free
    authority: AuthorityStatus = AuthorityStatus()
    cluster: ClusterStatus = ClusterStatus()

    @property
    def line(self) -> str:
        """The one true line of `systemctl status`."""
        count = Counter(mirror.state for mirror in self.mirrors)
        parts = [f"{count[state]} {state}" for state in State if count[state]]
        line = f"{len(self.mirrors)} mirrors: " + ", ".join(parts) if self.mirrors else "no mirrors defined"
        if len(self.mirrors) == 1:
            line = line.replace("mirrors", "mirror", 1)
        if self.problems:
            line += f"; {len(self.problems)} problem{'s' if len(self.problems) > 1 else ''} in files"
        if away := sum(bool(mirror.reach.since) for mirror in self.mirrors):
            line += f"; {away} upstream{'s' if away > 1 else ''} cannot be reached"
        if self.publication not in ("", "up to date"):
            line += f"; publication {self.publication}"
        if self.cluster.state not in ("", "up to date"):
            line += f"; cluster {self.cluster.state}"
        return line

    def as_json(self) -> dict[str, Any]:
        """The JSON form, `version` first."""
        plain = asdict(self)
        plain["problems"] = [told(problem) for problem in self.problems]
        for failure in plain["failures"]:
            failure["again"] = failure["again"].isoformat()
        return {"version": VERSION, "line": self.line, **plain}


def seconds(time: str) -> float | None:
    """ISO 8601, as a status has it, in seconds since 1970; None for none."""
    return datetime.fromisoformat(time).timestamp() if time else None


def size(number: float) -> str:
    """Bytes for people, in the units that definitions are written in."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    step = 0
    while number >= 1024 and step < len(units) - 1:
        number, step = number / 1024, step + 1
    return f"{number:.0f} {units[step]}" if number >= 100 or not step else f"{number:.1f} {units[step]}"


def pulls(remaining: int, limit: int, window: int) -> str:
    """What is left of a limit on pulls, for people: "76 of 100 pulls in 6 h"."""
    unit, name = next(((n, w) for n, w in ((86400, "d"), (3600, "h"), (60, "min")) if window % n == 0), (1, "s"))
    return f"{remaining} of {limit} pulls" + (f" in {window // unit} {name}" if window else "")
