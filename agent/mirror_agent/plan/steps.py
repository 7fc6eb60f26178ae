"""The next steps, from what should exist and what is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from mirror_agent import eviction, pods, pull_limit, reach, rollover
from mirror_agent.actions import (
    ORDER,
    Action,
    AnnounceAddress,
    AskPullLimit,
    AskRenewal,
    ClaimAddress,
    CreateAuthority,
    DeleteFile,
    Evict,
    HoldFetches,
    IssueCertificate,
    MakeFolder,
    ProveMirror,
    PullImage,
    ReachUpstream,
    ReloadEdge,
    ReloadSystemd,
    Remember,
    RemoveNetwork,
    RestartUnits,
    StartUnits,
    StopUnits,
    WriteFile,
    WriteUnits,
)
from mirror_agent.certificates import judging
from mirror_agent.model import (
    Issuer,
    Mirror,
    Pod,
    Proof,
    Role,
    UnitState,
)
from mirror_agent.plan.leaves import due, rollover_view, withheld
from mirror_agent.plan.moves import holds, make_way
from mirror_agent.plan.names import service_of, unit_owner, unit_services
from mirror_agent.plan.publications import answers, publish, publish_to_cluster, withdraw
from mirror_agent.plan.values import Desired, Observed
from mirror_agent.usage import Usage


def plan(desired: Desired, observed: Observed, now: datetime) -> tuple[Action, ...]:
    """The next steps, in the order in which they are to be done.  Empty: all is as it should be."""
    steps = [*_host(desired, observed, now)]
    there: defaultdict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)  # mirrors/NAME: its files
    for path in observed.files:
        there[path.parent.parent].add(path)
    waiting = withheld(desired, observed, now)
    for mirror in desired.mirrors:
        if mirror.name in waiting:
            continue
        configs = there[desired.paths.mirror(mirror.name)]
        steps += _mirror(mirror, desired.pods[mirror.name], configs, desired, observed, now)
    steps = [*make_way(steps, desired, observed)]
    steps += _ask_limits(desired, observed, now)
    steps += _reach(desired, observed, now)
    steps += _leftovers(desired, observed)
    steps += _reload(desired, observed, steps)
    steps += _evict(desired, observed, now)
    steps += withdraw(desired, observed)
    steps += publish(desired, observed)
    steps += publish_to_cluster(desired, observed, now)
    return tuple(sorted(steps, key=lambda step: ORDER.index(type(step))))


def _host(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    """What serves all mirrors."""
    named = desired.settings.certificates.ca and not desired.authority  # and cannot be used: never another one instead
    if observed.authority is None and not observed.damaged and not named:
        yield CreateAuthority("", "no CA yet")
    if observed.rollover is not None and (view := rollover_view(desired, observed)):
        yield from rollover.steps(view, desired.settings.certificates, now)
    if desired.leases != observed.leases or desired.accepted != observed.accepted:
        yield Remember("", "definitions changed", desired.leases, desired.accepted)
    for image in sorted({image for pod in desired.pods.values() for image in pod.images} - observed.images):
        yield PullImage("", "not on this host", image)
    if desired.mirrors and observed.files.get(desired.network.unit.path) != desired.network.unit:
        yield WriteUnits("", "the mirrors' LAN", (desired.network.unit,))


def _mirror(
    mirror: Mirror, pod: Pod, there: Set[PurePosixPath], desired: Desired, observed: Observed, now: datetime
) -> list[Action]:
    """The next steps of one mirror: claim, then prepare, then write units, then run, then announce and prove.

    A mirror whose new address is taken runs on as it is: nothing of it is touched before the claim has succeeded.
    """
    network = desired.network.unit
    startable = observed.images.issuperset(pod.images) and observed.files.get(network.path) == network
    if observed.authority is None and not observed.damaged:
        return []
    if mirror.address not in observed.claimed and not holds(mirror, observed):
        return [ClaimAddress(mirror.name, "not held yet", mirror.address)] if startable else []
    prepare = [*_prepare(mirror, pod, there, desired, observed, now)]
    changed = tuple(unit for unit in pod.units if observed.files.get(unit.path) != unit)
    if changed and startable:
        new = not any(unit.path in observed.files for unit in pod.units)
        return [*prepare, WriteUnits(mirror.name, "new" if new else "changed", changed)]
    needed = any(not step.alone for step in prepare)
    if needed or changed or not all(_loaded(name, observed) for name in unit_services(pod)):
        return prepare
    run = _run(mirror, pod, observed)
    return [*prepare, *(step for step in run if startable or not isinstance(step, StartUnits | RestartUnits))]


def _prepare(
    mirror: Mirror, pod: Pod, there: Set[PurePosixPath], desired: Desired, observed: Observed, now: datetime
) -> Iterator[Action]:
    """Folders, configuration and certificate: harmless to what runs, needed by what will."""
    for folder in pod.folders:
        if observed.folders.get(folder.path) != folder:
            yield MakeFolder(mirror.name, "missing, or not as it should be", folder)
    secret = desired.secrets.get(mirror.name)
    wanted = {file.path: file for file in (*pod.configs, *((secret,) if secret else ()))}
    for path, file in wanted.items():
        if observed.files.get(path) != file:
            yield WriteFile(mirror.name, "changed" if path in observed.files else "new", file)
    for path in sorted(there - wanted.keys()):
        yield DeleteFile(mirror.name, "no longer used", path)
    certificate = observed.certificates.get(mirror.name)
    if why := due(mirror, desired, observed, now):
        spare = certificate is not None and judging.serves(certificate, mirror, now)
        yield IssueCertificate(mirror.name, why, certificate.not_after if certificate else None, spare)
    elif judging.issuer_of(mirror, desired.settings.certificates) == Issuer.ACME:
        suggestion = observed.suggested.get(mirror.name)
        if certificate and judging.to_be_asked(certificate, suggestion, now):
            yield AskRenewal(
                mirror.name, "some hours ago", certificate.serial, suggestion.asked if suggestion else None
            )


def _loaded(service: str, observed: Observed) -> bool:
    state = observed.units.get(service, UnitState())
    return state.load == "loaded" and not state.need_reload


def _run(mirror: Mirror, pod: Pod, observed: Observed) -> Iterator[Action]:
    """Bring what runs to what should run, disturbing as little as possible: start, restart, reload, or nothing."""
    name = mirror.name
    services = unit_services(pod)
    states = [observed.units[service] for service in services]
    if any(state.active in ("activating", "deactivating", "reloading") for state in states):
        return  # systemd is at it; its signal, or the next look, tells how it ended
    infra = observed.container(name, None)
    if infra and infra.pod_hash != pod.pod_hash and states[0].active == "active":
        yield RestartUnits(name, "its pod changed", (pods.pod_service(name),))
        return
    stopped = tuple(s for s, state in zip(services, states, strict=True) if state.active != "active")
    if stopped:
        yield StartUnits(name, "not running", stopped)
        return
    hashes = dict(pod.container_hashes)
    running = {role: observed.container(name, role) for role in Role}
    if infra is None or any(c is None for c in running.values()):
        return  # between two states: podman does not show yet what systemd calls active
    drifted = tuple(pods.container_service(name, role) for role, c in running.items() if c and c.hash != hashes[role])
    if drifted:
        yield RestartUnits(name, "its configuration changed", drifted)
        return
    unit, container = pods.container_service(name, Role.EDGE), running[Role.EDGE]
    if container and container.id in observed.wounded:
        # what it was fetching stays locked in memory that all share: who asks for it would wait for an hour
        yield RestartUnits(name, "one of its workers was killed", (unit,))
        return
    edge, certificate = observed.edges.get(name), observed.certificates.get(name)
    if edge is None or certificate is None:
        return
    if (edge.config, edge.serial) != (pod.edge_config, certificate.serial):
        what = "configuration" if edge.config != pod.edge_config else "certificate"
        yield ReloadEdge(name, f"new {what}", unit, pod.edge_config, certificate.serial)
        return
    if infra.start not in observed.announced:
        yield AnnounceAddress(name, "its pod or the agent was started", infra.start)
    proof = observed.proofs.get(name)
    # what is cached costs the upstream nothing, but proves nothing of a remote that it did not come from
    choice = (observed.cached.get(name), mirror.probe)
    image = next(filter(None, reversed(choice) if proof and proof.remote != mirror.remote else choice), None)
    if image and not (proof and proof.covers(mirror)) and not observed.damaged:  # no CA to trust it by
        yield ProveMirror(name, _unproved(mirror, proof), image)


def _unproved(mirror: Mirror, proof: Proof | None) -> str:
    """Why a mirror is to be proved.  One whose proof does not fit any more stays published as it was until then."""
    if proof is None:
        return "not proved by a real pull yet"
    parts = {"host": proof.host != mirror.host, "address": proof.address != mirror.address}
    changed = [part for part, differs in {**parts, "upstream": proof.remote != mirror.remote}.items() if differs]
    what = " and its ".join(changed)
    return f"its {what} changed since it was proved; it stays published as it was until it is again"


def _ask_limits(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    """Only of mirrors that serve: what asks an upstream goes the mirror's own way to it."""
    for mirror in desired.mirrors:
        last = observed.pull_limits.get(mirror.name)
        if mirror.pull_limit and _serves(mirror, observed) and pull_limit.due(last, now):
            yield AskPullLimit(mirror.name, "some time ago" if last else "not asked yet", last.asked if last else None)


