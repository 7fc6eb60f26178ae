"""Readers besides a cluster's nodes, as Debian has them, with what is published for each put where docs/publications.md
says: podman, skopeo, containerd, Docker; and dnsmasq, by which a reader finds the mirrors.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from appliance import FIVE, GOODBYES, PUBLISHED, Appliance, parts
from box import stages, topology

APP = "demo/app"
NODE = "/var/lib/box/node"  # the node's files, on the cache host
WORK = "/var/lib/containers/readers"  # of the node: a plain folder
ANOTHER_CA = "/usr/local/share/ca-certificates/box-internet.crt"
CONTAINERD, DOCKER = f"{WORK}/containerd.sock", f"unix://{WORK}/docker.sock"

# Beside the place of hosts.toml, only what the box needs: other folders, and no overlay.
CONTAINERD_CONFIG = f"""\
version = 2
root = "{WORK}/containerd"
state = "{WORK}/containerd.state"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
"""
DOCKERD = (
    "dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs",
    f"--containerd={CONTAINERD}", f"--host={DOCKER}", f"--exec-root={WORK}/docker.state", f"--data-root={WORK}/docker",
    f"--pidfile={WORK}/docker.pid",
)  # fmt: skip

# What a kubelet asks of containerd (CRI, ImageService.PullImage), by hand: Debian has no crictl.
_CRI_PULL = """
import struct, subprocess, sys
def field(value):
    return bytes([10, len(value)]) + value
