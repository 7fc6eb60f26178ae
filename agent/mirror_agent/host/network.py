"""The LAN below the mirrors: is the parent fit for macvlan, who owns an address, and telling everybody that we do.

ARP frames are made and read by pure functions (RFC 826, RFC 5227); AF_PACKET carries them.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from mirror_agent.host.namespace import in_namespace
from mirror_agent.model import Trouble

PROBES, PROBE_S = 3, 0.3  # RFC 5227 says 1 to 2 s between probes, for slow bridges; a LAN answers in 0.1 ms
ANNOUNCEMENTS, ANNOUNCE_S = 2, 0.1  # RFC 5227 says 2 s apart, against loss; too long for a start to wait
ANNOUNCEMENT_S = 5.0  # for all of it

_ARP = 0x0806
_BROADCAST, _NOBODY = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
_UNSPECIFIED = IPv4Address(0)
_HEAD = struct.Struct("!6s6sH")
_BODY = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
_SHORTEST = 60  # bytes of an Ethernet frame without its checksum
_ETHERNET = 1  # ARPHRD_ETHER
_UP = 0x1  # IFF_UP


# --- frames --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for IPv4 over Ethernet."""

    operation: int
    sender_mac: str
    sender: IPv4Address
    target_mac: str
    target: IPv4Address

    def frame(self) -> bytes:
        """The Ethernet frame that carries it to everybody."""
        head = _HEAD.pack(_mac(_BROADCAST), _mac(self.sender_mac), _ARP)
        addresses = (_mac(self.sender_mac), self.sender.packed, _mac(self.target_mac), self.target.packed)
        return (head + _BODY.pack(_ETHERNET, 0x0800, 6, 4, self.operation, *addresses)).ljust(_SHORTEST, b"\0")


def parse(frame: bytes) -> Arp | None:
    """The ARP packet in an Ethernet frame, None when it is another kind or cut short."""
    if len(frame) < _HEAD.size + _BODY.size or _HEAD.unpack_from(frame)[2] != _ARP:
        return None
    hardware, protocol, hardware_size, size, operation, *addresses = _BODY.unpack_from(frame, _HEAD.size)
    if (hardware, protocol, hardware_size, size) != (_ETHERNET, 0x0800, 6, 4):
        return None
    sender_mac, sender, target_mac, target = addresses
    return Arp(operation, sender_mac.hex(":"), IPv4Address(sender), target_mac.hex(":"), IPv4Address(target))


def probe(mac: str, address: IPv4Address) -> Arp:
    """The question whether somebody owns an address, that teaches nobody a wrong owner (RFC 5227, 2.1.1)."""
    return Arp(_REQUEST, mac, _UNSPECIFIED, _NOBODY, address)


def announcements(mac: str, address: IPv4Address) -> tuple[Arp, Arp]:
    """The news that an address is at this MAC, as request (RFC 5227, 2.3) and as reply: some peers heed only one."""
    return Arp(_REQUEST, mac, address, _NOBODY, address), Arp(_REPLY, mac, address, _BROADCAST, address)


def claims(packet: Arp, own_mac: str, wanted: IPv4Address) -> bool:
    """Does this packet say that another one owns the address, or is probing for it just now (RFC 5227, 2.1.1)?"""
    if packet.sender_mac == own_mac:
        return False
    probing = packet.operation == _REQUEST and packet.sender == _UNSPECIFIED and packet.target == wanted
    return packet.sender == wanted or probing


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# --- on the wire ---------------------------------------------------------------------------------------------


def check_parent(parent: str, folder: Path = Path("/sys/class/net")) -> None:
    """Can this interface carry macvlan?  Raises Trouble that says why not and what would."""
    where, here = f"interface {parent}", folder / parent
    if not here.exists():
        names = ", ".join(sorted(path.name for path in folder.iterdir() if _is_ethernet(path)))
        raise Trouble(where, "does not exist", f"parent in [network] of agent.toml may be: {names or 'none here'}")
    if (here / "wireless").exists() or (here / "phy80211").exists():
        raise Trouble(
            where,
            "is wireless: access points drop frames from more than the one MAC address that joined",
            "use a wired interface as parent in [network] of agent.toml",
        )
    if not _is_ethernet(here):
        raise Trouble(where, "is not Ethernet: macvlan has nothing to stand on", "use a wired interface as parent")
    if (here / "brport").exists():
        bridge = (here / "brport" / "bridge").resolve().name
        raise Trouble(where, f"is a port of the bridge {bridge}: it cannot carry macvlan too", f'parent = "{bridge}"')
    if not int((here / "flags").read_text(), 16) & _UP:
        raise Trouble(where, "is down", f"ip link set {parent} up")


