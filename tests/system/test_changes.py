"""Add, change and remove one mirror while a slow pull runs through another: neither it nor any other notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance import AGENT_TOML, CACHE, DEFINITIONS, FIVE, MB, STATE, Appliance, in_order, parts, slow_pull, weight
from schema import conforms

APP = "demo/app"
OTHERS = ("docker", "gcr", "ghcr")  # never touched here; the slow pull comes through docker


@pytest.fixture(scope="module")
def four(appliance: Appliance) -> Appliance:
    """Four mirrors that serve (one is to be added), a node that uses them, and something large to pull slowly."""
    names = [name for name in FIVE if name != "registry-k8s"]
    appliance.drop(*names)
    appliance.serving(*names)
    appliance.configure_node()
    return appliance


@pytest.fixture(scope="module")
def large(four: Appliance) -> str:
    """The digest of a blob of 25 MB in docker.io/slow/app: more than all buffers on its way hold."""
    image = four.box.push("docker.io", "slow/app:1", layer_sizes=(25 * MB,))
    return str(image["layers"][0]["digest"])


@contextmanager
def undisturbed(appliance: Appliance, large: str, *changing: str) -> Iterator[None]:
    """While the block runs, a pull through docker goes on, and no service or container of others is touched."""

    def running() -> tuple[dict[str, str], dict[str, str]]:
        containers = appliance.containers()
        mine = {f"mirror-{name}-{part}" for name in changing for part in ("infra", "edge", "registry")}
        others = [row["name"] for row in appliance.glance()["mirrors"] if row["name"] not in changing]
        return appliance.starts(*others), {name: start for name, start in containers.items() if name not in mine}

    before = running()
    assert {"mirror-docker-infra", "mirror-docker-edge", "mirror-docker-registry"} <= before[1].keys()
    with slow_pull(appliance, "docker", "slow/app", large):
        yield
    assert running() == before


def test_adding_one(four: Appliance, large: str) -> None:
    with undisturbed(four, large, "registry-k8s"):
        four.drop("registry-k8s")
        four.serving(*FIVE)
    four.configure_node()
    four.pull(f"registry.k8s.io/{APP}:1.0")


def test_another_policy_restarts_nothing(four: Appliance, large: str) -> None:
    with undisturbed(four, large):
        before = four.starts(*FIVE), four.containers()
        assert "AllowContactingSource" not in four.published("image-digest-mirror-set.yaml")
        four.define("quay", 'source = "quay.io"\npolicy = "AllowContactingSource"\n')
        four.wait(lambda: four.mirror("quay")["policy"] == "AllowContactingSource", 20, "the new policy")
        four.serving(*FIVE)
        four.settle()
        assert four.published("image-digest-mirror-set.yaml").count("AllowContactingSource") == 1
        assert (four.starts(*FIVE), four.containers()) == before


def test_another_address_restarts_its_pod_only(four: Appliance, large: str) -> None:
    old = four.mirror("quay")["address"]
    before = four.starts("quay")
    with undisturbed(four, large, "quay"):
        four.define("quay", 'source = "quay.io"\naddress = "10.0.0.55"\n')
        four.wait(lambda: four.hosts()["quay.mirror.lan"] == "10.0.0.55", 30, "the new address, published")
        four.serving(*FIVE)
    assert not set(four.starts("quay").values()) & set(before.values())
    four.configure_node()
    four.pull(f"quay.io/{APP}:1.0")
    gone = four.box.node("curl", "-sk", "-m", "4", f"https://{old}/v2/", check=False)
    assert gone.returncode in (7, 28), "the old address still answers"
    served = shown_at(four, "10.0.0.55")
    assert "IP Address:10.0.0.55" in served
    assert old not in served


@pytest.mark.parametrize("names", [("quay", "ghcr"), ("quay", "ghcr", "gcr")], ids=["two", "three"])
def test_mirrors_take_over_each_other_s_addresses_in_one_change(
    four: Appliance, large: str, names: tuple[str, ...]
) -> None:
    """Each gets the next one's, and one of them is slow to stop. No unit fails on the way."""
    addresses = [four.mirror(name)["address"] for name in names]
    wanted = dict(zip(names, addresses[1:] + addresses[:1], strict=True))
    with undisturbed(four, large, *names), slow_to_stop(four, "mirror-ghcr-registry.service"):
        since = four.cursor()
        for name, address in wanted.items():
            four.write(f"/tmp/{name}.toml", f'source = "{FIVE[name]}"\naddress = "{address}"\n')
        four.sh(f"mv {' '.join(f'/tmp/{name}.toml' for name in names)} {DEFINITIONS}/")
        four.wait(lambda: {n: four.hosts()[f"{n}.mirror.lan"] for n in names} == wanted, 60, "the addresses, published")
        four.serving(*FIVE)
    assert [line["MESSAGE"] for line in four.failures(since)] == []
    four.configure_node()
    for name, address in wanted.items():
        assert f"DNS:{name}.mirror.lan, IP Address:{address}" in shown_at(four, address)
        four.pull(f"{FIVE[name]}/{APP}:1.0")


