"""What an upstream does, and what of it reaches clients: moved tags, signatures, questions, faults, wrong bytes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from appliance import CACHE, MB, Appliance, parts, slow_pull, weight

FRESH = 2  # seconds, of quay's tags
MODE = "/run/upstream-mode"
STORE = f"{CACHE}/quay/registry/docker/registry/v2"
MANIFESTS = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
MANIFESTS += ", application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS += ", application/vnd.docker.distribution.manifest.v2+json"

# In the place of quay.io: serves what its store has, as badly as the file MODE says.
_BAD_UPSTREAM = """
import http.server, os, re, socketserver, ssl, time
STORE = "/srv/upstream/quay.io/docker/registry/v2"
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self, body=True):
        mode = open("/run/upstream-mode").read()
        if mode == "hang":
            time.sleep(3600)
        if mode.isdigit():
            return self.answer(int(mode), "application/json", b'{"errors":[{"code":"TOOMANYREQUESTS"}]}', body)
        if self.path == "/v2/":
            return self.answer(200, "application/json", b"{}", body)
        if mode == "page":
            return self.answer(200, "text/html", b"<html>maintenance</html>", body)
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", self.path)
        repository, kind, name = found.groups()
        if ":" not in name:
            name = open(f"{STORE}/repositories/{repository}/_manifests/tags/{name}/current/link").read()
        digest = name.partition(":")[2]
        content = open(f"{STORE}/blobs/sha256/{digest[:2]}/{digest}/data", "rb").read()
        media = "application/vnd.oci.image.manifest.v1+json" if kind == "manifests" else "application/octet-stream"
        if mode == "garble":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.answer(200, media, content, body, "sha256:" + digest, mode)
    def do_HEAD(self):
        self.do_GET(body=False)
    def answer(self, status, media, content, body, digest="", mode=""):
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(content)))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if not body:
            return
        if mode == "truncate":
            self.wfile.write(content[:len(content) // 2])
            self.close_connection = True
        elif mode == "trickle":
            for byte in range(len(content)):
                self.wfile.write(content[byte:byte + 1])
                time.sleep(0.5)
        else:
            self.wfile.write(content)
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    allow_reuse_address, daemon_threads = True, True
name = "quay.io" if open("/run/upstream-mode").read() != "tls" else "ghcr.io"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"/etc/box/pki/{name}.crt", f"/etc/box/pki/{name}.key")
server = Server(("198.51.100.10", 443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def one(appliance: Appliance) -> Appliance:
    """One mirror, whose tags are fresh for two seconds."""
    appliance.define("quay", f'source = "quay.io"\n[cache]\nfresh = "{FRESH}s"\n')
    appliance.serving("quay")
    appliance.configure_node()
    return appliance


@contextmanager
def bad_upstream(one: Appliance, mode: str) -> Iterator[None]:
    """Another server in the place of quay.io while the block runs."""
    one.sh(f"printf %s {mode} > {MODE}; systemctl stop box-upstream@quay.io")
    one.box.inet("systemd-run", "--quiet", "--unit=bad-upstream", "-p", "NetworkNamespacePath=/run/netns/inet",
                 "python3", "-c", _BAD_UPSTREAM)  # fmt: skip
    try:
        one.wait(lambda: "bad" if _listens(one) else "", 10, "the bad upstream")
        yield
    finally:
        one.sh("systemctl stop bad-upstream; systemctl reset-failed bad-upstream", check=False)
        one.sh("systemctl start box-upstream@quay.io")
        one.wait(lambda: _listens(one), 10, "the good upstream")


def _listens(one: Appliance) -> bool:
    return one.box.inet("bash", "-c", "true < /dev/tcp/198.51.100.10/443", check=False).returncode == 0


def ask(one: Appliance, path: str, *options: str) -> tuple[int, float, str, str]:
    """Status, seconds, digest that was told, body."""
    url = f"https://quay.mirror.lan{path}"
    report = "\n%{http_code} %{time_total} %header{docker-content-digest}-"
    done = one.box.node(
        *one.curl_command("quay"), "-H", f"Accept: {MANIFESTS}", *options, "-w", report, url, check=False
    )
    body, _, facts = done.stdout.rpartition("\n")
    status, seconds, digest = facts.split()
    return int(status), float(seconds), digest.rstrip("-"), body


def blob(one: Appliance, repository: str, digest: str) -> str:
    """The digest of what a client gets, or how it failed."""
    curl = " ".join(one.curl_command("quay"))
    script = f"set -o pipefail; {curl} --fail https://quay.mirror.lan/v2/{repository}/blobs/{digest} | sha256sum"
    done = one.box.node("bash", "-c", script, check=False)
    return f"sha256:{done.stdout.split()[0]}" if done.returncode == 0 else done.stderr.strip()


def kept(one: Appliance, digest: str) -> bool:
    name = digest.partition(":")[2]
    return one.box.exec("test", "-e", f"{STORE}/blobs/sha256/{name[:2]}/{name}", check=False).returncode == 0


def questions(one: Appliance, repository: str, method: str, since: str) -> int:
    """How often the upstream was asked for manifests of a repository."""
    said = one.box.exec("journalctl", "-o", "cat", f"--after-cursor={since}", "-u", "box-upstream@quay.io").stdout
    return len(re.findall(rf'"{method} /v2/{repository}/manifests/', said))


# --- tags


def test_a_moved_tag_is_seen_within_its_freshness_and_delays_no_pull(one: Appliance) -> None:
    old = one.box.push("quay.io", "moving/app:1", layer_sizes=(1000,))
    assert ask(one, "/v2/moving/app/manifests/1")[2] == old["digest"]
    new = one.box.push("quay.io", "moving/app:1", layer_sizes=(1000,), seed=1)
    moved, slowest = time.monotonic(), 0.0
    while True:
        _, seconds, digest, _ = ask(one, "/v2/moving/app/manifests/1")
        slowest = max(slowest, seconds)
        if digest == new["digest"]:
            break
        assert digest == old["digest"]
        assert time.monotonic() - moved < 2 * FRESH + 5  # fresh, then once more while it asks
    print(f"\nseen after {time.monotonic() - moved:.1f} s, slowest answer {slowest:.3f} s")
    assert slowest < 1


def test_the_upstream_is_asked_once_for_each_time_of_freshness(one: Appliance) -> None:
    one.box.push("quay.io", "spare/app:1", layer_sizes=(1000,))
    one.pull("quay.io/spare/app:1")
    since, begin = one.cursor(), time.monotonic()
    while time.monotonic() - begin < 4 * FRESH:
        assert ask(one, "/v2/spare/app/manifests/1")[0] == 200
        time.sleep(0.1)
    periods = (time.monotonic() - begin) / FRESH
    heads, gets = questions(one, "spare/app", "HEAD", since), questions(one, "spare/app", "GET", since)
    print(f"\n{heads} HEAD, {gets} GET in {periods:.1f} times of freshness")
    assert 1 <= heads <= periods + 1
    assert gets == 0  # what Docker Hub counts as a pull


def test_a_first_pull_costs_one_pull_of_the_limit(one: Appliance) -> None:
    one.box.push("quay.io", "first/app:1", layer_sizes=(1000,))
    since = one.cursor()
    with ThreadPoolExecutor(6) as clients:
        assert {status for status, *_ in clients.map(lambda _: ask(one, "/v2/first/app/manifests/1"), range(6))} == {
            200
        }
    assert questions(one, "first/app", "GET", since) == 1
    assert questions(one, "first/app", "HEAD", since) <= 1


def test_signatures_pass_and_referrers_are_told_to_be_tags(one: Appliance) -> None:
    image = one.box.push("quay.io", "signed/app:1", layer_sizes=(1000,))
    tag = image["digest"].replace(":", "-") + ".sig"
    assert ask(one, f"/v2/signed/app/manifests/{tag}")[0] == 404
    signature = one.box.push("quay.io", f"signed/app:{tag}", layer_sizes=(200,))
    one.wait(lambda: ask(one, f"/v2/signed/app/manifests/{tag}")[2] == signature["digest"], 15, "the signature")
    layer = parts(signature)[1]["digest"]
    assert one.blob_digest("quay", "signed/app", layer) == layer
    status, _, _, body = ask(one, f"/v2/signed/app/referrers/{image['digest']}")
    assert status == 404  # clients then use the tag
    assert json.loads(body)["errors"]


# --- many, and for long


def test_twenty_cold_clients_cost_the_image_once(one: Appliance) -> None:
    image = one.box.push("quay.io", "twenty/app:1", layer_sizes=(20 * MB, 5 * MB))
    before = one.received("quay.io")
    one.box.inet(
        "tc", "qdisc", "add", "dev", "wan", "root", "tbf", "rate", "100mbit", "burst", "128k", "latency", "200ms"
    )
    try:
        with ThreadPoolExecutor(20) as clients:
            layers = [part["digest"] for part in parts(image)]
            got = list(clients.map(lambda _: [blob(one, "twenty/app", digest) for digest in layers], range(20)))
    finally:
        one.box.inet("tc", "qdisc", "del", "dev", "wan", "root")
    assert got == [layers] * 20
    assert weight(image) <= one.received("quay.io") - before < weight(image) * 1.02


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_long_pull_runs_across_ten_reloads(one: Appliance, state: str) -> None:
    image = one.box.push("quay.io", f"long/{state}:1", layer_sizes=(200 * MB,))
    layer = parts(image)[1]["digest"]
    if state == "warm":
        assert one.blob_digest("quay", f"long/{state}", layer) == layer
    edge = one.starts("quay")
    with slow_pull(one, "quay", f"long/{state}", layer, rate=8 * MB):
        for _ in range(10):
            one.box.exec("systemctl", "reload", "mirror-quay-edge.service")
            time.sleep(0.5)
    assert one.starts("quay") == edge


# --- faults

FAULTS = ["refused", "tls", "429", "500", "503", "403", "hang", "trickle", "page", "no such name"]


@contextmanager
def fault(one: Appliance, kind: str) -> Iterator[None]:
    if kind == "refused":
        one.sh("systemctl stop box-upstream@quay.io")
        try:
            yield
        finally:
            one.sh("systemctl start box-upstream@quay.io")
            one.wait(lambda: _listens(one), 10, "the good upstream")
    elif kind == "no such name":
        one.box.gw("sh", "-c", "systemctl stop box-gateway-dns")
        try:
            yield
        finally:
            one.box.gw("sh", "-c", "systemctl start box-gateway-dns")
    else:
        with bad_upstream(one, kind):
            yield


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_cached_is_served_whatever_the_upstream_does(one: Appliance, kind: str) -> None:
    name = f"fault/{kind.replace(' ', '-')}"
    image = one.box.push("quay.io", f"{name}:1", layer_sizes=(MB,))
    one.pull(f"quay.io/{name}:1")
    assert ask(one, f"/v2/{name}/manifests/{image['digest']}")[0] == 200
    time.sleep(2 * FRESH + 0.5)  # the tag is stale: the upstream has to be asked
    with fault(one, kind):
        status, seconds, digest, _ = ask(one, f"/v2/{name}/manifests/{image['digest']}")
        assert (status, digest) == (200, image["digest"])
        assert seconds < 1
        assert blob(one, name, parts(image)[1]["digest"]) == parts(image)[1]["digest"]
        answers = [ask(one, f"/v2/{name}/manifests/1") for _ in range(4)]
        print(f"\n{kind}: stale tag {' '.join(f'{seconds:.3f}' for _, seconds, *_ in answers)} s")
        assert {(status, digest) for status, _, digest, _ in answers} == {(200, image["digest"])}
        assert answers[0][1] < 4  # the one that finds it out
        assert all(seconds < 1 for _, seconds, *_ in answers[1:])


@pytest.mark.parametrize("mode", ["truncate", "garble", "page", "429", "500"])
def test_nothing_wrong_is_kept(one: Appliance, mode: str) -> None:
    name = f"wrong/{mode}"
    image = one.box.push("quay.io", f"{name}:1", layer_sizes=(3 * MB,))
    layer = parts(image)[1]["digest"]
    with bad_upstream(one, mode):
        got = blob(one, name, layer)
        print(f"\n{mode}: {got}")
        assert got != layer
        assert not kept(one, layer)
        if mode != "truncate":
            status, _, digest, body = ask(one, f"/v2/{name}/manifests/{image['digest']}")
            assert status != 200, f"{digest}: {body[:200]}"
    if mode in ("garble", "page"):  # of the length that was told: only the digest tells, and the edge does not read it
        one.wait(lambda: blob(one, name, layer) == layer, 75, "the end of the minute for which the edge coalesces")
    assert blob(one, name, layer) == layer
    one.pull(f"quay.io/{name}:1")
    assert kept(one, layer)
