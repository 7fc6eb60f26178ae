"""`mirror-agent status`."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from mirror_agent import reach
from mirror_agent.commands.common import PROBLEM, JsonOption, show_json
from mirror_agent.commands.screen import complain, screen, show_table
from mirror_agent.host import files
from mirror_agent.model import Paths, Problem, Trouble
from mirror_agent.report import CacheStatus, PullLimitStatus, ReachStatus, State, size

FIRST_WORD_S = 10.0
_COLOURS = {State.SERVING: "green", State.FAILED: "red", State.UNPROVED: "cyan"}


def show_status(as_json: JsonOption = False) -> None:
    """Show how the mirrors are."""
    status = json.loads(_said())
    if as_json:
        show_json(status)
    else:
        _show(status)
    if status["problems"] or status["failures"] or any(row["state"] == State.FAILED for row in status["mirrors"]):
        raise typer.Exit(PROBLEM)


def _said() -> bytes:
    """What the agent has said last.  One that has just been started is waited for.  Raises Trouble."""
    deadline = time.monotonic() + FIRST_WORD_S
    while (content := files.read(Paths().status, 4 * 2**20)) is None:
        if not _runs():
            raise Trouble("the agent", "does not run; mirrors that run go on", "systemctl start mirror-agent")
        if time.monotonic() > deadline:
            raise Trouble("the agent", "has not said anything yet", "journalctl -u mirror-agent")
        time.sleep(0.1)
    return content


def _runs() -> bool:
    unit = "mirror-agent.service"
    try:
        from mirror_agent.host.systemd import Systemd  # noqa: PLC0415 - what was said is read without a system bus

        return Systemd().units([unit])[unit].active in ("active", "activating", "reloading")
    except (ModuleNotFoundError, Trouble):  # a machine without systemd
        return False


def _show(status: dict[str, Any]) -> None:
    console = screen()
    if status["mirrors"]:
        for show in (_states, _caches, _certificates):
            show(status["mirrors"])
            sys.stdout.write("\n")
        _show_away(console, status["mirrors"])
        _show_limits(console, status["mirrors"])
    else:
        examples = Paths().templates.parent / "examples"
        console.print(f"Each file in {Paths().definitions[0]} makes a mirror; examples are in {examples}", markup=False)
    for failure in status["failures"]:
        about = f"{failure['mirror']}: " if failure["mirror"] else ""
        complain([f"{about}{failure['reason']}; tried again at {failure['again'][11:19]} UTC"])
    complain(f"{row['name']}: waits {row['waits']}" for row in status["mirrors"] if row.get("waits"))
    complain(str(Problem(**problem)) for problem in status["problems"])
    authority = status["authority"]
    if authority["stage"] not in ("", "steady"):
        console.print(f"The CA is being replaced ({authority['stage']}): mirror-agent ca show")
    if status["folder"]:
        console.print(f"Published to {status['folder']}: {status['publication']}")
    if (cluster := status.get("cluster") or {}).get("place"):  # an older agent says nothing of clusters
        cost = f" (cost: {cluster['cost']})" if cluster["cost"] else ""
        console.print(f"{cluster['place']}: {cluster['state']}{cost}", markup=False)
        for line in (cluster["roll_out"] and f"nodes: {cluster['roll_out']}", *cluster["notes"]):
            if line:
                console.print(f"  {line}", markup=False)
    console.print(status["line"])


def _show_away(console: Console, mirrors: list[dict[str, Any]]) -> None:
    """Upstreams that cannot be reached.  What is cached is served all the same: no problem of this host."""
    for row in mirrors:
        if (found := row.get("reach") or {}).get("since"):  # an older agent says nothing of it
            said = ReachStatus(**found)
            since, tried = datetime.fromisoformat(said.since), datetime.fromisoformat(said.tried)
            told = reach.away(row["upstream"], since, said.error, tried)
            console.print(f"{row['name']}: {told}: what is cached is served", style="yellow", markup=False)


def _show_limits(console: Console, mirrors: list[dict[str, Any]]) -> None:
    """What upstreams say of their limits on pulls, those that are asked."""
    for row in mirrors:
        if not (found := row.get("pull_limit")):  # an older agent says nothing of it
            continue
        said = PullLimitStatus(**found)
        when = [f"asked at {said.asked[11:16]} UTC"] if said.asked else []
        about = ", ".join([*([f"counted for {said.source}"] if said.source else []), *when])
        line = f"{row['name']}: {said.words(row['upstream'])}" + (f" ({about})" if about else "")
        console.print(line, style="yellow" if said.low or said.error else None, markup=False)


def _states(mirrors: list[dict[str, Any]]) -> None:
    rows = []
    for row in mirrors:
        colour = _COLOURS.get(State(row["state"]), "yellow")
        state, published = f"[{colour}]{row['state']}[/]", "yes" if row["published"] else "no"
        rows.append((row["name"], row["upstream"], row["host"], row["address"], state, published))
    columns = ("MIRROR", "UPSTREAM", "HOST", "ADDRESS", "STATE", "PUBLISHED")
    show_table(columns, rows, long=("HOST",), spare=("UPSTREAM",))


def _caches(mirrors: list[dict[str, Any]]) -> None:
    """What is cached and what came of it.  HIT: the share of manifests and blobs that did not wait for the upstream."""
    rows = []
    for row in mirrors:
        cache = row["cache"]
        rate = CacheStatus(**cache).hit
        hit = "-" if rate is None else f"{rate} %"
        counts = (cache["requests"], hit, cache["stale"], cache["errors"])
        kept = (str(cache["images"]), size(cache["size"]), size(cache["budget"]))
        rows.append((row["name"], *kept, *map(str, counts), size(cache["sent"]), size(cache["fetched"])))
    columns = ("MIRROR", "IMAGES", "CACHED", "OF", "REQUESTS", "HIT", "STALE", "ERRORS", "SENT", "FETCHED")
    spare = ("IMAGES", "OF", "STALE", "REQUESTS", "SENT")
    show_table(columns, rows, long=(), numbers=columns[1:], spare=spare)


def _certificates(mirrors: list[dict[str, Any]]) -> None:
    """The mirrors' certificates.  SHOWN: the edge shows clients this very one."""
    rows = []
    for row in mirrors:
        found = row["certificate"]
        dates = (found["not_after"][:10] or "-", found["renewal"][:10] or "-")
        shown = "yes" if found["served"] else "[yellow]no[/]"
        rows.append((row["name"], *dates, shown, escape(found["issuer"]) or "-", found["serial"] or "-"))
    columns = ("MIRROR", "CERTIFICATE UNTIL", "NEXT", "SHOWN", "ISSUER", "SERIAL")
    show_table(columns, rows, long=("ISSUER",), spare=("SERIAL", "ISSUER"))
