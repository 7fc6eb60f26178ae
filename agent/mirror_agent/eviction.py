"""Floor 1: which images leave the cache when it has become too large.  Pure.

Whole images go, the least recently used first; what another image needs as well stays.  Each mirror keeps to its
budget; when the host runs out of space, the least recently used images of all mirrors go.  Whatever was used or
fetched a moment ago stays, so that no pull that is under way loses what it has: a pull larger than the budget
succeeds, and is trimmed afterwards.  Only when half of the host's floor is used up, nothing but pins counts: a blob
that went too early is fetched again, a full disk breaks the downloads of all.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mirror_agent.model import Eviction, Fill, ImageName, Store

GRACE = timedelta(minutes=10)  # longer than a client takes from a manifest to the blobs it names
SLACK = 20  # trimming frees 1/20 more than it must, so that not each pull is followed by one

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cached:
    """One mirror's cache, and what decides on it."""

    store: Store
    budget: int  # bytes
    used: Mapping[ImageName, datetime] = field(default_factory=dict)  # last use by clients
    pinned: Collection[ImageName] = ()
    keep: timedelta | None = None  # since the last use; None: as long as there is room


@dataclass(frozen=True, slots=True, order=True)
class _Step:
    """One image of one mirror, and what nobody needs when it has left after those before it."""

    last_use: datetime
    mirror: str
    images: tuple[ImageName, ...]
    blobs: tuple[str, ...]
    size: int


