"""How clients may ask, and what one of them can do to the others: a pod without an agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

import by_hand
from appliance import MB
from box import Box
from by_hand import CACHE, QUAY
from client import ask, blob_sum, layers, log, manifest, mirrored, throttled, until

STORE = f"{CACHE}/quay/registry/docker/registry/v2"
EMPTY = f"sha256:{sha256(b'').hexdigest()}"
# what is being fetched lies under the names of the cache's files, with a suffix
_PARTS = f"find {CACHE}/quay/edge -name '*.*' -type f; find {STORE} -path '*/_uploads/*' -type f"
_PUSH_NOTHING = """
place=$(curl -sS -o /dev/null -D- -X POST "https://quay.io/v2/$1/blobs/uploads/" | tr -d '\\r' \
    | awk 'tolower($1) == "location:" {print $2}')
case $place in /*) place=https://quay.io$place;; esac
curl -sS --fail -X PUT -H 'Content-Type: application/octet-stream' -H 'Content-Length: 0' "$place&digest=$2"
"""
TRUST = f"/etc/containers/certs.d/{QUAY.host}/ca.crt"


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with mirrored(QUAY) as host:
        yield host


@contextmanager
def rough(box: Box, way: str, path: str, count: int) -> Iterator[int]:
    """A client of the node's address that behaves so (rough.py); how many it has."""
    by_hand.send(box, ("tests/system/rough.py",))
    script = Path(by_hand.WORK) / "tests/system/rough.py"
    inside = ("-p", "NetworkNamespacePath=/run/netns/node", "-p", "LimitNOFILE=16384")
    argv = ("python3", script, way, QUAY.address, QUAY.host, path, str(count))
    box.exec("systemd-run", "--quiet", f"--unit=rough-{way}", *inside, *argv)
    try:
        said = ("journalctl", "-u", f"rough-{way}", "-o", "cat", "--no-pager")
        until(lambda: box.exec(*said, "-g", "^(holds|left) ", check=False).stdout, "the worst of it")
        yield int(box.exec(*said, "-g", "^(holds|left) ").stdout.split()[1])
    finally:
        box.exec("systemctl", "stop", f"rough-{way}")


def curl(box: Box, path: str, *options: str) -> int:
    """One request of a client whose answer does not count; curl's exit code."""
    argv = ("curl", "-sS", "-o", "/dev/null", "--cacert", TRUST, *options, f"https://{QUAY.host}{path}")
    return box.node(*argv, check=False).returncode


# --- the form of a request


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_every_version_of_http(box: Box, version: str) -> None:
    image = box.push("quay.io", f"versions/app:{version.strip('-')}", layer_sizes=(200_000,), seed=ord(version[-1]))
    blob = layers(image)[1]["digest"]
    for _ in ("cold", "warm"):
        assert ask(box, QUAY, f"/v2/versions/app/manifests/{version.strip('-')}", version).status == 200
        assert f"sha256:{blob_sum(box, QUAY, 'versions/app', blob, version)}" == blob


def test_parts_of_a_blob_that_is_on_its_way(box: Box) -> None:
    """What a client asks for that goes on with an interrupted download.  Each is cold."""
    size = 300_000
    image = box.push("quay.io", "parts/app:1", layer_sizes=(size,) * 5)
    forms = {"1000-": size - 1000, "-100": 100, "0-9": 10, "0-9,20-29": size}  # several at once: all of it
    for (form, length), layer in zip(forms.items(), layers(image)[1:], strict=False):
        more = layer["size"] - size  # the layer is an archive
        answer = ask(box, QUAY, f"/v2/parts/app/blobs/{layer['digest']}", "-r", form, "-o", "/dev/null")
        assert (answer.status, answer.size) == ((200 if "," in form else 206), length + (more if length > 100 else 0))
    beyond = layers(image)[5]
    path = f"/v2/parts/app/blobs/{beyond['digest']}"
    assert ask(box, QUAY, path, "-r", f"{beyond['size']}-", "-o", "/dev/null").status == 416
    for layer in layers(image):
        assert f"sha256:{blob_sum(box, QUAY, 'parts/app', layer['digest'])}" == layer["digest"]


@pytest.mark.parametrize("form", ["items=0-9", "bytes=9-0", "bytes=x-y", "bytes", "bytes=0-9;", "0-9"])
def test_a_range_of_no_known_form_breaks_nothing(box: Box, form: str) -> None:
    """It counts as none, or is refused with what would be right."""
    layer = layers(box.push("quay.io", "forms/app:1", layer_sizes=(100_000,), seed=len(form) + ord(form[-1])))[1]
    for _ in ("cold", "warm"):
        path = f"/v2/forms/app/blobs/{layer['digest']}"
        answer = ask(box, QUAY, path, "-H", f"Range: {form}", "-o", "/tmp/form")
        if answer.status == 416:
            assert json.loads(box.node("cat", "/tmp/form").stdout)["errors"][0]["code"] == "RANGE_INVALID"
            assert answer.headers["content-range"] == f"bytes */{layer['size']}"
        else:
            assert (answer.status, answer.size) == (200, layer["size"])
        assert f"sha256:{blob_sum(box, QUAY, 'forms/app', layer['digest'])}" == layer["digest"]


