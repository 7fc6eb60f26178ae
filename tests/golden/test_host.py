"""A host's whole tree for what an admin wrote, to the byte; and podman's own quadlet makes of it what is meant.

A case is a folder with agent.toml, definitions/*.toml and host/, the tree that `mirror-agent render --to` writes.
GOLDEN_UPDATE=1 writes host/ anew.  A new case is a new folder: nothing is to be registered.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from mirror_agent import pods, wish
from mirror_agent.commands.render import rendered
from mirror_agent.commands.wanted import NEWEST_PODMAN
from mirror_agent.host import quadlet
from mirror_agent.model import Mirror, Paths, Role
from mirror_agent.plan import Desired

HERE = Path(__file__).parent
CASES = sorted(path.parent for path in HERE.glob("*/agent.toml"))
PODMANS = [(5, 0), (5, 1), (5, 2), (5, 3), (5, 4), (5, 6), (6, 0)]
UNITS = Paths().units

# What quadlet knows since podman 5.0 of what we write (pkg/systemd/quadlet/quadlet.go of v5.0.3; that version's own
# -dryrun took all of it).  A key that is not in here makes the whole unit disappear on an older podman.
SINCE_5_0 = {
    "Container": "ContainerName DropCapability Environment Exec Group Image Label LogDriver NoNewPrivileges Pod "
    "PodmanArgs Pull ReadOnly ReadOnlyTmpfs StopTimeout Tmpfs User Volume",
    "Pod": "Network PodName PodmanArgs",
    "Network": "DisableDNS Driver Gateway NetworkName Options Subnet",
}
SINCE_5_3 = {"Quadlet": "DefaultDependencies"}


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@cache
def desired(case: Path, podman: tuple[int, int] = NEWEST_PODMAN) -> Desired:
    paths = Paths(
        settings=PurePosixPath(case / "agent.toml"),
        definitions=(PurePosixPath(case / "definitions"),),
        templates=PurePosixPath(HERE.parents[1] / "quadlets"),
    )
    wanted = wish.read(paths, wish.Remembered({}, {}), podman, owner=None, secrets=False)
    assert not wanted.problems
    assert wanted.desired
    return wanted.desired


def units(case: Path, podman: tuple[int, int]) -> Mapping[str, str]:
    """The quadlet files of a case, by name."""
    found = rendered(desired(case, podman))
    return {path.name: content.decode() for path, content in found.items() if path.parent == UNITS}


@cache
def services(case: Path, podman: tuple[int, int]) -> Mapping[str, list[str]]:
    """The lines of the services that this machine's quadlet makes of a case, by name."""
    complete = {name: text.encode() for name, text in units(case, podman).items()}
    quadlet.check(complete)
    stage = Path(os.environ.get("TMPDIR", "/tmp")) / f"golden-{os.getpid()}"
    stage.mkdir()
    try:
        for name, content in complete.items():
            (stage / name).write_bytes(content)
        environment = {"QUADLET_UNIT_DIRS": str(stage), "PATH": "/usr/bin:/bin"}
        made = subprocess.run(
            [quadlet.generator(), "-dryrun"], env=environment, capture_output=True, text=True, check=True
        ).stdout
    finally:
        shutil.rmtree(stage)
    parts = re.split(r"^---(.+)---$", made, flags=re.MULTILINE)
    return {name: text.strip().splitlines() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def command(lines: list[str], key: str) -> str:
    """The command that makes what a service is for; between an option and its value a space, as one podman or another
    writes it.
    """
    verbs = ("podman run ", "podman pod create ", "podman network create ")
    found = [line for line in lines if line.startswith(f"{key}=") and any(verb in line for verb in verbs)]
    assert len(found) == 1, found
    return re.sub(r"( --[a-z-]+)=", r"\1 ", found[0]) + " "


def every_mirror() -> list[tuple[Path, Mirror]]:
    return [(case, mirror) for case in CASES for mirror in desired(case).mirrors]


def test_there_are_cases() -> None:
    assert {"recipe", "docker-and-path", "every-setting"} <= {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_render_writes_the_golden_tree_to_the_byte(case: Path, tmp_path: Path) -> None:
    tree = tmp_path / "host"
    arguments = ["render", "--to", tree, "--settings", case / "agent.toml", "--definitions", case / "definitions"]
    done = subprocess.run(
        [sys.executable, "-m", "mirror_agent", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "agent")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if os.environ.get("GOLDEN_UPDATE"):
        shutil.rmtree(case / "host", ignore_errors=True)
        shutil.copytree(tree, case / "host", copy_function=shutil.copyfile)
    assert files_below(tree) == files_below(case / "host")
    assert done.stdout.split() == sorted(str(tree / name) for name in files_below(tree))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_but_the_publication_lies_in_its_folder_and_no_ca_is_made_up(case: Path) -> None:
    wanted = desired(case)
    folder = wanted.settings.publish.folder
    below = files_below(case / "host" / str(folder.path).lstrip("/")) if folder else {}
    assert "ca-bundle.pem" not in below
    assert not any(b"CERTIFICATE" in content for content in files_below(case / "host").values())
    if folder:
        assert {"hosts", "image-digest-mirror-set.yaml", "image-tag-mirror-set.yaml"} <= below.keys()


@pytest.mark.parametrize("podman", PODMANS, ids=lambda version: ".".join(map(str, version)))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_podman_gets_no_key_that_it_does_not_know(case: Path, podman: tuple[int, int]) -> None:
    known = {section: set(keys.split()) for section, keys in SINCE_5_0.items()}
    if podman >= (5, 3):
        known |= {section: set(keys.split()) for section, keys in SINCE_5_3.items()}
    for name, text in units(case, podman).items():
        entries = pods.parse_unit(text)
        ours = [(section, key) for section, key, _ in entries if section not in ("Unit", "Service", "Install")]
        assert [(section, key) for section, key in ours if key not in known.get(section, ())] == [], name
        assert ("Quadlet" in {section for section, _ in ours}) == (podman >= (5, 3)), name
    assert services(case, podman).keys() == {quadlet.service(name) for name in units(case, podman)}


@pytest.mark.parametrize("podman", [(5, 3), (5, 4)], ids=["5.3", "5.4"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_service_waits_for_a_network_that_is_online(case: Path, podman: tuple[int, int]) -> None:
    waiting = re.compile(r"^[A-Za-z]+=.*-(online|wait)\.", re.MULTILINE)
    assert [name for name, lines in services(case, podman).items() if waiting.search("\n".join(lines))] == []


@pytest.mark.parametrize(("case", "mirror"), every_mirror(), ids=lambda value: getattr(value, "name", ""))
def test_the_pod_has_its_address_on_its_network(case: Path, mirror: Mirror) -> None:
    made = services(case, NEWEST_PODMAN)
    pod = made[pods.pod_service(mirror.name)]
    network = desired(case).network.name
    create = command(pod, "ExecStartPre")
    for argument in (f"--network {network}", f"--ip {mirror.address}", f"--mac-address {mirror.mac}"):
        assert f" {argument} " in create
    assert re.findall(r" --dns (\S+)", create) == [str(server) for server in desired(case).settings.network.dns]
    assert re.findall(r" --exit-policy (\S+)", create)[-1] == "continue"  # quadlet's own comes first
    for line in (f"Requires={network}-network.service", f"After={network}-network.service"):
        assert line in pod
    assert "WantedBy=multi-user.target" in pod  # mirrors come up at boot, with or without the agent
    assert {f"Wants={pods.container_service(mirror.name, role)}" for role in Role} <= set(pod)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("case", "mirror"), every_mirror(), ids=lambda value: getattr(value, "name", ""))
def test_a_container_belongs_to_its_pod_and_may_do_nothing_else(case: Path, mirror: Mirror, role: Role) -> None:
    lines = services(case, NEWEST_PODMAN)[pods.container_service(mirror.name, role)]
    settings = desired(case).settings
    run = command(lines, "ExecStart")
    owner = {Role.EDGE: pods.EDGE_ID, Role.REGISTRY: pods.REGISTRY_ID}[role]
    for part in (
        "--pull never",
        "--read-only",
        "--cap-drop all",
        "--security-opt no-new-privileges",
        f"--user {owner}:{owner}",
        f"--label io.mirror-agent.mirror={mirror.name}",
        f"--label io.mirror-agent.role={role}",
        f"--pod-id-file %t/{pods.pod_name(mirror.name)}-pod.pod-id",
        getattr(settings.images, role),
    ):
        assert f" {part} " in run
    assert f"BindsTo={pods.pod_service(mirror.name)}" in lines
    assert f"After={pods.pod_service(mirror.name)}" in lines
    assert "Restart=always" in lines
    assert "StartLimitIntervalSec=0" in lines  # however long it fails, it is tried again
    writable = {mount.split(":")[1] for mount in re.findall(r" -v (\S+)", run) if ":rw" in mount}
    assert writable == {{Role.EDGE: "/var/cache/edge", Role.REGISTRY: "/var/lib/registry"}[role]}


@pytest.mark.parametrize(("case", "mirror"), every_mirror(), ids=lambda value: getattr(value, "name", ""))
def test_a_reload_tests_the_configuration_first(case: Path, mirror: Mirror) -> None:
    edge = services(case, NEWEST_PODMAN)[pods.container_service(mirror.name, Role.EDGE)]
    reload = [line for line in edge if line.startswith("ExecReload=")]
    assert len(reload) == 2
    assert " nginx -t " in reload[0]
    assert "--signal HUP" in reload[1]
    assert " --stop-signal SIGTERM " in command(edge, "ExecStart")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_network_is_the_lan_of_the_settings(case: Path) -> None:
    wanted = desired(case)
    lan = wanted.settings.network
    lines = services(case, NEWEST_PODMAN)[f"{wanted.network.name}-network.service"]
    create = command(lines, "ExecStart")
    for part in ("--disable-dns", "--driver macvlan", f"--subnet {lan.subnet}", f"--gateway {lan.gateway}"):
        assert f" {part} " in create
    assert f" --opt parent={lan.parent} " in create
    assert create.endswith(f" {wanted.network.name} ")
