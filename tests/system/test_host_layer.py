"""What the host layer promises about systemd, podman, ARP and namespaces, by the agent's own code on a real host.

Each case is a small program that runs on the cache host and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from box import Box
from box.topology import CACHE_HOST, GATEWAY, NODE

CODE = "/usr/lib/mirror-agent"  # where `make install` puts the package
FREE = "10.0.0.59"
PRELUDE = """
import json, os, subprocess, sys, threading, time
from ipaddress import IPv4Address
from pathlib import Path
from mirror_agent.host import namespace, network, quadlet
from mirror_agent.host.containers import Containers
from mirror_agent.host.systemd import BusLost, Systemd
from mirror_agent.model import Trouble

def unit(name, *lines):
    Path("/run/systemd/system", name).write_text("\\n".join(lines) + "\\n")

def trouble(function, *arguments):
    try:
        return function(*arguments)
    except Trouble as found:
        return str(found)

def until(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)

def seen(value):
    print(json.dumps(value))
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box().lent() as host:
        host.up()
        host.exec("systemctl", "stop", "mirror-agent.service")  # only its code is of interest here
        host.exec("systemctl", "start", "podman.socket")
        yield host


def run(box: Box, program: str) -> Any:
    done = box.exec("env", f"PYTHONPATH={CODE}", "python3", "-", input=PRELUDE + textwrap.dedent(program))
    return json.loads(done.stdout.splitlines()[-1])


def mac_of_node(box: Box) -> str:
    link: str = json.loads(box.node("ip", "-json", "link", "show", "lan0").stdout)[0]["address"]
    return link


# --- systemd -------------------------------------------------------------------------------------------------


def test_jobs_run_side_by_side_and_each_tells_how_it_ended(box: Box) -> None:
    answer = run(
        box,
        """
        many = [f"mirror-many{n}.service" for n in range(20)]
        for name in many:
            unit(name, "[Service]", "Type=oneshot", "RemainAfterExit=yes", "ExecStart=/bin/sleep 2")
        unit("mirror-fails.service", "[Service]", "Type=oneshot", "ExecStart=/bin/false")
        unit("mirror-needs.service", "[Unit]", "Requires=mirror-fails.service", "After=mirror-fails.service",
             "[Service]", "ExecStart=/bin/sleep 9")
        unit("mirror-late.service", "[Service]", "Type=oneshot", "ExecStart=/bin/sleep infinity")
        systemd = Systemd()
        systemd.reload()
        began = time.monotonic()
        results = systemd.start(many, 60)
        took = time.monotonic() - began
        others = systemd.start(["mirror-fails.service", "mirror-needs.service", "mirror-nope.service"], 60)
        late = systemd.start(["mirror-late.service"], 0.5)
        systemd.stop(["mirror-late.service"], 60)  # its job goes on, and whoever starts it then waits for the same
        states = systemd.units([many[0], "mirror-fails.service", "mirror-nope.service"])
        systemd.reset_failed("mirror-fails.service")
        systemd.reset_failed("mirror-nope.service")
        stopped = systemd.stop([*many, "mirror-nope.service"], 60)
        seen({"results": results, "took": took, "others": others, "late": late,
              "stopped": sorted(set(stopped.values())),
              "states": {name: [state.load, state.active] for name, state in states.items()}})
        """,
    )
    assert set(answer["results"].values()) == {"done"}
    assert answer["took"] < 20  # 40 s one after another
    assert answer["others"] == {
        "mirror-fails.service": "failed",
        "mirror-needs.service": "dependency",
        "mirror-nope.service": "Unit mirror-nope.service not found.",
    }
    assert answer["late"] == {"mirror-late.service": "timeout"}
    assert answer["states"] == {
        "mirror-many0.service": ["loaded", "active"],
        "mirror-fails.service": ["loaded", "failed"],
        "mirror-nope.service": ["not-found", "inactive"],
    }
    assert answer["stopped"] == ["done"]


def test_a_result_that_comes_before_its_call_returns_is_not_lost(box: Box) -> None:
    results = run(
        box,
        """
        unit("mirror-quick.service", "[Service]", "Type=oneshot", "RemainAfterExit=yes", "ExecStart=/bin/true")
        systemd = Systemd()
        systemd.reload()
        seen(sorted({systemd.start(["mirror-quick.service"], 60)["mirror-quick.service"] for _ in range(300)}))
        """,
    )
    assert results == ["done"]


