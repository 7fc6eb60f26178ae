"""The disk is bounded, on a small one: a file system of 1.4 GB in memory, budget and floor of 256 MiB.

What was used in the last ten minutes stays, so images are made old while the agent is away: their files, and what the
agent remembers of their use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from appliance import AGENT_TOML, CACHE, MB, Appliance, parts, slow_pull, weight
from client import TooSlow, patiently

MIB = 2**20
BUDGET = 256 * MIB
SMALL = AGENT_TOML + '[cache]\nbudget = "256MiB"\nfree = "256MiB"\n'
ERROR_TEXT = 1000  # bytes; more than distribution's error takes
STORE = f"{CACHE}/quay/registry/docker/registry/v2"
FULL = f"{CACHE}/quay/edge/full"

# All blobs were fetched days ago; each repository's images were used so many hours ago.
_AGE = """
import json, os, sys, time
from datetime import datetime, timedelta, UTC
store, hours = sys.argv[1], json.loads(sys.argv[2])
for folder, _, names in os.walk(store + "/blobs"):
    for name in names:
        os.utime(os.path.join(folder, name), (time.time() - 9 * 86400,) * 2)
path = "/var/lib/mirror-agent/usage.json"
usage = json.load(open(path))
used = usage["mirrors"]["quay"]["used"]
for image in used:
    at = datetime.now(UTC) - timedelta(hours=hours.get(image.partition("@")[0], 99))
    used[image] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
