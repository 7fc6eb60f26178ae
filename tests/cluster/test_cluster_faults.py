"""What goes wrong between the agent and a cluster: it is told, it is tried again, and nobody waits for it."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml

from cluster.control_plane import MINUTE, ControlPlane, kinds, place
from cluster.story import GOLDEN_CA, IDMS, NOON, entry, idms, look, mirror, publication, told
from mirror_agent import cluster as rules
from mirror_agent.model import ClusterSettings, ClusterState
from mirror_agent.targets import TargetError, api
from mirror_agent.targets import cluster as target


def again(settings: ClusterSettings) -> ClusterState:
    """Ask until it works, as the loop does, without its pauses."""
    deadline = time.monotonic() + MINUTE
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
    session = target._session(settings)
    for pause in (2, 5, 15, 30):
        begun = time.monotonic()
        with pytest.raises(TargetError, match="cannot be reached"):
            target.read(settings)
        assert begun + pause <= session._next <= time.monotonic() + pause
        session._next = time.monotonic() + MINUTE  # however slow the machine is: not yet
        before = session._failures
        with pytest.raises(TargetError, match="cannot be reached"):
            target.read(settings)
        assert session._failures == before  # that one was not asked
        session._next = 0.0


def test_a_server_that_never_answers_holds_nobody_up(
    cluster: ControlPlane, settings: ClusterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = rules.compare(publication(mirror()), settings, look(settings)).due(settings, NOON)
    monkeypatch.setattr(target, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(target, "APPLY_SECONDS", 0.3)
    monkeypatch.setattr(api, "REQUEST_SECONDS", (5.0, 4.0))
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
        assert time.monotonic() - begun < 15  # the first waits for its answer, none of the hundred: that would be 30 s
        assert session._work is first  # one conversation at a time, however often it is asked for
        with pytest.raises(TargetError, match="does not answer"):
            target.publish(settings, changes, lambda: None)
        assert first
        assert first.wait(MINUTE)
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


def other(settings: ClusterSettings, user: Mapping[str, Any] | None = None, **cluster: Any) -> None:
    """The kubeconfig with another user, and with other facts of the cluster."""
    config = yaml.safe_load(settings.kubeconfig.read_text())
    config["clusters"][0]["cluster"] |= cluster
    if user is not None:
        config["users"][0]["user"] = dict(user)
    settings.kubeconfig.write_text(yaml.safe_dump(config))


def test_a_token_of_its_own_file_is_followed(cluster: ControlPlane, settings: ClusterSettings) -> None:
    """As a service account's is in a pod: a link to a folder that is swapped."""
    folder = settings.kubeconfig.parent
    for name, token in (("old", "ended"), ("new", cluster.token())):
        (folder / name).mkdir()
        (folder / name / "token").write_text(token + "\n")
    (folder / "now").symlink_to("old")
    other(settings, {"tokenFile": "now/token"})
    with pytest.raises(TargetError, match="credentials are not accepted"):
        look(settings)
    (folder / "next").symlink_to("new")
    os.replace(folder / "next", folder / "now")
    assert target.read(settings).objects  # at once, not after the pause


def test_a_ca_of_its_own_file(cluster: ControlPlane, settings: ClusterSettings) -> None:
    config = yaml.safe_load(settings.kubeconfig.read_text())
    data = config["clusters"][0]["cluster"].pop("certificate-authority-data")
    settings.kubeconfig.with_name("ca.crt").write_bytes(base64.b64decode(data))
    settings.kubeconfig.write_text(yaml.safe_dump(config))
    other(settings, None, **{"certificate-authority": "ca.crt"})
    assert look(settings).objects
    os.chown(settings.kubeconfig.with_name("ca.crt"), 65534, 65534)
    with pytest.raises(TargetError, match="owned by uid 65534"):
        look(settings)


def test_a_server_with_another_ca_is_not_spoken_to(cluster: ControlPlane, settings: ClusterSettings) -> None:
    other(settings, None, **{"certificate-authority-data": base64.b64encode(GOLDEN_CA.read_bytes()).decode()})
    with pytest.raises(TargetError, match=r"cannot be reached: .*certificate verify failed"):
        look(settings)


def test_a_kubeconfig_that_is_none(settings: ClusterSettings) -> None:
    for content in ("", "[]", "clusters: 1", "{", "current-context: x", "contexts: [1]\ncurrent-context: x", "\0"):
        settings.kubeconfig.write_text(content)
        with pytest.raises(TargetError, match="cannot be used"):
            look(settings)
    settings.kubeconfig.unlink()
    with pytest.raises(TargetError, match="cannot be used: No such file"):
        look(settings)
    settings.kubeconfig.mkdir()
    with pytest.raises(TargetError, match="not a regular file"):
        look(settings)
    settings.kubeconfig.rmdir()
    os.mkfifo(settings.kubeconfig)
    with pytest.raises(TargetError, match="not a regular file"):
        look(settings)


