"""Whitelists of what names registries, mirrors and images: hosts, sources, remotes, image references."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address

from mirror_agent.config.words import Mistake, closest, shown

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

# Upstreams that tell in the answer to a HEAD what is left of their limit on pulls, and the image to ask about.  By
# Docker's documentation this one costs no pull (docs.docker.com, "Docker Hub pull usage and limits").
PULL_LIMITS = {f"https://{DOCKER_REGISTRY}": "ratelimitpreview/test:latest"}

LONGEST_HOST = 253  # RFC 1035 in text form
LONGEST_DOMAIN = LONGEST_HOST - len("." + "n" * 32)  # NAME.domain must be a host name too

_IN_DNS = 'a name that DNS knows, as "registry.example.com"'
_FROM_THE_LAN = "the name or address by which a machine of the LAN reaches it"

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label that makes resolvers read a host as an address
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"  # distribution/reference: path-component
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # distribution/reference: tag
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def host_name(value: str) -> str:
    """A DNS name in lower case that no resolver takes for an address.  Raises Mistake."""
    if value != value.lower():
        raise Mistake(f"{shown(value)} has upper-case letters", f"write {shown(value.lower())}")
    if "_" in value:
        raise Mistake(f"{shown(value)} has an underscore, which no host name may have", _IN_DNS)
    if not _HOST.fullmatch(value) or len(value) > LONGEST_HOST:
        raise Mistake(f"{shown(value)} is no host name", "letters a-z, digits, hyphens, and dots between the parts")
    if _NUMERIC.fullmatch(value.rpartition(".")[2]):
        raise Mistake(f"{shown(value)} is an address or looks like one", _IN_DNS)
    if is_local(value):
        raise Mistake(f"{shown(value)} is this machine to everybody who resolves it", _IN_DNS)
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
        raise Mistake(f"is longer than {LONGEST_DOMAIN} characters", "a mirror's name must fit in front of it")
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
        raise Mistake(f"is longer than {LONGEST_HOST} characters", "a shorter prefix: host[:port][/path]")
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


def proxy(value: str) -> str:
    """The URL of an HTTP proxy, scheme://host:port.  Raises Mistake, and never quotes a password."""
    if "@" in value:
        raise Mistake("has a user name in it", "a proxy that asks for a login cannot be used")
    scheme, mark, rest = value.partition("://")
    if not mark or scheme not in ("http", "https"):
        raise Mistake(f"{shown(value)} is no URL of an HTTP proxy", 'as "http://proxy.example.com:3128"')
    host, port = authority(rest.removesuffix("/"))
    if not port:
        raise Mistake(f"{shown(value)} has no port", f"write {shown(f'{scheme}://{host}:3128')}, or what it listens on")
    _refuse_local(host)
    return f"{scheme}://{host}:{port}"


def _refuse_local(host: str) -> None:
    """Refuse a remote inside the pod or on its own wire.  Raises Mistake."""
    if is_local(host):
        raise Mistake(f"{shown(host)} is the mirror itself: it runs in a network of its own", _FROM_THE_LAN)
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
            raise Mistake(f"{host} is {why}", _FROM_THE_LAN)


def registry_of(name: str) -> str:
    """The registry HOST[:PORT] that serves a source."""
    registry = name.partition("/")[0]
    return DOCKER_REGISTRY if registry == DOCKER_HUB else registry


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
