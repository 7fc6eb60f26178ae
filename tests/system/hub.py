"""Docker Hub's front: counts pulls by account or address, tells what is left in headers, and refuses beyond it.

Runs in the box, on the internet: hub.py ADDRESS CERTIFICATE KEY REGISTRY STATE-FILE.  REGISTRY is the host:port of one
that wants tokens, in plain HTTP.  The file is JSON, read for each request: `limit`, `window` (seconds), `spent` (by
others), `unlimited` (accounts), `lie` ("", "429", "silence", "nonsense").  Each request is a line of standard output.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

MANIFEST = re.compile(r"/v2/.+/manifests/[^/]+")
PIECE = 256 * 1024
PASSED = ("Content-Type", "Content-Length", "Docker-Content-Digest", "Docker-Distribution-Api-Version", "Location",
          "WWW-Authenticate", "ETag", "Content-Range", "Accept-Ranges")  # fmt: skip
LIMITED = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'


class Hub(BaseHTTPRequestHandler):
    """As Docker documents it: a GET of a manifest is a pull, a HEAD is none."""

    protocol_version = "HTTP/1.1"
    registry: str
    state: Path
    pulls: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        """As GET."""
        self.do_GET()

    def do_GET(self) -> None:
        """Count, and hand on."""
        now: dict[str, Any] = json.loads(self.state.read_text())
        account = self._account()
        who = account or self.client_address[0]
        if now["lie"] == "silence":
            self._say(who, "silence")
            time.sleep(3600)
        if now["lie"] == "429":  # the limit of requests, which has no headers
            self._send(429, {"Content-Length": "0"}, b"", who)
            return
        registry = http.client.HTTPConnection(self.registry, timeout=600)
        names = ("Accept", "Authorization", "Range")
        wanted = {name: ", ".join(self.headers.get_all(name, [])) for name in names if name in self.headers}
        registry.request(self.command, self.path, headers=wanted)
        answer = registry.getresponse()
        told = {name: value for name in PASSED if (value := answer.headers.get(name))}
        if MANIFEST.fullmatch(self.path) and answer.status == 200 and account not in now["unlimited"]:
            left = self._count(now["limit"] - now["spent"], who)
            told |= {"docker-ratelimit-source": who}
            told |= {"ratelimit-limit": f"{now['limit']};w={now['window']}"}
            told |= {
                "ratelimit-remaining": "plenty" if now["lie"] == "nonsense" else f"{max(left, 0)};w={now['window']}"
            }
            if left < 0:
                self._send(429, {**told, "Content-Length": str(len(LIMITED))}, LIMITED, who)
                return
        self._send(answer.status, told, answer, who)
        registry.close()

    def _count(self, allowed: int, who: str) -> int:
        """What is left, below 0 where this one is too many."""
        with self.lock:
            used_up = self.pulls[who] >= allowed
            if self.command == "GET" and not used_up:
                self.pulls[who] += 1
            return -1 if used_up else allowed - self.pulls[who]

    def _account(self) -> str:
        """The name in the token; the registry behind checks that it is genuine."""
        _, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if token.count(".") != 2:
            return ""
        claims = token.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"])

    def _send(self, status: int, headers: dict[str, str], body: Any, who: str) -> None:
        self._say(who, str(status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
            return
        while piece := body.read(PIECE):
            self.wfile.write(piece)

    def _say(self, who: str, status: str) -> None:
        print(self.command, self.path, who, status, flush=True)

    def log_message(self, *_: object) -> None:
        """Standard output has it."""


def main() -> None:
    """Serve until killed."""
    address, certificate, key, Hub.registry, state = sys.argv[1:]
    Hub.state = Path(state)
    server = ThreadingHTTPServer((address, 443), Hub)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
