"""Floor 2: what should exist, and what is to be done about it.  Pure: facts in, values out.

compose() says what should exist.  plan() compares it with what is there and returns the next steps, never more than
are safe to do on what was observed: a unit is written when its images are there, started when it is loaded, published
when it was proved.  The loop observes again after each round, so that every step may fail, be killed or be repeated.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import PurePosixPath

from mirror_agent import certificates, cluster, eviction, formats, messages, pods, rollover
from mirror_agent.actions import (
    ORDER,
    Action,
    AnnounceAddress,
    AskRenewal,
    ClaimAddress,
    CreateAuthority,
    DeleteFile,
    Evict,
    HoldFetches,
    IssueCertificate,
    MakeFolder,
    ProveMirror,
    Publish,
    PublishToCluster,
    PullImage,
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
from mirror_agent.certificates import Pair
from mirror_agent.model import (
    Authorities,
    Authority,
    Certificate,
    ClusterState,
    ContainerState,
    Cost,
    Document,
    EdgeState,
    File,
    Fill,
    Folder,
    ImageName,
    Issuer,
    Mirror,
    Network,
    Paths,
    Pod,
    Problem,
    Proof,
    Publication,
    Role,
    Rollover,
    Settings,
    Store,
    Suggestion,
    Trouble,
    UnitState,
)
from mirror_agent.usage import Usage

# --- what should exist ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Desired:
    """All that should exist on the host; the publication follows from it and from the proofs."""

    settings: Settings
    paths: Paths
    network: Network
    mirrors: tuple[Mirror, ...]
    pods: Mapping[str, Pod]  # by mirror
    secrets: Mapping[str, File]  # by mirror: the upstream's credentials, as the registry reads them
    leases: Mapping[str, IPv4Address]
    accepted: Mapping[str, bytes]  # by mirror: the text of the definition that is in force
    frozen: frozenset[str] = frozenset()  # mirrors, none of the above, that are left as they are: in doubt
    problems: tuple[Problem, ...] = ()  # of definitions that could not be rendered
    leaves: Mapping[str, Pair] = field(default_factory=dict)  # by mirror: certificates that an admin brought
    authority: Pair | None = None  # the CA that an admin brought
    trust: tuple[bytes, ...] = ()  # PEM that readers must trust for what the admin brought


def compose(
    settings: Settings,
    mirrors: Collection[Mirror],
    *,
    paths: Paths,
    templates: pods.Templates,
    podman: tuple[int, int],
    leases: Mapping[str, IPv4Address],
    accepted: Mapping[str, bytes] | None = None,
    secrets: Mapping[str, File] | None = None,
    frozen: Iterable[str] = (),
    leaves: Mapping[str, Pair] | None = None,
    authority: Pair | None = None,
    trust: tuple[bytes, ...] = (),
) -> Desired:
    """What should exist for these mirrors.  `podman` is (major, minor): it decides which quadlet keys may be used.

    Raises Trouble for settings that cannot be rendered; a mirror that cannot be is left as it is, with a problem.
    """
    network = pods.render_network(settings, templates, paths, podman)
    rendered: dict[str, Pod] = {}
    problems: list[Problem] = []
    for mirror in mirrors:
        try:
            rendered[mirror.name] = pods.render_pod(mirror, settings, network, paths, templates, podman)
        except Trouble as trouble:
            problems.append(Problem(f"{mirror.name}.toml", trouble.where, trouble.reason, trouble.hint, mirror.name))
    return Desired(
        settings=settings,
        paths=paths,
        network=network,
        mirrors=tuple(sorted((m for m in mirrors if m.name in rendered), key=lambda mirror: mirror.name)),
        pods=rendered,
        secrets=secrets or {},
        leases=leases,
        accepted=accepted or {},
        frozen=(frozenset(frozen) | {problem.mirror for problem in problems}) - rendered.keys(),
        problems=tuple(problems),
        leaves=leaves or {},
        authority=authority,
        trust=trust,
    )


# --- what is there -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observed:
    """What observe.py found.  What could not be looked at is empty, and so is asked for again."""

    files: Mapping[PurePosixPath, File] = field(default_factory=dict)  # units and configurations
    folders: Mapping[PurePosixPath, Folder] = field(default_factory=dict)
    units: Mapping[str, UnitState] = field(default_factory=dict)
    containers: tuple[ContainerState, ...] = ()
    edges: Mapping[str, EdgeState] = field(default_factory=dict)  # by mirror, those that answer
    certificates: Mapping[str, Certificate] = field(default_factory=dict)  # by mirror
    authority: Certificate | None = None  # the CA that signs
    authorities: Authorities | None = None
    suggested: Mapping[str, Suggestion] = field(default_factory=dict)  # by mirror: by the ACME server
    rollover: Rollover = field(default_factory=Rollover)
    trust: str = ""  # PEM of all CAs
    images: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()  # podman's, ours only
    leases: Mapping[str, IPv4Address] = field(default_factory=dict)
    accepted: Mapping[str, bytes] = field(default_factory=dict)
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    cached: Mapping[str, str] = field(default_factory=dict)  # by mirror: an image that some client has pulled
    published: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)  # by target, those that can be read
    unread: frozenset[str] = frozenset()  # targets that cannot
    trusted: bool = False  # every target says that all its readers have the present trust
    cluster: ClusterState | None = None  # None: there is none, or it cannot be read
    stores: Mapping[str, Store] = field(default_factory=dict)  # by mirror; empty when they were not looked at
    fills: Mapping[str, Fill] = field(default_factory=dict)  # by mirror: as the stores were at the last look
    kept: Mapping[str, Collection[ImageName]] = field(default_factory=dict)  # by mirror: images that are pinned
    held: frozenset[str] = frozenset()  # mirrors that were told to fetch nothing new
    usage: Mapping[str, Usage] = field(default_factory=dict)  # by mirror: what clients did
    claimed: frozenset[IPv4Address] = frozenset()  # probed by this agent and found free
    announced: frozenset[str] = frozenset()  # starts of pods whose address was announced

    def container(self, mirror: str, role: Role | None) -> ContainerState | None:
        """The running container of a mirror in a role; None as a role is the pod's infra container."""
        return next((c for c in self.containers if c.mirror == mirror and c.role == role), None)