def test_a_lost_bus_ends_every_wait(box: Box) -> None:
    answer = run(
        box,
        """
        unit("mirror-endless.service", "[Service]", "Type=oneshot", "ExecStart=/bin/sleep infinity")
        systemd = Systemd()
        systemd.reload()
        heard, answer = [], []
        systemd.on_change(heard.append)
        start = lambda: answer.append(trouble(systemd.start, ["mirror-endless.service"], 600))
        waiting = threading.Thread(target=start, daemon=True)
        waiting.start()
        until(lambda: systemd.units(["mirror-endless.service"])["mirror-endless.service"].active == "activating")
        subprocess.run(["systemctl", "kill", "--signal=KILL", "dbus.service"], check=True)
        waiting.join(60)
        again = trouble(systemd.version)
        until(lambda: "" in heard)
        until(lambda: isinstance(trouble(Systemd), Systemd))  # systemd itself has to come back to it, too
        seen({"answer": answer, "lost": systemd.lost.is_set(), "heard": "" in heard, "again": again,
              "anew": Systemd().version()})
        """,
    )
    assert "was lost" in answer["answer"][0]
    assert "was lost" in answer["again"]
    assert answer["lost"]
    assert answer["heard"]
    assert answer["anew"] >= 257
    box.exec("systemctl", "stop", "mirror-endless.service")


# --- podman --------------------------------------------------------------------------------------------------


def test_an_image_that_does_not_come_says_why(box: Box) -> None:
    answer = run(
        box,
        """
        podman = Containers()
        names = ["docker.io/library/nope:1", "docker.io/private/app:1.0", "nowhere.invalid/x:1", "10.0.0.2/x:1"]
        answer = {name: trouble(podman.pull_image, name, print, 60) for name in names}
        podman.pull_image("quay.io/demo/app:1.0", print, 60)
        seen({**answer, "here": podman.has_image("quay.io/demo/app:1.0")})
        """,
    )
    assert "manifest unknown" in answer["docker.io/library/nope:1"]
    assert "podman login" in answer["docker.io/private/app:1.0"]
    assert "no such host" in answer["nowhere.invalid/x:1"]
    assert "connection refused" in answer["10.0.0.2/x:1"]
    assert answer["here"]


def test_an_image_that_is_here_needs_no_internet(box: Box) -> None:
    box.exec("podman", "pull", "-q", "docker.io/library/nginx:stable")
    box.cut_internet()
    try:
        assert run(box, 'seen(trouble(Containers().pull_image, "docker.io/library/nginx:stable", print, 5))') is None
    finally:
        box.mend_internet()


def test_no_podman_at_all_is_told_as_such(box: Box) -> None:
    box.exec("systemctl", "stop", "podman.socket", "podman.service")
    try:
        assert "systemctl start podman.socket" in run(box, "seen(trouble(Containers().version))")
    finally:
        box.exec("systemctl", "start", "podman.socket")


def test_events_go_on_when_podman_comes_back(box: Box) -> None:
    box.exec("podman", "pull", "-q", "docker.io/library/nginx:stable")
    heard = run(
        box,
        """
        def container(unit):
            subprocess.run(["podman", "run", "--rm", "--network=none", "--label", f"PODMAN_SYSTEMD_UNIT={unit}",
                            "--entrypoint", "nginx", "docker.io/library/nginx:stable", "-v"], check=True)

        heard = []
        stop = Containers().on_event(heard.append)
        # the stream is open when it tells of a container; a few may be missed before
        until(lambda: container("mirror-first.service") or "mirror-first.service remove" in heard)
        container("mirror-one.service")
        container("foreign.service")
        until(lambda: "mirror-one.service remove" in heard)
        subprocess.run(["systemctl", "stop", "podman.socket", "podman.service"], check=True)
        container("mirror-two.service")
        subprocess.run(["systemctl", "start", "podman.socket"], check=True)
        until(lambda: "mirror-two.service remove" in heard)
        stop()
        heard = [event for event in heard if not event.startswith("mirror-first")]
        seen({"heard": heard, "threads": [thread.name for thread in threading.enumerate()]})
        """,
    )
    assert sorted(heard["heard"]) == sorted(
        f"mirror-{name}.service {action}" for name in ("one", "two") for action in ("start", "died", "remove")
    )
    assert heard["threads"] == ["MainThread"]


def test_quadlet_names_the_file_and_the_key(box: Box) -> None:
    answer = run(
        box,
        """
        good = b"[Container]\\nImage=docker.io/library/nginx:stable\\n"
        seen([trouble(quadlet.check, files) for files in (
            {"mirror-a.container": good},
            {"mirror-a.container": good, "mirror-b.container": good + b"Colour=blue\\n"},
            {"mirror-a.container": good + b"Pod=mirror-a.pod\\n"},
        )])
        """,
    )
    assert answer[0] is None
    assert answer[1].startswith("mirror-b.container: ")
    assert "unsupported key 'Colour'" in answer[1]
    assert answer[2].startswith("mirror-a.container: ")
    assert "mirror-a.pod" in answer[2]


