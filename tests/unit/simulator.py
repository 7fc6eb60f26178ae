"""A host in memory that obeys the planner's steps as systemd, quadlet and podman do, and refuses unsafe ones.

Floors 0 to 2 run for real in it: texts are parsed, selected, leased and composed with the templates that are shipped.
What a step may rely on is asserted where it is done, so that every test that moves a host tests the order of steps.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath

from mirror_agent import actions, addresses, config, plan, pods
from mirror_agent.actions import Action
from mirror_agent.model import (
    Candidate,
    Certificate,
    ContainerState,
    EdgeState,
    File,
    Folder,
    Mirror,
    Paths,
    Proof,
    PullLimit,
    Reach,
    Role,
    UnitState,
)
from mirror_agent.plan import Desired, Observed

TEMPLATES = pods.load_templates(Path(__file__).parents[2] / "quadlets")
PATHS = Paths()
NOW = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)
TRUST = "-----BEGIN CERTIFICATE-----\nCA\n-----END CERTIFICATE-----\n"
TARGET = "/srv/publish"

SETTINGS = f"""
domain = "mirror.lan"
[network]
parent = "lan0"
subnet = "10.0.0.0/24"
gateway = "10.0.0.1"
range = "10.0.0.4-10.0.0.60"
[publish.folder]
path = "{TARGET}"
"""
QUAY = 'source = "quay.io"\naddress = "10.0.0.4"\n'
GHCR = 'source = "ghcr.io"\naddress = "10.0.0.8"\n'

_ADDRESS = re.compile(r"^PodmanArgs=--ip=(.+)$", re.MULTILINE)
_NETWORK = re.compile(r"^Network=(.+)\.network$", re.MULTILINE)
_POD_HASH = re.compile(r"io\.mirror-agent\.pod=([0-9a-f]{16})")
_HASH = re.compile(r"io\.mirror-agent\.unit=([0-9a-f]{16})")
_IMAGE = re.compile(r"^Image=(.+)$", re.MULTILINE)
_EDGE_CONFIG = re.compile(rb'return 200 "([0-9a-f]{16})')


@dataclass(frozen=True)
class Written:
    """What an admin has written: agent.toml, and the definitions by the mirror's name."""

    definitions: Mapping[str, str]
    settings: str = SETTINGS

    def __hash__(self) -> int:
        return hash((self.settings, tuple(self.definitions.items())))

    def but(self, **definitions: str | None) -> Written:
        merged = {**self.definitions, **definitions}
        return replace(self, definitions={name: text for name, text in merged.items() if text is not None})


class Failed(Exception):
    """A step that did not work."""


