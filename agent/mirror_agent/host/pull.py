"""A real pull through a mirror, as a client does it: its name, its TLS chain, its address, bytes checked by digest.

This is the proof without which a mirror is not published.  It runs inside the pod's network namespace, because a
host does not reach its own macvlan children.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Any

from mirror_agent.host import files
from mirror_agent.host.namespace import TLS_PORT, in_namespace
from mirror_agent.model import Mirror, Trouble

ANSWER_S = 35.0  # between two reads; an upstream may be slow to begin, the edge itself gives up after 30 s
PULL_S = 100.0  # for all three requests; less than the agent's own watchdog
LARGEST_ROOTS = 8 * 2**20  # bytes
LARGEST_MANIFEST = 4 * 2**20  # bytes; what distribution and containerd accept
LARGEST_BLOB = 64 * 2**20  # bytes of the smallest blob; nearly always a configuration of a few kB
PIECE = 256 * 1024  # bytes of one read
FRESHEST = 200  # manifests of a store that are looked at for one to prove with

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_REPOSITORY = r"[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*"
_DIGEST = r"sha256:[0-9a-f]{64}"
_IMAGE = re.compile(rf"({_REPOSITORY})(?::([A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})|@({_DIGEST}))")


def parse_image(image: str) -> tuple[str, str]:
    """Repository and tag or digest of "repository:tag" or "repository@sha256:…".  Raises Trouble for anything else."""
    found = _IMAGE.fullmatch(image)
    if not found:
        raise Trouble(image, 'is neither "repository:tag" nor "repository@sha256:…"', "without the registry's name")
    return found[1], found[2] or found[3]


def is_digest(value: object) -> bool:
    """Is it the digest of a blob that the edge serves?"""
    return isinstance(value, str) and re.fullmatch(rf"{_DIGEST}|sha512:[0-9a-f]{{128}}", value) is not None


def pull(namespace: str, mirror: Mirror, ca_pem: str, image: str, public: bool = False) -> str:
    """Pull a manifest and a blob of `image` through the mirror; the image as "repository@sha256:…".

    By tag or digest, then (of an index) one platform's manifest, then the smallest blob, each checked against its
    digest.  Raises Trouble with the step that failed, the HTTP status and the registry's own words.
    """
    repository, reference = parse_image(image)

    def run() -> str:
        client = Client(mirror.host, lambda: _dial(mirror.address), ca_pem + (public_roots() if public else ""))
        try:
            return f"{repository}@{_pull(client, repository, reference)}"
        finally:
            client.close()

    return in_namespace(namespace, run, PULL_S + ANSWER_S)


def _pull(client: Client, repository: str, reference: str) -> str:
    digest, document = client.manifest(repository, reference)
    if "manifests" in document:
        chosen = choose(document["manifests"])
        if chosen is None:
            raise Trouble(f"{repository}:{reference}", "is an index without images", "name another image: probe")
        _, document = client.manifest(repository, chosen)
    blob = smallest(document)
    if blob is None:
        raise Trouble(f"{repository}:{reference}", "has no blob to pull", "use a probe image with layers")
    if blob[1] > LARGEST_BLOB:
        raise Trouble(f"{repository}@{blob[0]}", f"{blob[1]} bytes are too many for a probe", "use a smaller image")
    client.blob(repository, *blob)
    return digest


def choose(manifests: Any) -> str | None:
    """The digest of one platform's image in an index: linux/amd64, else the first that is an image, else None."""
    images = [
        entry
        for entry in manifests
        if isinstance(entry, dict) and re.fullmatch(_DIGEST, str(entry.get("digest"))) and _platform(entry) != "unknown"
    ]
    wanted = [entry for entry in images if _platform(entry) == "linux/amd64"]
    return next((str(entry["digest"]) for entry in wanted + images), None)


def _platform(entry: Mapping[str, Any]) -> str:
    """Operating system/architecture; "unknown" for what is no image (buildx puts attestations into indexes so)."""
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return ""
    system, machine = platform.get("os"), platform.get("architecture")
    return "unknown" if system == "unknown" else f"{system}/{machine}"