def test_a_head_of_a_part(box: Box) -> None:
    """RFC 9110 knows parts of GET only; nginx tells of the part.  The whole is fetched once."""
    layer = layers(box.push("quay.io", "part/head:1", layer_sizes=(1 * MB,)))[1]
    before = box.received("quay.io")
    for _ in ("cold", "warm"):
        answer = ask(box, QUAY, f"/v2/part/head/blobs/{layer['digest']}", "--head", "-r", "0-9")
        assert answer.status in (200, 206)
        assert f"sha256:{blob_sum(box, QUAY, 'part/head', layer['digest'])}" == layer["digest"]
    assert box.received("quay.io") - before < layer["size"] * 1.1


def test_several_parts_of_a_blob_that_is_here(box: Box) -> None:
    """As podman asks for the files that it lacks of a layer in zstd:chunked."""
    layer = layers(box.push("quay.io", "several/app:1", layer_sizes=(100_000,)))[1]
    blob_sum(box, QUAY, "several/app", layer["digest"])
    answer = ask(box, QUAY, f"/v2/several/app/blobs/{layer['digest']}", "-r", "0-9,50000-50009", "-o", "/dev/null")
    assert answer.status == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert answer.size < 1000


@pytest.mark.parametrize("what", ["blob", "digest", "tag"])
def test_conditions(box: Box, what: str) -> None:
    """Cold, and when it is here.  Nothing of what is refused or not sent spoils what others get."""
    image = box.push("quay.io", f"conditions/{what}:1", layer_sizes=(100_000,))
    digest = layers(image)[1]["digest"] if what == "blob" else image["digest"]
    name = {"blob": f"blobs/{digest}", "digest": f"manifests/{digest}", "tag": "manifests/1"}[what]
    path = f"/v2/conditions/{what}/{name}"
    for _ in ("cold", "here"):
        other = ask(box, QUAY, path, "-H", 'If-Match: "other"')
        assert (other.status, other.error) == (412, "UNSUPPORTED")
        same = ask(box, QUAY, path, "-H", f'If-None-Match: "{digest}"', "-o", "/dev/null")
        assert same.status in ((200, 304) if what == "blob" else (304,))  # a file of the store has no ETag
        for header in ('If-None-Match: "other"', "If-Match: *"):
            answer = ask(box, QUAY, path, "-H", header, "-o", "/dev/null")
            assert (answer.status, answer.headers["docker-content-digest"]) == (200, digest)
        resumed = ask(box, QUAY, path, "-H", f'If-Range: "{digest}"', "-r", "10-19", "-o", "/dev/null")
        assert (resumed.status, resumed.size) in ((206, 10), (200, int(answer.headers["content-length"])))
        changed = ask(box, QUAY, path, "-H", 'If-Range: "other"', "-r", "10-19", "-o", "/dev/null")
        assert (changed.status, changed.size) == (200, int(answer.headers["content-length"]))


# --- what nginx refuses by itself


