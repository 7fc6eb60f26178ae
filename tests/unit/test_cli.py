"""The command line through its real entry point, in a process that has neither podman nor systemd's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirror_agent import __version__
from schema import conforms

ROOT = Path(__file__).parents[2]
SETTINGS = """
domain = "mirror.lan"
[network]
parent = "lan0"
subnet = "10.0.0.0/24"
gateway = "10.0.0.1"
range = "10.0.0.4-10.0.0.60"
[publish.folder]
path = "/srv/publish"
"""
# The entry point, with what is not there on a developer's machine or in a git hook.
ENTRY = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"gi", "pydbus", "podman", "systemd", "watchdog"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from mirror_agent.__main__ import main
sys.exit(main())
"""
BATCH = """
import contextlib, io, json
results = []
for words in COMMANDS:
    sys.argv = ["mirror-agent", *words]
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main()
    results.append((code, out.getvalue(), error.getvalue()))
print(json.dumps(results))
"""
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "agent"), "LANG": "C.UTF-8"}
NOBODY = 65534 if os.geteuid() == 0 else None  # without root this user has to do


def mirror_agent(*arguments: object, user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-c", ENTRY, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        user=user,
        check=False,
    )


def one_by_one(commands: list[list[str]]) -> list[tuple[list[str], int, str, str]]:
    """Several commands in one process: each with its exit code, what it said, and what it complained about."""
    entry = ENTRY.replace("sys.exit(main())", BATCH).replace("COMMANDS", repr(commands))
    done = subprocess.run(
        [sys.executable, "-B", "-c", entry], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return [(words, *result) for words, result in zip(commands, json.loads(done.stdout), strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Settings and one definition, readable by everybody."""
    (tmp_path / "agent.toml").write_text(SETTINGS)
    (tmp_path / "definitions").mkdir()
    (tmp_path / "definitions" / "quay.toml").write_text('source = "quay.io"\n')
    for path in (*tmp_path.rglob("*"), *list(tmp_path.parents)[:2], tmp_path):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path


def where(folder: Path) -> tuple[object, ...]:
    return ("--settings", folder / "agent.toml", "--definitions", folder / "definitions")


def break_it(folder: Path) -> None:
    (folder / "definitions" / "ghcr.toml").write_text('source = "https://ghcr.io"\ncolour = "red"\n')


def test_the_libraries_are_really_absent() -> None:
    probe = ENTRY.replace("from mirror_agent.__main__ import main\nsys.exit(main())", "import podman")
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert "No module named 'podman'" in done.stderr


def test_version() -> None:
    done = mirror_agent("version")
    assert (done.returncode, done.stdout) == (0, f"mirror-agent {__version__}\n")


def test_check_of_good_files_is_0(folder: Path) -> None:
    done = mirror_agent("check", *where(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "quay.mirror.lan" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 mirror, 0 problems"


def test_check_tells_every_mistake_and_is_1(folder: Path) -> None:
    break_it(folder)
    done = mirror_agent("check", *where(folder))
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert all(line.startswith(str(folder / "definitions" / "ghcr.toml")) for line in told)
    assert done.stdout.splitlines()[-1] == "1 mirror, 2 problems"


def test_check_json_has_this_shape(folder: Path) -> None:
    break_it(folder)
    done = mirror_agent("check", "--json", *where(folder))
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert list(told) == ["version", "mirrors", "problems", "unread"]
    assert all(list(problem) == ["file", "key", "reason", "hint"] for problem in told["problems"])
    assert {problem["key"] for problem in told["problems"]} == {"source", "colour"}
    (quay,) = told["mirrors"]
    assert (quay["name"], quay["sources"], quay["host"]) == ("quay", ["quay.io"], "quay.mirror.lan")
    good = mirror_agent(
        "check", "--json", "--settings", folder / "agent.toml", "--definitions", ROOT / "etc/mirror-agent.d"
    )
    assert good.returncode == 0
    assert len(json.loads(good.stdout)["mirrors"]) == 5


def test_check_json_is_as_documented(folder: Path) -> None:
    break_it(folder)
    conforms("check", json.loads(mirror_agent("check", "--json", *where(folder)).stdout), whole=False)
    (folder / "definitions" / "full.toml").write_text(
        'source = "ghcr.io"\nprobe = "a/b:1"\nallow = ["a/*"]\n[cache]\nkeep = "9d"\n[upstream]\n'
        'credentials = "/etc/mirror-agent/a"\nca = "/etc/mirror-agent/tls/a"\n'
        'proxy = "http://proxy.example:3128"\nbandwidth = "9MB/s"\n'
        '[tls]\ncertificate = "/etc/mirror-agent/tls/a"\nkey = "/etc/mirror-agent/tls/b"\n'
    )
    (told,) = [json.loads(mirror_agent("check", "--json", *where(folder)).stdout)]
    assert [mirror["name"] for mirror in told["mirrors"]] == ["full", "quay"]
    conforms("check", told)


def test_a_brought_certificate_is_in_the_json_and_not_looked_for_elsewhere(folder: Path) -> None:
    """Files that are named lie on the host, not where its definitions are kept."""
    tls = {"certificate": "/etc/mirror-agent/tls/quay.crt", "key": "/etc/mirror-agent/tls/quay.key"}
    lines = [f'{key} = "{path}"\n' for key, path in tls.items()]
    (folder / "definitions" / "quay.toml").write_text('source = "quay.io"\n[tls]\n' + "".join(lines))
    done = mirror_agent("check", "--json", *where(folder))
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["mirrors"][0]["tls"] == {**tls, "ca": None}
    assert (told["problems"], told["unread"]) == ([], [])


@pytest.mark.parametrize("absent", ["settings", "definitions"])
def test_check_of_what_is_not_there_is_a_problem_in_json_too(folder: Path, absent: str) -> None:
    options = dict(zip(where(folder)[::2], where(folder)[1::2], strict=True)) | {f"--{absent}": folder / "nowhere"}
    done = mirror_agent("check", "--json", *(word for option in options.items() for word in option))
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["mirrors"] == []
    assert told["problems"][0]["file"] == str(folder / "nowhere")


def test_check_and_render_need_no_root(folder: Path) -> None:
    assert mirror_agent("check", *where(folder), user=NOBODY).returncode == 0
    target = folder / "out"
    target.mkdir(mode=0o777)
    target.chmod(0o777)
    done = mirror_agent("render", "--to", target, *where(folder), user=NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.stat().st_uid for path in target.rglob("*")} == {NOBODY or os.geteuid()}


def test_render_writes_below_its_folder_what_it_names(folder: Path) -> None:
    target = folder / "out"
    done = mirror_agent("render", "--to", target, *where(folder))
    assert done.returncode == 0
    written = sorted(str(path) for path in target.rglob("*") if path.is_file())
    assert done.stdout.splitlines() == written
    names = {str(Path(path).relative_to(target)) for path in written}
    assert names >= {
        "etc/containers/systemd/mirror-agent/mirror-quay.pod",
        "var/lib/mirror-agent/mirrors/quay/edge/nginx.conf",
        "srv/publish/image-digest-mirror-set.yaml",
    }
    again = mirror_agent("render", "--to", folder / "again", *where(folder))
    assert again.stdout.replace("/again/", "/out/") == done.stdout
    assert all(Path(path).read_bytes() == Path(path.replace("/out/", "/again/")).read_bytes() for path in written)


def test_render_of_a_broken_file_writes_the_others_and_is_1(folder: Path) -> None:
    break_it(folder)
    done = mirror_agent("render", "--to", folder / "out", *where(folder))
    assert done.returncode == 1
    assert "ghcr.toml" in done.stderr
    assert (folder / "out/etc/containers/systemd/mirror-agent/mirror-quay.pod").exists()
    assert not list((folder / "out").rglob("*ghcr*"))


WRONG = [
    ["chekc"],
    ["check", "--jsn"],
    ["render"],
    ["render", "--to", "{}/definitions"],
    ["render", "--to", "{}/agent.toml"],
    ["run", "--now"],
    ["purge"],
    ["purge", ".."],
    ["purge", "/etc"],
    ["purge", ""],
    ["purge", "quay", "../quay"],
]


def test_wrong_usage_is_2_and_does_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for words, code, out, error in one_by_one([[word.format(folder) for word in words] for words in WRONG]):
        assert (code, out) == (2, ""), words
        assert error, words
    assert sorted(folder.rglob("*")) == before


def test_help_names_every_command_and_the_exit_codes() -> None:
    commands = ("check", "render", "plan", "status", "purge", "version", "run")
    (_, code, out, _), *each = one_by_one([["--help"], *([command, "--help"] for command in commands)])
    assert code == 0
    assert [word for word in (*commands, "Exit codes") if word not in out] == []
    assert {(code, error) for _, code, _, error in each} == {(0, "")}
    assert all(len(out.splitlines()) > 4 for _, _, out, _ in each)


def test_help_fits_a_terminal_of_80_columns_and_tells_each_command_in_one_line() -> None:
    (_, _, overview, _), *each = one_by_one([["--help"], *([*words, "--help"] for words in every_command())])
    assert "..." not in overview.partition("Commands:")[2]
    for words, _, out, _ in [*each, (["--help"], 0, overview, "")]:
        assert max(map(len, out.splitlines())) <= 80, words
        assert "None" not in out, words  # a default that is none
        assert "\\" not in out, words  # what is escaped for nobody


def every_command() -> list[list[str]]:
    (_, _, out, _), (_, _, ca, _) = one_by_one([["--help"], ["ca", "--help"]])
    named = [[line.split()[0] for line in text.partition("Commands:\n")[2].split("\n\n")[0].splitlines()]
             for text in (out, ca)]  # fmt: skip
    assert len(named[0]) > 10
    return [[name] for name in named[0]] + [["ca", name] for name in named[1]]


def test_version_and_help_are_where_every_program_has_them() -> None:
    (_, *version), (_, *option), (_, code, short, _) = one_by_one([["version"], ["--version"], ["check", "-h"]])
    assert version == option
    assert code == 0
    assert "--definitions" in short


def test_status_without_an_agent_says_so_and_is_1() -> None:
    done = mirror_agent("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the agent: does not run" in done.stderr


EVERYTHING = [
    ["plan"],
    ["status"],
    ["publish", "--format", "hosts"],
    ["purge", "quay"],
    ["renew"],
    ["ca", "show"],
    ["ca", "export"],
    ["ca", "roll"],
    ["cache"],
    ["warm", "quay.io/podman/hello:latest"],
    ["release", "friday"],
]
HELPS = ("sudo mirror-agent", "systemctl", "install python3-", "agent.toml", "mirror-agent cache")


def test_where_nothing_of_it_is_there_each_command_says_what_is_missing() -> None:
    """Neither settings nor systemd, podman and their libraries: one or two lines, no traceback."""
    for words, code, out, error in one_by_one(EVERYTHING):
        assert (code, out, len(error.splitlines()) in (1, 2)) == (1, "", True), (words, error)
        assert any(each in error for each in HELPS), (words, error)


def test_logs_without_systemd_says_so() -> None:
    entry = [sys.executable, "-B", "-c", ENTRY, "logs", "quay"]
    done = subprocess.run(
        entry, env={**ENVIRONMENT, "PATH": "/nonexistent"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "journalctl: cannot be run: No such file or directory (this host has no systemd)\n"
