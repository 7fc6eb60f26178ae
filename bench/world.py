"""The test host with the four that are compared: how they are set up, asked, and weighed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from box import Box, BoxError
from box.demo import PUBLISHED, SETTINGS, Demo

from .results import BARE, CONTENDERS, LIMIT, POD, RECIPE, Memory, Sample

HERE = Path(__file__).resolve().parent
UPSTREAM = "quay.io"
LINE_MBIT = 400
AT_ONCE = 6  # what one client asks for side by side, as podman does
ADDRESSES = {POD: "10.0.0.4", RECIPE: "10.0.0.201", BARE: "10.0.0.202", LIMIT: "10.0.0.203"}
HOST = "quay.mirror.lan"
DEFINITION = "/etc/mirror-agent.d/quay.toml"
_STORE = f"/srv/upstream/{UPSTREAM}/docker/registry/v2/blobs"
_FIVE = ("docker", "gcr", "ghcr", "registry-k8s")

# what the image of registry:2 has in its file, but for TLS and the proxy; that of registry:3 says the same
_REGISTRY = f"""\
version: 0.1
log: {{fields: {{service: registry}}}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: /var/lib/registry}}
http:
  addr: ":443"
  tls: {{certificate: /bench/tls.crt, key: /bench/tls.key}}
  headers: {{X-Content-Type-Options: [nosniff]}}
