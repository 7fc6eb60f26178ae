"""registries.conf as the machine-config-operator writes it: what holds for every cluster."""

from __future__ import annotations

import tomllib
from itertools import chain, pairwise
from random import Random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mirror_agent.model import Cost, Policy
from mirror_agent.openshift import Cluster, MirrorSet, RefusedError, Sources, conf, cost, merge, render, rendering
from mirror_agent.openshift.values import Registry

HOSTS = ("quay.io", "quay.io/a", "quay.io/a/b", "docker.io", "m.lan", "n.lan:5000", "x.example.com", "x.example.com/p")
SCOPES = (*HOSTS, "*.example.com", "*.io")
POLICIES = dict(zip(SCOPES, [Policy.ALLOW, Policy.NEVER] * 5, strict=True))


@st.composite
def entries(draw: st.DrawFn) -> MirrorSet:
    """Mostly acceptable: one policy for a source, and no mirror that is a source that is never contacted."""
    source = draw(st.sampled_from(SCOPES))
    mirrors = draw(st.lists(st.sampled_from(HOSTS), unique=True, max_size=4))
    if POLICIES[source] is Policy.NEVER:
        mirrors = [mirror for mirror in mirrors if mirror != source]
    return MirrorSet(source, tuple(mirrors), POLICIES[source])


objects = st.lists(st.lists(entries(), max_size=3).map(tuple), max_size=3).map(tuple)
allowing = objects.map(lambda o: tuple(tuple(e for e in entry if e.policy is Policy.ALLOW) for entry in o))
scopes = st.none() | st.lists(st.sampled_from(SCOPES), max_size=3).map(tuple)
clusters = st.builds(
    Cluster, digest=objects, tag=objects, policies=allowing, sources=st.builds(Sources, insecure=scopes, blocked=scopes)
)


def outcome(cluster: Cluster) -> tuple[str, str]:
    try:
        return render(cluster), ""
    except RefusedError as error:
        return "", str(error)


@given(clusters, st.randoms())
def test_the_order_of_objects_and_entries_means_nothing(cluster: Cluster, random: Random) -> None:
    def shuffled(items: tuple[tuple[MirrorSet, ...], ...]) -> tuple[tuple[MirrorSet, ...], ...]:
        return tuple(tuple(random.sample(entries, len(entries))) for entries in random.sample(items, len(items)))

    other = Cluster(shuffled(cluster.digest), shuffled(cluster.tag), shuffled(cluster.policies), cluster.sources)
    assert outcome(other)[0] == outcome(cluster)[0]


@given(clusters)
def test_how_entries_are_spread_over_objects_means_nothing(cluster: Cluster) -> None:
    def spread(items: tuple[tuple[MirrorSet, ...], ...]) -> tuple[tuple[MirrorSet, ...], ...]:
        return tuple((entry,) for entry in chain(*items))

    def joined(items: tuple[tuple[MirrorSet, ...], ...]) -> tuple[tuple[MirrorSet, ...], ...]:
        return (tuple(chain(*items)),) if any(items) else ()

    # an object that is empty counts for itself: then there is a file even if nothing else is said
    assume(any(chain(cluster.digest, cluster.tag)) or not (cluster.digest or cluster.tag or cluster.policies))
    for change in (spread, joined):
        other = Cluster(change(cluster.digest), change(cluster.tag), change(cluster.policies), cluster.sources)
        assert outcome(other) == outcome(cluster)


@given(clusters)
def test_what_is_written_is_read_back_the_same(cluster: Cluster) -> None:
    text, refused = outcome(cluster)
    assume(not refused)
    search, registries = conf.read(text)
    assert search == conf.SEARCH
    assert text in (conf.write(registries), conf.TEMPLATE)
    assert len({registry.scope for registry in registries}) == len(registries)


@given(clusters, clusters)
def test_nothing_is_paid_for_the_same_bytes_and_for_no_others(one: Cluster, two: Cluster) -> None:
    first, second = outcome(one)[0], outcome(two)[0]
    assume(first and second)
    assert cost(first, first) is Cost.NONE
    assert (cost(first, second) is Cost.NONE) == (first == second)


@given(clusters)
def test_flags_and_mirrors_follow_from_what_was_said(cluster: Cluster) -> None:
    text, refused = outcome(cluster)
    assume(not refused)
    tables = {registry.scope: registry for registry in conf.read(text)[1]}
    said = [*chain(*cluster.digest, *cluster.tag, *cluster.policies)]
    for entry in said:
        real = [mirror for mirror in entry.mirrors if mirror != entry.source]
        if real:
            table = tables[entry.source]
            assert {mirror.location for mirror in table.mirrors} >= set(real)
            assert table.blocked or entry.policy is Policy.ALLOW
    for scope, table in tables.items():
        assert table.blocked == (
            any(e.source == scope and e.policy is Policy.NEVER and any(m != scope for m in e.mirrors) for e in said)
            or any(rendering.nested(scope, outer) for outer in cluster.sources.blocked or ())
        )
        assert table.insecure == any(rendering.nested(scope, outer) for outer in cluster.sources.insecure or ())


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1, max_size=4).map(tuple), max_size=5))
@example([("b", "c"), ("a", "b"), ("c", "d")])
def test_orders_that_fit_together_are_kept(lists: list[tuple[str, ...]]) -> None:
    found = merge.merged(MirrorSet("s", mirrors) for mirrors in lists)
    if not lists:
        assert not found
        return
    (entry,) = found
    assert sorted({*entry.mirrors} - {"s"}) == sorted(set(chain(*lists)))
    assert len({*entry.mirrors}) == len(entry.mirrors)
    edges = {edge for mirrors in lists for edge in pairwise(mirrors)}
    if not any(_reaches(edges, after, before) for before, after in edges):
        assert all(entry.mirrors.index(before) < entry.mirrors.index(after) for before, after in edges)
        assert "s" not in entry.mirrors  # it stands last, where a node tries it anyway


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        (["xc", "xb", "a"], "axbc"),  # what one node sets free is queued in the alphabet's order, behind what was free
        (["ab", "ba"], "ab"),
        (["bs", "sa"], "bsa"),  # a source that stands before a mirror stays in its place
        (["cab", "bca"], "abc"),
        (["ss"], ""),
    ],
)
def test_order_of_merged_mirrors(lists: list[str], expected: str) -> None:
    found = merge.merged(MirrorSet("s", tuple(mirrors)) for mirrors in lists)
    assert "".join(chain(*(entry.mirrors for entry in found))) == expected


