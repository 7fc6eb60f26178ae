"""One CA after another on a booted host: who trusts what is served at each stage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance import AGENT_TOML, STATE, Appliance

OUTSIDE = 'source = "gcr.io"\nhost = "gcr.outside.example"\n'


def authorities(appliance: Appliance) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(appliance.box.exec("mirror-agent", "ca", "show", "--json").stdout)
    return {"stage": shown["stage"], **{row["is"]: row for row in shown["authorities"]}}


def bundle(appliance: Appliance) -> str:
    return appliance.published("ca-bundle.pem")


def trusts(appliance: Appliance, pem: str) -> bool:
    """Does a client that trusts these certificates only get an answer from the mirror?"""
    appliance.box.node("sh", "-c", f"cat > /tmp/trust.pem <<'END'\n{pem}END")
    row = appliance.mirror("quay")
    command = ["curl", "-sS", "-m", "20", "--fail", "--cacert", "/tmp/trust.pem", "--capath", "/nowhere"]
    url = f"https://{row['host']}/v2/"
    answer = appliance.box.node(*command, "--resolve", f"{row['host']}:443:{row['address']}", url, check=False)
    assert answer.returncode in (0, 60), answer.stderr  # 60: the certificate is refused
    return answer.returncode == 0


@pytest.fixture(scope="module")
def one(appliance: Appliance) -> Appliance:
    appliance.box.exec("journalctl", "--update-catalog")
    appliance.drop("quay")
    appliance.serving("quay")
    return appliance


@pytest.fixture(scope="module")
def stages(one: Appliance) -> dict[str, str]:
    """The bundles, as the tests come to see them: of the old CA, of both, of the new one."""
    return {"old": bundle(one)}


def test_a_host_elsewhere_is_held_back_and_the_way_out_is_told(one: Appliance, stages: dict[str, str]) -> None:
    assert authorities(one)["stage"] == "steady"
    one.define("gcr", OUTSIDE)
    one.settle()
    told = next(problem for problem in one.glance()["problems"] if problem["mirror"] == "gcr")
    assert (told["file"], told["key"]) == ("gcr.toml", "host")
    assert "may not vouch for host gcr.outside.example" in told["reason"]
    assert "mirror-agent ca roll" in told["hint"]
    assert one.starts("gcr") == {}
    assert one.mirror("quay")["state"] == "serving"
    assert bundle(one) == stages["old"]


def test_prepared_and_published(one: Appliance, stages: dict[str, str]) -> None:
    since, before, serial = one.cursor(), one.starts("quay"), one.mirror("quay")["certificate"]["serial"]
    assert one.box.exec("mirror-agent", "ca", "roll").stdout.endswith(": prepared\n")
    one.settle()
    stages["both"] = bundle(one)
    stages["new"] = stages["both"].removeprefix(stages["old"])
    assert stages["both"].count("BEGIN CERTIFICATE") == 2
    assert one.box.exec("mirror-agent", "ca", "export").stdout == stages["both"]
    shown = authorities(one)
    assert shown["stage"] == one.glance()["authority"]["stage"] == "spreading"
    assert shown["current"]["name"] != shown["next"]["name"]
    assert [trusts(one, stages[who]) for who in ("old", "both", "new")] == [True, True, False]
    assert (one.starts("quay"), one.mirror("quay")["certificate"]["serial"]) == (before, serial)
    told = next(problem for problem in one.glance()["problems"] if problem["mirror"] == "gcr")
    assert "the next CA permits it" in told["hint"]
    again = one.box.exec("mirror-agent", "ca", "roll", check=False)
    assert again.returncode == 1
    assert "another CA is current or next already" in again.stderr
    assert one.journal("ACTION=publish", since=since)


def test_a_restart_forgets_nothing(one: Appliance) -> None:
    before, process = authorities(one), one.property("mirror-agent", "MainPID")
    one.box.exec("systemctl", "kill", "-s", "KILL", "mirror-agent")
    one.wait(lambda: one.property("mirror-agent", "MainPID") not in ("0", process), 20, "the agent to be back")
    one.wait(lambda: one.property("mirror-agent", "ActiveState") == "active", 20, "the agent to be ready")
    one.settle()
    assert authorities(one) == before


def test_confirmed_and_used(one: Appliance, stages: dict[str, str]) -> None:
    since, new = one.cursor(), authorities(one)["next"]["name"]
    old = one.mirror("quay")["certificate"]
    one.box.exec("mirror-agent", "ca", "roll", "--confirm")
    line = one.until_said("certificates come from the new CA now", since)
    assert line["MESSAGE_ID"] == "e46c1b08f39d4a7c95d07b3ea812f56c"
    one.serving("quay", "gcr")  # and the mirror that the old CA did not permit is there
    shown = authorities(one)
    assert (shown["stage"], shown["current"]["name"]) == ("retiring", new)
    assert bundle(one) == stages["both"], "readers are told nothing twice"
    # what was served stays until it is due
    assert one.mirror("quay")["certificate"] == old
    assert [trusts(one, stages[who]) for who in ("old", "both", "new")] == [True, True, False]
    one.box.exec("mirror-agent", "renew", "quay")
    one.settle()
    assert one.mirror("quay")["certificate"]["issuer"] == new
    assert one.mirror("quay")["certificate"]["served"]
    assert [trusts(one, stages[who]) for who in ("old", "both", "new")] == [True, True, True]


def test_the_old_one_is_dropped_after_its_last_leaf(one: Appliance, stages: dict[str, str]) -> None:
    """The day is moved, not the clock."""
    since = one.cursor()
    one.sh(f"sed -i -E 's/20[0-9][0-9](-[0-9-]+T)/2020\\1/' {STATE}/ca/rollover.json")
    one.settle()
    line = one.until_said("a CA is not published any more", since)
    assert line["MESSAGE_ID"] == "29f8d7c0b5164e03a4be61f92d8c7a05"
    one.settle()
    assert authorities(one)["stage"] == "steady"
    assert bundle(one) == stages["new"]
    assert one.sh(f"ls -d {STATE}/ca/a-*").count("\n") == 1
    one.box.exec("mirror-agent", "renew")
    one.settle()
    assert [trusts(one, stages[who]) for who in ("old", "both", "new")] == [False, True, True]


def test_it_begins_by_itself(one: Appliance) -> None:
    """Near the end of the CA: a host that begins with one of 30 days, and is told later that leaves take 28."""
    one.sh(f"systemctl stop mirror-agent; rm -r {STATE}/ca")
    one.settings(AGENT_TOML + "[certificates]\nca_days = 30\nleaf_days = 1\nroll_days = 1\n")
    since = one.cursor()
    one.sh("systemctl start mirror-agent")
    one.settle()
    assert (authorities(one)["stage"], one.journal("ACTION=prepare-authority", since=since)) == ("steady", [])
    one.settings(AGENT_TOML + "[certificates]\nca_days = 200\nleaf_days = 28\nroll_days = 1\n")
    line = one.until_said("a new CA is there, let all readers trust it", since)
    assert line["MESSAGE_ID"] == "7d3a9e52c84b4f6fb0a1d25e68f7c413"
    one.settle()
    assert authorities(one)["stage"] == "spreading"
    assert bundle(one).count("BEGIN CERTIFICATE") == 2
