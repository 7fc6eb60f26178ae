"""What is left of Docker Hub's pull limit: asked rarely and for nothing, shown, and never in anybody's way."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import by_hand
from appliance import DEFINITIONS, PUBLISHED, UNITS, Appliance
from box.topology import CACHE_HOST, READER, WAN_ROUTER, upstream

HUB = upstream("docker.io")
METRICS = "/run/mirror-agent/metrics.prom"
LOW = "81c5e0b94d7f4a36b2f80a9d6e13c74b"  # MESSAGE_ID
FREE = "ratelimitpreview/test"
SECRET = "/etc/mirror-agent/docker.credentials"
ACCOUNT = f'source = "docker.io"\n[upstream]\ncredentials = "{SECRET}"\n'
_REGISTRY = "127.0.0.1:5011"
_STATE = "/root/hub.json"
_INSIDE = ("-p", "NetworkNamespacePath=/run/netns/inet", "-E", "OTEL_TRACES_EXPORTER=none")
# The registry of docker.io behind the front: as it was, but in plain HTTP and without headers of its own.
_BEHIND = f"""
import json
config = json.load(open("/etc/box/upstreams/docker.io.yml"))
config["http"] = {{"addr": "{_REGISTRY}", "secret": "x", "draintimeout": "1s"}}
print(json.dumps(config))
"""
_LISTEN = f"""for place in {_REGISTRY} {HUB.address}:443; do
    i=0; until ss -ltnH src $place | grep -q .; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done; done"""
# The host itself gets nowhere: what asks goes the mirror's way.
_HOST_STAYS_IN = f"""
table ip stay {{ chain forward {{ type filter hook forward priority 0; ip saddr {CACHE_HOST} drop; }}; }}
"""


class Limited:
    """A mirror of docker.io and one of quay.io, before a Docker Hub that counts."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        self.box = appliance.box

    def tell(self, **changes: Any) -> None:
        """How Docker Hub is from now on."""
        now = {"limit": 100, "window": 21600, "spent": 0, "unlimited": ["publisher"], "lie": "", **changes}
        self.box.exec("sh", "-c", f"cat > {_STATE}.new && mv {_STATE}.new {_STATE}", input=json.dumps(now))

    def asked(self) -> list[list[str]]:
        """METHOD PATH WHO STATUS of each request so far."""
        said = self.box.journal("-u", "hub", "-o", "cat")
        return [line.split() for line in said.splitlines() if line.startswith(("GET /v2/", "HEAD /v2/"))]

    def questions(self) -> list[list[str]]:
        """Those of the agent."""
        return [line for line in self.asked() if FREE in line[1]]

    def pulls(self, who: str = WAN_ROUTER) -> int:
        """What Docker Hub has counted."""
        return Counter(line[2] for line in self.asked() if line[0] == "GET" and line[3] == "200"
                       and "/manifests/" in line[1])[who]  # fmt: skip

    def told(self) -> dict[str, Any]:
        """What status says."""
        return self.appliance.pull_limit("docker")

    def again(self, seconds: float = 15) -> dict[str, Any]:
        """What it says to the next question, a quarter of an hour later."""
        return self.appliance.ask_again("docker", seconds)

    def account(self, name: str, password: str) -> None:
        self.appliance.sh(f"umask 077; printf '%s\\n' {shlex.quote(name)} {shlex.quote(password)} > {SECRET}")


@pytest.fixture(scope="module")
def limited(appliance: Appliance) -> Iterator[Limited]:
    limited, box = Limited(appliance), appliance.box
    box.exec("systemctl", "stop", f"box-upstream@{HUB.name}")
    by_hand.send(box, ("tests/system/hub.py",))
    limited.tell()
    box.exec("sh", "-c", "cat > /root/behind.yml", input=box.exec("python3", "-c", _BEHIND).stdout)
    box.exec(
        "systemd-run", "--quiet", "--unit=behind", *_INSIDE, "/usr/libexec/box/registry", "serve", "/root/behind.yml"
    )
    pair = (f"/etc/box/pki/{HUB.host}.crt", f"/etc/box/pki/{HUB.host}.key")
    hub = ("python3", f"{by_hand.WORK}/tests/system/hub.py", HUB.address, *pair, _REGISTRY, _STATE)
    box.exec("systemd-run", "--quiet", "--unit=hub", *_INSIDE, *hub)
    box.inet("sh", "-c", _LISTEN)
    by_hand.pull_images(box)
    box.gw("nft", "-f", "-", input=_HOST_STAYS_IN)
    appliance.drop("docker", "quay")
    appliance.serving("docker", "quay")
    appliance.configure_node()
    appliance.until_asked("docker")
    yield limited
    box.gw("nft", "delete", "table", "ip", "stay")
    box.exec("systemctl", "stop", "hub", "behind")
    box.exec("systemctl", "start", f"box-upstream@{HUB.name}")


