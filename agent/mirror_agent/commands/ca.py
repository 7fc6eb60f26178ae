"""`mirror-agent ca`: the CAs that readers trust."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from rich.markup import escape

from mirror_agent import messages, rollover
from mirror_agent.certificates import reading
from mirror_agent.commands.common import PROBLEM, JsonOption, show_json
from mirror_agent.commands.screen import complain, screen, show_table
from mirror_agent.commands.wanted import nudge, read_files
from mirror_agent.host import authorities
from mirror_agent.host.issuers import own
from mirror_agent.model import Authorities, Authority, Paths, Settings, Trouble

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="The CA that signs the mirrors' certificates, and its successor.",
)


@app.command("show")
def show(as_json: JsonOption = False) -> None:
    """Show the CAs to trust, and where a roll-over stands."""
    known, settings = _known("ca show"), _settings()
    remembered = authorities.recall(Paths().authority)
    view = rollover.View(known, rollover=remembered)
    rows = [_row(each, known, view, settings) for each in known.all]
    if as_json:
        show_json({"stage": view.stage, "authorities": rows})
        return
    cells = [(escape(row["name"]), row["is"], row["not_after"][:10], row["next"]) for row in rows]
    show_table(("NAME", "IS", "UNTIL", "NEXT"), cells, long=("NAME",))
    for row in rows:  # below the table: longer than a terminal is wide, and to be copied
        screen().print(f"SHA-256 of {row['key'][:8]}: {row['fingerprint']}", soft_wrap=True, markup=False)
    screen().print(_STAGES[view.stage])


@app.command("export")
def export() -> None:
    """Print the certificates of all CAs to trust, as PEM."""
    sys.stdout.write(reading.trust_bundle(*(each.pem for each in _known("ca export").all)))


@app.command("roll")
def roll(
    confirm: Annotated[bool, typer.Option("--confirm", help="All readers trust the next CA: use it now.")] = False,
) -> None:
    """Replace the CA.

    The next one is made and published beside it, and used when readers had time to learn it.  It may vouch for all
    hosts that are defined now: also the way out when the present one may not.
    """
    known, paths = _known("ca roll"), Paths()
    if confirm:
        if known.coming is None:
            raise Trouble("ca roll", "there is no next CA that could be confirmed", "mirror-agent ca roll makes one")
        remembered = authorities.recall(paths.authority)
        confirmed = remembered.confirmed | {known.coming.key}
        with authorities.locked(paths.authority):
            authorities.remember(paths.authority, replace(remembered, confirmed=confirmed))
        sys.stdout.write(f"{known.coming.facts.subject}: confirmed\n")
    else:
        wanted = read_files(paths)
        if wanted.desired is None:
            complain(map(str, wanted.problems))
            raise typer.Exit(PROBLEM)
        hosts = [mirror.host for mirror in wanted.desired.mirrors]
        settings = wanted.desired.settings
        if settings.certificates.ca:
            raise Trouble(
                "ca roll", "the CA is one that was brought", f"put the next one into {settings.certificates.ca}"
            )
        pair = own.make_authority(settings, hosts, datetime.now(UTC))
        key = authorities.prepare(paths.authority, pair)
        _record(f"a new CA is there, let all readers trust it ({key[:8]})")
        sys.stdout.write(f"{reading.facts(pair.certificate, None).subject}: prepared\n")
    nudge()


_STAGES = {
    rollover.Stage.STEADY: "No roll-over: mirror-agent ca roll begins one.",
    rollover.Stage.PREPARED: "The next CA is being published.",
    rollover.Stage.SPREADING: "Readers learn to trust the next CA; mirror-agent ca roll --confirm uses it at once.",
    rollover.Stage.RETIRING: "The old CA is trusted until its last certificate has ended.",
}


def _known(command: str) -> Authorities:
    if os.geteuid() != 0:
        raise Trouble(command, "only root may look at the CA", f"sudo mirror-agent {command}")
    known = authorities.read(Paths().authority)
    if known is None:
        raise Trouble(
            command, "there is no CA yet", "the agent makes it when it first runs: systemctl status mirror-agent"
        )
    return known


def _settings() -> Settings:
    wanted = read_files(Paths())
    if wanted.desired is None:
        complain(map(str, wanted.problems))
        raise typer.Exit(PROBLEM)
    return wanted.desired.settings


def _row(each: Authority, known: Authorities, view: rollover.View, settings: Settings) -> dict[str, Any]:
    at: datetime | None
    certificate = x509.load_pem_x509_certificate(each.pem)
    if each == known.current:
        what, at, doing = "current", rollover.begins_at(each, settings.certificates), "replaced from"
    elif each == known.coming:
        what, at, doing = "next", rollover.switches_at(view, settings.certificates), "used from"
    else:
        what, at, doing = "old", rollover.drops_at(each, view.rollover), "dropped"
    return {
        "name": each.facts.subject,
        "is": what,
        "key": each.key,
        "not_before": each.facts.not_before.isoformat(),
        "not_after": each.facts.not_after.isoformat(),
        "next": f"{doing} {at:%Y-%m-%d}" if at else "",
        "fingerprint": certificate.fingerprint(SHA256()).hex(":").upper(),
    }


def _record(text: str) -> None:
    """The journal's story has this too."""
    from mirror_agent.host import journal  # noqa: PLC0415 - most commands work without systemd's libraries

    journal.configure(native=True)
    journal.get(action="prepare-authority").warning(text, message_id=messages.AUTHORITY_PREPARED)
