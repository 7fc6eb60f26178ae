"""The RPM on a host that works: upgrade, downgrade, removal, return; what an admin has and what mirrors serve stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance import CACHE, FIVE, MB, SETTINGS, STATE, Appliance, slow_pull
from box import stages
from box.cache import build
from box.sandbox import Sandbox

APP = "demo/app"
pytestmark = pytest.mark.package("the package is what it is about")
CURRENT = "0.1.0"
NEXT = "0.9.0"  # as the one that is tested, with other words in the settings that it brings
LATER = "0.9.1"  # with another form of what it remembers


def package(target: Path, version: str, *, state: int = 1) -> Path:
    """A later release: this tree with another version, and maybe another form of the state."""
    tree = target / version
    for name in stages.PACKAGED:
        source = stages.REPO / name
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    replace(tree / "agent/mirror_agent/__init__.py", f'"{CURRENT}"', f'"{version}"')
    replace(tree / "packaging/mirror-agent.spec", f"Version:        {CURRENT}", f"Version:        {version}")
    replace(
        tree / "etc/mirror-agent/agent.toml", "# Settings of mirror-agent.", f"# Settings of mirror-agent {version}."
    )
    if state > 1:
        replace(tree / "agent/mirror_agent/host/state.py", "VERSION = 1\n", f"VERSION = {state}\n")
        replace(tree / "agent/mirror_agent/host/state.py", "Literal[1] = 1", f"Literal[1, {state}] = {state}")
    out = target / f"{version}-rpm"
    out.mkdir()
    layers = (stages.TOOLS.path, stages.ROOTFS.path)
    Sandbox(layers, writable=(out,), readable=(tree, stages.WHEELS.path), network=False).run(
        [tree / "packaging/make-rpm", out, stages.WHEELS.path]
    )
    [rpm] = out.glob("*.noarch.rpm")
    return rpm


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("releases")
    stage = stages.package()
    build((stage,))
    [current] = stage.path.glob("*.noarch.rpm")
    return {CURRENT: current, NEXT: package(folder, NEXT), LATER: package(folder, LATER, state=2)}


def rpm(appliance: Appliance, *arguments: str, file: Path | None = None) -> None:
    """rpm on the host; Debian's knows nothing of what is installed there."""
    with appliance.box.machine.shared_folder() as (outside, inside):
        if file:
            shutil.copy(file, outside)
        place = [f"{inside}/{file.name}"] if file else []
        done = appliance.box.exec("rpm", *arguments, "--nodeps", *place)
    assert "scriptlet" not in done.stderr


def kept(appliance: Appliance) -> dict[str, str]:
    """What no package may touch: settings, definitions, the CA, leases, certificates, the cached images."""
    places = f"{SETTINGS} /etc/mirror-agent.d {STATE}/ca {STATE}/leases.json {STATE}/mirrors {CACHE}/*/registry"
    lines = appliance.sh(f"find {places} -type f -exec sha256sum {{}} +").splitlines()
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}


@contextmanager
def undisturbed(appliance: Appliance, large: str) -> Iterator[None]:
    """While the block runs a pull goes on, no service or container of a mirror starts anew, nothing is lost."""
    before = appliance.starts(*FIVE), appliance.containers(), kept(appliance)
    assert len(before[0]) == 15
    assert any(path.startswith(f"{STATE}/ca/") and path.endswith("/ca.key") for path in before[2])
    assert any("/blobs/sha256/" in path for path in before[2])
    with slow_pull(appliance, "docker", "slow/app", large):
        yield
    assert (appliance.starts(*FIVE), appliance.containers()) == before[:2]
    after = kept(appliance)
    assert {path: after.get(path) for path in before[2]} == before[2]


def running(appliance: Appliance) -> str:
    """The version of the agent that runs, as it says it in its metrics."""
    said = appliance.sh("cat /run/mirror-agent/metrics.prom", check=False)
    return said.partition('mirror_agent_build_info{version="')[2].partition('"')[0]


@pytest.fixture(scope="module")
def large(five: Appliance) -> str:
    image = five.box.push("docker.io", "slow/app:1", layer_sizes=(25 * MB,))
    return str(image["layers"][0]["digest"])


def test_what_is_installed_is_what_the_package_has(five: Appliance) -> None:
    five.pull(f"quay.io/{APP}:1.0")
    said = five.box.exec("rpm", "-V", "--nodeps", "mirror-agent", check=False).stdout
    assert [line.split()[-1] for line in said.splitlines()] == [SETTINGS], said  # the admin's