# --- anonymous


def test_it_is_asked_from_the_mirrors_address_and_costs_no_pull(limited: Limited) -> None:
    spent = limited.pulls()
    told = limited.again()
    assert (told["limit"], told["remaining"], told["window"]) == (100, 100 - spent, 21600)
    assert told["source"] == WAN_ROUTER, "whom the router lets out"
    assert (told["low"], told["error"]) == (False, "")
    assert {line[0] for line in limited.questions()} == {"HEAD"}
    assert limited.pulls() == spent
    tokens = limited.box.journal("-u", "box-token", "-o", "cat")
    assert f"asked ['repository:{FREE}:pull']" in tokens


def test_it_is_shown(limited: Limited) -> None:
    host, told = limited.appliance, limited.again()
    line = f"docker: {told['remaining']} of 100 pulls in 6 h are left at docker.io (counted for {WAN_ROUTER}, asked at "
    assert line in host.sh("mirror-agent status")
    assert "quay:" not in host.sh("mirror-agent status"), "nobody asks quay.io"
    assert host.mirror("quay")["pull_limit"] is None
    metrics = host.sh(f"cat {METRICS}")
    labels = '{mirror="docker",upstream="docker.io"}'
    for name, value in (("", 100), ("_remaining", told["remaining"]), ("_window_seconds", 21600), ("_failed", 0)):
        assert f"mirror_agent_upstream_pull_limit{name}{labels} {value:.1f}\n" in metrics


def test_what_clients_pull_is_counted(limited: Limited) -> None:
    before, spent = limited.again(), limited.pulls()
    limited.appliance.pull("docker.io/library/app:1.0")
    used = limited.pulls() - spent
    assert used > 0
    assert limited.again()["remaining"] == before["remaining"] - used


def test_it_is_asked_once_in_a_quarter_of_an_hour(limited: Limited) -> None:
    host = limited.appliance
    limited.again()
    before = len(limited.questions())
    for _ in range(3):
        host.settle()
    host.sh("systemctl restart mirror-agent")
    host.serving("docker", "quay")
    host.define("quay", 'source = "quay.io"\n[cache]\nfresh = "30s"\n')
    host.settle()
    host.serving("docker", "quay")
    assert len(limited.questions()) == before
    limited.again()
    assert len(limited.questions()) == before + 2, "one without a token, one with it"


# --- nearly used up


def test_that_few_are_left_is_said_once(limited: Limited) -> None:
    host = limited.appliance

    def said() -> list[dict[str, str]]:
        return host.journal(f"MESSAGE_ID={LOW}", since=since)

    since = host.cursor()
    limited.tell(spent=100 - limited.pulls() - 9)
    assert limited.again()["low"]
    limited.tell(spent=100 - limited.pulls() - 15)
    assert limited.again()["remaining"] == 15
    limited.tell(spent=100 - limited.pulls() - 5)
    limited.again()
    (line,) = said()
    assert (line["MIRROR"], line["UPSTREAM"], line["PRIORITY"]) == ("docker", "docker.io", "4")
    assert "9 of 100 pulls in 6 h are left at docker.io: nearly used up" in line["MESSAGE"]
    assert "upstream.credentials" in line["MESSAGE"]
    assert "upstream.credentials" in host.sh(f"journalctl -x -o cat MESSAGE_ID={LOW}")
    limited.tell()
    assert not limited.again()["low"]
    limited.tell(spent=1000)
    assert limited.again()["remaining"] == 0, "the answer is 429 now, with headers"
    assert len(said()) == 2
    assert host.mirror("docker")["state"] == "serving"
    limited.tell()
    limited.again()


# --- what goes wrong


