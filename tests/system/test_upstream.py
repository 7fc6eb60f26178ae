"""The appliance and its upstream: moved tags, signatures, how often it asks, many clients, and for long."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance import MB, Appliance, parts, slow_pull, weight
from client import TooSlow, patiently

FRESH = 2  # seconds, of quay's tags
MANIFESTS = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
MANIFESTS += ", application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS += ", application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module")
def one(appliance: Appliance) -> Appliance:
    """One mirror, whose tags are fresh for two seconds."""
    appliance.define("quay", f'source = "quay.io"\n[cache]\nfresh = "{FRESH}s"\n')
    appliance.serving("quay")
    appliance.configure_node()
    return appliance


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


def questions(one: Appliance, repository: str, method: str, since: str) -> int:
    """How often the upstream was asked for manifests of a repository."""
    return sum(line.startswith(f"{method} /v2/{repository}/manifests/") for line in one.asked("quay.io", since))


# --- tags


def test_a_moved_tag_is_seen_within_its_freshness_and_delays_no_pull(one: Appliance) -> None:
    def moves(turn: int) -> None:
        name = f"moving/app{turn}"
        old = one.box.push("quay.io", f"{name}:1", layer_sizes=(1000,))
        assert ask(one, f"/v2/{name}/manifests/1")[2] == old["digest"]
        new = one.box.push("quay.io", f"{name}:1", layer_sizes=(1000,), seed=1)
        moved, slowest = time.monotonic(), 0.0
        while True:
            _, seconds, digest, _ = ask(one, f"/v2/{name}/manifests/1")
            slowest = max(slowest, seconds)
            if digest == new["digest"]:
                break
            assert digest == old["digest"]
            if time.monotonic() - moved >= 2 * FRESH + 5:  # fresh, then once more while it asks
                raise TooSlow("the new one was not seen")
        print(f"\nseen after {time.monotonic() - moved:.1f} s, slowest answer {slowest:.3f} s")
        if slowest >= 1:
            raise TooSlow(f"{slowest:.3f} s for an answer")

    patiently(moves)


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
