"""`mirror-agent logs`."""

from __future__ import annotations

import os
import subprocess
from typing import Annotated

import typer

from mirror_agent.commands.common import JsonOption, NameArgument, mirrors
from mirror_agent.model import Role, Trouble


def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[str, typer.Option("--lines", "-n", metavar="N", help="The last N, or 'all'.")] = "100",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="As journalctl takes it: today, -1h, …")] = "",
    explain: Annotated[bool, typer.Option("--explain", "-x", help="Explain what a person must act on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one mirror's story.

    What the agent did for it, what systemd did, and what its containers say.
    """
    from mirror_agent.config.definition import name_of  # noqa: PLC0415 - a shell that asks for names does without

    if name_of(f"{name}.toml") != name:
        raise typer.BadParameter(f"{name!r} is not the name of a mirror")
    options = [f"--lines={lines}"]
    options += ["--follow"] if follow else []
    options += [f"--since={since}"] if since else []
    options += ["--catalog"] if explain else []
    options += ["--output=json"] if as_json else []
    command = ["journalctl", *options, *story(name)]
    try:
        if name not in mirrors() and not _told(name):
            raise Trouble(name, "there is no such mirror, and no line about one", "mirror-agent status shows them")
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise Trouble("journalctl", f"cannot be run: {error.strerror}", "this host has no systemd") from error


def story(name: str) -> list[str]:
    """What journalctl is to look for.  Not podman's own event log and conmon's: systemd tells the same for people."""
    from mirror_agent import pods  # noqa: PLC0415 - as above

    units = [pods.pod_service(name), *(pods.container_service(name, role) for role in Role)]
    speakers = ["mirror-agent", "systemd", *(unit.removesuffix(".service") for unit in units)]
    # The agent's lines and the containers' have MIRROR= (quadlets/), those of systemd about a unit have UNIT=.
    matches = [f"MIRROR={name}", *(word for unit in units for word in ("+", f"UNIT={unit}"))]
    return [*(f"--identifier={speaker}" for speaker in speakers), *matches]


def _told(name: str) -> bool:
    """Is there a line about it?  A removed mirror has a story too."""
    command = ["journalctl", "--quiet", "--lines=1", "--output=cat", *story(name)]
    return bool(subprocess.run(command, capture_output=True, check=False).stdout)