# --- what to do ----------------------------------------------------------------------------------------------


def plan(desired: Desired, observed: Observed, now: datetime) -> tuple[Action, ...]:
    """The next steps, in the order in which they are to be done.  Empty: all is as it should be."""
    steps = [*_host(desired, observed, now)]
    there: defaultdict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)  # mirrors/NAME: its files
    for path in observed.files:
        there[path.parent.parent].add(path)
    withheld = _withheld(desired, observed, now)
    for mirror in desired.mirrors:
        if mirror.name in withheld:
            continue
        configs = there[desired.paths.mirror(mirror.name)]
        steps += _mirror(mirror, desired.pods[mirror.name], configs, desired, observed, now)
    steps += _leftovers(desired, observed)
    steps += _reload(desired, observed, steps)
    steps += _evict(desired, observed, now)
    steps += _publish(desired, observed)
    steps += _publish_to_cluster(desired, observed, now)
    return tuple(sorted(steps, key=lambda step: ORDER.index(type(step))))


def _host(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    """What serves all mirrors."""
    if observed.authority is None:
        yield CreateAuthority("", "no CA yet")
    if view := rollover_view(desired, observed):
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
    if observed.authority is None:
        return []
    if mirror.address not in observed.claimed and not _holds(mirror, pod, observed):
        return [ClaimAddress(mirror.name, "not held yet", mirror.address)] if startable else []
    prepare = [*_prepare(mirror, pod, there, desired, observed, now)]
    changed = tuple(unit for unit in pod.units if observed.files.get(unit.path) != unit)
    if changed and startable:
        new = not any(unit.path in observed.files for unit in pod.units)
        return [*prepare, WriteUnits(mirror.name, "new" if new else "changed", changed)]
    if prepare or changed or not all(_loaded(name, observed) for name in unit_services(pod)):
        return prepare
    run = _run(mirror, pod, observed)
    return [step for step in run if startable or not isinstance(step, StartUnits | RestartUnits)]


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
    if why := _due(mirror, desired, observed, now):
        certificate = observed.certificates.get(mirror.name)
        yield IssueCertificate(mirror.name, why, certificate.not_after if certificate else None)
    elif certificates.issuer_of(mirror, desired.settings.certificates) == Issuer.ACME:
        certificate, suggestion = observed.certificates.get(mirror.name), observed.suggested.get(mirror.name)
        if certificate and certificates.to_be_asked(certificate, suggestion, now):
            yield AskRenewal(
                mirror.name, "some hours ago", certificate.serial, suggestion.asked if suggestion else None
            )


def _due(mirror: Mirror, desired: Desired, observed: Observed, now: datetime) -> str:
    """Why a mirror needs a new certificate, "" when it needs none or none can be had."""
    certificate, known = observed.certificates.get(mirror.name), observed.authorities
    if observed.authority is None:
        return ""
    match certificates.issuer_of(mirror, desired.settings.certificates):
        case Issuer.BROUGHT:
            pair = desired.leaves.get(mirror.name)
            brought = pair and certificates.facts(pair.certificate, pair.key)
            return f"{mirror.tls and mirror.tls.certificate} is another one" if pair and brought != certificate else ""
        case Issuer.ACME:
            own = [each.key for each in known.all] if known else ()
            return certificates.due_elsewhere(certificate, mirror, own, now, observed.suggested.get(mirror.name))
    trusted = [old.key for old in known.old] if known else ()
    return certificates.due(certificate, mirror, observed.authority, now, trusted)


def _holds(mirror: Mirror, pod: Pod, observed: Observed) -> bool:
    """Is the address one that this mirror holds at the moment?  A pod that runs is known by the hash in its unit."""
    infra = observed.container(mirror.name, None)
    written = b"".join(observed.files[unit.path].content for unit in pod.units if unit.path in observed.files)
    return infra is not None and f"--ip={mirror.address}\n".encode() in written and infra.pod_hash.encode() in written


def unheld(desired: Desired, observed: Observed) -> frozenset[IPv4Address]:
    """Addresses that mirrors do not hold yet: for these alone a claim counts.

    One that was held and is no longer may have been taken by somebody meanwhile: it is claimed again.
    """
    return frozenset(m.address for m in desired.mirrors if not _holds(m, desired.pods[m.name], observed))


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
    edge, certificate = observed.edges.get(name), observed.certificates.get(name)
    if edge is None or certificate is None:
        return
    if (edge.config, edge.serial) != (pod.edge_config, certificate.serial):
        what = "configuration" if edge.config != pod.edge_config else "certificate"
        unit = pods.container_service(name, Role.EDGE)
        yield ReloadEdge(name, f"new {what}", unit, pod.edge_config, certificate.serial)
        return
    if infra.start not in observed.announced:
        yield AnnounceAddress(name, "the pod was started", infra.start)
    proof = observed.proofs.get(name)
    # what is cached costs the upstream nothing, but proves nothing of a remote that it did not come from
    choice = (observed.cached.get(name), mirror.probe)
    image = next(filter(None, reversed(choice) if proof and proof.remote != mirror.remote else choice), None)
    if image and not (proof and proof.covers(mirror)):
        yield ProveMirror(name, "not proved by a real pull yet", image)


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


# --- certificates --------------------------------------------------------------------------------------------


def rollover_view(desired: Desired, observed: Observed) -> rollover.View | None:
    """The CAs and what is known about them, None where there is none yet."""
    if observed.authorities is None:
        return None
    bundle = formats.trust.render(Publication((), observed.trust))
    held = all(published.get(each.name) == each.content for each in bundle for published in observed.published.values())
    if outcome := cluster_outcome(desired, observed):
        held = held and not outcome.trust and not outcome.untrusted
    return rollover.View(
        observed.authorities,
        brought=_brought(desired),
        rollover=observed.rollover,
        published=held and not observed.unread,
        confirmed=observed.trusted,
        signers={certificate.issuer_key for certificate in observed.certificates.values()},
    )


def _brought(desired: Desired) -> Authority | None:
    if (pair := desired.authority) is None:
        return None
    return Authority(certificates.facts(pair.certificate, pair.key), pair.certificate)


def problems(desired: Desired, observed: Observed, now: datetime) -> tuple[Problem, ...]:
    """What the host, or the calendar, shows to be wrong with what the admin wrote or brought."""
    refused = []
    if (outcome := cluster_outcome(desired, observed)) and outcome.refused:
        where, failed = str(desired.paths.settings), messages.TARGET_FAILED
        refused = [Problem(where, "publish.cluster", outcome.refused, outcome.hint, message_id=failed)]
    return (*_forbidden(desired, observed), *_ending(desired, observed, now), *refused)


def _forbidden(desired: Desired, observed: Observed) -> Iterator[Problem]:
    """Mirrors that the CA may not vouch for: told early, and held back where they need a certificate now."""
    settings, known = desired.settings.certificates, observed.authorities
    for mirror in desired.mirrors if known else ():
        if known is None or certificates.issuer_of(mirror, settings) != Issuer.OWN:
            continue
        if not (reason := certificates.forbids(known.current.pem, mirror.host, mirror.address)):
            continue
        hint = certificates.WAY_OUT
        if known.coming and not certificates.forbids(known.coming.pem, mirror.host, mirror.address):
            view = rollover_view(desired, observed)
            at = view and rollover.switches_at(view, settings)
            hint = f"the next CA permits it: it is used from {at:%Y-%m-%d} on, or after mirror-agent ca roll --confirm"
        yield Problem(f"{mirror.name}.toml", "host", f"the CA {reason}", hint, mirror.name)


def _ending(desired: Desired, observed: Observed, now: datetime) -> Iterator[Problem]:
    """What an admin brought and nobody but the admin can renew."""
    settings, known = desired.settings.certificates, observed.authorities
    for mirror in desired.mirrors:
        certificate = observed.certificates.get(mirror.name)
        if mirror.tls and certificate and now >= certificates.next_due(certificate):
            reason = f"{mirror.tls.certificate} ends at {certificate.not_after:%Y-%m-%d %H:%M} UTC"
            hint = "put a new certificate and its key there: they are taken at once"
            yield Problem(f"{mirror.name}.toml", "tls.certificate", reason, hint, mirror.name)
    if settings.ca and known and now >= rollover.begins_at(known.current, settings):
        reason = f"the CA in {settings.ca} ends at {known.current.facts.not_after:%Y-%m-%d}"
        yield Problem(str(desired.paths.settings), "certificates.ca", reason, "put a new one there, in good time")


def _withheld(desired: Desired, observed: Observed, now: datetime) -> frozenset[str]:
    """Mirrors for which no certificate can be had: what runs of them is left as it is."""
    forbidden = {problem.mirror for problem in _forbidden(desired, observed)}
    return frozenset(
        mirror.name
        for mirror in desired.mirrors
        if (mirror.name in forbidden and _due(mirror, desired, observed, now))
        or (mirror.tls and mirror.name not in desired.leaves and mirror.name not in observed.certificates)
    )


# --- publication ---------------------------------------------------------------------------------------------


def publication(desired: Desired, observed: Observed) -> Publication:
    """What readers may be told.

    A mirror that was proved before its host, address or remote changed stays published as it was proved, until the
    new one is proved: withdrawing it would cost every node of a cluster a drain, and tell nobody anything useful.
    """
    told = []
    for mirror in desired.mirrors:
        if proof := observed.proofs.get(mirror.name):
            told.append(replace(mirror, host=proof.host, address=proof.address))
    return Publication(tuple(told), observed.trust)


def in_doubt(desired: Desired, observed: Observed) -> tuple[str, ...]:
    """Mirrors that were published and have no definition that could be in force now.

    While there are any, nothing is published: a set without them would make the nodes of a cluster drop them.
    """
    return tuple(sorted(desired.frozen & observed.proofs.keys()))


@lru_cache(maxsize=16)  # asked for at each look, and the same each time when nothing happens
def documents(publication: Publication) -> tuple[Document, ...]:
    """Every document of every format, in the order in which targets write them."""
    return tuple(document for render in formats.FORMATS.values() for document in render(publication))


def _publish(desired: Desired, observed: Observed) -> Iterator[Action]:
    if observed.authority is None or in_doubt(desired, observed):
        return
    wanted = documents(publication(desired, observed))
    by_name = {document.name: document.content for document in wanted}
    for target, published in observed.published.items():
        names = by_name.keys() | published.keys()
        if changed := tuple(sorted(name for name in names if by_name.get(name) != published.get(name))):
            yield Publish("", "", target, wanted, changed)


def is_public(mirror: Mirror, desired: Desired) -> bool:
    """Is its certificate by a CA that readers trust already, as this host does?"""
    acme = desired.settings.certificates.acme
    return mirror.tls.ca is None if mirror.tls else acme is not None and acme.trust is None


def cluster_outcome(desired: Desired, observed: Observed) -> cluster.Outcome | None:
    """What the cluster lacks; None where there is none, it cannot be read, or there is nothing sure to tell it."""
    settings = desired.settings.publish.cluster
    if settings is None or observed.cluster is None or observed.authority is None or in_doubt(desired, observed):
        return None
    return cluster.compare(publication(desired, observed), settings, observed.cluster)


def _publish_to_cluster(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    settings = desired.settings.publish.cluster
    outcome = cluster_outcome(desired, observed)
    if settings and outcome and (changes := outcome.due(settings, now.astimezone())):
        cost = outcome.cost if len(changes) > len(outcome.trust) else Cost.NONE
        yield PublishToCluster("", "", cluster.place(settings), changes, cost, cluster.COST[cost])


def hold_file(desired: Desired, name: str) -> PurePosixPath:
    """The file that tells a mirror's edge to fetch nothing new (quadlets/nginx.conf)."""
    return PurePosixPath(desired.settings.cache.path) / name / "edge" / "full"


# --- names ---------------------------------------------------------------------------------------------------


def unit_services(pod: Pod) -> tuple[str, ...]:
    """The services of a pod, the pod's own first."""
    return tuple(service_of(unit.path) for unit in pod.units)


def service_of(path: PurePosixPath) -> str:
    """The service that quadlet generates from a file (podman-systemd.unit(5))."""
    suffix = {".container": "", ".pod": "-pod", ".network": "-network"}.get(path.suffix, "")
    return f"{path.stem}{suffix}.service"


_OWNER = re.compile(rb"io\.mirror-agent\.mirror=([a-z0-9-]+)")


def unit_owner(file: File) -> str:
    """The mirror that a unit file on disk belongs to, "" for the network's."""
    found = _OWNER.search(file.content)
    return found[1].decode() if found else ""
