"""One run: what is measured, in which order, how often."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from box import Box

from . import faults
from .results import CONTENDERS, LIMIT, POD, REGISTRIES, Memory, Results, Sample, total
from .world import AT_ONCE, LINE_MBIT, World

MB = 1_000_000


@dataclass(frozen=True)
class Sizes:
    """How much of it."""

    clients: tuple[int, ...] = (1, 6, 20)
    warm_rounds: int = 12
    cold_rounds: int = 3
    small_rounds: int = 8
    registry_rounds: int = 3  # of the warm ones, also with the two that are no goal to compare with
    layers: tuple[int, ...] = (32 * MB,) * 4  # of an image that is cold
    blob: int = 200 * MB  # of what is warm
    warm_bytes: int = 1_600 * MB  # what all clients together receive at least
    small: int = 1000  # blobs of 4 to 64 kB
    settle: int = 60  # seconds from the start of a pod to its memory: nginx looks through its cache once
    faults: bool = True


QUICK = Sizes((1, 6), 2, 1, 2, 1, (2 * MB,) * 4, 20 * MB, 100 * MB, 100, 0, faults=False)


class Run:
    """Measures step by step, and tells what it finds."""

    def __init__(self, box: Box, sizes: Sizes) -> None:
        self.world, self.sizes = World(box), sizes
        self.start = time.monotonic()
        self.samples: list[Sample] = []
        self.memory: list[Memory] = []
        self.faults: dict[str, dict[str, str]] = {}
        self.facts: dict[str, object] = {}
        self.pushed = 0
        self.small: tuple[str, list[str]] = ("", [])  # image and its blobs

    def all(self) -> Results:
        """Everything; the box is taken down, however it ends.  Raises BoxError and AssertionError."""
        others = _busy()
        try:
            self.tell("boot a cache host, a node, a router and an internet")
            self.world.begin()
            self._memory()
            self._cold()
            self._warm()
            self._small()
            self._faults()
        finally:
            self.world.box.down()
        self.facts["others"] = round(max(others, _busy()), 2)
        return Results(self._facts(), tuple(self.samples), tuple(self.memory), self.faults)

    def tell(self, words: str) -> None:
        """Progress, with the time since the start."""
        seconds = int(time.monotonic() - self.start)
        print(f"[{seconds // 60:2}:{seconds % 60:02}] {words}", flush=True)

    def _facts(self) -> dict[str, object]:
        model = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.machine())  # fmt: skip
        return self.facts | {
            "date": datetime.now(UTC).date().isoformat(), "processors": os.cpu_count(), "processor": model,
            "kernel": platform.release(), "minutes": round((time.monotonic() - self.start) / 60, 1),
            "line_mbit": LINE_MBIT, "at_once": AT_ONCE, "layers": list(self.sizes.layers), "blob": self.sizes.blob,
            "small": self.sizes.small, "cold_rounds": self.sizes.cold_rounds, "warm_rounds": self.sizes.warm_rounds,
        }  # fmt: skip

    # --- the parts

    def _push(self, image: str, sizes: Sequence[int]) -> tuple[str, list[str]]:
        self.pushed += 1
        name = f"bench/{image}{self.pushed}"
        return name, self.world.push(name, sizes, self.pushed)

    def _get(self, what: str, who: str, clients: int, number: int, image: str, digests: Sequence[str]) -> Sample:
        blobs = self.world.addresses(who, image, digests)
        by_name = [[blobs[0].replace(f"blobs/{digests[0]}", "manifests/1")]] if what.endswith(("cold", "line")) else []
        asking = 1 if who == "line" else clients
        sample = replace(self.world.measure(what, who, asking, number, [*by_name, blobs]), clients=clients)
        self.samples.append(sample)
        return sample

    def _memory(self) -> None:
        """Each alone: pages that two programs share would be halved by the other."""
        self.tell("what a pod costs while idle")
        image, blob = self._push("memory", [self.sizes.blob])
        settled = time.monotonic() + self.sizes.settle
        sizes = random.Random(1)  # always the same
        self.small = self._push("small", [sizes.randint(4_000, 64_000) for _ in range(self.sizes.small)])
        time.sleep(max(0, settled - time.monotonic()))
        for who in (POD, *(other for other in CONTENDERS if other != POD)):
            if who != POD:
                self.world.start(who)
                time.sleep(2)
            addresses = self.world.addresses(who, image, blob)
            idle = self.world.idle(who, 10 if self.sizes.settle else 1)
            if who == POD and self.sizes.settle:
                with self.world.five():
                    self.memory += self.world.weigh(who, "one of five")
            self.world.measure("fill", who, 1, 0, [addresses])
            clients = self.sizes.clients[-1]
            loaded = self.world.loaded(who, clients, addresses * self._times(clients))
            self.memory += [*idle, *loaded]
            self.tell(f"{who}: idle {_mb(idle)}, while {clients} clients pull {_mb(loaded)}")
            self.world.stop(who)
        for who in CONTENDERS:
            self.world.start(who)

    def _times(self, clients: int) -> int:
        """How often each client pulls a blob, so that it takes long enough to be measured."""
        return max(1, self.sizes.warm_bytes // (clients * self.sizes.blob))

    def _cold(self) -> None:
        with self.world.shaped():
            for number in range(self.sizes.cold_rounds):
                for clients in self.sizes.clients:
                    image, digests = self._push("cold", self.sizes.layers)
                    # one round of those that fetch it again for each client: they take minutes
                    self._herd("cold", clients, number, image, digests, REGISTRIES if number == 0 else (POD,))

    def _herd(self, what: str, clients: int, number: int, image: str, digests: list[str], whose: Sequence[str]) -> None:
        """Registries, and the least that it can take."""
        line = self._get(f"{what} line", "line", clients, number, image, digests).seconds
        lan = self._get(f"{what} lan", LIMIT, clients, number, image, digests).seconds
        took = [self._get(what, who, clients, number, image, digests) for who in whose]
        told = ", ".join(f"{s.who} {s.seconds:.1f} s, {s.internet * s.clients / s.bytes:.2f} trips" for s in took)
        self.tell(f"{what}, round {number + 1}, {clients} clients: line {line:.1f} s + LAN {lan:.1f} s; {told}")

    def _warm(self) -> None:
        image, blob = self._push("warm", [self.sizes.blob])
        for who in REGISTRIES:
            self.world.measure("fill", who, 1, 0, [self.world.addresses(who, image, blob)])
        for number in range(self.sizes.warm_rounds):
            for clients in self.sizes.clients:
                whose = CONTENDERS if number < self.sizes.registry_rounds else (POD, LIMIT)
                self._ask_all("warm", clients, number, image, blob * self._times(clients), whose)

    def _ask_all(
        self, what: str, clients: int, number: int, image: str, digests: list[str], whose: Sequence[str]
    ) -> None:
        """In turn, and back again in the next round: a machine's speed drifts, and would favour who is always last."""
        order = whose if number % 2 else reversed(whose)
        took = [self._get(what, who, clients, number, image, digests) for who in order]
        told = ", ".join(f"{s.who} {s.bytes / s.seconds / MB:.0f}" for s in took)
        self.tell(f"{what}, round {number + 1}, {clients} clients: {told} MB/s")

    def _small(self) -> None:
        image, blobs = self.small
        herd = self.sizes.clients[1]
        with self.world.shaped():
            self._herd("small cold", herd, 0, image, blobs, REGISTRIES)
        for number in range(self.sizes.small_rounds):
            for clients in (1, herd):  # more would take minutes of a registry
                whose = CONTENDERS if number == 0 else (POD, LIMIT)
                self._ask_all("small warm", clients, number, image, blobs, whose)

    def _faults(self) -> None:
        if not self.sizes.faults:
            return
        for what, did in faults.all_of_them(self.world):
            self.faults[what] = did
            self.tell(f"{what}: " + "; ".join(f"{who}: {words}" for who, words in did.items()))


def _mb(processes: list[Memory]) -> str:
    return f"{total(processes).rss / MB:.0f} MB"


def _busy(seconds: float = 3) -> float:
    """Processors that other work keeps busy while the bench does nothing."""

    def look() -> tuple[int, int]:
        ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return sum(ticks), ticks[3] + ticks[4]

    before = look()
    time.sleep(seconds)
    spent, idle = (now - then for now, then in zip(look(), before, strict=True))
    return (spent - idle) / spent * (os.cpu_count() or 1)
