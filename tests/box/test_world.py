"""The box itself: what every other test takes for granted. Boots a box of its own, `box pytest tests/box`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .host import Box
from .topology import READER, UPSTREAMS

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("systemd-nspawn"), reason="boots a machine: needs root and systemd-nspawn"
)

BOX_COMMAND = Path(__file__).with_name("box")
TESTS = """
import sys, time
from box import Box
with Box(sys.argv[1]).lent() as box:
    box.up(bare=True)
    print("booted", flush=True)
    time.sleep(600)
"""
MINUTE = 60.0  # seconds; the patience of all that waits here


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box(f"{Box().name}-world").lent() as box:
        box.up(bare=True)
        yield box


def left_of(box: Box) -> list[str]:
    """What this machine still has of a box."""
    places = [*([box.machine.state] if box.machine.state.exists() else []), *box.machine.cgroups()]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(box.machine.state) in line]
    return [*map(str, places), *mounts]


def pull(box: Box, image: str, *options: str) -> int:
    return box.node("podman", "pull", "--quiet", *options, image, check=False).returncode


def test_systemd_runs_it(box: Box) -> None:
    assert box.exec("systemctl", "is-system-running").stdout.strip() == "running"
    assert box.exec("cat", "/proc/1/comm").stdout.strip() == "systemd"


def test_commands_are_processes_of_the_box(box: Box) -> None:
    assert "0::/system.slice/box-exec.service" in box.exec("cat", "/proc/self/cgroup").stdout
    assert box.exec("sh", "-c", "exit 7", check=False).returncode == 7
    assert box.exec("cat", input="through a pipe").stdout == "through a pipe"
    assert not {"BOX", "PYTHONPATH", "OLDPWD"} & {line.partition("=")[0] for line in box.exec("env").stdout.split()}


def test_no_way_out(box: Box) -> None:
    """Neither the machine's links nor its routes are there; what is no address of the box's is not reached."""
    links = box.exec("ls", "/sys/class/net").stdout.split()
    assert sorted(links) == ["lan0", "lo"]
    assert box.inet("ip", "route", "show", "default").stdout == ""


def test_the_node_is_another_machine(box: Box) -> None:
    box.exec("touch", "/root/of-the-cache-host")
    assert box.node("test", "-e", "/root/of-the-cache-host", check=False).returncode == 1
    box.node("ping", "-c1", "-W2", "10.0.0.2")
    assert box.node("ip", "netns").stdout == ""


@pytest.mark.parametrize("upstream", UPSTREAMS, ids=lambda u: str(u.name))
def test_every_upstream_serves_what_was_promised(box: Box, upstream: object) -> None:
    name, probe = upstream.name, upstream.probe  # type: ignore[attr-defined]
    for image in (probe, "demo/app:1.0"):
        assert pull(box, f"{name}/{image}") == 0
        inspected = box.node("skopeo", "inspect", "--raw", f"docker://{name}/{image}").stdout
        assert box.images()[name][image]["mediaType"] in inspected


def test_docker_hub_wants_a_token_and_private_an_account(box: Box) -> None:
    anonymous = box.node("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "https://registry-1.docker.io/v2/")
    assert anonymous.stdout == "401"
    assert pull(box, "docker.io/private/app:1.0") != 0
    assert pull(box, "docker.io/private/app:1.0", "--creds", ":".join(READER)) == 0
    assert pull(box, "docker.io/private/app:1.0", "--creds", "reader:wrong") != 0


def test_the_router_counts_what_is_pulled_once(box: Box) -> None:
    size = 3_000_000
    pushed = box.push("gcr.io", "test/counted:1", layer_sizes=[size])
    others, before = box.received("quay.io"), box.received("gcr.io")
    packets = box.bytes()["gcr.io"].rx
    assert pull(box, "gcr.io/test/counted:1") == 0
    received = box.received("gcr.io") - before
    # TLS: records of 16 kB with 22 bytes each, the first 128 kB in small ones, and its handshakes
    assert pushed["layers"][0]["size"] < received < 1.02 * size
    assert box.bytes()["gcr.io"].rx - packets > received  # with the headers of IP
    assert box.received("quay.io") == others


def test_a_cut_outlives_a_reboot_and_pushing_does_not_need_the_link(box: Box) -> None:
    box.cut_internet()
    box.push("quay.io", "test/while-cut:1")
    box.reboot()
    assert pull(box, "quay.io/test/while-cut:1") != 0
    box.mend_internet()
    assert pull(box, "quay.io/test/while-cut:1") == 0


def test_a_power_cut_keeps_the_state(box: Box) -> None:
    box.exec("sh", "-c", "echo kept > /root/state && sync")
    box.kill()
    assert not box.running
    box.start()
    assert box.exec("cat", "/root/state").stdout == "kept\n"


def test_node_reset_makes_it_cold(box: Box) -> None:
    assert pull(box, "quay.io/demo/app:1.0") == 0
    box.node_reset()
    assert box.node("podman", "images", "--quiet").stdout == ""


def test_node_configure_trusts_only_what_is_published(box: Box) -> None:
    box.exec("sh", "-c", """
        mkdir -p /root/published/registries.conf.d
        echo CA > /root/published/ca-bundle.pem
        echo '10.0.0.4 quay.mirror.lan' > /root/published/hosts
        printf '[[registry]]\nlocation = "quay.io"\n[[registry.mirror]]\nlocation = "quay.mirror.lan/x"\n' \
            > /root/published/registries.conf.d/quay.conf
    """)  # fmt: skip
    box.node_configure("/root/published")
    assert box.node("getent", "hosts", "quay.mirror.lan").stdout.split() == ["10.0.0.4", "quay.mirror.lan"]
    assert box.node("ls", "/etc/containers/certs.d").stdout.split() == ["quay.mirror.lan"]
    assert box.node("cat", "/etc/containers/certs.d/quay.mirror.lan/ca.crt").stdout == "CA\n"


def test_nothing_is_left_after_it_was_killed_in_the_middle_of_a_boot() -> None:
    box = Box(f"{Box().name}-killed")
    starting = subprocess.Popen([BOX_COMMAND, "up", "--bare"], env={**os.environ, "BOX": box.name})
    deadline = time.monotonic() + MINUTE
    while not box.running:
        assert starting.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    starting.kill()
    starting.wait()
    box.down()
    assert left_of(box) == []


def test_nothing_is_left_after_the_tests_that_had_it_were_killed() -> None:
    box = Box(f"{Box().name}-orphan")
    with subprocess.Popen([sys.executable, "-c", TESTS, box.name], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        assert tests.stdout.readline() == "booted\n"
        assert box.running
        tests.kill()
    deadline = time.monotonic() + MINUTE
    while left := left_of(box):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
