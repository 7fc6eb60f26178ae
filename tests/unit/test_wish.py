"""What the admin wrote, read from real folders."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath

import pytest
from issued import CA

from mirror_agent import pods, wish
from mirror_agent.host import state
from mirror_agent.model import Paths, Role, Trouble
from mirror_agent.plan import Desired
from mirror_agent.wish import Remembered, Wish

ME = os.geteuid()
NOTHING = Remembered({}, {})
SETTINGS = """
domain = "mirror.lan"
[network]
parent = "lan0"
subnet = "10.0.0.0/24"
gateway = "10.0.0.1"
range = "10.0.0.4-10.0.0.60"
"""
SECRET = "s3cret-t0ken"
CERTIFICATE = (Path(__file__).parents[1] / "golden" / "ca.pem").read_text()
OTHER_CERTIFICATE = CA.certificate.decode()


class Machine:
    """The files of a host, below a folder of the test's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = Paths(
            settings=PurePosixPath(root / "agent.toml"),
            definitions=tuple(PurePosixPath(root / name) for name in ("admin", "run", "vendor")),
            templates=PurePosixPath(Path(__file__).parents[2] / "quadlets"),
            units=PurePosixPath(root / "units"),
            state=PurePosixPath(root / "state"),
        )
        self.write("agent.toml", SETTINGS)
        for name in ("admin", "run", "vendor"):
            (root / name).mkdir()

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def read(self, memory: Remembered = NOTHING, secrets: bool = True) -> Wish:
        return wish.read(self.paths, memory, (5, 4), owner=ME, secrets=secrets)

    def desired(self, memory: Remembered = NOTHING) -> Desired:
        wanted = self.read(memory)
        assert not wanted.problems
        assert wanted.desired
        return wanted.desired


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_five_files_are_five_mirrors_and_their_pods(machine: Machine) -> None:
    shipped = sorted((Path(__file__).parents[2] / "etc" / "mirror-agent.d").glob("*.toml"))
    for path in shipped:
        machine.write(f"admin/{path.name}", path.read_bytes())
    desired = machine.desired()
    assert [mirror.name for mirror in desired.mirrors] == [path.stem for path in shipped]
    assert desired.pods.keys() == desired.leases.keys() == desired.accepted.keys() == {p.stem for p in shipped}
    assert len({mirror.address for mirror in desired.mirrors}) == len(shipped) == 5
    assert all(mirror.probe for mirror in desired.mirrors), "a known upstream is proved without waiting for a client"


def test_no_file_is_no_mirror_and_no_problem(machine: Machine) -> None:
    assert machine.desired().mirrors == ()


def test_the_first_folder_that_has_a_name_wins(machine: Machine) -> None:
    machine.write("vendor/quay.toml", 'source = "quay.io"\n')
    machine.write("vendor/ghcr.toml", 'source = "ghcr.io"\n')
    machine.write("admin/quay.toml", 'source = "quay.io"\naddress = "10.0.0.9"\n')
    by_name = {mirror.name: mirror for mirror in machine.desired().mirrors}
    assert by_name.keys() == {"quay", "ghcr"}
    assert by_name["quay"].address == IPv4Address("10.0.0.9")


def test_a_link_to_dev_null_masks(machine: Machine) -> None:
    machine.write("vendor/quay.toml", 'source = "quay.io"\n')
    (machine.root / "admin" / "quay.toml").symlink_to("/dev/null")
    assert machine.desired().mirrors == ()


def test_some_of_the_folders_may_be_missing_but_not_all(machine: Machine) -> None:
    machine.write("vendor/quay.toml", 'source = "quay.io"\n')
    (machine.root / "admin").rmdir()
    (machine.root / "run").rmdir()
    assert len(machine.desired().mirrors) == 1
    (machine.root / "vendor" / "quay.toml").unlink()
    (machine.root / "vendor").rmdir()
    with pytest.raises(Trouble) as told:
        machine.read()
    assert told.value.where == str(machine.root / "admin")
    assert "all mirrors stay" in told.value.hint


def test_without_settings_there_is_no_wish(machine: Machine) -> None:
    machine.write("admin/quay.toml", 'source = "quay.io"\n')
    (machine.root / "agent.toml").unlink()
    wanted = machine.read()
    assert wanted.desired is None
    (problem,) = wanted.problems
    assert (problem.file, problem.reason) == (str(machine.root / "agent.toml"), "there are no settings")
    machine.write("agent.toml", "domain = 7\n")
    broken = machine.read()
    assert broken.desired is None
    assert {problem.key for problem in broken.problems} >= {"domain", "network"}


