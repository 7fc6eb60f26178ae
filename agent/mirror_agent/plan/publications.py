"""What readers may be told, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import lru_cache

from mirror_agent import cluster, formats
from mirror_agent.actions import (
    Action,
    Publish,
    PublishToCluster,
    Withdraw,
)
from mirror_agent.model import (
    Cost,
    Document,
    Publication,
    Role,
)
from mirror_agent.plan.values import Desired, Observed


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


def answers(mirror: str, observed: Observed) -> bool:
    """Does a mirror serve, as far as the host can tell?  What its upstream does is not asked."""
    return mirror in observed.edges and observed.container(mirror, Role.REGISTRY) is not None


def unwell(desired: Desired, observed: Observed) -> frozenset[str]:
    """Mirrors that were proved and do not answer."""
    proved = (mirror.name for mirror in desired.mirrors if mirror.name in observed.proofs)
    return frozenset(name for name in proved if not answers(name, observed))


def withdraw(desired: Desired, observed: Observed) -> Iterator[Action]:
    """Mirrors leave the publications only where the settings say so, and only those that were away for long."""
    limit = desired.settings.publish.withdraw_after
    for name in sorted(unwell(desired, observed)):
        if limit is not None and observed.unwell.get(name, 0) >= limit:
            yield Withdraw(name, "has not answered for the time of publish.withdraw_after")


def in_doubt(desired: Desired, observed: Observed) -> tuple[str, ...]:
    """Mirrors that were published and have no definition that could be in force now.

    While there are any, nothing is published: a set without them would make the nodes of a cluster drop them.
    """
    return tuple(sorted(desired.frozen & observed.proofs.keys()))


@lru_cache(maxsize=16)  # asked for at each look, and the same each time when nothing happens
def documents(publication: Publication) -> tuple[Document, ...]:
    """Every document of every format, in the order in which targets write them."""
    return tuple(document for render in formats.FORMATS.values() for document in render(publication))


def publish(desired: Desired, observed: Observed) -> Iterator[Action]:
    """Carry to each target what it does not have yet."""
    if observed.authority is None or in_doubt(desired, observed):
        return
    wanted = documents(publication(desired, observed))
    by_name = {document.name: document.content for document in wanted}
    for target, published in observed.published.items():
        names = by_name.keys() | published.keys()
        if changed := tuple(sorted(name for name in names if by_name.get(name) != published.get(name))):
            yield Publish("", "", target, wanted, changed)


def cluster_outcome(desired: Desired, observed: Observed) -> cluster.Outcome | None:
    """What the cluster lacks; None where there is none, it cannot be read, or there is nothing sure to tell it."""
    settings = desired.settings.publish.cluster
    if settings is None or observed.cluster is None or observed.authority is None or in_doubt(desired, observed):
        return None
    return cluster.compare(publication(desired, observed), settings, observed.cluster)


def publish_to_cluster(desired: Desired, observed: Observed, now: datetime) -> Iterator[Action]:
    """Tell the cluster what it lacks, as far as it may be told now."""
    settings = desired.settings.publish.cluster
    outcome = cluster_outcome(desired, observed)
    if settings and outcome and (changes := outcome.due(settings, now.astimezone())):
        cost = outcome.cost if len(changes) > len(outcome.trust) else Cost.NONE
        yield PublishToCluster("", "", cluster.place(settings), changes, cost, cluster.COST[cost])
