"""`mirror-agent cache`."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from mirror_agent import eviction, left, wish
from mirror_agent.commands.common import PROBLEM, JsonOption, counted, show_json
from mirror_agent.commands.screen import complain, screen, show_table
from mirror_agent.commands.wanted import known_mirrors, read_files
from mirror_agent.host import state, store
from mirror_agent.model import ImageName, Paths, Trouble
from mirror_agent.report import size
from mirror_agent.usage import Usage

_LEFT = ("NAME", "CACHED", "CERTIFICATE", "ADDRESS", "PINNED")
_COLUMNS = ("MIRROR", "IMAGE", "TAGS", "DIGEST", "SIZE", "LAST USED", "KEPT BY")


def show_cache(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MIRROR…]", help="Of these mirrors only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the images that are cached.

    How large they are, when they were used, what keeps them.  First comes what would leave first.  Below them is what
    removed mirrors have left.
    """
    if os.geteuid() != 0:
        raise Trouble("cache", "only root sees into the caches", "sudo mirror-agent cache")
    paths, now = Paths(), datetime.now(UTC)
    wanted = read_files(paths)
    if wanted.desired is None:
        complain(map(str, wanted.problems))
        raise typer.Exit(PROBLEM)
    known = known_mirrors(names or (), wanted.desired.mirrors)
    keeps, (usage, _) = state.load_keeps(paths.keeps), state.load_usage(paths.usage)
    rows: list[dict[str, Any]] = []
    for mirror in wanted.desired.mirrors:
        root = wanted.desired.settings.cache.path / mirror.name / "registry"
        there = store.Stores().scan(root) if mirror.name in known else None
        if there is None:
            continue
        sets: dict[ImageName, list[str]] = {}
        for name, mirrors in sorted(keeps.items()):
            for image in mirrors.get(mirror.name, ()):
                sets.setdefault(image, []).append(name)
        cached = eviction.Cached(there, mirror.budget, usage.get(mirror.name, Usage()).used, sets.keys())
        tags = store.tags(root)
        rows += [
            {
                "mirror": mirror.name,
                "repository": each.image[0],
                "digest": each.image[1],
                "tags": tags.get(each.image, []),
                "size": each.size,
                "used": each.used.isoformat(timespec="seconds") if each.used else "",
                "kept": sets.get(each.image, []),
            }
            for each in eviction.listing(cached, now)
        ]
    behind = left.find(wanted.desired, wish.remembered(paths))
    if as_json:
        show_json({"images": rows, "sets": sorted(keeps), "left": [_plain(each) for each in behind]})
        return
    if rows:
        show_table(_COLUMNS, map(_cells, rows), long=("IMAGE", "TAGS", "KEPT BY"), numbers=("SIZE",), spare=("DIGEST",))
    screen().print(f"{counted(len(rows), 'image')}, sets: {', '.join(sorted(keeps)) or 'none'}")
    if behind and not names:
        screen().print("\nLeft by mirrors that were removed; mirror-agent purge NAME drops it:")
        show_table(_LEFT, map(_left_cells, behind), long=(), numbers=("CACHED", "PINNED"), spare=("PINNED",))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    short, used = row["digest"].partition(":")[2][:12], row["used"][:16].replace("T", " ")
    texts = (" ".join(row["tags"]) or "-", short, size(row["size"]), used or "-", " ".join(row["kept"]) or "-")
    return row["mirror"], row["repository"], *texts


def _plain(each: left.Left) -> dict[str, Any]:
    return {**asdict(each), "address": str(each.address or "")}


def _left_cells(each: left.Left) -> tuple[str, ...]:
    address, certificate = str(each.address or "-"), "yes" if each.certificate else "-"
    return each.name, size(each.size), certificate, address, str(each.pinned or "-")
