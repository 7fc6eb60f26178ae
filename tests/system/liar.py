"""An upstream that misbehaves: TLS under a registry's name, one image, and a lie that can be changed while it runs.

Runs in the box, on the internet: liar.py ADDRESS CERTIFICATE KEY LIE-FILE.  The file's first word is the lie; each
request is a line of standard output: METHOD PATH.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = bytes(range(256)) * 4096  # 1 MiB
SPARE = {lie: lie.encode().ljust(8, b".") * 10_000 for lie in ("torn", "page", "429", "500")}  # more blobs, by what for
PAGE = b"<html><body>Please sign in to the guest network</body></html>"


def digest(content: bytes) -> str:
    """As registries name it."""
    return "sha256:" + sha256(content).hexdigest()


CONFIG = b"{}"
IMAGE = json.dumps({
    "schemaVersion": 2, "mediaType": MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(CONFIG), "size": len(CONFIG)},
    "layers": [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(LAYER), "size": len(LAYER)}
    ],
}).encode()  # fmt: skip
OTHER = IMAGE.replace(b'"schemaVersion": 2', b'"schemaVersion": 2 ')
LOST = "sha256:" + "1" * 64
HOLLOW = IMAGE.replace(digest(LAYER).encode(), LOST.encode())  # its layer is nowhere
OLDEST = json.dumps({  # of Docker before 1.10
    "schemaVersion": 1, "name": "any/app", "tag": "1", "architecture": "amd64",
    "fsLayers": [{"blobSum": digest(LAYER)}], "history": [{"v1Compatibility": "{}"}], "signatures": [],
}).encode()  # fmt: skip
PRETTY = "application/vnd.docker.distribution.manifest.v1+prettyjws"
CONTENT = {digest(part): part for part in (CONFIG, LAYER, IMAGE, OTHER, HOLLOW, OLDEST, *SPARE.values())}


class Liar(BaseHTTPRequestHandler):
    """A registry with one image in every repository, under every tag."""

    protocol_version = "HTTP/1.1"
    lie_file: Path

    def do_HEAD(self) -> None:
        """As GET."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer, or lie."""
        lie = self.lie_file.read_text().split()[0]
        print(self.command, self.path, flush=True)
        if lie == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif lie == "silence":
            time.sleep(3600)
        elif lie.isdecimal():
            body = b'{"errors":[{"code":"TOOMANYREQUESTS"}]}' if lie == "429" else PAGE
            self._send(int(lie), "text/html", body)
        elif self.path == "/v2/":
            self._send(200, "application/json", b"{}")
        elif lie == "page":
            self._send(200, "text/html", PAGE)
        else:
            self._content(lie)

    def _content(self, lie: str) -> None:
        kind, _, name = self.path.rpartition("/")
        tagged = {"moved": OTHER, "hollow": HOLLOW, "schema1": OLDEST}.get(lie, IMAGE)
        content = CONTENT.get(name) if name.startswith("sha256:") else tagged
        if lie == "elsewhere" and kind.endswith("/blobs"):
            self._elsewhere(name)
            return
        if content is None:
            self._send(404, "application/json", b"{}")
            return
        media = MANIFEST if kind.endswith("/manifests") else "application/octet-stream"
        if content == OLDEST:
            media = PRETTY
        if lie == "moved":  # and slow
            time.sleep(1.5)
        if lie == "wrong" and self.command == "GET":
            self._send(200, media, OTHER if content == IMAGE else content[::-1], digest(content))
        else:
            self._send(200, media, content, digest(content), len(content) // 2 if lie == "torn" else None)

    def _elsewhere(self, name: str) -> None:
        """As large registries do: blobs lie with another host."""
        self.send_response(307)
        self.send_header("Location", f"https://gcr.io/v2/elsewhere/app/blobs/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: int, media: str, content: bytes, told: str = "", end: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if told:
            self.send_header("Docker-Content-Digest", told)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:end])
        self.close_connection = end is not None

    def log_message(self, *_: object) -> None:
        """Standard output has it."""


def main() -> None:
    """Serve until killed."""
    address, certificate, key, lie = sys.argv[1:]
    Liar.lie_file = Path(lie)
    server = ThreadingHTTPServer((address, 443), Liar)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
