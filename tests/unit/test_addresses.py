"""A mirror keeps its address, whatever else comes and goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mirror_agent.addresses import assign, mac_of, resolve
from mirror_agent.model import Definition, Mirror, NetworkSettings, Policy, Problem, Settings

BASE = IPv4Address("10.0.0.0")


def network(first: int = 4, last: int = 8) -> NetworkSettings:
    return NetworkSettings("eth1", IPv4Network("10.0.0.0/24"), BASE + 1, BASE + first, BASE + last)


def definition(name: str, address: int | None = None) -> Definition:
    return Definition(
        name, f"{name}.toml", (f"{name}.io",), f"https://{name}.io", address=BASE + address if address else None
    )


def leased(**leases: int) -> dict[str, IPv4Address]:
    return {name: BASE + address for name, address in leases.items()}


def told(problems: tuple[Problem, ...]) -> list[str]:
    return [str(problem) for problem in problems]


def test_the_mac_follows_from_the_address() -> None:
    assert mac_of(IPv4Address("10.0.0.4")) == "02:00:0a:00:00:04"
    assert mac_of(IPv4Address("192.168.1.255")) == "02:00:c0:a8:01:ff"


def test_nothing_is_left_open() -> None:
    settings = Settings("mirror.lan", network())
    assert resolve(definition("quay"), BASE + 4, settings) == Mirror(
        name="quay",
        sources=("quay.io",),
        remote="https://quay.io",
        host="quay.mirror.lan",
        address=BASE + 4,
        mac="02:00:0a:00:00:04",
        policy=Policy.NEVER,
        credentials=None,
        budget=100 * 2**30,
        fresh=60,
        probe=None,
    )
    written = replace(definition("quay"), host="q.lan", budget=2**30, credentials=Path("/etc/mirror-agent/q"), fresh=5)
    mirror = resolve(written, BASE + 4, settings)
    assert (mirror.host, mirror.budget, mirror.credentials, mirror.fresh) == ("q.lan", 2**30, written.credentials, 5)


def test_a_new_mirror_gets_the_same_address_on_a_host_that_lost_its_leases() -> None:
    one, _ = assign([definition("quay"), definition("gcr")], {}, network(4, 60))
    other, _ = assign([definition("quay")], {}, network(4, 60))
    assert one["quay"] == other["quay"]


def test_a_written_address_wins_and_the_other_moves() -> None:
    leases, problems = assign([definition("a"), definition("b", 4)], leased(a=4), network())
    assert leases["b"] == BASE + 4
    assert leases["a"] != BASE + 4
    assert not problems


def test_a_written_address_is_kept_when_it_is_no_longer_written() -> None:
    leases, _ = assign([definition("a", 7)], {}, network())
    assert assign([definition("a")], leases, network()) == (leased(a=7), ())


def test_two_mirrors_swap_their_addresses() -> None:
    assert assign([definition("a", 5), definition("b", 4)], leased(a=4, b=5), network(4, 5)) == (leased(a=5, b=4), ())
    assert assign([definition("a", 5), definition("b")], leased(a=4, b=5), network(4, 5)) == (leased(a=5, b=4), ())


def test_a_removed_mirror_keeps_its_address_until_it_is_written_elsewhere() -> None:
    leases, _ = assign([definition("a")], leased(gone=4), network(4, 5))
    assert leases == leased(a=5, gone=4)
    leases, _ = assign([definition("a", 4)], leases, network(4, 5))
    assert leases == leased(a=4)


def test_a_lease_out_of_a_new_range_moves() -> None:
    assert assign([definition("a")], leased(a=4), network(8, 8)) == (leased(a=8), ())


def test_an_exhausted_range_names_what_a_purge_would_free() -> None:
    leases, problems = assign(
        [definition("a"), definition("b"), definition("c")], leased(b=5, old=4, older=6, far=99), network(4, 6)
    )
    assert leases == leased(b=5, far=99, old=4, older=6)
    hint = "removed mirrors keep their addresses until: mirror-agent purge old older"
    assert told(problems) == [
        f"a.toml: no address is left in 10.0.0.4-10.0.0.6 ({hint})",
        f"c.toml: no address is left in 10.0.0.4-10.0.0.6 ({hint})",
    ]
    assert [problem.mirror for problem in problems] == ["a", "c"]


def test_an_exhausted_range_without_removed_mirrors() -> None:
    _, problems = assign([definition("a"), definition("b")], leased(a=4), network(4, 4))
    assert told(problems) == ["b.toml: no address is left in 10.0.0.4-10.0.0.4 (widen [network] range in the settings)"]


def test_a_newcomer_does_not_take_the_last_place_of_a_mirror_that_runs() -> None:
    leases, problems = assign([definition("a"), definition("b", 4)], leased(a=4), network(4, 4))
    assert leases == leased(a=4)
    assert told(problems) == [
        "b.toml: address: 10.0.0.4 is leased to another mirror, and no address is left in 10.0.0.4-10.0.0.4 "
        "(widen [network] range in the settings)"
    ]


@pytest.mark.parametrize(("lease", "expected"), [({}, {}), ({"a": 5}, {"a": 5})])
def test_the_address_of_a_frozen_mirror_is_not_given_away(lease: dict[str, int], expected: dict[str, int]) -> None:
    leases, problems = assign([definition("a", 4)], leased(ill=4, **lease), network(), frozen={"ill"})
    assert leases == leased(ill=4, **expected)
    assert told(problems) == [
        "a.toml: address: 10.0.0.4 is the address of mirror ill "
        "(that mirror is left as it is, because its definition is in doubt)"
    ]


def test_a_lease_file_that_was_edited_into_doubles_does_no_harm() -> None:
    leases, problems = assign([definition("a", 4), definition("b")], leased(a=5, b=4, gone=5), network(4, 5))
    assert leases == leased(a=4, b=5)
    assert not problems


# --- for all ---------------------------------------------------------------------------------------------------

type World = tuple[list[Definition], Mapping[str, IPv4Address], NetworkSettings]

NAMES = st.sampled_from([f"m{number}" for number in range(8)])
ADDRESSES = st.integers(4, 11)
LEASES = st.dictionaries(NAMES, st.integers(2, 13).map(lambda number: BASE + number))
NETWORKS = st.tuples(ADDRESSES, ADDRESSES).map(lambda ends: network(min(ends), max(ends)))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Definitions as select() lets them through, any leases, any range."""
    lan = draw(NETWORKS)
    names = draw(st.lists(NAMES, unique=True))
    numbers = range(int(lan.first) - int(BASE), int(lan.last) - int(BASE) + 1)
    written = draw(st.lists(st.none() | st.sampled_from(numbers), min_size=len(names), max_size=len(names)))
    definitions = [
        definition(name, None if address in written[:place] else address)
        for place, (name, address) in enumerate(zip(names, written, strict=True))
    ]
    return definitions, draw(LEASES), lan


