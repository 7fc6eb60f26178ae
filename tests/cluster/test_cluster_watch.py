"""Whoever edits what the agent keeps in a cluster sees it put right at once: the cluster tells, nobody asks."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane, manifest, place
from cluster.story import ICSP, IDMS, IMAGE, ITMS, MAPS, MCP, NOON, entries, entry, idms, mirror, publication
from mirror_agent import cluster as rules
from mirror_agent.model import ClusterSettings, ClusterState
from mirror_agent.sources import SOURCES, Watched
from mirror_agent.targets import TargetError, watch
from mirror_agent.targets import cluster as target
from mirror_agent.targets.watch import Subject, Watches

QUIET = 2.0  # seconds without a hint; what has happened is told within milliseconds
PATIENCE = 60.0  # for a machine that does other things too; what is waited for takes a second


class Agent:
    """The loop of the agent as far as a cluster goes: look, apply, wait for a hint."""

    def __init__(self, settings: ClusterSettings) -> None:
        target._session.cache_clear()
        self.settings = settings
        self.hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.watches = Watches()
        nothing: Callable[..., Callable[[], None]] = lambda _: lambda: None  # noqa: E731
        watched = Watched((), nothing, nothing, self.watches.on_change, int)
        self.stop = SOURCES["cluster"](watched, self.hints.put)
        self.ended: list[str] = []

    def look(self) -> ClusterState | None:
        try:
            state = target.read(self.settings)
        except TargetError:
            state = None
        self.ended += self.watches.follow(self.settings, state)
        if state:
            changes = rules.compare(publication(mirror()), self.settings, state).due(self.settings, NOON)
            if changes:
                target.publish(self.settings, changes, lambda: None)
        return state

    def until(self, wanted: Callable[[], object]) -> None:
        """Work on hints alone until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not wanted():
            assert time.monotonic() < deadline
            try:
                self.hints.get(timeout=0.1)
            except queue.Empty:
                continue
            self.look()

    def settle(self) -> None:
        """Until all watches are there and have nothing more to tell."""
        self.look()
        deadline = time.monotonic() + PATIENCE
        while not all(each.opened for each in self.watches.running):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while True:
            try:
                self.hints.get(timeout=QUIET)
            except queue.Empty:
                return
            self.look()

    def watch(self, path: str) -> watch.Watch:
        return self.watches._running[Subject(path)]


@pytest.fixture
def agent(settings: ClusterSettings) -> Iterator[Agent]:
    before = set(threading.enumerate())
    agent = Agent(settings)
    agent.settle()
    yield agent
    agent.stop()
    assert [t.name for t in threading.enumerate() if t not in before and t.name.startswith("watch")] == []


def now(cluster: ControlPlane) -> Counter[str]:
    return Counter(cluster.asked())


def test_all_that_counts_is_watched_and_nothing_is_asked_meanwhile(cluster: ControlPlane, agent: Agent) -> None:
    assert {str(subject) for subject in agent.watches._running} == {
        "imagedigestmirrorsets", "imagetagmirrorsets", "imagecontentsourcepolicies", "machineconfigpools",
        "images cluster", "configmaps mirror-agent-ca",
    }  # fmt: skip
    before = now(cluster)
    with pytest.raises(queue.Empty):
        agent.hints.get(timeout=2)
    assert now(cluster) == before


def test_drift_is_put_right_by_the_event(cluster: ControlPlane, agent: Agent) -> None:
    ours = entries(cluster, f"{IDMS}/mirror-agent-lab")
    assert ours
    before = now(cluster)
    edited = cluster.get(f"{IDMS}/mirror-agent-lab")
    edited["spec"]["imageDigestMirrors"] = []
    cluster.call("PUT", f"{IDMS}/mirror-agent-lab", edited)
    agent.until(lambda: entries(cluster, f"{IDMS}/mirror-agent-lab") == ours)
    cluster.delete(f"{ITMS}/mirror-agent-lab")
    agent.until(lambda: entries(cluster, f"{ITMS}/mirror-agent-lab") == ours)
    data = cluster.get(f"{MAPS}/mirror-agent-ca")["data"]
    cluster.delete(f"{MAPS}/mirror-agent-ca")
    agent.until(lambda: (cluster.get(f"{MAPS}/mirror-agent-ca") or {}).get("data") == data)
    agent.settle()
    made = now(cluster) - before
    # each object: a dry run, the change; all else is looks, none of them for nothing but the agent's own changes
    assert sum(count for what, count in made.items() if what.startswith("patch")) == 6
    assert made["list imagedigestmirrorsets"] <= 9
    assert not any(what.startswith("watch") for what in made)
    assert agent.ended == []


