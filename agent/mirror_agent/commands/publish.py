"""`mirror-agent publish`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mirror_agent import formats, plan
from mirror_agent.certificates import reading
from mirror_agent.commands.common import PROBLEM
from mirror_agent.commands.screen import complain
from mirror_agent.commands.wanted import read_files
from mirror_agent.host import authorities, state
from mirror_agent.model import Paths, Trouble

FormatOption = Annotated[
    str,
    typer.Option(
        "--format", metavar="NAME", help=", ".join(formats.FORMATS), autocompletion=lambda: list(formats.FORMATS)
    ),
]


def publish(name: FormatOption) -> None:
    """Print what is published, in one format.

    As it is to be now; needs no publish.folder.
    """
    if name not in formats.FORMATS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(formats.FORMATS)}")
    if os.geteuid() != 0:
        raise Trouble("publish", "only root may read what was proved", f"sudo mirror-agent publish --format {name}")
    paths = Paths()
    wanted = read_files(paths)
    complain(map(str, wanted.problems))
    if wanted.desired is None:
        raise typer.Exit(PROBLEM)
    known = authorities.read(paths.authority)
    if known is None:
        raise Trouble("publish", "there is no CA yet: no mirror was ever made", "systemctl start mirror-agent")
    trust = reading.trust_bundle(*(each.pem for each in known.all))
    observed = plan.Observed(proofs=state.load_proofs(paths.proofs), trust=trust)
    if names := plan.in_doubt(wanted.desired, observed):
        raise Trouble("publish", f"{', '.join(names)} would be missing", "mend the definition, or remove it")
    documents = formats.FORMATS[name](plan.publication(wanted.desired, observed))
    # more than one are YAML of a cluster
    sys.stdout.write("---\n".join(document.content.decode() for document in documents))
    sys.stdout.flush()
    unproved = [mirror.name for mirror in wanted.desired.mirrors if mirror.name not in observed.proofs]
    complain(f"{mirror}: not published, since no real pull was seen yet" for mirror in unproved)
    if wanted.problems or unproved:
        raise typer.Exit(PROBLEM)
