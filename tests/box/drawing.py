"""How the demo looks: headings, aligned rows that change in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

_GREEN, _RED, _YELLOW, _BOLD, _FAINT = "32", "31", "33", "1", "2"
_STYLES = {"✓": _GREEN, "✗": _RED, "serving": _GREEN, "failed": _RED, "preparing": _YELLOW, "starting": _YELLOW,
           "unproved": _YELLOW}  # fmt: skip


def on_terminal() -> bool:
    """Whether somebody looks at it, on something that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def styled(text: str, style: str) -> str:
    """`text` in colour on a terminal, as it is elsewhere and where NO_COLOR is set."""
    return f"\x1b[{style}m{text}\x1b[0m" if on_terminal() and not os.environ.get("NO_COLOR") else text


def say(text: str = "") -> None:
    """A line, at once."""
    print(text, flush=True)


def heading(text: str) -> None:
    """What comes next."""
    say("\n" + styled(text, _BOLD))


def good(text: str) -> None:
    """Something that was found to be true."""
    say(f"  {styled('✓', _GREEN)} {text}")


def bad(text: str) -> None:
    """Something that was not true."""
    say(f"  {styled('✗', _RED)} {styled(text, _BOLD)}")


def faint(text: str) -> None:
    """Quoted text: files, journal lines."""
    for line in text.rstrip("\n").splitlines():
        say("    " + styled(line.rstrip(), _FAINT))


def amount(count: int) -> str:
    """Bytes for people: "0 B", "712 B", "5.8 MB"."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


class Board:
    """A table that changes in place on a terminal; elsewhere a line for whatever changes.

    Safe to use from several threads.  As a context manager it leaves the terminal as it was.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._cells = {row: [row, *[""] * (len(columns) - 1)] for row in rows}
        self._lock = threading.Lock()
        self._drawn = 0

    def __enter__(self) -> Board:
        if on_terminal():
            sys.stdout.write("\x1b[?25l\x1b[?7l")  # no cursor, no wrapping: rows stay rows on a narrow terminal
            self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        if on_terminal():
            sys.stdout.write("\x1b[?25h\x1b[?7h")
            sys.stdout.flush()

    def put(self, row: str, cells: dict[str, str], *, passing: bool = False) -> None:
        """Change cells of a row.  What is `passing` (a clock) is only worth showing where it can be overwritten."""
        if passing and not on_terminal():
            return
        with self._lock:
            changed = []
            for column, text in cells.items():
                place = self._columns.index(column)
                if self._cells[row][place] != text:
                    changed.append(f"{column.lower()} {text}")
                self._cells[row][place] = text
            if on_terminal():
                self._draw()
            elif changed:
                say(f"  {row:16} {', '.join(changed)}")

    def _draw(self) -> None:
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        lines = [styled(self._line(self._columns), _BOLD), *(self._line(cells) for cells in self._cells.values())]
        sys.stdout.write(up + "".join(f"\r\x1b[K  {line}\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)

    def _line(self, cells: Sequence[str]) -> str:
        widths = [
            max(len(line[i]) for line in (self._columns, *self._cells.values())) for i in range(len(self._columns))
        ]
        return "  ".join(_coloured(cell, width) for cell, width in zip(cells, widths, strict=True))


def _coloured(cell: str, width: int) -> str:
    """A padded cell, its first word in its colour."""
    word = cell.partition(" ")[0]
    padded = cell.ljust(width)
    return styled(word, _STYLES[word]) + padded[len(word) :] if word in _STYLES else padded
