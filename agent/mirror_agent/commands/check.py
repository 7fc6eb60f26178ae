"""`mirror-agent check`."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from rich.markup import escape

from mirror_agent import certified, plan
from mirror_agent.commands.common import PROBLEM, DefinitionsOption, JsonOption, SettingsOption, counted, show_json
from mirror_agent.commands.screen import complain, screen, show_table
from mirror_agent.commands.wanted import find_paths, read_files
from mirror_agent.host import files
from mirror_agent.model import Problem
from mirror_agent.plan import Desired


def check(settings: SettingsOption = None, definitions: DefinitionsOption = None, as_json: JsonOption = False) -> None:
    """Check settings and definitions, all mistakes at once.  Needs no root, no systemd, no podman.

    With this host's own files also those that they name, its CA and its certificates, as far as the user may read them.
    """
    own = settings is None and definitions is None
    wanted = read_files(find_paths(settings, definitions), secrets=own)
    mirrors = wanted.desired.mirrors if wanted.desired else ()
    problems = [problem for problem in wanted.problems if not problem.denied]
    unread = [problem.reason for problem in wanted.problems if problem.denied]
    if own and wanted.desired:
        more, others = _certificates(wanted.desired)
        problems, unread = [*problems, *more], [*unread, *others]
    if as_json:
        shown = [{**asdict(m), "credentials": str(m.credentials or "")} for m in mirrors]
        show_json({"mirrors": shown, "problems": [_plain(problem) for problem in problems], "unread": unread})
    else:
        if mirrors:
            columns = ("MIRROR", "SOURCES", "HOST", "ADDRESS", "POLICY")
            rows = [(m.name, ", ".join(m.sources), m.host, str(m.address), m.policy) for m in mirrors]
            show_table(columns, rows, long=("SOURCES",), spare=("POLICY",))
        complain(map(str, problems))
        for reason in unread:
            screen().print(escape(f"not checked: {reason}"))
        screen().print(f"{counted(len(mirrors), 'mirror')}, {counted(len(problems), 'problem')}")
    if problems:
        raise typer.Exit(PROBLEM)


def _certificates(desired: Desired) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """What the agent would say of CAs and certificates, and what this user may not look at."""
    place = desired.paths.authority
    if os.geteuid() != 0:
        there = files.folder(desired.paths.state) is not None
        return (), (f"{place}: the CA and the mirrors' certificates can be seen by root only",) if there else ()
    observed, damage = certified.look(desired)
    return (*damage, *plan.problems(desired, observed, datetime.now(UTC))), ()


def _plain(problem: Problem) -> dict[str, str]:
    return {key: value for key, value in asdict(problem).items() if key not in ("mirror", "message_id", "denied")}
