"""Floor 6: the command line.  The daemon does not load this file (see __main__.py)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mirror_agent import __version__, plan, wish
from mirror_agent.actions import Action
from mirror_agent.config.definition import name_of
from mirror_agent.host import files, state
from mirror_agent.model import Paths, Problem, Publication, Trouble
from mirror_agent.status import State

DONE, PROBLEM, USAGE = 0, 1, 2  # exit codes
NEWEST_PODMAN = (5, 4)  # what `render` assumes where there is no podman: the version that everything is tested with

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pull-through registry mirrors, driven by files in /etc/mirror-agent.d.",
    epilog="Exit codes: 0 done, 1 a problem was found, 2 wrong usage.  "
    "Definitions and settings: /usr/share/doc/mirror-agent/configuration.md",
)

SettingsOption = Annotated[Path | None, typer.Option("--settings", metavar="FILE", help="Read these settings instead.")]
DefinitionsOption = Annotated[
    Path | None, typer.Option("--definitions", metavar="DIR", help="Read this folder of definitions instead.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


def main() -> int:
    """Run the command line; its exit code."""
    try:
        code = app(standalone_mode=False)  # typer.Exit does not come out of it: its code is returned
    except (typer.Abort, KeyboardInterrupt):
        return PROBLEM
    except Trouble as trouble:
        _complain([str(trouble)])
        return PROBLEM
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # click's own: wrong usage
            error.show()
            return int(error.exit_code)
        raise
    return code if isinstance(code, int) else DONE


@app.command()
def run() -> None:
    """Run the agent: what mirror-agent.service does.  Takes no options."""
    raise typer.BadParameter("`mirror-agent run` takes no options")


@app.command()
def version() -> None:
    """Show the version."""
    sys.stdout.write(f"mirror-agent {__version__}\n")


@app.command()
def check(settings: SettingsOption = None, definitions: DefinitionsOption = None, as_json: JsonOption = False) -> None:
    """Check settings and definitions, all mistakes at once.  Needs no root, no systemd, no podman."""
    wanted = _wish(_paths(settings, definitions))
    mirrors = wanted.desired.mirrors if wanted.desired else ()
    if as_json:
        shown = [{**asdict(m), "address": str(m.address), "credentials": str(m.credentials or "")} for m in mirrors]
        _json({"mirrors": shown, "problems": [_plain(problem) for problem in wanted.problems]})
    else:
        table = _table("MIRROR", "SOURCES", "HOST", "ADDRESS", "POLICY")
        for mirror in mirrors:
            table.add_row(mirror.name, ", ".join(mirror.sources), mirror.host, str(mirror.address), mirror.policy)
        if mirrors:
            _console().print(table)
        _complain(map(str, wanted.problems))
        _console().print(f"{_count(len(mirrors), 'mirror')}, {_count(len(wanted.problems), 'problem')}")
    if wanted.problems:
        raise typer.Exit(PROBLEM)


@app.command()
def render(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", file_okay=False, help="An empty folder to write to.")],
    settings: SettingsOption = None,
    definitions: DefinitionsOption = None,
) -> None:
    """Write every file that a host would get, byte for byte, below a folder.  Needs no root, systemd or podman.

    Certificates are not among them, and the publication is as if every mirror was proved.
    """
    if to.exists() and any(to.iterdir()):
        raise typer.BadParameter(f"{to} is not empty")
    wanted = _wish(_paths(settings, definitions))
    _complain(map(str, wanted.problems))
    if wanted.desired is None:
        raise typer.Exit(PROBLEM)
    for path, content in rendered(wanted.desired).items():
        target = to / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        sys.stdout.write(f"{target}\n")
    if wanted.problems:
        raise typer.Exit(PROBLEM)


def rendered(desired: plan.Desired) -> dict[PurePosixPath, bytes]:
    """Every file that a host would get, by its path there; the publication as if every mirror was proved."""
    units = [file for pod in desired.pods.values() for file in (*pod.units, *pod.configs)]
    found = {file.path: file.content for file in (desired.network.unit, *units) if desired.mirrors}
    if folder := desired.settings.publish.folder:
        for document in plan.documents(Publication(desired.mirrors, "")):
            found[PurePosixPath(folder) / document.name] = document.content
    return dict(sorted(found.items()))


@app.command("plan")
def plan_command(
    settings: SettingsOption = None, definitions: DefinitionsOption = None, as_json: JsonOption = False
) -> None:
    """Show what the agent would do next.  Changes nothing; root only, since it looks at what runs."""
    # here, since all other commands work on machines that have neither podman nor systemd
    from mirror_agent import observe  # noqa: PLC0415
    from mirror_agent.host.containers import Containers  # noqa: PLC0415
    from mirror_agent.host.store import Stores  # noqa: PLC0415
    from mirror_agent.host.systemd import Systemd  # noqa: PLC0415

    paths = _paths(settings, definitions)
    if os.geteuid() != 0:
        raise Trouble("plan", "what runs on this host can be seen by root only", "sudo mirror-agent plan")
    containers, systemd = Containers(), Systemd()
    memory = wish.remembered(paths)
    major, minor, _ = containers.version()
    wanted = wish.read(paths, memory, (major, minor))
    _complain(map(str, wanted.problems))
    if wanted.desired is None:
        raise typer.Exit(PROBLEM)
    usage, _ = state.load_usage(paths.usage)
    announced = {container.start for container in containers.states()}  # the agent alone knows which were
    observed, unreachable = observe.look(
        wanted.desired, memory, systemd, containers, observe.Seen((), announced, usage, {}, Stores())
    )
    _complain(map(str, unreachable))
    steps = plan.plan(wanted.desired, observed, datetime.now(UTC))
    if as_json:
        _json({"steps": [_step(step) for step in steps]})
    else:
        table = _table("MIRROR", "STEP", "WHY")
        for step in steps:
            table.add_row(step.mirror or "-", str(step), step.why)
        _console().print(table if steps else "Nothing to do: all is as it should be.")
    if wanted.problems or unreachable:
        raise typer.Exit(PROBLEM)


@app.command("status")
def status_command(as_json: JsonOption = False) -> None:
    """Show how the mirrors are."""
    content = files.read(Paths().status, 4 * 2**20)
    if content is None:
        raise Trouble("mirror-agent", "it has not said anything yet", "systemctl status mirror-agent")
    status = json.loads(content)
    if as_json:
        _json(status)
    else:
        _show(status)
    if status["problems"] or any(row["state"] == State.FAILED for row in status["mirrors"]):
        raise typer.Exit(PROBLEM)


@app.command()
def purge(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Mirrors whose definition is gone.")],
) -> None:
    """Drop the cached data, certificate and address lease of removed mirrors.  There is no way back."""
    for name in names:  # the name of a folder that is to be removed: never '..' or '/etc'
        if name_of(f"{name}.toml") != name:
            raise typer.BadParameter(f"{name!r} is not the name of a mirror")
    paths = Paths()
    if os.geteuid() != 0:
        raise Trouble("purge", "only root may remove cached data", f"sudo mirror-agent purge {' '.join(names)}")
    memory = wish.remembered(paths)
    wanted = _wish(paths)
    if wanted.desired is None:
        _complain(map(str, wanted.problems))
        raise typer.Exit(PROBLEM)
    failed = False
    for name in names:
        cache = wanted.desired.settings.cache.path / name
        units = [path for path, file in files.tree(paths.units).items() if plan.unit_owner(file) == name]
        if name in wanted.desired.pods or name in wanted.desired.frozen or units:
            _complain(
                [f"{name}: its mirror exists (remove its definition first, and wait until the agent took it down)"]
            )
            failed = True
        elif not (name in memory.leases or os.path.isdir(cache) or files.folder(paths.mirror(name))):
            _complain([f"{name}: there is nothing of that name (mirror-agent status shows what runs)"])
            failed = True
        else:
            for folder in (cache, Path(paths.mirror(name))):
                if folder.is_dir():
                    shutil.rmtree(folder)
            state.save_proofs(paths.proofs, {n: p for n, p in state.load_proofs(paths.proofs).items() if n != name})
            state.save_leases(paths.leases, {n: a for n, a in state.load_leases(paths.leases).items() if n != name})
            sys.stdout.write(f"{name}: cached data, certificate and address lease are gone\n")
    if failed:
        raise typer.Exit(PROBLEM)


# --- what people see -----------------------------------------------------------------------------------------

_COLOURS = {State.SERVING: "green", State.FAILED: "red", State.UNPROVED: "cyan"}


def _show(status: dict[str, Any]) -> None:
    console = _console()
    table = _table("MIRROR", "UPSTREAM", "HOST", "ADDRESS", "STATE", "PUBLISHED", "CERTIFICATE UNTIL")
    for row in status["mirrors"]:
        colour = _COLOURS.get(State(row["state"]), "yellow")
        table.add_row(
            row["name"], row["upstream"], row["host"], row["address"], f"[{colour}]{row['state']}[/]",
            "yes" if row["published"] else "no", row["not_after"][:10] or "-",
        )  # fmt: skip
    if status["mirrors"]:
        console.print(table)
        console.print(_caches(status["mirrors"]))
    for failure in status["failures"]:
        about = f"{failure['mirror']}: " if failure["mirror"] else ""
        console.print(f"[red]{escape(about + failure['reason'])}[/]; tried again at {failure['again'][11:19]} UTC")
    _complain(str(Problem(**problem)) for problem in status["problems"])
    if status["folder"]:
        console.print(f"Published to {status['folder']}: {status['publication']}")
    console.print(status["line"])


def _caches(mirrors: list[dict[str, Any]]) -> Table:
    """What is cached and what came of it.  HIT: the share of manifests and blobs that did not wait for the upstream."""
    table = _table("MIRROR", "IMAGES", "CACHED", "OF", "REQUESTS", "HIT", "STALE", "ERRORS", "SENT", "FETCHED")
    for row in mirrors:
        cache = row["cache"]
        given = cache["hits"] + cache["misses"] + cache["stale"]
        hit = f"{100 * (given - cache['misses']) // given} %" if given else "-"
        counts = (cache["requests"], hit, cache["stale"], cache["errors"])
        table.add_row(
            row["name"], str(cache["images"]), size(cache["size"]), size(cache["budget"]), *map(str, counts),
            size(cache["sent"]), size(cache["fetched"]),
        )  # fmt: skip
    return table


def size(number: float) -> str:
    """Bytes for people, in the units that definitions are written in."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    step = 0
    while number >= 1024 and step < len(units) - 1:
        number, step = number / 1024, step + 1
    return f"{number:.0f} {units[step]}" if number >= 100 or not step else f"{number:.1f} {units[step]}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console(error: bool = False) -> Console:
    """Colours on a terminal only; elsewhere lines are as long as they are."""
    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else 200)


