"""What all mirror sets are made of: one entry per source, in one order."""

from __future__ import annotations

from dataclasses import dataclass

from mirror_agent.model import Policy, Publication


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One source, where it lies on its mirror, and whether clients may still go to the source itself."""

    source: str  # "quay.io", "quay.io/org"
    mirror: str  # "quay.mirror.lan", "quay.mirror.lan/org"
    policy: Policy


def entries(publication: Publication) -> tuple[Entry, ...]:
    """One entry per source of every mirror, sorted by source: the order in which OpenShift's nodes list them too."""
    return tuple(
        sorted(
            Entry(source, mirror.location(source), mirror.policy)
            for mirror in publication.mirrors
            for source in mirror.sources
        )
    )


def whole(publication: Publication) -> tuple[Entry, ...]:
    """Those of whole registries: what readers need that know no paths (containerd, k3s, Talos)."""
    return tuple(entry for entry in entries(publication) if "/" not in entry.source)
