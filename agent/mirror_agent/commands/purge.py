"""`mirror-agent purge`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from mirror_agent import left, wish
from mirror_agent.commands.common import PROBLEM
from mirror_agent.commands.screen import complain
from mirror_agent.commands.wanted import read_files
from mirror_agent.config.definition import name_of
from mirror_agent.host import files, pins, state
from mirror_agent.model import Paths, Trouble

GONE = "cached data, certificate and address lease are gone"


def purge(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Mirrors whose definition is gone.")],
) -> None:
    """Drop what removed mirrors have left.

    Their cached images, certificate and address, and what `warm --keep` has pinned of them; `cache` shows what there
    is.  There is no way back.
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
    there, found = left.present(wanted.desired), {each.name for each in left.find(wanted.desired, memory)}
    failed = False
    for name in names:
        if name in there:
            hint = "remove its definition first, and wait until the agent took it down"
            complain([f"{name}: its mirror exists ({hint})"])
            failed = True
        elif name not in found:
            complain([f"{name}: there is nothing of that name (mirror-agent cache shows what is left)"])
            failed = True
        else:
            _drop(name, wanted.desired.settings.cache.path / name, paths)
            sys.stdout.write(f"{name}: {GONE}\n")
            upstream = journal.upstream_of(name)
            fields = {"upstream": upstream} if upstream else {}
            journal.get().info(GONE, mirror=name, action="purge", **fields)
    if failed:
        raise typer.Exit(PROBLEM)


def _drop(name: str, cache: Path, paths: Paths) -> None:
    for folder in (cache, Path(paths.mirror(name))):
        with files.told(folder, "removed"):
            if folder.is_dir():
                shutil.rmtree(folder)
    with pins.changed(paths) as keeps:
        for kept, mirrors in tuple(keeps.items()):
            if mirrors.pop(name, None) and not mirrors:
                del keeps[kept]
    state.drop_proof(paths.proofs, name)
    state.save_leases(paths.leases, {n: a for n, a in state.load_leases(paths.leases).items() if n != name})