@pytest.mark.parametrize(
    ("lie", "reason"), [("429", "HTTP 429"), ("nonsense", "not understood"), ("silence", "no answer")]
)
def test_a_docker_hub_that_does_not_tell_stops_nothing(limited: Limited, lie: str, reason: str) -> None:
    host, since = limited.appliance, limited.appliance.cursor()
    limited.tell(lie=lie)  # first: the agent may look at any moment
    host.time_passes()
    host.settle()
    host.drop("ghcr")  # something else to do meanwhile
    host.serving("docker", "quay", "ghcr")
    host.remove("ghcr")
    host.serving("docker", "quay")
    host.wait(lambda: reason in limited.told()["error"], 40, "why it is not known")
    told = limited.told()
    assert (told["limit"], told["remaining"]) == (None, None)
    line = host.until_said("what is left of the pull limit is not known", since)
    assert (line["MIRROR"], line["PRIORITY"]) == ("docker", "6")
    limited.again(40)
    assert len([each for each in host.journal(since=since) if "is not known" in each["MESSAGE"]]) == 1, "once"
    assert host.status()["failures"] == []
    assert host.sh("mirror-agent status >/dev/null; echo $?") == "0\n"
    assert 'pull_limit_failed{mirror="docker",upstream="docker.io"} 1.0' in host.sh(
        "cat /run/mirror-agent/metrics.prom"
    )
    assert "pull_limit_remaining{" not in host.sh(f"cat {METRICS}")
    limited.tell()
    assert limited.again()["error"] == ""


def test_without_internet_nothing_stops(limited: Limited) -> None:
    host = limited.appliance
    limited.box.cut_internet()
    try:
        assert "no answer" in limited.again(40)["error"]
        assert host.mirror("docker")["state"] == "serving"
        host.pull("docker.io/library/app:1.0")
    finally:
        limited.box.mend_internet()
    assert limited.again()["error"] == ""


# --- with an account


def test_an_account_has_a_limit_of_its_own_and_shows_nowhere(limited: Limited) -> None:
    host, (name, password) = limited.appliance, READER
    limited.account(name, password)
    host.define("docker", ACCOUNT)
    host.settle()
    host.serving("docker", "quay")
    spent = limited.pulls(name)
    told = limited.again()
    assert (told["source"], told["remaining"]) == (name, 100 - spent)
    assert limited.pulls(name) == spent
    limited.tell(spent=1000)
    since = host.cursor()
    limited.again()
    (line,) = host.journal(f"MESSAGE_ID={LOW}", since=since)
    assert "what is cached is served" in line["MESSAGE"]
    limited.tell(unlimited=[name])
    told = limited.again()
    assert (told["limit"], told["error"], told["low"]) == (None, "", False)
    assert "docker: docker.io tells of no pull limit (asked at" in host.sh("mirror-agent status")
    encoded = host.sh(f"printf %s:%s {name} {password} | base64").strip()
    for command in ("cat /run/mirror-agent/*", "journalctl -b -o export -t mirror-agent", "systemctl show 'mirror-*'",
                    "mirror-agent status --json", f"grep -r . {PUBLISHED} {UNITS}", "ps auxe"):  # fmt: skip
        said = host.sh(command)
        assert len(said) > 100, command
        for secret in (password, encoded, "eyJ"):  # as any token begins
            assert secret not in said, command
    limited.tell()


def test_a_wrong_password_is_told_and_stops_nothing(limited: Limited) -> None:
    host = limited.appliance
    host.define("docker", ACCOUNT)
    limited.account(READER[0], "stale-password")
    host.settle()
    told = limited.again()
    assert "gives no token: HTTP 401" in told["error"]
    assert "upstream.credentials" in told["error"]
    assert "stale-password" not in json.dumps(host.status())
    assert host.mirror("docker")["state"] == "serving"
    host.pull("docker.io/library/app:1.0")
    limited.account(*READER)
    host.settle()
    assert limited.again()["error"] == ""


# --- off


def test_nobody_is_asked_where_it_is_off(limited: Limited) -> None:
    host = limited.appliance
    starts = host.starts("docker")
    host.write(f"{DEFINITIONS}/docker.toml", ACCOUNT + "pull_limit = false\n")
    host.settle()
    before = len(limited.questions())
    host.time_passes()
    host.settle()
    assert host.mirror("docker")["pull_limit"] is None
    assert "pull_limit" not in host.sh(f"grep -v '^#' {METRICS}")
    assert len(limited.questions()) == before
    assert host.starts("docker") == starts, "it is no matter of the pod"
