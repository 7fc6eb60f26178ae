"""What a new registries.conf costs a cluster (machine-config-operator, pkg/daemon: drain.go and update.go).

drain.go: isDrainRequired, isSafeContainerRegistryConfChanges, searchRegistryMirror, allDigestOnlyMirror; update.go:
calculatePostConfigChangeActionFromMCDiffs reloads CRI-O for this file and restarts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from mirror_agent.model import Cost
from mirror_agent.openshift import conf
from mirror_agent.openshift.values import BY_DIGEST, Endpoint, Registry


def cost(before: str, after: str) -> Cost:
    """The price of going from one registries.conf to another.  Raises ValueError when one is not such a file.

    A cluster of a single node is never drained: the price is then at most a reload (drain.go, drainRequired).
    """
    if before == after:
        return Cost.NONE
    old_search, old = conf.read(before)
    new_search, new = conf.read(after)
    if old_search != new_search[: len(old_search)]:
        return Cost.DRAIN
    return Cost.RELOAD if _safe(_by_scope(old), _by_scope(new)) else Cost.DRAIN


def _by_scope(registries: Iterable[Registry]) -> dict[str, Registry]:
    return {registry.scope: registry for registry in registries}


def _safe(old: dict[str, Registry], new: dict[str, Registry]) -> bool:
    """Nothing may go, and what comes may serve pulls by digest only: their content cannot differ."""
    return not old.keys() - new.keys() and all(
        _safe_change(old[scope], registry) if scope in old else _by_digest_only(registry)
        for scope, registry in new.items()
    )


def _by_digest_only(registry: Registry) -> bool:
    """A table without mirrors is not: it is there for what it blocks, or may be reached insecurely."""
    if not registry.mirrors:
        return registry.digest_only
    return all(mirror.pull == BY_DIGEST for mirror in registry.mirrors)


def _safe_change(old: Registry, new: Registry) -> bool:
    def head(registry: Registry) -> tuple[str, str, bool, bool]:
        return registry.prefix, registry.location, registry.blocked, registry.insecure

    if old == new:
        return True
    if head(old) != head(new):
        return False
    if not all(_search(mirror.location, new.mirrors) for mirror in old.mirrors):
        return False
    for mirror in new.mirrors:
        known = _search(mirror.location, old.mirrors)
        if known is None:
            if mirror.pull != BY_DIGEST and not new.digest_only:
                return False
        elif mirror.pull not in (known.pull, BY_DIGEST):
            return False
    return True


def _search(location: str, mirrors: Iterable[Endpoint]) -> Endpoint | None:
    """The first one at this location: a mirror that serves digests and tags has two entries, the digests' first."""
    return next((mirror for mirror in mirrors if mirror.location == location), None)
