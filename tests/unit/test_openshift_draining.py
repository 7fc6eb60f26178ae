"""What changes cost: every clause of the machine-config-daemon's rule, from both sides."""

from __future__ import annotations

import pytest

from mirror_agent.model import Cost
from mirror_agent.openshift import conf, cost
from mirror_agent.openshift.values import BY_DIGEST, BY_TAG, Endpoint, Registry


def registry(*mirrors: Endpoint, location: str = "quay.io", **flags: bool) -> Registry:
    return Registry(location=location, mirrors=mirrors, **flags)  # type: ignore[arg-type]  # flags only


D, D2, T, T2 = (Endpoint(host, pull=pull) for pull in (BY_DIGEST, BY_TAG) for host in ("m.lan", "n.lan"))
ALL = Endpoint("all.lan")
PAIR = registry(D, T)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [registry(D)], Cost.RELOAD),
        ([], [registry(D, D2, blocked=True)], Cost.RELOAD),
        ([], [PAIR], Cost.DRAIN),
        ([], [registry(ALL)], Cost.DRAIN),
        ([], [registry(insecure=True)], Cost.DRAIN),  # without mirrors there is nothing that serves digests only
        ([], [registry(blocked=True)], Cost.DRAIN),
        ([registry(D)], [], Cost.DRAIN),
        ([registry(D)], [registry(D, location="other.io")], Cost.DRAIN),
        ([registry(D)], [registry(D, D2)], Cost.RELOAD),
        ([registry(D, D2)], [registry(D2, D)], Cost.RELOAD),
        ([registry(D, D2)], [registry(D)], Cost.DRAIN),
        ([registry(D)], [registry(D, T)], Cost.DRAIN),
        ([registry(D)], [registry(D, T2)], Cost.DRAIN),
        ([registry(D)], [registry(D, ALL)], Cost.DRAIN),
        ([registry(D, T)], [registry(D)], Cost.RELOAD),
        ([registry(D, T2)], [registry(D)], Cost.DRAIN),
        ([registry(T)], [registry(D)], Cost.RELOAD),  # tag to digest is safe, the other way is not
        ([registry(D)], [registry(T)], Cost.DRAIN),
        ([PAIR], [PAIR, registry(D, location="gcr.io")], Cost.RELOAD),
        # the entry for tags is compared with the first one at its location, which is for digests
        ([PAIR], [registry(D, D2, T)], Cost.DRAIN),
        ([registry(T, D)], [registry(T, D, D2)], Cost.RELOAD),
        ([registry(D)], [registry(D, blocked=True)], Cost.DRAIN),
        ([registry(D, blocked=True)], [registry(D)], Cost.DRAIN),
        ([registry(D)], [registry(D, insecure=True)], Cost.DRAIN),
        (
            [registry(D)],
            [registry(Endpoint("m.lan", True, BY_DIGEST))],
            Cost.RELOAD,
        ),  # a mirror's own flag is no matter
        ([registry(D)], [Registry(prefix="quay.io", location="quay.io", mirrors=(D,))], Cost.DRAIN),
        ([registry(D)], [Registry(prefix="quay.io", location="other", mirrors=(D,))], Cost.DRAIN),
    ],
)
def test_cost_of_a_change(before: list[Registry], after: list[Registry], expected: Cost) -> None:
    assert cost(conf.write(before), conf.write(after)) is expected


def test_same_content_in_other_bytes_is_a_reload() -> None:
    assert cost(conf.TEMPLATE, conf.write([])) is Cost.RELOAD
    assert cost(conf.write([]), conf.TEMPLATE) is Cost.RELOAD
    assert cost(conf.TEMPLATE, conf.TEMPLATE) is Cost.NONE


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("['a']", "['a', 'b']", Cost.RELOAD),
        ("['a', 'b']", "['a']", Cost.DRAIN),
        ("['a', 'b']", "['b', 'a']", Cost.DRAIN),
    ],
)
def test_search_registries_may_only_grow(before: str, after: str, expected: Cost) -> None:
    key = "unqualified-search-registries"
    assert cost(f"{key} = {before}\n", f"{key} = {after}\n") is expected


def test_the_older_way_to_say_digests_only_counts_as_well() -> None:
    def text(more: str) -> str:
        return (
            f'[[registry]]\nlocation = "q"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "a"\n{more}'
        )

    assert cost(text(""), text('[[registry.mirror]]\nlocation = "b"\n')) is Cost.RELOAD
    alone = '[[registry]]\nlocation = "q"\nmirror-by-digest-only = true\n'
    assert cost(conf.TEMPLATE, alone + conf.TEMPLATE.replace("unq", "x")) is Cost.DRAIN  # the search list is gone
    assert cost("", alone) is Cost.RELOAD
