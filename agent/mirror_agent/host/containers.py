"""podman over its API: images, containers, networks.

The client is podman-py's APIClient, not its PodmanClient: that one reads ~/.config/containers, which a hardened
service has not, and its pull() breaks references with a digest.  Nothing here starts or stops a container: that is
systemd's business.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any, TypeGuard
from urllib.parse import quote

from podman.api.client import APIClient
from podman.errors import APIError, NotFound

from mirror_agent.host.podman_events import Events
from mirror_agent.model import ContainerState, Role, Trouble

SOCKET = "unix:///run/podman/podman.sock"
CALL_S = 30.0
SILENCE_S = 60.0  # a pull that says nothing for so long is given up; podman tells its progress every second

LABEL = "io.mirror-agent."
_POD = "mirror-"
_NO_WAY = "no way to the registry: check the network, or load the image with `podman load`"
_HINTS = (  # what registries, resolvers and Go's TLS say, and what helps
    (r"x509|certificate", "put the registry's CA into /etc/containers/certs.d/HOST/ca.crt"),
    (r"no such host|server misbehaving|lookup .*(timeout|refused)", "does this host resolve names? is it online?"),
    (r"toomanyrequests|too many requests|429", "the registry limits pulls: wait, or log in with `podman login`"),
    (r"unauthorized|authentication required|denied|forbidden", "log in with `podman login` as root, or is it a typo?"),
    (r"manifest unknown|name unknown|not found|404", "is the name in [images] of agent.toml right?"),
    (r"no space left", "make room in podman's storage, `podman system df` shows what is in it"),
    (
        r"i/o timeout|connection refused|unreachable|no route|handshake timeout|deadline exceeded|EOF|reset by peer",
        _NO_WAY,
    ),
)


def hint(message: str) -> str:
    """What a person can do about podman's message, "" where that is not known."""
    return next((text for pattern, text in _HINTS if re.search(pattern, message, re.IGNORECASE)), "")


@contextmanager
def _told(where: str, late: str = "is podman busy? `journalctl -u podman`") -> Iterator[None]:
    """Turn what the client raises into a Trouble at `where`; `late` is the hint when a time limit ran out."""
    try:
        yield
    except APIError as error:
        if not isinstance(error.__cause__, OSError):
            said = _message(str(error.explanation or error))
            raise Trouble(where, said, hint(said)) from error
        if isinstance(_root(error), TimeoutError):
            raise Trouble(where, "podman gave no answer within the time limit", late) from error
        cause = _root(error)
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise Trouble("podman", f"its socket does not answer: {reason}", "systemctl start podman.socket") from error
    except OSError as error:  # requests' exceptions: a stream that broke
        reason = "went silent" if isinstance(_root(error), TimeoutError) else f"broke off: {_root(error)}"
        raise Trouble(where, f"podman's answer {reason}", late) from error


