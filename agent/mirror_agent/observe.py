"""Floor 4: the host → values.  Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import PurePosixPath

from mirror_agent import certified, eviction, messages
from mirror_agent.certificates import judging, reading
from mirror_agent.cluster import place
from mirror_agent.host import files, namespace, pull, state
from mirror_agent.host.containers import Containers
from mirror_agent.host.store import Stores
from mirror_agent.host.systemd import Systemd
from mirror_agent.model import (
    ClusterState,
    EdgeState,
    File,
    Fill,
    Folder,
    ImageName,
    Issuer,
    Mirror,
    Paths,
    Problem,
    Store,
    Trouble,
)
from mirror_agent.plan import Desired, Observed, hold_file, service_of
from mirror_agent.targets import TargetError, cluster, targets
from mirror_agent.usage import Usage
from mirror_agent.wish import Remembered

NETWORK_PREFIX = "mirror-agent-"


@dataclass(frozen=True, slots=True)
class Seen:
    """What an agent that goes on working has found out before, and what it wants to be looked at."""

    claimed: Collection[IPv4Address] = ()  # addresses that were probed and found free
    announced: Collection[str] = ()  # starts of pods whose address was announced
    usage: Mapping[str, Usage] = field(default_factory=dict)
    fills: Mapping[str, Fill] = field(default_factory=dict)  # of the stores at the last look into them
    stores: Stores | None = None  # None: the caches are not looked at this time
    doubts: Mapping[str, datetime] = field(default_factory=dict)  # by mirror: when its upstream last gave nothing
    wounded: Collection[str] = ()  # ids of edges, one of whose workers was killed


def look(
    desired: Desired,
    memory: Remembered,
    systemd: Systemd,
    containers: Containers,
    seen: Seen,
) -> tuple[Observed, tuple[Problem, ...]]:
    """Everything that plan() compares.  What concerns one mirror or one target alone and fails is left empty.

    Raises Trouble where systemd or podman do not answer.
    """
    paths = desired.paths
    found = files_of(desired)
    running = containers.states()
    own, damage = certified.look(desired)
    names = {service_of(path) for path in found if path.parent == paths.units}
    names |= {service_of(unit.path) for pod in desired.pods.values() for unit in pod.units}
    images = {image for pod in desired.pods.values() for image in pod.images}
    published, problems = _published(desired)
    known_to, unread = _cluster(desired)
    problems = (*damage, *problems, *unread)
    proofs = state.load_proofs(paths.proofs)
    edges: dict[str, EdgeState] = {}
    cached: dict[str, str] = {}
    for mirror in desired.mirrors:
        infra = next((c for c in running if c.mirror == mirror.name and c.role is None), None)
        if infra and (edge := _edge(infra.namespace, mirror)):
            edges[mirror.name] = edge
        proof = proofs.get(mirror.name)
        if mirror.name in edges and not (proof and proof.covers(mirror)):
            cached[mirror.name] = pull.find_cached(desired.settings.cache.path / mirror.name / "registry") or ""
    stores = _stores(desired, seen)
    try:
        kept = pinned(paths)
    except Trouble as trouble:  # what is pinned is not known: nothing leaves
        kept, stores = {}, {}
        problem = Problem(trouble.where, "", trouble.reason, trouble.hint, message_id=trouble.message_id)
        problems = (*problems, problem)
    observed = replace(
        own,
        files=found,
        folders={folder.path: there for folder in _wanted(desired) if (there := files.folder(folder.path))},
        units=systemd.units(sorted(names)),
        containers=running,
        edges=edges,
        suggested=state.load_suggestions(paths.suggestions),
        pull_limits=state.load_pull_limits(paths.pull_limits),
        reaches=state.load_reaches(paths.reaches),
        doubts=seen.doubts,
        trust=_trust(desired, own),
        images=frozenset(image for image in images if containers.has_image(image)),
        networks=frozenset(containers.networks(NETWORK_PREFIX)),
        leases=memory.leases,
        accepted=memory.accepted,
        proofs=proofs,
        cached=cached,
        published=published,
        unread=frozenset(target.place for target in targets(desired.settings.publish)) - published.keys()
        | ({place(settings)} if (settings := desired.settings.publish.cluster) and not known_to else frozenset()),
        cluster=known_to,
        stores=stores,
        kept=kept,
        fills={**seen.fills, **{name: eviction.fill(store) for name, store in stores.items()}},
        held=frozenset(m.name for m in desired.mirrors if files.read(hold_file(desired, m.name), 1) is not None),
        usage=seen.usage,
        wounded=frozenset(seen.wounded),
        claimed=frozenset(seen.claimed),
        announced=frozenset(seen.announced),
    )
    return observed, problems


def pinned(paths: Paths) -> Mapping[str, Collection[ImageName]]:
    """The images of each mirror that are kept for any set.  Raises Trouble."""
    found: dict[str, set[ImageName]] = {}
    for mirrors in state.load_keeps(paths.keeps).values():
        for mirror, images in mirrors.items():
            found.setdefault(mirror, set()).update(images)
    return found


def _stores(desired: Desired, seen: Seen) -> dict[str, Store]:
    if seen.stores is None:
        return {}
    root = desired.settings.cache.path
    found = {mirror.name: seen.stores.scan(root / mirror.name / "registry") for mirror in desired.mirrors}
    return {name: store for name, store in found.items() if store}


def files_of(desired: Desired) -> dict[PurePosixPath, File]:
    """Units on disk, and the configurations of the mirrors that are desired."""
    found = dict(files.tree(desired.paths.units))
    for mirror in desired.mirrors:
        for part in ("edge", "registry", "auth"):
            found.update(files.tree(desired.paths.mirror(mirror.name) / part))
    return found


def _wanted(desired: Desired) -> Iterable[Folder]:
    return (folder for pod in desired.pods.values() for folder in pod.folders)


def _edge(netns: str, mirror: Mirror) -> EdgeState | None:
    try:
        return namespace.edge_state(netns, mirror.host)
    except Trouble:  # the pod has just stopped: the next look sees it
        return None


def _trust(desired: Desired, observed: Observed) -> str:
    """PEM of what readers must trust.  CAs of ours that sign nothing here are left out."""
    if (known := observed.authorities) is None:
        return ""
    issuers = {judging.issuer_of(mirror, desired.settings.certificates) for mirror in desired.mirrors}
    keys = {each.key for each in known.all}
    signs = any(leaf.issuer_key in keys for leaf in observed.certificates.values())
    needed = signs or not issuers or Issuer.OWN in issuers
    own = [each.pem for each in known.all] if needed else []
    return reading.trust_bundle(*own, *desired.trust)


def _published(desired: Desired) -> tuple[Mapping[str, Mapping[str, bytes]], tuple[Problem, ...]]:
    published: dict[str, Mapping[str, bytes]] = {}
    problems: list[Problem] = []
    for target in targets(desired.settings.publish):
        try:
            published[target.place] = dict(target.read())
        except TargetError as error:
            where = str(desired.paths.settings)
            reason = f"{target.place}: {error.reason}"
            problems.append(Problem(where, error.key, reason, error.hint, message_id=messages.TARGET_FAILED))
    return published, tuple(problems)


def _cluster(desired: Desired) -> tuple[ClusterState | None, tuple[Problem, ...]]:
    settings = desired.settings.publish.cluster
    if settings is None:
        return None, ()
    try:
        return cluster.read(settings), ()
    except Trouble as trouble:
        reason = f"{trouble.where}: {trouble.reason}"
        where = str(desired.paths.settings)
        return None, (Problem(where, "publish.cluster", reason, trouble.hint, message_id=messages.TARGET_FAILED),)