@given(worlds())
def test_every_assignment(world: World) -> None:
    definitions, leases, lan = world
    result, problems = assign(definitions, leases, lan)
    present = {d.name: result[d.name] for d in definitions if d.name in result}

    # In the range, no doubles, not even with removed mirrors; who has none is told why.
    assert all(lan.first <= address <= lan.last for address in present.values())
    assert len(set(present.values())) == len(present)
    assert not set(present.values()) & {result[name] for name in result.keys() - present.keys()}
    named = {problem.mirror for problem in problems}
    assert {d.name for d in definitions} - present.keys() <= named
    # What is written is had, or told; what is not told has its lease or was displaced by a written one.
    written = {d.address for d in definitions if d.address}
    for d in definitions:
        assert d.address is None or result.get(d.name) == d.address or d.name in named
        if d.address is None and d.name in leases and list(leases.values()).count(leases[d.name]) == 1:
            kept = result.get(d.name) == leases[d.name]
            assert kept or leases[d.name] in written or not lan.first <= leases[d.name] <= lan.last
    # No order counts, and a second look changes nothing.
    assert assign(reversed(definitions), dict(reversed(list(leases.items()))), lan) == (result, problems)
    assert assign(definitions, result, lan) == (result, problems)


@given(worlds(), NAMES)
def test_adding_and_removing_others_moves_nobody(world: World, other: str) -> None:
    definitions, leases, lan = world
    assume(other not in {d.name for d in definitions})
    before, _ = assign(definitions, leases, lan)
    added, _ = assign([*definitions, definition(other)], before, lan)
    removed, _ = assign(definitions, added, lan)
    for d in definitions:
        assert before.get(d.name) == added.get(d.name) == removed.get(d.name)


@given(worlds())
def test_a_mirror_that_runs_never_loses_its_place(world: World) -> None:
    definitions, leases, lan = world
    before, _ = assign([replace(d, address=None) for d in definitions], leases, lan)
    after, _ = assign(definitions, before, lan)
    assert {d.name for d in definitions} & before.keys() <= after.keys()
