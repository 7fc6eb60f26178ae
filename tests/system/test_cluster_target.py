"""The agent as it is installed tells a cluster: a real API server beside it, and nobody at the keyboard."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from appliance import AGENT_TOML, PYTHON, Appliance
from box import Box, stages
from box.cache import build

ADMIN = "the-admins-token"
CONFIG = "/apis/config.openshift.io/v1"
IDMS, ITMS = (f"{CONFIG}/image{kind}mirrorsets/mirror-agent-mirror-lan" for kind in ("digest", "tag"))
POOLS = "/apis/machineconfiguration.openshift.io/v1/machineconfigpools"
KINDS = (f"{CONFIG}/imagedigestmirrorsets", f"{CONFIG}/imagetagmirrorsets", f"{CONFIG}/images", POOLS)
TABLE = '[publish.cluster]\nkubeconfig = "/etc/mirror-agent/kubeconfig"\n'
ETCD = """
cd /srv/cluster
openssl genrsa -out accounts.key 2048 2>/dev/null
echo {admin},admin,admin,system:masters > tokens.csv
systemd-run -q --collect --unit=etcd /srv/cluster/etcd --data-dir /srv/cluster/etcd.d
"""
API = """
systemd-run -q --collect --unit=kube-apiserver /srv/cluster/kube-apiserver \
    --etcd-servers http://127.0.0.1:2379 --secure-port 6443 \
    --bind-address 127.0.0.1 --cert-dir /srv/cluster/tls --service-cluster-ip-range 10.96.0.0/16 \
    --service-account-issuer https://cluster.test --service-account-key-file /srv/cluster/accounts.key \
    --service-account-signing-key-file /srv/cluster/accounts.key --authorization-mode RBAC \
    --token-auth-file /srv/cluster/tokens.csv --disable-admission-plugins ServiceAccount \
    --endpoint-reconciler-type none
"""
PLACES = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}
# YAML → one JSON document a line, with its place: the host's own Python has what that needs
DOCUMENTS = """
import json, sys, yaml
places = json.loads(sys.argv[1])
for body in yaml.safe_load_all(sys.stdin):
    place = places[body["kind"]].format(body["metadata"].get("namespace", ""))
    print(json.dumps([f"{place}/{body['metadata']['name']}", body]))
"""


class Cluster:
    """An API server on the cache host's loopback, and its admin."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def call(self, verb: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """The answer; None for one that is none of success."""
        argv = [
            "curl",
            "-sfk",
            "-m",
            "30",
            "-X",
            verb,
            "-H",
            f"Authorization: Bearer {ADMIN}",
            f"https://127.0.0.1:6443{path}",
        ]
        sends = ["-H", f"Content-Type: {kind}", "--data-binary", "@-"] if body else []
        said = self.box.exec(*argv, *sends, check=False, input=json.dumps(body) if body else None)
        return json.loads(said.stdout) if said.returncode == 0 and said.stdout.startswith("{") else None

    def is_ready(self) -> bool:
        """It has started, with all that it does at its start."""
        ready = ("curl", "-sfk", "-m", "5", "-H", f"Authorization: Bearer {ADMIN}", "https://127.0.0.1:6443/readyz")
        return self.box.exec(*ready, check=False).stdout == "ok"

    def apply(self, text: str) -> None:
        """Each document of a YAML text, as `oc apply --server-side` does it."""
        said = self.box.exec("python3", "-c", DOCUMENTS, json.dumps(PLACES), input=text).stdout
        for place, body in map(json.loads, said.splitlines()):
            path = f"{place}?fieldManager=admin&force=true"
            assert self.call("PATCH", path, body, "application/apply-patch+yaml"), place

    def sources(self, path: str) -> list[str]:
        found = self.call("GET", path)
        return [each["source"] for each in next(iter(found["spec"].values()))] if found else []

    def token(self) -> str:
        path = "/api/v1/namespaces/mirror-agent/serviceaccounts/mirror-agent/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str(self.call("POST", path, body)["status"]["token"])


