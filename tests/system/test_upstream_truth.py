"""What a mirror believes of its upstream, how often it asks, and that it keeps nothing that is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

import liar
from box import Box
from by_hand import CACHE, Handmade, wait_for
from client import Answer, TooSlow, ask, blob_sum, late, layers, manifest, mirrored, patiently, soon, throttled, until
from upstream_faults import asked, imposter, tell

FRESH = Handmade("fresh", "fresh.quay.io", "https://quay.io", "10.0.0.6", fresh=3600)
AGED = Handmade("aged", "quay.io", "https://quay.io", "10.0.0.7", fresh=1)
MANIFEST, LAYER = liar.digest(liar.IMAGE), liar.digest(liar.LAYER)
OLD = 2.1  # seconds after which AGED has to ask: nginx counts whole ones

# as it is sent; each has all four kinds, in an order of its own, and more
CLIENTS = {
    "containerd": (
        "application/vnd.docker.distribution.manifest.v2+json, "
        "application/vnd.docker.distribution.manifest.list.v2+json, "
        "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*",
    ),
    "podman": (
        "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json",
    ),
    "curl": ("*/*",),
    "an old script": ("application/vnd.docker.distribution.manifest.v2+json",),
}  # fmt: skip

# every file of the registry's store under the name that its content has; the others are printed
_STORE = """cd "$1"/registry/docker/registry/v2/blobs/sha256 2>/dev/null || exit 0
for file in */*/data; do
    name=${file%/data}; [ "$(sha256sum < "$file")" = "${name#*/}  -" ] || echo "$file"
done"""


# half a minute otherwise; nginx looks every ten seconds
_SOON = """cd /var/lib/mirror-agent/mirrors/aged
sed -i 's/inactive=30s/inactive=2s/' edge/nginx.conf
grep -q 'inactive=2s' edge/nginx.conf
systemctl reload mirror-aged-edge"""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with mirrored(FRESH, AGED) as host:
        host.exec("sh", "-ec", _SOON)
        yield host


@pytest.fixture
def upstream(box: Box) -> Iterator[Box]:
    """The imposter, which tells the truth for now and every question that it gets."""
    with imposter(box, "truth"):
        yield box


def count(box: Box, repository: str) -> dict[str, int]:
    """How often the imposter was asked for something of a repository, by method."""
    lines = [line for line in asked(box) if f" /v2/{repository}/" in line]
    return {method: sum(line.startswith(method) for line in lines) for method in ("HEAD", "GET")}


def until_forgotten(box: Box) -> None:
    """Until AGED's edge has forgotten what it got: nobody has asked for it for two seconds, and nginx has looked."""
    left = f"find {CACHE}/aged/edge/coalesce -type f"
    until(lambda: box.exec("sh", "-c", left).stdout == "", "the edge forgets")


def at_once(box: Box, mirror: Handmade, repository: str, clients: int) -> list[Answer]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda _: manifest(box, mirror, repository, "1"), range(clients)))


def right(answer: Answer) -> bool:
    return answer.status == 200 and f"sha256:{sha256(answer.body.encode()).hexdigest()}" == MANIFEST


# --- how often it asks


def test_all_clients_share_one_answer_for_a_tag(upstream: Box) -> None:
    for kinds in CLIENTS.values():
        headers = [word for kind in kinds for word in ("-H", f"Accept: {kind}")]
        for method in ([], ["--head"]):
            assert ask(upstream, FRESH, "/v2/share/app/manifests/1", *headers, *method).status == 200
    assert count(upstream, "share/app") == {"HEAD": 1, "GET": 1}


def test_many_clients_at_once_are_one_question(upstream: Box) -> None:
    assert all(right(answer) for answer in at_once(upstream, FRESH, "herd/app", 8))
    assert count(upstream, "herd/app") == {"HEAD": 1, "GET": 1}


def test_many_clients_at_once_are_one_question_about_an_old_tag(upstream: Box) -> None:
    """One a second at most, and one before."""
    assert right(manifest(upstream, AGED, "old/app", "1"))
    time.sleep(OLD)
    begun = time.monotonic()
    assert all(right(answer) for answer in at_once(upstream, AGED, "old/app", 8))
    seconds = time.monotonic() - begun  # of the clients, one after another on a busy machine
    asked_for = count(upstream, "old/app")
    print(f"\n8 clients in {seconds:.1f} s, an old tag: {asked_for}")
    assert asked_for["GET"] == 1
    assert asked_for["HEAD"] <= 1 + (seconds + 1)


def test_what_does_not_exist_is_one_question(upstream: Box) -> None:
    absent, begun = "sha256:" + "0" * 64, time.monotonic()
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: manifest(upstream, FRESH, "absent/app", absent), range(6)))
    seconds = time.monotonic() - begun  # of the clients; that it does not exist is known for two
    assert {answer.status for answer in answers} <= {404, 503}
    assert count(upstream, "absent/app")["GET"] <= 2 + seconds / 2


