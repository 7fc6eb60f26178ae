"""What should exist and what is there: the two sides that the planner compares."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import PurePosixPath

from mirror_agent import pods
from mirror_agent.certificates import Pair
from mirror_agent.model import (
    Authorities,
    Certificate,
    ClusterState,
    ContainerState,
    EdgeState,
    File,
    Fill,
    Folder,
    ImageName,
    Mirror,
    Network,
    Paths,
    Pod,
    Problem,
    Proof,
    PullLimit,
    Reach,
    Role,
    Rollover,
    Settings,
    Store,
    Suggestion,
    Trouble,
    UnitState,
)
from mirror_agent.usage import Usage


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
    upstream_cas: Mapping[str, str] | None = None,
) -> Desired:
    """What should exist for these mirrors.  `podman` is (major, minor): it decides which quadlet keys may be used;
    `upstream_cas` has, by mirror, the text of the file that its definition names.

    Raises Trouble for settings that cannot be rendered; a mirror that cannot be is left as it is, with a problem.
    """
    network = pods.render_network(settings, templates, paths, podman)
    rendered: dict[str, Pod] = {}
    problems: list[Problem] = []
    for mirror in mirrors:
        try:
            upstream_ca = (upstream_cas or {}).get(mirror.name, "")
            rendered[mirror.name] = pods.render_pod(mirror, settings, network, paths, templates, podman, upstream_ca)
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
    damaged: bool = False  # there are CAs, and they cannot be used: nothing is issued, proved or published
    suggested: Mapping[str, Suggestion] = field(default_factory=dict)  # by mirror: by the ACME server
    rollover: Rollover | None = field(default_factory=Rollover)  # None: it cannot be read, no CA is replaced
    trust: str = ""  # PEM of all CAs
    images: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()  # podman's, ours only
    leases: Mapping[str, IPv4Address] = field(default_factory=dict)
    accepted: Mapping[str, bytes] = field(default_factory=dict)
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    pull_limits: Mapping[str, PullLimit] = field(default_factory=dict)  # by mirror: as its upstream last said
    reaches: Mapping[str, Reach] = field(default_factory=dict)  # by mirror: whether its upstream could be reached
    doubts: Mapping[str, datetime] = field(default_factory=dict)  # by mirror: when its upstream last gave nothing
    unwell: Mapping[str, float] = field(default_factory=dict)  # by mirror that does not answer: for how long, seconds
    cached: Mapping[str, str] = field(default_factory=dict)  # by mirror: an image that some client has pulled
    published: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)  # by target, those that can be read
    unread: frozenset[str] = frozenset()  # targets that cannot
    cluster: ClusterState | None = None  # None: there is none, or it cannot be read
    stores: Mapping[str, Store] = field(default_factory=dict)  # by mirror; empty when they were not looked at
    fills: Mapping[str, Fill] = field(default_factory=dict)  # by mirror: as the stores were at the last look
    kept: Mapping[str, Collection[ImageName]] = field(default_factory=dict)  # by mirror: images that are pinned
    held: frozenset[str] = frozenset()  # mirrors that were told to fetch nothing new
    usage: Mapping[str, Usage] = field(default_factory=dict)  # by mirror: what clients did
    wounded: frozenset[str] = frozenset()  # ids of edges, one of whose workers was killed
    claimed: frozenset[IPv4Address] = frozenset()  # probed by this agent and found free
    announced: frozenset[str] = frozenset()  # starts of pods whose address was announced

    def container(self, mirror: str, role: Role | None) -> ContainerState | None:
        """The running container of a mirror in a role; None as a role is the pod's infra container."""
        return next((c for c in self.containers if c.mirror == mirror and c.role == role), None)