def _complain(texts: Iterable[str]) -> None:
    console = _console(error=True)
    for text in texts:
        console.print(f"[red]{escape(text)}[/]")


def _json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plain(problem: Problem) -> dict[str, str]:
    return {key: value for key, value in asdict(problem).items() if key != "mirror"}


def _step(step: Action) -> dict[str, str]:
    return {"mirror": step.mirror, "action": step.action, "step": str(step), "why": step.why}


# --- where things are ----------------------------------------------------------------------------------------


def _paths(settings: Path | None, definitions: Path | None) -> Paths:
    """The host's own places, or those that were named; templates lie beside the package in a checkout."""
    paths = Paths()
    checkout = Path(__file__).resolve().parents[2] / "quadlets"
    if not Path(paths.templates).is_dir() and checkout.is_dir():
        paths = replace(paths, templates=PurePosixPath(checkout))
    if settings:
        paths = replace(paths, settings=PurePosixPath(settings.absolute()))
    if definitions:
        paths = replace(paths, definitions=(PurePosixPath(definitions.absolute()),))
    return paths


def _wish(paths: Paths) -> wish.Wish:
    """What should exist, as far as it can be said from files alone."""
    own = paths.definitions == Paths().definitions
    try:
        memory = wish.remembered(paths) if own else wish.Remembered({}, {})
    except Trouble:  # not root: leases are then those that a new host would give
        memory = wish.Remembered({}, {})
    try:
        return wish.read(paths, memory, NEWEST_PODMAN, owner=0 if own else None, secrets=False)
    except Trouble as trouble:
        return wish.Wish(None, (Problem(trouble.where, "", trouble.reason, trouble.hint),))
