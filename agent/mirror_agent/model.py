"""Floor 0: the frozen values that every other floor speaks in.

Nothing here reads, writes or decides.  The words are those of README.md ("Words"): an *upstream* is a registry
on the internet, a *mirror* is our pull-through cache for it (host name, address, pod), a *source* is the prefix
that clients write, a *remote* the URL that the cache pulls from, the *edge* is nginx, the *registry* is CNCF
distribution, a *definition* is one file in the drop-in folder, *settings* are agent.toml, a *lease* is the address
that a mirror keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path, PurePosixPath
from typing import Any


class Policy(StrEnum):
    """May a client go to the source itself when the mirror cannot serve?  The values are OpenShift's."""

    NEVER = "NeverContactSource"
    ALLOW = "AllowContactingSource"


class Cost(StrEnum):
    """What a change of its mirror configuration does to a cluster's nodes (openshift/draining.py has the rules)."""

    NONE = "none"  # the nodes' file stays as it is
    RELOAD = "reload"  # CRI-O reads it anew, nothing is interrupted
    DRAIN = "drain"  # every node, one after another


class Drain(StrEnum):
    """When a change that drains every node of a cluster is made."""

    NEVER = "never"  # held back, and told
    WINDOW = "window"  # at a time of the week
    ALWAYS = "always"  # at once


class Role(StrEnum):
    """The two containers of a mirror's pod."""

    EDGE = "edge"
    REGISTRY = "registry"


class LeafKey(StrEnum):
    """The kind of a mirror's private key.  No Ed25519: FIPS clients refuse it."""

    P256 = "p256"
    RSA = "rsa3072"  # for readers without ECDSA


class Issuer(StrEnum):
    """Who makes a mirror's certificate."""

    OWN = "own"  # the CA of this host
    ACME = "acme"
    BROUGHT = "brought"  # an admin, as files


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake, told to a person: where, what is wrong, what to do about it."""

    file: str
    key: str  # dotted, "" for the file as a whole
    reason: str
    hint: str = ""
    mirror: str = ""  # the mirror that is held back by it, "" for none
    message_id: str = field(default="", compare=False)  # of messages.py, where the file alone does not tell the kind
    denied: bool = field(default=False, compare=False)  # this user may not look: there may be no mistake at all

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        return f"{where}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


class Trouble(Exception):
    """Something on the host or at a target did not work, told to a person: where, why, what to do about it.

    A `Problem` is a mistake in what an admin wrote; a Trouble is what went wrong while acting on it.
    """

    def __init__(self, where: str, reason: str, hint: str = "", message_id: str = "") -> None:
        super().__init__(where, reason, hint)
        self.where = where  # a file, a unit, an address
        self.reason = reason
        self.hint = hint
        self.message_id = message_id  # of messages.py, where it is known better here than by the step that failed

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


class Denied(Trouble):
    """The user that runs us may not do it."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things live on the host.  One value, so that `render --to` and tests can move all of them."""

    settings: PurePosixPath = PurePosixPath("/etc/mirror-agent/agent.toml")
    definitions: tuple[PurePosixPath, ...] = (  # the first folder that has a file name wins
        PurePosixPath("/etc/mirror-agent.d"),
        PurePosixPath("/run/mirror-agent.d"),
        PurePosixPath("/usr/lib/mirror-agent.d"),
    )
    templates: PurePosixPath = PurePosixPath("/usr/share/mirror-agent/quadlets")
    units: PurePosixPath = PurePosixPath("/etc/containers/systemd/mirror-agent")
    state: PurePosixPath = PurePosixPath("/var/lib/mirror-agent")
    run: PurePosixPath = PurePosixPath("/run/mirror-agent")

    @property
    def authority(self) -> PurePosixPath:
        """Folder (0700) of the CAs: current -> a-KEY/{ca.key, ca.crt}, while one is replaced also next -> a-KEY."""
        return self.state / "ca"

    @property
    def leases(self) -> PurePosixPath:
        """File of the addresses that mirrors keep."""
        return self.state / "leases.json"

    @property
    def proofs(self) -> PurePosixPath:
        """File of the last real pull through each mirror."""
        return self.state / "proofs.json"

    @property
    def acme(self) -> PurePosixPath:
        """Folder (0700) of the account at an ACME server."""
        return self.state / "acme"

    @property
    def suggestions(self) -> PurePosixPath:
        """File of what the ACME server said about renewals."""
        return self.acme / "renewals.json"

    @property
    def usage(self) -> PurePosixPath:
        """File of what clients did: last use of images, counters."""
        return self.state / "usage.json"

    @property
    def keeps(self) -> PurePosixPath:
        """File of the images that are pinned, by the name of the set."""
        return self.state / "keeps.json"

    @property
    def pull_limits(self) -> PurePosixPath:
        """File of what the upstreams said of their limits; it does not outlive a boot."""
        return self.run / "pull-limits.json"

    @property
    def reaches(self) -> PurePosixPath:
        """File of which upstreams can be reached; it does not outlive a boot."""
        return self.run / "upstreams.json"

    @property
    def accepted(self) -> PurePosixPath:
        """Folder of the last good text of each definition."""
        return self.state / "accepted"

    @property
    def status(self) -> PurePosixPath:
        """File in which the agent says how things are: what `mirror-agent status` reads."""
        return self.run / "status.json"

    @property
    def metrics(self) -> PurePosixPath:
        """File of the same as metrics, for node_exporter's textfile collector."""
        return self.run / "metrics.prom"

    @property
    def reloaded(self) -> PurePosixPath:
        """Empty file that is there after a reload: who removes it before SIGHUP sees by it when that was answered."""
        return self.run / "reloaded"

    def mirror(self, name: str) -> PurePosixPath:
        """Folder of what one mirror's pod mounts read-only: edge/, registry/, auth/, tls/."""
        return self.state / "mirrors" / name