@pytest.mark.parametrize("what", ["cold blob", "warm blob", "digest", "tag", "list", "base"])
def test_a_refusal_is_an_error_that_clients_read(box: Box, what: str) -> None:
    image = box.push("quay.io", f"refused/{what.replace(' ', '-')}:1", layer_sizes=(1000,), seed=len(what))
    blob, name = layers(image)[1]["digest"], f"/v2/refused/{what.replace(' ', '-')}"
    path = {
        "cold blob": f"{name}/blobs/{blob}", "warm blob": f"{name}/blobs/{blob}", "list": f"{name}/tags/list",
        "digest": f"{name}/manifests/{image['digest']}", "tag": f"{name}/manifests/1", "base": "/v2/",
    }[what]  # fmt: skip
    if what != "cold blob":
        assert ask(box, QUAY, path, "-o", "/dev/null").status == 200
    body = ("-X", "GET", "-H", "Expect:", "--data-binary", "x" * 5000)
    for options, status, code in (
        (("-H", 'If-Match: "other"'), 412, "UNSUPPORTED"),
        (body, 413, "SIZE_INVALID"),
        ((*body, "--http1.1"), 413, "SIZE_INVALID"),
        (("-r", "99999999-"), 416, "RANGE_INVALID"),
        (("-H", f"X-Long: {'x' * 40_000}", "--http1.1"), 400, "UNSUPPORTED"),
        (("-H", "Host: a b", "--http1.1"), 400, "UNSUPPORTED"),
        (("-H", "Transfer-Encoding: strange", "--http1.1"), 501, "UNSUPPORTED"),
    ):
        if status == 416 and "blob" not in what:  # only they come in parts
            continue
        answer = ask(box, QUAY, path, *options)
        assert (answer.status, answer.error) == (status, code)
        assert answer.headers["content-type"] == "application/json"
        assert status != 416 or answer.headers["content-range"].startswith("bytes */")


def test_plain_http_is_told_so_in_json(box: Box) -> None:
    said = box.node("curl", "-sS", "-w", "\n%{http_code}", f"http://{QUAY.host}:443/v2/").stdout.rsplit("\n", 1)
    assert (json.loads(said[0])["errors"][0]["code"], said[1]) == ("UNSUPPORTED", "400")


@pytest.mark.parametrize("name", ["x" * 256, "x" * 300, f"{'x' * 127}/{'x' * 128}"])
def test_a_name_that_is_too_long(box: Box, name: str) -> None:
    for rest in (f"manifests/{EMPTY}", "manifests/1", f"blobs/{EMPTY}", "tags/list"):
        answer = ask(box, QUAY, f"/v2/{name}/{rest}")
        assert (answer.status, answer.error) == (400, "NAME_INVALID")


def test_a_name_that_is_just_short_enough(box: Box) -> None:
    for rest, code in (("manifests/1", "MANIFEST_UNKNOWN"), (f"blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN")):
        answer = ask(box, QUAY, f"/v2/{'x' * 255}/{rest}")
        assert (answer.status, answer.error) == (404, code)


def test_a_head_brings_the_blob(box: Box) -> None:
    layer = layers(box.push("quay.io", "head/app:1", layer_sizes=(1 * MB,)))[1]
    path = f"/v2/head/app/blobs/{layer['digest']}"
    before = box.received("quay.io")
    for _ in range(2):
        answer = ask(box, QUAY, path, "--head")
        assert (answer.status, answer.headers["content-length"]) == (200, str(layer["size"]))
    assert f"sha256:{blob_sum(box, QUAY, 'head/app', layer['digest'])}" == layer["digest"]
    assert box.received("quay.io") - before < layer["size"] * 1.1


def test_a_blob_of_no_bytes(box: Box) -> None:
    box.inet("sh", "-c", _PUSH_NOTHING, "push", "nothing/app", EMPTY)
    for _ in ("cold", "coalesced", "warm"):
        for method in ([], ["--head"]):
            answer = ask(box, QUAY, f"/v2/nothing/app/blobs/{EMPTY}", *method)
            assert (answer.status, answer.headers["content-length"]) == (200, "0")
            assert answer.headers["docker-content-digest"] == EMPTY
        box.exec("sh", "-c", f"find {CACHE}/quay/edge/coalesce -type f -delete")
    assert box.exec("stat", "-c", "%s", f"{STORE}/blobs/sha256/{EMPTY[7:9]}/{EMPTY[7:]}/data").stdout.strip() == "0"


