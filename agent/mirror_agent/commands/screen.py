"""How the commands speak to people: tables, colours, complaints."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

_UNBOUND = 10_000  # columns of what is no terminal


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
