"""The planner against a host in memory: whatever is interrupted, fails or is disturbed, the end is the same.

The host (simulator.py) refuses what a real one would break on, so that each of these tests also checks the order of
steps: images before units, a claim before an address is written, a certificate before it is served, a proof before
publication, stop before delete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Address
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import (
    GHCR,
    NOW,
    PATHS,
    QUAY,
    SETTINGS,
    Host,
    Written,
    end,
    of,
    one_round,
    settle,
    steps,
)

from mirror_agent import actions, plan, pods, status
from mirror_agent.actions import Action
from mirror_agent.model import Blob, Document, File, Role, Store

NOTHING = Written({})
BOTH = Written({"quay": QUAY, "ghcr": GHCR})
MOVED = QUAY.replace("10.0.0.4", "10.0.0.5")
ELSEWHERE = QUAY + 'remote = "https://mirror.example"\nprobe = "podman/hello:latest"\n'
RENAMED = QUAY + 'host = "red-hat-quay"\n'
ALLOWED = QUAY + 'policy = "AllowContactingSource"\n'
FRESHER = QUAY + '[cache]\nfresh = "5s"\n'
LAN = SETTINGS.replace('parent = "lan0"', 'parent = "lan1"')
IMAGE = SETTINGS + '[images]\nedge = "docker.io/library/nginx:1.28"\n'
UNPUBLISHED = SETTINGS.replace("[publish.folder]", "[cache]").replace('path = "/srv/publish"', 'budget = "1GiB"')
NARROW = SETTINGS.replace("10.0.0.4-10.0.0.60", "10.0.0.6-10.0.0.60")  # quay's address is no longer in it

SWAPPED = Written({"quay": QUAY.replace("10.0.0.4", "10.0.0.8"), "ghcr": GHCR.replace("10.0.0.8", "10.0.0.4")})
GCR = 'source = "gcr.io"\naddress = "10.0.0.9"\n'
THREE = BOTH.but(gcr=GCR)
TURNED = SWAPPED.but(ghcr=GHCR.replace("10.0.0.8", "10.0.0.9"), gcr=GCR.replace("10.0.0.9", "10.0.0.4"))
ONE_UP = TURNED.but(gcr=GCR.replace("10.0.0.9", "10.0.0.10"))  # quay to ghcr's, ghcr to gcr's, gcr to a free one

CHANGES = {
    "the first two": (NOTHING, BOTH),
    "one more": (Written({"quay": QUAY}), BOTH),
    "one less": (BOTH, BOTH.but(quay=None)),
    "none left": (BOTH, NOTHING),
    "address": (BOTH, BOTH.but(quay=MOVED)),
    "remote": (BOTH, BOTH.but(quay=ELSEWHERE)),
    "host": (BOTH, BOTH.but(quay=RENAMED)),
    "policy": (BOTH, BOTH.but(quay=ALLOWED)),
    "fresh": (BOTH, BOTH.but(quay=FRESHER)),
    "all of one": (BOTH, BOTH.but(quay=MOVED + FRESHER.removeprefix(QUAY), ghcr=None)),
    "one for another": (BOTH, BOTH.but(quay=None, docker='source = "docker.io"\naddress = "10.0.0.4"\n')),
    "network": (BOTH, replace(BOTH, settings=LAN)),
    "image": (BOTH, replace(BOTH, settings=IMAGE)),
    "two swap": (BOTH, SWAPPED),
    "three in a circle": (THREE, TURNED),
    "three in a row": (THREE, ONE_UP),
    "a new one on another's address": (Written({"quay": QUAY}), SWAPPED.but(quay=QUAY.replace(".4", ".7"))),
    "one in doubt": (BOTH, replace(BOTH, settings=NARROW)),
    "one in doubt, one gone": (BOTH, replace(BOTH, settings=NARROW).but(ghcr=None)),
}


@cache
def settled(written: Written) -> Host:
    host = Host()
    settle(host, written)
    return host


def moved(before: Written, after: Written) -> tuple[Host, list[tuple[Action, ...]]]:
    """A host that came from one wish to the other undisturbed, and the rounds it took."""
    host = settled(before).copy()
    return host, settle(host, after)


def kinds(rounds: list[tuple[Action, ...]], mirror: str | None = None) -> list[str]:
    return [step.action for steps in rounds for step in steps if mirror is None or step.mirror == mirror]


# --- convergence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_when_settled_a_second_run_changes_nothing(change: str) -> None:
    host, _ = moved(*CHANGES[change])
    assert steps(host, CHANGES[change][1]) == ()
    host.kill_agent()  # another agent does not know what was announced, and announces once more: nothing else
    assert {step.action for step in steps(host, CHANGES[change][1])} <= {"announce-address"}


def cuts(rounds: list[tuple[Action, ...]]) -> Iterator[tuple[int, int]]:
    for number, todo in enumerate(rounds):
        yield from ((number, cut) for cut in range(len(todo)))


@pytest.mark.parametrize("disturb", ["kill", "fail", "kill, then reboot"])
@pytest.mark.parametrize("change", [change for change in CHANGES if change != "one in doubt"])  # it needs no step
def test_from_every_interruption_the_end_is_the_same(change: str, disturb: str) -> None:
    before, after = CHANGES[change]
    undisturbed, rounds = moved(before, after)
    tried = 0
    for number, cut in cuts(rounds):
        host = settled(before).copy()
        for _ in range(number):
            one_round(host, after)
        if disturb == "fail":
            one_round(host, after, failing=[cut])
        else:
            one_round(host, after, upto=cut)
            host.kill_agent()
        if disturb == "kill, then reboot":
            host.reboot(host.desired(after))
        settle(host, after)
        assert end(host, after) == end(undisturbed, after), f"round {number}, step {cut}: {rounds[number][cut]}"
        tried += 1
    assert tried == sum(map(len, rounds)) > 0


@pytest.mark.parametrize("change", CHANGES)
def test_units_of_which_only_some_were_written_are_completed(change: str) -> None:
    before, after = CHANGES[change]
    undisturbed, rounds = moved(before, after)
    for number, todo in enumerate(rounds):
        for cut, step in enumerate(todo):
            if not isinstance(step, actions.WriteUnits):
                continue
            for most in range(len(step.files)):
                host = settled(before).copy()
                for _ in range(number):
                    one_round(host, after)
                one_round(host, after, upto=cut)
                host.files |= {file.path: file for file in step.files[:most]}
                host.reboot(host.desired(after))  # what is there comes up, or waits; it harms nothing
                settle(host, after)
                assert end(host, after) == end(undisturbed, after), f"{step}: {most} files"


@pytest.mark.parametrize("kind", actions.ORDER, ids=lambda kind: kind.__name__)
def test_what_fails_for_one_mirror_for_ever_does_not_stop_the_other(kind: type[Action]) -> None:
    """Every kind of step fails for quay each time; ghcr comes to its end, is published, and goes when it should."""
    for change in ("the first two", "address", "fresh", "network", "image"):
        before, after = CHANGES[change]
        undisturbed, _ = moved(before, after)
        host = settled(before).copy()
        for _ in range(12):
            todo = steps(host, after)
            bad = [n for n, step in enumerate(todo) if type(step) is kind and step.mirror == "quay"]
            one_round(host, after, failing=bad)
        alone = {name: host.edges[name].config for name in ("ghcr",)}
        assert alone == {name: undisturbed.edges[name].config for name in ("ghcr",)}
        assert b"ghcr.mirror.lan" in host.published["hosts"]


WISHES = [after for _, after in CHANGES.values()]


def _break_unit(host: Host) -> None:
    for path in list(host.files):
        if path.name == "mirror-quay-edge.container":
            host.files[path] = File(path, b"[Container]\nLabel=io.mirror-agent.mirror=quay\n")


def _lose_units(host: Host) -> None:
    for path in list(host.files):
        if path.name.startswith("mirror-quay"):
            del host.files[path]


def _change_config(host: Host) -> None:
    for path in list(host.files):
        if path.name == "nginx.conf":
            host.files[path] = File(path, b"# by hand")


def _crash_pod(host: Host) -> None:
    host._stop(pods.pod_service("quay"))


def _crash_edge(host: Host) -> None:
    host._stop(pods.container_service("ghcr", Role.EDGE))


def _lose_certificates(host: Host) -> None:
    host.certificates.clear()


def _age(host: Host) -> None:
    host.now += timedelta(days=66)


DISTURBANCES: dict[str, Callable[[Host], object]] = {
    "agent killed": Host.kill_agent,
    "unit broken": _break_unit,
    "units lost": _lose_units,
    "configuration changed by hand": _change_config,
    "pod stopped": _crash_pod,
    "edge stopped": _crash_edge,
    "images removed": lambda host: host.images.clear(),
    "certificates lost": _lose_certificates,
    "folders lost": lambda host: host.folders.clear(),
    "publication lost": lambda host: host.published.clear(),
    "publication changed": lambda host: host.published.update(hosts=b"# mine\n", foreign=b""),
    "proofs lost": lambda host: host.proofs.clear(),
    "66 days later": _age,
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_a_disturbed_host_comes_back(disturbance: str) -> None:
    host = settled(BOTH).copy()
    DISTURBANCES[disturbance](host)
    settle(host, BOTH)
    assert end(host, BOTH) == end(settled(BOTH), BOTH)


# Without `NARROW`: a mirror in doubt is left alone, also when it was disturbed.
PLAIN = [wish for wish in WISHES if wish.settings != NARROW]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PLAIN), st.integers(0, 30), st.lists(st.integers(0, 30), max_size=3), st.integers(0, 3),
            st.sampled_from([*DISTURBANCES, ""]),
        ),
        max_size=5,
    ),
    st.sampled_from(PLAIN),
)  # fmt: skip
def test_from_anywhere_the_end_depends_on_the_wish_alone(
    story: list[tuple[Written, int, list[int], int, str]], last: Written
) -> None:
    host = Host()
    for wish, cut, failing, whole, disturbance in story:
        for _ in range(whole):
            one_round(host, wish)
        one_round(host, wish, upto=cut, failing=failing)
        if disturbance:
            DISTURBANCES[disturbance](host)
    settle(host, last)
    assert steps(host, last) == ()
    assert end(host, last) == end(settled(last), last)


# --- a change touches what it must ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("policy", ["remember", "publish"]),
        ("fresh", ["remember", "write-file", "reload-edge"]),
        ("remote", [
            "remember", "write-file", "write-units", "reload-systemd", "restart-units", "prove-mirror",
        ]),
        ("host", ["remember", "issue-certificate", "reload-edge", "prove-mirror", "publish"]),
        ("address", [
            "remember", "claim-address", "issue-certificate", "write-units", "reload-systemd", "restart-units",
            "announce-address", "prove-mirror", "publish",
        ]),
        ("one less", [
            "remember", "stop-units", "stop-units", "stop-units", "publish", "delete-file", "delete-file",
            "delete-file", "reload-systemd",
        ]),
    ],
)  # fmt: skip
def test_a_change_of_one_mirror_is_these_steps(change: str, wanted: list[str]) -> None:
    host, rounds = moved(*CHANGES[change])
    assert kinds(rounds) == wanted
    assert {step.mirror for todo in rounds for step in todo} <= {"quay", ""}
    untouched = {s: start for s, start in settled(BOTH).active.items() if "ghcr" in s or "network" in s}
    assert untouched == {s: start for s, start in host.active.items() if "ghcr" in s or "network" in s}


def test_another_remote_restarts_the_registry_alone() -> None:
    _, rounds = moved(*CHANGES["remote"])
    assert [step.units for todo in rounds for step in todo if isinstance(step, actions.RestartUnits)] == [
        (pods.container_service("quay", Role.REGISTRY),)
    ]


def test_another_host_waits_for_its_proof_and_stays_published_as_it_was() -> None:
    host = settled(BOTH).copy()
    after = BOTH.but(quay=RENAMED)
    seen = []
    while True:
        todo = steps(host, after)
        seen.append(b" quay.mirror.lan" in host.published["hosts"])
        proof = [n for n, step in enumerate(todo) if isinstance(step, actions.ProveMirror)]
        one_round(host, after, failing=proof)
        if proof and len(seen) > 6:
            break
    assert all(seen), "withdrawn, or published before it was proved"
    settle(host, after)
    assert b" red-hat-quay.mirror.lan" in host.published["hosts"]
    assert b" quay.mirror.lan" not in host.published["hosts"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ('source = "quay.io"\naddress = "10.0.0.4"\nhost = "images"\n', "its host changed since it was proved; it"),
        ('source = "quay.io"\naddress = "10.0.0.5"\n', "its address changed since it was proved; it stays"),
        ('source = "quay.io"\naddress = "10.0.0.5"\nremote = "https://quay.example"\nprobe = "a/b:1"\n',
         "its address and its upstream changed since"),
    ],
)  # fmt: skip
def test_why_a_mirror_is_proved_is_true_of_one_that_was_proved_before(changed: str, why: str) -> None:
    first = [step for batch in settle(Host(), BOTH) for step in batch if isinstance(step, actions.ProveMirror)]
    assert {step.why for step in first} == {"not proved by a real pull yet"}
    done = [step for batch in settle(settled(BOTH).copy(), BOTH.but(quay=changed)) for step in batch]
    (prove,) = [step for step in done if isinstance(step, actions.ProveMirror)]
    assert prove.why.startswith(why)


def test_a_new_remote_keeps_the_mirror_published_while_it_is_proved() -> None:
    host = settled(BOTH).copy()
    after = BOTH.but(quay=ELSEWHERE)
    before = dict(host.published)
    for _ in range(8):
        todo = steps(host, after)
        one_round(host, after, failing=[n for n, s in enumerate(todo) if isinstance(s, actions.ProveMirror)])
        assert host.published == before


def test_nothing_is_published_that_was_not_proved() -> None:
    host = Host()
    for _ in range(10):
        todo = steps(host, BOTH)
        unproved = [n for n, s in enumerate(todo) if isinstance(s, actions.ProveMirror) and s.mirror == "quay"]
        one_round(host, BOTH, failing=unproved)
    assert b"ghcr.mirror.lan" in host.published["hosts"]
    assert not any(b"quay" in content for content in host.published.values())


def test_a_mirror_that_comes_back_is_published_after_a_new_proof() -> None:
    host, _ = moved(BOTH, BOTH.but(quay=None))
    order = []
    while todo := steps(host, BOTH):
        one_round(host, BOTH)
        order += [step.action for step in todo if isinstance(step, actions.ProveMirror | actions.Publish)]
    assert order == ["prove-mirror", "publish"]


@pytest.mark.parametrize(
    ("limit", "minutes", "leaves"),
    [("", 10**6, False), ('withdraw_after = "12h"', 719, False), ('withdraw_after = "12h"', 720, True)],
    ids=["by default it stays", "not long enough", "long enough"],
)
def test_an_unwell_mirror_leaves_the_publication_only_where_the_settings_say_so(
    limit: str, minutes: int, leaves: bool
) -> None:
    written = replace(BOTH, settings=SETTINGS.replace("[publish.folder]", f"[publish]\n{limit}\n[publish.folder]"))
    host = settled(written).copy()
    del host.edges["quay"]
    host.unwell = {"quay": minutes * 60.0}
    todo = [step for step in steps(host, written) if isinstance(step, actions.Withdraw)]
    assert [step.mirror for step in todo] == (["quay"] if leaves else [])
    for step in todo:
        host.do(step, host.desired(written))
        assert [step for step in steps(host, written) if isinstance(step, actions.Withdraw)] == []
    publishes = [step for step in steps(host, written) if isinstance(step, actions.Publish)]
    told = b"".join(document.content for step in publishes for document in step.documents)
    assert (bool(publishes), b"quay" in told) == (leaves, False)


def test_a_mirror_that_was_withdrawn_comes_back_after_a_new_proof() -> None:
    host = settled(BOTH).copy()
    before = dict(host.published)
    edge = host.edges.pop("quay")
    host.do(actions.Withdraw("quay", ""), host.desired(BOTH))
    (publish,) = [step for step in steps(host, BOTH) if isinstance(step, actions.Publish)]
    host.do(publish, host.desired(BOTH))
    assert b"quay" not in host.published["hosts"]
    host.edges["quay"] = edge
    assert "prove-mirror" in kinds(settle(host, BOTH), "quay")
    assert host.published == before


def test_without_a_target_nothing_is_published() -> None:
    host = Host()
    wish = replace(BOTH, settings=UNPUBLISHED)
    desired = host.desired(wish)
    observed = replace(host.observed(desired), published={})
    assert not any(isinstance(step, actions.Publish) for step in plan.plan(desired, observed, NOW))


def test_a_mirror_without_a_probe_is_proved_by_what_a_client_has_pulled() -> None:
    written = Written({"lab": 'source = "registry.lab.example"\naddress = "10.0.0.9"\n'})
    host = Host()
    settle(host, written)
    assert host.proofs == {}
    assert "hosts" not in host.published
    desired = host.desired(written)
    observed = replace(host.observed(desired), cached={"lab": "team/app@sha256:" + "0" * 64})
    (step,) = plan.plan(desired, observed, NOW)
    assert step == actions.ProveMirror("lab", "", "team/app@sha256:" + "0" * 64)


# --- order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_steps_of_a_round_come_in_the_order_of_actions(change: str) -> None:
    for todo in moved(*CHANGES[change])[1]:
        places = [actions.ORDER.index(type(step)) for step in todo]
        assert places == sorted(places)


def test_removal_stops_then_deletes_then_reloads() -> None:
    _, rounds = moved(*CHANGES["one less"])
    order = [kind for kind in kinds(rounds) if kind in ("stop-units", "delete-file", "reload-systemd")]
    assert order == ["stop-units"] * 3 + ["delete-file"] * 3 + ["reload-systemd"]


def test_the_last_mirror_takes_the_network_along() -> None:
    host, rounds = moved(*CHANGES["none left"])
    assert kinds(rounds)[-1] == "remove-network"
    assert (host.active, host.loaded, host.networks) == ({}, {}, set())
    assert {path for path in host.files if path.parent == PATHS.units} == set()


def test_removing_keeps_data_certificate_and_lease() -> None:
    host, _ = moved(*CHANGES["one less"])
    assert host.leases["quay"] == IPv4Address("10.0.0.4")
    assert "quay" in host.certificates
    assert PATHS.mirror("quay") / "edge" / "nginx.conf" in host.files


def test_another_network_moves_the_pods_and_the_old_one_is_removed_afterwards() -> None:
    host, rounds = moved(*CHANGES["network"])
    before = settled(BOTH).networks
    order = kinds(rounds)
    assert max(n for n, kind in enumerate(order) if kind == "restart-units") < order.index("stop-units")
    assert order.index("stop-units") < order.index("delete-file") < order.index("remove-network")
    assert {step.network for todo in rounds for step in todo if isinstance(step, actions.RemoveNetwork)} == before
    assert host.networks.isdisjoint(before)


def test_without_its_images_nothing_of_a_mirror_is_written_or_started() -> None:
    host = Host()
    for _ in range(6):
        todo = steps(host, BOTH)
        one_round(host, BOTH, failing=[n for n, step in enumerate(todo) if isinstance(step, actions.PullImage)])
    assert not any(path.suffix in (".pod", ".container") for path in host.files)
    assert host.active == {}


def test_images_that_vanish_below_a_running_mirror_are_brought_back_and_nothing_else_happens() -> None:
    host = settled(BOTH).copy()
    host.images.clear()
    assert set(kinds([steps(host, BOTH)])) == {"pull-image"}


def test_an_address_that_is_taken_is_not_written_and_the_mirror_runs_on() -> None:
    host = settled(BOTH).copy()
    host.taken.add(IPv4Address("10.0.0.5"))
    after = BOTH.but(quay=MOVED)
    for _ in range(5):
        one_round(host, after)
    assert host.address_of("quay") == IPv4Address("10.0.0.4")
    assert host.certificates == settled(BOTH).certificates
    assert host.active == settled(BOTH).active
    host.taken.clear()
    settle(host, after)
    assert end(host, after) == end(moved(BOTH, after)[0], after)


def test_a_claim_counts_until_the_address_is_held_and_no_longer() -> None:
    host = settled(BOTH).copy()
    assert host.claimed == set()
    _crash_pod(host)
    assert [str(step) for step in steps(host, BOTH)] == ["claim address 10.0.0.4"]


def test_a_renewed_certificate_is_a_reload_and_no_restart() -> None:
    host = settled(BOTH).copy()
    _age(host)
    assert kinds(settle(host, BOTH)) == ["issue-certificate"] * 2 + ["reload-edge"] * 2
    assert host.active == settled(BOTH).active
    assert {name: edge.serial for name, edge in host.edges.items()} == {
        name: certificate.serial for name, certificate in host.certificates.items()
    }


def test_an_edge_whose_worker_was_killed_starts_anew_and_once() -> None:
    host = settled(BOTH).copy()
    edge = pods.container_service("quay", Role.EDGE)
    [host.wounded] = [{c.id} for c in host.containers() if (c.mirror, c.role) == ("quay", Role.EDGE)]
    assert [(step.mirror, getattr(step, "units", ())) for todo in settle(host, BOTH) for step in todo] == [
        ("quay", (edge,))
    ]
    changed = {service for service, start in host.active.items() if start != settled(BOTH).active[service]}
    assert changed == {edge}


def test_a_new_ca_is_made_before_anything_is_signed() -> None:
    host = Host()
    assert one_round(host, BOTH, upto=1) == (actions.CreateAuthority("", ""),)
    host = settled(BOTH).copy()
    host.authority = None
    assert {step.action for step in steps(host, BOTH)} == {"create-authority"}


# --- addresses of each other ---------------------------------------------------------------------------------------


def starts_and_stops(rounds: list[tuple[Action, ...]]) -> list[list[str]]:
    """What is stopped and started in each round that does."""
    kinds = actions.StopUnits | actions.StartUnits | actions.RestartUnits
    found = [[f"{step.action} {step.mirror}" for step in todo if isinstance(step, kinds)] for todo in rounds]
    return [batch for batch in found if batch]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("two swap", [["stop-units ghcr", "stop-units quay"], ["start-units ghcr", "start-units quay"]]),
        ("three in a circle", [
            ["stop-units gcr", "stop-units ghcr", "stop-units quay"],
            ["start-units gcr", "start-units ghcr", "start-units quay"],
        ]),
        ("three in a row", [["restart-units gcr"], ["restart-units ghcr"], ["restart-units quay"]]),
    ],
)  # fmt: skip
def test_mirrors_take_over_each_other_s_addresses_without_a_failed_start(change: str, wanted: list[list[str]]) -> None:
    """The host in memory refuses a start with an address that another pod has."""
    assert starts_and_stops(moved(*CHANGES[change])[1]) == wanted


def test_a_mirror_runs_on_until_the_one_on_its_new_address_can_move() -> None:
    """ghcr is to move to an address that a stranger has."""
    host = settled(BOTH).copy()
    host.taken.add(IPv4Address("10.0.0.9"))
    after = BOTH.but(quay=QUAY.replace("10.0.0.4", "10.0.0.8"), ghcr=GHCR.replace("10.0.0.8", "10.0.0.9"))
    for _ in range(8):
        one_round(host, after)
    assert host.active == settled(BOTH).active
    desired = host.desired(after)
    shown = status.describe(desired, host.observed(desired), (), {}, (), NOW)
    assert {row.name: row.waits for row in shown.mirrors} == {"ghcr": "", "quay": "until mirror ghcr has left 10.0.0.8"}
    host.taken.clear()
    assert starts_and_stops(settle(host, after)) == [["restart-units ghcr"], ["restart-units quay"]]


def test_nobody_of_a_circle_is_stopped_before_all_of_it_can_start() -> None:
    host = settled(BOTH).copy()
    for _ in range(8):
        todo = steps(host, SWAPPED)
        late = [
            n for n, step in enumerate(todo) if isinstance(step, actions.IssueCertificate) and step.mirror == "ghcr"
        ]
        one_round(host, SWAPPED, failing=late)
    assert host.active == settled(BOTH).active
    settle(host, SWAPPED)
    assert end(host, SWAPPED) == end(settled(SWAPPED), SWAPPED)


# --- what is not to be touched -----------------------------------------------------------------------------------


def test_a_mirror_in_doubt_is_left_alone_and_the_publication_waits() -> None:
    host, rounds = moved(*CHANGES["one in doubt"])
    before = settled(BOTH)
    assert kinds(rounds, "quay") == []
    assert {s: a for s, a in host.active.items() if "quay" in s} == {
        s: a for s, a in before.active.items() if "quay" in s
    }
    assert {p for p in host.files if "quay" in str(p)} == {p for p in before.files if "quay" in str(p)}
    assert host.accepted["quay"] == QUAY.encode()
    assert host.leases["quay"] == IPv4Address("10.0.0.4")
    assert host.published == before.published
    settle(host, BOTH)
    assert end(host, BOTH) == end(before, BOTH)


def test_a_network_stays_as_long_as_a_mirror_in_doubt_is_on_it() -> None:
    host = settled(BOTH).copy()
    settle(host, replace(BOTH, settings=LAN.replace("10.0.0.4-10.0.0.60", "10.0.0.6-10.0.0.60")))
    assert settled(BOTH).networks < host.networks
    assert host.address_of("quay") == IPv4Address("10.0.0.4")


def test_what_an_admin_put_beside_our_units_stays() -> None:
    host = settled(BOTH).copy()
    foreign = {
        PATHS.units / "backup.container": b"[Container]\nImage=x\n",
        PATHS.units / "mirror-quay.pod.d" / "10-mine.conf": b"[Pod]\n",
        PATHS.units / "other.network": b"[Network]\n",
    }
    host.files |= {path: File(path, content) for path, content in foreign.items()}
    assert steps(host, BOTH) == ()
    settle(host, NOTHING)
    assert host.files.keys() >= foreign.keys()


def test_files_that_are_no_longer_used_go() -> None:
    host = settled(BOTH).copy()
    login = PATHS.mirror("quay") / "auth" / "auth.json"
    host.files[login] = File(login, b"{}", 0o400, pods.REGISTRY_ID)
    assert steps(host, BOTH) == (actions.DeleteFile("quay", "", login),)
    desired = replace(host.desired(BOTH), secrets={"quay": host.files[login]})
    assert plan.plan(desired, host.observed(desired), NOW) == ()


def test_containers_are_not_started_in_a_pod_that_is_to_change() -> None:
    host = settled(BOTH.but(quay=MOVED)).copy()
    for role in Role:
        host._stop(pods.container_service("quay", role))
    rounds = settle(host, BOTH)
    assert "start-units" not in kinds(rounds)
    assert host.address_of("quay") == IPv4Address("10.0.0.4")


def test_a_pod_that_lost_its_file_and_its_definition_is_stopped() -> None:
    host = settled(BOTH).copy()
    _lose_units(host)
    settle(host, BOTH.but(quay=None))
    assert not any("quay" in service for service in host.active)


def test_an_address_that_is_written_but_not_held_is_claimed_by_the_next_agent() -> None:
    host = settled(BOTH).copy()
    after = BOTH.but(quay=MOVED)
    while not any(isinstance(step, actions.RestartUnits) for step in steps(host, after)):
        one_round(host, after)
    host.kill_agent()
    assert [step.action for step in steps(host, after) if step.mirror == "quay"] == ["claim-address"]


def test_units_that_systemd_is_at_are_waited_for() -> None:
    host = settled(BOTH).copy()
    _crash_pod(host)
    desired = host.desired(BOTH)
    observed = host.observed(desired)
    for state in ("activating", "deactivating", "reloading"):
        service = pods.pod_service("quay")
        units = {**observed.units, service: replace(observed.units[service], active=state)}
        claimed = frozenset({of(desired, "quay").address})
        assert plan.plan(desired, replace(observed, units=units, claimed=claimed), NOW) == ()


def test_a_unit_that_systemd_does_not_have_is_asked_for_by_name() -> None:
    """So that a second reload for the very same units is seen to be futile, and one for others is not."""
    host = settled(BOTH).copy()
    lost = pods.container_service("quay", Role.EDGE)
    del host.loaded[lost]
    assert steps(host, BOTH) == (actions.ReloadSystemd("", "", (lost,)),)


def test_a_failed_unit_without_a_definition_is_deleted() -> None:
    host = settled(BOTH).copy()
    desired = host.desired(BOTH.but(quay=None))
    observed = host.observed(desired)
    service = pods.pod_service("quay")
    units = {**observed.units, service: replace(observed.units[service], active="failed")}
    todo = plan.plan(desired, replace(observed, units=units), NOW)
    assert actions.DeleteFile("quay", "", PATHS.units / "mirror-quay.pod") in todo


def test_a_cache_over_its_budget_is_trimmed_and_the_other_is_not() -> None:
    written = BOTH.but(quay=QUAY + '[cache]\nbudget = "1GiB"\n')
    host = settled(written).copy()
    desired = host.desired(written)
    long_ago = NOW - timedelta(days=1)
    blobs = {f"sha256:{n:064}": Blob(2**28, long_ago) for n in range(8)}
    needs = {("app", digest): () for digest in blobs}
    full = Store(blobs, needs, free=2**40)
    observed = replace(host.observed(desired), stores={"quay": full, "ghcr": full})
    (step,) = plan.plan(desired, observed, NOW)
    assert isinstance(step, actions.Evict)
    assert (step.mirror, step.why) == ("quay", "over its budget")
    assert step.eviction.size >= 2**30


@pytest.mark.parametrize(
    ("free", "old", "held", "wanted"),
    [
        (2, False, False, [True]),  # GiB of the 10 that are to be left; nothing in the cache may leave
        (2, False, True, []),
        (2, True, False, []),  # what leaves makes enough room
        (3, False, False, []),
        (3, False, True, []),
        (6, False, True, [False]),
        (6, False, False, []),
    ],
)
def test_a_full_disk_stops_fetches_until_there_is_space(free: int, old: bool, held: bool, wanted: list[bool]) -> None:
    host = settled(BOTH).copy()
    desired = host.desired(BOTH)
    blobs = {f"sha256:{n:064}": Blob(2**30, NOW - timedelta(days=1)) for n in range(8)} if old else {}
    store = Store(blobs, {("app", digest): () for digest in blobs}, free=free * 2**30)
    observed = replace(host.observed(desired), stores={"quay": store}, held=frozenset({"quay"} if held else ()))
    todo = [step for step in plan.plan(desired, observed, NOW) if not isinstance(step, actions.Evict)]
    assert todo == [actions.HoldFetches("quay", "", full) for full in wanted]


# --- steps as values ---------------------------------------------------------------------------------------------


def test_two_steps_are_the_same_when_they_do_the_same() -> None:
    path = PurePosixPath("/x")
    assert actions.DeleteFile("quay", "one reason", path) == actions.DeleteFile("quay", "another", path)
    assert actions.DeleteFile("quay", "", path) != actions.DeleteFile("ghcr", "", path)
    start: Action = actions.StartUnits("quay", "", ("a",))
    assert start != actions.RestartUnits("quay", "", ("a",))
    leases = {"quay": IPv4Address("10.0.0.4")}
    same = actions.Remember("", "", dict(leases), {"quay": b"x"})
    assert same == actions.Remember("", "", dict(leases), {"quay": b"x"})
    assert same != actions.Remember("", "", dict(leases), {"quay": b"y"})
    assert same in [actions.Remember("", "other", leases, {"quay": b"x"})]
    one = (Document("hosts", b"1"),)
    assert actions.Publish("", "", "/a", one, ("hosts",)) != actions.Publish("", "", "/b", one, ("hosts",))
    assert actions.Publish("", "", "/a", one, ("hosts",)).subject == "/a"
    assert actions.PullImage("", "", "nginx").subject == "nginx"


def test_every_step_has_a_place_and_words() -> None:
    made = [step for change in CHANGES.values() for todo in moved(*change)[1] for step in todo]
    made += [step for todo in settle(Host(), BOTH) for step in todo]
    rolling = {actions.PrepareAuthority, actions.NotePublished, actions.SwitchAuthority, actions.DropAuthority}
    rolling |= {actions.AskRenewal, actions.ReachUpstream}
    elsewhere = {actions.Evict, actions.HoldFetches, actions.PublishToCluster, actions.Withdraw}
    assert {type(step) for step in made} | elsewhere | rolling == set(actions.ORDER)
    assert all(str(step) and "object at" not in str(step) for step in made)
    assert all(step.why for step in made if not isinstance(step, actions.Publish))
