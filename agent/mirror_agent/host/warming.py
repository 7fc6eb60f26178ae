"""Pulling lists of images into the mirrors, through the mirrors themselves, so that later pulls cost nothing upstream.

Everything comes over TLS by the mirror's name, as a client has it, each byte checked by digest; what is in the store
is not asked for again, so an interrupted run goes on where it was.  At the end every image is looked up in the store:
only what is there counts.
"""

from __future__ import annotations

import itertools
import json
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mirror_agent.host import pull, store
from mirror_agent.model import ImageName, Mirror, Trouble
from mirror_agent.references import BY_SHA256, Wanted, platforms, resolve

TRIES = 3
PAUSES_S = (1.0, 5.0)
SILENCE_S = 3700.0  # the edge lets a client wait for an hour while another's download of the same blob goes on
PATIENCE_S = 30 * 86400.0  # a blob may take hours
COMMIT_S = 10.0  # from the last byte to a blob's place in the store
RELEASE_LABEL = "io.openshift.release"
RELEASE_FILE = "release-manifests/image-references"
RELEASE_LIMIT = 16 * 2**20  # bytes of that file; 190 images take 60 kB
SCAN_LIMIT = 4 * 2**30  # bytes of a layer that are looked through for it


@dataclass(frozen=True, slots=True)
class Source:
    """Where a mirror is, for those who want to pull from it and see its store."""

    mirror: Mirror
    namespace: str
    store: Path
    trust: str  # PEM of the CAs that its certificate may be by


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.  Bytes are those of blobs, as far as they are known yet."""

    images: int = 0
    done: int = 0  # images, with success or not
    total: int = 0
    there: int = 0  # in the store already
    fetched: int = 0


@dataclass(slots=True)
class _Image:
    """An image on its way: the manifest that was asked for, and what belongs to it."""

    wanted: Wanted
    ready: bool = False  # all its manifests are there
    root: ImageName | None = None
    manifests: set[ImageName] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    troubles: list[Trouble] = field(default_factory=list)


type Pin = Callable[[str, ImageName], None]  # keeps an image of a mirror
type _Blob = tuple[str, str]  # mirror, digest
type _Task = Callable[[], list[_Task]]  # what is to be done then
type _Doing = Future[list[_Task]]


class Warming:
    """One run.  `progress` may be asked for by another thread at any time."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        chosen: Collection[str],
        jobs: int,
        pins: AbstractContextManager[Pin] | None = None,
    ) -> None:
        self._sources, self._chosen = sources, chosen
        self._pins = pins or nullcontext(lambda _mirror, _image: None)
        self._pin: Pin
        self._jobs = jobs
        self._local = threading.local()
        self._lock = threading.Lock()
        self._images: dict[tuple[str, str, str], _Image] = {}
        self._blobs: dict[_Blob, list[_Image]] = {}  # every blob once, with the images that need it
        self._done: set[_Blob] = set()
        self._total = self._there = self._fetched = 0
        self._stopped = threading.Event()
        self._clients: list[pull.Client] = []

    def progress(self) -> Progress:
        """How far it is."""
        with self._lock:
            done = sum(1 for image in self._images.values() if image.troubles or self._complete(image))
            return Progress(len(self._images), done, self._total, self._there, self._fetched)

    def _complete(self, image: _Image) -> bool:
        return image.ready and all((image.wanted.mirror, digest) in self._done for digest in image.blobs)

    def run(self, wanted: Iterable[Wanted]) -> dict[str, Trouble | None]:
        """Pull these images; of each, by the text it was written as, what went wrong, None for nothing.

        Release images of OpenShift bring the images of their payload along.
        """
        done: SimpleQueue[_Doing] = SimpleQueue()
        todo: set[_Doing] = set()

        def begin(tasks: Iterable[_Task]) -> None:
            for task in tasks:
                todo.add(doing := pool.submit(task))
                doing.add_done_callback(done.put)

        with self._pins as self._pin, ThreadPoolExecutor(self._jobs, "warm") as pool:
            try:
                begin(self._new(wanted))
                while todo:
                    todo.remove(doing := done.get())
                    begin(doing.result())
                    if not todo:
                        begin(self._new(self._payloads()))
            except BaseException:
                self._stopped.set()  # Ctrl-C: what is under way ends, and nothing is begun any more
                for doing in todo:
                    doing.cancel()
                for client in self._clients:
                    client.abort()
                raise
        return {image.wanted.text: self._verdict(image) for image in self._images.values()}

    def _new(self, wanted: Iterable[Wanted]) -> Iterator[_Task]:
        for each in wanted:
            key = (each.mirror, each.repository, each.reference)
            if key not in self._images:
                image = _Image(each)
                with self._lock:
                    self._images[key] = image
                yield partial(self._manifests, image)

    # --- in the workers ---

    def _manifests(self, image: _Image) -> list[_Task]:
        """Fetch all manifests of an image; what is to be done then: its blobs."""
        wanted = image.wanted
        try:
            digest, document = self._manifest(wanted, wanted.reference)
            image.root = (wanted.repository, digest)
            self._pin(wanted.mirror, image.root)  # before anything more: eviction must not take it meanwhile
            image.manifests.add(image.root)
            parts = self._parts(image, document)
            sizes = dict(blob for part in parts for blob in blobs(wanted.text, part))
        except Trouble as trouble:
            image.troubles.append(trouble)
            return []
        with self._lock:
            image.blobs |= sizes.keys()
            image.ready = True
        return [self._task(image, digest, size) for digest, size in sizes.items() if self._claim(image, digest, size)]

    def _parts(self, image: _Image, document: dict[str, Any]) -> list[dict[str, Any]]:
        """The manifest itself or, of an index, those for the chosen platforms.  An index may name an index."""
        parts, left = [], [document]
        while left:
            document = left.pop()
            if "manifests" not in document:
                parts.append(document)
                continue
            for child in platforms(document["manifests"], self._chosen):
                name = (image.wanted.repository, child)
                if name not in image.manifests:
                    image.manifests.add(name)
                    left.append(self._manifest(image.wanted, child)[1])
        if not parts:
            chosen = ", ".join(sorted(self._chosen))
            raise Trouble(image.wanted.text, f"has no image for {chosen}", "choose others with --platform")
        return parts

    def _claim(self, image: _Image, digest: str, size: int) -> bool:
        """Is it for this image to fetch the blob?  Not when it is there, nor when another does."""
        blob = (image.wanted.mirror, digest)
        with self._lock:
            if blob in self._blobs:
                self._blobs[blob].append(image)
                return False
            self._blobs[blob] = [image]
            self._total += size
            if not store.has(self._sources[image.wanted.mirror].store, image.wanted.repository, digest):
                return True
            self._there += size
            self._done.add(blob)
            return False

    def _task(self, image: _Image, digest: str, size: int) -> _Task:
        blob, counted = (image.wanted.mirror, digest), 0

        def fetch() -> list[_Task]:
            def count(number: int) -> None:
                nonlocal counted
                if self._stopped.is_set():
                    raise Trouble(image.wanted.text, "was interrupted", "the same command goes on where it was")
                counted += number
                with self._lock:
                    self._fetched += number

            def attempt(client: pull.Client) -> None:
                nonlocal counted
                with self._lock:
                    self._fetched -= counted
                counted = 0
                client.blob(image.wanted.repository, digest, size, count)

            try:
                self._try(image.wanted, attempt)
            except Trouble as trouble:
                with self._lock:
                    for each in self._blobs[blob]:
                        each.troubles.append(trouble)
            else:
                with self._lock:
                    self._done.add(blob)
            return []

        return fetch

    def _manifest(self, wanted: Wanted, reference: str) -> tuple[str, dict[str, Any]]:
        if reference.startswith("sha512:"):
            raise Trouble(wanted.text, f"names the manifest {reference[:19]}… by sha512", BY_SHA256)
        return self._try(wanted, lambda client: client.manifest(wanted.repository, reference))

    def _try[Result](self, wanted: Wanted, ask: Callable[[pull.Client], Result]) -> Result:
        """Ask a mirror, again when it fails and may not fail again.  Raises Trouble."""
        for pause in (*PAUSES_S, None):
            try:
                return ask(self._client(wanted.mirror))
            except pull.NotThere:
                raise
            except Trouble:
                if pause is None or self._stopped.wait(pause):
                    raise
        raise AssertionError("unreachable")

    def _client(self, mirror: str) -> pull.Client:
        """The connection of this worker to a mirror."""
        clients: dict[str, pull.Client] = self._local.__dict__.setdefault("clients", {})
        if mirror not in clients:
            source = self._sources[mirror]
            clients[mirror] = pull.Client(
                source.mirror.host,
                lambda: pull.dial_from(source.namespace, source.mirror.address, SILENCE_S),
                source.trust,
                PATIENCE_S,
            )
            self._clients.append(clients[mirror])
        return clients[mirror]

    # --- what came of it ---

    def _verdict(self, image: _Image) -> Trouble | None:
        if image.troubles:
            return image.troubles[0]
        root = self._sources[image.wanted.mirror].store
        deadline = time.monotonic() + COMMIT_S
        while missing := self._missing(image, root):
            if time.monotonic() > deadline:
                hint = "is the disk full, or the budget too small?  mirror-agent status"
                return Trouble(image.wanted.text, f"came, but {missing} was not kept", hint)
            time.sleep(0.1)
        return None

    def _missing(self, image: _Image, root: Path) -> str:
        gone = [digest for repository, digest in image.manifests if not store.has_image(root, (repository, digest))]
        gone += [digest for digest in image.blobs if not store.has(root, image.wanted.repository, digest)]
        return gone[0] if gone else ""

    def _payloads(self) -> Iterator[Wanted]:
        """What the release images among those that came name."""
        mirrors = [source.mirror for source in self._sources.values()]
        for image in list(self._images.values()):
            if image.troubles or image.root is None:
                continue
            root = self._sources[image.wanted.mirror].store
            try:
                for reference in release_payload(root, image.manifests):
                    yield resolve(reference, mirrors)
            except Trouble as trouble:
                image.troubles.append(trouble)


