"""A real kube-apiserver on Debian's etcd, with OpenShift's kinds in it, and the ways in that tests need."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

HERE = Path(__file__).parent
REPO = HERE.parents[1]
RBAC = REPO / "packaging/rbac.yaml"
ADMIN = "the-admins-token"
USER = "system:serviceaccount:mirror-agent:mirror-agent"
MINUTE = 60.0  # seconds: the patience of all that waits here
START_SECONDS = 120.0


def program(name: str) -> str:
    """Of KUBEBUILDER_ASSETS, else of the path."""
    given = Path(os.environ["KUBEBUILDER_ASSETS"]) / name
    found = str(given) if given.exists() else shutil.which(name)
    assert found, f"{name} is neither in KUBEBUILDER_ASSETS nor installed"
    return found


def free_port() -> int:
    """Below those that the kernel gives to others (Linux: from 32768 on): it stays free while its server is stopped."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as listening, suppress(OSError):
            listening.bind(("127.0.0.1", port))
            return port


class ControlPlane:
    """etcd and the API server; it can be stopped, frozen and started again with all that it had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._etcd_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "tokens.csv").write_text(f"{ADMIN},admin,admin,system:masters\n")
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["ResponseStarted", "ResponseComplete"],
        }
        rules = [{"level": "Metadata", "users": [USER]}, {"level": "None"}]
        (folder / "audit.yaml").write_text(yaml.safe_dump({**policy, "rules": rules}))
        subprocess.run(["openssl", "genrsa", "-out", folder / "accounts.key", "2048"], check=True, capture_output=True)
        peer = f"http://127.0.0.1:{free_port()}"
        self._start(
            "etcd", "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync",
            "--listen-client-urls", self._etcd, "--advertise-client-urls", self._etcd,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        )  # fmt: skip

    @property
    def _etcd(self) -> str:
        return f"http://127.0.0.1:{self._etcd_port}"

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._processes[name] = subprocess.Popen([program(name), *arguments], stdout=log, stderr=log)

    def start(self) -> None:
        """Start the API server, and wait until it is ready."""
        self._until_etcd_answers()
        key = str(self.folder / "accounts.key")
        self._start(
            "kube-apiserver", "--etcd-servers", self._etcd, "--secure-port", str(self.port),
            "--bind-address", "127.0.0.1", "--cert-dir", str(self.folder / "tls"),
            "--service-account-issuer", "https://cluster.test", "--service-account-key-file", key,
            "--service-account-signing-key-file", key, "--service-cluster-ip-range", "10.96.0.0/16",
            "--authorization-mode", "RBAC", "--token-auth-file", str(self.folder / "tokens.csv"),
            "--audit-policy-file", str(self.folder / "audit.yaml"), "--audit-log-path", str(self.folder / "audit.log"),
            "--audit-log-mode", "blocking-strict",
            "--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none",
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.admin.call_api("/readyz", "GET", auth_settings=["BearerToken"], _request_timeout=2)
                return
            except Exception:
                log = (self.folder / "kube-apiserver.log").read_text()
                assert self._processes["kube-apiserver"].poll() is None, log[-3000:]
                assert time.monotonic() < deadline, log[-3000:]
                time.sleep(0.1)

    def _until_etcd_answers(self) -> None:
        deadline = time.monotonic() + MINUTE
        while True:
            wire = http.client.HTTPConnection("127.0.0.1", self._etcd_port, timeout=5)
            with suppress(OSError), closing(wire):
                wire.request("GET", "/health")
                wire.getresponse()
                return
            log = (self.folder / "etcd.log").read_text()
            assert self._processes["etcd"].poll() is None, log[-3000:]
            assert time.monotonic() < deadline, log[-3000:]
            time.sleep(0.1)

    def stop(self, name: str = "kube-apiserver") -> None:
        process = self._processes.pop(name, None)
        if process:
            process.kill()
            process.wait()

    def close(self) -> None:
        self.stop()
        self.stop("etcd")

    @contextmanager
    def frozen(self, name: str = "kube-apiserver") -> Iterator[None]:
        """Its port takes connections, and nothing ever answers."""
        process = self._processes[name]
        process.send_signal(19)
        try:
            yield
        finally:
            process.send_signal(18)

    # --- ways in ---

    def kubeconfig(self, token: str, port: int | None = None) -> str:
        authority = base64.b64encode((self.folder / "tls/apiserver.crt").read_bytes()).decode()
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "clusters": [
                    {
                        "name": "it",
                        "cluster": {
                            "server": f"https://127.0.0.1:{port or self.port}",
                            "certificate-authority-data": authority,
                        },
                    }
                ],
                "users": [{"name": "it", "user": {"token": token}}],
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            }
        )

    @property
    def admin(self) -> client.ApiClient:
        configuration = client.Configuration()
        configuration.retries = False
        file = self.folder / "admin.kubeconfig"
        file.write_text(self.kubeconfig(ADMIN))
        config.load_kube_config(str(file), client_configuration=configuration, persist_config=False)
        return client.ApiClient(configuration)

    def call(self, verb: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        return self.admin.call_api(
            path, verb, body=body, header_params={"Content-Type": kind, "Accept": "application/json"},
            auth_settings=["BearerToken"], response_type="object", _return_http_data_only=True, _request_timeout=60,
        )  # fmt: skip

    def apply(self, path: str, body: dict[str, Any], manager: str = "admin") -> Any:
        """As `oc apply --server-side --force-conflicts` does it."""
        query = f"?fieldManager={manager}&force=true"
        return self.call("PATCH", f"{path}{query}", body, "application/apply-patch+yaml")

    def token(self) -> str:
        """A token of the service account of packaging/rbac.yaml."""
        path = "/api/v1/namespaces/mirror-agent/serviceaccounts/mirror-agent/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
        return str(self.call("POST", path, body)["status"]["token"])

    def asked(self) -> list[str]:
        """All requests of that account so far, each as "VERB RESOURCE"."""
        log = self.folder / "audit.log"
        events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [f"{event['verb']} {event['objectRef']['resource']}" for event in events]

    def executing(self, level: str) -> int:
        """How many requests of this priority level are being served."""
        answer = self.admin.call_api(
            "/metrics", "GET", auth_settings=["BearerToken"], response_type="str", _return_http_data_only=True
        )
        name, label = "apiserver_flowcontrol_current_executing_requests{", f'priority_level="{level}"'
        lines = [line for line in answer.splitlines() if line.startswith(name) and label in line]
        return sum(int(float(line.split()[-1])) for line in lines)

    def level(self, kubeconfig: Path) -> str:
        """The priority level that whoever has this kubeconfig is served with: its uid."""
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
        path = "/apis/config.openshift.io/v1/imagedigestmirrorsets"
        _, _, headers = client.ApiClient(configuration).call_api(
            path, "GET", auth_settings=["BearerToken"], response_type="object"
        )
        return str(headers["X-Kubernetes-Pf-Prioritylevel-Uid"])

    def get(self, path: str) -> Any:
        try:
            return self.call("GET", path)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def serves(self, path: str) -> bool:
        """Is this list there?  For a while after a kind has come, the server answers 429."""
        try:
            return self.get(path) is not None
        except ApiException:
            return False

    def delete(self, path: str) -> None:
        try:
            self.call("DELETE", path)
        except ApiException as error:
            if error.status != 404:
                raise


PLACES = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}


def place(body: dict[str, Any]) -> str:
    """Where an object of the manifests lives."""
    base = PLACES[body["kind"]].format(namespace=body["metadata"].get("namespace", ""))
    return f"{base}/{body['metadata']['name']}"


def manifest() -> list[dict[str, Any]]:
    """packaging/rbac.yaml."""
    return list(yaml.safe_load_all(RBAC.read_text()))


def kinds() -> list[dict[str, Any]]:
    """OpenShift's kinds, of tests/cluster/crds."""
    return [yaml.safe_load(file.read_text()) for file in sorted((HERE / "crds").glob("*.yaml"))]