@dataclass
class Host:
    """Everything that outlives the agent, and (claimed, announced) what the agent itself remembers."""

    files: dict[PurePosixPath, File] = field(default_factory=dict)
    folders: dict[PurePosixPath, Folder] = field(default_factory=dict)
    loaded: dict[str, File] = field(default_factory=dict)  # by service: the quadlet file at the last daemon-reload
    active: dict[str, tuple[File, int]] = field(default_factory=dict)  # what a service was started with, which start
    edges: dict[str, EdgeState] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    issued: dict[int, Certificate] = field(default_factory=dict)  # by serial number
    authority: Certificate | None = None
    images: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    leases: dict[str, IPv4Address] = field(default_factory=dict)
    accepted: dict[str, bytes] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    pull_limits: dict[str, PullLimit] = field(default_factory=dict)
    reaches: dict[str, Reach] = field(default_factory=dict)
    doubts: dict[str, datetime] = field(default_factory=dict)  # of clients
    proved: set[tuple[str, str]] = field(default_factory=set)  # address and host of all that ever was
    published: dict[str, bytes] = field(default_factory=dict)
    taken: set[IPv4Address] = field(default_factory=set)  # by others on the LAN
    claimed: set[IPv4Address] = field(default_factory=set)
    announced: set[str] = field(default_factory=set)
    count: int = 0  # of starts and serial numbers
    now: datetime = NOW
    unwell: dict[str, float] = field(default_factory=dict)  # by mirror that does not answer: for how long
    wounded: set[str] = field(default_factory=set)  # ids of edges, one of whose workers was killed

    def copy(self) -> Host:
        return replace(self, **{item.name: copy.copy(getattr(self, item.name)) for item in fields(self)})

    # --- what the agent sees ---

    def desired(self, written: Written) -> Desired:
        """The way of wish.read(), without its files."""
        texts, leases, accepted = written.definitions.items(), self.leases.items(), self.accepted.items()
        return _desired(written.settings, tuple(texts), tuple(leases), tuple(accepted))

    def observed(self, desired: Desired) -> Observed:
        """The way of observe.look(): nothing is seen but what it looks at."""
        names = {mirror.name for mirror in desired.mirrors}
        roots = [PATHS.mirror(name) for name in names]
        seen = {
            path: file
            for path, file in self.files.items()
            if path.parent == PATHS.units or any(path.is_relative_to(root) for root in roots)
        }
        services = {plan.service_of(path) for path in seen if path.parent == PATHS.units}
        services |= {plan.service_of(unit.path) for pod in desired.pods.values() for unit in pod.units}
        observed = Observed(
            files=seen,
            folders={f.path: self.folders[f.path] for f in wanted_folders(desired) if f.path in self.folders},
            units={service: self.unit(service) for service in services},
            containers=tuple(self.containers()),
            edges={name: edge for name, edge in self.edges.items() if name in names},
            certificates={name: c for name, c in self.certificates.items() if name in names},
            authority=self.authority,
            trust=TRUST if self.authority else "",
            images=frozenset(self.images & {image for pod in desired.pods.values() for image in pod.images}),
            networks=frozenset(self.networks),
            leases=dict(self.leases),
            accepted=dict(self.accepted),
            proofs=dict(self.proofs),
            pull_limits=dict(self.pull_limits),
            reaches=dict(self.reaches),
            doubts=dict(self.doubts),
            unwell=dict(self.unwell),
            wounded=frozenset(self.wounded),
            published={TARGET: dict(self.published)},
            claimed=frozenset(self.claimed),
            announced=frozenset(self.announced),
        )
        self.claimed &= plan.unheld(desired, observed)
        return replace(observed, claimed=frozenset(self.claimed))

    def unit(self, service: str) -> UnitState:
        file = self.loaded.get(service)
        stale = file is not None and self.files.get(file.path) != file
        load = "not-found" if file is None else "loaded"
        running = service in self.active
        return UnitState(load, "active" if running else "inactive", "running" if running else "dead", stale)

    def containers(self) -> Iterator[ContainerState]:
        for service, (file, start) in self.active.items():
            text, owner = file.content.decode(), plan.unit_owner(file)
            if file.path.suffix == ".pod":
                address = IPv4Address(_first(_ADDRESS, text))
                pod_hash = _first(_POD_HASH, text)
                yield ContainerState(owner, None, f"{service}-{start}", pod_hash, "", str(start), "ns", address)
            elif file.path.suffix == ".container":
                role = Role.EDGE if service.endswith("-edge.service") else Role.REGISTRY
                hashes = _first(_POD_HASH, text), _first(_HASH, text)
                yield ContainerState(owner, role, f"{service}-{start}", *hashes, str(start))

    # --- what the agent does ---

    def do(self, step: Action, desired: Desired) -> None:
        assert step.mirror not in desired.frozen, f"{step} touches a mirror that is to be left alone"
        match step:
            case actions.CreateAuthority():
                assert self.authority is None, "a CA is made once"
                self.authority = self._certificate((), (), 3650)
            case actions.Remember():
                self.proofs = {n: p for n, p in self.proofs.items() if n in step.accepted or n in desired.frozen}
                self.leases, self.accepted = dict(step.leases), dict(step.accepted)
            case actions.PullImage():
                self.images.add(step.image)
            case actions.MakeFolder():
                self.folders[step.folder.path] = step.folder
            case actions.WriteFile():
                assert step.file.path.parent in self.folders, f"{step}: its folder is not there"
                self.files[step.file.path] = step.file
            case actions.ClaimAddress():
                if step.address in self.taken:
                    raise Failed(step)
                self.claimed.add(step.address)
            case actions.IssueCertificate():
                mirror = of(desired, step.mirror)
                assert PATHS.mirror(mirror.name) / "tls" in self.folders, f"{step}: its folder is not there"
                self.certificates[mirror.name] = self._certificate((mirror.host,), (mirror.address,), 90)
            case actions.WriteUnits():
                self._write_units(step, desired)
            case actions.DeleteFile():
                service = plan.service_of(step.path)
                assert step.path.parent != PATHS.units or service not in self.active, f"{step}: {service} runs"
                del self.files[step.path]
            case actions.ReloadSystemd():
                self._reload()
            case actions.StopUnits():
                for service in step.units:
                    self._stop(service)
            case actions.StartUnits():
                for service in step.units:
                    self._start_in_time(service, desired)
            case actions.RestartUnits():
                for service in step.units:
                    assert service in self.active, f"{step}: it does not run"
                    self._stop(service)
                    self._start_in_time(service, desired)
            case actions.ReloadEdge():
                self.edges[step.mirror] = self._edge(step.mirror)
                assert self.edges[step.mirror].config == step.config, f"{step}: not what is on disk"
            case actions.AnnounceAddress():
                assert step.start in {c.start for c in self.containers() if c.role is None}, f"{step}: an old start"
                self.announced.add(step.start)
            case actions.ProveMirror():
                mirror = of(desired, step.mirror)
                shown = self.issued[self.edges[mirror.name].serial]
                assert (shown.hosts, shown.addresses) == ((mirror.host,), (mirror.address,)), f"{step}: for another"
                assert shown.not_after > self.now, f"{step}: it has ended"
                self.proofs[mirror.name] = Proof(mirror.host, mirror.address, mirror.remote, step.image, NOW)
                self.proved.add((str(mirror.address), mirror.host))
            case actions.AskPullLimit():
                assert step.mirror in self.edges, f"{step}: it does not answer"
                assert of(desired, step.mirror).pull_limit, f"{step}: nobody wants to know"
                self.pull_limits[step.mirror] = PullLimit(self.now, 100, 76, 21600)
            case actions.ReachUpstream():
                assert step.mirror in self.edges, f"{step}: it does not answer"
                self.reaches[step.mirror] = Reach(of(desired, step.mirror).remote, self.now)
            case actions.RemoveNetwork():
                used = {_first(_NETWORK, file.content.decode()) for file, _ in self.active.values()}
                assert step.network not in used, f"{step}: a pod is on it"
                self.networks.remove(step.network)
            case actions.Withdraw():
                assert step.mirror not in self.edges, f"{step}: it answers"
                del self.proofs[step.mirror]
            case actions.Publish():
                self._publish(step)
            case _:
                raise AssertionError(f"what does {step!r} do?")

    def _write_units(self, step: actions.WriteUnits, desired: Desired) -> None:
        for file in step.files:
            self.files[file.path] = file
        if not step.mirror:
            return
        mirror, pod = of(desired, step.mirror), desired.pods[step.mirror]
        assert self.images.issuperset(pod.images), f"{step}: images are missing"
        assert desired.network.unit.path in self.files, f"{step}: quadlet drops a pod without its network"
        certificate = self.certificates.get(mirror.name)
        assert certificate, f"{step}: no certificate"
        assert certificate.addresses == (mirror.address,), f"{step}: not for its address"
        held = self.address_of(mirror.name)
        assert mirror.address in self.claimed | {held}, f"{step}: the address was not claimed"

    def _reload(self) -> None:
        """Quadlet: a pod without its network and a container without its pod are dropped."""
        units = {path: file for path, file in self.files.items() if path.parent == PATHS.units}
        self.loaded = {}
        for path, file in units.items():
            needs = ""
            if path.suffix == ".pod":
                needs = f"{_first(_NETWORK, file.content.decode())}.network"
            if path.suffix == ".container":
                needs = f"{pods.pod_name(plan.unit_owner(file))}.pod"
            if not needs or PATHS.units / needs in units:
                self.loaded[plan.service_of(path)] = file

    def _start_in_time(self, service: str, desired: Desired) -> None:
        """What the agent starts is never in another one's way; at a boot it may be."""
        try:
            self._start(service, desired)
        except Failed as failed:
            raise AssertionError(str(failed)) from failed

    def _start(self, service: str, desired: Desired) -> None:
        if service in self.active:
            return
        assert service in self.loaded, f"{service}: no such unit"
        file, text = self.loaded[service], self.loaded[service].content.decode()
        assert self.files[file.path] == file, f"{service}: started with what is no longer on disk"
        owner = plan.unit_owner(file)
        if file.path.suffix == ".pod":
            self._start(f"{_first(_NETWORK, text)}-network.service", desired)
            others = {_first(_ADDRESS, f.content.decode()) for f, _ in self.active.values() if f.path.suffix == ".pod"}
            if _first(_ADDRESS, text) in others:
                raise Failed(f"{service}: the address is in use by a pod of this host")
        if file.path.suffix == ".container":
            assert _first(_IMAGE, text) in self.images, f"{service}: its image is missing, and it may not pull"
            pod = desired.pods.get(owner)
            assert not pod or all(folder.path in self.folders for folder in pod.folders), f"{service}: no folder"
            self._start(pods.pod_service(owner), desired)
        self.count += 1
        self.active[service] = (file, self.count)
        if file.path.suffix == ".network":
            self.networks.add(file.path.stem)
        if file.path.suffix == ".pod":  # it Wants= its containers
            for container in (pods.container_service(owner, role) for role in Role):
                if container in self.loaded:
                    self._start(container, desired)
        if service == pods.container_service(owner, Role.EDGE):
            self.edges[owner] = self._edge(owner)

    def _stop(self, service: str) -> None:
        file, _ = self.active.pop(service, (None, 0))
        if file is None:
            return
        owner = plan.unit_owner(file)
        if file.path.suffix == ".network":
            used = {_first(_NETWORK, file.content.decode()) for file, _ in self.active.values()}
            assert file.path.stem not in used, f"{service}: stopped below a pod that runs"
        if file.path.suffix == ".pod":  # containers are bound to it
            for role in Role:
                self._stop(pods.container_service(owner, role))
        if service == pods.container_service(owner, Role.EDGE):
            self.edges.pop(owner, None)

    def _publish(self, step: actions.Publish) -> None:
        self.published = {document.name: document.content for document in step.documents}
        hosts = [
            line.split() for line in self.published.get("hosts", b"").decode().splitlines() if not line.startswith("#")
        ]
        assert {(address, host) for address, host in hosts} <= self.proved, f"{step}: not proved"

    def _edge(self, mirror: str) -> EdgeState:
        found = _EDGE_CONFIG.search(self.files[PATHS.mirror(mirror) / "edge" / "nginx.conf"].content)
        assert found
        return EdgeState(found[1].decode(), self.certificates[mirror].serial)

    def _certificate(self, hosts: tuple[str, ...], where: tuple[IPv4Address, ...], days: int) -> Certificate:
        self.count += 1
        end = self.now + timedelta(days=days)
        made = Certificate(hosts, where, self.count, self.now - timedelta(hours=1), end, "ca", True, "ca")
        self.issued[made.serial] = made
        return made

    # --- what happens to it ---

    def address_of(self, mirror: str) -> IPv4Address | None:
        """The address that a mirror's running pod has."""
        file, _ = self.active.get(pods.pod_service(mirror), (None, 0))
        return IPv4Address(_first(_ADDRESS, file.content.decode())) if file else None

    def kill_agent(self) -> None:
        self.claimed.clear()
        self.announced.clear()

    def reboot(self, desired: Desired) -> None:
        """Units come up from what is on disk, without the agent; podman forgets no network."""
        self.kill_agent()
        self.active.clear()
        self.edges.clear()
        self._reload()
        for service in [name for name, file in self.loaded.items() if file.path.suffix == ".pod"]:
            with suppress(Failed):
                self._start(service, desired)


