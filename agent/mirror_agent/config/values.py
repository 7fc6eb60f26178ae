"""The values that may stand in definitions and settings: one whitelist each, in front of everything else.

What the admin wrote ends in unit files, nginx.conf, URLs and file names.  So each value is parsed here, character by
character, and nothing that came through needs quoting later (host.md, "Injection").
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from pathlib import Path
from typing import Any

from pydantic import PlainValidator

from mirror_agent.model import Paths, Policy

DOCKER_HUB = "docker.io"
DOCKER_REGISTRY = "registry-1.docker.io"

# Names under which people know Docker Hub and which match no image reference (openshift.md, "docker.io").
_DOCKER_ALIASES = frozenset({"index.docker.io", "hub.docker.com", "docker.com", "www.docker.com"})

# Small images that are there for everybody: the first real pull of a new mirror.
PROBES = {
    "https://quay.io": "podman/hello:latest",
    f"https://{DOCKER_REGISTRY}": "library/hello-world:latest",
    "https://registry.k8s.io": "pause:3.10",
    "https://gcr.io": "distroless/static:latest",
    "https://ghcr.io": "containerd/busybox:1.36",
}

SMALLEST_SIZE = 256 * 2**20  # less than one usual image: a slip of the unit
LARGEST_SIZE = 2**50
LONGEST_FRESH = 86_400
LONGEST_HOST = 253  # RFC 1035 in text form
LONGEST_DOMAIN = LONGEST_HOST - len("." + "n" * 32)  # NAME.domain must be a host name too

_FORBIDDEN = "\"'`%$\\"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label that makes resolvers read a host as an address
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"  # distribution/reference: path-component
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # distribution/reference: tag
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FOLDER = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with the zero byte
_SIZE = re.compile(r"([0-9]{1,9}) ?(Mi?B|Gi?B|Ti?B)")
_FRESH = re.compile(r"([0-9]{1,9}) ?([smhd])")
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# Not a place for folders that come and go with a mirror: the system's, or gone after a reboot.
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr")
_SHARED = frozenset({"/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp"})  # noqa: S108


class Mistake(ValueError):
    """A value that is refused: reason and hint for a person, and the key where it is not the value's own.

    `form` says that the value has not even the form of one: an example of the key helps.
    """

    def __init__(self, reason: str, hint: str = "", key: str | None = None, form: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.key = key
        self.form = form


def safe(text: str) -> str:
    """Untrusted text with every control, format and surrogate character escaped, fit for a terminal and a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(text: str) -> str:
    """Untrusted text as a message quotes it: safe and short."""
    longest = 60
    return f'"{safe(text if len(text) <= longest else text[: longest - 1] + "…")}"'