@pytest.mark.parametrize("key", ["exec", "auth-provider"])
def test_no_program_is_started_to_log_in(settings: ClusterSettings, key: str) -> None:
    sign = settings.kubeconfig.with_name("sign")
    other(settings, {key: {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": [str(sign)]}})
    with pytest.raises(TargetError, match=f"its user has {key}, and the agent starts no program") as error:
        look(settings)
    assert "token" in error.value.hint
    assert not sign.exists()


@pytest.mark.parametrize("name", ["kubeconfig", "token"])
def test_what_others_may_write_is_not_read(settings: ClusterSettings, name: str) -> None:
    other(settings, {"tokenFile": "token"})
    file = settings.kubeconfig.with_name(name)
    settings.kubeconfig.with_name("token").write_text("ended")
    for mode in (0o620, 0o602):
        file.chmod(mode)
        with pytest.raises(TargetError, match="others can write to it") as error:
            look(settings)
        assert error.value.hint == f"chmod go-w {file}"
    file.chmod(0o600)
    os.chown(file, 65534, 65534)
    with pytest.raises(TargetError, match="owned by uid 65534, not by root") as error:
        look(settings)
    assert error.value.where == str(file)


def test_no_openshift(cluster: ControlPlane, settings: ClusterSettings) -> None:
    kind = next(each for each in kinds() if each["spec"]["names"]["kind"] == "ImageDigestMirrorSet")
    cluster.delete(place(kind))
    try:
        deadline = time.monotonic() + MINUTE
        while cluster.serves(IDMS):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(TargetError) as error:
            look(settings)
        assert "imagedigestmirrorsets: it has no such kind" in error.value.reason
        assert "is this OpenShift" in error.value.hint
    finally:
        deadline = time.monotonic() + MINUTE
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


def unheard(settings: ClusterSettings) -> None:
    """Ask, and do not wait for the answer."""
    with suppress(TargetError):
        target.read(settings)


@contextmanager
def overloaded(cluster: ControlPlane, settings: ClusterSettings) -> Iterator[None]:
    """The agent's account may make one request at a time, and that one waits: the server's own limits, and its disk."""
    flow = "/apis/flowcontrol.apiserver.k8s.io/v1"
    head = {"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "metadata": {"name": "only-one"}}
    limited = {"nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0}
    level = {"type": "Limited", "limited": {**limited, "limitResponse": {"type": "Reject"}}}
    account = {"kind": "ServiceAccount", "serviceAccount": {"namespace": "mirror-agent", "name": "mirror-agent"}}
    all_of_it = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}
    schema = {
        "priorityLevelConfiguration": {"name": "only-one"},
        "matchingPrecedence": 2,
        "rules": [{"subjects": [account], "resourceRules": [all_of_it]}],
    }
    levels, schemas = f"{flow}/prioritylevelconfigurations", f"{flow}/flowschemas"
    cluster.apply(f"{levels}/only-one", {**head, "kind": "PriorityLevelConfiguration", "spec": level})
    cluster.apply(f"{schemas}/only-one", {**head, "kind": "FlowSchema", "spec": schema})
    try:
        level_id = cluster.get(f"{levels}/only-one")["metadata"]["uid"]
        deadline = time.monotonic() + MINUTE
        while cluster.level(settings.kubeconfig) != level_id:  # it learns of its limits a moment later
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with cluster.frozen("etcd"):
            first = threading.Thread(target=unheard, args=(replace(settings, name="first"),))
            first.start()
            deadline = time.monotonic() + MINUTE
            while not cluster.executing("only-one"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        first.join()
    finally:
        cluster.delete(f"{schemas}/only-one")
        cluster.delete(f"{levels}/only-one")


def test_an_overloaded_server(cluster: ControlPlane, settings: ClusterSettings) -> None:
    changes = rules.compare(publication(mirror()), settings, look(settings)).due(settings, NOON)
    with overloaded(cluster, settings):
        target._session(settings)._next = 0.0
        with pytest.raises(TargetError, match="the API server has too much to do"):
            target.read(settings)
        with pytest.raises(TargetError, match="too much to do"):
            target.publish(settings, changes, lambda: None)
    assert again(settings).objects


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that has one answer to everything: what a real one says when it is broken cannot be had at will."""

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


@pytest.mark.parametrize(("status", "said"), [(503, "503 Service Unavailable"), (500, "500 Internal")])
def test_a_broken_server(cluster: ControlPlane, settings: ClusterSettings, status: int, said: str) -> None:
    with answering(status) as port:
        settings.kubeconfig.write_text(cluster.kubeconfig("x", port).replace("https://", "http://"))
        with pytest.raises(TargetError, match=said):
            look(settings)