# --- how soon it sees what is new


def test_a_moved_tag_is_seen_by_all_clients_at_once(box: Box) -> None:
    """When its upstream answers within 0.8 s: where the machine was too busy for that, in another turn."""

    def moves(turn: int) -> None:
        name = f"moved/app{turn}"
        old = box.push("quay.io", f"{name}:1", layer_sizes=(1000,))
        assert manifest(box, AGED, name, "1").headers["docker-content-digest"] == old["digest"]
        new = box.push("quay.io", f"{name}:1", layer_sizes=(1000,), seed=1)
        time.sleep(OLD)
        got = {answer.headers["docker-content-digest"] for answer in at_once(box, AGED, name, 6)}
        if old["digest"] in got and late(box, AGED, name, 7):
            raise TooSlow("the upstream")
        assert got == {new["digest"]}

    patiently(moves)


def test_two_tags_that_move_at_the_same_moment(box: Box) -> None:
    """And swap their images: none is taken for the other."""

    def swap(turn: int) -> None:
        name = f"swap/app{turn}"
        images = [box.push("quay.io", f"{name}:{tag}", layer_sizes=(1000,), seed=tag) for tag in (1, 2)]
        for tag, image in zip("12", images, strict=True):
            assert manifest(box, AGED, name, tag).headers["docker-content-digest"] == image["digest"]
        for tag, image in zip("21", images, strict=True):
            source = f"docker://quay.io/{name}@{image['digest']}"
            box.inet("skopeo", "copy", "--quiet", source, f"docker://quay.io/{name}:{tag}")
        time.sleep(OLD)
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda n: manifest(box, AGED, name, "12"[n % 2]), range(8)))
        told = [answer.headers["docker-content-digest"] for answer in answers]
        right_ones = [images[1]["digest"], images[0]["digest"]] * 4
        if told != right_ones and late(box, AGED, name, 10):
            raise TooSlow("the upstream")
        assert told == right_ones

    patiently(swap)


def test_a_tag_that_moves_to_an_image_with_a_hole(upstream: Box) -> None:
    """The mirror says what the upstream says; what the tag was before is there by its digest."""
    config = liar.digest(liar.CONFIG)
    assert right(manifest(upstream, AGED, "hole/app", "1"))
    assert f"sha256:{blob_sum(upstream, AGED, 'hole/app', config)}" == config
    tell(upstream, "hollow")
    hollow = liar.digest(liar.HOLLOW)
    until(
        lambda: manifest(upstream, AGED, "hole/app", "1").headers["docker-content-digest"] == hollow, "what it is now"
    )
    lost = ask(upstream, AGED, f"/v2/hole/app/blobs/{liar.LOST}")
    assert (lost.status, lost.error) == (404, "BLOB_UNKNOWN")
    assert right(manifest(upstream, AGED, "hole/app", MANIFEST))
    assert f"sha256:{blob_sum(upstream, AGED, 'hole/app', config)}" == config
    tell(upstream, "truth")
    until(lambda: right(manifest(upstream, AGED, "hole/app", "1")), "what it is again")


