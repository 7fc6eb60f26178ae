"""Floor 2: how things are, in words and values for people and machines.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from mirror_agent import cluster, pull_limit, reach, rollover
from mirror_agent.actions import Action, ProveMirror, Publish
from mirror_agent.certificates import judging
from mirror_agent.model import Fill, Mirror, Problem, UnitState
from mirror_agent.plan import (
    Desired,
    Observed,
    answers,
    cluster_outcome,
    in_doubt,
    rollover_view,
    unit_services,
    waits_for,
)
from mirror_agent.usage import Usage

ISSUING = "issue-certificate"  # the step whose failure is a certificate's
UNREAD = "waits: it cannot be read"  # of a cluster
VERSION = 1  # of the JSON forms, docs/json.md; raised when a key goes away or comes to mean something else


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
        return f"{pull_limit.words(self.remaining or 0, self.limit, self.window or 0)} are left at {upstream}"


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


def describe(
    desired: Desired,
    observed: Observed,
    steps: Iterable[Action],
    failures: Mapping[str, Failure],
    problems: Iterable[Problem],
    now: datetime,
) -> Status:
    """How things are.  `steps` is what plan() would do next, `failures` the mirrors' last ones by name."""
    open_steps = tuple(steps)
    rows = tuple(_mirror(each, desired, observed, open_steps, failures) for each in desired.mirrors)
    return Status(
        at=now.isoformat(timespec="seconds"),
        mirrors=rows,
        problems=tuple(problems),
        failures=tuple(failures.values()),
        publication=_publication(desired, observed, open_steps),
        folder=str(folder.path) if (folder := desired.settings.publish.folder) else "",
        authority=_authority(desired, observed),
        cluster=_cluster(desired, observed, now),
        free=min((fill.free for fill in observed.fills.values()), default=0),
        floor=desired.settings.cache.free,
    )


def _mirror(
    mirror: Mirror,
    desired: Desired,
    observed: Observed,
    steps: tuple[Action, ...],
    failures: Mapping[str, Failure],
) -> MirrorStatus:
    failure = failures.get(mirror.name)
    certificate = observed.certificates.get(mirror.name)
    proof = observed.proofs.get(mirror.name)
    return MirrorStatus(
        name=mirror.name,
        upstream=mirror.upstream,
        sources=mirror.sources,
        host=mirror.host,
        address=str(mirror.address),
        policy=mirror.policy.value,
        state=_state(mirror, desired, observed, steps, failure),
        published=proof is not None and _is_published(proof.host, desired, observed),
        proved=proof.image if proof else "",
        certificate=_certificate(mirror, observed, failures),
        not_after=_iso(certificate.not_after if certificate else None),
        reason=failure.reason if failure else "",
        waits=_waits(mirror, observed),
        cache=_cache(mirror, observed),
        pull_limit=_pull_limit(mirror, observed),
        reach=_reach(mirror, observed),
    )


def _waits(mirror: Mirror, observed: Observed) -> str:
    other = waits_for(mirror, observed)
    return f"until mirror {other} has left {mirror.address}" if other else ""


def _is_published(host: str, desired: Desired, observed: Observed) -> bool:
    """Does a target say this host name at the moment?"""
    settings, state = desired.settings.publish.cluster, observed.cluster
    told = cluster.hosts(settings, state) if settings and state else ()
    documents = (content for target in observed.published.values() for content in target.values())
    return any(host.encode() in content.split() for content in documents) or host in told


def _certificate(mirror: Mirror, observed: Observed, failures: Mapping[str, Failure]) -> CertificateStatus:
    found, edge = observed.certificates.get(mirror.name), observed.edges.get(mirror.name)
    failure = failures.get(mirror.name)
    error = failure.reason if failure and failure.step == ISSUING else ""
    if found is None:
        return CertificateStatus(error=error)
    return CertificateStatus(
        serial=f"{found.serial:x}",
        issuer=found.issuer,
        not_before=_iso(found.not_before),
        not_after=_iso(found.not_after),
        renewal=_iso(judging.next_due(found)),
        served=edge is not None and edge.serial == found.serial,
        error=error,
    )