# --- network -------------------------------------------------------------------------------------------------


def test_taken_addresses_are_seen_with_their_owner(box: Box) -> None:
    answer = run(
        box,
        f"""
        wanted = [IPv4Address(text) for text in ("{GATEWAY}", "{CACHE_HOST}", "{NODE}", "{FREE}")]
        began = time.monotonic()
        taken = network.arp_probes("lan0", wanted)
        took = time.monotonic() - began
        seen({{"taken": {{str(address): mac for address, mac in taken.items()}}, "took": took}})
        """,
    )
    assert set(answer["taken"]) == {GATEWAY, CACHE_HOST, NODE}
    assert answer["taken"][NODE] == mac_of_node(box)
    assert 0.8 < answer["took"] < 20  # three questions 0.3 s apart, for all of them together


def test_two_that_want_one_address_at_once_both_see_it(box: Box) -> None:
    """The node probes for the same address in the same moment (RFC 5227, 2.1.1)."""
    prober = (
        "import socket, time\n"
        "wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
        "wire.bind(('lan0', 0x0806))\n"
        "mac = wire.getsockname()[4]\n"
        f"target = socket.inet_aton('{FREE}')\n"
        "frame = b'\\xff' * 6 + mac + bytes.fromhex('0806' '0001080006040001') + mac + bytes(10) + target\n"
        "for _ in range(600):\n"
        "    wire.send(frame.ljust(60, b'\\0')); print('begun', flush=True); time.sleep(0.1)\n"
    )
    box.node("sh", "-c", "cat > /tmp/prober.py", input=prober)
    box.node("sh", "-c", "python3 /tmp/prober.py > /tmp/prober 2>&1 & echo $! > /tmp/prober.pid")
    box.node("sh", "-c", "until grep -q begun /tmp/prober; do sleep 0.1; done")
    try:
        owner = run(box, f'a = IPv4Address("{FREE}"); seen(network.arp_probes("lan0", [a]).get(a))')
    finally:
        box.node("sh", "-c", "kill $(cat /tmp/prober.pid)")
    assert owner == mac_of_node(box)


def test_an_announcement_makes_peers_forget_the_old_mac(box: Box) -> None:
    """An address that moved to another MAC is reached at once by a node that knew the old one."""
    program = f"""
    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    def appear(name, mac):
        ip("netns", "add", name)
        ip("link", "add", "mv0", "link", "lan0", "address", mac, "type", "macvlan", "mode", "bridge")
        ip("link", "set", "mv0", "netns", name)
        ip("-n", name, "addr", "add", "{FREE}/24", "dev", "mv0")
        ip("-n", name, "link", "set", "mv0", "up")
        # netavark does not announce either
    """
    run(box, program + '\n    appear("one", "02:00:00:00:00:01")\n    seen(None)')
    try:
        box.node("ping", "-c1", "-W5", FREE)
        box.exec("ip", "netns", "del", "one")
        run(box, program + '\n    appear("two", "02:00:00:00:00:02")\n    seen(None)')
        assert "02:00:00:00:00:01" in box.node("ip", "neigh", "show", FREE).stdout
        announced = f'network.announce("/run/netns/two", IPv4Address("{FREE}"), "02:00:00:00:00:02")'
        run(box, announced + "\nseen(None)")
        box.node("ping", "-c1", "-W5", FREE)
        assert "02:00:00:00:00:02" in box.node("ip", "neigh", "show", FREE).stdout
        wrong = run(
            box, 'seen(trouble(network.announce, "/run/netns/two", IPv4Address("10.0.0.59"), "02:00:00:00:00:09"))'
        )
        assert "no interface of its pod has the MAC" in wrong
    finally:
        for name in ("one", "two"):
            box.exec("ip", "netns", "del", name, check=False)


def test_a_namespace_is_entered_by_one_thread_only(box: Box) -> None:
    answer = run(
        box,
        """
        import socket
        subprocess.run(["ip", "netns", "add", "three"], check=True)
        def names():
            return sorted(name for _, name in socket.if_nameindex())
        inside = namespace.in_namespace("/run/netns/three", names, 60)
        late = trouble(namespace.in_namespace, "/run/netns/three", lambda: time.sleep(5), 0.1)
        subprocess.run(["ip", "netns", "del", "three"], check=True)
        gone = trouble(namespace.in_namespace, "/run/netns/three", names, 5)
        seen({"inside": inside, "outside": "lan0" in names(), "late": late, "gone": gone})
        """,
    )
    assert answer["inside"] == ["lo"]
    assert answer["outside"]
    assert "not done within" in answer["late"]
    assert "not entered: No such file or directory" in answer["gone"]