def test_a_manifest_of_schema_1_is_refused_and_spoils_nothing(upstream: Box) -> None:
    """distribution 3 does not read them.  Where a tag becomes one, it is served as it was."""
    tell(upstream, "schema1")
    for reference in ("1", liar.digest(liar.OLDEST)):
        answer = manifest(upstream, AGED, "oldest/app", reference)
        assert answer.status in (400, 404, 503)
        assert answer.error in ("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "UNAVAILABLE")
    tell(upstream, "truth")
    assert right(manifest(upstream, AGED, "oldest/turned", "1"))
    tell(upstream, "schema1")
    time.sleep(OLD)
    assert right(manifest(upstream, AGED, "oldest/turned", "1"))
    tell(upstream, "truth")
    until(lambda: right(manifest(upstream, AGED, "oldest/app", "1")), "what it is now")


def test_a_slow_upstream_delays_no_pull_and_is_believed_at_the_next(upstream: Box) -> None:
    def slows(turn: int) -> None:
        name = f"slow/app{turn}"
        tell(upstream, "truth")
        assert right(manifest(upstream, AGED, name, "1"))
        time.sleep(OLD)
        tell(upstream, "moved")  # and every answer takes 1.5 s
        first = manifest(upstream, AGED, name, "1")
        kept = f"grep -rl '^KEY: tag /v2/{name}/manifests/1$' {CACHE}/aged/edge/meta | xargs -r grep -l '{moved}'"
        until(lambda: upstream.exec("sh", "-c", kept, check=False).stdout, "the late answer, in the cache")
        second = manifest(upstream, AGED, name, "1")
        assert right(first)
        assert (second.status, second.headers["docker-content-digest"]) == (200, moved)
        for answer in (first, second):
            soon(answer, 1.5)

    moved = liar.digest(liar.OTHER)
    patiently(slows)


# --- what it keeps


def test_what_is_not_what_its_digest_says_is_not_kept(upstream: Box) -> None:
    """A manifest that reads well, and a blob of the right length.  Clients see it, and check."""
    tell(upstream, "wrong")
    assert not right(manifest(upstream, AGED, "wrong/app", MANIFEST))
    assert not right(manifest(upstream, AGED, "wrong/app", "1"))
    assert f"sha256:{blob_sum(upstream, AGED, 'wrong/app', LAYER)}" != LAYER
    tell(upstream, "truth")
    until_forgotten(upstream)
    assert right(manifest(upstream, AGED, "wrong/app", MANIFEST))
    # after the slow upstream of a test before, the first may not wait for the answer
    until(lambda: right(manifest(upstream, AGED, "wrong/app", "1")), "the right answer for the tag")
    assert f"sha256:{blob_sum(upstream, AGED, 'wrong/app', LAYER)}" == LAYER
    assert upstream.exec("sh", "-c", _STORE, "store", f"{CACHE}/aged").stdout == ""


@pytest.mark.parametrize("lie", liar.SPARE)
def test_what_is_no_whole_answer_is_not_kept(upstream: Box, lie: str) -> None:
    """A connection that ends in the middle, a page of a guest network, an error: of a blob, and of a manifest."""
    repository, blob = f"broken/{lie}", liar.digest(liar.SPARE[lie])
    manifest_path = f"/v2/{repository}/manifests/{MANIFEST}"
    tell(upstream, lie)
    try:
        got = blob_sum(upstream, AGED, repository, blob)
    except AssertionError:  # broken off, or refused
        got = "nothing"
    assert f"sha256:{got}" != blob
    if lie != "torn":
        assert not right(ask(upstream, AGED, manifest_path))
    tell(upstream, "truth")
    until_forgotten(upstream)
    assert f"sha256:{blob_sum(upstream, AGED, repository, blob)}" == blob
    assert right(ask(upstream, AGED, manifest_path))
    assert upstream.exec("sh", "-c", _STORE, "store", f"{CACHE}/aged").stdout == ""


# --- blobs that lie elsewhere


def test_blobs_of_another_host_are_fetched_there(upstream: Box) -> None:
    """Which may be away while the registry is not: gcr.io is that host here."""
    stored = upstream.push("gcr.io", "elsewhere/app:1", layer_sizes=(500_000, 1000))
    first, second = (part["digest"] for part in layers(stored)[1:])
    tell(upstream, "elsewhere")
    before = upstream.received("gcr.io")
    assert f"sha256:{blob_sum(upstream, AGED, 'elsewhere/app', first)}" == first
    assert upstream.received("gcr.io") - before > 500_000
    upstream.exec("systemctl", "stop", "box-upstream@gcr.io")
    try:
        refused = ask(upstream, AGED, f"/v2/elsewhere/app/blobs/{second}")
        assert (refused.status, refused.error) == (503, "UNAVAILABLE")
        assert f"sha256:{blob_sum(upstream, AGED, 'elsewhere/app', first)}" == first
    finally:
        upstream.exec("systemctl", "start", "box-upstream@gcr.io")
    assert f"sha256:{blob_sum(upstream, AGED, 'elsewhere/app', second, '--retry', '5')}" == second


# --- a slow line

# of the edge and of the registry
_SHORT = """cd /var/lib/mirror-agent/mirrors/fresh
sed -i -E 's/(read_timeout|send_timeout|keepalive_timeout|lock_age|lock_timeout) +[0-9]+[smh];/\\1 2s;/' edge/nginx.conf
[ $(grep -c ' 2s;' edge/nginx.conf) -gt 8 ]
sed -i 's/cachewritetimeout: 12h/cachewritetimeout: 2s/' registry/config.yml
grep -q 'cachewritetimeout: 2s' registry/config.yml
systemctl reload mirror-fresh-edge
systemctl restart mirror-fresh-registry"""


def test_a_slow_line_is_no_error(box: Box) -> None:
    """What limits silence, and the writing of a blob, is two seconds here, and the blob takes ten.

    (A distribution that cuts at its cachewritetimeout would fail here: then config.yml's 12 h are a real limit.)
    """
    image = box.push("quay.io", "line/app:1", layer_sizes=(2_500_000,))
    blob = layers(image)[1]["digest"]
    box.exec("sh", "-c", _SHORT)
    wait_for(box, FRESH)
    before = box.received("quay.io")
    with throttled(box, "2mbit"):
        begin = time.monotonic()
        assert f"sha256:{blob_sum(box, FRESH, 'line/app', blob)}" == blob
        assert time.monotonic() - begin > 8
    assert f"sha256:{blob_sum(box, FRESH, 'line/app', blob)}" == blob
    assert 2_500_000 < box.received("quay.io") - before < 2_500_000 * 1.1