def _pull_limit(mirror: Mirror, observed: Observed) -> PullLimitStatus | None:
    if mirror.pull_limit is None:
        return None
    if (said := observed.pull_limits.get(mirror.name)) is None:
        return PullLimitStatus()
    known = said.limit is not None
    return PullLimitStatus(
        asked=_iso(said.asked),
        limit=said.limit,
        remaining=said.remaining if known else None,
        window=said.window if known and said.window else None,
        source=said.source,
        low=said.low,
        error=said.error,
    )


def _reach(mirror: Mirror, observed: Observed) -> ReachStatus:
    said = reach.known(observed.reaches.get(mirror.name), mirror)
    return ReachStatus(_iso(said.tried), _iso(said.since), said.error) if said else ReachStatus()


def _authority(desired: Desired, observed: Observed) -> AuthorityStatus:
    view, settings = rollover_view(desired, observed), desired.settings.certificates
    if view is None:
        return AuthorityStatus()
    known = view.known
    return AuthorityStatus(
        stage=view.stage,
        name=known.current.facts.subject,
        key=known.current.key,
        not_after=_iso(known.current.facts.not_after),
        rolls=_iso(rollover.begins_at(known.current, settings)),
        coming=known.coming.facts.subject if known.coming else "",
        switches=_iso(rollover.switches_at(view, settings)),
        old=tuple(old.facts.subject for old in known.old),
        drops=_iso(max((rollover.drops_at(old, view.rollover) for old in known.old), default=None)),
    )


def _iso(time: datetime | None) -> str:
    return time.isoformat() if time else ""


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


def _cache(mirror: Mirror, observed: Observed) -> CacheStatus:
    fill = observed.fills.get(mirror.name, Fill(0, 0, 0))
    counters = observed.usage.get(mirror.name, Usage()).counters
    return CacheStatus(mirror.budget, fill.size, fill.images, **asdict(counters))


def _state(
    mirror: Mirror, desired: Desired, observed: Observed, steps: tuple[Action, ...], failure: Failure | None
) -> State:
    """A mirror that serves is serving, also while something about it waits; `reason` tells what."""
    proof = observed.proofs.get(mirror.name)
    runs = answers(mirror.name, observed)
    if runs and proof and proof.covers(mirror):
        return State.SERVING
    if failure:
        return State.FAILED
    if runs:
        return State.UNPROVED
    if any(step.mirror == mirror.name and not isinstance(step, ProveMirror) for step in steps):
        return State.PREPARING
    units = (observed.units.get(service, UnitState()) for service in unit_services(desired.pods[mirror.name]))
    started = all(unit.load == "loaded" for unit in units)
    return State.STARTING if started else State.PREPARING


def _publication(desired: Desired, observed: Observed, steps: tuple[Action, ...]) -> str:
    folder = desired.settings.publish.folder
    if folder is None:
        return ""
    if names := in_doubt(desired, observed):
        return f"waits: {', '.join(names)} would be missing (mend the definition, or remove it)"
    if observed.damaged:
        return "waits: the CA is damaged"
    if observed.authority is None:
        return "waits: there is no CA yet"
    if not observed.published:
        return f"waits: {folder.path} cannot be reached"
    waiting = [step for step in steps if isinstance(step, Publish)]
    if not waiting:
        return "up to date"
    names = waiting[0].changed
    return f"waits: {', '.join(names[:2])}" + (f" and {len(names) - 2} more" if names[2:] else "")


def _cluster(desired: Desired, observed: Observed, now: datetime) -> ClusterStatus:
    settings = desired.settings.publish.cluster
    if settings is None:
        return ClusterStatus()
    place, outcome = cluster.place(settings), cluster_outcome(desired, observed)
    if names := in_doubt(desired, observed):
        return ClusterStatus(place, f"waits: {', '.join(names)} would be missing (mend the definition, or remove it)")
    if observed.cluster is None or outcome is None:
        return ClusterStatus(place, UNREAD)
    roll_out = cluster.roll_out(observed.cluster.pools)
    if outcome.refused:
        return ClusterStatus(place, f"refused: {outcome.refused}", "", roll_out, outcome.notes)
    cost = outcome.cost.value if outcome.mirrors else ""
    changes = outcome.trust + outcome.mirrors
    waits = f"waits: {', '.join(map(str, changes))}" if changes else "up to date"
    held = outcome.held(settings, now.astimezone())
    return ClusterStatus(place, held or waits, cost, roll_out, outcome.notes)