# --- what the admin wrote ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of a drop-in folder as it lies there: facts for config.py to judge.  Links are never followed."""

    path: str
    kind: str  # "regular", "masked" (a link to /dev/null), "link", "unreadable" (by this user), "other"
    owner: int = 0  # uid
    mode: int = 0o644
    size: int = 0  # bytes
    content: bytes = b""  # empty where it was not read: not regular, or too large


@dataclass(frozen=True, slots=True)
class Tls:
    """A mirror's certificate that an admin brings, as PEM files."""

    certificate: Path  # with what stands between it and a root
    key: Path
    ca: Path | None = None  # what readers must trust for it; None: they do already


@dataclass(frozen=True, slots=True)
class Definition:
    """One valid definition file.  What was not written is None (or empty): compose() fills it in."""

    name: str
    file: str
    sources: tuple[str, ...]  # at least one; the first is the one the mirror is known by
    remote: str  # URL, https:// (http:// only with insecure)
    host: str | None = None
    address: IPv4Address | None = None
    policy: Policy = Policy.NEVER
    insecure: bool = False
    credentials: Path | None = None  # a file: user name on the first line, password or token on the second
    ca: Path | None = None  # a file: PEM of CAs that the upstream's certificate may come from, beside the public ones
    proxy: str | None = None  # URL of the HTTP proxy on the way to the upstream
    bandwidth: int | None = None  # bytes per second from the upstream
    budget: int | None = None  # bytes; None: the settings' budget
    fresh: int = 60  # seconds that a tag is served without asking the upstream
    probe: str | None = None  # "repository:tag", small; the first real pull of a new mirror
    tls: Tls | None = None
    keep: int | None = (
        None  # seconds without a use after which an image leaves the cache; None: as long as there is room
    )
    allow: tuple[str, ...] = ()  # globs of the repositories that are served; empty: all
    pull_limit: str | None = None  # "repository:tag" that the upstream is asked about; None: it is not asked


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The LAN that the mirrors live on."""

    parent: str  # interface that carries the macvlan
    subnet: IPv4Network
    gateway: IPv4Address
    first: IPv4Address  # range of addresses that the agent may use, both ends included
    last: IPv4Address
    dns: tuple[IPv4Address, ...] = ()  # name servers of the pods; empty: those of the host


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where cached images live and how much of the disk they may take."""

    path: Path = Path("/var/lib/mirror-agent/cache")
    budget: int = 100 * 2**30  # bytes per mirror
    free: int = 10 * 2**30  # bytes of the file system that are always left to the host


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """The two images of a pod, as podman names them."""

    edge: str = "docker.io/library/nginx:stable"
    registry: str = "docker.io/library/registry:3"


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """An ACME server (RFC 8555), and how its DNS challenges are answered: by an update, or by a command."""

    directory: str  # URL
    email: str = ""
    trust: Path | None = None  # what readers must trust for its certificates; None: they do already
    server: IPv4Address | None = None  # name server that takes updates (RFC 2136)
    key: Path | None = None  # TSIG key for them, as BIND writes it
    hook: Path | None = None  # command: HOOK add|remove NAME VALUE


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    """Life times of the agent's own CA and of the leaves it issues."""

    ca_days: int = 3650
    leaf_days: int = 90
    roll_days: int = 30  # that readers have to learn to trust a new CA before it is used
    ca: Path | None = None  # folder of an admin's own CA: ca.key, ca.crt; None: the agent makes one
    acme: AcmeSettings | None = None  # certificates come from an ACME server, not from a CA of this host
    leaf_key: LeafKey = LeafKey.P256


