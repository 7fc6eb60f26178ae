"""Floor 2: desired and observed → how things are.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime

from mirror_agent import cluster, reach, rollover
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
from mirror_agent.report import (
    ISSUING,
    UNREAD,
    AuthorityStatus,
    CacheStatus,
    CertificateStatus,
    ClusterStatus,
    Failure,
    MirrorStatus,
    PullLimitStatus,
    ReachStatus,
    State,
    Status,
)
from mirror_agent.usage import Usage


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