def choose(caches: Mapping[str, Cached], floor: int, now: datetime, grace: timedelta = GRACE) -> Mapping[str, Eviction]:
    """What leaves which mirror's cache, by mirror; `floor` are the bytes of the file system that are left to the host.

    An image that no client used counts as used when it was fetched.  All caches lie on one file system.
    """
    leaving: dict[str, list[_Step]] = {}
    rest: list[Iterator[_Step]] = []
    for name, cached in caches.items():
        steps = _steps(name, cached, now, grace)
        leaving[name] = []
        if cached.keep:
            leaving[name], steps = _older(steps, now - cached.keep)
        over = cached.store.size - cached.budget - sum(step.size for step in leaving[name])
        leaving[name] += _until(steps, over + cached.budget // SLACK if over > 0 else 0)
        rest.append(steps)
    free = min((cached.store.free for cached in caches.values()), default=floor)
    short = floor - free - _size(leaving)
    for step in _until(heapq.merge(*rest), short + floor // SLACK if short > 0 else 0):
        leaving[step.mirror].append(step)
    if free + _size(leaving) < floor // 2 and grace:
        return choose(caches, floor // 2, now, timedelta())
    return {name: _together(steps) for name, steps in leaving.items() if steps}


def _size(leaving: Mapping[str, list[_Step]]) -> int:
    return sum(step.size for steps in leaving.values() for step in steps)


def fill(store: Store) -> Fill:
    """How full a store is: images as clients ask for them, an index with all in it being one."""
    return Fill(store.size, sum(1 for _ in _roots(store)), store.free)


@dataclass(frozen=True, slots=True)
class Listed:
    """An image of a cache, as people are shown it."""

    image: ImageName
    size: int  # bytes of all its blobs that are there, whoever needs them too
    used: datetime | None  # None: nobody knows
    pinned: bool


def listing(cached: Cached, now: datetime) -> tuple[Listed, ...]:
    """The images of a cache as clients ask for them, the one that would leave first in front."""
    found = []
    for root in _roots(cached.store):
        members = frozenset(_members(root, cached.store))
        blobs = frozenset(_blobs(members, cached.store))
        used = _last_use(members, blobs, cached, now)
        size = sum(cached.store.blobs[digest].size for digest in blobs)
        pinned = not members.isdisjoint(cached.pinned)
        found.append(Listed(root, size, None if used == _NEVER else used, pinned))
    return tuple(sorted(found, key=lambda each: (each.pinned, each.used or _NEVER, each.image)))


def _older(steps: Iterator[_Step], since: datetime) -> tuple[list[_Step], Iterator[_Step]]:
    """Steps that were last used before, and the others.

    An image of which nobody knows when it was used is no old one: a host that starts without a clock of its own is
    years behind, all that it has seems to be of the future, and it may be without internet for a while.
    """
    found: list[_Step] = []
    rest: list[_Step] = []
    for step in steps:
        if step.last_use >= since:
            return found, itertools.chain(rest, [step], steps)
        (rest if step.images and step.last_use == _NEVER else found).append(step)
    return found, iter(rest)


def _until(steps: Iterator[_Step], target: int) -> Iterator[_Step]:
    """Steps until `target` bytes are free."""
    while target > 0 and (step := next(steps, None)):
        target -= step.size
        yield step


def _together(steps: list[_Step]) -> Eviction:
    return Eviction(
        images=tuple(image for step in steps for image in step.images),
        blobs=tuple(digest for step in steps for digest in step.blobs),
        size=sum(step.size for step in steps),
    )


def _steps(mirror: str, cached: Cached, now: datetime, grace: timedelta) -> Iterator[_Step]:
    """All that may leave a mirror's cache, in the order in which it would: first what belongs to no image."""
    store = cached.store
    images = {root: frozenset(_members(root, store)) for root in _roots(store)}
    blobs = {root: frozenset(_blobs(members, store)) for root, members in images.items()}
    holders = Counter(digest for held in blobs.values() for digest in held)
    indexes = Counter(image for members in images.values() for image in members)

    def step(last_use: datetime, members: Collection[ImageName], candidates: Collection[str]) -> _Step:
        gone = [d for d in candidates if not holders[d] and _past(store.blobs[d].fetched, now) <= now - grace]
        leaving = [image for image in members if not indexes[image]]
        size = sum(store.blobs[digest].size for digest in gone)
        return _Step(last_use, mirror, tuple(sorted(leaving)), tuple(sorted(gone)), size)

    if (orphans := step(_NEVER, (), store.blobs)).blobs:
        yield orphans
    for last_use, root in sorted((_last_use(images[root], blobs[root], cached, now), root) for root in images):
        if last_use > now - grace:
            return
        if not images[root].intersection(cached.pinned):
            holders.subtract(blobs[root])
            indexes.subtract(images[root])
            yield step(last_use, images[root], blobs[root])


def _roots(store: Store) -> Iterator[ImageName]:
    """Images that no index of their repository names: what clients ask for by tag."""
    children = {(repository, need) for (repository, _), needs in store.needs.items() for need in needs}
    return (image for image in store.needs if image not in children)


def _members(root: ImageName, store: Store) -> Iterator[ImageName]:
    """An image and, of an index, the images in it that are there.  An index may name an index."""
    seen, left = {root}, [root]
    while left:
        image = left.pop()
        yield image
        children = {(root[0], need) for need in store.needs[image]} & store.needs.keys()
        left += children - seen
        seen |= children


def _blobs(members: Collection[ImageName], store: Store) -> Iterator[str]:
    for image in members:
        yield from (digest for digest in (image[1], *store.needs[image]) if digest in store.blobs)


def _last_use(members: Collection[ImageName], blobs: Collection[str], cached: Cached, now: datetime) -> datetime:
    """Of an image as a whole: the latest use of any manifest of it, or when something of it was fetched.

    A pull over a slow line takes hours: its image is in use as long as blobs of it arrive.
    """
    fetched = (cached.store.blobs[digest].fetched for digest in blobs)
    used = (cached.used[image] for image in members if image in cached.used)
    return max((_past(at, now) for at in (*fetched, *used)), default=_NEVER)


def _past(at: datetime, now: datetime) -> datetime:
    """A time that is still to come is one of a clock that was wrong, and says nothing."""
    return at if at <= now + GRACE else _NEVER
