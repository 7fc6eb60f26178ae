"""`mirror-agent plan`."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import typer
from rich.markup import escape

from mirror_agent import plan, wish
from mirror_agent.actions import Action
from mirror_agent.commands.common import PROBLEM, DefinitionsOption, JsonOption, SettingsOption, show_json
from mirror_agent.commands.screen import complain, screen, show_table
from mirror_agent.commands.wanted import find_paths, read_files
from mirror_agent.host import state
from mirror_agent.model import Trouble


def show_plan(
    settings: SettingsOption = None, definitions: DefinitionsOption = None, as_json: JsonOption = False
) -> None:
    """Show what the agent would do next.  Changes nothing; root only, since it looks at what runs."""
    # here, since all other commands work on machines that have neither podman nor systemd
    from mirror_agent import observe  # noqa: PLC0415
    from mirror_agent.host.containers import Containers  # noqa: PLC0415
    from mirror_agent.host.store import Stores  # noqa: PLC0415
    from mirror_agent.host.systemd import Systemd  # noqa: PLC0415

    paths = find_paths(settings, definitions)
    if os.geteuid() != 0:
        raise Trouble("plan", "what runs on this host can be seen by root only", "sudo mirror-agent plan")
    if (unread := read_files(paths)).desired is None:  # said before a host is asked that was never set up
        complain(map(str, unread.problems))
        raise typer.Exit(PROBLEM)
    containers, systemd = Containers(), Systemd()
    memory = wish.remembered(paths)
    major, minor, _ = containers.version()
    wanted = wish.read(paths, memory, (major, minor))
    complain(map(str, wanted.problems))
    if wanted.desired is None:
        raise typer.Exit(PROBLEM)
    usage, _ = state.load_usage(paths.usage)
    announced = {container.start for container in containers.states()}  # the agent alone knows which were
    observed, unreachable = observe.look(
        wanted.desired, memory, systemd, containers, observe.Seen((), announced, usage, {}, Stores())
    )
    complain(map(str, unreachable))
    steps = plan.plan(wanted.desired, observed, datetime.now(UTC))
    if as_json:
        show_json({"steps": [_step(step) for step in steps]})
    else:
        rows = [(step.mirror or "-", escape(str(step)), escape(step.why)) for step in steps]
        if rows:
            show_table(("MIRROR", "STEP", "WHY"), rows, long=("STEP", "WHY"))
        else:
            screen().print("Nothing to do: all is as it should be.")
    if wanted.problems or unreachable:
        raise typer.Exit(PROBLEM)


def _step(step: Action) -> dict[str, str]:
    return {"mirror": step.mirror, "action": step.action, "step": str(step), "why": step.why}
