"""Mirrors without the agent: rendered by pods.py in the box, put in place and started by hand.

So the data path is proved alone: what fails here is the pod's fault, and nobody else's.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from box import Box

REPO = Path(__file__).resolve().parents[2]
EDGE_IMAGE, REGISTRY_IMAGE = "docker.io/library/nginx:stable", "docker.io/library/registry:3"
WORK = "/root/by-hand"  # in the box
PUBLISHED = f"{WORK}/published"
CACHE = "/var/lib/mirror-agent/cache"
STATE = "/var/lib/mirror-agent/mirrors"

# Runs in the box, with Debian's Python and libraries: render, then lay the files out as a host gets them.
_RENDER = """
import json, os, shutil, sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
sys.path.insert(0, "/root/by-hand/agent")
from mirror_agent import pods
from mirror_agent.model import Mirror, NetworkSettings, Paths, Policy, Settings
lan = NetworkSettings("lan0", IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.1"), IPv4Address("10.0.0.4"),
                      IPv4Address("10.0.0.60"))
settings, paths, podman = Settings("mirror.lan", lan), Paths(), (5, 4)
templates = pods.load_templates(Path("/root/by-hand/quadlets"))
network = pods.render_network(settings, templates, paths, podman)
files = [network.unit]
for m in json.load(sys.stdin):
    last = int(m["address"].rsplit(".", 1)[1])
    mirror = Mirror(m["name"], (m["source"],), m["remote"], m["host"], IPv4Address(m["address"]),
                    f"02:00:0a:00:00:{last:02x}", Policy.NEVER, None, 2**30, m["fresh"], None)
    pod = pods.render_pod(mirror, settings, network, paths, templates, podman)
    files += [*pod.units, *pod.configs]
    for folder in pod.folders:
        os.makedirs(folder.path, exist_ok=True)
        os.chmod(folder.path, folder.mode)
        os.chown(folder.path, folder.owner, folder.owner)
for file in files:
    os.makedirs(file.path.parent, exist_ok=True)
    Path(file.path).with_suffix(".new").write_bytes(file.content)
    os.chmod(Path(file.path).with_suffix(".new"), file.mode)
    os.rename(Path(file.path).with_suffix(".new"), file.path)
"""

_CERTIFY = """
set -e
cd /root/by-hand
[ -e ca.key ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=by-hand \
    -keyout ca.key -out ca.crt 2>/dev/null
g=/var/lib/mirror-agent/mirrors/$1/tls/g-$4
mkdir -p "$g"
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$g/tls.key" -out leaf.csr \
    2>/dev/null
printf 'subjectAltName=DNS:%s,IP:%s\\nextendedKeyUsage=serverAuth\\n' "$2" "$3" > leaf.ext
openssl x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -set_serial "$4" -days 7 -extfile leaf.ext \
    -out "$g/tls.crt" 2>/dev/null
chown -R 101:101 "$g/.."
ln -sfn "g-$4" "$g/../current"
"""


# As often as it takes, for a minute.
_UNTIL = """
end=$(($(date +%s) + 60))
until_true() {
    until "$@"; do
        [ $(date +%s) -lt $end ] || { echo "not within a minute: $*" >&2; exit 1; }
        sleep 0.1
    done
}
"""
_EDGE = """
for address; do until_true curl -sk -o /dev/null -m 2 https://$address/v2/; done
"""
# from inside the pod, where it listens; the namespace is that of the container that runs now
_REGISTRY = """
answers() {
    pid=$(podman container inspect --format '{{.State.Pid}}' mirror-$1-registry 2>/dev/null) && [ "$pid" != 0 ] &&
        nsenter --net --target $pid curl -s -o /dev/null -m 2 http://127.0.0.1:5000/v2/ 2>/dev/null
}
for name; do until_true answers $name; done
"""


@dataclass(frozen=True)
class Handmade:
    """One mirror."""

    name: str
    source: str
    remote: str
    address: str
    fresh: int = 60

    @property
    def host(self) -> str:
        return f"{self.name}.mirror.lan"


QUAY = Handmade("quay", "quay.io", "https://quay.io", "10.0.0.4")
DOCKER = Handmade("docker", "docker.io", "https://registry-1.docker.io", "10.0.0.5", fresh=2)


def pull_images(box: Box) -> None:
    """Bring the two images of a pod, as the agent does before any unit needs them."""
    for image in (EDGE_IMAGE, REGISTRY_IMAGE):
        box.exec("podman", "pull", "--quiet", image)


def render(box: Box, mirrors: Sequence[Handmade]) -> None:
    """Write units, configuration and folders; daemon-reload.  Starts nothing."""
    send(box, ("agent/mirror_agent/model.py", "agent/mirror_agent/pods.py", "quadlets"))
    wanted = [vars(mirror) | {"host": mirror.host} for mirror in mirrors]
    box.exec("python3", "-c", _RENDER, input=json.dumps(wanted))
    box.exec("/usr/libexec/podman/quadlet", "-dryrun")
    box.exec("systemctl", "daemon-reload")


def certify(box: Box, mirror: Handmade, serial: int) -> None:
    """Issue a certificate with this serial and make it the current one."""
    box.exec("sh", "-c", _CERTIFY, "certify", mirror.name, mirror.host, mirror.address, str(serial))


def start(box: Box, mirrors: Sequence[Handmade]) -> None:
    """Start pods and wait until they serve."""
    box.exec("systemctl", "start", *(f"mirror-{mirror.name}-pod.service" for mirror in mirrors))
    wait_for(box, *mirrors)


def wait_for(box: Box, *mirrors: Handmade) -> None:
    """Until every edge answers the node, and its registry the edge: a minute at most."""
    box.node("sh", "-c", _UNTIL + _EDGE, "edges", *(mirror.address for mirror in mirrors))
    box.exec("sh", "-c", _UNTIL + _REGISTRY, "registries", *(mirror.name for mirror in mirrors))


def process(box: Box, container: str) -> str:
    """The main process of a container; "" where none runs.  Another number is another start."""
    said = box.exec("podman", "container", "inspect", "--format", "{{.State.Pid}}", container, check=False).stdout
    return "" if said == "0\n" else said.strip()


def publish(box: Box, mirrors: Sequence[Handmade]) -> None:
    """Give the node names, trust and mirrors: NeverContactSource, so that nothing else can serve it."""
    blocks = "".join(
        f'[[registry]]\nprefix = ""\nlocation = "{m.source}"\nblocked = true\n'
        f'[[registry.mirror]]\nlocation = "{m.host}"\npull-from-mirror = "all"\n'
        for m in mirrors
    )
    hosts = "".join(f"{m.address} {m.host}\n" for m in mirrors)
    script = (
        f"set -e; mkdir -p {PUBLISHED}/registries.conf.d; cp {WORK}/ca.crt {PUBLISHED}/ca-bundle.pem; "
        f"printf %s {shlex.quote(blocks)} > {PUBLISHED}/registries.conf.d/50-mirrors.conf; "
        f"printf %s {shlex.quote(hosts)} > {PUBLISHED}/hosts"
    )
    box.exec("sh", "-c", script)
    box.node_configure(PUBLISHED)


def send(box: Box, paths: Sequence[str]) -> None:
    """Copy files of this tree to WORK in the box."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in paths:
            archive.add(REPO / path, path)
    script = f"mkdir -p {WORK} && base64 -d | tar -xz -C {WORK}"
    box.exec("sh", "-c", script, input=base64.b64encode(buffer.getvalue()).decode())
