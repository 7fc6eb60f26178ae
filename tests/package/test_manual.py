"""The manual says what the code does: every command, option, key, exit code, state, file and field, and no other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from tree import REPO

from mirror_agent import cli, formats
from mirror_agent.commands import common
from mirror_agent.config.definition import DefinitionTable
from mirror_agent.config.settings import SettingsTable
from mirror_agent.config.toml import keys
from mirror_agent.model import Mirror, Paths, Publication
from mirror_agent.report import State

SOURCES = sorted((REPO / "docs/man").glob("*.md"))
PAGES = [source.stem for source in SOURCES]
COMMANDS = {name: cli.load(name) for name in cli.COMMANDS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([REPO / "packaging/build", folder], check=True)
    return folder


def shown(made: Path, page: str) -> str:
    """A page as people see it, without what wraps its lines."""
    environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    command: list[str | Path] = [
        "man",
        "--no-hyphenation",
        "--no-justification",
        "-l",
        "-P",
        "cat",
        made / "man" / page,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def markdown(page: str) -> str:
    return (REPO / "docs/man" / f"{page}.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_man_has_no_complaints(made: Path, page: str) -> None:
    """Neither on a narrow terminal nor about its first line, which whatis(1) and apropos(1) go by."""
    environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    command: list[str | Path] = ["man", "--warnings=w", "-l", "-P", "cat", made / "man" / page]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    wide = [line for line in done.stdout.splitlines() if len(line) > 80 and not line.startswith("       ")]
    assert wide == []
    subprocess.run(["lexgrog", made / "man" / page], check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES)
def test_no_mark_of_markdown_is_left(made: Path, page: str) -> None:
    text = shown(made, page)
    assert "<!--" not in text
    assert re.findall(r"\*\*|\]\(|^\s*\||^#", text, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES)
def test_see_also_leads_to_pages_that_are_there(page: str) -> None:
    own = {f"{name.rpartition('.')[0]}({name.rpartition('.')[2]})" for name in PAGES}
    named = set(re.findall(r"\b(?:mirror-agent[\w.-]*|agent\.toml)\(\d\)", markdown(page)))
    assert named <= own
    assert own - named <= {f"{page.rpartition('.')[0]}({page.rpartition('.')[2]})"}, "a page is not mentioned"


def flat(commands: dict[str, Any], prefix: str = "") -> dict[str, click.Command]:
    """Commands with those below them: `ca show` is one."""
    found: dict[str, click.Command] = {}
    for name, command in commands.items():
        if below := getattr(command, "commands", None):
            found |= flat(below, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_every_command_with_every_option_and_no_other(made: Path) -> None:
    chapter = shown(made, "mirror-agent.8").partition("\nCOMMANDS\n")[2].partition("\nSTATES\n")[0]
    parts = re.split(r"^   (\S.*)$", chapter, flags=re.MULTILINE)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = flat(COMMANDS)
    assert list(told) == sorted(found)
    for name, command in found.items():
        synopsis, *explained = told[name].strip().split("\n\n")
        assert synopsis.startswith(f"mirror-agent {name}")
        options = {max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)}
        assert set(re.findall(r"--[a-z-]+", synopsis)) == options
        assert set(re.findall(r"^ {7}(?:-\w, )?(--[a-z-]+)", told[name], re.MULTILINE)) == options
        assert explained[0].split() == (command.help or "").replace("`", "").partition("\n\n")[0].split()
        assert all(p.metavar in synopsis for p in command.params if isinstance(p, click.Argument) and p.metavar)


def test_every_exit_code() -> None:
    chapter = markdown("mirror-agent.8").partition("# EXIT STATUS\n")[2].partition("\n# ")[0]
    told = {int(code) for code in re.findall(r"^(\d+)\n: ", chapter, re.MULTILINE)}
    assert told == {common.DONE, common.PROBLEM, common.USAGE}


def test_every_state_of_a_mirror() -> None:
    chapter = markdown("mirror-agent.8").partition("# STATES\n")[2].partition("\n# ")[0]
    assert re.findall(r"^\*(\w+)\*$", chapter, re.MULTILINE) == [state.value for state in State]


def test_files_are_where_the_page_says() -> None:
    chapter = markdown("mirror-agent.8").partition("# FILES\n")[2].partition("\n# ")[0]
    told = re.findall(r"^\*(.+)\*$", chapter, re.MULTILINE)
    paths = Paths()
    folders = (paths.units, paths.state, paths.templates.parent / "examples")
    known = {str(paths.settings), f"{paths.definitions[0]}/NAME.toml", str(paths.status), str(paths.metrics)}
    known |= {f"{folder}/" for folder in folders}
    assert set(told) == known


@pytest.mark.parametrize(("page", "table"), [("agent.toml.5", SettingsTable), ("mirror-agent.d.5", DefinitionTable)])
def test_every_key_and_no_other(made: Path, page: str, table: Any) -> None:
    chapter = shown(made, page).partition("\nKEYS\n")[2].partition("\nTHE FILES")[0].partition("\nADDRESSES")[0]
    told = re.findall(r"^ {7}([a-z_.]+) \(type: ", chapter, re.MULTILINE)
    assert sorted(told) == sorted(key for key, _ in keys(table))


def test_every_file_of_a_publication_and_every_format(made: Path) -> None:
    mirror = Mirror("quay", ("quay.io",), "https://quay.io", "quay.mirror.lan", *_rest())
    documents = {each.name for render in formats.FORMATS.values() for each in render(Publication((mirror,), "PEM\n"))}
    text = shown(made, "mirror-agent.publication.7")
    documents = {name.replace("/quay.io.", "/REGISTRY.") for name in documents}
    assert {name for name in documents if f"\n       {name} (reader: " not in text} == set()


def _rest() -> tuple[Any, ...]:
    from ipaddress import IPv4Address

    from mirror_agent.model import Policy

    return IPv4Address("10.0.0.4"), "02:00:0a:00:00:04", Policy.NEVER, None, 2**30, 60, None


def test_fields_of_the_journal_are_those_of_the_code() -> None:
    chapter = markdown("mirror-agent.8").partition("# JOURNAL\n")[2].partition("\n# ")[0]
    told = set(re.findall(r"^\*([A-Z_]+)\*$", chapter, re.MULTILINE))
    source = "".join(path.read_text() for path in (REPO / "agent/mirror_agent").rglob("*.py"))
    assert told == {"ACTION", "MESSAGE_ID", "MIRROR", "UPSTREAM"}
    assert all(re.search(rf'["\s(]{field.lower()}["=]', source) for field in told)
