"""The world inside the box, as facts: hosts, addresses, and which registry serves what.

All networks live in namespaces that the box makes for itself. The internet's addresses come from the
ranges for documentation (RFC 5737), so that a leak could reach nobody.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Upstream:
    """A registry on the box's internet."""

    name: str  # the prefix that clients write
    host: str  # where it really is
    address: str
    probe: str  # a small image that the real registry has too
    docker_format: bool = False  # its probe image is in Docker's format, not in OCI's
    token_auth: bool = False  # as Docker Hub: even anonymous pulls need a token


LAN_PREFIX = 24
GATEWAY = "10.0.0.1"
CACHE_HOST = "10.0.0.2"
NODE = "10.0.0.100"

WAN_ROUTER = "203.0.113.1"
WAN_INTERNET = "203.0.113.2"
INTERNET_DNS = "198.51.100.53"

UPSTREAMS = (
    Upstream("quay.io", "quay.io", "198.51.100.10", "podman/hello:latest"),
    Upstream("docker.io", "registry-1.docker.io", "198.51.100.11", "library/hello-world:latest", token_auth=True),
    Upstream("registry.k8s.io", "registry.k8s.io", "198.51.100.12", "pause:3.10", docker_format=True),
    Upstream("gcr.io", "gcr.io", "198.51.100.13", "distroless/static:latest"),
    Upstream("ghcr.io", "ghcr.io", "198.51.100.14", "containerd/busybox:1.36"),
)

TOKEN_HOST = "auth.docker.io"
TOKEN_ADDRESS = "198.51.100.20"
TOKEN_REALM = f"https://{TOKEN_HOST}/token"
TOKEN_ISSUER = "auth.docker.io"
TOKEN_SERVICE = "registry.docker.io"

# What Docker Hub tells of its pull limit in each answer.  Here it is always the same: nobody counts.
PULL_LIMIT = {
    "Ratelimit-Limit": "100;w=21600", "Ratelimit-Remaining": "76;w=21600", "Docker-Ratelimit-Source": WAN_ROUTER,
}  # fmt: skip

# Docker Hub's accounts in the box. Anonymous may pull everything but private/.
PUBLISHER = ("publisher", "may-push")
READER = ("reader", "may-read-private")


def internet() -> dict[str, str]:
    """Every name on the box's internet with its address."""
    return {u.host: u.address for u in UPSTREAMS} | {TOKEN_HOST: TOKEN_ADDRESS}


def upstream(name: str) -> Upstream:
    """The upstream with this name or host. Raises KeyError."""
    return {key: u for u in UPSTREAMS for key in (u.name, u.host)}[name]
