"""Runs on the cache host: what the processes of containers cost.  Names of containers in, JSON out.

conmon is the parent of a container's first process: it and all below it is what a container costs the host.
Memory in bytes: `rss` counts what processes share once for each, `pss` gives each its share of it, `own` is what no
file stands behind. `cpu` in seconds since the process was started, with that of its children that have ended.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print a list of processes for each container."""
    names = sys.argv[1:]
    words = {pid: _words(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    parents = {pid: _parent(pid) for pid in words}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for root, argv in words.items():
        if not argv[0].endswith("conmon") or "-n" not in argv:
            continue
        name = argv[argv.index("-n") + 1]
        if name in found:
            found[name] += [_cost(pid, argv) for pid, argv in words.items() if _below(pid, root, parents)]
    print(json.dumps(found))


def _words(pid: str) -> list[str]:
    with suppress(OSError):
        return (Path("/proc") / pid / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    return [""]


def _stat(pid: str) -> list[str]:
    with suppress(OSError):
        return (Path("/proc") / pid / "stat").read_text().rpartition(") ")[2].split()
    return ["Z", "0"] + ["0"] * 20


def _parent(pid: str) -> str:
    return _stat(pid)[1]


def _below(pid: str, root: str, parents: dict[str, str]) -> bool:
    while pid in parents:
        if pid == root:
            return True
        pid = parents[pid]
    return False


def _cost(pid: str, argv: list[str]) -> dict[str, Any]:
    title = argv[0].partition(" process")[0]  # nginx calls itself "nginx: worker process"
    name = title.replace(":", "") if title.startswith("nginx:") else Path(title).name
    memory = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    with suppress(OSError):
        for line in (Path("/proc") / pid / "smaps_rollup").read_text().splitlines()[1:]:
            key, _, value = line.partition(":")
            if key in memory:
                memory[key] = int(value.split()[0]) * 1024
    cpu = sum(map(int, _stat(pid)[11:15])) / _TICK
    return {"name": name, "rss": memory["Rss"], "pss": memory["Pss"], "own": memory["Anonymous"], "cpu": cpu}


if __name__ == "__main__":
    main()