def test_a_list_of_tags_has_pages(box: Box) -> None:
    """Their links lead to the mirror, whatever a client says of the way that it came."""
    for tag in "abc":
        box.push("quay.io", f"pages/app:{tag}", layer_sizes=(100,))
    lie = ("-H", "X-Forwarded-Host: elsewhere.example", "-H", "X-Forwarded-Proto: http", "-H", "Forwarded: host=x")
    first = ask(box, QUAY, "/v2/pages/app/tags/list?n=2", *lie)
    assert json.loads(first.body)["tags"] == ["a", "b"]
    link = first.headers["link"].partition(">")[0].strip("<")
    assert link.startswith("/v2/pages/app/tags/list?")
    assert json.loads(ask(box, QUAY, link).body)["tags"] == ["c"]


# --- one client and the others


@pytest.mark.parametrize("odd", ["/v2/x/../{}", "/v2/{}%0a", "/v2/{}?mount=a&from=b", "/v2/%{:x}{}"])
def test_a_client_that_asks_oddly_spoils_nothing_for_others(box: Box, odd: str) -> None:
    tag = str(len(odd))
    image = box.push("quay.io", f"odd/app:{tag}", layer_sizes=(1000,), seed=len(odd))
    for path in (f"odd/app/manifests/{image['digest']}", f"odd/app/blobs/{layers(image)[1]['digest']}"):
        raw = odd.format(ord("o"), path[1:]) if ":x" in odd else odd.format(path)
        curl(box, raw, "--path-as-is")
        assert ask(box, QUAY, f"/v2/{path}", "-o", "/dev/null").status == 200


def test_clients_that_wait_long_are_served_what_came(box: Box) -> None:
    """Longer than a blob needs on a good line.  Who comes last waits for the one who came first."""
    layer = layers(box.push("quay.io", "wait/app:1", layer_sizes=(2_500_000,)))[1]
    before = box.received("quay.io")
    with throttled(box, "1600kbit"), ThreadPoolExecutor(4) as clients:
        pulls = [clients.submit(blob_sum, box, QUAY, "wait/app", layer["digest"]) for _ in range(3)]
        until(lambda: box.received("quay.io") - before > layer["size"] / 2, "half of it")
        pulls.append(clients.submit(blob_sum, box, QUAY, "wait/app", layer["digest"]))
        assert {f"sha256:{pull.result()}" for pull in pulls} == {layer["digest"]}
    assert layer["size"] <= box.received("quay.io") - before < layer["size"] * 1.1
    until(lambda: len(log(box, QUAY, layer["digest"])) == len(pulls), "all of them, in the log")
    lines = log(box, QUAY, layer["digest"])
    assert max(float(str(line["seconds"])) for line in lines) > 11
    assert sorted(str(line["cache"]) for line in lines) == ["HIT", "HIT", "HIT", "MISS"]  # nobody asked again


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_what_a_client_began_and_left_comes_once(box: Box, version: str) -> None:
    name = f"left/app{version[-1]}"
    layer = layers(box.push("quay.io", f"{name}:1", layer_sizes=(3 * MB,), seed=ord(version[-1])))[1]
    before = box.received("quay.io")
    with throttled(box, "8mbit"):
        assert curl(box, f"/v2/{name}/blobs/{layer['digest']}", version, "-m", "1") == 28  # its time is over
        assert f"sha256:{blob_sum(box, QUAY, name, layer['digest'])}" == layer["digest"]
    assert layer["size"] <= box.received("quay.io") - before < layer["size"] * 1.1


