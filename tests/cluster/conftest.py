"""One API server for all tests, emptied before each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane import MINUTE, ControlPlane, kinds, manifest, place
from cluster.story import CONFIG, ICSP, IDMS, IMAGE, ITMS, MAPS, MCP
from mirror_agent.model import ClusterSettings, Drain
from mirror_agent.targets import api
from mirror_agent.targets import cluster as target


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("cluster"))
    try:
        plane.start()
        for body in kinds():
            plane.apply(place(body), body)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "openshift-config"}}
        plane.apply(place(namespace), namespace)
        deadline = time.monotonic() + MINUTE
        while not all(map(plane.serves, (IDMS, ITMS, ICSP, MCP, f"{CONFIG}/images"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield plane
    finally:
        plane.close()


@pytest.fixture
def cluster(server: ControlPlane) -> ControlPlane:
    """As OpenShift is after its installation: an image configuration without anything in it."""
    for path in (IDMS, ITMS, ICSP, MCP, MAPS):
        server.delete(path)  # all of them
    for body in manifest():
        server.apply(place(body), body)
    head = {"apiVersion": "config.openshift.io/v1", "kind": "Image", "metadata": {"name": "cluster"}}
    server.delete(IMAGE)
    server.call("POST", f"{CONFIG}/images", {**head, "spec": {}})
    return server


@pytest.fixture
def settings(cluster: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterSettings:
    """Of an agent that waits for a busy machine: how long it waits is what a few tests are about."""
    monkeypatch.setattr(target, "ANSWER_SECONDS", MINUTE)
    monkeypatch.setattr(api, "REQUEST_SECONDS", (MINUTE, MINUTE))
    target._session.cache_clear()
    file = tmp_path / "kubeconfig"
    file.write_text(cluster.kubeconfig(cluster.token()))
    return ClusterSettings(file, "lab", drain=Drain.ALWAYS)
