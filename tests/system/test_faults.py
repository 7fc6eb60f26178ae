"""What goes wrong on a host: an address that is taken, a lost bus, a dead podman, secrets that must not show."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from appliance import AGENT_TOML, DEFINITIONS, MB, PUBLISHED, STATE, Appliance, parts
from client import throttled

TAKEN = "10.0.0.44"
_KILL_FETCHING_WORKER = """
master=$(podman container inspect --format '{{.State.Pid}}' mirror-quay-edge)
for worker in $(cat /proc/$master/task/$master/children); do
    if ls -l /proc/$worker/fd | grep -q edge/coalesce/; then kill -9 $worker; echo $worker; fi
done"""


@pytest.fixture(scope="module")
def one(appliance: Appliance) -> Appliance:
    """One mirror that serves."""
    appliance.drop("quay")
    appliance.serving("quay")
    appliance.configure_node()
    return appliance


@pytest.fixture(autouse=True)
def only_quay(one: Appliance) -> Iterator[None]:
    """Every test ends with the one mirror."""
    yield
    one.sh(f"cd {DEFINITIONS}; rm -f docker.toml gcr.toml ghcr.toml")
    one.serving("quay")


# --- addresses


@pytest.fixture
def other_machine(one: Appliance) -> Iterator[str]:
    """The node has TAKEN as well; its MAC."""
    one.box.node("ip", "address", "add", f"{TAKEN}/24", "dev", "lan0")
    yield str(json.loads(one.box.node("ip", "-json", "link", "show", "lan0").stdout)[0]["address"])
    one.box.node("ip", "address", "del", f"{TAKEN}/24", "dev", "lan0", check=False)


def test_an_address_that_another_machine_has_is_not_claimed(one: Appliance, other_machine: str) -> None:
    since = one.cursor()
    one.sh(f"""cd {DEFINITIONS}; cp {one.examples}/gcr.toml .
        printf 'source = "docker.io"\\naddress = "{TAKEN}"\\n' > docker.toml""")
    line = one.until_said(f"{TAKEN}: is taken by {other_machine}", since)
    assert (line["MIRROR"], line["UPSTREAM"], line["ACTION"]) == ("docker", "docker.io", "claim-address")
    one.wait(lambda: one.mirror("gcr").get("state") == "serving", 30, "the other new one")
    assert one.mirror("quay")["state"] == "serving"
    row = one.mirror("docker")
    assert row["state"] == "failed"
    assert other_machine in row["reason"]
    told = one.box.exec("mirror-agent", "status", check=False)
    assert (told.returncode, other_machine in told.stderr) == (1, True)
    assert one.starts("docker") == {}
    assert "docker" not in one.published("hosts")

    one.box.node("ip", "address", "del", f"{TAKEN}/24", "dev", "lan0")
    one.serving("quay", "gcr", "docker", seconds=40)  # by itself
    assert one.hosts()["docker.mirror.lan"] == TAKEN


_LISTEN = """
import socket, sys, time
address = socket.inet_aton(sys.argv[1])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
wire.bind(("lan0", 0))
wire.settimeout(0.2)
until = time.monotonic() + float(sys.argv[2])
print("listening", flush=True)
while time.monotonic() < until:
    try:
        frame = wire.recv(2048)
    except TimeoutError:
        continue
    if frame[28:32] == frame[38:42] == address:
        print(frame[6:12].hex(":"), frame[0:6].hex(":"), flush=True)
