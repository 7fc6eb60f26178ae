"""Lists of images are brought into the mirrors, and stay as long as they are kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from appliance import AGENT_TOML, MB, Appliance, parts, sha256, weight
from client import throttled
from test_small_disk import STORE, cached_bytes, has, start, stop, whole

LIST = "/etc/mirror-agent/images"
FRESH = '[cache]\nfresh = "1h"\n'  # bytes are counted here: no tag is asked for again, however slow the machine
QUAY = f'source = "quay.io"\n{FRESH}'
# what an allow list of "yes/*" must not let through
AROUND = (
    "yes/../no/app/manifests/1", "no%2fapp/manifests/1", "yes/%2e%2e/no/app/manifests/1", "%6eo/app/tags/list",
    "no/app/manifests/1%0a", "no/app/manifests/1?ns=quay.io", "no/app/manifests/1/../../../yes/app/manifests/1",
)  # fmt: skip
INDEX, MANIFEST = (f"application/vnd.oci.image.{kind}.v1+json" for kind in ("index", "manifest"))


@pytest.fixture(scope="module")
def warmed(bare: Appliance) -> Appliance:
    """Two mirrors, quay's with a small budget, and a node."""
    bare.settings(AGENT_TOML + '[cache]\nbudget = "256MiB"\n')
    bare.enable()
    bare.define("quay", QUAY)
    bare.define("docker", f'source = "docker.io"\n{FRESH}')
    bare.serving("quay", "docker")
    bare.until_asked("docker")  # bytes are counted here
    bare.configure_node()
    return bare


