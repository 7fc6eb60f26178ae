"""Tables as people see them: on a terminal of some width, and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "agent"
COLUMNS = ("MIRROR", "UPSTREAM", "IMAGE", "SIZE")
ROWS = [("registry-k8s", "registry.k8s.io", "coredns/coredns", "7.5 MiB"), ("quay", "quay.io", "hello", "1.2 GiB")]
PROGRAM = f"""
from mirror_agent.commands.screen import show_table
show_table({COLUMNS!r}, {ROWS!r}, long=("IMAGE",), numbers=("SIZE",), spare=("UPSTREAM",))
"""


def on_a_terminal(width: int, **environment: str) -> list[str]:
    """What it shows there, colours included."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {"PYTHONPATH": str(AGENT), "TERM": "xterm-256color", **environment}
    subprocess.run([sys.executable, "-c", PROGRAM], stdout=slave, env=environment, check=True)
    os.close(slave)
    with os.fdopen(master, "rb", buffering=0) as stream:
        return stream.read(65536).decode().replace("\r\n", "\n").splitlines()


def bare(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


def test_a_wide_terminal_shows_all_of_it_numbers_to_the_right() -> None:
    assert bare(on_a_terminal(80)) == [
        "MIRROR        UPSTREAM         IMAGE               SIZE",
        "registry-k8s  registry.k8s.io  coredns/coredns  7.5 MiB",
        "quay          quay.io          hello            1.2 GiB",
    ]


def test_what_a_narrow_terminal_has_no_room_for_is_left_out() -> None:
    assert bare(on_a_terminal(40)) == [
        "MIRROR        IMAGE               SIZE",
        "registry-k8s  coredns/coredns  7.5 MiB",
        "quay          hello            1.2 GiB",
    ]


def test_then_long_values_go_over_several_lines_and_names_never_do() -> None:
    assert bare(on_a_terminal(32)) == [
        "MIRROR        IMAGE         SIZE",
        "registry-k8s  coredns/c  7.5 MiB",
        "              oredns",
        "quay          hello      1.2 GiB",
    ]


def test_colours_are_for_terminals_and_not_for_those_who_want_none() -> None:
    assert "\x1b[1m" in on_a_terminal(80)[0]
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", "".join(on_a_terminal(80, NO_COLOR="1")))


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "20"}])
def test_elsewhere_lines_are_as_long_as_they_are_without_colours_and_blanks_at_the_end(
    environment: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": str(AGENT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == [
        "registry-k8s  registry.k8s.io  coredns/coredns  7.5 MiB",
        "quay          quay.io          hello            1.2 GiB",
    ]
    assert "\x1b" not in done.stdout