json.dump(usage, open(path, "w"))
"""


@pytest.fixture(scope="module")
def small(bare: Appliance) -> Appliance:
    """One mirror on a small disk of its own."""
    bare.sh(f"mkdir -p {CACHE} && mount -t tmpfs -o size=1400m,mode=0755 tmpfs {CACHE}")
    bare.settings(SMALL)
    bare.enable()
    bare.drop("quay")
    bare.serving("quay")
    bare.configure_node()
    return bare


@pytest.fixture(autouse=True)
def mended(small: Appliance) -> Iterator[None]:
    """Every test ends with a whole internet, an agent and room on the disk."""
    yield
    small.box.mend_internet()
    small.sh(f"rm -f {CACHE}/filler; systemctl start mirror-agent")


def pull(small: Appliance, image: str) -> None:
    """A pull by a client that has nothing yet."""
    small.box.node("skopeo", "copy", "--quiet", f"docker://quay.io/{image}", "dir:/tmp/pulled", timeout=300)
    small.box.node("rm", "-rf", "/tmp/pulled")


def stop(small: Appliance, **hours: int) -> None:
    """Stop the agent when it has read what clients did, and make the images old: repositories by their last word."""
    small.logged("quay")
    small.settle()
    small.box.exec("systemctl", "stop", "mirror-agent")
    repositories = {f"evict/{name}": since for name, since in hours.items()}
    small.box.exec("python3", "-c", _AGE, STORE, json.dumps(repositories))
    small.sh(f"find {CACHE}/quay/edge/coalesce -type f -delete")  # what it keeps for a minute is long gone then


def start(small: Appliance) -> None:
    """Start it, until it has looked into the caches and done what follows."""
    since = small.cursor()
    small.box.exec("systemctl", "start", "mirror-agent")
    small.until_said("evict", since)
    small.settle()


def has(small: Appliance, digest: str) -> bool:
    name = digest.removeprefix("sha256:")
    return small.box.exec("test", "-e", f"{STORE}/blobs/sha256/{name[:2]}/{name}/data", check=False).returncode == 0


def whole(small: Appliance, image: dict[str, Any]) -> bool:
    return all(has(small, digest) for digest in (image["digest"], *(part["digest"] for part in parts(image))))


def is_image(small: Appliance, repository: str, image: dict[str, Any]) -> bool:
    """Does the registry know it as one of this repository, not only its blobs?"""
    name = image["digest"].removeprefix("sha256:")
    link = f"{STORE}/repositories/{repository}/_manifests/revisions/sha256/{name}/link"
    return small.box.exec("test", "-e", link, check=False).returncode == 0


def cached_bytes(small: Appliance) -> int:
    return int(small.sh(f"du -sb --apparent-size {STORE}/blobs").split()[0])


def push(small: Appliance, name: str, *layers: int) -> dict[str, Any]:
    return small.box.push("quay.io", f"evict/{name}:1", layer_sizes=layers or (70 * MB,))


def ask(small: Appliance, path: str) -> tuple[int, str, float]:
    """Status, body and seconds of one request of the node."""
    url = f"https://quay.mirror.lan{path}"
    said = small.box.node(*small.curl_command("quay"), "-w", "\n%{http_code} %{time_total}", url).stdout
    body, _, facts = said.rpartition("\n")
    return int(facts.split()[0]), body, float(facts.split()[1])


def test_the_least_recently_used_leaves_and_what_is_shared_stays(small: Appliance) -> None:
    images = {name: push(small, name) for name in "abcd"}
    small.box.inet("skopeo", "copy", "--quiet", "docker://quay.io/evict/c:1", "docker://quay.io/evict/copy:1")
    for name in (*images, "copy"):
        pull(small, f"evict/{name}:1")
    small.settle()
    assert cached_bytes(small) > BUDGET  # all of it is young
    stop(small, c=5, b=4, d=2, a=1, copy=1)
    start(small)
    assert cached_bytes(small) <= BUDGET
    assert [name for name, image in images.items() if whole(small, image)] == ["a", "c", "d"]
    assert not any(has(small, part["digest"]) for part in parts(images["b"])[1:])
    assert not is_image(small, "evict/c", images["c"])
    assert is_image(small, "evict/copy", images["c"])
    assert small.mirror("quay")["cache"]["size"] <= BUDGET

    with small.not_asked("quay.io"):
        for name in ("a", "d"):
            pull(small, f"evict/{name}@{images[name]['digest']}")
        pull(small, f"evict/copy@{images['c']['digest']}")

    before = small.received("quay.io")
    pull(small, f"evict/b@{images['b']['digest']}")
    assert weight(images["b"]) <= small.received("quay.io") - before < weight(images["b"]) * 1.02
    assert is_image(small, "evict/b", images["b"])  # not blobs of no image, which would be the first to leave


def test_a_download_that_is_trimmed_away_arrives_whole(small: Appliance) -> None:
    image, others = push(small, "live", 30 * MB), ("more", "most", "rest")
    layer = parts(image)[1]["digest"]
    for name in others:
        push(small, name, 80 * MB)
    for name in ("live", *others):
        pull(small, f"evict/{name}:1")
    with slow_pull(small, "quay", "evict/live", layer):
        stop(small, live=50, **dict.fromkeys(others, 1))
        start(small)
        assert not has(small, layer)


def test_pulls_while_it_trims_are_unharmed(small: Appliance) -> None:
    """Everything is old, the budget is always exceeded, and clients pull it all again and again."""
    images = [push(small, f"busy{number}", 40 * MB, 30 * MB) for number in range(5)]
    for number in range(5):
        pull(small, f"evict/busy{number}:1")
    for around in range(3):
        stop(small, **{f"busy{number}": 1 + (number + around) % 5 for number in range(5)})
        small.box.exec("systemctl", "start", "mirror-agent")
        for number, image in enumerate(images):
            pull(small, f"evict/busy{number}@{image['digest']}")  # skopeo checks each digest
    small.settle()


def test_a_pull_larger_than_the_budget_succeeds_and_is_trimmed_later(small: Appliance) -> None:
    image = push(small, "large", *[70 * MB] * 5)
    assert weight(image) > BUDGET
    pull(small, "evict/large:1")
    small.settle()
    assert whole(small, image)
    stop(small, large=1)
    start(small)
    assert cached_bytes(small) <= BUDGET
    assert not is_image(small, "evict/large", image)


def test_what_was_evicted_is_a_clear_error_while_the_internet_is_away(small: Appliance) -> None:
    images = {name: push(small, name, 100 * MB) for name in ("gone", "stays", "too")}
    for name in images:
        pull(small, f"evict/{name}:1")
    stop(small, gone=9, stays=1, too=1)
    start(small)
    assert [name for name, image in images.items() if whole(small, image)] == ["stays", "too"]
    small.box.cut_internet()

    def both(_: int) -> None:
        for what in ("manifests/1", f"blobs/{parts(images['gone'])[1]['digest']}"):
            status, body, seconds = ask(small, f"/v2/evict/gone/{what}")
            assert (status, json.loads(body)["errors"][0]["code"]) in ((404, "MANIFEST_UNKNOWN"), (503, "UNAVAILABLE"))
            if seconds >= 30:
                raise TooSlow(f"{seconds} s, and containerd's patience is 30 s")

    patiently(both)
    pull(small, f"evict/stays@{images['stays']['digest']}")


def test_a_disk_without_inodes_is_full(small: Appliance) -> None:
    """There is space enough, and no file can be made: old images leave."""
    olds = [push(small, name, *[1000] * 20) for name in ("many1", "many2")]
    for name in ("many1", "many2"):
        pull(small, f"evict/{name}:1")
    image = push(small, "inodes", 1 * MB)
    stop(small, many1=9, many2=8)
    used, size = (int(word) for word in small.sh(f"df --output=iused,itotal {CACHE} | tail -1").split())
    small.sh(f"mount -o remount,nr_inodes={used + 4} {CACHE}")
    try:
        start(small)
        small.wait(lambda: pulled(small, "evict/inodes:1"), 30, "a pull with inodes that were freed")
        assert whole(small, image)
        assert not all(whole(small, old) for old in olds)
    finally:
        small.sh(f"mount -o remount,nr_inodes={size} {CACHE}")


def pulled(small: Appliance, image: str) -> bool:
    try:
        pull(small, image)
    except AssertionError:
        return False
    return True


def test_a_full_disk_begins_no_fetch_and_tells_a_person(small: Appliance) -> None:
    image = push(small, "refused", 5 * MB)

    def is_full() -> bool:
        return fill(small, leave=30) and small.box.exec("test", "-e", FULL, check=False).returncode == 0

    small.wait(is_full, 30, "the mark of a full disk")
    small.settle()
    status, body, _ = ask(small, f"/v2/evict/refused/blobs/{parts(image)[1]['digest']}")
    assert (status, json.loads(body)["errors"][0]["code"]) == (503, "UNAVAILABLE")
    assert "disk" in body
    assert [problem["file"] for problem in small.status()["problems"]] == [CACHE]
    assert small.mirror("quay")["state"] == "serving"
    small.sh(f"rm {CACHE}/filler")
    small.settle()
    small.wait(lambda: small.glance()["problems"] == [], 10, "the end of the full disk")
    pull(small, "evict/refused:1")
    assert whole(small, image)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_download_that_the_disk_has_no_room_for_breaks_visibly(small: Appliance, version: str) -> None:
    """Nobody stops what is under way: the agent is not there.  The end is no silent one, and nothing wrong is kept.

    distribution 3.1.1 puts the text of its error behind the bytes that it could write, and the edge cannot tell it
    from the blob: a client sees that the transfer broke off, and that the digest of what it has is wrong.
    """
    image = push(small, f"cut{version.strip('-.')}", 70 * MB)
    repository, layer = f"evict/cut{version.strip('-.')}", parts(image)[1]
    small.settle()
    small.box.exec("systemctl", "stop", "mirror-agent")
    fill(small, leave=40)
    url = f"https://quay.mirror.lan/v2/{repository}/blobs/{layer['digest']}"
    broken = small.box.node(*small.curl_command("quay"), version, "-o", "/tmp/part", url, check=False)
    assert broken.returncode in (18, 56, 92)  # partial file, connection closed, stream reset
    size = int(small.box.node("stat", "-c", "%s", "/tmp/part").stdout)
    print(f"\n{version}: broke off after {size} of {layer['size']} bytes: {broken.stderr.strip()}")
    assert 0 < size < layer["size"]
    good = size - ERROR_TEXT
    got = small.box.node("sh", "-c", f"head -c {good} /tmp/part | sha256sum").stdout.split()[0]
    prefix = f"curl -sS https://quay.io/v2/{repository}/blobs/{layer['digest']} | head -c {good} | sha256sum"
    assert got == small.box.inet("sh", "-c", prefix).stdout.split()[0]
    small.sh(f"rm {CACHE}/filler")
    assert small.blob_digest("quay", repository, layer["digest"]) == layer["digest"]
    assert small.blob_digest("quay", repository, layer["digest"]) == layer["digest"]  # as it was kept


def fill(small: Appliance, leave: int) -> bool:
    """Leave so many MB free, for now: the eviction that follows may free more."""
    free = int(small.sh(f"df -B1 --output=avail {CACHE}").split()[1])
    if free > leave * MB * 1.1:
        small.sh(f"f={CACHE}/filler; touch $f; fallocate -l $(($(stat -c %s $f) + {free - leave * MB})) $f")
    return True