def _message(text: str) -> str:
    """The words in podman's error body; its compatible endpoints lack the key by which podman-py knows them."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()


def _root(error: BaseException) -> BaseException:
    """The innermost cause: the outer ones of requests and urllib3 are long and say less."""
    while inner := error.__cause__ or error.__context__ or next(filter(_is_error, error.args), None):
        error = inner
    return error


def _is_error(value: object) -> TypeGuard[BaseException]:
    """urllib3 gives the cause of a broken connection as an argument."""
    return isinstance(value, BaseException)


class Containers:
    """The podman of this host.  Every method raises Trouble when podman does not answer within its time limit."""

    def __init__(self, uri: str = SOCKET, timeout_s: float = CALL_S) -> None:
        self._uri = uri
        self._timeout_s = timeout_s
        # podman ends when idle: a kept connection may just be closing, which one more try gets over (not for POST)
        self._client = APIClient(base_url=uri, timeout=timeout_s, max_retries=1)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._client.close()

    def _json(self, path: str, where: str) -> Any:
        with _told(where):
            response = self._client.get(path)
            response.raise_for_status()
            return response.json()

    def version(self) -> tuple[int, int, int]:
        """Version of podman's engine."""
        numbers = [int(number) for number in re.findall(r"\d+", self._json("/version", "podman")["Version"])[:3]]
        major, minor, patch = (*numbers, 0, 0, 0)[:3]
        return major, minor, patch

    # --- images ---

    def has_image(self, name: str) -> bool:
        """Is the image here already, so that no start needs the internet?"""
        with _told(name):
            response = self._client.get(f"/images/{quote(name, safe='')}/exists")
            if response.status_code == 404:
                return False
            response.raise_for_status()
            return True

    def pull_image(self, name: str, progress: Callable[[str], None], timeout_s: float) -> None:
        """Bring an image ("host/repository:tag" or "…@sha256:…") unless it is here.

        `progress` gets a line about every two seconds.  Raises Trouble with the registry's own words and a hint,
        after `timeout_s` seconds at the latest (plus one read: SILENCE_S).
        """
        if self.has_image(name):
            return
        deadline = time.monotonic() + timeout_s
        told = _Progress(progress)
        with _told(name, _NO_WAY):
            response = self._client.post(
                "/images/pull",
                # compatMode tells progress in bytes; without it there is silence while a layer is copied
                params={"reference": name, "policy": "missing", "compatMode": "true"},
                stream=True,
                timeout=(self._timeout_s, min(SILENCE_S, timeout_s)),
            )
            try:
                response.raise_for_status()
                for line in response.iter_lines():
                    told.line(name, line)
                    if time.monotonic() > deadline:
                        raise Trouble(name, f"not pulled within {timeout_s:.0f} s", "is the line slow?")
            finally:
                response.close()  # podman gives up the pull when its client goes away
        if not self.has_image(name):
            raise Trouble(name, "podman pulled it without an error, but does not have it", "`podman pull` by hand")

    # --- containers ---

    def states(self) -> tuple[ContainerState, ...]:
        """The running containers of our pods, the infra containers among them, in the order of their names."""
        listed = [item for item in self._json("/containers/json", "podman ps") if _mirror(item)]
        networks = {item["Pod"]: self._network_of(item["Id"]) for item in listed if item.get("IsInfra")}
        states = [_state(item, *networks.get(item.get("Pod", ""), ("", None))) for item in listed]
        return tuple(sorted(states, key=lambda state: (state.mirror, state.role or "", state.id)))

    def _network_of(self, infra: str) -> tuple[str, IPv4Address | None]:
        """The path of a pod's network namespace, which its infra container owns, and the address in it.

        "" and None when it has just gone.
        """
        try:
            found = self._json(f"/containers/{infra}/json", infra)["NetworkSettings"]
        except Trouble as trouble:
            if isinstance(trouble.__cause__, NotFound):
                return "", None
            raise
        addresses = [text for each in (found.get("Networks") or {}).values() if (text := each.get("IPAddress"))]
        return str(found.get("SandboxKey") or ""), IPv4Address(addresses[0]) if addresses else None

    # --- networks ---

    def networks(self, prefix: str) -> tuple[str, ...]:
        """Names of podman's networks that begin with `prefix`."""
        names = (network["name"] for network in self._json("/networks/json", "podman network ls"))
        return tuple(sorted(name for name in names if name.startswith(prefix)))

    def remove_network(self, name: str) -> None:
        """Remove a network that no container uses; one that is not there is removed."""
        with _told(name):
            response = self._client.delete(f"/networks/{quote(name, safe='')}")
            if response.status_code != 404:
                response.raise_for_status()

    # --- events ---

    def on_event(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Tell "NAME ACTION" of each container of ours that starts or ends, until the returned function is called.

        Outages of podman's socket are bridged: what happened meanwhile is told afterwards.  The callback runs in
        a thread of its own.
        """
        return Events(self._uri, callback).stop


def _mirror(item: Mapping[str, Any]) -> str:
    """The mirror that a listed container belongs to, "" for a stranger's."""
    label = (item.get("Labels") or {}).get(LABEL + "mirror", "")
    pod = item.get("PodName") or ""
    return label or (pod.removeprefix(_POD) if item.get("IsInfra") and pod.startswith(_POD) else "")


def _state(item: Mapping[str, Any], namespace: str, address: IPv4Address | None) -> ContainerState:
    labels = item.get("Labels") or {}
    role = labels.get(LABEL + "role")
    return ContainerState(
        mirror=_mirror(item),
        role=Role(role) if role in set(Role) else None,
        id=item["Id"],
        pod_hash=labels.get(LABEL + "pod", ""),
        hash=labels.get(LABEL + "unit", ""),
        started=str(item.get("StartedAt", "")),  # in seconds; quadlet gives each start a container of its own too
        namespace=namespace,
        address=address,
    )


class _Progress:
    """Sums the lines of a pull up to one for people."""

    EVERY_S = 2.0

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._last = 0.0
        self._layers: dict[str, tuple[int, int]] = {}  # bytes that are here, bytes in all

    def line(self, image: str, line: bytes) -> None:
        """One line of podman's answer.  Raises Trouble when it tells an error."""
        try:
            report = json.loads(line)
        except ValueError:
            return
        message = report.get("error") or (report.get("errorDetail") or {}).get("message")
        if message:
            raise Trouble(image, str(message), hint(str(message)))
        detail = report.get("progressDetail") or {}
        if report.get("id") and detail.get("total"):
            self._layers[report["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
        now = time.monotonic()
        if self._layers and now - self._last >= self.EVERY_S:
            self._last = now
            here, total = (sum(numbers) / 1e6 for numbers in zip(*self._layers.values(), strict=True))
            self._tell(f"{here:.1f} of {total:.1f} MB")
