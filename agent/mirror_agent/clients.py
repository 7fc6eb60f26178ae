"""Floor 4: what clients do with the mirrors, and when to look into the caches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mirror_agent import plan, pods
from mirror_agent.host import disk, edge_log, journal, state, store
from mirror_agent.host.store import Stores
from mirror_agent.model import Fill, Paths, Role, Trouble
from mirror_agent.usage import Usage, Wanted, account, is_of_a_killed_worker, wanted

SAVE_SECONDS = 60.0  # between two writes of what clients did: a kill loses no more
SCAN_SECONDS = 30.0  # between two looks into the caches: 20 µs a blob
TIGHT_SECONDS = 2.0  # the same while the host has less free space than its floor
FORGET = timedelta(hours=1)  # an image that was used and is not cached after this time
SHARED = timedelta(seconds=2)  # clients that ask at the same time share an answer (quadlets/nginx.conf, $second)


class Clients:
    """What clients do with the mirrors, read from the edges' logs, and when to look into the caches."""

    def __init__(self, paths: Paths) -> None:
        self._file = paths.usage
        self._usage: Mapping[str, Usage] = {}
        self._cursor = ""
        try:
            self._usage, self._cursor = state.load_usage(self._file)
        except Trouble as trouble:  # worth a line, not worth a host without an agent: what the journal has is counted
            journal.get().error(f"{trouble}; it begins anew", action="usage")
        self._stores = Stores()
        self._counts = (
            False  # no look yet: nothing to keep, and the file may be one that only a newer agent understands
        )
        self.soon = False  # the caches are to be looked into as soon as may be: the host is, or was, short of space
        self.fills: Mapping[str, Fill] = {}  # as the stores were at the last look
        self.doubts: Mapping[str, datetime] = {}  # by mirror: when clients last wanted something that did not come
        self.wounded: frozenset[str] = frozenset()  # ids of edges, one of whose workers was killed
        self._scan = self._tight = self._write = 0.0  # when next (monotonic)

    def look(self, desired: plan.Desired) -> tuple[Mapping[str, Usage], Stores | None]:
        """What is known now; the stores when it is time to look into them again."""
        self._counts = True
        by_container = {pods.container_name(mirror.name, Role.EDGE): mirror.name for mirror in desired.mirrors}
        lines, self._cursor = edge_log.read(tuple(by_container), self._cursor)
        grouped: dict[str, list[tuple[datetime, str]]] = {}
        for line in lines:
            grouped.setdefault(by_container[line.container], []).append((line.at, line.text))
        self.wounded |= {line.id for line in lines if is_of_a_killed_worker(line.text)}
        for name, told in grouped.items():
            self._usage = {**self._usage, name: account(self._usage.get(name, Usage()), told)}
            self._doubt(name, wanted(told), desired.settings.cache.path / name / "registry")
        now = time.monotonic()
        if now >= self._write:
            self.save()
            self._write = now + SAVE_SECONDS
        short = disk.free(desired.settings.cache.path) < desired.settings.cache.free
        self.soon = short or self.soon  # also once when there is space again
        if now < (self._tight if self.soon else self._scan):
            return self._usage, None
        self.soon = short
        self._scan, self._tight = now + SCAN_SECONDS, now + TIGHT_SECONDS
        return self._usage, self._stores

    def _doubt(self, name: str, asked: Wanted, registry: Path) -> None:
        """Did the upstream answer what it had to be asked for?  A tag that it gave anew is as good as all others."""
        given = {tag: store.confirmed(registry, *tag) for tag in asked.tags}
        silent = [at for tag, at in asked.tags.items() if not (last := given[tag]) or last < at - SHARED]
        latest = max(filter(None, (*silent, asked.missed, self.doubts.get(name))), default=None)
        answered = max(filter(None, given.values()), default=None)
        self.doubts = {other: at for other, at in self.doubts.items() if other != name}
        if latest and not (answered and answered >= latest):
            self.doubts = {**self.doubts, name: latest}

    def again(self) -> None:
        """Look into the caches next time: something was taken out of them."""
        self._scan = self._tight = 0.0

    def forget(self, observed: plan.Observed) -> None:
        """Drop what was remembered of images that have left the caches, and of mirrors that were purged.

        Those alone have no lease: one whose definition is gone keeps it.
        """
        self._usage = {name: usage for name, usage in self._usage.items() if name in observed.leases}
        self.doubts = {name: at for name, at in self.doubts.items() if name in observed.leases}
        since, stores = datetime.now(UTC) - FORGET, observed.stores
        self.fills = observed.fills
        for name, found in stores.items():
            if name in self._usage:
                self._usage = {**self._usage, name: self._usage[name].only(found.needs.keys(), since)}

    def save(self) -> None:
        """Keep it for the next run.  A failure costs nothing but the newest uses."""
        if not self._counts:
            return
        try:
            state.save_usage(self._file, self._usage, self._cursor)
        except Trouble as trouble:
            journal.get().warning(str(trouble), action="usage")