def warm(appliance: Appliance, *words: str, code: int = 0) -> dict[str, Any]:
    done = appliance.box.exec("mirror-agent", "warm", "--json", *words, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def troubles(told: dict[str, Any]) -> dict[str, str]:
    return {row["image"]: row["trouble"] for row in told["images"]}


def test_a_node_that_pulls_what_was_warmed_causes_no_byte_upstream(warmed: Appliance) -> None:
    one = warmed.box.push("quay.io", "warm/one:1", layer_sizes=(20 * MB, 5 * MB))
    two = warmed.box.push("docker.io", "library/two:1", layer_sizes=(10 * MB,))
    warmed.write(LIST, "# what the cluster needs\nquay.io/warm/one:1\ndocker.io/two:1\n")
    before = {source: warmed.received(source) for source in ("quay.io", "registry-1.docker.io")}
    told = warm(warmed, LIST, f"quay.io/warm/one@{one['digest']}")
    assert told["fetched"] == told["bytes"] == weight(one) + weight(two)
    assert weight(one) <= warmed.received("quay.io") - before["quay.io"] < weight(one) * 1.02
    with warmed.not_asked(*before):
        for image in ("quay.io/warm/one:1", f"quay.io/warm/one@{one['digest']}", "docker.io/library/two:1"):
            warmed.pull(image)
            warmed.box.node("podman", "rmi", "--all", "--force")


def test_what_is_there_is_not_fetched_again(warmed: Appliance) -> None:
    told = warm(warmed, LIST)
    assert told["fetched"] == 0
    assert told["there"] == told["bytes"] > 0


def test_a_run_that_was_killed_goes_on_where_it_was(warmed: Appliance) -> None:
    image = warmed.box.push("quay.io", "warm/long:1", layer_sizes=[5 * MB] * 8)
    before = warmed.received("quay.io")
    with throttled(warmed.box, "20mbit"):  # 16 s for all of it
        warmed.sh("systemd-run --quiet --collect --unit=warming mirror-agent warm --jobs 2 quay.io/warm/long:1")
        warmed.wait(lambda: warmed.received("quay.io") - before > 11 * MB, 20, "two of eight, and a part of others")
        assert warmed.property("warming", "ActiveState") == "active"
        warmed.sh("systemctl kill --signal=KILL warming")
    warmed.wait(
        lambda: not warmed.sh(f"find {STORE} -path '*_uploads*' -name data"), 20, "the end of what was under way"
    )
    told = warm(warmed, "quay.io/warm/long:1")
    assert 0 < told["there"] < weight(image)
    assert told["there"] + told["fetched"] == told["bytes"] == weight(image)
    assert whole(warmed, image)


def test_platforms_are_those_that_were_chosen(warmed: Appliance) -> None:
    image = warmed.box.images()["quay.io"]["podman/hello:latest"]["platforms"]
    digests = {name: {blob["digest"] for blob in parts(part)} for name, part in image.items()}
    assert digests["linux/amd64"] != digests["linux/arm64"]
    warm(warmed, "--platform", "linux/amd64", "quay.io/podman/hello:latest")
    assert not all(has(warmed, digest) for digest in digests["linux/arm64"])
    warm(warmed, "--platform", "all", "quay.io/podman/hello:latest")
    assert all(has(warmed, digest) for platform in digests.values() for digest in platform)


def test_an_index_in_an_index_brings_its_images(warmed: Appliance) -> None:
    image = warmed.box.push("quay.io", "nested/app:image", layer_sizes=(3000,))
    inner = put_index(warmed, "nested/app:inner", {**image, "platform": {"os": "linux", "architecture": "amd64"}})
    put_index(warmed, "nested/app:1", inner)  # it is for no platform: what is in it is
    warm(warmed, "--platform", "linux/amd64", "--keep", "nested", "quay.io/nested/app:1")
    assert whole(warmed, image)
    rows = json.loads(warmed.sh("mirror-agent cache --json quay"))["images"]
    assert [row["tags"] for row in rows if row["kept"] == ["nested"]] == [["1"]]
    warmed.box.exec("mirror-agent", "release", "nested")


def put_index(warmed: Appliance, name: str, *entries: dict[str, Any]) -> dict[str, Any]:
    """Push an index of what is there already; its descriptor."""
    repository, _, tag = name.partition(":")
    wanted = ("mediaType", "digest", "size", "platform")
    kinds = [{"mediaType": MANIFEST, "size": 1, **entry} for entry in entries]
    index = {"mediaType": INDEX, "manifests": [{key: each[key] for key in wanted if key in each} for each in kinds]}
    text = json.dumps({"schemaVersion": 2, **index})
    url = f"https://quay.io/v2/{repository}/manifests/{tag}"
    command = ("curl", "-sS", "--fail", "-X", "PUT", "-H", f"Content-Type: {INDEX}", "--data-binary", "@-", url)
    warmed.box.inet(*command, input=text)
    return {"mediaType": INDEX, "digest": f"sha256:{sha256(text)}", "size": len(text)}


def test_a_layer_by_sha512_is_brought_too(warmed: Appliance) -> None:
    layer = "the bytes of a layer " * 1000
    image = json.loads(warmed.box.inet("python3", "-c", PUSH_BY_SHA512, "by512/app", layer).stdout)
    digest = image["layers"][0]["digest"]
    assert digest == f"sha512:{hashlib.sha512(layer.encode()).hexdigest()}"
    told = warm(warmed, "--keep", "by512", "quay.io/by512/app:1")
    assert told["fetched"] == told["bytes"] == sum(each["size"] for each in (image["config"], *image["layers"]))
    again = warm(warmed, "quay.io/by512/app:1")
    assert (again["fetched"], again["there"]) == (0, told["bytes"])
    command = [*warmed.curl_command("quay"), f"https://quay.mirror.lan/v2/by512/app/blobs/{digest}"]
    with warmed.not_asked("quay.io"):
        assert warmed.box.node(*command).stdout == layer
    warmed.box.exec("mirror-agent", "release", "by512")


def test_a_manifest_by_sha512_is_told_to_be_none_that_a_mirror_keeps(warmed: Appliance) -> None:
    text = f"quay.io/by512/app@sha512:{'1' * 128}"
    assert "keeps it only when it is asked for by tag or by sha256" in troubles(warm(warmed, text, code=1))[text]


# An image whose layer has another digest than sha256: its manifest as JSON.
PUSH_BY_SHA512 = """
import hashlib, json, sys, urllib.request
kinds, base = "application/vnd.oci.image.", "https://quay.io/v2/" + sys.argv[1]
def send(method, url, content, kind="application/octet-stream"):
    return urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": kind}, method=method))
def blob(content, algorithm, kind):
    digest = algorithm + ":" + hashlib.new(algorithm, content).hexdigest()
    place = send("POST", base + "/blobs/uploads/", b"").headers["Location"]
    send("PUT", place + ("&" if "?" in place else "?") + "digest=" + digest, content)
    return {"mediaType": kinds + kind, "digest": digest, "size": len(content)}
config = blob(b'{"architecture": "amd64", "os": "linux"}', "sha256", "config.v1+json")
layer = blob(sys.argv[2].encode(), "sha512", "layer.v1.tar")
manifest = {"schemaVersion": 2, "mediaType": kinds + "manifest.v1+json", "config": config, "layers": [layer]}
send("PUT", base + "/manifests/1", json.dumps(manifest).encode(), kinds + "manifest.v1+json")
print(json.dumps(manifest))
"""


def test_what_fails_is_told_and_the_rest_is_warmed(warmed: Appliance) -> None:
    good = warmed.box.push("quay.io", "warm/good:1", layer_sizes=(1000,))
    told = troubles(warm(warmed, "quay.io/warm/good:1", "quay.io/warm/nothing:1", "gcr.io/x/y:1", "nginx", code=1))
    assert told.pop("quay.io/warm/good:1") == ""
    assert whole(warmed, good)
    assert "404" in told.pop("quay.io/warm/nothing:1")
    assert "no mirror" in told.pop("gcr.io/x/y:1")
    assert "registry" in told.pop("nginx")
    assert not told


def test_an_openshift_release_brings_its_payload(warmed: Appliance) -> None:
    payload = [warmed.box.push("quay.io", f"payload/{name}:1", layer_sizes=(MB,)) for name in "abc"]
    names = [f"quay.io/payload/{name}@{image['digest']}" for name, image in zip("abc", payload, strict=True)]
    push_release(warmed, names)
    told = troubles(warm(warmed, "quay.io/ocp/release:4.20"))
    assert told == dict.fromkeys(["quay.io/ocp/release:4.20", *names], "")
    assert all(whole(warmed, image) for image in payload)


def push_release(appliance: Appliance, names: list[str]) -> None:
    """An image as OpenShift's releases are: a label, and a list of images in its last layer."""
    stream = {"kind": "ImageStream", "spec": {"tags": [{"from": {"kind": "DockerImage", "name": n}} for n in names]}}
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        text = json.dumps(stream).encode()
        entry = tarfile.TarInfo("release-manifests/image-references")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    config = {"architecture": "amd64", "os": "linux", "config": {"Labels": {"io.openshift.release": "4.20"}}}
    script = """
import base64, hashlib, json, os, sys
work = "/tmp/release"; os.makedirs(work, exist_ok=True)
def put(content):
    digest = hashlib.sha256(content).hexdigest()
    open(work + "/" + digest, "wb").write(content)
    return {"digest": "sha256:" + digest, "size": len(content)}
layer, config = (base64.b64decode(word) for word in sys.argv[1:3])
kinds = "application/vnd.oci.image."
manifest = {"schemaVersion": 2, "mediaType": kinds + "manifest.v1+json",
    "config": {"mediaType": kinds + "config.v1+json", **put(config)},
    "layers": [{"mediaType": kinds + "layer.v1.tar+gzip", **put(layer)}]}
open(work + "/manifest.json", "w").write(json.dumps(manifest))
open(work + "/version", "w").write("Directory Transport Version: 1.1\\n")
"""
    import base64

    words = [base64.b64encode(each).decode() for each in (gzip.compress(layer.getvalue()), json.dumps(config).encode())]
    appliance.box.inet("python3", "-c", script, *words)
    appliance.box.inet("skopeo", "copy", "--quiet", "dir:/tmp/release", "docker://quay.io/ocp/release:4.20")


def test_what_is_kept_stays_until_it_is_released(warmed: Appliance) -> None:
    kept = warmed.box.push("quay.io", "evict/kept:1", layer_sizes=(120 * MB,))
    warm(warmed, "--keep", "cluster", "quay.io/evict/kept:1")
    others = [warmed.box.push("quay.io", f"evict/other{n}:1", layer_sizes=(100 * MB,)) for n in range(2)]
    warm(warmed, "quay.io/evict/other0:1", "quay.io/evict/other1:1")
    stop(warmed, kept=90, other0=5, other1=4)
    start(warmed)
    assert whole(warmed, kept)
    assert cached_bytes(warmed) <= 256 * 2**20
    rows = {row["repository"]: row for row in json.loads(warmed.sh("mirror-agent cache --json quay"))["images"]}
    assert rows["evict/kept"]["kept"] == ["cluster"]
    assert rows["evict/kept"]["tags"] == ["1"]
    assert rows["evict/kept"]["size"] >= weight(kept)

    warmed.box.exec("mirror-agent", "release", "cluster")
    assert warmed.box.exec("mirror-agent", "release", "cluster", check=False).returncode == 1
    warm(warmed, *(f"quay.io/evict/other{n}:1" for n in range(2)))
    stop(warmed, kept=90, other0=5, other1=4)
    start(warmed)
    assert not whole(warmed, kept)
    assert whole(warmed, others[1])


def test_two_runs_at_once_keep_both_sets(warmed: Appliance) -> None:
    for name in "xy":
        warmed.box.push("quay.io", f"both/{name}:1", layer_sizes=(1000,) * 3)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: warm(warmed, "--keep", f"set-{name}", f"quay.io/both/{name}:1"), "xy"))
    rows = json.loads(warmed.sh("mirror-agent cache --json quay"))["images"]
    assert {row["repository"]: row["kept"] for row in rows if row["kept"]} == {"both/x": ["set-x"], "both/y": ["set-y"]}