def test_settings_that_are_too_large_are_not_read(machine: Machine) -> None:
    machine.write("agent.toml", SETTINGS + "#" * wish.SETTINGS_LIMIT)
    with pytest.raises(Trouble, match=r"agent\.toml"):
        machine.read()


def test_a_broken_file_leaves_its_mirror_and_the_others(machine: Machine) -> None:
    machine.write("admin/quay.toml", 'source = "quay.io"\n')
    machine.write("admin/ghcr.toml", 'source = "ghcr.io"\n')
    before = machine.desired()
    memory = Remembered(before.leases, before.accepted)
    machine.write("admin/quay.toml", 'source = "quay.io"\ncolour = "red"\n')
    machine.write("admin/new.toml", "not toml\n")
    wanted = machine.read(memory)
    assert wanted.desired
    assert wanted.desired.mirrors == before.mirrors
    assert wanted.desired.accepted == before.accepted
    assert wanted.desired.frozen == {"new"}
    assert {(Path(p.file).name, p.mirror) for p in wanted.problems} == {("quay.toml", "quay"), ("new.toml", "new")}


def test_a_mirror_in_doubt_keeps_its_text_and_its_address(machine: Machine) -> None:
    machine.write("admin/quay.toml", 'source = "quay.io"\naddress = "10.0.0.4"\n')
    before = machine.desired()
    machine.write("agent.toml", SETTINGS.replace("10.0.0.4-", "10.0.0.6-"))
    wanted = machine.read(Remembered(before.leases, before.accepted)).desired
    assert wanted
    assert wanted.mirrors == ()
    assert wanted.frozen == {"quay"}
    assert (wanted.accepted, wanted.leases) == (before.accepted, before.leases)


def test_a_mirror_whose_new_address_is_refused_runs_on_and_is_not_in_doubt(machine: Machine) -> None:
    machine.write("admin/lost.toml", "not toml\n")
    machine.write("admin/b.toml", 'source = "b.example"\naddress = "10.0.0.4"\n')
    leases = {"lost": IPv4Address("10.0.0.4"), "b": IPv4Address("10.0.0.5")}
    wanted = machine.read(Remembered(leases, {}))
    assert {problem.mirror: problem.key for problem in wanted.problems} == {"b": "address", "lost": ""}
    assert wanted.desired
    assert [(m.name, m.address) for m in wanted.desired.mirrors] == [("b", leases["b"])]
    assert wanted.desired.frozen == {"lost"}


def test_missing_templates_are_told(machine: Machine) -> None:
    machine.paths = replace(machine.paths, templates=PurePosixPath(machine.root / "nowhere"))
    with pytest.raises(Trouble, match="nowhere"):
        machine.read()


# --- credentials -------------------------------------------------------------------------------------------------


@pytest.fixture
def private(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A mirror whose credentials lie below the test's folder instead of /etc/mirror-agent."""
    machine.write("admin/quay.toml", 'source = "quay.io"\n[upstream]\ncredentials = "/etc/mirror-agent/quay"\n')
    original = wish._login
    monkeypatch.setattr(wish, "_login", lambda path: original(machine.root / Path(path).name))
    return machine


def auth(machine: Machine) -> PurePosixPath:
    return machine.paths.mirror("quay") / "auth" / "auth.json"


@pytest.mark.parametrize("text", ["robot\n{}\n", "robot\r\n{}\r\n", "  robot \n{}"])
def test_credentials_are_what_the_helper_reads(private: Machine, text: str) -> None:
    private.write("quay", text.format(SECRET))
    file = private.desired().secrets["quay"]
    assert json.loads(file.content) == {"Username": "robot", "Secret": SECRET}
    assert (file.path, file.mode, file.owner) == (auth(private), 0o400, pods.REGISTRY_ID)


def test_a_secret_is_in_no_unit_no_configuration_and_no_repr(private: Machine) -> None:
    private.write("quay", f"robot\n{SECRET}\n")
    desired = private.desired()
    pod = desired.pods["quay"]
    assert not any(SECRET.encode() in file.content for file in (*pod.units, *pod.configs, desired.network.unit))
    assert SECRET not in repr(desired)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        ("robot\n", "is not two lines"),
        (f"robot\n\n{SECRET}\n", "is not two lines"),
        (f"  \n{SECRET}\n", "is not two lines"),
        (f"robot\n{SECRET}\nmore\n", "is not two lines"),
        (b"robot\n\xff\xfe\n", "is not UTF-8"),
        ("x" * (wish.CREDENTIALS_LIMIT + 1), ""),
    ],
)
def test_a_bad_file_leaves_the_credentials_that_the_mirror_has(
    private: Machine, content: str | bytes | None, reason: str
) -> None:
    if content is not None:
        private.write("quay", content)
    wanted = private.read()
    (problem,) = wanted.problems
    assert (problem.file, problem.key, problem.mirror) == ("quay.toml", "upstream.credentials", "quay")
    assert problem.reason.startswith(str(private.root / "quay"))
    assert reason in problem.reason
    assert SECRET not in str(problem)
    assert str(problem).count(problem.hint or "(") <= 1
    assert wanted.desired
    assert wanted.desired.secrets == {}
    assert [mirror.name for mirror in wanted.desired.mirrors] == ["quay"]

    before = Path(auth(private))
    before.parent.mkdir(parents=True)
    before.write_bytes(b'{"Username": "old", "Secret": "old"}')
    again = private.read().desired
    assert again
    assert again.secrets["quay"].content == before.read_bytes()


