"""`mirror-agent logs`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mirror_agent import pods
from mirror_agent.commands.common import NameArgument
from mirror_agent.config.definition import name_of
from mirror_agent.model import Role, Trouble


def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[str, typer.Option("--lines", "-n", metavar="N", help="The last N, or 'all'.")] = "100",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="As journalctl takes it: today, -1h, …")] = "",
    explain: Annotated[bool, typer.Option("--explain", "-x", help="Explain what a person must act on.")] = False,
) -> None:
    """Show one mirror's story: what the agent did for it, what systemd did, and what its containers say."""
    if name_of(f"{name}.toml") != name:
        raise typer.BadParameter(f"{name!r} is not the name of a mirror")
    command = journalctl(name, follow=follow, lines=lines, since=since, explain=explain)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise Trouble("journalctl", f"cannot be run: {error.strerror}", "this host has no systemd") from error


def journalctl(name: str, *, follow: bool, lines: str, since: str, explain: bool) -> list[str]:
    """The command line that shows it.  A removed mirror has a story too."""
    units = [pods.pod_service(name), *(pods.container_service(name, role) for role in Role)]
    options = [f"--lines={lines}"]
    options += ["--follow"] if follow else []
    options += [f"--since={since}"] if since else []
    options += ["--catalog"] if explain else []
    # The agent's lines and the containers' have MIRROR= (quadlets/), those of systemd about a unit have UNIT=.
    return ["journalctl", *options, f"MIRROR={name}", *(word for unit in units for word in ("+", f"UNIT={unit}"))]
