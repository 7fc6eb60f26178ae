"""A client that is rough on a mirror: it opens what it can, and goes on with nothing of it.

Runs in the box: rough.py WAY ADDRESS HOST PATH COUNT.  A line of standard output says when it has done its worst; it
holds on to what it has until it is killed.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from contextlib import suppress
from threading import Thread

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS = 1, 3, 4
STREAMS = 128  # that nginx allows at a time on one connection
_CLIENT_HELLO = b"\x16"


class Http2:
    """As much of RFC 9113 as it takes to ask, and to be of no use."""

    def __init__(self, address: str, host: str, path: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        self.tls = context.wrap_socket(socket.create_connection((address, 443)), server_hostname=host)
        # GET, https (both of the static table), then path and authority as they are (RFC 7541)
        self.request = b"\x82\x87" + b"".join(
            bytes([name, len(value)]) + value.encode() for name, value in ((0x04, path), (0x01, host))
        )
        no_window = b"\x00\x04" + (0).to_bytes(4, "big")  # of streams: headers come, and no data
        self.tls.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, no_window))

    def ask(self, number: int, *, leave: bool = False) -> None:
        """Open a stream, the n-th of this connection; reset it at once."""
        stream = 2 * number + 1
        asked = _frame(_HEADERS, 0x5, stream, self.request)  # end of stream, end of headers
        self.tls.sendall(asked + (_frame(_RST_STREAM, 0, stream, (8).to_bytes(4, "big")) if leave else b""))

    def answers(self, count: int) -> list[bool]:
        """The heads of so many answers: is it 200?"""
        good: list[bool] = []
        while len(good) < count:
            kind, payload = self._read()
            if kind == _HEADERS:
                good.append(payload.removeprefix(b"\x20").startswith(b"\x88"))  # 0x20: its table has no room
        return good

    def drain(self) -> None:
        """Take what comes, until the end."""
        with suppress(OSError):
            while self.tls.recv(65536):
                pass

    def _read(self) -> tuple[int, bytes]:
        head = self._exactly(9)
        return head[3], self._exactly(int.from_bytes(head[:3], "big"))

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self.tls.recv(size - len(content))
            if not piece:
                raise ConnectionError("closed")
            content += piece
        return content


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def connections(address: str, count: int, word: bytes) -> list[socket.socket]:
    """As many as there are to be had."""
    held = []
    for _ in range(count):
        with suppress(OSError):
            connection = socket.create_connection((address, 443), timeout=20)
            connection.send(word)
            held.append(connection)
    print("holds", len(held), flush=True)
    return held


def still(address: str, host: str, path: str, count: int) -> list[Http2]:
    """Requests whose answers are never read: so many connections, full of streams."""
    held, good = [Http2(address, host, path) for _ in range(count)], 0
    for connection in held:
        for number in range(STREAMS):
            connection.ask(number)
        good += sum(connection.answers(STREAMS))
    print("holds", good, flush=True)
    return held


def resets(address: str, host: str, path: str, count: int) -> None:
    """Requests that are left as soon as they are made, on one connection after another where one is ended."""
    done = 0
    while done < count:
        connection = Http2(address, host, path)
        Thread(target=connection.drain, daemon=True).start()
        with suppress(OSError):
            for number in range(count - done):
                connection.ask(number, leave=True)
                done += 1
    print("left", done, flush=True)


def main() -> None:
    """Do one of these."""
    way, address, host, path, count = sys.argv[1:]
    held: list[socket.socket] | list[Http2] = []
    if way in ("idle", "half"):
        held = connections(address, int(count), _CLIENT_HELLO if way == "half" else b"")
    elif way == "still":
        held = still(address, host, path, int(count))
    else:
        resets(address, host, path, int(count))
    time.sleep(3600)
    del held


if __name__ == "__main__":
    main()
