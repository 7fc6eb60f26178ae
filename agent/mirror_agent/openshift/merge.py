"""The entries of all objects as one list of mirrors per source (openshift/runtime-utils, pkg/registries).

registries.go: mirrorSets.addMirrorSet, mirrorSets.mergedMirrors, mergedMirrorSets; topo.go: topoGraph.Sorted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise

from mirror_agent.model import Policy
from mirror_agent.openshift.values import MirrorSet


def merged(entries: Iterable[MirrorSet]) -> tuple[MirrorSet, ...]:
    """One entry per source, sorted by source.

    An entry without a mirror that is not the source itself does not exist, its policy included.  One Never is enough.
    """
    lists: dict[str, list[tuple[str, ...]]] = {}
    never: set[str] = set()
    for entry in entries:
        if all(mirror == entry.source for mirror in entry.mirrors):
            continue
        if entry.policy is Policy.NEVER:
            never.add(entry.source)
        lists.setdefault(entry.source, []).append(entry.mirrors)
    return tuple(
        MirrorSet(source, _ordered(source, lists[source]), Policy.NEVER if source in never else Policy.ALLOW)
        for source in sorted(lists)
    )


def _ordered(source: str, lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All mirrors of a source, each list's order kept where possible, else alphabetical.

    The source stands last, and is then left out, unless a list puts it before a mirror.
    """
    following: dict[str, set[str]] = {}
    for mirrors in lists:
        line = mirrors if source in mirrors else (*mirrors, source)
        for before, after in pairwise(line):
            following.setdefault(before, set()).add(after)
            following.setdefault(after, set())
    found = sorted_by_edges(following)
    return found[:-1] if found[-1] == source else found


def sorted_by_edges(following: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Nodes in an order that respects the edges, where possible: topoGraph.Sorted, step by step.

    `following` has every node as a key.  Its ties are not the alphabet's throughout: nodes that become free are
    queued behind those that were free before.
    """
    names = sorted(following)
    waiting_for = {name: {other for other in names if name in following[other]} for name in names}
    free = deque(name for name in names if not waiting_for[name])
    loop_breakers = iter(names)
    done: dict[str, None] = {}
    while len(done) < len(names):
        # in a loop nothing is free: it is broken at the first node of the alphabet that is left
        node = free.popleft() if free else next(name for name in loop_breakers if name not in done)
        done[node] = None
        for other in sorted(following[node]):
            waiting_for[other].discard(node)
            if not waiting_for[other] and other not in done:
                free.append(other)
    return tuple(done)