def _is_ethernet(interface: Path) -> bool:
    try:
        return int((interface / "type").read_text()) == _ETHERNET
    except (OSError, ValueError):
        return False


def _open(interface: str) -> socket.socket:
    """A socket that hears the ARP of one interface.  Protocol 0 until it is bound: nothing of others gets in."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        wire.bind((interface, _ARP))
    except OSError:
        wire.close()
        raise
    return wire


def _trouble(interface: str, error: OSError) -> Trouble:
    hints = {
        errno.ENODEV: "is the name of the parent right? `ip link` lists them",
        errno.ENETDOWN: f"ip link set {interface} up",
        errno.EPERM: "the agent needs CAP_NET_RAW",
    }
    return Trouble(f"interface {interface}", f"ARP failed: {error.strerror}", hints.get(error.errno or 0, ""))


def arp_probes(parent: str, addresses: Iterable[IPv4Address]) -> dict[IPv4Address, str]:
    """Which of these addresses are taken, and by which MAC.  All at once: 0.9 s when one is free, else 10 ms.

    The host's own addresses count as taken, by the parent's MAC: it does not answer its own ARP.  Containers of
    this host on the same parent do not answer either.  Raises Trouble.
    """
    wanted = dict.fromkeys(addresses)
    taken: dict[IPv4Address, str] = {}
    try:
        with _open(parent) as wire:
            own = wire.getsockname()[4].hex(":")
            taken.update({address: own for address in wanted if _is_local(address)})
            for _ in range(PROBES):
                for address in wanted:
                    if address not in taken:
                        wire.send(probe(own, address).frame())
                _listen(wire, own, wanted, taken)
                if len(taken) == len(wanted):
                    break
    except OSError as error:
        raise _trouble(parent, error) from error
    return taken


def _listen(wire: socket.socket, own: str, wanted: Iterable[IPv4Address], taken: dict[IPv4Address, str]) -> None:
    deadline = time.monotonic() + PROBE_S
    while len(taken) < len(tuple(wanted)) and (left := deadline - time.monotonic()) > 0:
        wire.settimeout(left)
        try:
            frame, source = wire.recvfrom(2048)
        except TimeoutError:
            return
        packet = parse(frame)
        if packet is None or source[2] == socket.PACKET_OUTGOING:  # what our own containers send passes here too
            continue
        for address in wanted:
            if claims(packet, own, address):
                taken[address] = packet.sender_mac


def _is_local(address: IPv4Address) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            any_socket.bind((str(address), 0))
        except OSError:
            return False
        return True


def announce(namespace: str, address: IPv4Address, mac: str) -> None:
    """Tell the LAN that `address` is at `mac` now, from the container's own interface.  Takes 0.1 s.

    netavark tells nobody, and peers keep the old MAC for about 40 s.  Raises Trouble, also when no interface in
    the namespace has that MAC.
    """
    in_namespace(namespace, lambda: _announce(address, mac), ANNOUNCEMENT_S)


def _announce(address: IPv4Address, mac: str) -> None:
    for _, name in socket.if_nameindex():
        try:
            with _open(name) as wire:
                if wire.getsockname()[4].hex(":") != mac:
                    continue
                for count in range(ANNOUNCEMENTS):
                    if count:
                        time.sleep(ANNOUNCE_S)
                    for packet in announcements(mac, address):
                        wire.send(packet.frame())
                return
        except OSError as error:
            raise _trouble(name, error) from error
    raise Trouble(str(address), f"no interface of its pod has the MAC address {mac}", "restart the pod")
