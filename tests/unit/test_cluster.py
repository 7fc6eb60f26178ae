"""A cluster in the agent's plan: what is done when, what is held back, and what is said about it.

The objects themselves are tried against a real API server in tests/cluster.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, time
from typing import Any

import pytest
from simulator import GHCR, NOW, QUAY, SETTINGS, Host, Written, settle

from mirror_agent import actions, cluster, plan, report, status
from mirror_agent.model import Authorities, Authority, ClusterState, Cost, Pool, Window

KUBECONFIG = "/etc/mirror-agent/kubeconfig"
PLACE = f"the cluster of {KUBECONFIG}"
IMAGE = {"apiVersion": "config.openshift.io/v1", "kind": "Image", "metadata": {"name": "cluster"}, "spec": {}}
EMPTY = ClusterState((IMAGE,))


def written(drain: str = "") -> Written:
    table = f'[publish.cluster]\nkubeconfig = "{KUBECONFIG}"\n{drain}\n'
    return Written({"quay": QUAY, "ghcr": GHCR}, SETTINGS + table)


def seen(wish: Written, state: ClusterState | None) -> tuple[plan.Desired, plan.Observed]:
    host = Host()
    settle(host, Written({"quay": QUAY, "ghcr": GHCR}))
    desired = host.desired(wish)
    unread = frozenset() if state else frozenset({PLACE})
    return desired, replace(host.observed(desired), cluster=state, unread=unread)


def to_do(wish: Written, state: ClusterState | None) -> list[actions.PublishToCluster]:
    steps = plan.plan(*seen(wish, state), NOW)
    return [step for step in steps if isinstance(step, actions.PublishToCluster)]


def applied(state: ClusterState, wish: Written) -> ClusterState:
    """The cluster after all was applied, as the API server would give it back."""
    objects = {(each["kind"], each["metadata"]["name"]): each for each in state.objects}
    trust: Any = state.trust
    for step in to_do(wish, state):
        for change in step.changes:
            if change.kind == "ConfigMap":
                fields: dict[str, Any] = {"f:data": {f"f:{key}": {} for key in change.body["data"]}}
                books = [{"manager": change.manager, "fieldsV1": fields}]
                trust = {**change.body, "metadata": {**change.body["metadata"], "managedFields": books}}
            else:
                objects[change.kind, change.name] = change.body
    return ClusterState(tuple(objects.values()), trust, state.pools)


def shown(wish: Written, state: ClusterState | None) -> report.ClusterStatus:
    desired, observed = seen(wish, state)
    return status.describe(desired, observed, plan.plan(desired, observed, NOW), {}, (), NOW).cluster


ALWAYS = written('drain = "always"')


def test_the_cost_is_told_in_the_plan() -> None:
    (step,) = to_do(ALWAYS, EMPTY)
    assert step.cost is Cost.DRAIN
    assert str(step) == (
        f"apply to {PLACE}: ConfigMap mirror-agent-ca, Image cluster, ImageTagMirrorSet mirror-agent-mirror-lan, "
        "ImageDigestMirrorSet mirror-agent-mirror-lan: drains every node"
    )
    assert step.subject == PLACE


def test_nothing_is_done_twice() -> None:
    after = applied(EMPTY, ALWAYS)
    assert to_do(ALWAYS, after) == []
    assert shown(ALWAYS, after) == report.ClusterStatus(PLACE, "up to date")


def test_what_drains_waits_and_trust_does_not() -> None:
    (step,) = to_do(written(), EMPTY)
    assert [change.kind for change in step.changes] == ["ConfigMap", "Image"]
    assert step.cost is Cost.NONE
    said = shown(written(), EMPTY)
    assert said.cost == "drain"
    assert said.state.startswith("held back: it drains every node")
    assert to_do(written(), applied(EMPTY, written())) == []


def test_a_window_opens() -> None:
    local = NOW.astimezone()
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[local.weekday()]
    inside = f'drain = "window"\nwindow = "{day} {local:%H}:00-{(local.hour + 1) % 24:02}:00"'
    outside = f'drain = "window"\nwindow = "{(local.hour + 2) % 24:02}:00-{(local.hour + 3) % 24:02}:00"'
    assert to_do(written(inside), EMPTY)[0].cost is Cost.DRAIN
    assert to_do(written(outside), EMPTY)[0].cost is Cost.NONE
    assert shown(written(outside), EMPTY).state == "waits for its window: it drains every node"


def test_a_cluster_that_cannot_be_read_is_told_nothing_and_holds_a_new_ca_back() -> None:
    assert to_do(ALWAYS, None) == []
    assert shown(ALWAYS, None).state == "waits: it cannot be read"
    for state, published in ((None, False), (EMPTY, False), (applied(EMPTY, ALWAYS), True)):
        desired, observed = seen(ALWAYS, state)
        assert observed.authority
        authorities = Authorities(Authority(observed.authority, b""))
        view = plan.rollover_view(desired, replace(observed, authorities=authorities))
        assert view
        assert view.published is published


def test_a_mirror_in_doubt_is_not_withdrawn() -> None:
    desired, observed = seen(ALWAYS, EMPTY)
    doubtful = replace(desired, frozen=frozenset({"quay"}))
    assert plan.cluster_outcome(doubtful, observed) is None


def test_a_refusal_is_a_problem_with_the_way_out() -> None:
    theirs = {
        "apiVersion": "config.openshift.io/v1",
        "kind": "ImageDigestMirrorSet",
        "metadata": {"name": "image-digest-mirror"},
        "spec": {"imageDigestMirrors": [{"source": "quay.io", "mirrors": ["quay.mirror.lan"]}]},
    }
    desired, observed = seen(ALWAYS, ClusterState((IMAGE, theirs)))
    (problem,) = plan.problems(desired, observed, NOW)
    assert problem.key == "publish.cluster"
    assert "ImageDigestMirrorSet image-digest-mirror" in problem.reason
    assert 'adopt = ["image-digest-mirror"]' in problem.hint
    assert [change.kind for step in to_do(ALWAYS, observed.cluster) for change in step.changes] == [
        "ConfigMap", "Image",
    ]  # fmt: skip


def test_the_mirrors_are_published_when_the_cluster_knows_them() -> None:
    desired, observed = seen(ALWAYS, applied(EMPTY, ALWAYS))
    elsewhere = replace(observed, published={})
    rows = status.describe(desired, elsewhere, (), {}, (), NOW).mirrors
    assert all(row.published for row in rows)
    rows = status.describe(desired, replace(elsewhere, cluster=EMPTY), (), {}, (), NOW).mirrors
    assert not any(row.published for row in rows)


def test_the_nodes_in_one_line() -> None:
    pools = (Pool("worker", 3, 1, True), Pool("master", 3, 3), Pool("gpu", 1, 0, True, "no space"))
    assert cluster.roll_out(pools) == "gpu 0/1 degraded: no space; master 3/3 done; worker 1/3 updating"


@pytest.mark.parametrize(
    ("window", "local", "inside"),
    [
        (Window(6, time(2), time(5)), "2026-11-22 02:00", True),  # a Sunday
        (Window(6, time(2), time(5)), "2026-11-22 05:00", False),
        (Window(6, time(2), time(5)), "2026-11-23 03:00", False),
        (Window(None, time(2), time(5)), "2026-11-23 03:00", True),
        (Window(6, time(23), time(2)), "2026-11-22 23:30", True),
        (Window(6, time(23), time(2)), "2026-11-23 01:59", True),  # the night goes on
        (Window(6, time(23), time(2)), "2026-11-23 02:00", False),
        (Window(6, time(23), time(2)), "2026-11-22 01:00", False),  # that was Saturday's
        (Window(0, time(23), time(2)), "2026-11-24 01:00", True),
        (Window(6, time(0), time(0)), "2026-11-22 12:00", True),  # all of the day
        (Window(6, time(0), time(0)), "2026-11-23 00:00", False),
    ],
)
def test_windows(window: Window, local: str, inside: bool) -> None:
    assert window.contains(datetime.fromisoformat(local)) is inside