@cache
def _desired(
    text: str,
    definitions: tuple[tuple[str, str], ...],
    kept: tuple[tuple[str, IPv4Address], ...],
    accepted: tuple[tuple[str, bytes], ...],
) -> Desired:
    settings, problems = config.parse_settings("agent.toml", text.encode())
    assert settings, problems
    files = [
        Candidate(f"/etc/mirror-agent.d/{name}.toml", "regular", content=content.encode())
        for name, content in definitions
    ]
    reading = config.select(files, dict(accepted), settings)
    leases, unplaced = addresses.assign(reading.definitions, dict(kept), settings.network, reading.frozen)
    mirrors = [addresses.resolve(d, leases[d.name], settings) for d in reading.definitions if d.name in leases]
    return plan.compose(
        settings,
        mirrors,
        paths=PATHS,
        templates=TEMPLATES,
        podman=(5, 4),
        leases=leases,
        accepted=reading.accepted,
        frozen=reading.frozen | {problem.mirror for problem in unplaced},
    )


def of(desired: Desired, name: str) -> Mirror:
    return next(mirror for mirror in desired.mirrors if mirror.name == name)


def wanted_folders(desired: Desired) -> Iterator[Folder]:
    return (folder for pod in desired.pods.values() for folder in pod.folders)


def steps(host: Host, written: Written) -> tuple[Action, ...]:
    """What the planner wants next."""
    desired = host.desired(written)
    return plan.plan(desired, host.observed(desired), host.now)


