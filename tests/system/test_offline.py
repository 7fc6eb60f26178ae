"""Without the internet: at the first start, over reboots, and with no agent at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance import FIVE, UNITS, Appliance, parts, weight

APP = "demo/app"


@pytest.fixture(autouse=True)
def mended(bare: Appliance) -> Iterator[None]:
    yield
    bare.box.mend_internet()


def pulls(appliance: Appliance) -> None:
    """A cold node pulls by tag and by digest through each of the five, and gets the upstream's bytes."""
    appliance.box.node_reset()
    for name, source in FIVE.items():
        image = appliance.box.images()[source][f"{APP}:1.0"]
        appliance.pull(f"{source}/{APP}:1.0")
        appliance.box.node("podman", "rmi", "--all", "--force")
        appliance.pull(f"{source}/{APP}@{image['digest']}")
        for blob in parts(image):
            assert appliance.blob_digest(name, APP, blob["digest"]) == blob["digest"]


def test_a_first_start_without_the_internet_is_told_and_catches_up(bare: Appliance) -> None:
    """No unit is written before its images are there: nothing hangs at a boot, nothing fails."""
    bare.box.cut_internet()
    bare.enable()
    bare.drop(*FIVE)
    line = bare.until_said("could not pull image", "", seconds=60)
    assert "docker.io/library/" in line["MESSAGE"]
    assert (line["PRIORITY"], line["ACTION"]) == ("3", "pull-image")
    assert bare.sh(f"ls {UNITS}/*.container 2>/dev/null", check=False) == ""
    told = ("docker.io/library/nginx:stable", "docker.io/library/registry:3")
    bare.wait(lambda: all(image in str(bare.glance()["failures"]) for image in told), 10, "both images, in the status")
    status = bare.status()
    assert len(status["mirrors"]) == 5
    assert {row["state"] for row in status["mirrors"]} <= {"preparing", "failed"}
    assert bare.property("mirror-agent", "StatusText").startswith("5 mirrors: 5 ")
    bare.box.mend_internet()
    bare.serving(*FIVE, seconds=90)


@pytest.fixture(scope="module")
def cached(bare: Appliance) -> Appliance:
    """Five mirrors that have served a node."""
    bare.enable()
    bare.drop(*FIVE)
    bare.serving(*FIVE, seconds=90)
    bare.configure_node()
    pulls(bare)
    return bare


def test_a_reboot_with_the_internet(cached: Appliance) -> None:
    before = {name: cached.mirror(name)["address"] for name in FIVE}
    cached.box.reboot()
    cached.serving(*FIVE)
    assert {name: cached.mirror(name)["address"] for name in FIVE} == before
    assert not [
        line for line in cached.journal() if line.get("ACTION") in ("write-units", "issue-certificate", "publish")
    ]
    assert cached.sh("systemctl list-units --failed --plain --no-legend") == ""
    pulls(cached)


def test_a_reboot_without_the_internet_and_without_the_agent(cached: Appliance) -> None:
    cached.disable()
    cached.box.cut_internet()
    cached.box.reboot()
    assert cached.property("mirror-agent", "ActiveState") == "inactive"
    assert len(cached.starts(*FIVE)) == 3 * len(FIVE)
    pulls(cached)
    assert cached.property("mirror-agent", "ActiveState") == "inactive"
    # and the agent, once it is back, finds nothing to do, internet or not
    starts = cached.starts(*FIVE)
    cached.box.exec("systemctl", "start", "mirror-agent")
    cached.settle()
    cached.serving(*FIVE)
    assert cached.starts(*FIVE) == starts
    quiet = {"announce-address", "ask-pull-limit", "reach-upstream", None}
    assert {line.get("ACTION") for line in cached.journal()} <= quiet


def test_a_power_cut(cached: Appliance) -> None:
    cached.enable()
    cached.box.kill()
    cached.box.start()
    cached.serving(*FIVE)
    before = cached.received("quay.io")
    pulls(cached)
    assert cached.received("quay.io") - before < 0.02 * weight(cached.box.images()["quay.io"][f"{APP}:1.0"])


def test_a_mirror_whose_upstream_was_never_reached_is_not_published(cached: Appliance) -> None:
    cached.remove("quay")
    cached.serving(*(name for name in FIVE if name != "quay"))
    cached.box.exec("mirror-agent", "purge", "quay")
    cached.box.cut_internet()
    since = cached.cursor()
    cached.drop("quay")
    cached.until_said("could not prove", since, seconds=90)
    assert "quay" not in cached.published("hosts") + cached.published("image-digest-mirror-set.yaml")
    assert not cached.mirror("quay")["published"]
    cached.wait(lambda: cached.mirror("quay")["state"] == "failed", 10, "a mirror that failed")
    assert cached.mirror("gcr")["state"] == "serving"
    cached.box.mend_internet()
    cached.serving(*FIVE, seconds=60)
    assert "quay.mirror.lan" in cached.hosts()
