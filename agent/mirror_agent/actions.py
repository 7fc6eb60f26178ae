"""Floor 1: the steps that plan/ can ask for and apply.py can do, as values.

`str(step)` is what it does, in words for people.  Two steps are equal when they would do the same thing: `why` does
not count, so that a step that was done and is asked for again is recognised as futile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import get_args

from mirror_agent.model import Change, Cost, Document, Eviction, File, Folder


@dataclass(frozen=True, slots=True)
class Step:
    """What all steps have.  `mirror` is "" for steps that serve all; a failed step holds back only its own mirror."""

    mirror: str
    why: str = field(compare=False)

    @property
    def action(self) -> str:
        """The kind of step, as the journal's ACTION= and machines have it: "claim-address"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    def alone(self) -> bool:
        """Does it neither build on the earlier steps of its mirror's round, nor do later ones build on it?"""
        spare = isinstance(self, IssueCertificate) and self.spare
        asks = isinstance(self, AskRenewal | AskPullLimit | ReachUpstream)
        return spare or asks or isinstance(self, AnnounceAddress | ProveMirror | Evict | HoldFetches | Withdraw)

    @property
    def subject(self) -> str:
        """What a failure of this step holds back: the same kind of step for the same subject."""
        return self.mirror


@dataclass(frozen=True, slots=True)
class CreateAuthority(Step):
    """Make the agent's own CA."""

    def __str__(self) -> str:
        return "create the CA"


@dataclass(frozen=True, slots=True)
class PrepareAuthority(Step):
    """Make the next CA, to be published beside the current one, or take over the one that an admin brought."""

    def __str__(self) -> str:
        return "prepare the next CA"


@dataclass(frozen=True, slots=True)
class NotePublished(Step):
    """Remember since when every target has the next CA."""

    key: str

    def __str__(self) -> str:
        return f"the next CA is published ({self.key[:8]})"


@dataclass(frozen=True, slots=True)
class SwitchAuthority(Step):
    """Issue from the next CA from now on; the one before stays trusted."""

    key: str

    def __str__(self) -> str:
        return f"issue from the next CA ({self.key[:8]})"


@dataclass(frozen=True, slots=True)
class DropAuthority(Step):
    """Trust a CA no more that signs nothing any more."""

    key: str

    @property
    def subject(self) -> str:
        """One CA that cannot be dropped does not hold back another."""
        return self.key

    def __str__(self) -> str:
        return f"drop the CA ({self.key[:8]})"


@dataclass(frozen=True, slots=True)
class PullImage(Step):
    """Bring an image that pods need, before any unit needs it."""

    image: str

    @property
    def subject(self) -> str:
        """One image that cannot be had does not hold back another."""
        return self.image

    def __str__(self) -> str:
        return f"pull image {self.image}"


@dataclass(frozen=True, slots=True)
class Remember(Step):
    """Keep what must survive a restart of the agent: leases and the definitions in force."""

    leases: Mapping[str, IPv4Address]
    accepted: Mapping[str, bytes]

    def __str__(self) -> str:
        return "remember leases and definitions"


@dataclass(frozen=True, slots=True)
class MakeFolder(Step):
    """Make a folder, or give it its mode and owner."""

    folder: Folder

    def __str__(self) -> str:
        return f"make folder {self.folder.path}"


@dataclass(frozen=True, slots=True)
class WriteFile(Step):
    """Write a configuration that running containers read later, on reload or restart."""

    file: File

    def __str__(self) -> str:
        return f"write {self.file.path}"


@dataclass(frozen=True, slots=True)
class IssueCertificate(Step):
    """Get a certificate for a mirror and make it the current one."""

    not_after: datetime | None = field(default=None, compare=False)  # of the one that is served meanwhile
    spare: bool = field(default=False, compare=False)  # that one is good: nothing waits for this

    def __str__(self) -> str:
        return "issue certificate"


@dataclass(frozen=True, slots=True)
class AskRenewal(Step):
    """Ask the ACME server when it would have a mirror's certificate renewed."""

    serial: int
    asked: datetime | None  # the last time

    def __str__(self) -> str:
        return "ask when the certificate is to be renewed"


@dataclass(frozen=True, slots=True)
class AskPullLimit(Step):
    """Ask the upstream what is left of its limit on pulls."""

    asked: datetime | None  # the last time

    def __str__(self) -> str:
        return "ask what is left of the pull limit"


@dataclass(frozen=True, slots=True)
class ReachUpstream(Step):
    """Open a connection to the upstream, and ask nothing."""

    tried: datetime | None  # the last time
    doubt: datetime | None = field(default=None, compare=False)  # since when it may be away

    def __str__(self) -> str:
        return "see whether the upstream can be reached"


@dataclass(frozen=True, slots=True)
class ClaimAddress(Step):
    """Ask the LAN whether the address is free, before it is used."""

    address: IPv4Address

    def __str__(self) -> str:
        return f"claim address {self.address}"


