"""`mirror-agent renew`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from mirror_agent import messages, renewal
from mirror_agent.certificates import reading
from mirror_agent.commands.common import PROBLEM
from mirror_agent.commands.screen import complain
from mirror_agent.commands.wanted import known_mirrors, nudge, read_files
from mirror_agent.model import Paths, Trouble
from mirror_agent.report import ISSUING


def renew(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Mirrors; none: all of them.")] = None,
    due: Annotated[bool, typer.Option("--due", help="Only certificates that are due: what happens at boot.")] = False,
) -> None:
    """Renew certificates now.  The edges take them without dropping a connection."""
    if os.geteuid() != 0:
        raise Trouble("renew", "only root may make certificates", "sudo mirror-agent renew")
    wanted = read_files(Paths(), secrets=True)
    if wanted.desired is None:
        complain(map(str, wanted.problems))
        raise typer.Exit(PROBLEM)
    outcomes = tuple(renewal.renew(wanted.desired, known_mirrors(names or (), wanted.desired.mirrors), due))
    _record(outcomes, by_hand=not due)
    if not due:
        for outcome in outcomes:
            if outcome.why:
                sys.stdout.write(f"{outcome.mirror}: renewed ({outcome.why})\n")
        complain(f"{outcome.mirror}: {outcome.trouble}" for outcome in outcomes if outcome.trouble)
    if not due and any(outcome.why for outcome in outcomes):
        nudge()
    if any(outcome.trouble for outcome in outcomes):
        raise typer.Exit(PROBLEM)


def _record(outcomes: Iterable[renewal.Outcome], by_hand: bool) -> None:
    """The journal's story has these renewals too.  At boot it is all that is said."""
    from mirror_agent.host import journal  # noqa: PLC0415 - most commands work without systemd's libraries

    journal.configure(native=by_hand)
    for outcome in outcomes:
        log = journal.get(mirror=outcome.mirror, upstream=outcome.upstream, action=ISSUING)
        if outcome.made:
            text = f"{reading.told(outcome.made)} ({outcome.why})"
            log.info(text, message_id=messages.CERTIFICATE_ISSUED)
        if outcome.trouble:
            kind = outcome.trouble.message_id or messages.RENEWAL_FAILED
            log.error(f"could not renew: {outcome.trouble}", message_id=kind)