def smallest(manifest: Mapping[str, Any]) -> tuple[str, int] | None:
    """Digest and size of the smallest blob of an image that a registry serves (foreign layers lie elsewhere)."""
    layers = manifest.get("layers")
    entries = [manifest.get("config"), *(layers if isinstance(layers, list) else ())]
    blobs = [
        (entry["size"], str(entry["digest"]))
        for entry in entries
        if isinstance(entry, dict)
        and not entry.get("urls")
        and isinstance(entry.get("size"), int)
        and re.fullmatch(_DIGEST, str(entry.get("digest")))
    ]
    return min(((digest, size) for size, digest in sorted(blobs)), key=lambda blob: blob[1], default=None)


class NotThere(Trouble):
    """The mirror says 404: asking again is in vain."""


def public_roots() -> str:
    """PEM of what this host trusts, for a mirror whose certificate is by a CA that readers trust already."""
    if (file := ssl.get_default_verify_paths().cafile) is None:
        return ""
    # Debian's is a link; names of CAs in comments are in any script, and ssl wants ASCII
    found = files.read(PurePosixPath(os.path.realpath(file)), LARGEST_ROOTS) or b""
    return found.decode("ascii", "ignore")


class Client:
    """The two requests of a pull, over one connection whose other end must prove its name."""

    def __init__(self, host: str, dial: Callable[[], socket.socket], ca_pem: str, patience_s: float = PULL_S) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=ca_pem)
        self._host = host
        self._connection = _Connection(host, dial, context)
        self._deadline = time.monotonic() + patience_s

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def abort(self) -> None:
        """End what another thread is waiting for."""
        with suppress(OSError):
            if self._connection.sock:
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def manifest(self, repository: str, reference: str) -> tuple[str, dict[str, Any]]:
        """Digest and content of a manifest or index, by tag or by digest."""
        path = f"/v2/{repository}/manifests/{reference}"
        headers, body = self._get(path, LARGEST_MANIFEST)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        wanted = reference if ":" in reference else headers.get("Docker-Content-Digest", digest)
        self._compare(path, wanted, digest)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Trouble(self._host + path, "the answer is not JSON", "is its upstream a registry?") from error
        if not isinstance(document, dict) or document.get("schemaVersion") != 2:
            raise Trouble(self._host + path, "the answer is no manifest of schema 2", "very old image? try another")
        return digest, document

    def blob(self, repository: str, digest: str, size: int, told: Callable[[int], None] = lambda _: None) -> None:
        """Fetch a blob, check it, throw it away; `told` is called with the bytes of each piece."""
        path = f"/v2/{repository}/blobs/{digest}"
        algorithm = digest.partition(":")[0]
        hashed = hashlib.new(algorithm)

        def take(piece: bytes) -> None:
            hashed.update(piece)
            told(len(piece))

        self._ask(path, size, take)
        self._compare(path, digest, f"{algorithm}:{hashed.hexdigest()}")

    def _compare(self, path: str, wanted: str, digest: str) -> None:
        if digest != wanted:
            raise Trouble(self._host + path, f"the bytes have the digest {digest}", "the cache holds a corrupt copy")

    def _get(self, path: str, limit: int) -> tuple[http.client.HTTPMessage, bytes]:
        body = bytearray()
        return self._ask(path, limit, body.extend), bytes(body)

    def _ask(self, path: str, limit: int, take: Callable[[bytes], None]) -> http.client.HTTPMessage:
        """Headers of the answer, its body to `take`.  What does not end well leaves no connection to go on with."""
        try:
            return self._answer(path, limit, take)
        except Trouble:
            self._connection.close()
            raise

    def _answer(self, path: str, limit: int, take: Callable[[bytes], None]) -> http.client.HTTPMessage:
        where = self._host + path
        try:
            self._connection.request("GET", path, headers={"Accept": ", ".join((*INDEXES, *MANIFESTS))})
            response = self._connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                body = self._error(response)
                kind = NotThere if response.status == http.HTTPStatus.NOT_FOUND else Trouble
                raise kind(where, f"HTTP {response.status} {oci_errors(body)}".rstrip())
            size = self._body(response, limit, take)
        except ssl.SSLCertVerificationError as error:
            hint = "mirror-agent status shows the certificate, and whether the edge shows it"
            raise Trouble(where, f"its certificate is refused: {error.verify_message}", hint) from error
        except TimeoutError as error:
            raise Trouble(where, "no answer within the time limit", "does the upstream hang?") from error
        except (OSError, http.client.HTTPException) as error:
            hint = "mirror-agent status shows whether it runs, mirror-agent logs NAME what it says"
            raise Trouble(where, f"no answer: {error or type(error).__name__}", hint) from error
        if size > limit:
            raise Trouble(where, f"more than the {limit} bytes that it may have", "is the upstream damaged?")
        return response.headers

    def _body(self, response: http.client.HTTPResponse, limit: int, take: Callable[[bytes], None]) -> int:
        """At most one byte more than `limit`.  Raises TimeoutError, also when bytes only trickle."""
        size = 0
        while size <= limit and (piece := response.read1(min(PIECE, limit + 1 - size))):
            take(piece)
            size += len(piece)
            if time.monotonic() > self._deadline:
                raise TimeoutError
        if response.length and size <= limit:  # read1() does not miss what it was promised
            raise http.client.IncompleteRead(b"", response.length)
        return size

    def _error(self, response: http.client.HTTPResponse) -> bytes:
        body = bytearray()
        self._body(response, LARGEST_MANIFEST, body.extend)
        return bytes(body)


