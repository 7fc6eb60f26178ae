"""What a run has measured, for people: aligned tables, the page docs/benchmark.md, what README.md says of it.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill

from .results import (
    BARE,
    CONTENDERS,
    HANG,
    LIMIT,
    OFFLINE,
    POD,
    RECIPE,
    REGISTRIES,
    RESTART,
    Memory,
    Results,
    total,
)

NAMES = {
    RECIPE: "recipe (registry 2.8.3)",
    BARE: "distribution 3 alone",
    POD: "mirror-agent",
    LIMIT: "nginx, plain file",
}
_MB = 1_000_000


@dataclass(frozen=True)
class Table:
    """Rows of words; the first column is what the others are about."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def _lines(self, plain: bool = False) -> Iterator[list[str]]:
        every = [[cell.replace("**", "") if plain else cell for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(len(row[column]) for row in every) for column in range(len(self.columns))]
        for row in every:
            yield [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([self.title, *("  " + "  ".join(cells).rstrip() for cells in self._lines(plain=True))])

    def markdown(self) -> str:
        """For the page."""
        head, *rows = (f"| {' | '.join(cells)} |" for cells in self._lines())
        rule = re.sub(r"[^|]", "-", head)
        return "\n".join(
            [f"## {self.title}", "", *([fill(self.note, 118), ""] if self.note else []), head, rule, *rows]
        )


def tables(results: Results) -> list[Table]:
    """All that was measured."""
    made = [
        _cold(results, "cold", "Cold clients, the same image at the same time"),
        _trips(results),
        _warm(results, "warm", "Warm: one large blob"),
        _cold(results, "small cold", "Cold: many small blobs"),
        _warm(results, "small warm", "Warm: many small blobs"),
        _memory(results),
        _cpu(results),
    ]
    return [_goals(results), *made, *([_faults(results)] if results.faults else [])]


def _goals(results: Results) -> Table:
    rows = tuple((goal, found, "yes" if reached else "no") for goal, found, reached in results.goals())
    registry = next(process for process in results.processes(POD, "idle") if process.process == "registry")
    program = registry.rss - registry.own
    note = f"Of the idle pod, {registry.rss / _MB:.0f} MB are distribution, {program / _MB:.0f} of them its program"
    if five := results.processes(POD, "one of five"):
        note += f", which all pods of a host share: each of five takes {total(five).pss / _MB:.0f} MB in all (PSS)"
    return Table("Goals", ("goal", "measured", "reached"), rows, f"{note}.")


def _cold(results: Results, what: str, title: str) -> Table:
    def cell(who: str, clients: int) -> str:
        return f"{results.of_least(what, who, clients):.2f} × ({results.seconds(what, who, clients):.2f} s)"

    def least(clients: int) -> str:
        line, lan = results.seconds(f"{what} line", "line", clients), results.seconds(f"{what} lan", LIMIT, clients)
        return f"{line:.2f} s + {lan:.2f} s"

    facts = results.facts
    sizes = f"{facts['small']} blobs of 4 to 64 kB" if what != "cold" else f"an image of {len(facts['layers'])} layers"
    note = (
        f"Seconds until the last of the clients has all of {sizes}, over a line of {facts['line_mbit']} Mbit/s, as a "
        "multiple of the least possible: what one client needs straight from the upstream, and what as many clients "
        "need from plain nginx over the LAN."
    )
    if what != "cold":
        note += (
            " Here the registry is what takes the time, not the line: it opens, verifies and syncs each blob, which is "
            "about 4 ms of a processor, and as much at the upstream."
        )
    return _by_clients(title, results.clients(what), {"line + LAN": least}, cell, REGISTRIES, note)


def _trips(results: Results) -> Table:
    def cell(who: str, clients: int) -> str:
        return f"{results.trips('cold', who, clients):.2f} ×"

    note = (
        "Bytes on the line, headers of IP and TLS included, as a multiple of the image. Fewer trips than clients: late "
        "clients found what early ones had fetched."
    )
    return _by_clients("Cold: what crosses the internet", results.clients("cold"), {}, cell, REGISTRIES, note)


def _warm(results: Results, what: str, title: str) -> Table:
    def cell(who: str, clients: int) -> str:
        return f"{results.of_limit(what, who, clients):.2f} × ({results.rate(what, who, clients) / _MB:.0f} MB/s)"

    def limit(clients: int) -> str:
        return f"{results.rate(what, LIMIT, clients) / _MB:.0f} MB/s"

    facts = results.facts
    size = f"{facts['small']} blobs of 4 to 64 kB" if what != "warm" else f"{facts['blob'] / _MB:.0f} MB"
    note = f"{size} over TLS, for all clients together, as a part of what plain nginx does with the same file."
    return _by_clients(title, results.clients(what), {NAMES[LIMIT]: limit}, cell, REGISTRIES, note)


def _by_clients(
    title: str, clients: Sequence[int], base: dict[str, Callable[[int], str]], cell: Callable[[str, int], str],
    whose: Sequence[str], note: str,
) -> Table:  # fmt: skip
    columns = ("clients", *base, *(NAMES[who] for who in whose))
    rows = tuple((str(n), *(make(n) for make in base.values()), *(cell(who, n) for who in whose)) for n in clients)
    return Table(title, columns, rows, note)


def _memory(results: Results) -> Table:
    def row(name: str, idle: Memory, load: Memory | None) -> tuple[str, ...]:
        mb = [f"{value / _MB:.1f}" for value in (idle.rss, idle.pss, idle.own)]
        busy = [f"{load.rss / _MB:.1f}", f"{load.pss / _MB:.1f}"] if load else ["", ""]
        cpu = "" if idle.state == "one of five" else f"{idle.cpu:.2f} s"
        return (name, f"{idle.count:g}", *mb, *busy, cpu)

    rows = []
    for who in CONTENDERS:
        idle, load = results.processes(who, "idle"), {m.process: m for m in results.processes(who, "load")}
        rows.append(row(f"**{NAMES[who]}**", total(idle), total(load.values())))
        rows += [row(each.process, each, load.get(each.process)) for each in idle]
        if five := results.processes(who, "one of five"):
            rows.append(row("**each of five pods**", total(five), None))
            rows += [row(each.process, each, None) for each in five]
    note = (
        f"In MB. RSS counts what processes share once for each of them, PSS gives each its part; own is what no file "
        f"stands behind: the rest is programs and libraries, which the kernel drops when it needs the room. Load: "
        f"{max(results.clients('warm'))} clients pull a large blob. Each runs alone, with conmon, which podman adds to "
        "every container."
    )
    columns = ("process", "number", "idle RSS", "idle PSS", "idle own", "load RSS", "load PSS", "CPU in 10 idle s")
    return Table("Memory", columns, tuple(rows), note)


def _cpu(results: Results) -> Table:
    kinds = (("warm", _middle(results, "warm")), ("cold", _middle(results, "cold")),
             ("small warm", _middle(results, "small warm")))  # fmt: skip
    rows = []
    for who in CONTENDERS:
        found = [results.cpu(what, who, clients) for what, clients in kinds]
        names = sorted({name for each in found for name, spent in each.items() if spent >= 0.005})
        sums = [f"{sum(each.values()):.2f}" if each else "" for each in found]
        rows.append((f"**{NAMES[who]}**", *sums))
        rows += [(name, *(f"{each[name]:.2f}" if name in each else "" for each in found)) for name in names]
    columns = ("process", *(f"{what}, {clients} clients" for what, clients in kinds))
    note = "CPU seconds of each process for 1 GB that clients received."
    return Table("CPU", columns, tuple(rows), note)


def _middle(results: Results, what: str) -> int:
    clients = results.clients(what)
    return clients[len(clients) // 2]


def _faults(results: Results) -> Table:
    rows = tuple((what, did[RECIPE], did[POD]) for what, did in results.faults.items())
    return Table("When something goes wrong", ("", NAMES[RECIPE], NAMES[POD]), rows)


_INTRO = """\
# Benchmark

Four answer the same clients, one after the other, in one run of `make bench`, which measures all of this and writes
this page: the recipe's container (Debian's registry 2.8.3), distribution 3 alone, a pod of mirror-agent as its package
installs it, and nginx with the same blobs as plain files, which is the limit. All speak TLS from a container with an
address of its own on the LAN. The clients are curl on the node of the test host, {at_once} blobs at a time as podman.

![Cold and warm clients](pictures/benchmark.svg)

{date}, {processors} processors ({processor}), Linux {kernel}, in {minutes} minutes. The clients, the four and the
upstream share these processors, and other work kept {others} of them busy before or after: where that is not 0.0, times
and speeds are rough, and a ratio above the limit is noise; bytes and memory are not touched by it. The cold image has
{layers} layers of {layer} MB. Figures of mirror-agent and nginx are medians of {cold_rounds} cold and {warm_rounds}
warm rounds, with ratios taken within a round; the other two had fewer warm ones, and one with cold clients and with
small blobs. The single measurements are in [bench/results.json](../bench/results.json).
"""


def markdown(results: Results) -> str:
    """The page docs/benchmark.md."""
    layers = results.facts["layers"]
    facts = results.facts | {"layers": len(layers), "layer": layers[0] // _MB}
    return "\n\n".join([_INTRO.format(**facts).rstrip(), *(table.markdown() for table in tables(results))]) + "\n"


def text(results: Results) -> str:
    """All tables for a terminal."""
    return "\n\n".join(table.text() for table in tables(results))


def to_compare(results: Results, readme: str) -> str:
    """The lines of README.md whose figures are from here, each with what was measured now."""
    trips = {who: " / ".join(f"{results.trips('cold', who, n):.2f} ×" for n in results.clients("cold")[:2])
             for who in (RECIPE, POD)}  # fmt: skip
    rows = {"1": trips} | {row: results.faults.get(what) for row, what in (("2", OFFLINE), ("3", HANG), ("4", RESTART))}
    found = []
    for number, line in enumerate(readme.splitlines(), 1):
        row = re.match(r"\| ([1-9]) \|", line)
        if row and "[b]" in line and (now := rows.get(row[1])):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            found.append(f"README.md:{number}: {cells[-2]} | {cells[-1]}\n  now: {now[RECIPE]} | {now[POD]}")
    return "\n".join(found)
