"""The command line through its real entry point, in a process that has neither podman nor systemd's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirror_agent import __version__, cli
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


def test_a_mistyped_command_is_told_the_one_that_was_meant() -> None:
    assert "No such command 'chekc'. Did you mean 'check'?" in mirror_agent("chekc").stderr


def test_what_the_system_refuses_is_one_line(folder: Path) -> None:
    done = mirror_agent("render", "--to", folder / "agent.toml" / "below", *where(folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{folder}/agent.toml/below/")
    reason = "cannot be written: not a directory (a folder is needed there, not a file or a link)\n"
    assert done.stderr.endswith(f": {reason}")


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    """`mirror-agent check | head -1`."""
    end, pipe = os.pipe()
    os.close(end)
    command = [sys.executable, "-B", "-c", ENTRY, "check", *map(str, where(folder))]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, "")


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


def loaded(*words: object, **environment: str) -> set[str]:
    """The modules that a command has loaded by its end."""
    tell = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    entry = ENTRY.replace("from mirror_agent.__main__", f"{tell}from mirror_agent.__main__")
    command = [sys.executable, "-B", "-c", entry, *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    names = done.stderr.splitlines()[-1].split()
    assert "mirror_agent.cli" in names
    return {*names, *(name.partition(".")[0] for name in names)}


# Each of them takes as long as the interpreter itself.
DRAWING = {"rich"}
OF_TYPER_S_RICH = {"markdown_it", "pygments", "rich.markdown", "rich.syntax", "rich.traceback"}
READING = {"pydantic", "jinja2", "yaml", "tomllib"}
JUDGING = {"cryptography"}
OF_THE_AGENT = {"prometheus_client", "structlog", "kubernetes", "http.client", "ssl", "urllib.request", "concurrent"}


@pytest.mark.parametrize("words", [["version"], ["--version"], ["--help"], ["-h"], [], ["chekc"]])
def test_what_needs_no_command_loads_none(words: list[str]) -> None:
    names = loaded(*words)
    assert names & (DRAWING | OF_TYPER_S_RICH | READING | JUDGING | OF_THE_AGENT) == set()
    assert {name for name in names if name.startswith("mirror_agent.commands.")} == {"mirror_agent.commands.common"}


@pytest.mark.parametrize(
    ("shell", "asked"),
    [("bash", {"COMP_WORDS": "mirror-agent re", "COMP_CWORD": "1"}),
     ("zsh", {"_TYPER_COMPLETE_ARGS": "mirror-agent re"}),
     ("fish", {"_TYPER_COMPLETE_ARGS": "mirror-agent re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
     ("bash", {"COMP_WORDS": "mirror-agent logs q", "COMP_CWORD": "2"}),
     ("zsh", {"_TYPER_COMPLETE_ARGS": "mirror-agent logs --fo"})],
)  # fmt: skip
def test_a_shell_that_completes_loads_nothing_that_works(shell: str, asked: dict[str, str]) -> None:
    names = loaded(**asked, _MIRROR_AGENT_COMPLETE=f"complete_{shell}")
    assert names & (DRAWING | OF_TYPER_S_RICH | READING | JUDGING | OF_THE_AGENT) == set()


def test_status_reads_what_the_agent_said_and_loads_nothing_that_judges() -> None:
    assert loaded("status") & (OF_TYPER_S_RICH | READING | JUDGING | {"prometheus_client", "structlog", "ssl"}) == set()


def test_check_loads_what_reads_and_neither_what_acts_nor_what_speaks_with_others(folder: Path) -> None:
    names = loaded("check", *where(folder))
    assert names & (OF_TYPER_S_RICH | OF_THE_AGENT) == set()
    assert names >= READING


def test_each_command_of_the_table_is_one_and_begins_its_help_as_the_table_says() -> None:
    assert len(cli.COMMANDS) > 15
    for name, row in cli.COMMANDS.items():
        command = cli.load(name)
        assert command.name == name
        assert command.get_short_help_str(100) == row.help


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