@dataclass(frozen=True, slots=True)
class Window:
    """A time of the week on this host's clock."""

    day: int | None  # Monday is 0; None: every day
    start: time
    end: time  # at or before `start`: on the next day

    def contains(self, local: datetime) -> bool:
        """Is it now?  `local` is the time on the host's clock."""
        days, begins = [local.weekday()], local.time() >= self.start
        if self.start < self.end:
            return begins and local.time() < self.end and self.day in (None, *days)
        if begins:
            return self.day in (None, *days)
        return local.time() < self.end and self.day in (None, (days[0] - 1) % 7)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The cluster that is told of the mirrors."""

    kubeconfig: Path
    name: str  # of this cache host among those of the cluster: part of its objects' names
    adopt: tuple[str, ...] = ()  # objects of others in which entries with our mirrors get our policy
    drain: Drain = Drain.NEVER
    window: Window | None = None  # with Drain.WINDOW


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """The folder that readers fetch the publication from, and who may read it."""

    path: Path
    mode: int = 0o644  # of the files; folders can be entered by whoever may read
    group: str = ""  # name or number; "": the one that new files get there


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """Where publications go.  None: nowhere."""

    folder: FolderSettings | None = None
    cluster: ClusterSettings | None = None
    withdraw_after: int | None = None  # seconds that a mirror may be unwell before it leaves them; None: it stays


@dataclass(frozen=True, slots=True)
class Settings:
    """agent.toml, with the defaults filled in."""

    domain: str
    network: NetworkSettings
    cache: CacheSettings = field(default_factory=CacheSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    certificates: CertificateSettings = field(default_factory=CertificateSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)


# --- what should exist ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mirror:
    """A definition with nothing left open: what is to run, under which names."""

    name: str
    sources: tuple[str, ...]
    remote: str
    host: str  # fully qualified, lower case
    address: IPv4Address
    mac: str  # "02:00:…", a function of the address
    policy: Policy
    credentials: Path | None
    budget: int  # bytes
    fresh: int  # seconds
    probe: str | None
    tls: Tls | None = None
    keep: int | None = None  # seconds
    allow: tuple[str, ...] = ()  # globs of repositories; empty: all
    ca: Path | None = None
    proxy: str | None = None  # URL
    bandwidth: int | None = None  # bytes per second
    pull_limit: str | None = None  # "repository:tag"; None: the upstream is not asked what is left of its limit

    @property
    def upstream(self) -> str:
        """What the mirror is a mirror of, for people and the journal's UPSTREAM= field."""
        return self.sources[0]

    def location(self, source: str) -> str:
        """Where clients find `source` on this mirror: its host, with the path that the source has, if any.

        The cache serves its upstream under the upstream's own paths, and clients put the location in the place
        of the source: so 'quay.io/org' lies at 'HOST/org'.
        """
        _, slash, path = source.partition("/")
        return self.host + slash + path


