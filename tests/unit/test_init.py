"""`mirror-agent init`: what it finds, what it proposes, what it refuses and what it writes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_agent import config
from mirror_agent.commands.init import FOLDER, MOST, QUESTIONS, propose_range, text
from mirror_agent.config.settings import SettingsTable
from mirror_agent.config.toml import keys
from mirror_agent.host import lan

ROOT = Path(__file__).parents[2]
ALL = {
    "--parent": "eth7", "--subnet": "10.0.0.0/24", "--gateway": "10.0.0.1", "--range": "10.0.0.4-10.0.0.60",
    "--domain": "mirror.lan", "--publish": "none",
}  # fmt: skip


def interface(name: str, address: str, length: int) -> dict[str, Any]:
    return {
        "ifname": name,
        "addr_info": [{"family": "inet", "scope": "global", "local": address, "prefixlen": length}],
    }


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for name, kind in {"lan0": 1, "eth1": 1, "wlan0": 1, "tun0": 65534, "port0": 1}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "type").write_text(f"{kind}\n")
        (folder / "flags").write_text("0x1003\n")
    (tmp_path / "wlan0" / "wireless").mkdir()
    (tmp_path / "br0").mkdir()
    (tmp_path / "port0" / "brport").mkdir()
    (tmp_path / "port0" / "brport" / "bridge").symlink_to(tmp_path / "br0")
    return tmp_path


def test_lans_are_those_that_can_carry_mirrors_with_the_default_route_first(sysfs: Path) -> None:
    routes = [{"dst": "default", "gateway": "192.168.1.1", "dev": "wlan0"}, {"gateway": "10.0.0.1", "dev": "lan0"}]
    interfaces = [
        {"ifname": "lo", "addr_info": [{"family": "inet", "scope": "host", "local": "127.0.0.1", "prefixlen": 8}]},
        interface("eth1", "172.16.5.9", 16),
        interface("wlan0", "192.168.1.7", 24),
        interface("tun0", "10.9.0.2", 24),
        interface("port0", "10.8.0.2", 24),
        interface("lan0", "10.0.0.2", 24),
    ]
    good, bad = lan.found(routes, interfaces, sysfs)
    assert good == (
        lan.Lan("lan0", IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.1"), (IPv4Address("10.0.0.2"),)),
        lan.Lan("eth1", IPv4Network("172.16.0.0/16"), None, (IPv4Address("172.16.5.9"),)),
    )
    assert [trouble.where for trouble in bad] == ["interface wlan0", "interface tun0", "interface port0"]
    assert "wireless" in bad[0].reason


def test_a_router_outside_the_subnet_is_not_proposed(sysfs: Path) -> None:
    routes = [{"dst": "default", "gateway": "100.64.0.1", "dev": "lan0"}]
    (found,), _ = lan.found(routes, [interface("lan0", "10.0.0.2", 24)], sysfs)
    assert found.gateway is None


@given(
    st.integers(8, 30).flatmap(lambda n: st.integers(0, 2**n - 1).map(lambda i: IPv4Network((i << (32 - n), n)))),
    st.data(),
)
def test_a_proposed_range_is_free_and_accepted(subnet: IPv4Network, data: st.DataObject) -> None:
    hosts = st.integers(int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1).map(IPv4Address)
    gateway = data.draw(hosts)
    taken = [gateway, *data.draw(st.lists(hosts, max_size=4))]
    proposed = propose_range(subnet, taken)
    if not proposed:
        assert len(set(taken)) >= subnet.num_addresses - 2 - len(taken)
        return
    first, last = map(IPv4Address, proposed.split("-"))
    assert 1 <= int(last) - int(first) + 1 <= MOST
    assert not [address for address in taken if first <= address <= last]
    answers = {"network.subnet": str(subnet), "network.gateway": str(gateway), "network.range": proposed}
    if not (subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified):
        _, problems = config.parse_settings(
            "agent.toml", text({"domain": "mirror.lan", "network.parent": "a", **answers})
        )
        assert problems == ()


@given(st.text(min_size=1))
def test_no_answer_becomes_anything_but_a_value_or_a_mistake(value: str) -> None:
    """Quotes, line ends and brackets in an answer: refused for the key that was asked, never read as TOML."""
    answers = {"network.parent": "a", "network.subnet": "10.0.0.0/24", "network.gateway": "10.0.0.1",
               "network.range": "10.0.0.4-10.0.0.60"}  # fmt: skip
    settings, problems = config.parse_settings("agent.toml", text({**answers, "domain": value}))
    if value != "none":
        assert (settings is not None and settings.domain == value) or {problem.key for problem in problems} == {
            "domain"
        }


# --- the command ---------------------------------------------------------------------------------------------


def init(path: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mirror_agent", "init", "--settings", str(path), *words]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "agent"), "LANG": "C.UTF-8"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        **options,
    )  # fmt: skip


def wired() -> str:
    """A wired interface of this machine that is up."""
    good, _ = lan.lans()
    return good[0].parent


def words(**changed: str) -> list[str]:
    given = {**ALL, "--parent": wired(), **{f"--{key}": value for key, value in changed.items()}}
    return [word for pair in given.items() for word in pair]


def test_all_said_nothing_asked(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    done = init(path, *words())
    assert (done.returncode, done.stderr) == (0, "")
    settings, problems = config.parse_settings(str(path), path.read_bytes())
    assert problems == ()
    assert settings is not None
    assert (settings.domain, settings.network.parent, settings.publish.folder) == ("mirror.lan", wired(), None)
    assert path.stat().st_mode & 0o777 == 0o644
    assert "systemctl enable --now mirror-agent" in done.stdout


def test_yes_takes_what_is_proposed(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    done = init(path, "--yes", "--publish", "none")
    assert (done.returncode, done.stderr) == (0, "")
    settings, _ = config.parse_settings(str(path), path.read_bytes())
    (here, *_), _ = lan.lans()
    assert settings is not None
    assert (settings.network.parent, settings.network.subnet) == (here.parent, here.subnet)


def test_settings_that_are_there_stay(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('domain = "mine.example"\n')
    done = init(path, *words())
    assert (done.returncode, path.read_text()) == (1, 'domain = "mine.example"\n')
    assert "there are settings already" in done.stderr
    assert init(path, *words(), "--force").returncode == 0
    assert (tmp_path / "agent.toml.orig").read_text() == 'domain = "mine.example"\n'
    assert "mirror.lan" in path.read_text()


def test_the_form_that_the_package_brings_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes((ROOT / "etc/mirror-agent/agent.toml").read_bytes())
    assert init(path, *words()).returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("parent", "nosuch0", "does not exist"),
        ("parent", "lo", "loopback"),
        ("subnet", "10.0.0.1/24", "is a host in a subnet"),
        ("gateway", "10.0.1.1", "is outside the subnet"),
        ("range", "10.0.0.1-10.0.0.60", "the gateway 10.0.0.1 lies in it"),
        ("domain", "Mirror.LAN", "domain"),
        ("publish", "/etc", "belongs to the system"),
    ],
)
def test_nonsense_is_refused_by_the_rules_of_the_settings(tmp_path: Path, option: str, value: str, reason: str) -> None:
    path = tmp_path / "agent.toml"
    done = init(path, *words(**{option: value}))
    assert done.returncode == 1
    assert reason in done.stderr
    assert not path.exists()


def test_without_a_terminal_it_says_what_is_missing(tmp_path: Path) -> None:
    done = init(tmp_path / "agent.toml")
    assert done.returncode == 1
    assert "--parent is not given, and there is no terminal to ask on" in done.stderr


def test_it_asks_again_until_an_answer_is_one(tmp_path: Path) -> None:
    path, (ours, theirs) = tmp_path / "agent.toml", pty.openpty()
    command = [sys.executable, "-m", "mirror_agent", "init", "--settings", str(path), "--parent", wired()]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "agent"), "LANG": "C.UTF-8", "TERM": "dumb"}
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        for answer in ("10.0.0.0/24", "10.0.9.1", "10.0.0.1", "", "mirror.lan", "none"):
            said += until(ours, b"]: ", b"router: ")
            os.write(ours, answer.encode() + b"\n")
        said += until(ours, b"status")
        assert process.wait(60) == 0
    os.close(ours)
    assert b"10.0.9.1 is outside the subnet 10.0.0.0/24" in said
    settings, problems = config.parse_settings(str(path), path.read_bytes())
    assert problems == ()
    assert settings is not None
    assert str(settings.network.gateway) == "10.0.0.1"
    assert settings.network.first in settings.network.subnet


def until(terminal: int, *wanted: bytes) -> bytes:
    said = b""
    while not any(end in said for end in wanted):
        said += os.read(terminal, 4096)
    return said


def test_the_folder_that_is_proposed_is_the_one_that_the_documents_use() -> None:
    for page in ("README.md", "docs/installation.md", "docs/man/agent.toml.5.md", "etc/mirror-agent/agent.toml"):
        assert re.search(rf'path *= "{FOLDER}"|mkdir -p {FOLDER}\b', (ROOT / page).read_text()), page


def test_every_question_is_a_key_of_the_settings() -> None:
    assert {question.key for question in QUESTIONS} <= dict(keys(SettingsTable)).keys()
