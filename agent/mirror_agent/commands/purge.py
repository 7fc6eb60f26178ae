"""`mirror-agent purge`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from mirror_agent import plan, wish
from mirror_agent.commands.common import PROBLEM
from mirror_agent.commands.screen import complain
from mirror_agent.commands.wanted import read_files
from mirror_agent.config.definition import name_of
from mirror_agent.host import files, state
from mirror_agent.model import Paths, Trouble

GONE = "cached data, certificate and address lease are gone"


def purge(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Mirrors whose definition is gone.")],
) -> None:
    """Drop what removed mirrors have left.

    Their cached images, certificate and address.  There is no way back.
    """
    for name in names:  # the name of a folder that is to be removed: never '..' or '/etc'
        if name_of(f"{name}.toml") != name:
            raise typer.BadParameter(f"{name!r} is not the name of a mirror")
    paths = Paths()
    if os.geteuid() != 0:
        raise Trouble("purge", "only root may remove cached data", f"sudo mirror-agent purge {' '.join(names)}")
    from mirror_agent.host import journal  # noqa: PLC0415 - most commands work without systemd's libraries

    journal.configure(native=True)
    memory = wish.remembered(paths)
    wanted = read_files(paths)
    if wanted.desired is None:
        complain(map(str, wanted.problems))
        raise typer.Exit(PROBLEM)
    failed = False
    for name in names:
        cache = wanted.desired.settings.cache.path / name
        units = [path for path, file in files.tree(paths.units).items() if plan.unit_owner(file) == name]
        if name in wanted.desired.pods or name in wanted.desired.frozen or units:
            complain(
                [f"{name}: its mirror exists (remove its definition first, and wait until the agent took it down)"]
            )
            failed = True
        elif not (name in memory.leases or os.path.isdir(cache) or files.folder(paths.mirror(name))):
            complain([f"{name}: there is nothing of that name (mirror-agent status shows what runs)"])
            failed = True
        else:
            for folder in (cache, Path(paths.mirror(name))):
                if folder.is_dir():
                    shutil.rmtree(folder)
            state.drop_proof(paths.proofs, name)
            state.save_leases(paths.leases, {n: a for n, a in state.load_leases(paths.leases).items() if n != name})
            sys.stdout.write(f"{name}: {GONE}\n")
            upstream = journal.upstream_of(name)
            fields = {"upstream": upstream} if upstream else {}
            journal.get().info(GONE, mirror=name, action="purge", **fields)
    if failed:
        raise typer.Exit(PROBLEM)