@pytest.mark.parametrize("role", ["edge", "registry"])
def test_ten_downloads_that_were_killed_leave_nothing_behind(box: Box, role: str) -> None:
    image = box.push("quay.io", f"ten/{role}:1", layer_sizes=(1 * MB,) * 10)
    blobs = [part["digest"] for part in layers(image)[1:]]
    before = box.received("quay.io")
    with throttled(box, "5mbit"), ThreadPoolExecutor(10) as clients:  # for 16 s, of which two are used
        pulls = [clients.submit(curl, box, f"/v2/ten/{role}/blobs/{blob}") for blob in blobs]
        until(lambda: box.received("quay.io") - before > 1 * MB, "a part of them")
        assert box.exec("sh", "-c", _PARTS).stdout
        box.exec("podman", "kill", "--signal", "KILL", f"mirror-quay-{role}")
        assert any(pull.result() for pull in pulls)
    until(lambda: not any(curl(box, f"/v2/ten/{role}/blobs/{blob}", "--fail") for blob in blobs), "all of them")
    got = [blob_sum(box, QUAY, f"ten/{role}", blob) for blob in blobs]
    assert [f"sha256:{each}" for each in got] == blobs
    until(lambda: box.exec("sh", "-c", _PARTS).stdout == "", "nothing is left behind")


@pytest.mark.parametrize("way", ["idle", "half"])
def test_connections_without_a_request_keep_nobody_out_for_long(box: Box, way: str) -> None:
    """More than the edge has: it ends idle ones for others, and after ten seconds those that say hello and no more."""
    with rough(box, way, "/", 4500) as held:
        print(f"\n{held} connections, {way}")
        until(lambda: curl(box, "/v2/", "--fail", "-m", "5") == 0, "an answer", seconds=40)


def test_requests_that_nobody_reads_leave_room_for_others(box: Box) -> None:
    """A client has up to 1024 blobs open; here it is all that is at that address."""
    layer = layers(box.push("quay.io", "unread/app:1", layer_sizes=(10_000,)))[1]
    path = f"/v2/unread/app/blobs/{layer['digest']}"
    assert f"sha256:{blob_sum(box, QUAY, 'unread/app', layer['digest'])}" == layer["digest"]
    with rough(box, "still", path, 9) as held:
        assert held == 1024
        refused = ask(box, QUAY, path)
        assert (refused.status, refused.error) == (429, "TOOMANYREQUESTS")
        assert manifest(box, QUAY, "unread/app", "1").status == 200
        other = ("--resolve", f"{QUAY.host}:443:{QUAY.address}", f"https://{QUAY.host}{path}")
        assert box.gw("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", *other).stdout == "200"
    until(lambda: ask(box, QUAY, path, "-o", "/dev/null").status == 200, "room for them")


def test_streams_that_are_reset_cost_nobody_anything(box: Box) -> None:
    """HTTP/2, "rapid reset": three thousand requests for a blob that is being fetched, each left at once."""
    layer = layers(box.push("quay.io", "reset/app:1", layer_sizes=(3 * MB,)))[1]
    before = box.received("quay.io")
    with throttled(box, "8mbit"), ThreadPoolExecutor(1) as client:
        pull = client.submit(blob_sum, box, QUAY, "reset/app", layer["digest"])
        until(lambda: box.received("quay.io") - before > 0.5 * MB, "a part of it")
        with rough(box, "resets", f"/v2/reset/app/blobs/{layer['digest']}", 3000) as left:
            assert left == 3000
            assert ask(box, QUAY, "/v2/").status == 200
        assert f"sha256:{pull.result()}" == layer["digest"]
    assert layer["size"] <= box.received("quay.io") - before < layer["size"] * 1.1


def test_two_hundred_clients_at_once(box: Box) -> None:
    """All cold, each with a connection of its own."""
    image = box.push("quay.io", "many/app:1", layer_sizes=(100_000,))
    blob = layers(image)[1]["digest"]
    script = """
for n in $(seq 200); do
    curl -sS --fail --cacert "$1" -o /dev/null "$2/manifests/1" -o /tmp/many.$n "$2/blobs/$3" || echo failed &
done; wait; cat /tmp/many.* | wc -c; sha256sum /tmp/many.* | cut -d' ' -f1 | sort -u; rm /tmp/many.*"""
    before = box.received("quay.io")
    said = box.node("sh", "-c", script, "many", TRUST, f"https://{QUAY.host}/v2/many/app", blob, timeout=200)
    assert said.stdout.split() == [str(200 * layers(image)[1]["size"]), blob.removeprefix("sha256:")]
    assert box.received("quay.io") - before < 2 * layers(image)[1]["size"]
    assert manifest(box, QUAY, "many/app", "1").headers["docker-content-digest"] == image["digest"]