def served(image: str, allow: Collection[str]) -> bool:
    """May clients have this "repository:tag"?  `*` in a glob is any number of characters, `/` too; no glob is all."""
    return not allow or any(fnmatchcase(image.partition(":")[0], glob) for glob in allow)


@dataclass(frozen=True, slots=True)
class File:
    """A file that should exist, byte for byte."""

    path: PurePosixPath
    content: bytes = field(repr=False)  # may be a secret
    mode: int = 0o644
    owner: int = 0  # uid and gid


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that should exist before a pod mounts it.  Its content is not ours to compare."""

    path: PurePosixPath
    mode: int = 0o755
    owner: int = 0  # uid and gid


@dataclass(frozen=True, slots=True)
class Document:
    """One published file: a name relative to the target, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Pod:
    """Everything on disk that makes one mirror run, and the identities by which drift is seen.

    A hash is the first 16 hex digits of SHA-256.  `pod_hash` and the container hashes are labels of the running
    containers, `edge_config` is what the edge answers on /healthz: so what runs can be compared with what should
    run without a memory of our own.
    """

    mirror: str
    folders: tuple[Folder, ...]
    units: tuple[File, ...]  # quadlet files
    configs: tuple[File, ...]  # nginx.conf, registry configuration
    pod_hash: str
    container_hashes: tuple[tuple[Role, str], ...]
    edge_config: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """The macvlan network, named by the hash of its content: a change is a new network."""

    name: str  # "mirror-agent-<hash>"
    unit: File


@dataclass(frozen=True, slots=True)
class Publication:
    """What readers are told: only mirrors that were proved by a real pull, in the order of their names."""

    mirrors: tuple[Mirror, ...]
    trust: str  # PEM of the CA certificates that readers must trust, each block ending in one newline


# --- what is there -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate on disk says (never a key)."""

    hosts: tuple[str, ...]
    addresses: tuple[IPv4Address, ...]
    serial: int
    not_before: datetime  # aware, UTC
    not_after: datetime
    issuer_key: str  # hex SubjectKeyIdentifier of the CA that signed it
    key_matches: bool = True  # the private key beside it belongs to it
    subject_key: str = ""  # hex SubjectKeyIdentifier of its own key: what a CA's leaves name as issuer_key
    subject: str = ""  # for people
    issuer: str = ""
    key: LeafKey | None = LeafKey.P256  # its kind, None: another one


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA, as readers know it: its certificate, with those above it if it is no root."""

    facts: Certificate
    pem: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """What tells CAs apart, and what their leaves name as `issuer_key`."""
        return self.facts.subject_key


@dataclass(frozen=True, slots=True)
class Authorities:
    """The CAs of this host; all of them are published."""

    current: Authority  # signs
    coming: Authority | None = None  # will sign, when readers trust it
    old: tuple[Authority, ...] = ()  # have signed

    @property
    def all(self) -> tuple[Authority, ...]:
        """In the order in which they began, so that what is published does not change with what signs."""
        found = [self.current, *self.old, *([self.coming] if self.coming else ())]
        return tuple(sorted(found, key=lambda each: (each.facts.not_before, each.key)))


@dataclass(frozen=True, slots=True)
class Suggestion:
    """When an ACME server would have a certificate renewed (RFC 9773)."""

    serial: int  # of that certificate
    asked: datetime
    at: datetime | None = None  # None: it says nothing about it


@dataclass(frozen=True, slots=True)
class Rollover:
    """What is remembered while a CA is replaced, by the CAs' keys.  Losing it costs time, never trust."""

    published: Mapping[str, datetime] = field(default_factory=dict)  # since when every target has it
    confirmed: frozenset[str] = frozenset()  # all readers trust it: an admin said so
    ends: Mapping[str, datetime] = field(default_factory=dict)  # of those replaced: when their last leaf has ended