def one_round(host: Host, written: Written, upto: int | None = None, failing: Sequence[int] = ()) -> tuple[Action, ...]:
    """One round of the agent: look, plan, act.  It ends before step number `upto`; those of `failing` do nothing.

    A failed step takes the later ones of its mirror out of the round, as apply() does.
    """
    desired = host.desired(written)
    todo = plan.plan(desired, host.observed(desired), host.now)[:upto]
    held: set[str] = set()
    for number, step in enumerate(todo):
        if step.mirror and step.mirror in held:
            continue
        try:
            if number in failing:
                raise Failed(step)
            host.do(step, desired)
        except Failed:
            held.add(step.mirror)
    return todo


def settle(host: Host, written: Written) -> list[tuple[Action, ...]]:
    """Rounds until the planner wants nothing more."""
    rounds: list[tuple[Action, ...]] = []
    while done := one_round(host, written):
        rounds.append(done)
        assert len(rounds) < 20, f"does not settle: {[str(step) for step in done]}"
    return rounds


def end(host: Host, written: Written) -> dict[str, object]:
    """What counts of a host at rest: no start, no serial number, nothing of removed mirrors but what must not be."""
    desired = host.desired(written)
    seen = host.observed(desired)
    names = {mirror.name for mirror in desired.mirrors}
    running = {c.start for c in seen.containers if c.role is None and c.mirror in names}
    assert seen.announced >= running, "a start was not announced"
    return {
        "files": seen.files,
        "folders": seen.folders,
        "units": {service: replace(state, need_reload=False) for service, state in seen.units.items()},
        "stale": sorted(service for service, state in seen.units.items() if state.need_reload),
        "containers": sorted((c.mirror, str(c.role), c.pod_hash, c.hash) for c in seen.containers),
        "edges": {name: (e.config, e.serial == seen.certificates[name].serial) for name, e in seen.edges.items()},
        "certificates": {name: (c.hosts, c.addresses) for name, c in seen.certificates.items()},
        "active": sorted(host.active),
        "networks": seen.networks,
        "leases": {name: seen.leases.get(name) for name in names},
        "accepted": seen.accepted,
        "proofs": {name: (p.host, p.address, p.remote) for name, p in seen.proofs.items()},
        "published": seen.published,
    }


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