@pytest.mark.parametrize("path", [IDMS, ITMS, ICSP])
def test_what_others_write_is_seen_at_once(cluster: ControlPlane, agent: Agent, path: str) -> None:
    kind, key, version = {
        IDMS: ("ImageDigestMirrorSet", "imageDigestMirrors", "config.openshift.io/v1"),
        ITMS: ("ImageTagMirrorSet", "imageTagMirrors", "config.openshift.io/v1"),
        ICSP: ("ImageContentSourcePolicy", "repositoryDigestMirrors", "operator.openshift.io/v1alpha1"),
    }[path]
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": "theirs"}}
    cluster.apply(f"{path}/theirs", {**body, "spec": {key: [entry("quay.io", "elsewhere.lan")]}})
    found: list[ClusterState] = []

    def refused() -> bool:
        state = agent.look()
        found.extend([state] if state else [])
        return bool(state and rules.compare(publication(mirror()), agent.settings, state).refused)

    assert f"{kind} theirs added" in agent.hints.get(timeout=PATIENCE)
    assert refused()


def test_image_config_and_nodes_are_seen_too(cluster: ControlPlane, agent: Agent) -> None:
    image = cluster.get(IMAGE)
    image["spec"]["additionalTrustedCA"] = {"name": "theirs"}
    cluster.call("PUT", IMAGE, image)
    assert agent.hints.get(timeout=PATIENCE) == "cluster: Image cluster modified"
    head = {"apiVersion": "machineconfiguration.openshift.io/v1", "kind": "MachineConfigPool"}
    cluster.call("POST", MCP, {**head, "metadata": {"name": "worker"}, "spec": {}})
    assert agent.hints.get(timeout=PATIENCE) == "cluster: MachineConfigPool worker added"


def test_a_watch_that_the_server_ends_goes_on_where_it_was(
    cluster: ControlPlane, settings: ClusterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "TURN_SECONDS", 2)
    agent = Agent(settings)
    agent.settle()
    before = now(cluster)
    deadline = time.monotonic() + PATIENCE
    while now(cluster)["watch imagedigestmirrorsets"] < before["watch imagedigestmirrorsets"] + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.delete(f"{ITMS}/mirror-agent-lab")  # wherever they are just now
    agent.until(lambda: entries(cluster, f"{ITMS}/mirror-agent-lab"))
    assert agent.ended == []
    agent.stop()


def test_a_server_that_ends_every_watch_at_once_is_asked_less_and_less_often(
    cluster: ControlPlane, settings: ClusterSettings
) -> None:
    with closing_at_once() as (port, asked):
        settings.kubeconfig.write_text(cluster.kubeconfig("x", port).replace("https://", "http://"))
        alone = watch.Watch(settings, Subject(IDMS), lambda _: None)
        deadline = time.monotonic() + PATIENCE
        while len(asked) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        alone.stop()
        alone.join()
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses[0] >= watch.BACKOFF_SECONDS[1]
    assert pauses[1] >= watch.BACKOFF_SECONDS[2]


