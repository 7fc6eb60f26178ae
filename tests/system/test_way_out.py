"""The way from a mirror to its upstream: a private CA, an HTTP proxy, a bandwidth."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from appliance import MB, Appliance, parts, weight
from box.topology import TOKEN_HOST, WAN_INTERNET, upstream

CA_FILE = "/etc/mirror-agent/tls/company.crt"
WITH_CA = f'source = "quay.io"\n[cache]\nfresh = "1s"\n[upstream]\nca = "{CA_FILE}"\npull_limit = true\n'
PROXY = f"http://{WAN_INTERNET}:3128"
RATE = 4 * MB  # bytes per second
UNSEEN = ("ca/before", "ca/after", "ca/old", "ca/new", "ca/nonsense", "ca/gone", "proxy/host")
LAYERS: dict[str, str] = {}  # of those images, by repository
AHEAD = 12 * MB  # bytes of one download that may wait in buffers

# A CA of its own, and a certificate of it for quay.io, in the place of the public one.
_PRIVATE = """
set -e
cd "$(mktemp -d)"
pki=/etc/box/pki
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30'
openssl req -x509 $key -subj "/CN=$1" -keyout ca.key -out ca.crt 2>/dev/null
openssl req -x509 -CA ca.crt -CAkey ca.key $key -subj /CN=quay.io -addext subjectAltName=DNS:quay.io \
    -addext basicConstraints=critical,CA:FALSE -keyout $pki/quay.io.key -out $pki/quay.io.crt 2>/dev/null
systemctl restart box-upstream@quay.io
cat ca.crt
"""
# Nothing of the LAN gets to the internet, but to the proxy.
_ONLY_PROXY = f"""
table ip only_proxy {{
  chain forward {{ type filter hook forward priority 0; iifname lan0 oifname wan ip daddr != {WAN_INTERNET} drop; }}
}}
"""


@pytest.fixture(scope="module")
def two(appliance: Appliance) -> Appliance:
    """A mirror of quay.io, and one of docker.io that nothing here may restart."""
    appliance.sh("mkdir -p /etc/mirror-agent/tls")
    appliance.define("quay", 'source = "quay.io"\n[cache]\nfresh = "1s"\n')
    appliance.drop("docker")
    appliance.serving("quay", "docker")
    appliance.until_asked("docker")  # bytes are counted here
    appliance.configure_node()
    for name in UNSEEN:  # now: nobody pushes to an upstream with a private CA
        image = appliance.box.push("quay.io", f"{name}:1", layer_sizes=(1000,))
        LAYERS[name] = parts(image)[1]["digest"]
    return appliance


def issue(two: Appliance, name: str) -> str:
    """Give quay.io a certificate of a new CA; that CA's certificate."""
    return two.sh(f"sh -c {shlex.quote(_PRIVATE)} private {shlex.quote(name)}")


def status(two: Appliance, name: str, path: str) -> str:
    """The HTTP status that the node gets."""
    command = two.curl_command(name)
    return two.box.node(
        *command, "-o", "/dev/null", "-w", "%{http_code}", f"https://{name}.mirror.lan{path}", check=False
    ).stdout


def fetched(two: Appliance, repository: str) -> str:
    """The status for a blob that no mirror has seen."""
    return status(two, "quay", f"/v2/{repository}/blobs/{LAYERS[repository]}")


# --- a private CA


def test_an_upstream_with_a_private_ca_is_refused_until_its_ca_is_named(two: Appliance) -> None:
    private = issue(two, "Company CA")
    assert fetched(two, "ca/before") == "503"
    before = two.starts("quay", "docker")
    two.write(CA_FILE, private)
    two.define("quay", WITH_CA)
    two.settle()
    two.serving("quay", "docker")
    two.wait(lambda: fetched(two, "ca/after") == "200", 15, "a pull with the CA, by a registry that was started again")
    changed = {unit for unit, start in two.starts("quay", "docker").items() if start != before[unit]}
    assert changed == {"mirror-quay-registry.service"}
    two.until_asked("quay")  # by the agent, which trusts that CA too
    assert (two.pull_limit("quay")["limit"], two.pull_limit("quay")["error"]) == (None, "")


def test_a_replaced_ca_is_taken_up_by_itself(two: Appliance) -> None:
    before = two.starts("quay", "docker")
    private = issue(two, "Company CA 2")
    assert fetched(two, "ca/old") == "503"
    since = two.cursor()
    two.write(CA_FILE, private)
    two.until_said("mirror-quay-registry", since)
    two.wait(lambda: fetched(two, "ca/new") == "200", 15, "a pull with the new CA")
    changed = {unit for unit, start in two.starts("quay", "docker").items() if start != before[unit]}
    assert changed == {"mirror-quay-registry.service"}


@pytest.mark.parametrize(("name", "damage"), [("nonsense", "echo nonsense > {}"), ("gone", "rm {}")])
def test_a_bad_ca_file_is_told_and_changes_nothing(two: Appliance, name: str, damage: str) -> None:
    before, good = two.starts("quay", "docker"), two.sh(f"cat {CA_FILE}")
    two.sh(damage.format(CA_FILE))
    two.settle()
    (problem,) = two.glance()["problems"]
    assert (problem["file"], problem["key"]) == ("quay.toml", "upstream.ca")
    assert fetched(two, f"ca/{name}") == "200"
    assert two.starts("quay", "docker") == before
    two.write(CA_FILE, good)
    two.settle()
    assert two.glance()["problems"] == []


