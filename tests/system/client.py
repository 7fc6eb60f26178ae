"""A host with mirrors, a client of them on the node, and what tests do to the line to the upstreams."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import by_hand
from box import Box
from by_hand import Handmade

# as containers/image and containerd ask
ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
MINUTE = 60.0  # seconds
TURNS = 3
_BREAKER = 21  # seconds: fail_timeout of quadlets/nginx.conf, and one more
_HOLE = """
table ip hole {
  chain forward { type filter hook forward priority 0; oifname wan drop; iifname wan drop; }
  chain input { type filter hook input priority 0; iifname wan drop; }
}
"""


@contextmanager
def mirrored(*mirrors: Handmade) -> Iterator[Box]:
    """A pristine host on which these mirrors run, without an agent, and a node that can pull only through them."""
    with Box().lent() as box:
        box.up(bare=True)
        by_hand.pull_images(box)
        by_hand.render(box, mirrors)
        for mirror in mirrors:
            by_hand.certify(box, mirror, 1)
        by_hand.start(box, mirrors)
        by_hand.publish(box, mirrors)
        yield box


@dataclass(frozen=True)
class Answer:
    status: int
    seconds: float
    size: int
    headers: dict[str, str]
    body: str

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["errors"][0]["code"])


def until(condition: Callable[[], object], what: str, seconds: float = MINUTE) -> None:
    """Wait until it is true; the assertion says what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


class TooSlow(AssertionError):
    """An answer took longer than it may."""


def soon(answer: Answer, seconds: float) -> None:
    """What came, came in time.  Raises TooSlow."""
    if answer.seconds >= seconds:
        raise TooSlow(f"{answer.seconds:.3f} s, and {seconds} s are promised")


def patiently(scenario: Callable[[int], None]) -> None:
    """A promise with a time in it, kept in one of three turns: a machine with other things to do stands still at times.

    What is wrong for another reason fails at once.  A mirror that waits too long does so in each turn: between them
    passes what the edge remembers of an upstream that was late (20 s).
    """
    for turn in range(TURNS):
        try:
            scenario(turn)
        except TooSlow as slow:
            print(f"\nturn {turn}: {slow}")
            if turn == TURNS - 1:
                raise
            time.sleep(_BREAKER)
        else:
            break


def ask(box: Box, mirror: Handmade, path: str, *options: str, patience: int = 40) -> Answer:
    """One request from the node, by name, with TLS verified against the mirror's CA."""
    # not %{json}: while DNS does not answer, curl needs four seconds to write it
    report = "\\n%{response_code} %{time_total} %{size_download}\\n%{header_json}"
    trust = f"/etc/containers/certs.d/{mirror.host}/ca.crt"
    argv = ["curl", "-sS", "-m", str(patience), "--cacert", trust, "-w", report, *options]
    said = box.node(*argv, f"https://{mirror.host}{path}").stdout
    told, _, headers = said.rpartition("\n{")
    body, _, facts = told.rpartition("\n")
    status, seconds, size = facts.split()
    fields = json.loads("{" + headers)
    first = {name: values[0] for name, values in fields.items()}
    return Answer(int(status), float(seconds), int(size), first, body)


def manifest(box: Box, mirror: Handmade, repository: str, reference: str) -> Answer:
    return ask(box, mirror, f"/v2/{repository}/manifests/{reference}", "-H", f"Accept: {ACCEPT}")


def blob_sum(box: Box, mirror: Handmade, repository: str, digest: str, *options: str) -> str:
    """The SHA-256 of the bytes that a mirror serves."""
    trust = f"/etc/containers/certs.d/{mirror.host}/ca.crt"
    url = f"https://{mirror.host}/v2/{repository}/blobs/{digest}"
    script = 'set -o pipefail; curl -sS --fail --cacert "$@" | sha256sum'
    return box.node("bash", "-c", script, "sum", trust, *options, url).stdout.split()[0]


def log(box: Box, mirror: Handmade, text: str) -> list[dict[str, Any]]:
    """The edge's lines of requests with this in their path, as far as podman has handed them on."""
    said = box.journal("-b", "-o", "cat", f"CONTAINER_NAME=mirror-{mirror.name}-edge")
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [line for line in lines if text in line["uri"]]


def late(box: Box, mirror: Handmade, repository: str, requests: int) -> bool:
    """Was the upstream late for one of these requests, by the edge's log?  It waits for 0.8 s, then not for 20 s."""

    def lines() -> list[dict[str, Any]]:
        return log(box, mirror, f"/v2/{repository}/")

    until(lambda: len(lines()) >= requests, "the edge's log")
    return any(line["up_status"][:3] in ("504", "502") for line in lines())


def layers(image: dict[str, Any]) -> list[dict[str, Any]]:
    """Descriptors of all that a client fetches as blobs."""
    part = image["platforms"]["linux/amd64"] if "platforms" in image else image
    return [part["config"], *part["layers"]]


def weight(image: dict[str, Any]) -> int:
    return sum(int(blob["size"]) for blob in layers(image))


def cold_pull(box: Box, reference: str, folder: str) -> None:
    """A pull by a client that has nothing yet."""
    box.node("skopeo", "copy", "--quiet", f"docker://{reference}", f"dir:/tmp/{folder}", timeout=300)
    box.node("rm", "-rf", f"/tmp/{folder}")


@contextmanager
def throttled(box: Box, rate: str) -> Iterator[None]:
    """Make the internet slow, so that downloads really overlap."""
    box.inet("tc", "qdisc", "add", "dev", "wan", "root", "tbf", "rate", rate, "burst", "128k", "latency", "200ms")
    try:
        yield
    finally:
        box.inet("tc", "qdisc", "del", "dev", "wan", "root")


def black_hole(box: Box) -> None:
    """Everything to and from the internet vanishes without an answer: connections that were open, too."""
    box.gw("nft", "-f", "-", input=_HOLE)
