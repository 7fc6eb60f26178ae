"""`mirror-agent render`."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from mirror_agent import plan
from mirror_agent.commands.common import PROBLEM, DefinitionsOption, SettingsOption
from mirror_agent.commands.screen import complain
from mirror_agent.commands.wanted import find_paths, read_files
from mirror_agent.host import files
from mirror_agent.model import Publication


def render(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", file_okay=False, help="An empty folder to write to.")],
    settings: SettingsOption = None,
    definitions: DefinitionsOption = None,
) -> None:
    """Write every file that a host would get, below a folder.

    They are the same to the byte, but for certificates, which are not among them, and the publication, which is as if
    every mirror was proved.  Needs no root, systemd or podman.
    """
    if to.exists() and any(to.iterdir()):
        raise typer.BadParameter(f"{to} is not empty")
    wanted = read_files(find_paths(settings, definitions))
    complain(map(str, wanted.problems))
    if wanted.desired is None:
        raise typer.Exit(PROBLEM)
    for path, content in rendered(wanted.desired).items():
        target = to / path.relative_to("/")
        with files.told(target, "written"):
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
            found[PurePosixPath(folder.path) / document.name] = document.content
    return dict(sorted(found.items()))
