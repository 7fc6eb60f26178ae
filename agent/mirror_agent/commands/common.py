"""What the commands share: exit codes, options, JSON.  Loaded for a shell's completion too, so it loads little."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror_agent import report
from mirror_agent.model import Paths

DONE, PROBLEM, USAGE = 0, 1, 2  # exit codes
JSON_VERSION = report.VERSION  # of all that --json prints

SettingsOption = Annotated[Path | None, typer.Option("--settings", metavar="FILE", help="Read these settings instead.")]
DefinitionsOption = Annotated[
    Path | None, typer.Option("--definitions", metavar="DIR", help="Read this folder of definitions instead.")
]


def mirrors() -> list[str]:
    """The names that a shell may complete: of the mirrors that there are, whoever asks."""
    try:
        return [str(row["name"]) for row in json.loads(Path(Paths().status).read_bytes())["mirrors"]]
    except (OSError, ValueError, LookupError):
        return []


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The mirror.", autocompletion=mirrors)]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines: docs/json.md.")]


def show_json(value: dict[str, Any]) -> None:
    """An answer for machines, to standard output, in a form of docs/json.md; addresses and paths as text."""
    sys.stdout.write(json.dumps({"version": JSON_VERSION, **value}, indent=2, default=str) + "\n")


def counted(number: int, what: str) -> str:
    """A number of things, as "1 mirror" or "2 mirrors"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
