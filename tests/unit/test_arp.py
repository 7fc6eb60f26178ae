"""ARP frames as RFC 826 and RFC 5227 lay them out, and which of them say that an address is taken."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from mirror_agent.host import network
from mirror_agent.host.network import Arp
from mirror_agent.model import Trouble

OURS, THEIRS = "02:00:0a:00:00:04", "52:54:00:12:34:56"
WANTED, OTHER = IPv4Address("10.0.0.4"), IPv4Address("10.0.0.9")


def test_a_probe_byte_for_byte() -> None:
    frame = network.probe(OURS, WANTED).frame()
    assert frame == bytes.fromhex(
        "ffffffffffff 02000a000004 0806"  # to everybody, from us, ARP
        "0001 0800 06 04 0001"  # Ethernet, IPv4, request
        "02000a000004 00000000"  # sender: no address, so that nobody learns a wrong one
        "000000000000 0a000004"  # target
    ).ljust(60, b"\0")


def test_announcements_name_the_address_on_both_sides() -> None:
    request, reply = network.announcements(OURS, WANTED)
    assert (request.operation, reply.operation) == (1, 2)
    assert {request.sender, request.target, reply.sender, reply.target} == {WANTED}
    assert {request.sender_mac, reply.sender_mac} == {OURS}


@pytest.mark.parametrize("packet", [network.probe(OURS, WANTED), *network.announcements(OURS, WANTED)])
def test_what_is_made_is_read_back(packet: Arp) -> None:
    assert network.parse(packet.frame()) == packet


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        network.probe(OURS, WANTED).frame()[:41],
        network.probe(OURS, WANTED).frame().replace(b"\x08\x06", b"\x08\x00"),  # IPv4
        network.probe(OURS, WANTED).frame().replace(b"\x00\x01\x08\x00\x06\x04", b"\x00\x06\x08\x00\x06\x04"),
    ],
)
def test_what_is_not_arp_for_ipv4_over_ethernet_is_none(frame: bytes) -> None:
    assert network.parse(frame) is None


@pytest.mark.parametrize(
    ("packet", "taken"),
    [
        (Arp(2, THEIRS, WANTED, OURS, IPv4Address(0)), True),  # the answer to our probe
        (Arp(1, THEIRS, WANTED, "00:00:00:00:00:00", OTHER), True),  # the owner asks for another: it still owns
        (network.announcements(THEIRS, WANTED)[0], True),
        (network.probe(THEIRS, WANTED), True),  # somebody else wants it in this very moment
        (network.probe(OURS, WANTED), False),  # our own, come back over a loop
        (network.probe(THEIRS, OTHER), False),
        (Arp(1, THEIRS, OTHER, "00:00:00:00:00:00", WANTED), False),  # somebody asks who has it: no claim
    ],
)
def test_who_claims_the_address(packet: Arp, taken: bool) -> None:
    assert network.claims(packet, OURS, WANTED) is taken


def interface(folder: Path, name: str, kind: int = 1, flags: int = 0x1003) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "type").write_text(f"{kind}\n")
    (path / "flags").write_text(f"{flags:#x}\n")
    return path


def test_a_parent_that_is_fit(tmp_path: Path) -> None:
    interface(tmp_path, "eth1")
    network.check_parent("eth1", tmp_path)


def test_a_missing_parent_names_those_that_are_there(tmp_path: Path) -> None:
    interface(tmp_path, "eth0")
    interface(tmp_path, "lo", kind=772)
    with pytest.raises(Trouble, match=r"interface eth1: does not exist .* may be: eth0\)"):
        network.check_parent("eth1", tmp_path)


def test_parents_that_cannot_carry_macvlan(tmp_path: Path) -> None:
    (interface(tmp_path, "wlan0") / "wireless").mkdir()
    interface(tmp_path, "tun0", kind=65534)
    interface(tmp_path, "eth0", flags=0x1002)
    bridge = interface(tmp_path, "br0")
    (interface(tmp_path, "eth1") / "brport").mkdir()
    (tmp_path / "eth1" / "brport" / "bridge").symlink_to(bridge)
    for name, reason in {
        "wlan0": "is wireless.*wired",
        "tun0": "not Ethernet",
        "eth0": "is down .ip link set eth0 up",
        "eth1": 'port of the bridge br0.*parent = "br0"',
    }.items():
        with pytest.raises(Trouble, match=reason):
            network.check_parent(name, tmp_path)
