"""What leaves a cache: whole images, the least recently used first, and never more than must."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mirror_agent.eviction import GRACE, SLACK, Cached, choose, fill, listing
from mirror_agent.model import Blob, Eviction, Fill, ImageName, Store

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
OLD, FRESH = NOW - timedelta(days=9), NOW - GRACE / 2
PLENTY = 10**9


@dataclass(frozen=True)
class Image:
    """What a test puts into a store: an image, or (with children) an index."""

    repository: str
    digest: str
    layers: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    fetched: datetime = OLD
    used: datetime | None = None
    size: int = 1  # of the manifest

    @property
    def name(self) -> ImageName:
        return self.repository, self.digest


def store(images: Collection[Image], layers: Mapping[str, int], *, free: int = PLENTY, orphans: int = 0) -> Store:
    """A layer is there when an image has it, as old as the oldest of those."""
    blobs = {f"orphan{n}": Blob(10, OLD) for n in range(orphans)}
    for image in sorted(images, key=lambda each: each.fetched, reverse=True):
        blobs[image.digest] = Blob(image.size, image.fetched)
        blobs.update({layer: Blob(layers[layer], image.fetched) for layer in image.layers})
    return Store(blobs, {image.name: (*image.layers, *image.children) for image in images}, free)


def cached(images: Collection[Image], layers: Mapping[str, int], *, budget: int = PLENTY, free: int = PLENTY,
           orphans: int = 0, pinned: Collection[ImageName] = ()) -> Cached:  # fmt: skip
    used = {image.name: image.used for image in images if image.used}
    return Cached(store(images, layers, free=free, orphans=orphans), budget, used, pinned)


def after(before: Cached, leaving: Eviction | None) -> Cached:
    """The cache when that has left."""
    if leaving is None:
        return before
    blobs = {digest: blob for digest, blob in before.store.blobs.items() if digest not in leaving.blobs}
    needs = {image: needs for image, needs in before.store.needs.items() if image not in leaving.images}
    return replace(before, store=Store(blobs, needs, before.store.free + leaving.size))


def at(days: int) -> datetime:
    return NOW - timedelta(days=days)


# --- by example


def test_nothing_leaves_a_cache_within_its_budget() -> None:
    assert choose({"m": cached([Image("r", "a", ("l",))], {"l": 99}, budget=100)}, 0, NOW) == {}


def test_the_least_recently_used_leaves_whole() -> None:
    images = [Image("r", "a", ("la",), used=at(3)), Image("r", "b", ("lb",), used=at(4))]
    leaving = choose({"m": cached(images, {"la": 50, "lb": 50}, budget=100)}, 0, NOW)["m"]
    assert leaving == Eviction((("r", "b"),), ("b", "lb"), 51)


def test_an_image_that_nobody_used_counts_from_its_fetch() -> None:
    images = [Image("r", "a", ("la",), fetched=at(2)), Image("r", "b", ("lb",), fetched=at(8), used=at(3))]
    assert choose({"m": cached(images, {"la": 50, "lb": 50}, budget=100)}, 0, NOW)["m"].images == (("r", "b"),)


def test_a_shared_layer_stays_while_anyone_needs_it() -> None:
    images = [Image("r", "a", ("base", "la"), used=at(1)), Image("q", "b", ("base", "lb"), used=at(2))]
    leaving = choose({"m": cached(images, {"base": 60, "la": 20, "lb": 20}, budget=100)}, 0, NOW)["m"]
    assert leaving == Eviction((("q", "b"),), ("b", "lb"), 21)


def test_an_index_leaves_with_all_its_images_and_is_as_young_as_the_youngest() -> None:
    images = [
        Image("r", "index", children=("amd", "arm", "never-pulled")),
        Image("r", "amd", ("l1",), used=at(1)),
        Image("r", "arm", ("l2",)),
        Image("r", "other", ("l3",), used=at(2)),
    ]
    cache = cached(images, {"l1": 40, "l2": 40, "l3": 40}, budget=120)
    assert choose({"m": cache}, 0, NOW)["m"].images == (("r", "other"),)
    assert set(choose({"m": replace(cache, budget=10)}, 0, NOW)["m"].images) == {image.name for image in images}


def test_an_image_of_two_indexes_stays_with_the_second() -> None:
    images = [
        Image("r", "v1", children=("amd",), used=at(9)),
        Image("r", "v2", children=("amd",), used=at(1)),
        Image("r", "amd", ("l",)),
        Image("r", "big", ("lb",), used=at(5)),
    ]
    leaving = choose({"m": cached(images, {"l": 10, "lb": 90}, budget=50)}, 0, NOW)["m"]
    assert leaving == Eviction((("r", "v1"), ("r", "big")), ("v1", "big", "lb"), 92)


def test_blobs_of_no_image_go_first() -> None:
    leaving = choose({"m": cached([Image("r", "a", ("l",))], {"l": 90}, budget=100, orphans=3)}, 0, NOW)["m"]
    assert leaving == Eviction((), ("orphan0", "orphan1", "orphan2"), 30)


def test_a_pull_larger_than_the_budget_stays_until_it_is_over() -> None:
    image = Image("r", "a", ("l",), fetched=FRESH)
    cache = cached([image], {"l": 5000}, budget=100)
    assert choose({"m": cache}, 0, NOW) == {}
    assert choose({"m": cache}, 0, NOW + GRACE)["m"].images == (image.name,)


def test_an_image_whose_layers_still_arrive_is_in_use() -> None:
    """A slow line: the manifest came an hour ago, the last layer just now."""
    one = cached([Image("r", "a", ("early", "late"))], {"early": 500, "late": 1}, budget=100)
    blobs = {**one.store.blobs, "late": Blob(1, FRESH)}
    assert choose({"m": replace(one, store=replace(one.store, blobs=blobs))}, 0, NOW) == {}


def test_the_host_is_helped_by_all_mirrors_by_age() -> None:
    quay = cached(
        [Image("r", "a", ("la",), used=at(1)), Image("r", "b", ("lb",), used=at(4))], {"la": 9, "lb": 9}, free=80
    )
    hub = cached(
        [Image("r", "c", ("lc",), used=at(3)), Image("r", "d", ("ld",), used=at(2))], {"lc": 9, "ld": 9}, free=80
    )
    leaving = choose({"quay": quay, "hub": hub}, 100, NOW)
    assert {name: eviction.images for name, eviction in leaving.items()} == {
        "quay": (("r", "b"),), "hub": (("r", "c"), ("r", "d"))
    }  # fmt: skip


def test_what_budgets_free_counts_for_the_host() -> None:
    quay = cached([Image("r", "a", ("la",), used=at(9))], {"la": 50}, budget=10, free=60)
    hub = cached([Image("r", "c", ("lc",), used=at(99))], {"lc": 50}, free=60)
    assert choose({"quay": quay, "hub": hub}, 100, NOW).keys() == {"quay"}


def test_a_disk_that_is_nearly_full_takes_even_what_was_just_used() -> None:
    """The rest of a pull needs the room: what goes too early is fetched again."""
    images = [Image("r", "a", ("la",), fetched=FRESH), Image("r", "b", ("lb",), fetched=FRESH, used=NOW)]
    tight = cached(images, {"la": 60, "lb": 60}, free=60)
    assert choose({"m": tight}, 100, NOW) == {}
    full = replace(tight, store=replace(tight.store, free=40))
    assert choose({"m": full}, 100, NOW)["m"].images == (("r", "a"),)
    assert choose({"m": replace(full, pinned=[("r", "a")])}, 100, NOW)["m"].images == (("r", "b"),)


def test_what_was_not_used_for_its_keep_time_leaves_even_when_there_is_room() -> None:
    images = [
        Image("r", name, (f"l{name}",), fetched=at(99), used=at(days))
        for name, days in (("a", 5), ("b", 20), ("c", 40), ("d", 50))
    ]
    sizes = {f"l{name}": 10 for name in "abcd"}
    for keep, gone in ((60, ()), (45, ("d",)), (30, ("c", "d")), (1, ("a", "b", "c", "d"))):
        kept = replace(cached(images, sizes), keep=timedelta(days=keep))
        found = choose({"m": kept}, 0, NOW).get("m", Eviction((), (), 0))
        assert sorted(digest for _, digest in found.images) == list(gone)
    held = replace(cached(images, sizes, pinned=[("r", "d")]), keep=timedelta(days=1))
    assert ("r", "d") not in choose({"m": held}, 0, NOW)["m"].images
    tight = replace(cached(images, sizes, budget=15), keep=timedelta(days=45))
    assert sorted(digest for _, digest in choose({"m": tight}, 0, NOW)["m"].images) == ["b", "c", "d"]


def test_times_to_come_say_nothing() -> None:
    """A clock that was once years ahead does not keep images for years."""
    wrong = NOW + timedelta(days=3000)
    images = [Image("r", "a", ("la",), fetched=wrong, used=wrong), Image("r", "b", ("lb",), used=at(1))]
    assert choose({"m": cached(images, {"la": 60, "lb": 60}, budget=100)}, 0, NOW)["m"].images == (("r", "a"),)


def test_a_clock_that_is_years_behind_ends_no_keep_time() -> None:
    """A host without a battery, that starts without internet: what it has is of the future, and all that there is."""
    images = [Image("r", name, (f"l{name}",), fetched=at(9), used=at(3)) for name in "ab"]
    kept = replace(cached(images, {"la": 60, "lb": 60}, orphans=1), keep=timedelta(days=30))
    behind = datetime(2000, 1, 1, tzinfo=UTC)
    assert choose({"m": kept}, 0, behind)["m"].images == ()
    full = replace(kept, budget=100)  # the budget counts all the same
    assert len(choose({"m": full}, 0, behind)["m"].images) == 1


def test_the_listing_begins_with_what_would_leave_first() -> None:
    images = [
        Image("r", "index", children=("amd",), used=at(2)),
        Image("r", "amd", ("base", "l1"), fetched=at(20)),
        Image("r", "old", ("base",), fetched=at(30), used=at(9)),
        Image("r", "kept", ("l2",), fetched=at(40)),
    ]
    cache = cached(images, {"base": 50, "l1": 10, "l2": 5}, pinned=[("r", "kept")])
    found = [(each.image[1], each.size, each.pinned) for each in listing(cache, NOW)]
    assert found == [("old", 51, False), ("index", 62, False), ("kept", 6, True)]
    assert fill(cache.store) == Fill(cache.store.size, 3, PLENTY)


# --- whatever there is

LAYERS = {f"layer{n}": size for n, size in enumerate((1, 5, 10, 30, 100, 300))}
times = st.one_of(
    st.integers(1, 500).map(lambda hours: NOW - timedelta(hours=hours)), st.sampled_from([FRESH, NOW, NOW - GRACE])
)


@st.composite
def collections(draw: st.DrawFn, mirror: str = "m") -> list[Image]:
    images: list[Image] = []
    for number in range(draw(st.integers(0, 7))):
        repository = draw(st.sampled_from(["r", "q/s"]))
        fetched = draw(times)
        used = draw(st.none() | times)
        own = [image for image in images if image.repository == repository]
        digest = f"{mirror}{number}"
        if own and draw(st.integers(0, 2)) == 0:
            children = draw(st.lists(st.sampled_from(own), unique=True, max_size=3))
            images.append(Image(repository, digest, (), tuple(c.digest for c in children), fetched, used))
        else:
            layers = draw(st.lists(st.sampled_from(sorted(LAYERS)), unique=True, max_size=4))
            images.append(Image(repository, digest, tuple(layers), (), fetched, used))
            if draw(st.integers(0, 4)) == 0 and repository == "r":  # the same in another repository
                images.append(Image("copy", digest, tuple(layers), (), fetched, draw(st.none() | times)))
    return images


@st.composite
def caches(draw: st.DrawFn, mirror: str = "m", free: int = PLENTY, floor: bool = False) -> Cached:
    images = draw(collections(mirror))
    names = [image.name for image in images]
    pinned = draw(st.lists(st.sampled_from(names), max_size=2)) if names else []
    budget = PLENTY if floor else draw(st.integers(1, 900))
    return cached(images, LAYERS, budget=budget, free=free, orphans=draw(st.integers(0, 2)), pinned=pinned)


def family(image: ImageName, cache: Cached) -> set[ImageName]:
    found = {image}
    for need in cache.store.needs[image]:
        if (image[0], need) in cache.store.needs:
            found |= family((image[0], need), cache)
    return found


def held(image: ImageName, cache: Cached) -> set[str]:
    """Blobs of an image and all in it, as far as they are there."""
    named = {digest for each in family(image, cache) for digest in (each[1], *cache.store.needs[each])}
    return named & cache.store.blobs.keys()


def roots(cache: Cached) -> list[ImageName]:
    named = {(image[0], need) for image, needs in cache.store.needs.items() for need in needs}
    return [image for image in cache.store.needs if image not in named]


def age(image: ImageName, cache: Cached) -> datetime:
    used = [cache.used[each] for each in family(image, cache) if each in cache.used]
    return max([*used, *(cache.store.blobs[digest].fetched for digest in held(image, cache))])


def pinned(image: ImageName, cache: Cached) -> bool:
    return not family(image, cache).isdisjoint(cache.pinned)


@given(caches())
def test_what_stays_stays_whole_and_what_goes_goes_whole(cache: Cached) -> None:
    leaving = choose({"m": cache}, 0, NOW).get("m")
    rest = after(cache, leaving)
    gone = {root for root in roots(cache) if leaving and root in leaving.images}
    for root in set(roots(cache)) - gone:
        assert family(root, rest) == family(root, cache)
        assert held(root, rest) == held(root, cache)
    needed = {digest for root in roots(rest) for digest in held(root, rest)}
    for root in gone:
        kept = held(root, cache) & rest.store.blobs.keys()
        assert all(digest in needed or cache.store.blobs[digest].fetched > NOW - GRACE for digest in kept)
    assert cache.store.size - rest.store.size == (leaving.size if leaving else 0)


@given(caches())
def test_pinned_and_recent_images_never_leave(cache: Cached) -> None:
    for name in choose({"m": cache}, 0, NOW).get("m", Eviction((), (), 0)).images:
        for root in roots(cache):
            if name in family(root, cache) and pinned(root, cache):
                raise AssertionError(f"{name} belongs to {root}, which is pinned")
        assert name not in cache.pinned
        assert cache.used.get(name, OLD) <= NOW - GRACE
        assert cache.store.blobs[name[1]].fetched <= NOW - GRACE


@given(caches())
def test_the_budget_is_kept_unless_all_that_is_left_may_not_go(cache: Cached) -> None:
    rest = after(cache, choose({"m": cache}, 0, NOW).get("m"))
    if rest.store.size > rest.budget:
        assert all(pinned(root, cache) or age(root, cache) > NOW - GRACE for root in roots(rest))
        needed = {digest for root in roots(rest) for digest in held(root, rest)}
        loose = rest.store.blobs.keys() - needed
        assert all(rest.store.blobs[digest].fetched > NOW - GRACE for digest in loose)
    assert choose({"m": rest}, 0, NOW) == {}


@given(caches())
def test_nothing_younger_leaves_before_something_older(cache: Cached) -> None:
    leaving = choose({"m": cache}, 0, NOW).get("m")
    if leaving:
        gone = [age(root, cache) for root in roots(cache) if root in leaving.images]
        stay = [age(r, cache) for r in roots(cache) if r not in leaving.images and not pinned(r, cache)]
        assert not gone or not stay or max(gone) <= min(stay)


@given(caches())
def test_no_image_leaves_in_vain(cache: Cached) -> None:
    """Without the last one that left, too little would be free."""
    leaving = choose({"m": cache}, 0, NOW).get("m")
    gone = sorted((age(root, cache), root) for root in roots(cache) if leaving and root in leaving.images)
    if leaving is None:
        assert cache.store.size <= cache.budget or after(cache, leaving) == cache
    elif gone:
        rest = after(cache, leaving)
        last = held(gone[-1][1], cache) - rest.store.blobs.keys()
        without = leaving.size - sum(cache.store.blobs[digest].size for digest in last)
        assert without < cache.store.size - cache.budget + cache.budget // SLACK


@given(caches("a", 50, floor=True), caches("b", 50, floor=True), st.integers(51, 100))
def test_the_floor_takes_the_oldest_of_all_mirrors(a: Cached, b: Cached, floor: int) -> None:
    both = {"a": a, "b": b}
    leaving = choose(both, floor, NOW)
    gone: list[datetime] = []
    stay: list[datetime] = []
    for name, cache in both.items():
        for root in roots(cache):
            left = name in leaving and root in leaving[name].images
            if left or not pinned(root, cache):
                (gone if left else stay).append(age(root, cache))
    assert not gone or not stay or max(gone) <= min(stay)
    if 50 + sum(eviction.size for eviction in leaving.values()) < floor:
        assert all(at > NOW - GRACE for at in stay)


@given(caches("a", 50), caches("b", 50), st.integers(0, 300), st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_found_does_not_matter(a: Cached, b: Cached, floor: int, random: object) -> None:
    def shuffled[K, V](mapping: Mapping[K, V]) -> dict[K, V]:
        items = list(mapping.items())
        random.shuffle(items)  # type: ignore[attr-defined]
        return dict(items)

    def again(cache: Cached) -> Cached:
        mixed = Store(shuffled(cache.store.blobs), shuffled(cache.store.needs), cache.store.free)
        return replace(cache, store=mixed, used=shuffled(cache.used))

    assert choose({"a": a, "b": b}, floor, NOW) == choose(shuffled({"b": again(b), "a": again(a)}), floor, NOW)


@given(caches("a", 50), caches("b", 50), st.integers(0, 300))
def test_when_it_is_done_nothing_is_left_to_do(a: Cached, b: Cached, floor: int) -> None:
    """One round is enough but when the disk is nearly full, which takes the most urgent first."""
    both, free = {"a": a, "b": b}, 50
    rounds = 0
    while leaving := choose(both, floor, NOW):
        free += sum(eviction.size for eviction in leaving.values())
        rest = {name: after(cache, leaving.get(name)) for name, cache in both.items()}
        both = {name: replace(c, store=replace(c.store, free=free)) for name, c in rest.items()}
        rounds += 1
        assert rounds <= (1 if floor <= 100 else 3)
