"""Asking an upstream what is left of its limit on pulls, as the mirror's registry asks for an image.

The question goes the mirror's own way: from its address (that is the one that is counted), through its proxy, with its
account and its CAs.  It is a HEAD, which by Docker's documentation is no pull.  No redirect is followed.

And whether an upstream can be reached at all, by a connection through which nothing is asked.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from mirror_agent import __version__
from mirror_agent import pull_limit as limits
from mirror_agent.host.namespace import in_namespace
from mirror_agent.host.pull import INDEXES, MANIFESTS, parse_image, public_roots
from mirror_agent.model import Mirror, PullLimit, Trouble

DIAL_S = 5.0  # for one address
SILENCE_S = 10.0  # between two reads
LIMIT_S = 45.0  # for the whole question, name look-ups not counted
ADDRESSES = 3  # of a name that are tried
LARGEST_TOKEN = 64 * 1024  # bytes of a token service's answer

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)  # RFC 6750, 2.1
_ACCOUNT = "upstream.credentials: user name and password or token"


def pull_limit(namespace: str, mirror: Mirror, login: bytes, cas: str) -> PullLimit:
    """What the mirror's upstream says of its limit.  Raises Trouble.

    `login` is the credentials' file of the registry, b"" for none; `cas` PEM of what is trusted beside the public CAs.
    """
    repository, tag = parse_image(mirror.pull_limit or "")
    remote = urlsplit(mirror.remote)
    host, port = remote.hostname or "", remote.port or _Connection.default_port
    path, asked = f"/v2/{repository}/manifests/{tag}", datetime.now(UTC)
    basic = _basic(login)
    with _Way(namespace, mirror.proxy, cas) as way:
        status, headers = way.head(host, port, path, "")
        if status == HTTPStatus.UNAUTHORIZED:
            allowed = _authorization(way, host, headers.get_all("WWW-Authenticate") or [], repository, basic)
            status, headers = way.head(host, port, path, allowed)
    told = status == HTTPStatus.TOO_MANY_REQUESTS and "ratelimit-limit" in headers  # used up
    if status != HTTPStatus.OK and not told:
        raise Trouble(host, f"HTTP {status}", _ACCOUNT if status in _REFUSED else "")
    try:
        return limits.read(
            headers.get("ratelimit-limit"),
            headers.get("ratelimit-remaining"),
            headers.get("docker-ratelimit-source"),
            asked,
        )
    except ValueError as error:
        raise Trouble(host, str(error)) from error


def reach(namespace: str, mirror: Mirror, cas: str) -> bool:
    """Open a connection to the mirror's upstream, with TLS as far as its proved name; ask nothing.  Raises Trouble."""
    remote = urlsplit(mirror.remote)
    host = remote.hostname or ""
    with _Way(namespace, mirror.proxy, cas) as way:
        way.open(host, remote.port, tls=remote.scheme == "https")
    return True


_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def _basic(login: bytes) -> str:
    if not login:
        return ""
    said = json.loads(login)
    return "Basic " + b64encode(f"{said['Username']}:{said['Secret']}".encode()).decode("ascii")


def _authorization(way: _Way, registry: str, headers: list[str], repository: str, basic: str) -> str:
    """The header that a registry wants, for pulling from this repository and no more."""
    try:
        challenge = limits.challenge(headers)
        if not challenge.bearer:
            if not basic:
                raise Trouble(registry, "wants an account", _ACCOUNT)
            return basic
        realm = limits.realm(challenge.realm, registry)
    except ValueError as error:
        raise Trouble(registry, str(error)) from error
    query = urlencode({"service": challenge.service, "scope": f"repository:{repository}:pull"})
    target = f"{realm.target}{'&' if '?' in realm.target else '?'}{query}"
    status, body = way.get(realm.host, realm.port, target, basic)
    if status != HTTPStatus.OK:
        raise Trouble(realm.host, f"gives no token: HTTP {status}", _ACCOUNT if status in _REFUSED else "")
    token = _token(body)
    if token is None:
        raise Trouble(realm.host, "gives no token: its answer is not understood")
    return f"Bearer {token}"


def _token(body: bytes) -> str | None:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = (said.get("token") or said.get("access_token")) if isinstance(said, dict) else None
    return found if isinstance(found, str) and _TOKEN.fullmatch(found) else None


class _Connection(http.client.HTTPConnection):
    """HTTP over what was opened for it."""

    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, port: int, wire: Any) -> None:
        super().__init__(host, port)
        self.sock = wire