def test_credentials_are_not_looked_at_without_need(private: Machine) -> None:
    wanted = private.read(secrets=False)
    assert wanted.problems == ()
    assert wanted.desired
    assert wanted.desired.secrets == {}


# --- the CAs of an upstream --------------------------------------------------------------------------------------


@pytest.fixture
def behind_ca(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A mirror whose CA file lies below the test's folder instead of /etc/mirror-agent."""
    machine.write("admin/quay.toml", 'source = "quay.io"\n[upstream]\nca = "/etc/mirror-agent/company"\n')
    original = wish._bundle
    monkeypatch.setattr(wish, "_bundle", lambda path: original(machine.root / Path(path).name))
    return machine


def test_only_certificates_of_the_file_get_to_the_registry(behind_ca: Machine) -> None:
    behind_ca.write("company", f"Company Root\n{CERTIFICATE}\nuser = {SECRET}\n{CERTIFICATE}")
    pod = behind_ca.desired().pods["quay"]
    (file,) = (each for each in pod.configs if each.path.name == "upstream-ca.pem")
    assert (file.path, file.mode, file.owner) == (pods.upstream_ca_path(behind_ca.paths, "quay"), 0o644, 0)
    assert file.content.decode() == CERTIFICATE


def test_another_bundle_restarts_the_registry_alone(behind_ca: Machine) -> None:
    behind_ca.write("company", CERTIFICATE)
    behind_ca.write("admin/ghcr.toml", 'source = "ghcr.io"\n')
    before = behind_ca.desired().pods
    behind_ca.write("company", CERTIFICATE + OTHER_CERTIFICATE)
    after = behind_ca.desired().pods
    hashes, changed = dict(before["quay"].container_hashes), dict(after["quay"].container_hashes)
    assert (hashes[Role.EDGE], before["quay"].pod_hash) == (changed[Role.EDGE], after["quay"].pod_hash)
    assert hashes[Role.REGISTRY] != changed[Role.REGISTRY]
    assert before["ghcr"] == after["ghcr"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "there is no such file"), ("", "no certificate"), (SECRET, "no certificate"), ("x" * 2**21, "")],
)
def test_a_bad_file_leaves_the_cas_that_the_mirror_has(behind_ca: Machine, content: str | None, reason: str) -> None:
    behind_ca.write("company", CERTIFICATE)
    before = behind_ca.desired().pods
    (file,) = (each for each in before["quay"].configs if each.path.name == "upstream-ca.pem")
    Path(file.path).parent.mkdir(parents=True)
    Path(file.path).write_bytes(file.content)
    (behind_ca.root / "company").unlink()
    if content is not None:
        behind_ca.write("company", content)
    wanted = behind_ca.read()
    (problem,) = wanted.problems
    assert (problem.file, problem.key, problem.mirror) == ("quay.toml", "upstream.ca", "quay")
    assert reason in problem.reason
    assert SECRET not in str(problem)
    assert wanted.desired
    assert wanted.desired.pods == before


# --- what was remembered -----------------------------------------------------------------------------------------


def test_leases_and_definitions_are_remembered(machine: Machine) -> None:
    machine.write("admin/quay.toml", 'source = "quay.io"\n')
    first = machine.desired()
    (machine.root / "state" / "accepted").mkdir(parents=True)
    state.save_leases(machine.paths.leases, {"quay": IPv4Address("10.0.0.33")}, ME)
    state.save_accepted(machine.paths.accepted, "quay", first.accepted["quay"], ME)
    memory = wish.remembered(machine.paths)
    assert memory == Remembered({"quay": IPv4Address("10.0.0.33")}, first.accepted)
    assert machine.desired(memory).mirrors[0].address == IPv4Address("10.0.0.33")


def test_a_damaged_memory_is_never_an_empty_one(machine: Machine) -> None:
    machine.write("state/leases.json", "{")
    with pytest.raises(Trouble, match=r"leases\.json"):
        wish.remembered(machine.paths)