def blobs(where: str, manifest: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Digest and size of all that a registry serves of an image (foreign layers lie elsewhere).

    Raises Trouble for one that the edge would not serve.
    """
    layers = manifest.get("layers")
    for entry in (manifest.get("config"), *(layers if isinstance(layers, list) else ())):
        if isinstance(entry, dict) and not entry.get("urls"):
            digest, size = entry.get("digest"), entry.get("size")
            if not isinstance(size, int) or not pull.is_digest(digest):
                hint = "the digest must be sha256 or sha512, the size a number"
                raise Trouble(where, f"has a layer that no mirror serves: {str(digest)[:80]!r}", hint)
            yield str(digest), size


def release_payload(root: Path, manifests: Iterable[ImageName]) -> Iterator[str]:
    """The images that an OpenShift release image names; none for any other image.

    `root` is the store that all of it is in.  Raises Trouble for a release whose list cannot be found or read.
    """
    for repository, digest in sorted(manifests):
        manifest = _json(root, repository, digest)
        config = manifest.get("config")
        named = _json(root, repository, str(config.get("digest"))) if isinstance(config, dict) else {}
        settings = named.get("config")
        labels = settings.get("Labels") if isinstance(settings, dict) else None
        if not isinstance(labels, dict) or RELEASE_LABEL not in labels:
            continue
        layers = [layer for layer, _ in blobs(digest, manifest)][1:]
        for layer in reversed(layers):  # it is in the last one, nearly always
            if text := _member(root, repository, layer):
                yield from _image_references(digest, text)
                break
        else:
            raise Trouble(digest, f"is an OpenShift release without {RELEASE_FILE}", "is the image complete?")


def _image_references(digest: str, text: bytes) -> Iterator[str]:
    """The images of an ImageStream: spec.tags[].from, of kind DockerImage."""
    try:
        tags = json.loads(text)["spec"]["tags"]
        yield from sorted({str(tag["from"]["name"]) for tag in tags if tag["from"]["kind"] == "DockerImage"})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "oc adm release info tells whether the image is one"
        raise Trouble(digest, f"its {RELEASE_FILE} cannot be read: {error!r}", hint) from error


def _json(root: Path, repository: str, digest: str) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError), store.read_blob(root, repository, digest) as file:
        document = json.loads(file.read(store.MANIFEST_LIMIT))
        return document if isinstance(document, dict) else {}
    return {}


def _member(root: Path, repository: str, layer: str) -> bytes:
    """RELEASE_FILE of a layer, "" when it is not there; the layer is read as a stream and to a limit."""
    with (
        suppress(OSError, tarfile.TarError, EOFError, zlib.error),
        store.read_blob(root, repository, layer) as blob,
        tarfile.open(fileobj=blob, mode="r|*") as archive,
    ):
        for member in itertools.takewhile(lambda each: each.offset < SCAN_LIMIT, archive):
            if member.isreg() and member.name.removeprefix("./") == RELEASE_FILE and member.size <= RELEASE_LIMIT:
                found = archive.extractfile(member)
                return found.read() if found else b""
    return b""