def kind(value: object) -> str:
    """What a TOML value is, in the words of people."""
    names: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (str, "text"),
        (int, "a number"),
        (float, "a number with a fraction"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((name for a_type, name in names if isinstance(value, a_type)), "a date or time")


def closest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant, without regard to case, or None."""
    known = {w.lower(): w for w in words}
    found = difflib.get_close_matches(word.lower(), known, n=1)
    return known[found[0]] if found else None


def plain(value: object) -> str:
    """Text without control characters, quotes, %, $ and backslash.  Raises Mistake."""
    if not isinstance(value, str):
        raise Mistake(f"is {kind(value)}, must be text in quotes", form=True)
    if not value:
        raise Mistake("is empty", form=True)
    for character in value:
        if not character.isprintable():
            raise Mistake(f"holds the control character U+{ord(character):04X}")
        if character in _FORBIDDEN:
            raise Mistake(f"holds the character {character}, which is allowed in no value")
    return value


def text(parse: Callable[[str], Any]) -> PlainValidator:
    """The validator of a text value: `plain`, then its own whitelist."""
    return PlainValidator(lambda value: parse(plain(value)))


# --- names -----------------------------------------------------------------------------------------------------


def host_name(value: str) -> str:
    """A DNS name in lower case that no resolver takes for an address.  Raises Mistake."""
    if value != value.lower():
        raise Mistake(f"{shown(value)} has upper-case letters", f"write {shown(value.lower())}")
    if "_" in value:
        raise Mistake(f"{shown(value)} has an underscore, which no host name may have")
    if not _HOST.fullmatch(value) or len(value) > LONGEST_HOST:
        raise Mistake(f"{shown(value)} is no host name", "letters a-z, digits, hyphens, and dots between the parts")
    if _NUMERIC.fullmatch(value.rpartition(".")[2]):
        raise Mistake(f"{shown(value)} is an address or looks like one, must be a host name")
    if is_local(value):
        raise Mistake(f"{shown(value)} is this machine to everybody who resolves it")
    return value


def is_local(host: str) -> bool:
    """Does every resolver take this name for the machine itself?  (RFC 6761, 6.3)"""
    return host in ("localhost", "localhost.localdomain") or host.endswith(".localhost")


def is_address(host: str) -> bool:
    """Is it an IPv4 address in its one plain form?"""
    try:
        IPv4Address(host)
    except AddressValueError:
        return False
    return True


def domain(value: str) -> str:
    """The domain of the mirrors' host names.  Raises Mistake."""
    if len(host_name(value)) > LONGEST_DOMAIN:
        raise Mistake(f"is longer than {LONGEST_DOMAIN} characters")
    return value


def authority(value: str) -> tuple[str, str]:
    """HOST[:PORT] of a source or URL as (host, port or "").  An IPv4 address is a host here.  Raises Mistake."""
    if value.startswith("["):
        raise Mistake(f"{shown(value)} is an IPv6 address: mirrors speak IPv4 only", "write the host's name")
    host, colon, port = value.partition(":")
    if colon and not (_PORT.fullmatch(port) and int(port) < 2**16):
        raise Mistake(f"{shown(port)} is no port", "a number from 1 to 65535")
    if not is_address(host) and not is_local(host):
        host_name(host)
    return host, port


def source(value: str) -> str:
    """The prefix that clients write: host[:port][/path].  Raises Mistake.  (openshift/api: `source`)"""
    if "://" in value:
        raise Mistake(f"{shown(value)} has a scheme", f"write {shown(value.partition('://')[2])}")
    if "*" in value:
        raise Mistake(f"{shown(value)} has a wildcard", "one mirror serves one registry: name it")
    if "@" in value:
        raise Mistake(f"{shown(value)} has a digest or a user name", "a source is a prefix: host[:port][/path]")
    if value.endswith("/"):
        raise Mistake(f"{shown(value)} ends in a slash", f"write {shown(value.rstrip('/'))}")
    registry, slash, path = value.partition("/")
    if ":" in path or (":" in registry and not registry.startswith("[") and not registry.partition(":")[2].isdigit()):
        raise Mistake(f"{shown(value)} has a tag", "a source is a prefix: host[:port][/path]")
    host, port = authority(registry)
    if host in _DOCKER_ALIASES:
        raise Mistake(f"{shown(value)} matches no image reference", f'Docker Hub is known as "{DOCKER_HUB}"')
    if "." not in host and not port and host != "localhost":
        meant = closest(host + ".io", (DOCKER_HUB, *(url.partition("://")[2] for url in PROBES)))
        raise Mistake(f"{shown(host)} is no registry: it has no dot", f'did you mean "{meant}"?' if meant else "")
    if slash and not _REPOSITORY.fullmatch(path):
        raise Mistake(f"{shown(path)} is no repository path", "lower-case letters, digits, and . _ - between them")
    if len(value) > LONGEST_HOST:
        raise Mistake(f"is longer than {LONGEST_HOST} characters")
    return value


def remote(value: str) -> str:
    """The URL that the cache pulls from, scheme://host[:port].  Raises Mistake, and never quotes a password."""
    if "@" in value:
        raise Mistake("has a user name in it", "put it into a file, and name that with [upstream] credentials")
    scheme, mark, rest = value.partition("://")
    if not mark:
        raise Mistake(f"{shown(value)} is no URL", f"write {shown('https://' + value)}")
    if scheme not in ("https", "http"):
        raise Mistake(f"{shown(value)} is not https", "https://host[:port]")
    rest = rest.removesuffix("/")
    if re.search(r"[/?#]", rest):
        raise Mistake(f"{shown(value)} has a path", "a mirror is one of a whole registry: https://host[:port]")
    host, _ = authority(rest)
    if host == DOCKER_HUB or host in _DOCKER_ALIASES:
        raise Mistake(f"{shown(value)} is not a registry's URL", f'Docker Hub\'s is "https://{DOCKER_REGISTRY}"')
    _refuse_local(host)
    return f"{scheme}://{rest}"


def _refuse_local(host: str) -> None:
    """Refuse a remote inside the pod or on its own wire.  Raises Mistake."""
    if is_local(host):
        raise Mistake(f"{shown(host)} is the mirror itself: it runs in a network of its own")
    if not is_address(host):
        return
    address = IPv4Address(host)
    for bad, why in (
        (address.is_loopback, "a loopback address: the mirror itself"),
        (address.is_link_local, "a link-local address"),
        (address.is_multicast, "a multicast address"),
        (address.is_unspecified or address.is_reserved, "no host's address"),
    ):
        if bad:
            raise Mistake(f"{host} is {why}")


def registry_of(name: str) -> str:
    """The registry HOST[:PORT] that serves a source."""
    registry = name.partition("/")[0]
    return DOCKER_REGISTRY if registry == DOCKER_HUB else registry


def policy(value: str) -> Policy:
    """One of OpenShift's two policies.  Raises Mistake."""
    if value not in tuple(Policy):
        meant = closest(value, Policy)
        both = " or ".join(Policy)
        raise Mistake(f"{shown(value)} is no policy", f'did you mean "{meant}"?' if meant else both)
    return Policy(value)


def probe(value: str) -> str:
    """REPOSITORY:TAG at the remote.  Raises Mistake.  (distribution/reference)"""
    repository, colon, tag = value.partition(":")
    if not (colon and _REPOSITORY.fullmatch(repository) and _TAG.fullmatch(tag)):
        raise Mistake(f"{shown(value)} is no image", 'repository:tag without the registry, as "podman/hello:latest"')
    return value


def image(value: str) -> str:
    """An image with registry and either tag or digest, as podman names it.  Raises Mistake."""
    hint = f'registry/repository:tag or registry/repository@sha256:…, as "{DOCKER_HUB}/library/nginx:stable"'
    registry, slash, rest = value.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        raise Mistake(f"{shown(value)} has no registry in front", hint)
    authority(registry)
    repository, mark, version = rest.partition("@" if "@" in rest else ":")
    good = _DIGEST if mark == "@" else _TAG
    if not mark:
        raise Mistake(f"{shown(value)} has neither tag nor digest", hint)
    if not (_REPOSITORY.fullmatch(repository) and good.fullmatch(version)):
        raise Mistake(f"{shown(value)} is no image", hint)
    return value


# --- numbers and addresses -------------------------------------------------------------------------------------


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


def fresh(value: str) -> int:
    """A number of seconds, as "60s", up to a day.  Raises Mistake."""
    match = _FRESH.fullmatch(value)
    if not match:
        raise Mistake(f"{shown(value)} is no length of time", 'as "60s", "5m" or "1h"')
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not 1 <= seconds <= LONGEST_FRESH:
        raise Mistake(f"{shown(value)} is out of bounds", "from 1s to 1d")
    return seconds


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
        raise Mistake(f"{shown(value)} is no subnet that hosts can have addresses in")
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


# --- files -----------------------------------------------------------------------------------------------------


def credentials(value: str) -> Path:
    """A file below /etc/mirror-agent.  Raises Mistake, and never quotes the value: people put passwords there."""
    base = Paths().settings.parent
    if not _FOLDER.fullmatch(value) or not value.startswith(f"{base}/"):
        raise Mistake(f"is no file below {base}", f'as "{base}/quay.credentials": user name, then password or token')
    if value == str(Paths().settings):
        raise Mistake(f"{value} holds the settings", f'a file of its own, as "{base}/quay.credentials"')
    return Path(value)


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
