"""What the documentation names exists: commands and their options, make targets, files, headings, packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mirror_agent import __version__, cli
from schema import PAGE, VERSION, forms

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("tests/box/*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
COMMANDS = {name: cli.load(name) for name in cli.COMMANDS}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))


def code(text: str) -> Iterator[str]:
    """What stands in backticks, and the lines of blocks (fenced or indented)."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def words(command: str, text: str) -> list[list[str]]:
    """The words after `command` wherever it is run; a comment, another command or an abbreviation ends them."""
    runs = []
    for snippet in code(text):
        for rest in re.findall(rf"(?:^|[;&|(] ?|sudo |-- ){command} ([^;&|#]*)", snippet):
            runs.append(rest.split("…")[0].split())
    return runs


def headings(page: Path) -> set[str]:
    """Anchors as forges make them of headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(REPO), f"{target} leaves the repository"
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in headings(file), f"{target}: no such heading"


@pages
def test_files_of_the_tree_exist(page: Path) -> None:
    known = "agent|bench|docs|etc|packaging|quadlets|tests"
    for snippet in code(page.read_text()):
        for name in re.findall(rf"(?:^|\s)((?:{known})/[\w./-]+)", snippet):
            assert (REPO / name).exists(), f"{name} does not exist"


@pages
def test_make_targets_exist(page: Path) -> None:
    for rest in words("make", page.read_text()):
        named = [word for word in rest if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        assert set(named) <= TARGETS, f"no such target: {set(named) - TARGETS}"


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    for verb, *rest in filter(None, words("mirror-agent", page.read_text())):
        if verb == "CA":  # the name of ours: "mirror-agent CA on cache"
            continue
        if verb.startswith("-"):
            assert verb in ("--help", "--version"), verb
            continue
        assert verb in COMMANDS, f"no such command: mirror-agent {verb}"
        command = COMMANDS[verb]
        if below := getattr(command, "commands", None):  # a group, as `ca`
            assert rest, f"mirror-agent {verb} is no command by itself"
            assert rest[0] in below, f"no such command: mirror-agent {verb} {rest[0]}"
            command = below[rest[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert given <= options | {"--help"}, f"no such option of mirror-agent {verb}: {given - options}"


def test_every_command_is_in_the_readme() -> None:
    shown = {snippet.split()[0] for snippet in code((REPO / "README.md").read_text()) if snippet.split()}
    assert set(COMMANDS) <= shown, f"not in README.md: {set(COMMANDS) - shown}"


def test_every_command_explains_itself() -> None:
    for name, command in COMMANDS.items():
        assert isinstance(command, click.Command)
        assert command.help, name
        silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", "")]
        assert not silent, f"{name}: {silent} without help"


def test_json_is_documented_for_every_command_that_has_it() -> None:
    flat = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}
    for group, command in COMMANDS.items():
        flat |= {f"{group} {name}": each for name, each in getattr(command, "commands", {}).items()}
    named = {name for name, each in flat.items() if any("--json" in p.opts for p in each.params)}
    assert named - {"logs"} == forms().keys()  # that one is journalctl's
    assert all(form["version"] == {"number"} for form in forms().values())
    assert f"of this page's form, {VERSION}." in " ".join(PAGE.read_text().split())


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", (REPO / "README.md").read_text()))
    missing = {str(page.relative_to(REPO)) for page in PAGES} - linked - {"README.md"}
    assert not missing


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "tests/box/README.md"])
def test_verbs_of_the_test_host_exist(page: str) -> None:
    told = subprocess.run([REPO / "tests/box/box", "--help"], capture_output=True, text=True, check=True).stdout
    verbs = set(re.findall(r"^ {4}([a-z-]+)", told, re.MULTILINE))
    named = {rest[0] for rest in words(r"(?:BOX=\w+ )?tests/box/box", (REPO / page).read_text()) if rest}
    assert verbs
    assert named <= verbs


def test_every_make_target_for_people_is_explained() -> None:
    makefile = (REPO / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    named = {rest[0] for page in PAGES for rest in words("make", page.read_text()) if rest}
    assert explained - {"help", "clean"} <= named, "in no page"


def test_make_help_fits_a_terminal_of_80_columns() -> None:
    told = re.findall(r"^[a-z-]+:.*?## (.*)$", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert len(told) > 10
    assert [text for text in told if len(f"  make {'':15} {text}") > 80] == []


def test_the_pictures_are_those_that_the_script_draws() -> None:
    check = [sys.executable, str(REPO / "docs/make-pictures"), "--check"]
    drawn = subprocess.run(check, capture_output=True, text=True, check=False)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr


def test_the_packages_to_install_are_those_that_are_tested() -> None:
    page = (REPO / "docs/installation.md").read_text()
    told = re.search(r"apt-get install --no-install-recommends ((?:.*\\\n)*.*)\n", page)
    assert told
    wanted = set(told[1].replace("\\\n", " ").split())
    lists = [(REPO / "tests/box" / name).read_text() for name in ("packages.txt", "tools.txt")]
    tested = {word for line in "\n".join(lists).splitlines() for word in line.partition("#")[0].split()}
    assert wanted <= tested, f"not in the test host: {wanted - tested}"
    distribution = {"pyyaml": "yaml", "systemd-python": "systemd"}
    for requirement in tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = re.split(r"[>=<~ ]", requirement)[0].lower()
        assert f"python3-{distribution.get(name, name)}" in wanted, f"{name} is missing in docs/installation.md"


def test_what_the_host_must_have_is_what_the_package_requires() -> None:
    page, spec = (REPO / "docs/installation.md").read_text(), (REPO / "packaging/mirror-agent.spec").read_text()
    required = dict(re.findall(r"^Requires: +(systemd|podman|python3) >= (\S+)$", spec, re.MULTILINE))
    told = dict(re.findall(r"(systemd|podman|Python) ≥ ([\d.]+\d)", page.partition("## 1.")[0]))
    assert {name.lower().replace("python", "python3"): version for name, version in told.items()} == required


def test_the_changelog_knows_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == __version__ == tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