def test_what_is_not_allowed_is_denied(warmed: Appliance) -> None:
    for name in ("yes/app", "no/app", "yes"):
        warmed.box.push("quay.io", f"{name}:1", layer_sizes=(1000,))
    warmed.define("quay", f'source = "quay.io"\nallow = ["yes/*", "podman/hello"]\n{FRESH}')
    warmed.settle()
    starts = warmed.starts("quay")
    told = troubles(warm(warmed, "quay.io/yes/app:1", "quay.io/no/app:1", "quay.io/yes:1", code=1))
    assert told["quay.io/yes/app:1"] == ""
    assert "403 DENIED" in told["quay.io/no/app:1"]
    assert "403 DENIED" in told["quay.io/yes:1"]
    command = [*warmed.curl_command("quay"), "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}"]
    for path in AROUND:
        assert warmed.box.node(*command, f"https://quay.mirror.lan/v2/{path}").stdout == "403", path
    warmed.define("quay", QUAY)
    warmed.settle()
    assert troubles(warm(warmed, "quay.io/no/app:1")) == {"quay.io/no/app:1": ""}
    assert warmed.starts("quay") == starts  # a reload each, no restart


def test_the_numbers_are_in_status_and_metrics(warmed: Appliance) -> None:
    image = warmed.box.push("quay.io", "numbers/app:1", layer_sizes=(10 * MB,))
    warmed.settle()
    before = warmed.mirror("quay")["cache"]
    crossed = warmed.received("quay.io")
    warmed.pull("quay.io/numbers/app:1")
    warmed.box.node("podman", "rmi", "--all", "--force")
    warmed.pull("quay.io/numbers/app:1")
    crossed = warmed.received("quay.io") - crossed
    warmed.logged("quay")
    warmed.settle()
    after = warmed.mirror("quay")["cache"]
    grown = {key: after[key] - before[key] for key in after}
    assert grown["misses"] == 1 + len(parts(image))  # the tag, and each blob
    assert grown["hits"] >= len(parts(image))
    assert weight(image) <= grown["fetched"] < weight(image) * 1.01
    # what crossed has TLS besides: 22 bytes a record of 16 kB, small ones at first, handshakes; and what was sent twice
    # because a busy machine was late to acknowledge it
    assert -0.01 * weight(image) < crossed - grown["fetched"] < 0.02 * weight(image)
    assert 2 * weight(image) <= grown["sent"] < 2 * weight(image) * 1.01
    assert grown["errors"] == 0
    metrics = warmed.sh("cat /run/mirror-agent/metrics.prom")
    line = next(
        line for line in metrics.splitlines() if line.startswith('mirror_agent_fetched_bytes_total{mirror="quay"')
    )
    assert float(line.split()[-1]) == after["fetched"]

    warmed.box.reboot()  # counters survive it
    warmed.serving("quay", "docker")
    warmed.settle()
    assert warmed.mirror("quay")["cache"]["fetched"] >= after["fetched"]
    assert warmed.status()["free"] > 0