@dataclass(frozen=True, slots=True)
class WriteUnits(Step):
    """Write quadlet files of one mirror (or the network's), after podman's own check of them."""

    files: tuple[File, ...]

    def __str__(self) -> str:
        return f"write {', '.join(file.path.name for file in self.files)}"


@dataclass(frozen=True, slots=True)
class StopUnits(Step):
    """Stop units whose file is to go, or whose address another mirror is to have."""

    units: tuple[str, ...]

    def __str__(self) -> str:
        return f"stop {_short(self.units)}"


@dataclass(frozen=True, slots=True)
class DeleteFile(Step):
    """Delete a file of ours that should no longer exist."""

    path: PurePosixPath

    def __str__(self) -> str:
        return f"delete {self.path}"


@dataclass(frozen=True, slots=True)
class ReloadSystemd(Step):
    """One daemon-reload for all that was written or deleted."""

    units: tuple[str, ...]  # for which: a second reload for the very same ones would be futile

    def __str__(self) -> str:
        return "reload systemd"


@dataclass(frozen=True, slots=True)
class StartUnits(Step):
    """Start units that do not run, and wait until the edge answers."""

    units: tuple[str, ...]

    def __str__(self) -> str:
        return f"start {_short(self.units)}"


@dataclass(frozen=True, slots=True)
class RestartUnits(Step):
    """Restart units that run with something else than they should, and wait until the edge answers."""

    units: tuple[str, ...]

    def __str__(self) -> str:
        return f"restart {_short(self.units)}"


@dataclass(frozen=True, slots=True)
class ReloadEdge(Step):
    """Let the edge take a new configuration or certificate without dropping a connection; proved by its answer."""

    unit: str
    config: str
    serial: int

    def __str__(self) -> str:
        return f"reload {_short((self.unit,))}"


@dataclass(frozen=True, slots=True)
class AnnounceAddress(Step):
    """Gratuitous ARP from inside the pod, so that neighbours forget who had the address before."""

    start: str  # identity of the pod's start

    def __str__(self) -> str:
        return "announce address"


@dataclass(frozen=True, slots=True)
class ProveMirror(Step):
    """Pull an image through the mirror's own name, TLS chain and address."""

    image: str

    def __str__(self) -> str:
        return f"prove by pulling {self.image}"


@dataclass(frozen=True, slots=True)
class RemoveNetwork(Step):
    """Remove a podman network of ours that no pod uses any more."""

    network: str

    def __str__(self) -> str:
        return f"remove network {self.network}"


@dataclass(frozen=True, slots=True)
class Publish(Step):
    """Carry the documents to a target."""

    target: str
    documents: tuple[Document, ...]
    changed: tuple[str, ...]  # names, for people

    @property
    def subject(self) -> str:
        """One target that cannot be reached does not hold back another."""
        return self.target

    def __str__(self) -> str:
        return f"publish to {self.target}: {', '.join(self.changed)}"


@dataclass(frozen=True, slots=True)
class PublishToCluster(Step):
    """Apply changes to a cluster, trust before mirrors."""

    target: str
    changes: tuple[Change, ...]
    cost: Cost
    told: str = field(compare=False)  # the cost, for people

    @property
    def subject(self) -> str:
        """A cluster that cannot be reached holds back nothing else."""
        return self.target

    def __str__(self) -> str:
        return f"apply to {self.target}: {', '.join(map(str, self.changes))}: {self.told}"


@dataclass(frozen=True, slots=True)
class Evict(Step):
    """Take images out of a mirror's store, live."""

    eviction: Eviction

    def __str__(self) -> str:
        freed = f"{self.eviction.size / 2**20:,.0f} MiB"
        return f"evict {len(self.eviction.images)} manifests, {len(self.eviction.blobs)} blobs: {freed}"


@dataclass(frozen=True, slots=True)
class HoldFetches(Step):
    """Tell the edge whether the disk is full: then it fetches no more blobs, and serves those that are there."""

    full: bool

    def __str__(self) -> str:
        return "fetch nothing new" if self.full else "fetch again"


@dataclass(frozen=True, slots=True)
class Withdraw(Step):
    """Forget the proof of a mirror: it leaves the publications, until a real pull proves it again."""

    def __str__(self) -> str:
        return "withdraw from the publications"


# Every kind of step, in the order of one round.
type Action = (
    CreateAuthority
    | PrepareAuthority
    | NotePublished
    | SwitchAuthority
    | DropAuthority
    | Remember
    | PullImage
    | MakeFolder
    | ClaimAddress
    | IssueCertificate
    | AskRenewal
    | WriteFile
    | StopUnits
    | WriteUnits
    | DeleteFile
    | ReloadSystemd
    | RestartUnits
    | StartUnits
    | ReloadEdge
    | AnnounceAddress
    | ProveMirror
    | AskPullLimit
    | ReachUpstream
    | RemoveNetwork
    | Evict
    | HoldFetches
    | Withdraw
    | Publish
    | PublishToCluster
)
ORDER: tuple[type[Action], ...] = get_args(Action.__value__)


def _short(units: Iterable[str]) -> str:
    return ", ".join(unit.removesuffix(".service") for unit in units)
