"""Which definitions are in force when files turn bad, clash, come and go."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_agent.config import Reading, select
from mirror_agent.model import Candidate, NetworkSettings, Settings

FOLDER = "/etc/mirror-agent.d"
SETTINGS = Settings(
    domain="mirror.lan",
    network=NetworkSettings(
        parent="eth1",
        subnet=IPv4Network("10.0.0.0/16"),
        gateway=IPv4Address("10.0.0.1"),
        first=IPv4Address("10.0.0.4"),
        last=IPv4Address("10.0.3.60"),
    ),
)


def file(path: str, text: str, kind: str = "regular") -> Candidate:
    path = path if path.startswith("/") else f"{FOLDER}/{path}"
    return Candidate(path, kind, size=len(text), content=text.encode())


def reading(files: dict[str, str], accepted: dict[str, str] | None = None, settings: Settings = SETTINGS) -> Reading:
    before = {name: text.encode() for name, text in (accepted or {}).items()}
    return select([file(f"{name}.toml", text) for name, text in files.items()], before, settings)


def names(result: Reading) -> list[str]:
    return [definition.name for definition in result.definitions]


def told(result: Reading) -> list[str]:
    return [str(problem).replace(f"{FOLDER}/", "") for problem in result.problems]


QUAY = 'source = "quay.io"'
GCR = 'source = "gcr.io"'


def test_good_files_are_in_force_and_remembered_to_the_byte() -> None:
    result = reading({"quay": f"# ours\r\n{QUAY}\n", "gcr": GCR})
    assert names(result) == ["gcr", "quay"]
    assert result.accepted == {"gcr": GCR.encode(), "quay": f"# ours\r\n{QUAY}\n".encode()}
    assert not result.problems
    assert not result.frozen


def test_a_bad_file_leaves_its_mirror_as_it_was_and_the_others_alone() -> None:
    result = reading({"quay": "source = 1", "gcr": GCR}, {"quay": QUAY})
    assert names(result) == ["gcr", "quay"]
    assert result.definitions[1].sources == ("quay.io",)
    assert result.accepted == {"gcr": GCR.encode(), "quay": QUAY.encode()}
    assert told(result) == [
        "quay.toml: source: is a number, must be text in quotes, or a list of it "
        '(for example: source = "quay.io"; mirror quay keeps running as it was)'
    ]


def test_a_bad_file_that_never_ran_is_told_and_nothing_else() -> None:
    result = reading({"quay": "", "gcr": GCR})
    assert names(result) == ["gcr"]
    assert told(result) == ['quay.toml: source: is missing (for example: source = "quay.io")']
    assert result.accepted.keys() == {"gcr"}
    assert result.frozen == {"quay"}  # there may be one of before the agent lost its state


def test_what_is_no_longer_valid_under_the_settings_is_left_alone() -> None:
    text = f'{QUAY}\naddress = "10.0.3.1"'
    narrow = replace(SETTINGS, network=replace(SETTINGS.network, last=IPv4Address("10.0.0.60")))
    result = reading({"quay": text}, {"quay": text}, narrow)
    assert names(result) == []
    assert result.frozen == {"quay"}
    assert result.accepted == {"quay": text.encode()}  # for the day when the range is put right
    assert told(result) == [
        "quay.toml: address: 10.0.3.1 is outside the range 10.0.0.4-10.0.0.60 of the settings "
        "(another one, or widen network.range; mirror quay keeps running as it was)"
    ]


@pytest.mark.parametrize("kind", ["link", "other"])
def test_an_untrusted_file_counts_as_bad_not_as_gone(kind: str) -> None:
    result = select([file("quay.toml", "", kind)], {"quay": QUAY.encode()}, SETTINGS)
    assert names(result) == ["quay"]
    assert len(result.problems) == 1


def test_removed_and_masked_definitions_are_gone() -> None:
    accepted = {"quay": QUAY.encode(), "gcr": GCR.encode()}
    result = select([file("gcr.toml", "", "masked")], accepted, SETTINGS)
    assert result == Reading((), (), {})


def test_of_a_file_name_the_first_folder_counts_even_when_it_is_wrong() -> None:
    etc, run, usr = (f"{folder}/mirror-agent.d" for folder in ("/etc", "/run", "/usr/lib"))
    result = select(
        [
            file(f"{etc}/a.toml", "", "masked"), file(f"{etc}/b.toml", "wrong"),
            file(f"{run}/c.toml", GCR),
            file(f"{usr}/a.toml", QUAY), file(f"{usr}/b.toml", QUAY), file(f"{usr}/c.toml", QUAY),
        ],
        {}, SETTINGS,
    )  # fmt: skip
    assert [(d.name, d.sources) for d in result.definitions] == [("c", ("gcr.io",))]
    assert [problem.file for problem in result.problems] == [f"{etc}/b.toml"]


def test_leftovers_are_passed_over_and_other_names_are_told() -> None:
    quiet = [".quay.toml.swp", "quay.toml~", "#quay.toml#", "quay.toml.rpmsave", "quay.toml.dpkg-dist", "README.md",
             ".git", "quay.toml.bak", ".a.toml"]  # fmt: skip
    result = select([file(name, QUAY) for name in [*quiet, "quay.yaml", "Quay.toml"]], {}, SETTINGS)
    assert result.definitions == ()
    assert [problem.file for problem in result.problems] == [f"{FOLDER}/Quay.toml", f"{FOLDER}/quay.yaml"]
    assert result.frozen == frozenset()


# --- clashes ---------------------------------------------------------------------------------------------------

TWO_SOURCES = 'source = ["{}", "quay.io"]\nremote = "https://r.io"'
CLASHES = {  # what a says, what b says, what is told of a, what is told of b
    "source": (
        TWO_SOURCES.format("a.io"),
        TWO_SOURCES.format("b.io"),
        'source: "quay.io" is also a source of b.toml',
        'source: "quay.io" is also a source of a.toml',
    ),
    "address": (
        f'{QUAY}\naddress = "10.0.0.9"',
        f'{GCR}\naddress = "10.0.0.9"',
        'address: "10.0.0.9" is also the address of b.toml',
        'address: "10.0.0.9" is also the address of a.toml',
    ),
    "host": (
        QUAY,
        f'{GCR}\nhost = "a"',
        'host: "a.mirror.lan" is also the host name of b.toml',
        'host: "a.mirror.lan" is also the host name of a.toml',
    ),
    "remote": (
        QUAY,
        f'{GCR}\nremote = "https://a.mirror.lan"',
        'host: "a.mirror.lan" is a registry for b.toml',
        'remote: "a.mirror.lan" is the mirror of a.toml',
    ),
    "a source that blocks a mirror": (
        QUAY,
        'source = "a.mirror.lan/x"\nremote = "https://x.io"',
        'host: "a.mirror.lan" is a registry for b.toml',
        'source: "a.mirror.lan" is the mirror of a.toml',
    ),
}


@pytest.mark.parametrize(("a", "b", "told_a", "told_b"), CLASHES.values(), ids=CLASHES)
def test_two_files_with_one_claim(a: str, b: str, told_a: str, told_b: str) -> None:
    files = {"a": a, "b": b}
    neither = reading(files)
    assert names(neither) == []
    assert neither.frozen == {"a", "b"}
    for line, start in zip(told(neither), (f"a.toml: {told_a}", f"b.toml: {told_b}"), strict=True):
        assert line.startswith(f"{start}, and none of them is put into force")

    for winner, loser, start in (("a", "b", told_b), ("b", "a", told_a)):
        result = reading(files, {winner: files[winner]})
        assert names(result) == [winner]
        (line,) = told(result)
        assert line.startswith(f"{loser}.toml: {start}, which goes on")

        # The loser ran with something else: it keeps that.
        result = reading(files, {winner: files[winner], loser: f'source = "{loser}{loser}.io"\nhost = "old"'})
        assert names(result) == ["a", "b"]
        assert {d.name: d for d in result.definitions}[loser].sources == (f"{loser}{loser}.io",)
        (line,) = told(result)
        assert line.endswith(f"; mirror {loser} keeps running as it was)")


def test_two_that_run_and_a_newcomer_that_would_be_their_registry() -> None:
    running = {name: f'source = "{name}.io"\nremote = "https://c.mirror.lan"' for name in ("a", "b")}
    result = reading(running | {"c": QUAY}, running)
    assert names(result) == ["a", "b"]
    assert told(result) == [
        'c.toml: host: "c.mirror.lan" is a registry for a.toml, b.toml, which go on (give the mirror another host name)'
    ]


@pytest.mark.parametrize("role", ["edge", "registry"])
def test_names_that_podman_would_confuse(role: str) -> None:
    result = reading({"a": QUAY, f"a-{role}": GCR}, {"a": QUAY})
    assert names(result) == ["a"]
    assert told(result) == [
        f'a-{role}.toml: its pod or a container would be named "mirror-a-{role}", as in a.toml, which goes on '
        "(rename one of the files)"
    ]


def test_two_that_pull_from_one_registry_do_not_clash() -> None:
    assert names(reading({"a": 'source = "quay.io/a"', "b": 'source = "quay.io/b"'})) == ["a", "b"]


def test_addresses_may_be_swapped_and_names_moved() -> None:
    four, five = 'address = "10.0.0.4"', 'address = "10.0.0.5"'
    before = {"a": f"{QUAY}\n{four}", "b": f"{GCR}\n{five}"}
    swapped = reading({"a": f"{QUAY}\n{five}", "b": f"{GCR}\n{four}"}, before)
    assert not swapped.problems
    assert [str(d.address) for d in swapped.definitions] == ["10.0.0.5", "10.0.0.4"]
    renamed = reading({"c": before["a"], "b": before["b"]}, before)
    assert names(renamed) == ["b", "c"]
    assert not renamed.problems


def test_a_loser_that_falls_back_takes_its_claim_back() -> None:
    # a wants b's source and is refused; c wanted what a seemed to give up.
    before = {"a": 'source = "a.io"', "b": 'source = "b.io"', "c": 'source = "c.io"'}
    result = reading({"a": 'source = "b.io"', "b": 'source = "b.io"', "c": 'source = "a.io"'}, before)
    assert [d.sources for d in result.definitions] == [("a.io",), ("b.io",), ("c.io",)]
    assert [problem.mirror for problem in result.problems] == ["a", "c"]
    assert result.accepted == {name: text.encode() for name, text in before.items()}


def test_a_new_domain_that_makes_two_running_ones_clash_changes_neither() -> None:
    texts = {"a": f'{QUAY}\nhost = "b.new.lan"', "b": GCR}
    result = reading(texts, texts, replace(SETTINGS, domain="new.lan"))
    assert names(result) == []
    assert result.frozen == {"a", "b"}
    assert result.accepted.keys() == {"a", "b"}


# --- many ------------------------------------------------------------------------------------------------------


def test_of_a_thousand_files_those_that_run_are_not_lost_and_it_is_quick() -> None:
    files = {f"m{number:03}": f'source = "r{number}.io"' for number in range(1_000)}
    running = {name: files[name] for name in ("m998", "m999")}
    start = time.process_time()
    result = reading(files, running)
    assert time.process_time() - start < 5  # of a processor, whoever else uses it
    assert len(result.definitions) == 250
    assert {"m998", "m999"} <= set(names(result))
    assert len(result.problems) == 750
    assert told(result)[0] == (
        "m248.toml: is one of 1000 definitions, and one host takes 250 (take some away, or spread them over more hosts)"
    )


def test_a_thousand_files_that_all_clash_are_quick() -> None:
    start = time.process_time()
    result = reading({f"m{number}": QUAY for number in range(1_000)})
    assert time.process_time() - start < 5  # of a processor, whoever else uses it
    assert result.definitions == ()
    assert told(result)[0].startswith('m0.toml: source: "quay.io" is also a source of m1.toml, m10.toml and 997 more, ')


# --- for all ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "a-edge"])
TEXTS = st.one_of(
    st.just("wrong"),
    st.builds(
        'source = "{}"\n{}\n{}'.format,
        st.sampled_from(["x.io", "y.io", "z.io", "b.mirror.lan"]),
        st.sampled_from(["", 'address = "10.0.0.9"', 'address = "10.0.0.8"']),
        st.sampled_from(["", 'host = "a"', 'host = "c"', 'remote = "https://a.mirror.lan"']),
    ),
)
FILES = st.dictionaries(NAMES, TEXTS)


@given(FILES, FILES)
def test_whatever_is_dropped(first: dict[str, str], second: dict[str, str]) -> None:
    before = reading(first)
    after = reading(second, {name: text.decode() for name, text in before.accepted.items()})

    # Nothing in force clashes, and every file that is not in force is told.
    for one, other in itertools.combinations(after.definitions, 2):
        assert not set(one.sources) & set(other.sources)
        assert one.address is None or one.address != other.address
        assert (one.host or f"{one.name}.mirror.lan") != (other.host or f"{other.name}.mirror.lan")
        assert {one.name, other.name} != {"a", "a-edge"}
    for name, text in second.items():
        in_force = after.accepted.get(name) == text.encode() and name not in after.frozen
        assert in_force == (name not in {problem.mirror for problem in after.problems})

    # No mirror that ran and still has a file is lost.
    assert set(names(before)) & second.keys() <= set(names(after)) | after.frozen
    # The order of the files does not count, and a second look changes nothing.
    assert reading(dict(reversed(second.items())), {n: t.decode() for n, t in before.accepted.items()}) == after
    again = reading(second, {name: text.decode() for name, text in after.accepted.items()})
    assert (again.definitions, again.accepted, again.frozen) == (after.definitions, after.accepted, after.frozen)


@given(FILES)
def test_what_ran_and_did_not_change_goes_on(files: dict[str, str]) -> None:
    before = reading(files)
    running = {name: text.decode() for name, text in before.accepted.items()}
    for name, text in itertools.product(["a", "b", "c", "d"], ["wrong", 'source = "x.io"\naddress = "10.0.0.9"']):
        after = reading(running | {name: text}, running)
        assert {d for d in before.definitions if d.name != name} <= set(after.definitions)


@pytest.mark.parametrize(
    ("text", "before", "upstream"),
    [
        (f"{QUAY}\ncolour = 1", None, "quay.io"),
        (f'{QUAY}\naddress = "10.0.0.400"', None, "quay.io"),
        ('source = ["registry.example:5000/team", "quay.io"]\ncolour = 1', None, "registry.example:5000/team"),
        (QUAY, None, "quay.io"),
        ("source =", QUAY, "quay.io"),  # what runs on
        (f"{GCR}\ncolour = 1", QUAY, "quay.io"),
        ("source =", None, ""),
        ("source = 1", None, ""),
        ("source = []", None, ""),
        ("source = [1]", None, ""),
        ('source = "quay.io\\nMIRROR=other"\n', None, ""),
        ("", None, ""),
    ],
)
def test_the_journal_can_name_the_upstream_of_a_file_with_a_mistake(
    text: str, before: str | None, upstream: str
) -> None:
    assert reading({"quay": text}, {"quay": before} if before else None).upstreams == {"quay": upstream}


def test_both_files_that_clash_are_part_of_their_upstream_s_story() -> None:
    result = reading({"one": QUAY, "two": QUAY})
    assert result.upstreams == {"one": "quay.io", "two": "quay.io"}
    assert not result.definitions
