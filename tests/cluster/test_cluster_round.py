"""A whole round of the agent, from what an admin wrote to what the cluster holds; only the host is one in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.story import IDMS, ITMS, MAPS, entries
from mirror_agent import actions, observe, plan, report, status
from mirror_agent.apply import Hands, apply
from mirror_agent.host.errands import Errands
from mirror_agent.model import ClusterSettings
from mirror_agent.targets import cluster as target

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from simulator import GHCR, QUAY, SETTINGS, Host, Written, settle

KUBECONFIG = Path("/etc/mirror-agent/kubeconfig")
TABLE = f'[publish.cluster]\nkubeconfig = "{KUBECONFIG}"\ndrain = "always"\n'
WRITTEN = Written({"quay": QUAY, "ghcr": GHCR}, SETTINGS + TABLE)
NOTHING: Any = None  # no step of ours touches the host
HANDS = Hands(NOTHING, NOTHING, lambda: None, set(), set(), Errands(lambda _: None))


@pytest.fixture
def host(settings: ClusterSettings) -> Iterator[Host]:
    KUBECONFIG.parent.mkdir(exist_ok=True)
    KUBECONFIG.write_text(settings.kubeconfig.read_text())
    host = Host()
    settle(host, Written({"quay": QUAY, "ghcr": GHCR}))
    yield host
    KUBECONFIG.unlink(missing_ok=True)


def one_round(host: Host) -> tuple[report.Status, list[str]]:
    """What is shown before it, and what failed in it."""
    desired = host.desired(WRITTEN)
    known, problems = observe._cluster(desired)
    observed = replace(host.observed(desired), cluster=known, unread=frozenset() if known else frozenset({"it"}))
    steps = plan.plan(desired, observed, host.now)
    shown = status.describe(desired, observed, steps, {}, problems, host.now)
    todo = [step for step in steps if isinstance(step, actions.PublishToCluster)]
    return shown, [str(trouble) for _, trouble in apply(todo, desired, observed, HANDS)]


def test_one_round_tells_the_cluster_and_the_next_one_has_nothing_to_do(cluster: ControlPlane, host: Host) -> None:
    shown, failed = one_round(host)
    assert failed == []
    assert shown.cluster.cost == "drain"
    for path in (IDMS, ITMS):
        assert [each["source"] for each in entries(cluster, f"{path}/mirror-agent-mirror-lan")] == [
            "ghcr.io", "quay.io",
        ]  # fmt: skip
    before = cluster.get(f"{IDMS}/mirror-agent-mirror-lan")["metadata"]["resourceVersion"]
    shown, failed = one_round(host)
    assert (shown.cluster.state, failed) == ("up to date", [])
    assert cluster.get(f"{IDMS}/mirror-agent-mirror-lan")["metadata"]["resourceVersion"] == before


def test_a_cluster_that_is_away_is_a_problem_and_nothing_else(cluster: ControlPlane, host: Host) -> None:
    KUBECONFIG.write_text(cluster.kubeconfig("ended"))
    shown, failed = one_round(host)
    assert failed == []
    assert [problem.key for problem in shown.problems] == ["publish.cluster"]
    assert "credentials are not accepted" in shown.problems[0].reason
    assert shown.cluster.state == "waits: it cannot be read"
    assert {row.state for row in shown.mirrors} == {report.State.SERVING}
    target._session.cache_clear()
    assert cluster.get(f"{MAPS}/mirror-agent-ca") is None