def _dial(address: IPv4Address, silence_s: float = ANSWER_S) -> socket.socket:
    """A connection from the network namespace that the calling thread is in."""
    return socket.create_connection((str(address), TLS_PORT), silence_s)


def dial_from(namespace: str, address: IPv4Address, silence_s: float) -> socket.socket:
    """A connection from another network namespace; the socket stays there, whichever thread uses it.

    `silence_s` is how long each read may wait.  Raises Trouble and OSError.
    """
    wire = in_namespace(namespace, lambda: _dial(address), 2 * ANSWER_S)
    wire.settimeout(silence_s)
    return wire


class _Connection(http.client.HTTPSConnection):
    """HTTPS to an address instead of what the host's name resolves to."""

    def __init__(self, host: str, dial: Callable[[], socket.socket], context: ssl.SSLContext) -> None:
        super().__init__(host, timeout=ANSWER_S, context=context)
        self._dial = dial
        self._tls = context

    def connect(self) -> None:
        wire = self._dial()
        try:
            self.sock = self._tls.wrap_socket(wire, server_hostname=self.host)
        except OSError:
            wire.close()
            raise


def oci_errors(body: bytes) -> str:
    """What an OCI error body says, "CODE: message; …", "" when it is none; at most a line of plain characters."""
    try:
        errors = json.loads(body)["errors"]
        said = "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors)
    except (ValueError, KeyError, TypeError):
        return ""
    return "".join(character if character.isprintable() else " " for character in said)[:300]


# --- what clients have pulled --------------------------------------------------------------------------------


def find_cached(store: Path) -> str | None:
    """An image ("repository@sha256:…") that a client has pulled through, so that pull() needs no upstream for it.

    `store` is the folder that the registry has as /var/lib/registry.  None when there is none: nothing was pulled
    yet.  The store belongs to the container: its names and contents are checked, links are not followed.
    """
    root = store / "docker/registry/v2"
    for count, (repository, digest) in enumerate(_revisions(root / "repositories")):
        if count >= FRESHEST:
            break
        blob = smallest(_json(_data(root, digest)))
        if blob is not None and _data(root, blob[0]).is_file():
            return f"{repository}@{digest}"
    return None


def _revisions(repositories: Path) -> Iterator[tuple[str, str]]:
    for folder, names, _ in repositories.walk():
        is_repository = "_manifests" in names
        names[:] = sorted(name for name in names if not name.startswith("_"))  # _layers and _uploads are long
        repository = str(folder.relative_to(repositories))
        if not is_repository or not re.fullmatch(_REPOSITORY, repository):
            continue
        for link in sorted(folder.glob("_manifests/revisions/sha256/*/link")):
            digest = f"sha256:{link.parent.name}"
            if re.fullmatch(_DIGEST, digest):
                yield repository, digest


def _data(root: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return root / "blobs" / "sha256" / name[:2] / name / "data"


def _json(path: Path) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_MANIFEST:
                return {}
            document = json.loads(file.read(LARGEST_MANIFEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