@contextmanager
def slow_to_stop(appliance: Appliance, unit: str) -> Iterator[None]:
    """A unit that takes its time: what it runs in stops after it, so others are quicker."""
    folder = f"/etc/systemd/system/{unit}.d"
    appliance.sh(
        f"mkdir -p {folder}; printf '[Service]\\nExecStop=sleep 4\\n' > {folder}/slow.conf; systemctl daemon-reload"
    )
    try:
        yield
    finally:
        appliance.sh(f"rm -r {folder}; systemctl daemon-reload")


def shown_at(appliance: Appliance, address: str) -> str:
    """The names in the certificate that the node is shown at an address."""
    script = f"openssl s_client -connect {address}:443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
    return appliance.box.node("sh", "-c", script).stdout


@pytest.mark.parametrize("role", ["edge", "registry"])
def test_another_image_keeps_the_cache(four: Appliance, role: str) -> None:
    """An upgrade: another image under another name. What was pulled is served without the internet, by tag too."""
    image = four.box.push("ghcr.io", f"kept/{role}:1", layer_sizes=(2 * MB,))
    four.pull(f"ghcr.io/kept/{role}:1")
    before = four.starts("ghcr")
    official = {"edge": "docker.io/library/nginx:stable", "registry": "docker.io/library/registry:3"}[role]
    four.sh(f"podman create --quiet --name newer {official} && podman commit --quiet newer localhost/{role}:newer && "
            "podman rm newer")  # fmt: skip
    four.box.cut_internet()
    try:
        four.settings(f'{AGENT_TOML}[images]\n{role} = "localhost/{role}:newer"\n')
        four.wait(lambda: four.starts("ghcr").keys() == before.keys() != set() and four.starts("ghcr") != before,
                  60, "the other image")  # fmt: skip
        four.settle()
        changed = {unit for unit, start in four.starts("ghcr").items() if before.get(unit) != start}
        assert changed == {f"mirror-ghcr-{role}.service"}
        running = four.box.exec("podman", "inspect", "--format", "{{.ImageName}}", f"mirror-ghcr-{role}").stdout.strip()
        assert running == f"localhost/{role}:newer"
        four.box.node("podman", "rmi", "--all", "--force")
        four.pull(f"ghcr.io/kept/{role}:1")
        for blob in parts(image):
            assert four.blob_digest("ghcr", f"kept/{role}", blob["digest"]) == blob["digest"]
    finally:
        four.box.mend_internet()
        four.settings()
    four.wait(lambda: all(row["state"] == "serving" for row in four.glance()["mirrors"]), 60, "the official image")
    four.settle()


