"""The agent as a container, on a host without its package: what only this way of running it promises.

That it does the same job is told by the other tests: `tests/box/pytest --agent=container tests/system`.
"""

from __future__ import annotations

import pytest

import contained
from appliance import DEFINITIONS, PUBLISHED, SETTINGS, STATE, UNITS, Appliance
from box import Box, stages

APP = "demo/app"
NOBODY = ("setpriv", "--reuid=nobody", "--clear-groups")


@pytest.fixture(scope="module")
def host(session_box: Box) -> Appliance:
    """A host on which the agent was installed as a container, by its own `init`, and runs."""
    appliance = contained.install(session_box)
    appliance.sh(f"mkdir -p {PUBLISHED}")
    options = "--range 10.0.0.4-10.0.0.60 --domain mirror.lan"
    appliance.sh(f"mirror-agent init --yes {options} --publish {PUBLISHED}")
    appliance.enable()
    appliance.drop("quay", "docker")
    appliance.serving("quay", "docker")
    appliance.configure_node()
    return appliance


def completed(host: Appliance, *user: str) -> str:
    """What a shell gets at the Tab key."""
    words = ("COMP_WORDS=mirror-agent stat", "COMP_CWORD=1", "_MIRROR_AGENT_COMPLETE=complete_bash")
    done = host.box.exec("env", *words, *user, "mirror-agent")
    assert done.stderr == ""
    return done.stdout.strip()


def test_nothing_of_the_package_is_on_the_host(host: Appliance) -> None:
    assert host.sh("ls /usr/bin/mirror-agent /usr/lib/mirror-agent 2>/dev/null", check=False) == ""
    host.pull(f"quay.io/{APP}:1.0")


def test_it_has_no_more_rights_than_the_service(host: Appliance) -> None:
    told = host.box.exec("podman", "inspect", "--format", "{{.EffectiveCaps}}", "mirror-agent").stdout
    granted = set(told.strip("[]\n").split())
    unit = (stages.REPO / "packaging/mirror-agent.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    assert granted == set(line.partition("=")[2].split())


def test_the_command_works_while_the_agent_does_not_run(host: Appliance) -> None:
    before = host.starts("quay", "docker")
    assert completed(host) == "status"
    assert completed(host, *NOBODY) == ""
    host.box.exec("systemctl", "stop", "mirror-agent")
    assert completed(host) == ""
    assert host.box.exec("mirror-agent", "check").stdout.endswith("2 mirrors, 0 problems\n")
    host.define("extra", 'source = "extra.example"\nremote = "https://quay.io"\n')
    assert "claim address" in host.box.exec("mirror-agent", "plan").stdout
    host.remove("extra")
    assert host.box.exec("mirror-agent", "renew", "quay").stdout == "quay: renewed (asked for)\n"
    host.box.exec("systemctl", "start", "mirror-agent")
    host.serving("quay", "docker")
    host.settle()  # an edge that reloads counts as not started
    assert host.starts("quay", "docker") == before


def test_the_command_wants_root_and_keeps_settings_that_are_there(host: Appliance) -> None:
    nobody = host.box.exec(*NOBODY, "mirror-agent", "check", check=False)
    assert (nobody.returncode, "sudo mirror-agent check" in nobody.stderr) == (1, True)
    before = host.sh(f"cat {SETTINGS}")
    again = host.box.exec("mirror-agent", "init", "--yes", check=False)
    assert (again.returncode, "there are settings already" in again.stderr) == (1, True)
    assert host.sh(f"cat {SETTINGS}") == before


def test_a_new_image_is_taken_by_a_restart_and_settings_stay(host: Appliance) -> None:
    """An upgrade: `install` again, from an image that is another one."""
    kept = f"sha256sum {SETTINGS} {DEFINITIONS}/* {STATE}/leases.json {STATE}/proofs.json"
    before, files = host.starts("quay", "docker"), host.sh(kept)
    host.sh(
        f"printf 'FROM {contained.NAME}\\nLABEL release=2\\n' | "
        f"podman build --quiet --network=none -t {contained.NAME} -; "
        f"podman run --rm --security-opt=label=disable --volume=/:/host "
        f"--entrypoint=/usr/share/mirror-agent/container/install {contained.NAME}; "
        "systemctl daemon-reload; systemctl restart mirror-agent"
    )
    host.serving("quay", "docker")
    label = host.box.exec("podman", "inspect", "--format", "{{.Config.Labels.release}}", "mirror-agent").stdout
    assert label == "2\n"
    assert host.starts("quay", "docker") == before
    assert host.sh(kept) == files


def test_it_comes_back_with_the_host(host: Appliance) -> None:
    host.box.reboot()
    host.serving("quay", "docker")
    assert host.property("mirror-agent", "ActiveState") == "active"
    assert host.property("mirror-agent-renew", "ActiveState") == "active"


def test_nothing_of_it_is_left_after_its_removal(host: Appliance) -> None:
    """As docs/installation.md says."""
    host.remove("quay", "docker")
    host.serving()
    host.sh("mirror-agent purge quay docker")
    host.sh(
        f"systemctl stop mirror-agent mirror-agent-renew && rm -r {contained.QUADLETS}/mirror-agent*.container*; "
        "find /usr/local/ -name '*mirror-agent*' -prune -exec rm -r {} +; "
        f"podman rmi {contained.NAME} && systemctl daemon-reload; "
        f"rm -r /etc/mirror-agent {DEFINITIONS} {UNITS} {STATE}"
    )
    kept = f"-path {PUBLISHED} -prune -o -path /var/lib/containers -prune"  # the older image
    assert host.sh(f"find / -xdev {kept} -o -name '*mirror-agent*' -print") == ""
    assert host.sh("systemctl list-units --all --plain --no-legend 'mirror-*'") == ""
