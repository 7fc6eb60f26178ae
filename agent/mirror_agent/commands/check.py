"""`mirror-agent check`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from mirror_agent.commands.common import (
    PROBLEM,
    DefinitionsOption,
    JsonOption,
    SettingsOption,
    complain,
    counted,
    find_paths,
    new_table,
    read_files,
    screen,
    show_json,
)
from mirror_agent.model import Problem


def check(settings: SettingsOption = None, definitions: DefinitionsOption = None, as_json: JsonOption = False) -> None:
    """Check settings and definitions, all mistakes at once.  Needs no root, no systemd, no podman."""
    wanted = read_files(find_paths(settings, definitions))
    mirrors = wanted.desired.mirrors if wanted.desired else ()
    if as_json:
        shown = [{**asdict(m), "address": str(m.address), "credentials": str(m.credentials or "")} for m in mirrors]
        show_json({"mirrors": shown, "problems": [_plain(problem) for problem in wanted.problems]})
    else:
        table = new_table("MIRROR", "SOURCES", "HOST", "ADDRESS", "POLICY")
        for mirror in mirrors:
            table.add_row(mirror.name, ", ".join(mirror.sources), mirror.host, str(mirror.address), mirror.policy)
        if mirrors:
            screen().print(table)
        complain(map(str, wanted.problems))
        screen().print(f"{counted(len(mirrors), 'mirror')}, {counted(len(wanted.problems), 'problem')}")
    if wanted.problems:
        raise typer.Exit(PROBLEM)


def _plain(problem: Problem) -> dict[str, str]:
    return {key: value for key, value in asdict(problem).items() if key not in ("mirror", "message_id")}
