"""The question to an upstream, over real TLS on this machine: what is believed, followed and told to whom."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mirror_agent.certificates import making
from mirror_agent.host import upstream
from mirror_agent.model import Mirror, Policy, PullLimit, Trouble

CA = making.make_authority(("localhost",), (IPv4Network("127.0.0.0/8"),), "test", datetime.now(UTC), 30)
LEAF = making.issue(CA, "localhost", IPv4Address("127.0.0.1"), datetime.now(UTC), 30)
LOGIN = json.dumps({"Username": "reader", "Secret": "pass:wörd"}).encode()
BASIC = "Basic " + base64.b64encode("reader:pass:wörd".encode()).decode()
HERE = "/proc/self/ns/net"
TOLD = {
    "ratelimit-limit": "100;w=21600",
    "ratelimit-remaining": "76;w=21600",
    "docker-ratelimit-source": "198.51.100.7",
}

type Answer = tuple[int, dict[str, str], bytes]


class Registry:
    """A registry and its token service, on one port of localhost."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []  # method, path, Authorization
        self.scheme = "Bearer"
        self.realm = ""  # "": the real one
        self.token: Answer = (200, {}, json.dumps({"token": "abc.def"}).encode())
        self.manifest: Answer = (200, TOLD, b"")
        self.port = 0

    def answer(self, method: str, path: str, authorization: str) -> Answer:
        self.asked.append((method, path, authorization))
        if path.startswith("/token"):
            return self.token
        if authorization in ("Bearer abc.def", BASIC) or not self.scheme:
            return self.manifest
        realm = self.realm or f"https://localhost:{self.port}/token"
        return 401, {"WWW-Authenticate": f'{self.scheme} realm="{realm}",service="a service"'}, b""

    def mirror(self, proxy: str | None = None) -> Mirror:
        remote, address = f"https://localhost:{self.port}", IPv4Address("10.0.0.4")
        return Mirror("lab", ("lab.example",), remote, "lab.mirror.lan", address, "", Policy.NEVER, None, 1, 1, None,
                      proxy=proxy, pull_limit="a/b:1")  # fmt: skip

    def ask(self, login: bytes = b"", proxy: str | None = None) -> PullLimit:
        return upstream.pull_limit(HERE, self.mirror(proxy), login, CA.certificate.decode())

    def refused(self, login: bytes = b"") -> str:
        with pytest.raises(Trouble) as caught:
            self.ask(login)
        return str(caught.value)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    pair = tmp_path_factory.mktemp("tls") / "pair.pem"
    pair.write_bytes(LEAF.key + LEAF.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context


@pytest.fixture
def registry(tls: ssl.SSLContext) -> Iterator[Registry]:
    found = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = found.answer(self.command, self.path, self.headers.get("Authorization", ""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_token_for_this_image_alone_and_then_the_answer(registry: Registry) -> None:
    said = registry.ask()
    assert replace(said, asked=datetime(2026, 1, 1, tzinfo=UTC)) == PullLimit(
        datetime(2026, 1, 1, tzinfo=UTC), 100, 76, 21600, "198.51.100.7"
    )
    first, token, second = registry.asked
    assert first == ("HEAD", "/v2/a/b/manifests/1", "")
    assert second == ("HEAD", "/v2/a/b/manifests/1", "Bearer abc.def")
    assert (token[0], token[2]) == ("GET", "")
    assert parse_qs(urlsplit(token[1]).query) == {"service": ["a service"], "scope": ["repository:a/b:pull"]}


def test_the_account_goes_to_the_token_service_only(registry: Registry) -> None:
    registry.ask(LOGIN)
    assert [line[2] for line in registry.asked] == ["", BASIC, "Bearer abc.def"]


def test_a_registry_that_asks_for_the_account_itself(registry: Registry) -> None:
    registry.scheme = "Basic"
    assert registry.ask(LOGIN).limit == 100
    assert "wants an account" in registry.refused()


def test_a_registry_that_asks_for_nothing(registry: Registry) -> None:
    registry.scheme, registry.manifest = "", (200, {}, b"")
    assert registry.ask(LOGIN).limit is None
    assert [line[2] for line in registry.asked] == [""]


@pytest.mark.parametrize(
    "realm", ["http://localhost/token", "https://evil.example/token", "https://localhost.evil/", "x"]
)
def test_nothing_is_asked_where_it_must_not(registry: Registry, realm: str) -> None:
    registry.realm = realm
    assert "for tokens" in registry.refused(LOGIN)
    assert [line[2] for line in registry.asked] == [""]


def test_no_redirect_is_followed(registry: Registry) -> None:
    registry.manifest = (307, {"Location": f"https://localhost:{registry.port}/elsewhere"}, b"")
    assert "HTTP 307" in registry.refused()
    registry.token = (302, {"Location": f"https://localhost:{registry.port}/elsewhere"}, b"")
    assert "gives no token: HTTP 302" in registry.refused(LOGIN)
    assert not [line for line in registry.asked if "elsewhere" in line[1]]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"token": 7}', b'{"token": "a\\r\\nX: y"}', b'{"token": ""}', b"[" * 60_000,
     b'{"token": "' + b"a" * 70_000 + b'"}', b"\xff"],
)  # fmt: skip
def test_what_is_no_token(registry: Registry, body: bytes) -> None:
    registry.token = (200, {}, body)
    assert "its answer is not understood" in registry.refused()