"""


def test_a_pod_that_started_announces_its_address(one: Appliance) -> None:
    """Peers that remember another MAC for it reach it at once: without an announcement they would for 40 s not."""
    row = one.mirror("quay")
    mac = "02:00:" + ":".join(f"{int(part):02x}" for part in row["address"].split("."))
    one.box.node("sh", "-c", f"python3 -c '{_LISTEN}' {row['address']} 120 > /tmp/heard 2>&1 &")
    one.box.node("sh", "-c", "until grep -q listening /tmp/heard; do sleep 0.1; done")
    one.box.node(
        "ip", "neigh", "replace", row["address"], "lladdr", "02:de:ad:00:00:01", "dev", "lan0", "nud", "reachable"
    )
    one.box.exec("systemctl", "restart", "mirror-quay-pod")
    one.wait(lambda: mac in one.box.node("cat", "/tmp/heard").stdout, 20, "a gratuitous ARP")
    assert f"{mac} ff:ff:ff:ff:ff:ff" in one.box.node("cat", "/tmp/heard").stdout
    assert mac in one.box.node("ip", "neigh", "show", row["address"]).stdout
    one.curl("quay", "/v2/")


# --- what the agent needs


def test_a_lost_bus_ends_the_agent_and_systemd_brings_it_back(one: Appliance) -> None:
    mirrors, agent = one.starts("quay"), one.property("mirror-agent", "InvocationID")
    one.box.exec("systemctl", "kill", "-s", "KILL", "dbus")
    one.wait(lambda: one.property("mirror-agent", "InvocationID") != agent, 20, "a new agent")
    one.wait(lambda: one.property("mirror-agent", "SubState") == "running", 20, "the agent")
    one.drop("gcr")
    one.serving("quay", "gcr")
    assert one.starts("quay") == mirrors


def test_a_reload_is_over_when_the_agent_says_so(one: Appliance) -> None:
    """It waits for podman, which does not answer."""

    def reloading() -> bool:
        one.sh("systemctl reload --no-block mirror-agent; sleep 1")
        return one.property("mirror-agent", "ActiveState") == "reloading"

    one.box.exec("systemctl", "kill", "-s", "STOP", "podman.service")
    try:
        one.drop("gcr")
        one.wait(reloading, 10, "a reload that is not over at once")
        one.box.exec("systemctl", "daemon-reload")
        time.sleep(3)
        assert one.property("mirror-agent", "ActiveState") == "reloading"
    finally:
        one.box.exec("systemctl", "kill", "-s", "CONT", "podman.service")
    one.wait(lambda: one.property("mirror-agent", "ActiveState") == "active", 20, "the end of the reload")
    one.serving("quay", "gcr")


# The agent says that it lives every 20 s while nothing happens, and a busy machine may be late.
_WATCHDOG = """
mkdir -p /run/systemd/system/mirror-agent.service.d
printf '[Service]\\nWatchdogSec=32\\nTimeoutAbortSec=1\\n' > /run/systemd/system/mirror-agent.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart mirror-agent
"""


def test_an_agent_that_hangs_is_replaced_and_mirrors_go_on(one: Appliance) -> None:
    """The loop itself feeds the watchdog: one that lives is left alone, one that does not is killed."""
    mirrors = one.starts("quay")
    one.sh(_WATCHDOG)
    one.serving("quay")
    agent, restarts = one.property("mirror-agent", "InvocationID"), one.property("mirror-agent", "NRestarts")
    time.sleep(36)  # it is not killed meanwhile
    assert one.property("mirror-agent", "InvocationID") == agent
    one.sh("pkill -STOP -f '[/]usr/bin/mirror-agent run'")
    one.wait(lambda: one.property("mirror-agent", "NRestarts") != restarts, 60, "a new agent")
    one.curl("quay", "/v2/")
    one.sh("rm -r /run/systemd/system/mirror-agent.service.d")
    one.box.exec("systemctl", "daemon-reload")
    one.wait(lambda: one.property("mirror-agent", "SubState") == "running", 20, "the agent")
    one.drop("gcr")
    one.serving("quay", "gcr")
    assert one.starts("quay") == mirrors


def test_without_podman_mirrors_go_on_and_the_agent_catches_up(one: Appliance) -> None:
    mirrors, since = one.starts("quay"), one.cursor()
    one.box.exec("systemctl", "stop", "podman.socket", "podman.service")
    one.drop("gcr")
    one.until_said("podman", since)
    one.curl("quay", "/v2/")
    one.box.exec("systemctl", "start", "podman.socket")
    one.serving("quay", "gcr", seconds=30)
    assert one.starts("quay") == mirrors


def test_a_container_that_dies_comes_back(one: Appliance) -> None:
    def started(unit: str, before: str) -> bool:
        return one.starts("quay").get(unit, before) != before

    def pulled() -> bool:
        url = "https://quay.mirror.lan/v2/demo/app/manifests/1.0"
        return one.box.node(*one.curl_command("quay"), "--fail", url, check=False).returncode == 0

    for role, service in (("registry", "registry"), ("edge", "edge"), ("infra", "pod")):
        unit = f"mirror-quay-{service}.service"
        before = one.starts("quay")[unit]
        one.box.exec("podman", "kill", "--signal", "KILL", f"mirror-quay-{role}")
        one.wait(partial(started, unit, before), 20, f"another {role}")
        one.wait(lambda: len(one.starts("quay")) == 3, 20, f"all services after the {role} was killed")
        one.settle()
        one.serving("quay")
        one.box.node("ip", "neigh", "flush", "dev", "lan0")
        one.wait(pulled, 20, f"a manifest after the {role} was killed")


# --- credentials


def test_a_private_repository_is_pulled_with_credentials_that_show_nowhere(one: Appliance) -> None:
    password, secret = "may-read-private", "/etc/mirror-agent/docker.credentials"
    one.sh(f"umask 077; printf 'reader\\n{password}\\n' > {secret}")
    one.define("docker", f'source = "docker.io"\n[upstream]\ncredentials = "{secret}"\n')
    one.serving("quay", "docker")
    one.configure_node()
    image = one.box.images()["docker.io"]["private/app:1.0"]
    one.pull("docker.io/private/app:1.0")
    for blob in parts(image):
        assert one.blob_digest("docker", "private/app", blob["digest"]) == blob["digest"]

    shown = one.sh(f"grep -rlF '{password}' /etc/containers /run/mirror-agent {PUBLISHED} {STATE} /run/systemd "
                   "2>/dev/null", check=False)  # fmt: skip
    assert shown.split() == [f"{STATE}/mirrors/docker/auth/auth.json"]
    assert one.sh(f"stat -c '%a %u' {STATE}/mirrors/docker/auth/auth.json {STATE}/mirrors/docker/auth") == (
        "400 65532\n700 65532\n"
    )
    for command in ("podman inspect $(podman ps -q)", "podman pod inspect mirror-docker",
                    "journalctl -b -o export -t mirror-agent",
                    "journalctl -b -o cat -u 'mirror-*'", "systemctl show 'mirror-*'", "systemctl cat 'mirror-*'",
                    "mirror-agent status --json", "mirror-agent check --json", "ps auxe"):  # fmt: skip
        said = one.sh(command)
        assert len(said) > 100, command
        assert password not in said, command

    before = one.starts("docker")
    one.define("docker", 'source = "docker.io"\n')
    one.wait(lambda: one.sh(f"ls -A {STATE}/mirrors/docker/auth") == "", 20, "the end of the credentials")
    one.settle()
    assert one.starts("docker") == before, "credentials are read when they are needed"


def test_credentials_that_cannot_be_read_are_told_and_the_mirror_goes_on(one: Appliance) -> None:
    since = one.cursor()
    one.define("gcr", 'source = "gcr.io"\n[upstream]\ncredentials = "/etc/mirror-agent/gcr.credentials"\n')
    line = one.until_said("gcr.credentials", since)
    assert (line["MIRROR"], line["PRIORITY"]) == ("gcr", "3")
    one.sh("printf 'me\\nno-such-secret\\nthird line\\n' > /etc/mirror-agent/gcr.credentials")
    one.until_said("is not two lines", since)
    assert "no-such-secret" not in json.dumps([*one.journal(), one.status()])


# --- proof


def test_a_mirror_without_a_probe_is_published_after_the_first_pull_of_a_client(one: Appliance) -> None:
    one.define("ghcr", 'source = "ghcr.io"\nremote = "https://ghcr.io:443"\n')
    one.wait(lambda: one.mirror("ghcr").get("state") == "unproved", 30, "a mirror that is not proved")
    one.settle()
    assert "ghcr" not in one.published("hosts") + one.published("registries.conf.d/50-mirror-agent.conf")
    assert not one.mirror("ghcr")["published"]
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false"]
    one.box.node(*copy, f"docker://{one.mirror('ghcr')['address']}/demo/app:1.0", "dir:/tmp/first")
    one.serving("quay", "ghcr", seconds=30)
    assert one.mirror("ghcr")["proved"].startswith("demo/app@sha256:")


# --- a mirror that does not answer


def test_who_waits_for_what_a_killed_worker_was_fetching_is_served(one: Appliance) -> None:
    """Four clients; with nginx alone, those in the other worker, and all who come later, wait for an hour."""
    image = one.box.push("quay.io", "worker/app:1", layer_sizes=(10 * MB,))
    layer = parts(image)[1]
    again = ("--retry", "100", "--retry-delay", "1", "--retry-all-errors", "-m", "240")
    pull = [
        *one.curl_command("quay"),
        *again,
        "--fail",
        f"https://quay.mirror.lan/v2/worker/app/blobs/{layer['digest']}",
    ]
    script = f"file=$(mktemp); {shlex.join(pull)} -o $file; sha256sum < $file; rm $file"
    before, since = one.received("quay.io"), one.cursor()
    with throttled(one.box, "16mbit"), ThreadPoolExecutor(4) as clients:
        pulls = [clients.submit(one.box.node, "sh", "-c", script, timeout=250) for _ in range(4)]
        one.wait(lambda: one.received("quay.io") - before > 3 * MB, 30, "a part of the blob")
        assert one.sh(_KILL_FETCHING_WORKER)
        line = one.until_said("restart mirror-quay-edge (one of its workers was killed)", since, seconds=70)
        assert (line["MIRROR"], line["UPSTREAM"]) == ("quay", "quay.io")
        assert {f"sha256:{each.result().stdout.split()[0]}" for each in pulls} == {layer["digest"]}
    # what was cut off, and then all of it, once
    assert one.received("quay.io") - before < 2 * layer["size"]
    one.settle()
    assert len([line for line in one.journal(since=since) if "one of its workers" in line["MESSAGE"]]) == 1


def test_an_unwell_mirror_stays_published_unless_the_settings_let_it_go(one: Appliance) -> None:
    one.drop("gcr")
    one.serving("quay", "gcr")
    broken = "/run/systemd/system/mirror-gcr-edge.service.d/broken.conf"
    one.sh(f"mkdir -p $(dirname {broken})")
    one.write(broken, "[Service]\nExecStartPre=/bin/false\n")
    one.sh("systemctl daemon-reload; podman kill mirror-gcr-edge")
    try:
        one.wait(lambda: one.mirror("gcr")["state"] != "serving", 30, "a mirror that does not start")
        assert "gcr.mirror.lan" in one.hosts()
        since = one.cursor()
        one.settings(AGENT_TOML.replace("[publish.folder]", '[publish]\nwithdraw_after = "1m"\n[publish.folder]'))
        line = one.until_said("withdraw from the publications", since, seconds=150)
        assert (line["MIRROR"], line["ACTION"]) == ("gcr", "withdraw")
        one.wait(lambda: set(one.hosts()) == {"quay.mirror.lan"}, 20, "the publication without it")
        assert "gcr.io" not in one.published("image-digest-mirror-set.yaml")
    finally:
        one.sh(f"rm {broken}; systemctl daemon-reload")
    one.serving("quay", "gcr", seconds=60)  # back after a new proof, by itself
    one.settings()
