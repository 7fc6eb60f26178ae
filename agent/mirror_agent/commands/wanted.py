"""What the admin wrote, for commands: where it is, what should come of it; and an agent that is told to look again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mirror_agent import wish
from mirror_agent.commands.screen import complain
from mirror_agent.model import Mirror, Paths, Problem, Trouble

NEWEST_PODMAN = (5, 4)  # what `render` assumes where there is no podman: the version that everything is tested with


def find_paths(settings: Path | None, definitions: Path | None) -> Paths:
    """The host's own places, or those that were named; templates lie beside the package in a checkout."""
    paths = Paths()
    checkout = Path(__file__).resolve().parents[3] / "quadlets"
    if not Path(paths.templates).is_dir() and checkout.is_dir():
        paths = replace(paths, templates=PurePosixPath(checkout))
    if settings:
        paths = replace(paths, settings=PurePosixPath(settings.absolute()))
    if definitions:
        paths = replace(paths, definitions=(PurePosixPath(definitions.absolute()),))
    return paths


def read_files(paths: Paths, secrets: bool = False) -> wish.Wish:
    """What should exist, as far as it can be said from files alone."""
    own = paths.definitions == Paths().definitions
    try:
        memory = wish.remembered(paths) if own else wish.Remembered({}, {})
    except Trouble:  # not root: leases are then those that a new host would give
        memory = wish.Remembered({}, {})
    try:
        return wish.read(paths, memory, NEWEST_PODMAN, owner=0 if own else None, secrets=secrets)
    except Trouble as trouble:
        return wish.Wish(None, (Problem(trouble.where, "", trouble.reason, trouble.hint),))


def known_mirrors(names: Collection[str], mirrors: Iterable[Mirror]) -> set[str]:
    """The mirrors that are named, all if none is.  Raises Trouble for a name that is none of a mirror."""
    known = {mirror.name for mirror in mirrors}
    if unknown := sorted(set(names) - known):
        raise Trouble(", ".join(unknown), "there is no such mirror", "mirror-agent status shows them")
    return set(names) or known


def nudge() -> None:
    """Let a running agent look at once, and wait until it has begun to."""
    from mirror_agent.host.systemd import Systemd  # noqa: PLC0415 - most commands work without a system bus

    systemd = Systemd()
    if systemd.units(["mirror-agent.service"])["mirror-agent.service"].active == "active":
        systemd.reload_units(["mirror-agent.service"], 60.0)
    else:
        complain(["the agent does not run: it takes effect when it does (systemctl start mirror-agent)"])