class _Way:
    """From a mirror's network namespace to hosts of the internet, for LIMIT_S at most."""

    def __init__(self, namespace: str, proxy: str | None, cas: str) -> None:
        self._namespace = namespace
        self._proxy = urlsplit(proxy) if proxy else None
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not strict: companies' CAs are what they are
        self._tls.load_verify_locations(cadata=public_roots() + cas)
        self._open: list[socket.socket] = []
        self._lock, self._over = threading.Lock(), False
        self._timer = threading.Timer(LIMIT_S, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Way:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._end()

    def _end(self) -> None:
        """What another thread waits for ends too, also where bytes only trickle."""
        with self._lock:
            self._over = True
            for wire in self._open:
                with suppress(OSError):
                    wire.shutdown(socket.SHUT_RDWR)
                wire.close()
            self._open.clear()

    def head(self, host: str, port: int, path: str, authorization: str) -> tuple[int, http.client.HTTPMessage]:
        """Status and headers of a manifest.  Raises Trouble."""
        accept = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
        with self._answer("HEAD", host, port, path, accept, authorization) as answer:
            return answer.status, answer.headers

    def get(self, host: str, port: int, path: str, authorization: str) -> tuple[int, bytes]:
        """Status and body, no more of it than a token needs.  Raises Trouble."""
        with self._answer("GET", host, port, path, {}, authorization) as answer:
            return answer.status, answer.read(LARGEST_TOKEN)

    @contextmanager
    def _answer(
        self, method: str, host: str, port: int, path: str, headers: dict[str, str], authorization: str
    ) -> Iterator[http.client.HTTPResponse]:
        allowed = {"Authorization": authorization} if authorization else {}
        agent = {"User-Agent": f"mirror-agent/{__version__}", "Connection": "close"}
        with self._told(host):
            connection = _Connection(host, port, self._wire(host, port))
            try:
                connection.request(method, path, headers={**headers, **agent, **allowed})
                yield connection.getresponse()
            finally:
                connection.close()

    def open(self, host: str, port: int | None, *, tls: bool) -> None:
        """A connection and no more; what is not TLS goes to a proxy as it is (RFC 9112, 3.2.2).  Raises Trouble."""
        with self._told(host):
            if tls:
                self._wire(host, port or _Connection.default_port).close()
            elif self._proxy:
                self._dial(self._proxy.hostname or "", self._proxy.port or 0).close()
            else:
                self._dial(host, port or http.client.HTTP_PORT).close()

    @contextmanager
    def _told(self, host: str) -> Iterator[None]:
        """What goes wrong on the way to a host, as Trouble."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise Trouble(host, f"its certificate is refused: {error.verify_message}", "upstream.ca") from error
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # no name of a host
            late = self._over or isinstance(error, TimeoutError)
            raise Trouble(host, "no answer within the time limit" if late else f"no answer: {_plain(error)}") from error

    def _wire(self, host: str, port: int) -> Any:
        """TLS with a host that has proved its name.  Raises OSError, HTTPException, Trouble."""
        if self._proxy is None:
            return self._tls.wrap_socket(self._dial(host, port), server_hostname=host)
        through = self._proxy.hostname or ""
        wire: Any = self._dial(through, self._proxy.port or 0)
        if self._proxy.scheme == "https":
            wire = self._tls.wrap_socket(wire, server_hostname=through)
        wire.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode("ascii"))
        with http.client.HTTPResponse(wire, method="CONNECT") as answer:
            answer.begin()
            if answer.status != HTTPStatus.OK:
                raise Trouble(through, f"HTTP {answer.status} to CONNECT {host}:{port}", "upstream.proxy")
        if self._proxy.scheme == "https":
            from urllib3.util.ssltransport import SSLTransport  # noqa: PLC0415 - rarely needed

            return SSLTransport(wire, self._tls, server_hostname=host)
        return self._tls.wrap_socket(wire, server_hostname=host)

    def _dial(self, host: str, port: int) -> socket.socket:
        """The name is looked up by the host: a pod's name servers are for the pod."""
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        wire = in_namespace(self._namespace, lambda: _first(found), (ADDRESSES + 1) * DIAL_S)
        wire.settimeout(SILENCE_S)
        with self._lock:
            if self._over:
                wire.close()
                raise TimeoutError
            self._open.append(wire.dup())
        return wire


def _first(found: list[Any]) -> socket.socket:
    """A connection to the first address that takes one."""
    error: OSError = TimeoutError()
    for *_, address in found[:ADDRESSES]:
        try:
            return socket.create_connection(address, DIAL_S)
        except OSError as refused:
            error = refused
    raise error


def _plain(error: Exception) -> str:
    """What a stranger has sent may be in it."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return "".join(character for character in text if character.isprintable())[:200]
