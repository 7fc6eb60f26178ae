"""What a run has measured, as values, and what follows from it.  Pure.

Figures of one round were taken one right after the other, so ratios are made within a round; what is shown is the
median over the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

RECIPE, BARE, POD, LIMIT = "recipe", "distribution", "pod", "limit"
REGISTRIES = (RECIPE, BARE, POD)
CONTENDERS = (*REGISTRIES, LIMIT)

# what may go wrong
RESTART = "no answer while it restarts"
HANG = "a cached tag while the upstream hangs"
OFFLINE = "started while the internet is away"

COLD_GOAL = 1.15  # times the least time that a herd can take
WARM_GOAL = 0.95  # of the limit
MEMORY_GOAL = 60_000_000  # bytes of an idle pod


@dataclass(frozen=True)
class Sample:
    """One measurement: so many clients got so many bytes in that time."""

    what: str  # cold, warm, small cold, small warm; and what is the least for a cold one: line, lan
    who: str
    clients: int  # with "line": of the herd that it is compared with; it is one client, straight from the upstream
    round: int
    seconds: float
    bytes: int  # what the clients received
    internet: int = 0  # what came from the upstream meanwhile
    cpu: dict[str, float] = field(default_factory=dict)  # process → seconds


@dataclass(frozen=True)
class Memory:
    """Processes of one kind of one contender, in bytes."""

    who: str
    state: str  # idle; load: while clients pull; one of five: each pod's share while five run
    process: str
    count: float
    rss: float
    pss: float
    own: float
    cpu: float = 0  # seconds in ten idle ones


@dataclass(frozen=True)
class Results:
    """One run."""

    facts: dict[str, Any]  # when and where it was, and its sizes
    samples: tuple[Sample, ...] = ()
    memory: tuple[Memory, ...] = ()
    faults: dict[str, dict[str, str]] = field(default_factory=dict)  # what happens → contender → what it did

    # --- in and out

    def to_json(self) -> str:
        """For machines, and to draw it again."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Results:
        """What `to_json` wrote."""
        read = json.loads(text)
        return Results(
            facts=read["facts"], samples=tuple(Sample(**each) for each in read["samples"]),
            memory=tuple(Memory(**each) for each in read["memory"]), faults=read["faults"],
        )  # fmt: skip

    # --- what follows

    def clients(self, what: str) -> list[int]:
        """How many clients there were at a time."""
        return sorted({sample.clients for sample in self.samples if sample.what == what})

    def found(self, what: str, who: str, clients: int) -> list[Sample]:
        """Samples by round."""
        those = (s for s in self.samples if (s.what, s.who, s.clients) == (what, who, clients))
        return sorted(those, key=lambda sample: sample.round)

    def seconds(self, what: str, who: str, clients: int) -> float:
        """Until the last client had it all."""
        return median(sample.seconds for sample in self.found(what, who, clients))

    def rate(self, what: str, who: str, clients: int) -> float:
        """Bytes per second, of all clients together."""
        return median(sample.bytes / sample.seconds for sample in self.found(what, who, clients))

    def of_limit(self, what: str, who: str, clients: int) -> float:
        """Speed as a part of what plain nginx does."""
        limit = [sample.seconds for sample in self.found(what, LIMIT, clients)]
        return median(limit[its.round] / its.seconds for its in self.found(what, who, clients))

    def of_least(self, what: str, who: str, clients: int) -> float:
        """Time of cold clients as a multiple of the least: once over the line, then from the limit over the LAN."""
        line, lan = self.found(f"{what} line", "line", clients), self.found(f"{what} lan", LIMIT, clients)
        least = [one.seconds + other.seconds for one, other in zip(line, lan, strict=True)]
        return median(its.seconds / least[its.round] for its in self.found(what, who, clients))

    def trips(self, what: str, who: str, clients: int) -> float:
        """What crossed the internet, as a multiple of what one client received."""
        return median(s.internet / (s.bytes / s.clients) for s in self.found(what, who, clients))

    def processes(self, who: str, state: str) -> list[Memory]:
        """Kinds of processes, the largest first."""
        return sorted((m for m in self.memory if (m.who, m.state) == (who, state)), key=lambda m: -m.rss)

    def cpu(self, what: str, who: str, clients: int) -> dict[str, float]:
        """CPU seconds for a GB that clients received, by process."""
        rounds = self.found(what, who, clients)
        names = {name for sample in rounds for name in sample.cpu}
        return {n: median(s.cpu.get(n, 0) / s.bytes * 1e9 for s in rounds) for n in sorted(names)}

    def goals(self) -> list[tuple[str, str, bool]]:
        """What was aimed at, what was measured, whether it was reached."""
        cold = max(self.of_least("cold", POD, n) for n in self.clients("cold"))
        warm = min(self.of_limit("warm", POD, n) for n in self.clients("warm"))
        idle = total(self.processes(POD, "idle"))
        return [
            (f"cold clients: at most {COLD_GOAL} × (line + LAN)", f"{cold:.2f} ×", cold <= COLD_GOAL),
            (f"warm: at least {WARM_GOAL} × the limit", f"{warm:.2f} ×", warm >= WARM_GOAL),
            (f"an idle pod: at most {MEMORY_GOAL / 1e6:.0f} MB RSS", f"{idle.rss / 1e6:.0f} MB",
             idle.rss <= MEMORY_GOAL),
        ]  # fmt: skip


def total(processes: Iterable[Memory]) -> Memory:
    """All processes of a contender together."""
    those = list(processes)

    def add(name: str) -> float:
        return float(sum(getattr(each, name) for each in those))

    return Memory(those[0].who, those[0].state, "all", *(add(n) for n in ("count", "rss", "pss", "own", "cpu")))
