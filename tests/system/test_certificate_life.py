"""Certificates on a booted host: renewals that nobody notices, failures that people are told, keys that stay in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from appliance import AGENT_TOML, CACHE, PUBLISHED, STATE, Appliance, parts, slow_pull

CA = f"{STATE}/ca/current"
QUAY = f"{STATE}/mirrors/quay/tls"
ISSUED = "6a8d35f01c7b4e29b4f2907d5ec83a16"  # the MESSAGE_ID of a new certificate

# A certificate as the host's CA would have issued it at another time.  Not by the agent's own code.
_PLACE = """
set -e
ca=$1 tls=$2 host=$3 address=$4 from=$5 to=$6 serial=$7
new=$tls/.new; rm -rf $new; mkdir -m 700 $new
printf '%s\\n' "subjectAltName=DNS:$host,IP:$address" basicConstraints=critical,CA:FALSE \
    keyUsage=critical,digitalSignature extendedKeyUsage=serverAuth > $new/ext
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout $new/tls.key -subj "/O=test/CN=$host" |
    openssl x509 -req -CA $ca/ca.crt -CAkey $ca/ca.key -not_before $from -not_after $to -set_serial 0x$serial \
    -extfile $new/ext -out $new/tls.crt
rm $new/ext; chmod 600 $new/tls.key; chown -R 101:101 $new
mv -T $new $tls/g-$serial
ln -s g-$serial $tls/.link && mv -T $tls/.link $tls/current
"""
_places: dict[str, tuple[str, str]] = {}  # by mirror: host and address; the agent need not run to know them
_serials = iter(range(0x51, 0xFF))


def place(appliance: Appliance, name: str, began: timedelta, ends: timedelta) -> int:
    """Give a mirror a certificate that began and ends then, counted from now; its serial number."""
    now, serial = datetime.now(UTC), next(_serials)
    moments = [f"{now + offset:%y%m%d%H%M%SZ}" for offset in (began, ends)]
    arguments = [CA, f"{STATE}/mirrors/{name}/tls", *_places[name], *moments, f"{serial:x}"]
    appliance.box.exec("sh", "-c", _PLACE, "place", *arguments)
    return serial


def served(appliance: Appliance, name: str) -> int:
    """The serial number that a client on the LAN is shown."""
    host, address = _places[name]
    client = f"openssl s_client -connect {address}:443 -servername {host} </dev/null 2>/dev/null"
    said = appliance.box.node("sh", "-c", f"{client} | openssl x509 -noout -serial").stdout
    return int(said.strip().removeprefix("serial="), 16)


def current(appliance: Appliance, name: str) -> int:
    """The serial number of the certificate on the disk."""
    said = appliance.box.exec(
        "openssl", "x509", "-noout", "-serial", "-in", f"{STATE}/mirrors/{name}/tls/current/tls.crt"
    )
    return int(said.stdout.strip().removeprefix("serial="), 16)


def answers(appliance: Appliance, name: str) -> bool:
    """Does a client on the LAN get an answer that it trusts?"""
    url = f"https://{name}.mirror.lan/v2/"
    return appliance.box.node(*appliance.curl_command(name), "--fail", url, check=False).returncode == 0


@pytest.fixture(scope="module")
def two(appliance: Appliance) -> Appliance:
    appliance.box.exec("journalctl", "--update-catalog")  # as the package does when it is installed
    appliance.drop("quay", "ghcr")
    appliance.serving("quay", "ghcr")
    _places.update({row["name"]: (row["host"], row["address"]) for row in appliance.glance()["mirrors"]})
    appliance.configure_node()
    return appliance


@pytest.fixture(autouse=True)
def serving(two: Appliance) -> Iterator[None]:
    """However a test ends, the next one begins with certificates that are good."""
    yield
    two.box.exec("mirror-agent", "renew")
    two.settle()
    assert [served(two, name) for name in ("quay", "ghcr")] == [current(two, name) for name in ("quay", "ghcr")]


def test_nobody_notices_a_renewal(two: Appliance) -> None:
    image = two.box.images()["quay.io"]["demo/app:1.0"]
    blob = max(parts(image), key=lambda part: int(part["size"]))
    before, ghcr, since = two.starts("quay", "ghcr"), served(two, "ghcr"), two.cursor()
    with slow_pull(two, "quay", "demo/app", blob["digest"]) as pull:
        placed = place(two, "quay", timedelta(days=-65), timedelta(days=25))
        two.settle()
        new, size = served(two, "quay"), pull.size()
        assert new == current(two, "quay") != placed
        two.wait(lambda: pull.size() > size, 10, "the pull to go on")
    assert two.starts("quay", "ghcr") == before
    assert served(two, "ghcr") == ghcr
    lines = two.journal("MIRROR=quay", since=since)
    (told,) = [line for line in lines if line.get("MESSAGE_ID") == ISSUED]
    assert f"serial {new:x}" in told["MESSAGE"]
    assert lines[-1]["ACTION"] == "reload-edge"


def test_a_certificate_that_is_not_due_is_left_alone(two: Appliance) -> None:
    placed = place(two, "quay", timedelta(days=-50), timedelta(days=40))
    two.settle()
    assert served(two, "quay") == placed


def test_renewing_by_hand(two: Appliance) -> None:
    quay, ghcr, since = served(two, "quay"), served(two, "ghcr"), two.cursor()
    assert two.box.exec("mirror-agent", "renew", "quay").stdout == "quay: renewed (asked for)\n"
    (line,) = two.journal("UPSTREAM=quay.io", f"MESSAGE_ID={ISSUED}", since=since)
    assert line["MESSAGE"].startswith("quay: has a certificate until ")
    assert line["MESSAGE"].endswith(" (asked for)")
    assert (line["MIRROR"], line["ACTION"]) == ("quay", "issue-certificate")
    two.settle()
    assert served(two, "quay") == current(two, "quay") != quay
    assert served(two, "ghcr") == ghcr
    assert two.box.exec("mirror-agent", "renew", "--due").stdout == ""
    unknown = two.box.exec("mirror-agent", "renew", "gcr", check=False)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "gcr: there is no such mirror" in unknown.stderr


def test_another_kind_of_key_for_all_mirrors(two: Appliance) -> None:
    """RSA on request, and back: by the way of every renewal."""
    shown = "openssl s_client -connect {}:443 -servername {} </dev/null 2>/dev/null | openssl x509 -noout -text"
    before = two.starts("quay", "ghcr")
    for kind, algorithm in (("rsa3072", "(3072 bit)"), ("p256", "NIST CURVE: P-256")):
        serials = {name: served(two, name) for name in ("quay", "ghcr")}
        since = two.cursor()
        two.settings(f'{AGENT_TOML}[certificates]\nleaf_key = "{kind}"\n')
        two.settle()
        for name, serial in serials.items():
            assert served(two, name) == current(two, name) != serial
            host, address = _places[name]
            assert algorithm in two.box.node("sh", "-c", shown.format(address, host)).stdout
            assert answers(two, name)
        lines = two.journal("ACTION=issue-certificate", since=since)
        said = [line["MESSAGE"] for line in lines if "issue certificate" in line["MESSAGE"]]
        assert said == [f"{name}: issue certificate (its key is not {kind}, as certificates.leaf_key says)"
                        for name in ("ghcr", "quay")]  # fmt: skip
    assert two.starts("quay", "ghcr") == before
    two.settings()


def test_a_clock_that_went_back_is_told_and_waited_for(two: Appliance) -> None:
    """The certificate is of tomorrow: no other is made, since the clock cannot be right."""
    since = two.cursor()
    placed = place(two, "quay", timedelta(days=1), timedelta(days=90))
    two.settle()
    line = two.until_said("could not issue certificate", since)
    assert "before the last certificate was made" in line["MESSAGE"]
    assert line["MESSAGE_ID"] == "5f2b0c6d1a7e4a0f9c3d8e41b7a60c21"
    assert current(two, "quay") == placed
    shown: dict[str, Any] = {}

    def told() -> bool:
        """One look: between two tries there may be none that failed last."""
        shown.update(two.glance())
        return any("set the clock" in each["reason"] for each in shown["failures"])

    two.wait(told, 10, "the failure in the status")
    (failure,) = shown["failures"]
    rows = {row["name"]: row for row in shown["mirrors"]}
    waits = datetime.fromisoformat(failure["again"]) - datetime.now(UTC)
    assert timedelta(seconds=30) < waits <= timedelta(minutes=1)
    assert "set the clock" in rows["quay"]["reason"]
    assert "set the clock" in rows["quay"]["certificate"]["error"]
    assert rows["ghcr"]["reason"] == ""
    explained = two.sh(f"journalctl -x -t mirror-agent MESSAGE_ID={line['MESSAGE_ID']}")
    assert "The certificate of mirror quay could not be renewed" in explained
    two.box.exec("rm", f"{QUAY}/current")  # what the hint says
    two.settle()
    assert served(two, "quay") == current(two, "quay") != placed
    assert two.glance()["failures"] == []


def test_a_clock_before_the_ca_is_told_and_waited_for(two: Appliance) -> None:
    """As on a board without a clock: the CA is of tomorrow."""
    before, since = current(two, "quay"), two.cursor()
    moments = [f"{datetime.now(UTC) + timedelta(days=days):%Y%m%d%H%M%SZ}" for days in (1, 3650)]
    two.sh(
        "systemctl stop mirror-agent; cp -a /var/lib/mirror-agent/ca /root/ca; "
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=Tomorrow "
        f"-addext keyUsage=critical,keyCertSign,cRLSign -not_before {moments[0]} -not_after {moments[1]} "
        f"-keyout {CA}/ca.key -out {CA}/ca.crt; systemctl start mirror-agent"
    )
    line = two.until_said("could not issue certificate", since)
    assert "Tomorrow: is valid from" in line["MESSAGE"]
    assert "but the clock says" in line["MESSAGE"]
    assert "set the clock" in line["MESSAGE"]
    assert line["MESSAGE_ID"] == "5f2b0c6d1a7e4a0f9c3d8e41b7a60c21"
    assert served(two, "quay") == current(two, "quay") == before
    refused = two.box.exec("mirror-agent", "renew", "quay", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "but the clock says" in refused.stderr
    two.sh("systemctl stop mirror-agent; rm -r /var/lib/mirror-agent/ca; mv /root/ca /var/lib/mirror-agent/")
    two.box.exec("systemctl", "start", "mirror-agent")
    two.settle()
    assert served(two, "quay") == current(two, "quay") == before


def test_an_edge_that_refuses_a_certificate_keeps_the_one_before(two: Appliance) -> None:
    before, since = served(two, "quay"), two.cursor()
    placed = place(two, "quay", timedelta(hours=-1), timedelta(days=90))
    two.box.exec("chown", "-R", "0:0", f"{QUAY}/g-{placed:x}")  # nginx may not read it
    two.settle()
    line = two.until_said("the one before is back", since)
    assert line["MESSAGE_ID"] == "b81d6f0a35c94e27871e4fa2c90d53b6"
    assert served(two, "quay") == before == current(two, "quay")


@pytest.mark.parametrize(
    "damage", ["cp /dev/null $0/current/tls.key", "openssl genpkey -algorithm ed25519 -out $0/current/tls.key"]
)
def test_a_damaged_pair_is_replaced(two: Appliance, damage: str) -> None:
    """A running agent issues a new one; one that starts goes back to the one before first."""
    two.box.exec("mirror-agent", "renew", "quay")  # so that there is one before
    two.settle()
    before, since = served(two, "quay"), two.cursor()
    two.box.exec("sh", "-c", damage, QUAY)
    two.settle()
    assert served(two, "quay") == current(two, "quay") != before
    two.box.exec("systemctl", "stop", "mirror-agent")
    two.box.exec("sh", "-c", damage, QUAY)
    two.box.exec("systemctl", "start", "mirror-agent")
    line = two.until_said("its certificate was damaged", since)
    assert line["MESSAGE_ID"] == "0c9e4b7fd2a84d51a6f3b0e97c15d832"
    two.settle()
    assert served(two, "quay") == current(two, "quay")


def test_no_key_leaves_its_folder(two: Appliance) -> None:
    """All that any container of a mirror mounts, all of the state, all that is published."""
    containers = two.box.exec("podman", "ps", "-q", "--filter", "label=io.mirror-agent.mirror").stdout.split()
    listing = "{{range .Mounts}}{{.Source}}\\n{{end}}"
    mounts = set(two.box.exec("podman", "inspect", "--format", listing, *containers).stdout.split())
    assert {f"{STATE}/mirrors/quay/tls", f"{CACHE}/quay/registry"} <= mounts
    keys = "grep -rlE --devices=skip 'PRIVATE KEY' {} || true"
    mounted = two.sh(keys.format(" ".join(sorted(mounts)))).split()
    assert mounted
    for key in mounted:
        assert key.startswith(tuple(f"{STATE}/mirrors/{name}/tls/g-" for name in ("quay", "ghcr"))), key
    # by content: a copy of the CA's key would not need to look like one
    authority, place = two.sh(f"grep -v -e ----- {CA}/ca.key | head -n1; realpath {CA}/ca.key").split()
    copies = f"grep -rlF --devices=skip '{authority}' {STATE} {PUBLISHED} /etc /run/mirror-agent || true"
    assert two.sh(copies).split() == [place]
    everywhere = two.sh(keys.format(f"{STATE} {PUBLISHED} /run/mirror-agent /etc/mirror-agent /etc/containers")).split()
    assert set(everywhere) == {*mounted, place}
    facts = two.sh(
        f"stat -c '%a %u' {' '.join(everywhere)}; for k in {' '.join(everywhere)}; do stat -c '%a' $(dirname $k); done"
    )
    assert set(facts.splitlines()) == {"600 0", "600 101", "700"}


def test_a_damaged_ca_stops_the_issuing_alone(two: Appliance) -> None:
    """Its key is lost: what runs is looked after, what is new waits; when the key is back, all goes on by itself."""
    before, published, since = current(two, "quay"), two.hosts(), two.cursor()
    edge, key = "mirror-quay-edge.service", two.sh(f"realpath {CA}/ca.key").strip()
    two.sh(f"mv {key} /root/ca.key")
    try:
        two.drop("gcr")
        line = two.until_said("ca.key: is missing", since)
        assert line["MESSAGE_ID"] == "b3e9607c5d2f4a18934e1b7fc08a6d25"
        explained = two.sh(f"journalctl -x -t mirror-agent MESSAGE_ID={line['MESSAGE_ID']}")
        assert "The CA of this host is damaged" in explained
        two.remove("ghcr")
        two.wait(lambda: not two.starts("ghcr"), 60, "ghcr to be taken down")
        two.sh(f"systemctl stop {edge}")
        two.wait(lambda: edge in two.starts("quay"), 30, "the edge to be started again")
        two.wait(lambda: answers(two, "quay"), 30, "quay to serve again")
        assert served(two, "quay") == before
        assert two.hosts() == published
        (problem,) = two.glance()["problems"]
        assert "no certificate is issued" in problem["reason"]
        assert "waits: the CA is damaged" in two.glance()["line"]
        assert not two.starts("gcr")
        refused = two.box.exec("mirror-agent", "renew", "quay", check=False)
        assert (refused.returncode, "ca.key: is missing" in refused.stderr) == (1, True)
    finally:
        two.sh(f"mv /root/ca.key {key}")
    two.serving("quay", "gcr", seconds=90)  # at the next look, a minute later at most
    assert served(two, "quay") == before
    two.remove("gcr")
    two.drop("ghcr")
    two.serving("quay", "ghcr", seconds=90)


def test_what_is_remembered_of_a_roll_over_stops_nothing_else(two: Appliance) -> None:
    memory, before, since = f"{STATE}/ca/rollover.json", current(two, "quay"), two.cursor()
    two.sh(f"echo '{{' > {memory}")
    try:
        two.settle()
        line = two.until_said("no CA is replaced meanwhile", since)
        assert (memory in line["MESSAGE"], "or remove it" in line["MESSAGE"]) == (True, True)
        two.box.exec("mirror-agent", "renew", "quay")
        two.settle()
        assert served(two, "quay") == current(two, "quay") != before
        two.box.exec("mirror-agent", "ca", "roll", "--confirm", check=False)
        assert two.sh(f"cat {memory}") == "{\n"
    finally:
        two.sh(f"rm {memory}")
    two.settle()
    assert two.glance()["problems"] == []


def test_expired_at_boot_is_renewed_before_the_mirrors_serve(two: Appliance) -> None:
    """Without the agent: that is how it is when the agent's own start takes long."""
    two.disable()
    placed = place(two, "quay", timedelta(days=-91), timedelta(seconds=-5))
    ghcr = current(two, "ghcr")
    two.box.reboot()
    two.wait(lambda: len(two.starts("quay")) == 3, 60, "the mirror's services")
    two.wait(lambda: answers(two, "quay"), 20, "an answer that a client trusts")
    assert served(two, "quay") == current(two, "quay") != placed
    assert current(two, "ghcr") == ghcr
    assert two.property("mirror-agent", "ActiveState") == "inactive"
    moments = {
        unit: int(two.property(unit, f"{event}Monotonic"))
        for unit, event in (
            ("mirror-agent-renew", "ActiveEnterTimestamp"),
            ("mirror-quay-pod", "ExecMainStartTimestamp"),
        )
    }
    assert 0 < moments["mirror-agent-renew"] <= moments["mirror-quay-pod"]
    (line,) = two.journal("UPSTREAM=quay.io", f"MESSAGE_ID={ISSUED}")
    assert "(the certificate expired at" in line["MESSAGE"]
    assert line["MIRROR"] == "quay"
    two.enable()
    two.serving("quay", "ghcr")