def test_another_remote_restarts_its_registry_only(four: Appliance, large: str) -> None:
    """gcr.io has an image that quay.io has not; the edge keeps its connections."""
    four.box.push("gcr.io", "only/there:1")
    before = four.starts("quay")
    with undisturbed(four, large, "quay"):
        four.define("quay", 'source = "quay.io"\naddress = "10.0.0.55"\nremote = "https://gcr.io"\n')
        four.wait(lambda: four.starts("quay") != before, 30, "the registry's restart")
        four.settle()
        four.serving(*FIVE)
    changed = {unit for unit, start in four.starts("quay").items() if before[unit] != start}
    assert changed == {"mirror-quay-registry.service"}
    pull = ("podman", "pull", "--quiet", "quay.io/only/there:1")
    four.wait(lambda: four.box.node(*pull, check=False).returncode == 0, 20, "a pull, by a registry that was restarted")


def test_removing_one_keeps_what_it_had_and_it_comes_back_with_it(four: Appliance, large: str) -> None:
    four.box.node_reset()
    four.pull(f"ghcr.io/{APP}:1.0")
    address, since = four.mirror("ghcr")["address"], four.cursor()
    with undisturbed(four, large, "ghcr"):
        four.remove("ghcr")
        four.serving(*(name for name in FIVE if name != "ghcr"))
        four.settle()
    assert four.starts("ghcr") == {}
    assert four.sh("ls /etc/containers/systemd/mirror-agent/*ghcr* 2>/dev/null", check=False) == ""
    assert four.sh("systemctl list-units --all --plain --no-legend 'mirror-ghcr*'") == ""
    assert "ghcr" not in four.published("hosts") + four.published("image-digest-mirror-set.yaml")
    assert json.loads(four.sh(f"cat {STATE}/leases.json"))["leases"]["ghcr"] == address
    in_order(
        four.journal("MIRROR=ghcr", since=since),
        {"ACTION": "read", "UPSTREAM": "ghcr.io"},
        {"ACTION": "stop-units", "UPSTREAM": "ghcr.io"},
        {"ACTION": "delete-file", "UPSTREAM": "ghcr.io"},
    )

    before = four.received("ghcr.io")
    four.drop("ghcr")
    four.serving(*FIVE)
    assert four.mirror("ghcr")["address"] == address
    four.configure_node()
    four.box.node_reset()
    four.pull(f"ghcr.io/{APP}:1.0")
    image = four.box.images()["ghcr.io"][f"{APP}:1.0"]
    assert four.received("ghcr.io") - before < 0.02 * weight(image), "blobs came from the upstream again"
    for blob in parts(image):
        assert four.blob_digest("ghcr", APP, blob["digest"]) == blob["digest"]


def test_purge_drops_what_a_removed_mirror_left_and_never_that_of_one_that_exists(four: Appliance) -> None:
    refused = four.box.exec("mirror-agent", "purge", "gcr", check=False)
    assert refused.returncode == 1
    assert "gcr: its mirror exists" in refused.stdout + refused.stderr
    four.pull(f"gcr.io/{APP}:1.0")
    four.box.exec("mirror-agent", "warm", "--keep", "friday", f"gcr.io/{APP}:1.0")
    address = four.mirror("gcr")["address"]

    four.remove("gcr")
    four.serving(*(name for name in FIVE if name != "gcr"))
    four.settle()
    assert four.sh(f"find {CACHE}/gcr -name data | head -1") != ""
    told = json.loads(four.sh("mirror-agent cache --json"))
    conforms("cache", told)
    (left,) = told["left"]
    assert (left["name"], left["address"], left["certificate"], left["pinned"]) == ("gcr", address, True, 1)
    assert left["size"] >= weight(four.box.images()["gcr.io"][f"{APP}:1.0"])
    assert four.sh("mirror-agent cache").splitlines()[-1].split()[::3] == ["gcr", "yes"]
    four.box.exec("mirror-agent", "purge", "gcr")
    told = json.loads(four.sh("mirror-agent cache --json"))
    assert (told["left"], told["sets"]) == ([], [])
    assert four.sh(f"ls -d {CACHE}/gcr {STATE}/mirrors/gcr 2>/dev/null", check=False) == ""
    assert "gcr" not in json.loads(four.sh(f"cat {STATE}/leases.json"))["leases"]
    four.settle()
    assert "gcr" not in json.loads(four.sh(f"cat {STATE}/leases.json"))["leases"], "the agent wrote the lease again"
    four.box.exec("systemctl", "restart", "mirror-agent")  # which writes what it counted
    assert "gcr" not in json.loads(four.sh(f"cat {STATE}/usage.json"))["mirrors"]
    assert four.box.exec("mirror-agent", "purge", "gcr", check=False).returncode == 1

    before = four.received("gcr.io")
    four.drop("gcr")
    four.serving(*FIVE)
    four.box.node_reset()
    four.configure_node()
    four.pull(f"gcr.io/{APP}:1.0")
    assert four.received("gcr.io") - before > weight(four.box.images()["gcr.io"][f"{APP}:1.0"])