def _reaches(edges: set[tuple[str, str]], start: str, end: str) -> bool:
    seen, todo = set(), [start]
    while todo:
        node = todo.pop()
        if node == end:
            return True
        if node not in seen:
            seen.add(node)
            todo += [after for before, after in edges if before == node]
    return False


@pytest.mark.parametrize(
    ("scope", "outer", "within"),
    [
        ("quay.io", "quay.io", True),
        ("quay.io/a", "quay.io", True),
        ("quay.io:443", "quay.io", False),
        ("quay.ion", "quay.io", False),
        ("quay.io", "quay.io/a", False),
        ("a.example.com", "*.example.com", True),
        ("a.example.com/x", "*.example.com", True),
        ("a.example.com:5000/x", "*.example.com", True),
        ("example.com", "*.example.com", False),
        ("*.b.example.com", "*.example.com", True),
        ("quay.io/a.example.com", "*.example.com", False),
        ("quay.io/a.example.com:1", "*.example.com", False),
    ],
)
def test_what_lies_within_a_scope(scope: str, outer: str, within: bool) -> None:
    assert rendering.nested(scope, outer) is within


def test_text_is_quoted_so_that_any_reader_gets_it_back() -> None:
    odd = 'a"b\\c\nd\te\x01f\x7fg é'
    text = conf.write([Registry(location=odd)])
    assert tomllib.loads(text)["registry"][0]["location"] == odd
    assert r'location = "a\"b\\c\nd\te\u0001f\u007fg é"' in text


@pytest.mark.parametrize("text", ["registry = 1", "[[registry]]\nmirror = 1", "registry = ['a']", "x ="])
def test_what_is_no_such_file_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        conf.read(text)


@pytest.mark.parametrize(
    ("cluster", "reason"),
    [
        (Cluster(sources=Sources(insecure=("",))), 'invalid entry for insecure registries ""'),
        (Cluster(sources=Sources(insecure=("a.*",))), 'invalid entry for insecure registries "a.*"'),
        (Cluster(sources=Sources(blocked=("*.a/b",))), 'invalid entry for blocked registries "*.a/b"'),
        (Cluster(sources=Sources(allowed=("*.a:1",))), 'invalid entry for allowed registries "*.a:1"'),
        (Cluster(sources=Sources(allowed=("a",), blocked=("b",))), "only one of AllowedRegistries or Blocked"),
        (Cluster(policies=((MirrorSet("A/B"),),)), 'invalid format for source "A/B"'),
        (Cluster(policies=((MirrorSet("a", ("*.b",)),),)), 'invalid format for mirror "*.b"'),
        (Cluster(release="nginx"), "error parsing reference of release image"),
    ],
)
def test_what_the_operator_refuses(cluster: Cluster, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        render(cluster)
    assert reason in str(caught.value)


RELEASE = f"quay.io/ocp/release@sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("blocked", "mirror", "left"),
    [
        (("quay.io", "b.io"), "", {"b.io"}),
        (("quay.io", "b.io"), "m.lan", {"quay.io", "b.io"}),
        (("quay.io", "m.lan"), "m.lan", {"m.lan"}),  # its mirror is blocked too
        (("quay.io/other",), "", {"quay.io/other"}),
    ],
)
def test_the_release_image_cannot_be_blocked_away(blocked: tuple[str, ...], mirror: str, left: set[str]) -> None:
    digest = ((MirrorSet("quay.io/ocp", (mirror,)),),) if mirror else ()
    text = render(Cluster(digest, sources=Sources(blocked=blocked), release=RELEASE))
    assert {registry.scope for registry in conf.read(text)[1] if registry.blocked} - {"quay.io/ocp"} == left


def test_a_release_with_a_mirror_may_be_blocked_while_it_alone_is_allowed() -> None:
    sources = Sources(blocked=("quay.io/ocp/release",))
    cluster = Cluster(((MirrorSet("quay.io", ("m.lan",)),),), sources=sources, release=RELEASE)
    assert conf.read(render(cluster))[1][-1].blocked


def test_two_blocked_scopes_around_the_release_are_refused() -> None:
    """The operator allows the release's repository once for each, and then sees more than that one allowed."""
    sources = Sources(blocked=("quay.io", "quay.io/ocp"))
    cluster = Cluster(((MirrorSet("quay.io", ("m.lan",)),),), sources=sources, release=RELEASE)
    with pytest.raises(RefusedError, match="only one of AllowedRegistries or BlockedRegistries"):
        render(cluster)