health: {{storagedriver: {{enabled: true, interval: 10s, threshold: 3}}}}
proxy: {{remoteurl: "https://{UPSTREAM}"}}
"""
_NGINX = """\
daemon off;
pid /tmp/nginx.pid;
worker_processes auto;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    server {
        listen 443 ssl;
        ssl_certificate /bench/tls.crt;
        ssl_certificate_key /bench/tls.key;
        keepalive_requests 100000;
        root /blobs;
    }
}
"""
_NGINX_IMAGE, _REGISTRY_IMAGE = "docker.io/library/nginx:stable", "docker.io/library/registry:3"
_RUN = {
    # Debian's 2.8.3 is linked dynamically: it needs an image with a libc
    RECIPE: ("--volume=/usr/bin/docker-registry:/bin/registry:ro", "--volume=/var/lib/bench/recipe:/var/lib/registry",
             "--entrypoint=/bin/registry", _NGINX_IMAGE, "serve", "/bench/registry.yml"),
    BARE: ("--volume=/var/lib/bench/distribution:/var/lib/registry", "--entrypoint=registry", _REGISTRY_IMAGE,
           "serve", "/bench/registry.yml"),
    LIMIT: (f"--volume={_STORE}:/blobs:ro", "--entrypoint=nginx", _NGINX_IMAGE, "-c", "/bench/nginx.conf"),
}  # fmt: skip
_PODS = {name: [f"mirror-{name}-{part}" for part in ("infra", "edge", "registry")] for name in ("quay", *_FIVE)}


class World:
    """A booted box with all four in it.  Methods raise BoxError and AssertionError (a command in the box failed)."""

    def __init__(self, box: Box) -> None:
        self.box = box

    # --- set up

    def begin(self) -> None:
        """Boot; start the agent and one mirror.  The others are not there yet."""
        self.box.up()
        self._write("/etc/mirror-agent/agent.toml", SETTINGS)
        self.box.exec("mkdir", "-p", PUBLISHED, "/etc/bench", "/var/lib/bench/recipe", "/var/lib/bench/distribution")
        # fresh: so that a tag has to be asked for again within the time of this run. Nothing else goes by it.
        self._write(DEFINITION, f'source = "{UPSTREAM}"\naddress = "{ADDRESSES[POD]}"\n[cache]\nfresh = "1s"\n')
        self.box.exec("systemctl", "enable", "--now", "mirror-agent")
        self.wait_until_serving(1)
        self.box.node_configure(PUBLISHED)
        self._write("/etc/bench/registry.yml", _REGISTRY)
        self._write("/etc/bench/nginx.conf", _NGINX)
        self.box.exec("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
                      "-subj", "/CN=bench", "-keyout", "/etc/bench/tls.key", "-out", "/etc/bench/tls.crt")  # fmt: skip

    def _write(self, path: str, text: str) -> None:
        self.box.exec("sh", "-c", f"cat > {path}", input=text)

    def wait_until_serving(self, mirrors: int) -> None:
        """Until so many mirrors serve and that is published."""
        demo, deadline = Demo(self.box), time.monotonic() + 120
        while time.monotonic() < deadline:
            status = demo.status()
            states = [row["state"] for row in status["mirrors"]]
            if states == ["serving"] * mirrors and status["publication"] == "up to date":
                return
            time.sleep(0.2)
        raise BoxError(f"{mirrors} mirrors do not serve", str(status))

    def start(self, who: str) -> None:
        """Start one; returns when it answers."""
        if who == POD:
            self.box.exec("systemctl", "start", "mirror-agent", "mirror-quay-pod")
            self.wait_until_serving(1)
            return
        network = self.box.exec("podman", "network", "ls", "--quiet", "--filter=driver=macvlan").stdout.strip()
        self.box.exec("podman", "run", "--detach", f"--name=bench-{who}", f"--network={network}",
                      f"--ip={ADDRESSES[who]}", "--volume=/etc/bench:/bench:ro", *_RUN[who])  # fmt: skip
        # a container has another MAC at each start, and the node would send to the last one for most of a minute
        self.box.node("ip", "neighbour", "flush", "dev", "lan0")
        self.box.node("curl", "--silent", "--insecure", "--output", "/dev/null", "--retry", "30", "--retry-delay", "1",
                      "--retry-connrefused", f"https://{ADDRESSES[who]}/v2/")  # fmt: skip

    def stop(self, who: str) -> None:
        """Stop one; what it has cached stays."""
        if who == POD:
            self.box.exec("systemctl", "stop", "mirror-agent", "mirror-quay-pod")
        else:
            self.box.exec("podman", "rm", "--force", "--time=1", f"bench-{who}")

    @contextmanager
    def five(self) -> Iterator[None]:
        """Four more mirrors."""
        files = [f"/usr/share/mirror-agent/examples/{name}.toml" for name in _FIVE]
        self.box.exec("cp", *files, "/etc/mirror-agent.d/")
        self.wait_until_serving(len(_FIVE) + 1)
        yield
        self.box.exec("rm", *(f"/etc/mirror-agent.d/{name}.toml" for name in _FIVE))
        self.wait_until_serving(1)

    @contextmanager
    def shaped(self) -> Iterator[None]:
        """An internet of LINE_MBIT."""
        self.box.inet("tc", "qdisc", "add", "dev", "wan", "root", "tbf", "rate", f"{LINE_MBIT}mbit", "burst", "128k",
                      "latency", "200ms")  # fmt: skip
        try:
            yield
        finally:
            self.box.inet("tc", "qdisc", "del", "dev", "wan", "root", check=False)

    # --- ask

    def push(self, image: str, sizes: Sequence[int], seed: int) -> list[str]:
        """Make an image at the upstream; the digests of its layers."""
        made = self.box.push(UPSTREAM, f"{image}:1", layer_sizes=sizes, seed=seed)
        return [layer["digest"] for layer in made["layers"]]

    @staticmethod
    def addresses(who: str, image: str, digests: Sequence[str]) -> list[str]:
        """Where blobs are."""
        if who == LIMIT:
            names = (digest.removeprefix("sha256:") for digest in digests)
            return [f"https://{ADDRESSES[LIMIT]}/sha256/{name[:2]}/{name}/data" for name in names]
        return [f"https://{ADDRESSES.get(who, UPSTREAM)}/v2/{image}/blobs/{digest}" for digest in digests]

    def measure(self, what: str, who: str, clients: int, number: int, steps: Sequence[Sequence[str]]) -> Sample:
        """Let clients pull; `who` "line" is straight from the upstream, by the cache host."""
        before, received = self._cpu(who), self._received()
        said = self._pull("host" if who == "line" else "node", clients, steps)
        received = self._quiet() - received if what.endswith("cold") else 0
        after = self._cpu(who)
        return Sample(what, who, clients, number, round(said["seconds"], 3), said["bytes"], received,
                      {name: round(spent - before.get(name, 0), 2) for name, spent in after.items()})  # fmt: skip

    def _pull(self, where: str, clients: int, steps: Sequence[Sequence[str]]) -> dict[str, Any]:
        job = json.dumps({"clients": clients, "at_once": AT_ONCE, "steps": steps})
        client = (HERE / "client.py").read_text()
        done = self.box.exec("python3", "-c", client, where=where, input=job, timeout=900)
        said: dict[str, Any] = json.loads(done.stdout)
        if said["errors"]:
            raise BoxError(f"{clients} clients of {steps[-1][0]}", "\n".join(said["errors"]))
        return said

    def _received(self) -> int:
        return self.box.bytes()[UPSTREAM].rx

    def _quiet(self) -> int:
        """What has come from the upstream, once nothing comes any more: some fetch on behind the client's back."""
        before, now = -1, self._received()
        while now - before > 10_000:
            time.sleep(0.7)
            before, now = now, self._received()
        return now

    # --- weigh

    def _probe(self, containers: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        text = self.box.exec("python3", "-c", (HERE / "probe.py").read_text(), *containers).stdout
        found: dict[str, list[dict[str, Any]]] = json.loads(text)
        if missing := [name for name, processes in found.items() if not processes]:
            raise BoxError(f"{', '.join(missing)}: not running")
        return found

    def _cpu(self, who: str) -> dict[str, float]:
        if who not in CONTENDERS:
            return {}
        spent: dict[str, float] = {}
        for processes in self._probe(_containers(who)).values():
            for process in processes:
                spent[process["name"]] = spent.get(process["name"], 0) + process["cpu"]
        return spent

    def weigh(self, who: str, state: str) -> list[Memory]:
        """Memory by kind of process; "one of five" is a fifth of all five pods."""
        pods = 5 if state == "one of five" else 1
        containers = _containers(who) if pods == 1 else [name for names in _PODS.values() for name in names]
        found: dict[str, list[dict[str, Any]]] = {}
        for processes in self._probe(containers).values():
            for process in processes:
                if process["name"] != "nginx cache loader":  # ends a minute after the start
                    found.setdefault(process["name"], []).append(process)
        return [
            Memory(who, state, name, len(those) / pods,
                   *(sum(each[key] for each in those) / pods for key in ("rss", "pss", "own")))
            for name, those in found.items()
        ]  # fmt: skip

    def idle(self, who: str, seconds: float) -> list[Memory]:
        """Memory while nothing happens, and the CPU that this takes."""
        before = self._cpu(who)
        time.sleep(seconds)
        after = self._cpu(who)
        return [
            Memory(m.who, m.state, m.process, m.count, m.rss, m.pss, m.own,
                   round((after[m.process] - before.get(m.process, 0)) * 10 / seconds, 2))
            for m in self.weigh(who, "idle")
        ]  # fmt: skip

    def loaded(self, who: str, clients: int, addresses: Sequence[str]) -> list[Memory]:
        """Memory in the middle of a pull."""
        with ThreadPoolExecutor(1) as pool:
            pull = pool.submit(self._pull, "node", clients, [list(addresses)])
            time.sleep(1.5)
            found = self.weigh(who, "load")
            pull.result()
        return found


def _containers(who: str) -> list[str]:
    return _PODS["quay"] if who == POD else [f"bench-{who}"]
