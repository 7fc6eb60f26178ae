"""The completions: each shell takes its script, and bash gets from it what the command line has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tree import REPO


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([REPO / "packaging/build", folder], check=True)
    program = folder / "mirror-agent"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPO}/agent exec python3 -m mirror_agent "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("shell", "script"), [("bash", "mirror-agent"), ("zsh", "_mirror-agent"), ("fish", "mirror-agent.fish")]
)
def test_the_shell_can_read_it(made: Path, shell: str, script: str) -> None:
    done = subprocess.run([shell, "-n", made / shell / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes(made: Path) -> None:
    environment = {**os.environ, "PATH": f"{made}:{os.environ['PATH']}", "HOME": str(made)}
    script = f"source {made}/fish/mirror-agent.fish; complete -C 'mirror-agent stat'"
    done = subprocess.run(["fish", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["status"]


def test_zsh_autoloads_it(made: Path) -> None:
    """The first line is what makes it a completion of this command, in a file of this name."""
    text = (made / "zsh/_mirror-agent").read_text()
    assert text.startswith("#compdef mirror-agent\n")
    environment = {**os.environ, "PATH": f"{made}:{os.environ['PATH']}", "HOME": str(made)}
    script = f"fpath=({made}/zsh $fpath); autoload -Uz compinit; compinit -D; print $_comps[mirror-agent]"
    done = subprocess.run(["zsh", "-f", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith("_mirror")
