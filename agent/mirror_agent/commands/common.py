"""What the commands share: exit codes, options, where things are, how they speak."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from mirror_agent import status, wish
from mirror_agent.model import Mirror, Paths, Problem, Trouble

DONE, PROBLEM, USAGE = 0, 1, 2  # exit codes
JSON_VERSION = status.VERSION  # of all that --json prints
_UNBOUND = 10_000  # columns of what is no terminal
NEWEST_PODMAN = (5, 4)  # what `render` assumes where there is no podman: the version that everything is tested with

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

# --- what people see -----------------------------------------------------------------------------------------


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    long: Collection[str],
    numbers: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """A table for people; where there is no terminal, lines are as long as they are.

    What a terminal is too narrow for is left out (columns of `spare`, the first of them first), or goes over several
    lines (columns of `long`).
    """
    console, rows, shown = screen(), tuple(rows), list(columns)
    width = console.options.update(max_width=_UNBOUND)
    for name in (*spare, None):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in shown:
            justify: Literal["left", "right"] = "right" if column in numbers else "left"
            table.add_column(column, overflow="fold", no_wrap=column not in long, justify=justify)
        for row in rows:
            table.add_row(*(cell for column, cell in zip(columns, row, strict=True) if column in shown))
        if name is None or Measurement.get(console, width, table).maximum <= console.width:
            break
        shown.remove(name)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def screen(error: bool = False) -> Console:
    """Colours on a terminal only; elsewhere lines are as long as they are."""
    stream = sys.stderr if error else sys.stdout
    plain = not stream.isatty()
    return Console(file=stream, highlight=False, soft_wrap=plain, width=_UNBOUND if plain else None)


def complain(texts: Iterable[str]) -> None:
    """What went wrong, to standard error, and after what standard output has said before."""
    sys.stdout.flush()
    console = screen(error=True)
    for text in texts:
        console.print(f"[red]{escape(text)}[/]")


def show_json(value: dict[str, Any]) -> None:
    """An answer for machines, to standard output, in a form of docs/json.md; addresses and paths as text."""
    sys.stdout.write(json.dumps({"version": JSON_VERSION, **value}, indent=2, default=str) + "\n")


def counted(number: int, what: str) -> str:
    """A number of things, as "1 mirror" or "2 mirrors"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def nudge() -> None:
    """Let a running agent look at once, and wait until it has begun to."""
    from mirror_agent.host.systemd import Systemd  # noqa: PLC0415 - most commands work without a system bus

    systemd = Systemd()
    if systemd.units(["mirror-agent.service"])["mirror-agent.service"].active == "active":
        systemd.reload_units(["mirror-agent.service"], 60.0)
    else:
        complain(["the agent does not run: it takes effect when it does (systemctl start mirror-agent)"])


def known_mirrors(names: Collection[str], mirrors: Iterable[Mirror]) -> set[str]:
    """The mirrors that are named, all if none is.  Raises Trouble for a name that is none of a mirror."""
    known = {mirror.name for mirror in mirrors}
    if unknown := sorted(set(names) - known):
        raise Trouble(", ".join(unknown), "there is no such mirror", "mirror-agent status shows them")
    return set(names) or known


# --- where things are ----------------------------------------------------------------------------------------


def find_paths(settings: Path | None, definitions: Path | None) -> Paths:
    """The host's own places, or those that were named; templates lie beside the package in a checkout."""
    paths = Paths()
    checkout = Path(__file__).resolve().parents[3] / "quadlets"
    if not Path(paths.templates).is_dir() and checkout.is_dir():
        paths = replace(paths, templates=PurePosixPath(checkout))
    if settings:
        paths = replace(paths, settings=PurePosixPath(settings.absolute()))
    if definitions:
        paths = replace(paths, definitions=(PurePosixPath(definitions.absolute()),))
    return paths


def read_files(paths: Paths, secrets: bool = False) -> wish.Wish:
    """What should exist, as far as it can be said from files alone."""
    own = paths.definitions == Paths().definitions
    try:
        memory = wish.remembered(paths) if own else wish.Remembered({}, {})
    except Trouble:  # not root: leases are then those that a new host would give
        memory = wish.Remembered({}, {})
    try:
        return wish.read(paths, memory, NEWEST_PODMAN, owner=0 if own else None, secrets=secrets)
    except Trouble as trouble:
        return wish.Wish(None, (Problem(trouble.where, "", trouble.reason, trouble.hint),))