def test_what_is_refused_says_what_to_do(registry: Registry) -> None:
    registry.token = (401, {}, b'{"details": "incorrect username or password"}')
    said = registry.refused(LOGIN)
    assert said == "localhost: gives no token: HTTP 401 (upstream.credentials: user name and password or token)"


def test_used_up_is_an_answer_too(registry: Registry) -> None:
    registry.manifest = (429, {**TOLD, "ratelimit-remaining": "0;w=21600"}, b"")
    assert registry.ask().remaining == 0
    registry.manifest = (429, {}, b"")
    assert registry.refused() == "localhost: HTTP 429"


def test_another_ca_is_refused(registry: Registry) -> None:
    with pytest.raises(Trouble, match="its certificate is refused"):
        upstream.pull_limit(HERE, registry.mirror(), b"", "")


@contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of localhost where each connection is talked to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    wire, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(wire,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_an_answer_that_only_trickles_ends(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LIMIT_S", 1.0)
    over = threading.Event()

    def trickle(wire: socket.socket) -> None:
        with tls.wrap_socket(wire, server_side=True) as secured:
            secured.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not over.wait(0.05):
                try:
                    secured.sendall(b"x")
                except OSError:
                    over.set()

    found = Registry()
    with serving(trickle) as found.port:
        assert found.refused() == "localhost: no answer within the time limit"
    assert over.wait(60)


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 100, b"HTTP/9 x y\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_what_is_no_http(tls: ssl.SSLContext, garbage: bytes) -> None:
    def talk(wire: socket.socket) -> None:
        with tls.wrap_socket(wire, server_side=True) as secured:
            secured.recv(1000)
            secured.sendall(garbage)

    found = Registry()
    with serving(talk) as found.port:
        said = found.refused()
    assert said.startswith("localhost: no answer: ")
    assert said.isprintable()
    assert len(said) < 300


# --- through a proxy


def relay(one: socket.socket, other: socket.socket) -> None:
    """Bytes of one to the other, until there are no more."""
    try:
        while piece := one.recv(65536):
            other.sendall(piece)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_hears_names_and_nothing_else(registry: Registry, tls: ssl.SSLContext, scheme: str) -> None:
    heard: list[bytes] = []

    def talk(wire: socket.socket) -> None:
        near = tls.wrap_socket(wire, server_side=True) if scheme == "https" else wire
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += near.recv(1)
        heard.append(head)
        far = socket.create_connection(("127.0.0.1", registry.port))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=relay, args=(far, near))
        back.start()
        relay(near, far)
        back.join()
        near.close()
        far.close()

    with serving(talk) as port:
        assert registry.ask(LOGIN, f"{scheme}://localhost:{port}").remaining == 76
    assert (
        heard == [f"CONNECT localhost:{registry.port} HTTP/1.1\r\nHost: localhost:{registry.port}\r\n\r\n".encode()] * 3
    )


def test_a_proxy_that_refuses(registry: Registry) -> None:
    def talk(wire: socket.socket) -> None:
        wire.recv(1000)
        wire.sendall(b"HTTP/1.1 403 no\r\nContent-Length: 0\r\n\r\n")

    with serving(talk) as port, pytest.raises(Trouble, match=r"localhost: HTTP 403 to CONNECT .* \(upstream.proxy\)"):
        registry.ask(b"", f"http://localhost:{port}")
    assert registry.asked == []


def reached(registry: Registry, mirror: Mirror, cas: str = CA.certificate.decode()) -> str:
    """Why an upstream cannot be reached, "" where it can; it is asked nothing."""
    try:
        assert upstream.reach(HERE, mirror, cas)
    except Trouble as trouble:
        return str(trouble)
    finally:
        assert registry.asked == []
    return ""


def test_an_upstream_is_reached_without_being_asked(registry: Registry) -> None:
    assert reached(registry, registry.mirror()) == ""
    assert "its certificate is refused" in reached(registry, registry.mirror(), "")
    plain = replace(registry.mirror(), remote=f"http://localhost:{registry.port}")
    assert reached(registry, plain) == ""
    with serving(lambda wire: wire.close()) as port:
        assert "localhost: no answer" in reached(registry, replace(plain, remote=f"https://localhost:{port}"))
    gone = replace(registry.mirror(), remote=f"https://localhost:{port}")
    assert reached(registry, gone) == "localhost: no answer: Connection refused"
    assert "no answer" in reached(registry, replace(gone, remote="https://no-such-name.invalid"))


def test_an_upstream_is_reached_through_the_proxy(registry: Registry) -> None:
    heard = []

    def refuse(wire: socket.socket) -> None:
        heard.append(wire.recv(1000))
        wire.sendall(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\n\r\n")

    with serving(refuse) as port:
        proxy = f"http://localhost:{port}"
        assert "HTTP 502 to CONNECT" in reached(registry, registry.mirror(proxy))
        assert heard[0].startswith(f"CONNECT localhost:{registry.port} ".encode())
    plain = replace(registry.mirror(proxy), remote="http://lab.example")
    assert reached(registry, plain) == "lab.example: no answer: Connection refused", "of the proxy"


def test_a_pod_that_has_gone(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="network namespace not entered"):
        upstream.pull_limit(str(tmp_path / "gone"), registry.mirror(), b"", CA.certificate.decode())
