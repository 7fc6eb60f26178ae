"""A mirror serves what it has, whatever its upstream does: every fault against everything that can be asked for.

The one promise with a time in it: within a second.  Measured by curl on the node, of several tries, with half a second
for a machine that has other things to do, and by turns: one that is slow for good is slow in each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

from box import Box
from by_hand import Handmade
from client import Answer, ask, blob_sum, cold_pull, layers, manifest, mirrored, patiently, soon
from upstream_faults import FAULTS

# two mirrors of one upstream: what the first knows stays fresh, what the second knows is old after a second
FRESH = Handmade("fresh", "fresh.quay.io", "https://quay.io", "10.0.0.6", fresh=3600)
AGED = Handmade("aged", "quay.io", "https://quay.io", "10.0.0.7", fresh=1)
SOON = 1.5  # seconds
CONTAINERD = 30  # seconds that it waits for an answer


@dataclass(frozen=True)
class Case:
    fault: str
    repository: str
    image: dict[str, Any]


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with mirrored(FRESH, AGED) as host:
        yield host


@pytest.fixture(scope="module", params=FAULTS)
def case(box: Box, request: pytest.FixtureRequest) -> Iterator[Case]:
    """An image that both mirrors have, and an upstream that does not work.  At the end it works, and is asked again."""
    fault = str(request.param)
    repository = "faults/" + fault.lower().replace(" ", "-").replace("'", "")
    image = box.push("quay.io", f"{repository}:1", layer_sizes=(300_000,))
    for mirror in (FRESH, AGED):
        assert manifest(box, mirror, repository, "1").status == 200
        assert manifest(box, mirror, repository, image["digest"]).status == 200
        for blob in layers(image):
            blob_sum(box, mirror, repository, blob["digest"])
    time.sleep(2)  # AGED's is old
    with FAULTS[fault](box):
        yield Case(fault, repository, image)
    new = box.push("quay.io", f"{repository}:2", layer_sizes=(1000,))
    for mirror in (FRESH, AGED):
        # a connection that died silently is given up after 40 s (mirror.pod), then the breaker waits for 20 s
        deadline = time.monotonic() + 120
        while manifest(box, mirror, repository, "2").headers.get("docker-content-digest") != new["digest"]:
            assert time.monotonic() < deadline, f"{mirror.name} has not recovered from: {fault}"
            time.sleep(0.5)


def served(box: Box, case: Case, mirror: Handmade, reference: str, times: int) -> None:
    """The right manifest, and soon, each time."""

    def several(_: int) -> None:
        answers = [manifest(box, mirror, case.repository, reference) for _ in range(times)]
        told(case, answers)
        for answer in answers:
            assert answer.status == 200
            assert answer.headers["docker-content-digest"] == case.image["digest"]
            assert f"sha256:{sha256(answer.body.encode()).hexdigest()}" == case.image["digest"]
        for answer in answers:
            soon(answer, SOON)

    patiently(several)


def told(case: Case, answers: list[Answer]) -> None:
    print(f"\n{case.fault}: {' '.join(f'{answer.status} {answer.seconds:.3f} s' for answer in answers)}")


def test_a_fresh_tag_is_served(box: Box, case: Case) -> None:
    served(box, case, FRESH, "1", 3)


def test_an_old_tag_is_served(box: Box, case: Case) -> None:
    served(box, case, AGED, "1", 5)


def test_a_digest_is_served(box: Box, case: Case) -> None:
    served(box, case, AGED, case.image["digest"], 3)


def test_a_blob_is_served(box: Box, case: Case) -> None:
    def several(_: int) -> None:
        for path in paths:
            answers = [ask(box, AGED, path, "-o", "/dev/null") for _ in range(3)]
            assert [answer.status for answer in answers] == [200, 200, 200]
            for answer in answers:
                soon(answer, SOON)

    paths = [f"/v2/{case.repository}/blobs/{blob['digest']}" for blob in layers(case.image)]
    patiently(several)
    for blob in layers(case.image):
        assert f"sha256:{blob_sum(box, AGED, case.repository, blob['digest'])}" == blob["digest"]


def test_a_node_pulls(box: Box, case: Case) -> None:
    cold_pull(box, f"quay.io/{case.repository}:1", "pull")


def test_what_is_not_here_is_an_error_in_time(box: Box, case: Case) -> None:
    """A trickle may also bring it."""
    known = case.image["digest"]
    digest = known[:-4] + ("0000" if known[-4:] != "0000" else "1111")
    paths = ("manifests/absent", f"manifests/{digest}", f"blobs/{digest}", "tags/list")

    def all_of_them(turn: int) -> None:
        with ThreadPoolExecutor(len(paths)) as clients:
            asked = clients.map(lambda path: ask(box, AGED, f"/v2/not{turn}/{case.repository}/{path}"), paths)
            answers = list(asked)
        told(case, answers)
        for path, answer in zip(paths, answers, strict=True):
            if case.fault == "a page" and path.startswith("blobs/"):
                continue  # passed on as it came, for clients to refuse by its digest
            assert answer.status in (404, 503), path
            assert answer.error in ("MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN", "UNAVAILABLE")
        for answer in answers:
            soon(answer, CONTAINERD)

    patiently(all_of_them)