@pytest.fixture(scope="module")
def cluster(appliance: Appliance) -> Iterator[Cluster]:
    """OpenShift's kinds, an account with the rights that are shipped, a kubeconfig; python3-kubernetes."""
    build((stages.TOOLS, stages.API_SERVER))
    box, cluster = appliance.box, Cluster(appliance.box)
    with box.machine.shared_folder() as (outside, inside):
        shutil.copy(stages.API_SERVER.path / "kube-apiserver", outside)
        shutil.copy(stages.TOOLS.path / "usr/bin/etcd", outside)
        shutil.copytree(stages.TOOLS.path / PYTHON, outside / "libraries", symlinks=True)
        appliance.sh(f"mkdir -p /srv/cluster && cp {inside}/kube-apiserver {inside}/etcd /srv/cluster/")
        appliance.add_libraries(f"{inside}/libraries")
    appliance.sh(ETCD.format(admin=ADMIN))
    appliance.wait(lambda: appliance.sh("curl -sf http://127.0.0.1:2379/health", check=False), 20, "etcd")
    appliance.sh(API)
    appliance.wait(cluster.is_ready, 30, "the API server")
    for file in sorted((stages.REPO / "tests/cluster/crds").glob("*.yaml")):
        cluster.apply(file.read_text())
    assert cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": "openshift-config"}})
    cluster.apply(appliance.sh(f"cat {appliance.share}/doc/mirror-agent/rbac.yaml"))
    appliance.wait(lambda: all(cluster.call("GET", kind) for kind in KINDS), 20, "the kinds")
    head = {"apiVersion": "config.openshift.io/v1", "kind": "Image", "metadata": {"name": "cluster"}}
    assert cluster.call("POST", f"{CONFIG}/images", {**head, "spec": {}})
    authority = base64.b64encode(appliance.sh("cat /srv/cluster/tls/apiserver.crt").encode()).decode()
    config = {
        "current-context": "it",
        "clusters": [
            {"name": "it", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority-data": authority}}
        ],
        "users": [{"name": "it", "user": {"token": cluster.token()}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    appliance.write("/etc/mirror-agent/kubeconfig", json.dumps(config))
    yield cluster
    appliance.sh("systemctl kill -s KILL kube-apiserver etcd", check=False)


def state(appliance: Appliance) -> dict[str, Any]:
    found: dict[str, Any] = appliance.glance().get("cluster", {})
    return found


def is_there(cluster: Cluster, path: str) -> bool:
    return cluster.sources(path) == ["quay.io"]


def lines(appliance: Appliance) -> str:
    return "\n".join(line["MESSAGE"] for line in appliance.journal())


def test_what_drains_is_held_back_until_it_is_allowed(appliance: Appliance, cluster: Cluster) -> None:
    appliance.settings(AGENT_TOML + TABLE)
    appliance.drop("quay")
    appliance.serving("quay")
    appliance.wait(lambda: state(appliance).get("state", "").startswith("held back"), 30, "held back")
    assert state(appliance)["cost"] == "drain"
    assert "held back: it drains every node" in appliance.box.exec("mirror-agent", "status", check=False).stdout
    assert cluster.sources(IDMS) == []
    assert cluster.call("GET", "/api/v1/namespaces/openshift-config/configmaps/mirror-agent-ca")  # that costs nothing
    told = appliance.box.exec("mirror-agent", "preview", "quay.io/podman/hello:latest").stdout
    assert "the agent: held back" in told

    appliance.settings(AGENT_TOML + TABLE + 'drain = "always"\n')
    appliance.wait(lambda: cluster.sources(IDMS) == cluster.sources(ITMS) == ["quay.io"], 30, "the pair")
    appliance.wait(lambda: state(appliance)["state"] == "up to date", 30, "up to date")
    assert "mirror-agent-mirror-lan: drains every node" in lines(appliance)
    assert "Nothing to do" in appliance.box.exec("mirror-agent", "plan").stdout


def test_edits_by_others_last_seconds(appliance: Appliance, cluster: Cluster) -> None:
    since = appliance.cursor()
    for path in (ITMS, IDMS, ITMS):
        assert cluster.call("DELETE", path)
        # by the event: the look without one comes a minute after the one before, which was the last edit's
        appliance.wait(partial(is_there, cluster, path), 5, "it is back", least=30)
    assert "is begun anew" not in "\n".join(line["MESSAGE"] for line in appliance.journal(since=since))


def test_the_nodes_are_followed_until_they_are_done(appliance: Appliance, cluster: Cluster) -> None:
    head = {"apiVersion": "machineconfiguration.openshift.io/v1", "kind": "MachineConfigPool"}
    pool = cluster.call("POST", POOLS, {**head, "metadata": {"name": "worker"}, "spec": {}})

    def at(updated: int, **conditions: str) -> None:
        counts = {"machineCount": 3, "updatedMachineCount": updated, "readyMachineCount": updated}
        told = [
            {"type": kind, "status": "True", "lastTransitionTime": None, "reason": "", "message": message}
            for kind, message in conditions.items()
        ]
        now = cluster.call("GET", f"{POOLS}/worker")
        now["status"] = {**counts, "unavailableMachineCount": 0, "degradedMachineCount": 0, "conditions": told}
        assert cluster.call("PUT", f"{POOLS}/worker/status", now)

    assert pool
    at(1, Updating="")
    appliance.wait(lambda: "nodes: worker 1/3 updating" in lines(appliance), 10, "the first one")
    at(2, Updating="", Degraded="node b: no space")
    appliance.wait(lambda: "nodes: worker 2/3 degraded: node b: no space" in lines(appliance), 10, "what is wrong")
    at(3)
    appliance.wait(lambda: "nodes: worker 3/3 done" in lines(appliance), 10, "the end")
    assert state(appliance)["roll_out"] == "worker 3/3 done"


def test_a_cluster_that_is_away_harms_no_mirror_and_what_was_edited_then_is_put_right(
    appliance: Appliance, cluster: Cluster
) -> None:
    starts = appliance.starts("quay")
    appliance.sh("systemctl kill -s KILL kube-apiserver")
    appliance.box.exec("systemctl", "reload", "mirror-agent")
    appliance.wait(lambda: "cannot be read" in state(appliance)["state"], 30, "it is seen to be away")
    assert appliance.mirror("quay")["state"] == "serving"
    failed = appliance.box.exec("mirror-agent", "preview", check=False)
    assert failed.returncode == 1
    assert "cannot be reached" in failed.stderr
    assert "--before" in failed.stderr
    appliance.sh(API)
    appliance.wait(lambda: cluster.call("DELETE", ITMS), 30, "the API server is back")
    appliance.wait(lambda: cluster.sources(ITMS) == ["quay.io"], 45, "it is back")
    appliance.wait(lambda: state(appliance)["state"] == "up to date", 30, "up to date")
    assert appliance.starts("quay") == starts


def test_another_name_takes_over(appliance: Appliance, cluster: Cluster) -> None:
    appliance.settings(AGENT_TOML + TABLE + 'name = "rack-7"\n')  # and drain = "never": it costs nothing
    new = [path.replace("mirror-agent-mirror-lan", "mirror-agent-rack-7") for path in (IDMS, ITMS)]
    appliance.wait(lambda: all(cluster.sources(path) == ["quay.io"] for path in new), 30, "the new pair")
    appliance.wait(lambda: cluster.sources(IDMS) == cluster.sources(ITMS) == [], 30, "the old one is empty")
    appliance.settings(AGENT_TOML + TABLE + 'drain = "always"\n')
    appliance.wait(lambda: cluster.sources(IDMS) == cluster.sources(ITMS) == ["quay.io"], 30, "back")
    appliance.wait(lambda: not any(map(cluster.sources, new)), 30, "the other one is empty")


def test_the_last_mirror_goes(appliance: Appliance, cluster: Cluster) -> None:
    appliance.remove("quay")
    appliance.wait(lambda: cluster.sources(IDMS) == cluster.sources(ITMS) == [], 30, "withdrawn")
    assert cluster.call("GET", IDMS)  # the object itself stays: there is no right to delete
