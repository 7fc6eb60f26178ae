"""What the host knows of the LANs that it is in: what `mirror-agent init` proposes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from mirror_agent.host.network import check_parent
from mirror_agent.model import Trouble

ANSWER_S = 10.0  # ip(8) asks the kernel only


@dataclass(frozen=True, slots=True)
class Lan:
    """An interface that can carry mirrors, and where it is."""

    parent: str
    subnet: IPv4Network
    gateway: IPv4Address | None  # of a default route through it
    own: tuple[IPv4Address, ...]  # the host's addresses


def lans() -> tuple[tuple[Lan, ...], tuple[Trouble, ...]]:
    """LANs that the mirrors could live on, those with a default route first; and why other interfaces cannot.

    Raises Trouble where ip(8) is missing.
    """
    return found(_ip("route", "show", "default"), _ip("address", "show", "up"))


def found(
    routes: Any, interfaces: Any, folder: Path = Path("/sys/class/net")
) -> tuple[tuple[Lan, ...], tuple[Trouble, ...]]:
    """The same of what ip(8) says as JSON (ip-route(8), ip-address(8)); `folder` is sysfs'."""
    gateways = {route["dev"]: IPv4Address(route["gateway"]) for route in reversed(routes) if "gateway" in route}
    good: list[Lan] = []
    bad: list[Trouble] = []
    for interface in interfaces:
        addresses = [
            IPv4Interface(f"{info['local']}/{info['prefixlen']}")
            for info in interface.get("addr_info", ())
            if info.get("family") == "inet" and info.get("scope") == "global"
        ]
        if not addresses:
            continue
        name = interface["ifname"]
        try:
            check_parent(name, folder)
        except Trouble as trouble:
            bad.append(trouble)
            continue
        subnet, gateway = addresses[0].network, gateways.get(name)
        own = tuple(address.ip for address in addresses)
        good.append(Lan(name, subnet, gateway if gateway and gateway in subnet else None, own))
    return tuple(sorted(good, key=lambda lan: lan.gateway is None)), tuple(bad)


def _ip(*words: str) -> Any:
    hint = "install iproute, or say --parent, --subnet and --gateway"
    try:
        done = subprocess.run(
            ["ip", "-json", "-4", *words], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
        if done.returncode:
            raise Trouble("ip", done.stderr.strip() or f"exit status {done.returncode}", hint)
        return json.loads(done.stdout or "[]")
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise Trouble("ip", str(error), hint) from error