@contextmanager
def closing_at_once() -> Iterator[tuple[int, list[float]]]:
    """A proxy that lets no watch live: a real API server cannot be made to do that."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(time.monotonic())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


def test_what_happened_while_the_server_was_away_is_put_right_when_it_is_back(
    cluster: ControlPlane, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BACKOFF_SECONDS", (0.2, 0.4, 1.0))  # what follows is minutes of them
    cluster.stop()
    try:
        target.stir(agent.settings)
        assert agent.look() is None
        deadline = time.monotonic() + PATIENCE
        while not all(each.failures > 2 * watch.TOLD_AFTER for each in agent.watches.running):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        trouble = agent.watches.trouble()
        assert trouble
        assert "cannot be reached" in trouble.reason
    finally:
        cluster.start()
    cluster.delete(f"{ITMS}/mirror-agent-lab")
    agent.until(lambda: entries(cluster, f"{ITMS}/mirror-agent-lab"))
    deadline = time.monotonic() + PATIENCE
    while agent.watches.trouble():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert agent.ended == []


def test_a_version_that_the_server_has_forgotten_is_a_new_look(cluster: ControlPlane, agent: Agent) -> None:
    there = agent.watch(ITMS)
    cluster.stop()
    there._version = "1"  # what it would be after days away: the server keeps no more than minutes
    cluster.start()
    before = now(cluster)
    agent.until(lambda: (now(cluster) - before)["list imagetagmirrorsets"])
    deadline = time.monotonic() + PATIENCE
    while there._version in ("", "1"):
        assert time.monotonic() < deadline
        agent.hints.empty() or agent.hints.get()
        time.sleep(0.1)
    cluster.delete(f"{ITMS}/mirror-agent-lab")
    agent.until(lambda: entries(cluster, f"{ITMS}/mirror-agent-lab"))


def test_a_token_that_ended_and_its_successor(cluster: ControlPlane, agent: Agent) -> None:
    good = agent.settings.kubeconfig.read_text()
    agent.settings.kubeconfig.write_text(cluster.kubeconfig("ended"))
    assert agent.look() is None  # the watches too are begun anew, with this one
    deadline = time.monotonic() + PATIENCE
    while not (trouble := agent.watches.trouble()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "credentials are not accepted" in trouble.reason
    cluster.delete(f"{ITMS}/mirror-agent-lab")
    new = agent.settings.kubeconfig.with_name("new")
    new.write_text(good)
    os.replace(new, agent.settings.kubeconfig)
    assert agent.look()  # that the file changed is an event of its own
    assert entries(cluster, f"{ITMS}/mirror-agent-lab")
    agent.settle()
    assert agent.watches.trouble() is None


def test_missing_rights_are_told_with_the_way_out(cluster: ControlPlane, settings: ClusterSettings) -> None:
    role = next(each for each in manifest() if each["kind"] == "ClusterRole")
    for rule in role["rules"]:
        rule["verbs"] = [verb for verb in rule["verbs"] if verb != "watch"]
    cluster.call("PUT", place(role), role)
    try:
        agent = Agent(settings)
        agent.look()
        deadline = time.monotonic() + PATIENCE
        while not (trouble := agent.watches.trouble()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "not allowed" in trouble.reason
        assert "rbac.yaml" in trouble.hint
        assert agent.look()  # all else works
        agent.stop()
    finally:
        original = next(each for each in manifest() if each["kind"] == "ClusterRole")
        cluster.call("PUT", place(original), original)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_told_and_begun_anew(cluster: ControlPlane, agent: Agent) -> None:
    there = agent.watch(IDMS)
    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert kill(ctypes.c_ulong(there._thread.ident or 0), ctypes.py_object(SystemExit)) == 1
    idms(cluster, "theirs", entry("ghcr.io", "elsewhere.lan"))  # it wakes, and dies of it
    agent.until(lambda: agent.ended)
    assert agent.ended == ["the watch of imagedigestmirrorsets ended (SystemExit: ) and is begun anew"]
    assert agent.watch(IDMS) is not there
    agent.settle()
    cluster.delete(f"{IDMS}/mirror-agent-lab")
    agent.until(lambda: entries(cluster, f"{IDMS}/mirror-agent-lab"))


def test_nothing_is_watched_without_a_cluster_in_the_settings(cluster: ControlPlane, agent: Agent) -> None:
    agent.watches.follow(None, None)
    assert agent.watches._running == {}
    assert cluster.get(IMAGE)


def test_another_config_map_is_watched_when_the_cluster_names_one(cluster: ControlPlane, agent: Agent) -> None:
    image = cluster.get(IMAGE)
    image["spec"]["additionalTrustedCA"] = {"name": "theirs"}
    state = ClusterState(({**image, "kind": "Image"},))
    agent.watches.follow(agent.settings, state)
    assert Subject(MAPS, "theirs") in agent.watches._running
    assert Subject(MAPS, "mirror-agent-ca") not in agent.watches._running


def test_settings_that_are_read_again_change_nothing(agent: Agent, tmp_path: Path) -> None:
    before = dict(agent.watches._running)
    state = target.read(agent.settings)
    agent.watches.follow(ClusterSettings(*[getattr(agent.settings, n) for n in agent.settings.__slots__]), state)
    assert agent.watches._running == before