def test_a_masked_name_is_no_mirror(four: Appliance) -> None:
    four.sh(f"cp {four.examples}/gcr.toml /tmp/gcr.toml; ln -sfn /dev/null /etc/mirror-agent.d/gcr.toml")
    four.serving(*(name for name in FIVE if name != "gcr"))
    assert four.glance()["problems"] == []
    four.sh("rm /etc/mirror-agent.d/gcr.toml; cp /tmp/gcr.toml /etc/mirror-agent.d/")
    four.serving(*FIVE)


def test_readers_of_the_folder_never_see_half_of_anything(four: Appliance) -> None:
    """A reader as fast as it can, while the publication changes: each file is there, as it was or as it will be."""
    script = """
import hashlib, os, sys
folder, seen = sys.argv[1], {}
while not os.path.exists("/tmp/readers-stop"):
    for base, _, names in os.walk(folder):
        for name in (name for name in names if name[0] != "."):
            path = os.path.join(base, name)
            try:
                with open(path, "rb") as file:
                    content = file.read()
                whole = name == "index.html" and content.rstrip().endswith(b"</html>")  # it changes by itself
                seen.setdefault(path, set()).add("whole" if whole else hashlib.sha256(content).hexdigest())
            except FileNotFoundError:
                seen.setdefault(path, set()).add("gone")
import json
json.dump({path: sorted(digests) for path, digests in seen.items()}, open("/tmp/readers-saw", "w"))
"""
    # hidden files are on their way to a name
    four.sh(f"rm -f /tmp/readers-*; (setpriv --reuid=nobody --clear-groups python3 -c '{script}' /srv/publish; "
            "touch /tmp/readers-done) >/dev/null 2>/tmp/readers-said &")  # fmt: skip
    allowed: dict[str, set[str]] = {}
    for policy in ("AllowContactingSource", "NeverContactSource") * 3:
        collect(four, allowed)
        four.define("quay", f'source = "quay.io"\naddress = "10.0.0.55"\npolicy = "{policy}"\n')
        four.wait(lambda wanted=policy: four.mirror("quay")["policy"] == wanted, 20, policy)  # type: ignore[misc]
        four.serving(*FIVE)
    collect(four, allowed)
    four.sh("touch /tmp/readers-stop; while [ ! -e /tmp/readers-done ]; do sleep 0.1; done")
    saw = {
        path: set(digests)
        for path, digests in json.loads(four.sh("cat /tmp/readers-said >&2; cat /tmp/readers-saw")).items()
    }
    changed = [path for path, digests in saw.items() if len(digests) > 1]
    assert len(changed) >= 3, "the reader saw no change: it proved nothing"
    assert saw.keys() == allowed.keys()
    allowed = {path: {"whole"} if path.endswith("/index.html") else digests for path, digests in allowed.items()}
    assert {path: more for path in saw if (more := saw[path] - allowed[path])} == {}


def collect(appliance: Appliance, into: dict[str, set[str]]) -> None:
    for line in appliance.sh("find /srv/publish -type f ! -name '.*' -exec sha256sum {} +").splitlines():
        digest, path = line.split()
        into.setdefault(path, set()).add(digest)
