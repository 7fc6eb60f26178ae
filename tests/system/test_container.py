"""The agent as a container, on a host without its package: built from the Containerfile, it does the same job."""

from __future__ import annotations

import shutil

import pytest

from appliance import DEFINITIONS, FIVE, PUBLISHED, Appliance
from box import Box, stages
from box.cache import build

APP = "demo/app"
# Debian as the image is based on, from the host's own files: the box has no way to a registry of base images.
BASE = """
set -e
tar -C / --exclude=usr/share/doc --exclude=usr/share/locale --exclude=usr/libexec/box -c \
    bin sbin lib lib64 usr var/lib/dpkg etc/passwd etc/group etc/ssl etc/ld.so.conf etc/ld.so.conf.d etc/ld.so.cache \
    etc/alternatives etc/python3.13 | podman import --quiet - localhost/base
"""
# No more files and processes than the box itself may have.
BUILD = """
podman build --quiet --network=none --pull=never --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    --build-arg BASE=localhost/base -t localhost/mirror-agent "$1"
"""
VOLUME = f"[Container]\nVolume={PUBLISHED}:{PUBLISHED}\n"
QUADLETS = "/etc/containers/systemd"


@pytest.fixture(scope="module")
def contained(session_box: Box) -> Appliance:
    """A host without the package, on which the image runs as packaging/mirror-agent.container says."""
    session_box.up(bare=True)
    appliance, package = Appliance(session_box), stages.package()
    build((package,))
    with session_box.machine.shared_folder() as (outside, inside):
        (outside / "build/rpm").mkdir(parents=True)
        for rpm in package.path.glob("*.noarch.rpm"):
            shutil.copy(rpm, outside / "build/rpm")
        shutil.copy(stages.REPO / "Containerfile", outside)
        appliance.sh(BASE)
        session_box.exec("sh", "-c", BUILD, "sh", inside)
    appliance.sh(f"mkdir -p /etc/mirror-agent {DEFINITIONS} {PUBLISHED} {QUADLETS}/mirror-agent.container.d")
    appliance.settings()
    appliance.write(
        f"{QUADLETS}/mirror-agent.container", (stages.REPO / "packaging/mirror-agent.container").read_text()
    )
    appliance.write(f"{QUADLETS}/mirror-agent.container.d/publish.conf", VOLUME)
    session_box.exec("systemctl", "daemon-reload")
    session_box.exec("systemctl", "start", "mirror-agent")
    return appliance


def inside(appliance: Appliance, *words: str) -> str:
    return appliance.box.exec("podman", "exec", "mirror-agent", "mirror-agent", *words).stdout


def test_nothing_of_the_package_is_on_the_host(contained: Appliance) -> None:
    assert contained.sh("ls /usr/bin/mirror-agent /usr/lib/mirror-agent 2>/dev/null", check=False) == ""


def test_five_mirrors_serve_a_node(contained: Appliance) -> None:
    for name in FIVE:
        contained.sh(f"podman cp mirror-agent:/usr/share/mirror-agent/examples/{name}.toml {DEFINITIONS}/")
    contained.serving(*FIVE)
    contained.configure_node()
    for source in FIVE.values():
        contained.pull(f"{source}/{APP}:1.0")
    assert "5 mirrors: 5 serving" in inside(contained, "status")


def test_its_story_is_in_the_journal_with_its_fields(contained: Appliance) -> None:
    story = contained.journal("UPSTREAM=quay.io")
    assert {"read", "claim-address", "start-units", "prove-mirror"} <= {line["ACTION"] for line in story}


def test_it_counts_what_clients_pull(contained: Appliance) -> None:
    """From the journal that the edges write to."""
    contained.wait(lambda: contained.mirror("quay")["cache"]["requests"] > 0, 70, "requests of the node")


def test_stopped_or_started_anew_it_leaves_the_mirrors_alone(contained: Appliance) -> None:
    before = contained.starts(*FIVE)
    assert len(before) == 15
    contained.box.exec("systemctl", "stop", "mirror-agent")
    contained.box.node_reset()
    contained.pull(f"quay.io/{APP}:1.0")
    contained.box.exec("systemctl", "start", "mirror-agent")
    contained.serving(*FIVE)
    assert contained.starts(*FIVE) == before


def test_a_change_is_seen_and_its_units_are_judged_by_podman(contained: Appliance) -> None:
    before = contained.starts("docker", "gcr")
    contained.define("quay", 'source = "quay.io"\naddress = "10.0.0.55"\n')
    contained.wait(lambda: contained.hosts().get("quay.mirror.lan") == "10.0.0.55", 40, "the new address, published")
    contained.serving(*FIVE)
    contained.remove("ghcr")
    contained.serving(*(name for name in FIVE if name != "ghcr"))
    assert contained.starts("docker", "gcr") == before


def test_it_comes_back_with_the_host(contained: Appliance) -> None:
    contained.box.reboot()
    contained.serving(*(name for name in FIVE if name != "ghcr"))
    assert contained.property("mirror-agent", "ActiveState") == "active"


def test_it_has_no_more_rights_than_the_service(contained: Appliance) -> None:
    told = contained.box.exec("podman", "inspect", "--format", "{{.EffectiveCaps}}", "mirror-agent").stdout
    granted = set(told.strip("[]\n").split())
    unit = (stages.REPO / "packaging/mirror-agent.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    assert granted == set(line.partition("=")[2].split())
