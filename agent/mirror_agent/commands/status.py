"""`mirror-agent status`."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mirror_agent.commands.common import PROBLEM, JsonOption, complain, new_table, screen, show_json
from mirror_agent.host import files
from mirror_agent.model import Paths, Problem, Trouble
from mirror_agent.status import CacheStatus, PullLimitStatus, State, size

_COLOURS = {State.SERVING: "green", State.FAILED: "red", State.UNPROVED: "cyan"}


def show_status(as_json: JsonOption = False) -> None:
    """Show how the mirrors are."""
    content = files.read(Paths().status, 4 * 2**20)
    if content is None:
        raise Trouble("mirror-agent", "it has not said anything yet", "systemctl status mirror-agent")
    status = json.loads(content)
    if as_json:
        show_json(status)
    else:
        _show(status)
    if status["problems"] or any(row["state"] == State.FAILED for row in status["mirrors"]):
        raise typer.Exit(PROBLEM)


def _show(status: dict[str, Any]) -> None:
    console = screen()
    table = new_table("MIRROR", "UPSTREAM", "HOST", "ADDRESS", "STATE", "PUBLISHED")
    for row in status["mirrors"]:
        colour = _COLOURS.get(State(row["state"]), "yellow")
        table.add_row(
            row["name"], row["upstream"], row["host"], row["address"], f"[{colour}]{row['state']}[/]",
            "yes" if row["published"] else "no",
        )  # fmt: skip
    if status["mirrors"]:
        console.print(table)
        console.print(_caches(status["mirrors"]))
        console.print(_certificates(status["mirrors"]))
        _show_limits(console, status["mirrors"])
    for failure in status["failures"]:
        about = f"{failure['mirror']}: " if failure["mirror"] else ""
        console.print(f"[red]{escape(about + failure['reason'])}[/]; tried again at {failure['again'][11:19]} UTC")
    complain(str(Problem(**problem)) for problem in status["problems"])
    authority = status["authority"]
    if authority["stage"] not in ("", "steady"):
        console.print(f"The CA is being replaced ({authority['stage']}): mirror-agent ca show")
    if status["folder"]:
        console.print(f"Published to {status['folder']}: {status['publication']}")
    if (cluster := status.get("cluster") or {}).get("place"):  # an older agent says nothing of clusters
        cost = f" (cost: {cluster['cost']})" if cluster["cost"] else ""
        console.print(f"{cluster['place']}: {cluster['state']}{cost}", markup=False, soft_wrap=True)
        for line in (cluster["roll_out"] and f"nodes: {cluster['roll_out']}", *cluster["notes"]):
            if line:
                console.print(f"  {line}", markup=False, soft_wrap=True)
    console.print(status["line"])


def _show_limits(console: Console, mirrors: list[dict[str, Any]]) -> None:
    """What upstreams say of their limits on pulls, those that are asked."""
    for row in mirrors:
        if not (found := row.get("pull_limit")):  # an older agent says nothing of it
            continue
        said = PullLimitStatus(**found)
        when = [f"asked at {said.asked[11:16]} UTC"] if said.asked else []
        about = ", ".join([*([f"counted for {said.source}"] if said.source else []), *when])
        line = f"{row['name']}: {said.words(row['upstream'])}" + (f" ({about})" if about else "")
        console.print(line, style="yellow" if said.low or said.error else None, markup=False, soft_wrap=True)


def _certificates(mirrors: list[dict[str, Any]]) -> Table:
    """The mirrors' certificates.  SHOWN: the edge shows clients this very one."""
    table = new_table("MIRROR", "CERTIFICATE UNTIL", "NEXT", "SHOWN", "ISSUER", "SERIAL")
    for row in mirrors:
        found = row["certificate"]
        shown = "yes" if found["served"] else "[yellow]no[/]"
        table.add_row(
            row["name"], found["not_after"][:10] or "-", found["renewal"][:10] or "-", shown,
            escape(found["issuer"]), found["serial"],
        )  # fmt: skip
    return table


def _caches(mirrors: list[dict[str, Any]]) -> Table:
    """What is cached and what came of it.  HIT: the share of manifests and blobs that did not wait for the upstream."""
    table = new_table("MIRROR", "IMAGES", "CACHED", "OF", "REQUESTS", "HIT", "STALE", "ERRORS", "SENT", "FETCHED")
    for row in mirrors:
        cache = row["cache"]
        rate = CacheStatus(**cache).hit
        hit = "-" if rate is None else f"{rate} %"
        counts = (cache["requests"], hit, cache["stale"], cache["errors"])
        table.add_row(
            row["name"], str(cache["images"]), size(cache["size"]), size(cache["budget"]), *map(str, counts),
            size(cache["sent"]), size(cache["fetched"]),
        )  # fmt: skip
    return table