def _serves(mirror: Mirror, observed: Observed) -> bool:
    proof = observed.proofs.get(mirror.name)
    return proof is not None and proof.covers(mirror) and answers(mirror.name, observed)


def _reach(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    """Only where somebody wanted something of an upstream that did not come, and until it is back."""
    for mirror in desired.mirrors:
        last, limit = reach.known(observed.reaches.get(mirror.name), mirror), observed.pull_limits.get(mirror.name)
        unasked = limit.asked if mirror.pull_limit and limit and limit.error else None
        doubt = max(filter(None, (observed.doubts.get(mirror.name), unasked)), default=None)
        if _serves(mirror, observed) and reach.due(last, doubt, now):
            why = "it could not" if last and last.since else "what was asked of it did not come"
            yield ReachUpstream(mirror.name, why, last.tried if last else None, doubt)


def runs(pod: Pod, observed: Observed) -> bool:
    """Does a mirror run with what it should, to the last file?"""
    edge, infra = observed.edges.get(pod.mirror), observed.container(pod.mirror, None)
    hashes = {role: found.hash for role in Role if (found := observed.container(pod.mirror, role))}
    if edge is None or infra is None or hashes != dict(pod.container_hashes):
        return False
    return (infra.pod_hash, edge.config) == (pod.pod_hash, pod.edge_config)


def _leftovers(desired: Desired, observed: Observed) -> Iterator[Action]:
    """Units, files and networks of ours that nothing wants any more.  Stop first, delete when stopped."""
    wanted = {unit.path for pod in desired.pods.values() for unit in pod.units}
    if desired.mirrors:
        wanted.add(desired.network.unit.path)
    units = {path: file for path, file in observed.files.items() if path.parent == desired.paths.units}
    used = {line for file in units.values() for line in file.content.decode(errors="replace").splitlines()}
    # a pod that has not moved yet, or has lost its file, runs on a network that no file names any more
    hashes = {name: pod.pod_hash for name, pod in desired.pods.items()}
    moving = any(hashes.get(c.mirror) != c.pod_hash for c in observed.containers)
    for path, file in sorted(units.items()):
        owner = unit_owner(file)
        in_use = path.suffix == ".network" and (moving or f"Network={path.name}" in used)
        ours = owner or path.match("mirror-agent-*.network")  # what an admin put there stays
        if path in wanted or owner in desired.frozen or in_use or not ours:
            continue
        service = service_of(path)
        state = observed.units.get(service, UnitState())
        if state.active in ("inactive", "failed"):
            yield DeleteFile(owner, "its definition is gone", path)
        else:
            yield StopUnits(owner, "its definition is gone", (service,))
    known = {service_of(path) for path in units}
    for name in sorted({c.mirror for c in observed.containers} - desired.pods.keys() - desired.frozen):
        if pods.pod_service(name) not in known:  # somebody has deleted the file of a pod that runs
            yield StopUnits(name, "its definition is gone", (pods.pod_service(name),))
    kept = known | {service_of(path) for path in wanted}
    for network in sorted(observed.networks):
        if f"{network}-network.service" not in kept:
            yield RemoveNetwork("", "no mirror uses it", network)


def _reload(desired: Desired, observed: Observed, steps: list[Action]) -> Iterator[Action]:
    """One daemon-reload when a unit file was or is to be written or deleted."""
    stale = {
        service
        for pod in desired.pods.values()
        if all(unit.path in observed.files for unit in pod.units)
        for service in unit_services(pod)
        if not _loaded(service, observed)
    }
    written = {service_of(file.path) for step in steps if isinstance(step, WriteUnits) for file in step.files}
    gone = {service_of(s.path) for s in steps if isinstance(s, DeleteFile) and s.path.parent == desired.paths.units}
    if units := tuple(sorted(stale | written | gone)):
        yield ReloadSystemd("", "unit files changed", units)


def _evict(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    """Keep each mirror to its budget and the host to its floor of free space."""
    caches = {
        mirror.name: eviction.Cached(
            observed.stores[mirror.name],
            mirror.budget,
            observed.usage.get(mirror.name, Usage()).used,
            observed.kept.get(mirror.name, ()),
            timedelta(seconds=mirror.keep) if mirror.keep else None,
        )
        for mirror in desired.mirrors
        if mirror.name in observed.stores
    }
    floor, chosen = desired.settings.cache.free, eviction.choose(caches, desired.settings.cache.free, now)
    for name, leaving in chosen.items():
        cached = caches[name]
        over = cached.store.size > cached.budget
        short = min(each.store.free for each in caches.values()) < floor
        why = "over its budget" if over else "the host runs out of space" if short else "not used for its keep time"
        yield Evict(name, why, leaving)
    freed = sum(leaving.size for leaving in chosen.values())
    for name, cached in caches.items():
        free = cached.store.free + freed
        if free < floor // 4 and name not in observed.held:
            yield HoldFetches(name, "the disk is full, and nothing more may leave it", True)
        elif free >= floor // 2 and name in observed.held:
            yield HoldFetches(name, "there is space again", False)
