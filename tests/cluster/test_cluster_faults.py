"""What goes wrong between the agent and a cluster: it is told, it is tried again, and nobody waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cluster.control_plane import ControlPlane, kinds, place
from cluster.story import IDMS, NOON, entry, idms, look, mirror, publication, told
from mirror_agent import cluster as rules
from mirror_agent.model import ClusterSettings, ClusterState
from mirror_agent.targets import TargetError
from mirror_agent.targets import cluster as target


def again(settings: ClusterSettings) -> ClusterState:
    """Ask until it works, as the loop does, without its pauses."""
    deadline = time.monotonic() + 30
    while True:
        try:
            target._session(settings)._next = 0.0
            return target.read(settings)
        except TargetError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_away_and_back(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings)
    changes = rules.compare(publication(), settings, look(settings)).due(settings, NOON)
    cluster.stop()
    try:
        target._session(settings)._next = 0.0
        with pytest.raises(TargetError, match="cannot be reached: Connection refused"):
            target.read(settings)
        with pytest.raises(TargetError, match="cannot be reached"):
            target.publish(settings, changes, lambda: None)
    finally:
        cluster.start()
    assert rules.compare(publication(mirror()), settings, again(settings)).mirrors == ()


def test_it_is_asked_less_and_less_often(settings: ClusterSettings) -> None:
    settings.kubeconfig.write_text(settings.kubeconfig.read_text().replace("https://127.0.0.1", "https://127.0.0.9"))
    session, waits = target._session(settings), []
    for _ in range(4):
        with pytest.raises(TargetError, match="cannot be reached"):
            target.read(settings)
        waits.append(round(session._next - time.monotonic()))
        before = session._failures
        with pytest.raises(TargetError, match="cannot be reached"):
            target.read(settings)
        assert session._failures == before  # that one was not asked
        session._next = 0.0
    assert waits == [2, 5, 15, 30]


def test_a_server_that_never_answers_holds_nobody_up(
    cluster: ControlPlane, settings: ClusterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = rules.compare(publication(mirror()), settings, look(settings)).due(settings, NOON)
    monkeypatch.setattr(target, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(target, "APPLY_SECONDS", 0.3)
    monkeypatch.setattr(target, "REQUEST_SECONDS", (5.0, 2.0))
    with cluster.frozen():
        session = target._session(settings)
        session._next = 0.0
        with pytest.raises(TargetError, match="does not answer"):
            target.read(settings)
        first = session._work
        begun = time.monotonic()
        for _ in range(100):
            with pytest.raises(TargetError, match="does not answer"):
                target.read(settings)
        assert time.monotonic() - begun < 2.0
        assert session._work is first  # one conversation at a time, however often it is asked for
        with pytest.raises(TargetError, match="does not answer"):
            target.publish(settings, changes, lambda: None)
        assert first
        assert first.wait(10)
        beats: list[int] = []
        with pytest.raises(TargetError, match="no answer"):
            target.publish(settings, changes, lambda: beats.append(1))
        assert beats
    assert again(settings).objects


def test_a_token_that_ended_is_told_and_the_new_one_is_read(cluster: ControlPlane, settings: ClusterSettings) -> None:
    look(settings)
    good = settings.kubeconfig.read_text()
    settings.kubeconfig.write_text(cluster.kubeconfig("ended"))
    with pytest.raises(TargetError, match="credentials are not accepted"):
        target.read(settings)
    new = settings.kubeconfig.with_name("new")
    new.write_text(good)
    os.replace(new, settings.kubeconfig)
    assert target.read(settings).objects  # at once, not after the pause


def test_a_kubeconfig_that_is_none(settings: ClusterSettings) -> None:
    for content in ("", "[]", "clusters: 1", "{"):
        settings.kubeconfig.write_text(content)
        with pytest.raises(TargetError, match="cannot be used"):
            look(settings)
    settings.kubeconfig.unlink()
    with pytest.raises(TargetError, match="cannot be used"):
        look(settings)


def test_no_openshift(cluster: ControlPlane, settings: ClusterSettings) -> None:
    kind = next(each for each in kinds() if each["spec"]["names"]["kind"] == "ImageDigestMirrorSet")
    cluster.delete(place(kind))
    try:
        deadline = time.monotonic() + 10
        while cluster.serves(IDMS):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(TargetError) as error:
            look(settings)
        assert "imagedigestmirrorsets: it has no such kind" in error.value.reason
        assert "is this OpenShift" in error.value.hint
    finally:
        deadline = time.monotonic() + 20
        while cluster.get(place(kind)) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.apply(place(kind), kind)
        while not cluster.serves(IDMS):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_somebody_was_faster(cluster: ControlPlane, settings: ClusterSettings) -> None:
    adopting = replace(settings, adopt=("image-digest-mirror",))
    idms(cluster, "image-digest-mirror", entry("quay.io", "quay.mirror.lan"))
    changes = rules.compare(publication(mirror()), adopting, look(adopting)).due(adopting, NOON)
    idms(cluster, "image-digest-mirror", entry("quay.io", "quay.mirror.lan"), entry("ghcr.io", "elsewhere.lan"))
    with pytest.raises(TargetError, match="somebody else has or changes it"):
        target.publish(adopting, changes, lambda: None)
    assert told(publication(mirror()), adopting).refused == ""
    assert told(publication(mirror()), adopting).mirrors == ()


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that has one answer to everything: what a real one says when it is overloaded cannot be had at will."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Retry-After", "1")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "said"), [(429, "has too much to do"), (503, "503 Service Unavailable"), (500, "500 Internal")]
)
def test_an_overloaded_server(cluster: ControlPlane, settings: ClusterSettings, status: int, said: str) -> None:
    with answering(status) as port:
        settings.kubeconfig.write_text(cluster.kubeconfig("x", port).replace("https://", "http://"))
        with pytest.raises(TargetError, match=said):
            look(settings)