request = field(field(sys.argv[2].encode()))
answer = subprocess.run(
    ["curl", "-sS", "-i", "--http2-prior-knowledge", "--unix-socket", sys.argv[1], "-H", "te: trailers", "-H",
     "content-type: application/grpc", "--data-binary", "@-", "http://cri/runtime.v1.ImageService/PullImage"],
    input=b"\\0" + struct.pack(">I", len(request)) + request, stdout=subprocess.PIPE, check=True,
).stdout
sys.exit(None if b"grpc-status: 0" in answer else answer.decode(errors="replace"))
"""


@dataclass(frozen=True)
class Reader:
    agent: str  # how it calls itself
    pull: tuple[str, ...]  # command of the node; REF becomes the reference
    forget: str  # script of the node that makes it cold
    trust: str  # where it looks for the CA of HOST
    mirrors: tuple[str, ...] = tuple(FIVE)


_CTR = f"ctr --address {CONTAINERD} --namespace k8s.io images"
_FORGET_CONTAINERD = f"{_CTR} ls -q | xargs -r {_CTR} rm --sync"
_CONTAINERS_TRUST = "/etc/containers/certs.d/HOST/ca.crt"
_CONTAINERD_TRUST = "/etc/containerd/certs.d/mirror-agent-ca.pem"
READERS = {
    "podman": Reader(
        "containers/", ("podman", "pull", "--quiet", "--retry=0", "REF"), "podman rmi --all --force", _CONTAINERS_TRUST
    ),
    "skopeo": Reader(
        "skopeo/", ("skopeo", "copy", "--quiet", "docker://REF", "dir:/tmp/pulled"), "rm -rf /tmp/pulled",
        _CONTAINERS_TRUST,
    ),
    "containerd": Reader(
        "containerd/", ("python3", "-c", _CRI_PULL, CONTAINERD, "REF"), _FORGET_CONTAINERD, _CONTAINERD_TRUST
    ),
    "ctr": Reader(
        "containerd/",
        (*_CTR.split(), "pull", "--snapshotter=native", "--hosts-dir=/etc/containerd/certs.d", "REF"),
        _FORGET_CONTAINERD, _CONTAINERD_TRUST,
    ),
    "docker": Reader(
        "docker/", ("docker", f"--host={DOCKER}", "pull", "--quiet", "REF"),
        f"docker --host={DOCKER} image ls -q | xargs -r docker --host={DOCKER} rmi --force",
        "/etc/docker/certs.d/HOST/ca.crt", ("docker",),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def lan(appliance: Appliance) -> Appliance:
    """Five mirrors that have served one client; the node with all readers; the internet is away."""
    others = [name for name in FIVE if name != "gcr"]
    appliance.drop(*others)
    appliance.define("gcr", 'source = "gcr.io"\npolicy = "AllowContactingSource"\n')
    appliance.serving(*FIVE)
    appliance.configure_node()
    _install_readers(appliance)
    for source in FIVE.values():
        pull(appliance, READERS["skopeo"], f"{source}/{APP}:1.0")
    appliance.box.cut_internet()
    return appliance


def _install_readers(appliance: Appliance) -> None:
    with appliance.box.machine.shared_folder() as (outside, inside):
        shutil.copytree(stages.READERS.path, outside, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
        appliance.sh(f"cp -a {inside}/. {NODE}")
    appliance.sh(f"""set -e
        cd {PUBLISHED}
        install -D -m 0644 ca-bundle.pem {NODE}{_CONTAINERD_TRUST}
        for file in containerd/*.toml; do
            install -D -m 0644 $file {NODE}/etc/containerd/certs.d/$(basename $file .toml)/hosts.toml
        done
        install -D -m 0644 ca-bundle.pem {NODE}/etc/docker/certs.d/docker.mirror.lan/ca.crt
        install -D -m 0644 docker/daemon.json {NODE}/etc/docker/daemon.json
        mkdir {NODE}{WORK}
    """)
    appliance.write(f"{NODE}/etc/containerd/config.toml", CONTAINERD_CONFIG)
    _start(appliance, "containerd")
    _start(appliance, *DOCKERD)
    _until_up(appliance, f"ctr --address {CONTAINERD} version")
    _until_up(appliance, f"docker --host={DOCKER} version")


def _until_up(appliance: Appliance, command: str) -> None:
    appliance.wait(lambda: appliance.box.node(*command.split(), check=False).returncode == 0, 20, command)


def _start(appliance: Appliance, *argv: str) -> None:
    """A daemon of the node; what it says is in the journal, as node-NAME.service."""
    place = (f"RootDirectory={NODE}", "MountAPIVFS=yes", "NetworkNamespacePath=/run/netns/node")
    options = [f"--property={each}" for each in place]
    appliance.box.exec("systemd-run", "--quiet", f"--unit=node-{argv[0]}", *options, *argv)


def try_pull(appliance: Appliance, reader: Reader, reference: str) -> str:
    """Pull with a reader that has nothing yet; its complaint, or nothing."""
    appliance.box.node("sh", "-c", reader.forget)
    argv = [word.replace("REF", reference) for word in reader.pull]
    done = appliance.box.node(*argv, check=False, timeout=300)
    return f"exit code {done.returncode}\n{done.stdout}{done.stderr}" if done.returncode else ""


def pull(appliance: Appliance, reader: Reader, reference: str) -> None:
    assert try_pull(appliance, reader, reference) == ""


def asked(appliance: Appliance, mirror: str, reader: Reader, since: str) -> set[str]:
    """What a reader has got from a mirror: the paths of requests that were answered."""
    argv = ("journalctl", "-o", "cat", f"--after-cursor={since}", "-u", f"mirror-{mirror}-edge")
    lines = [json.loads(line) for line in appliance.box.exec(*argv).stdout.splitlines() if line.startswith("{")]
    good = [line for line in lines if line["agent"].startswith(reader.agent) and line["status"] == 200]
    return {line["uri"].partition("?")[0] for line in good}


def until_asked(appliance: Appliance, mirror: str, reader: Reader, since: str, wanted: set[str]) -> None:
    """What is served and what is logged take different ways."""
    appliance.wait(lambda: wanted <= asked(appliance, mirror, reader, since), 10, f"in the log of {mirror}: {wanted}")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_pulls_by_tag_and_by_digest_what_the_internet_does_not_give(lan: Appliance, name: str) -> None:
    reader = READERS[name]
    for mirror in reader.mirrors:
        source = FIVE[mirror]
        image = lan.box.images()[source][f"{APP}:1.0"]
        for sign, reference in ((":", "1.0"), ("@", image["digest"])):
            since = lan.cursor()
            pull(lan, reader, f"{source}/{APP}{sign}{reference}")
            wanted = {f"/v2/{APP}/blobs/{blob['digest']}" for blob in parts(image)}
            if sign == ":":  # Docker keeps manifests by their digest after an image is removed
                wanted.add(f"/v2/{APP}/manifests/{reference}")
            until_asked(lan, mirror, reader, since, wanted)


def test_docker_pulls_an_official_image_by_its_short_name(lan: Appliance) -> None:
    lan.box.mend_internet()
    pull(lan, READERS["skopeo"], "docker.io/library/app:1.0")
    lan.box.cut_internet()
    pull(lan, READERS["docker"], "app:1.0")


@contextmanager
def another_ca(appliance: Appliance, path: str) -> Iterator[None]:
    """In the place of the one that was published."""
    published = appliance.box.node("cat", path).stdout
    appliance.box.node("cp", ANOTHER_CA, path)
    try:
        yield
    finally:
        appliance.write(NODE + path, published)


@pytest.mark.parametrize("name", READERS)
def test_the_published_ca_is_what_makes_a_reader_trust_the_mirror(lan: Appliance, name: str) -> None:
    reader, mirror = READERS[name], "docker"
    reference = f"{FIVE[mirror]}/{APP}:1.0"
    since = lan.cursor()
    with another_ca(lan, reader.trust.replace("HOST", f"{mirror}.mirror.lan")):
        assert try_pull(lan, reader, reference) != ""
        assert asked(lan, mirror, reader, since) == set()
    pull(lan, reader, reference)


@pytest.mark.parametrize("option", ["--conf-file=/etc/dnsmasq.d/mirrors.conf", "--addn-hosts=/etc/mirrors.hosts"])
def test_a_reader_finds_the_mirrors_by_dnsmasq(lan: Appliance, option: str) -> None:
    """At an address of the LAN, with either of the files for it."""
    lan.sh(f"""set -e
        install -D -m 0644 {PUBLISHED}/dnsmasq.conf /etc/dnsmasq.d/mirrors.conf
        install -D -m 0644 {PUBLISHED}/hosts /etc/mirrors.hosts
        cp {NODE}/etc/hosts {NODE}/etc/resolv.conf /tmp
        echo '127.0.0.1 localhost' > {NODE}/etc/hosts
    """)
    try:
        assert try_pull(lan, READERS["podman"], f"quay.io/{APP}:1.0") != "", "nobody knows the mirror's name"
        lan.write(f"{NODE}/etc/resolv.conf", "nameserver 10.0.0.2\n")
        settings = ("--keep-in-foreground", "--listen-address=10.0.0.2", "--bind-interfaces", "--no-hosts",
                    "--no-resolv", "--pid-file=", "--user=root")  # fmt: skip
        command = ("systemd-run", "--quiet", "--collect", "--unit=lan-dns", "dnsmasq", *settings, option)
        lan.box.exec(*command)
        lan.wait(lambda: lan.box.node("getent", "hosts", "quay.mirror.lan", check=False).stdout, 10, "the DNS server")
        for mirror, source in FIVE.items():
            [address] = {line.split()[0] for line in lan.box.node("getent", "ahostsv4", f"{mirror}.mirror.lan")
                         .stdout.splitlines()}  # fmt: skip
            assert address == lan.mirror(mirror)["address"]
            assert f"{mirror}.mirror.lan" in lan.box.node("getent", "hosts", address).stdout
            pull(lan, READERS["podman"], f"{source}/{APP}:1.0")
    finally:
        lan.sh(f"systemctl stop lan-dns; cp /tmp/hosts /tmp/resolv.conf {NODE}/etc", check=False)


@pytest.mark.parametrize(
    ("name", "mirror", "contacts_source"),
    [("containerd", "quay", False), ("ctr", "quay", False), ("containerd", "gcr", True), ("docker", "docker", True)],
)
def test_what_a_reader_does_when_the_mirror_is_away(
    lan: Appliance, name: str, mirror: str, contacts_source: bool
) -> None:
    """Never keeps containerd from the source, also while the source can be reached; Docker knows no Never."""
    source, upstream = FIVE[mirror], topology.upstream(FIVE[mirror]).host
    lan.box.mend_internet()
    lan.box.exec("systemctl", "stop", "mirror-agent")  # first, or it may start again what is stopped next
    lan.box.exec("systemctl", "stop", f"mirror-{mirror}-pod")
    lan.box.node("ip", "neigh", "flush", "dev", "lan0")  # or it takes long to give up
    try:
        since, before = lan.cursor(), lan.received(upstream)
        said = try_pull(lan, READERS[name], f"{source}/{APP}:1.0")
        assert lan.starts(mirror) == {}
        assert (said == "") is contacts_source, said
        assert (lan.asked(upstream, since) != []) is contacts_source
        assert (lan.received(upstream) - before > GOODBYES) is contacts_source
    finally:
        lan.box.exec("systemctl", "start", "mirror-agent")
        lan.settle()
        lan.serving(*FIVE)