def test_public_certificates_are_trusted_as_before(two: Appliance) -> None:
    """The named CA comes beside the public ones."""
    two.define("ghcr", f'source = "ghcr.io"\n[upstream]\nca = "{CA_FILE}"\n')
    two.serving("quay", "docker", "ghcr")
    two.remove("ghcr")
    two.serving("quay", "docker")


# --- an HTTP proxy


@contextmanager
def proxy(two: Appliance) -> Iterator[None]:
    """The only way out of the LAN."""
    two.write("/root/proxy.conf", f"Port 3128\nListen {WAN_INTERNET}\nTimeout 60\nLogLevel Connect\nConnectPort 443\n")
    names = "BindReadOnlyPaths=/etc/netns/inet/resolv.conf:/etc/resolv.conf"
    inside = ("-p", "NetworkNamespacePath=/run/netns/inet", "-p", names)
    program = ("/usr/libexec/box/tinyproxy", "-d", "-c", "/root/proxy.conf")
    two.box.exec("systemd-run", "--quiet", "--unit=proxy", *inside, *program)
    listens = ("sh", "-c", f"ss -ltnH src {WAN_INTERNET}:3128 | grep -q .")
    two.wait(lambda: two.box.inet(*listens, check=False).returncode == 0, 20, "the proxy")
    two.box.gw("nft", "-f", "-", input=_ONLY_PROXY)
    try:
        yield
    finally:
        two.box.gw("nft", "delete", "table", "ip", "only_proxy")
        two.box.exec("systemctl", "stop", "proxy")


def test_a_mirror_with_a_proxy_asks_nobody_else(two: Appliance) -> None:
    """Neither the registry nor its token service."""
    image = two.box.push("docker.io", "library/proxied:1", layer_sizes=(2 * MB,))
    quay = two.starts("quay")
    with proxy(two):
        assert status(two, "docker", "/v2/library/proxied/manifests/1") in ("404", "503")  # there is no other way
        before = two.box.bytes()
        two.define("docker", f'source = "docker.io"\n[upstream]\nproxy = "{PROXY}"\n')
        two.settle()
        two.wait(
            lambda: status(two, "docker", "/v2/library/proxied/manifests/1") == "200", 15, "a manifest by the proxy"
        )
        two.pull("docker.io/library/proxied:1")
        assert two.ask_again("docker")["remaining"] == 76  # the agent's question too
        after = two.box.bytes()
        said = two.box.journal("-u", "proxy", "-o", "cat")
    for host in (upstream("docker.io").host, TOKEN_HOST):
        assert f"CONNECT {host}:443" in said
        assert after[host] == before[host]
    assert after["total"].rx - before["total"].rx > weight(image)
    assert two.starts("quay") == quay


def test_a_proxy_of_the_host_is_none_of_the_mirror_s(two: Appliance) -> None:
    """systemd's environment goes to all services, and podman would hand it on: to a proxy that is not there."""
    two.define("quay", WITH_CA)
    two.settle()
    two.sh("systemctl set-environment HTTPS_PROXY=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9")
    try:
        two.box.exec("systemctl", "restart", "mirror-quay-pod")
        two.wait(lambda: fetched(two, "proxy/host") == "200", 20, "a download after the restart")
        variables = "cat /proc/$(podman inspect -f '{{.State.Pid}}' mirror-quay-%s)/environ"
        for role in ("edge", "registry"):
            assert "proxy" not in two.sh(variables % role).lower()
    finally:
        two.sh("systemctl unset-environment HTTPS_PROXY https_proxy")


# --- a bandwidth


def test_all_downloads_of_a_mirror_share_its_bandwidth(two: Appliance) -> None:
    two.define("ghcr", f'source = "ghcr.io"\n[upstream]\nbandwidth = "{RATE // MB}MB/s"\n')
    two.serving("quay", "docker", "ghcr")
    two.configure_node()
    image = two.box.push("ghcr.io", "wide/app:1", layer_sizes=(30 * MB, 30 * MB))
    layers = [part["digest"] for part in parts(image)[1:]]
    before, begin = two.received("ghcr.io"), time.monotonic()
    with ThreadPoolExecutor(len(layers)) as clients:
        pulls = [clients.submit(two.blob_digest, "ghcr", "wide/app", digest) for digest in layers]
        while not all(pull.done() for pull in pulls):
            came = two.received("ghcr.io") - before
            # looked at afterwards: a busy machine makes the time longer, never shorter
            allowed = RATE * (time.monotonic() - begin) + len(layers) * AHEAD
            assert came < allowed * 1.05
            time.sleep(0.5)
        assert [pull.result() for pull in pulls] == layers
    cold = time.monotonic() - begin
    assert cold > weight(image) / RATE * 0.9
    came = two.received("ghcr.io") - before
    assert came < weight(image) * 1.02  # nothing is lost on the way, and sent again
    begin = time.monotonic()
    assert [two.blob_digest("ghcr", "wide/app", digest) for digest in layers] == layers
    warm = time.monotonic() - begin
    print(f"\n{weight(image) / MB:.0f} MB at {RATE / MB:.0f} MB/s: cold {cold:.1f} s, cached {warm:.1f} s")
    assert warm < cold / 2
    assert two.received("ghcr.io") - before == came
