"""Whitelists of all other values: sizes, times, addresses, interfaces, paths.

What the admin wrote ends in unit files, nginx.conf, URLs and file names.  So each value is parsed here, character by
character, and nothing that came through needs quoting later (host.md, "Injection").
"""

from __future__ import annotations

import re
from datetime import time
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from pathlib import Path

from pydantic import PlainValidator

from mirror_agent.config.words import Mistake, closest, kind, shown
from mirror_agent.model import Drain, LeafKey, Paths, Policy, Window

SMALLEST_SIZE = 256 * 2**20  # less than one usual image: a slip of the unit
LARGEST_SIZE = 2**50
LOWEST_RATE, HIGHEST_RATE = 100_000, 100 * 2**30  # less: no image arrives before its client gives up
LONGEST_FRESH = 86_400
MODES = ("0600", "0640", "0644")  # nobody else may write: the manifest says what is removed
LARGEST_GROUP = 2**32 - 2
SHORTEST_UNWELL, LONGEST_UNWELL = 60, 30 * 86_400  # less: a restart
SHORTEST_KEEP, LONGEST_KEEP = 3_600, 3650 * 86_400

_FOLDER = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with the zero byte
_SIZE = re.compile(r"([0-9]{1,9}) ?(Mi?B|Gi?B|Ti?B)")
_RATE = re.compile(r"([0-9]{1,9}) ?(kB|KiB|Mi?B|Gi?B)/s")
_TIME = re.compile(r"([0-9]{1,9}) ?([smhd])")
_GLOB = re.compile(r"[a-z0-9*](?:[a-z0-9._*/-]{0,253}[a-z0-9*])?")
_URL = re.compile(r"https://[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*/?")
_EMAIL = re.compile(r"[A-Za-z0-9._+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_WINDOW = re.compile(r"(?:([A-Z][a-z]{2}) )?([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_OBJECT = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}")
_UNITS = {"kB": 10**3, "KiB": 2**10, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# Not a place for folders that come and go with a mirror: the system's, or gone after a reboot.
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr")
_SHARED = frozenset({"/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp"})  # noqa: S108


def policy(value: str) -> Policy:
    """One of OpenShift's two policies.  Raises Mistake."""
    if value not in tuple(Policy):
        meant = closest(value, Policy)
        both = " or ".join(Policy)
        raise Mistake(f"{shown(value)} is no policy", f'did you mean "{meant}"?' if meant else both)
    return Policy(value)


def drain(value: str) -> Drain:
    """When nodes may be drained.  Raises Mistake."""
    if value not in tuple(Drain):
        raise Mistake(f"{shown(value)} says nothing about when", " or ".join(Drain))
    return Drain(value)


def leaf_key(value: str) -> LeafKey:
    """The kind of the mirrors' keys.  Raises Mistake."""
    if value not in tuple(LeafKey):
        raise Mistake(f"{shown(value)} is no kind of key that is made here", " or ".join(LeafKey))
    return LeafKey(value)


def window(value: str) -> Window:
    """A time of the week, as "Sun 02:00-05:00", or of every day, as "02:00-05:00".  Raises Mistake."""
    match = _WINDOW.fullmatch(value)
    if not match or (match[1] and match[1] not in _DAYS):
        raise Mistake(f"{shown(value)} is no time of the week", 'as "Sun 02:00-05:00", or "02:00-05:00" for every day')
    start, end = time(int(match[2]), int(match[3])), time(int(match[4]), int(match[5]))
    return Window(_DAYS.index(match[1]) if match[1] else None, start, end)


def mode(value: str) -> int:
    """Who may read the published files, as "0640".  Raises Mistake."""
    if value not in MODES:
        raise Mistake(f"{shown(value)} is no mode of published files", " or ".join(f'"{each}"' for each in MODES))
    return int(value, 8)


def group(value: str) -> str:
    """A group of this host, by its name or its number.  Raises Mistake."""
    if not _GROUP.fullmatch(value) or (value.isdecimal() and int(value) > LARGEST_GROUP):
        raise Mistake(f"{shown(value)} is no group", 'its name or its number, as "www-data" or "33"')
    return value


def object_name(value: str) -> str:
    """The name of an object in a cluster.  Raises Mistake."""
    if not _OBJECT.fullmatch(value):
        raise Mistake(f"{shown(value)} is no object's name", "lower-case letters, digits, hyphens and dots")
    return value


def host_label(value: str) -> str:
    """What tells this cache host from others of the same cluster.  Raises Mistake."""
    if not _LABEL.fullmatch(value):
        raise Mistake(f"{shown(value)} is no name", "up to 40 lower-case letters, digits and hyphens")
    return value


def size(value: str) -> int:
    """A number of bytes, as "100GiB".  Raises Mistake."""
    match = _SIZE.fullmatch(value)
    if not match:
        meant = re.fullmatch(r"([0-9]{1,9}) ?([MGT])(?:i?b|B)?", value, re.IGNORECASE)
        better = f'did you mean "{meant[1]}{meant[2].upper()}iB"?' if meant else 'as "100GiB" or "500GB"'
        raise Mistake(f"{shown(value)} is no size", better)
    count = int(match[1]) * _UNITS[match[2]]
    if not SMALLEST_SIZE <= count <= LARGEST_SIZE:
        raise Mistake(f"{shown(value)} is out of bounds", "from 256MiB to 1024TiB")
    return count


def bandwidth(value: str) -> int:
    """A number of bytes per second, as "10MB/s".  Raises Mistake."""
    match = _RATE.fullmatch(value)
    if not match:
        raise Mistake(f"{shown(value)} is no bandwidth", 'bytes per second, as "10MB/s" or "500kB/s"')
    rate = int(match[1]) * _UNITS[match[2]]
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise Mistake(f"{shown(value)} is out of bounds", "from 100kB/s to 100GiB/s")
    return rate


def fresh(value: str) -> int:
    """A number of seconds, as "60s", up to a day.  Raises Mistake."""
    return _time(value, 'as "60s", "5m" or "1h"', 1, LONGEST_FRESH, "from 1s to 1d")


def keep(value: str) -> int:
    """A number of seconds, as "90d", from an hour to ten years.  Raises Mistake."""
    return _time(value, 'as "90d" or "12h"', SHORTEST_KEEP, LONGEST_KEEP, "from 1h to 3650d")


def withdraw_after(value: str) -> int:
    """A number of seconds, as "12h", from a minute to a month.  Raises Mistake."""
    return _time(value, 'as "12h" or "2d"', SHORTEST_UNWELL, LONGEST_UNWELL, "from 1m to 30d")


def _time(value: str, form: str, shortest: int, longest: int, bounds: str) -> int:
    match = _TIME.fullmatch(value)
    if not match:
        raise Mistake(f"{shown(value)} is no length of time", form)
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not shortest <= seconds <= longest:
        raise Mistake(f"{shown(value)} is out of bounds", bounds)
    return seconds


def glob(value: str) -> str:
    """Repositories at the remote, as "library/*".  Raises Mistake."""
    if not _GLOB.fullmatch(value) or "//" in value:
        raise Mistake(f"{shown(value)} names no repositories", 'without the registry, as "library/*" or "team/app"')
    return value


def days(low: int, high: int) -> PlainValidator:
    """The validator of a whole number of days."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Mistake(f"is {kind(value)}, must be a whole number of days", form=True)
        if not low <= value <= high:
            raise Mistake(f"{value} is out of bounds", f"from {low} to {high} days")
        return value

    return PlainValidator(parse)


def address(value: str) -> IPv4Address:
    """An IPv4 address.  Raises Mistake."""
    try:
        return IPv4Address(value)
    except AddressValueError:
        raise Mistake(f"{shown(value)} is no IPv4 address", 'four numbers, as "10.0.0.4"') from None


def subnet(value: str) -> IPv4Network:
    """The LAN, as "10.0.0.0/24", large enough for a gateway and a mirror.  Raises Mistake."""
    hint = 'as "10.0.0.0/24"'
    if not re.fullmatch(r"[0-9.]+/[0-9]{1,2}", value):
        raise Mistake(f"{shown(value)} is no subnet", hint)
    try:
        network = IPv4Network(value, strict=False)
    except (AddressValueError, NetmaskValueError):
        raise Mistake(f"{shown(value)} is no subnet", hint) from None
    if str(network) != value:
        raise Mistake(f"{shown(value)} is a host in a subnet", f'did you mean "{network}"?')
    smallest, largest = 30, 8
    if not largest <= network.prefixlen <= smallest:
        raise Mistake(f"{shown(value)} is out of bounds", f"from /{largest} to /{smallest}")
    if network.is_loopback or network.is_multicast or network.is_link_local or network.is_unspecified:
        raise Mistake(f"{shown(value)} is no subnet that hosts can have addresses in", f"the LAN's, {hint}")
    return network


def address_range(value: str) -> tuple[IPv4Address, IPv4Address]:
    """First and last address, as "10.0.0.4-10.0.0.60".  Raises Mistake."""
    parts = value.split("-")
    if len(parts) != 2:
        raise Mistake(f"{shown(value)} is no range", 'first and last address, as "10.0.0.4-10.0.0.60"')
    first, last = (address(part.strip(" ")) for part in parts)
    if first > last:
        raise Mistake(f"{shown(value)} ends before it begins", f'did you mean "{last}-{first}"?')
    return first, last


def interface(value: str) -> str:
    """The name of a network interface other than loopback.  Raises Mistake."""
    if not _INTERFACE.fullmatch(value):
        raise Mistake(f"{shown(value)} is no interface", "up to 15 letters, digits, and . _ -")
    if value == "lo":
        raise Mistake('"lo" is the loopback interface', "the interface that leads to the LAN")
    return value


def credentials(value: str) -> Path:
    """A file below /etc/mirror-agent.  Raises Mistake, and never quotes the value: people put passwords there."""
    return _secret(value, "quay.credentials", ": user name, then password or token")


def kubeconfig(value: str) -> Path:
    """A file below /etc/mirror-agent.  Raises Mistake."""
    return _secret(value, "kubeconfig", "")


def _secret(value: str, example: str, form: str) -> Path:
    base = Paths().settings.parent
    if not _FOLDER.fullmatch(value) or not value.startswith(f"{base}/"):
        raise Mistake(f"is no file below {base}", f'as "{base}/{example}"{form}')
    if value == str(Paths().settings):
        raise Mistake(f"{value} holds the settings", f'a file of its own, as "{base}/{example}"')
    return Path(value)


def own_file(value: str) -> Path:
    """A file, or folder, below /etc/mirror-agent.  Raises Mistake."""
    base = Paths().settings.parent
    if not _FOLDER.fullmatch(value) or not value.startswith(f"{base}/") or value == str(Paths().settings):
        raise Mistake(f"{shown(value)} is no file below {base}", f'as "{base}/tls/quay.crt"')
    return Path(value)


def url(value: str) -> str:
    """An https URL of plain characters.  Raises Mistake."""
    if not _URL.fullmatch(value):
        raise Mistake(f"{shown(value)} is no https URL", 'as "https://acme.example.com/directory"')
    return value


def email(value: str) -> str:
    """A mail address of plain characters.  Raises Mistake."""
    if not _EMAIL.fullmatch(value):
        raise Mistake(f"{shown(value)} is no mail address", 'as "pki@example.com"')
    return value


def folder(value: str) -> Path:
    """A folder that belongs to the agent alone: it makes and removes what is below.  Raises Mistake."""
    if not _FOLDER.fullmatch(value):
        raise Mistake(f"{shown(value)} is no path", "absolute, of letters, digits, and . _ - (no .. and no spaces)")
    top, _, below = value[1:].partition("/")
    if top in _SYSTEM or value in _SHARED or value.startswith(("/var/run/", "/var/tmp/")):  # noqa: S108
        raise Mistake(f"{value} belongs to the system", 'a folder of its own, as "/srv/mirror-agent"')
    if not below:
        raise Mistake(f"{value} is not the agent's alone", f'a folder of its own, as "{value}/mirror-agent"')
    return Path(value)