@dataclass(frozen=True, slots=True)
class UnitState:
    """A systemd unit as D-Bus shows it.  Strings are systemd's own."""

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    need_reload: bool = False
    source: str = ""  # SourcePath: the quadlet file


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A running container of ours, as podman shows it."""

    mirror: str
    role: Role | None  # None: the pod's infra container, which owns the network namespace
    id: str
    pod_hash: str = ""
    hash: str = ""
    started: str = ""  # podman's own time stamp: another start is another value
    namespace: str = ""  # path of its pod's network namespace
    address: IPv4Address | None = None  # of its pod, on the LAN

    @property
    def start(self) -> str:
        """Identity of this start of the container."""
        return f"{self.id} {self.started}"


@dataclass(frozen=True, slots=True)
class EdgeState:
    """What the edge answers inside its pod: the configuration it runs with and the certificate it serves."""

    config: str = ""
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """A real pull that a mirror served through its own name, TLS chain and address."""

    host: str
    address: IPv4Address
    remote: str
    image: str  # repository@digest or repository:tag that was pulled
    at: datetime

    def covers(self, mirror: Mirror) -> bool:
        """Is this still the mirror that was proved?"""
        return (self.host, self.address, self.remote) == (mirror.host, mirror.address, mirror.remote)


@dataclass(frozen=True, slots=True)
class PullLimit:
    """What an upstream said of its limit on pulls when it was last asked."""

    asked: datetime
    limit: int | None = None  # pulls in a window of time; None: it tells of no limit, or is not known
    remaining: int = 0
    window: int = 0  # seconds; 0: not told
    source: str = ""  # whose pulls it counts: an address, or the id of an account
    low: bool = False  # nearly used up
    error: str = ""  # why it is not known


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether an upstream could be reached when that was last tried."""

    remote: str
    tried: datetime
    since: datetime | None = None  # from when on it cannot be reached; None: it can
    error: str = ""  # why it cannot


# --- a cluster ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pool:
    """A MachineConfigPool: how far its nodes are with a change."""

    name: str
    machines: int
    updated: int
    updating: bool = False
    degraded: str = ""  # why, "" when it is not


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What a cluster holds that says where images come from, as its API server gave it."""

    objects: tuple[Mapping[str, Any], ...] = ()  # mirror sets of all kinds, image.config.openshift.io/cluster
    trust: Mapping[str, Any] | None = None  # the ConfigMap of additionalTrustedCA, or the one to be made for it
    pools: tuple[Pool, ...] = ()
    host: str = ""  # this cache host, as its objects there name it; "" where it has no identity


@dataclass(frozen=True, slots=True)
class Change:
    """One object for server-side apply."""

    body: Mapping[str, Any]  # apiVersion, kind, metadata, and the fields that are to be ours
    manager: str = "mirror-agent"  # the field manager
    force: bool = False  # fields of other managers become ours

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.body["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


# --- what is cached ------------------------------------------------------------------------------------------

type ImageName = tuple[str, str]  # (repository, digest of a manifest): one manifest as one repository has it


@dataclass(frozen=True, slots=True)
class Blob:
    """A verified blob in the registry's store."""

    size: int  # bytes
    fetched: datetime  # when it came from the upstream


@dataclass(frozen=True, slots=True)
class Store:
    """What one mirror has cached.

    `needs` has, for each manifest that is there, the digests it names: config and layers of an image, the manifests
    of an index.  Not all of them need be there: a node pulls one platform of an index.
    """

    blobs: Mapping[str, Blob]  # by digest; manifests are blobs too
    needs: Mapping[ImageName, tuple[str, ...]]
    free: int  # bytes left on the file system

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs.values())


@dataclass(frozen=True, slots=True)
class Fill:
    """How full a mirror's cache was when it was last looked at."""

    size: int  # bytes
    images: int
    free: int  # bytes left on the file system


@dataclass(frozen=True, slots=True)
class Eviction:
    """What is to leave a store: whole images, and the blobs that nobody needs then."""

    images: tuple[ImageName, ...]
    blobs: tuple[str, ...]
    size: int  # bytes that get free