@pytest.mark.parametrize("version", [NEXT, CURRENT], ids=["upgrade", "downgrade"])
def test_another_version(five: Appliance, releases: dict[str, Path], large: str, version: str) -> None:
    agent = five.property("mirror-agent", "MainPID")
    with undisturbed(five, large):
        rpm(five, "--upgrade", "--oldpackage", file=releases[version])
        five.wait(lambda: running(five) == version, 20, f"agent {version}")
        five.serving(*FIVE)
        five.settle()
    assert five.property("mirror-agent", "MainPID") != agent
    assert five.box.exec("mirror-agent", "version").stdout == f"mirror-agent {version}\n"
    assert five.box.exec("rpm", "-q", "mirror-agent").stdout.count("\n") == 1
    assert five.property("mirror-agent", "UnitFileState") == "enabled"
    shipped = five.sh(f"cat {SETTINGS}.rpmnew")  # beside the admin's, which kept() has compared
    assert (f"mirror-agent {NEXT}" in shipped) == (version == NEXT)
    five.box.exec("mirror-agent", "check")


def test_erased_the_mirrors_run_on_and_a_package_that_comes_back_takes_them_over(
    five: Appliance, releases: dict[str, Path], large: str
) -> None:
    settings = five.sh(f"cat {SETTINGS}")
    with undisturbed(five, large):
        rpm(five, "--erase", "mirror-agent")
        assert five.property("mirror-agent", "LoadState") == "not-found"
        assert five.sh("ls /usr/lib/mirror-agent /usr/bin/mirror-agent 2>/dev/null", check=False) == ""
        assert five.sh(f"cat {SETTINGS}.rpmsave") == settings
        five.sh(f"mv {SETTINGS}.rpmsave {SETTINGS}")  # for the comparison, as an admin would later
    five.box.node_reset()
    five.pull(f"quay.io/{APP}:1.0")

    five.box.reboot()
    five.wait(lambda: len(five.starts(*FIVE)) == 15, 60, "all mirrors after a reboot without the agent")
    five.box.node_reset()
    five.pull(f"quay.io/{APP}:1.0")

    with undisturbed(five, large):
        rpm(five, "--install", file=releases[CURRENT])
        assert five.property("mirror-agent", "UnitFileState") == "disabled", "an admin enables it, with settings"
        assert five.sh(f"cat {SETTINGS}") == settings
        five.enable()
        five.serving(*FIVE)
        five.settle()
    assert five.sh("journalctl --list-catalog | grep -c mirror-agent").strip() != "0"


def test_an_older_agent_refuses_newer_state_and_says_so(five: Appliance, releases: dict[str, Path], large: str) -> None:
    with undisturbed(five, large):
        rpm(five, "--upgrade", file=releases[LATER])
        five.wait(lambda: running(five) == LATER, 20, "the newer agent")
        five.serving(*FIVE)
    starts, addresses = five.starts(*FIVE), five.hosts()
    five.define("extra", 'source = "extra.example"\nremote = "https://quay.io"\n')
    five.wait(lambda: json.loads(five.sh(f"cat {STATE}/leases.json"))["version"] == 2, 20, "state of another form")
    five.remove("extra")
    five.serving(*FIVE)
    five.settle()
    assert (five.starts(*FIVE), five.hosts()) == (starts, addresses), "what was remembered is still known in that form"

    since = five.cursor()
    remembered = five.sh(f"sha256sum {STATE}/leases.json {STATE}/proofs.json")
    with undisturbed(five, large):
        rpm(five, "--upgrade", "--oldpackage", file=releases[CURRENT])
        reason = f"{STATE}/leases.json: is of version 2, this agent knows 1 at most"
        five.until_said(reason, since)
        five.define("another", 'source = "another.example"\nremote = "https://quay.io"\n')
        five.settle()
    assert five.property("mirror-agent", "StatusText").startswith(f"waits: {reason}")
    assert five.property("mirror-agent", "NRestarts") == "0"
    assert five.sh(f"sha256sum {STATE}/leases.json {STATE}/proofs.json") == remembered
    assert json.loads(five.sh(f"cat {STATE}/usage.json"))["version"] == 2
    assert len([line for line in five.journal(since=since) if reason in line["MESSAGE"]]) == 1, "not again and again"
    status = five.status()
    assert (status["line"], len(status["mirrors"])) == (five.property("mirror-agent", "StatusText"), 5)
    assert "install the newer agent again" in status["problems"][0]["hint"]

    before = five.starts(*FIVE)
    rpm(five, "--upgrade", file=releases[LATER])
    five.wait(lambda: five.mirror("another"), 30, "what was written meanwhile")
    assert five.starts(*FIVE) == before
