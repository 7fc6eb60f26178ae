"""`mirror-agent init`: a few questions, whose answers are agent.toml."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from mirror_agent import config
from mirror_agent.commands.common import PROBLEM
from mirror_agent.commands.screen import complain
from mirror_agent.commands.wanted import find_paths
from mirror_agent.host import files, lan, network
from mirror_agent.host.lan import Lan
from mirror_agent.model import File, Trouble

LIMIT = 64 * 2**10  # bytes of agent.toml
MOST = 32  # addresses that are proposed
DOMAIN, FOLDER = "mirror.lan", "/srv/www/mirrors"  # as the manual has them

type Answers = dict[str, str]  # by key of agent.toml; "" for a key that is left out


@dataclass(frozen=True, slots=True)
class Question:
    """A key of agent.toml: what is asked, and what is proposed after the answers before it."""

    key: str
    text: str
    propose: Callable[[Answers, Mapping[str, Lan]], str]


def init(
    parent: Annotated[str, typer.Option(metavar="NAME", help="The wired interface that leads to the LAN.")] = "",
    subnet: Annotated[str, typer.Option(metavar="CIDR", help="The LAN's, such as 10.0.0.0/24.")] = "",
    gateway: Annotated[str, typer.Option(metavar="ADDRESS", help="The LAN's router.")] = "",
    addresses: Annotated[str, typer.Option("--range", metavar="FIRST-LAST", help="Addresses for mirrors.")] = "",
    domain: Annotated[str, typer.Option(metavar="NAME", help="Mirrors are called NAME.DOMAIN.")] = "",
    publish: Annotated[str, typer.Option(metavar="DIR", help="Where mirror sets go; 'none' for nowhere.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Take what is proposed, ask nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace settings that are there; they are kept beside.")
    ] = False,
    settings: Annotated[Path | None, typer.Option("--settings", metavar="FILE", help="Write these settings.")] = None,
) -> None:
    """Write agent.toml after a few questions.

    What this host knows of its LAN is proposed.
    """
    path = find_paths(settings, None).settings
    _refuse(path, force)
    given = {
        "network.parent": parent, "network.subnet": subnet, "network.gateway": gateway, "network.range": addresses,
        "domain": domain, "publish.folder.path": publish,
    }  # fmt: skip
    there = _lans(given)
    answers: Answers = {}
    for question in QUESTIONS:
        proposal = question.propose(answers, there)
        answers[question.key] = _answer(question, given[question.key], proposal, yes, answers, path)
    problems = config.parse_settings(str(path), text(answers))[1]
    if problems:  # of keys together
        complain(map(str, problems))
        raise typer.Exit(PROBLEM)
    _write(path, answers)
    sys.stdout.write(f"{path} is written. Next:\n{_next(answers)}")


# --- what is asked -------------------------------------------------------------------------------------------


def propose_range(subnet: IPv4Network, taken: Iterable[IPv4Address]) -> str:
    """The end of the longest run of addresses that are neither the network's nor in `taken`; "" for none."""
    borders = [int(subnet.network_address), int(subnet.broadcast_address)]
    borders += [int(address) for address in taken if address in subnet]
    borders = sorted(set(borders))
    runs = [(low + 1, high - 1) for low, high in pairwise(borders) if high - low > 1]
    if not runs:
        return ""
    first, last = max(runs, key=lambda run: run[1] - run[0])
    return f"{IPv4Address(max(first, last - MOST + 1))}-{IPv4Address(last)}"


def _parent(_answers: Answers, there: Mapping[str, Lan]) -> str:
    return next(iter(there), "")


def _subnet(answers: Answers, there: Mapping[str, Lan]) -> str:
    here = there.get(answers["network.parent"])
    return str(here.subnet) if here else ""


def _gateway(answers: Answers, there: Mapping[str, Lan]) -> str:
    here = there.get(answers["network.parent"])
    return str(here.gateway) if here and here.gateway else ""


def _range(answers: Answers, there: Mapping[str, Lan]) -> str:
    here = there.get(answers["network.parent"])
    taken = (IPv4Address(answers["network.gateway"]), *(here.own if here else ()))
    return propose_range(IPv4Network(answers["network.subnet"]), taken)


QUESTIONS = (
    Question("network.parent", "The wired interface that leads to the LAN of your nodes", _parent),
    Question("network.subnet", "The LAN's subnet", _subnet),
    Question("network.gateway", "The LAN's router", _gateway),
    Question("network.range", "Addresses for mirrors, which neither DHCP nor anybody else gives away", _range),
    Question("domain", "The domain of the mirrors' names (NAME.DOMAIN), for your DNS to serve", lambda *_: DOMAIN),
    Question("publish.folder.path", "The folder for mirror sets ('none': publish nowhere)", lambda *_: FOLDER),
)


def _lans(given: Answers) -> dict[str, Lan]:
    """What the host knows; an admin who says all of the LAN needs none of it."""
    try:
        there, unfit = lan.lans()
    except Trouble:
        if all(given[key] for key in ("network.parent", "network.subnet", "network.gateway")):
            return {}
        raise
    if not there and not given["network.parent"]:
        complain(str(trouble) for trouble in unfit)
        raise Trouble("init", "no wired interface with an address is up", "say which one it will be: --parent NAME")
    return {each.parent: each for each in there}


def _answer(question: Question, given: str, proposal: str, yes: bool, answers: Answers, path: PurePosixPath) -> str:
    """An answer that the settings' own rules accept: given, proposed, or asked for until it is one."""
    if given or yes or not sys.stdin.isatty():
        value = given or (proposal if yes else "")
        if not value:
            option = f"--{question.key.rpartition('.')[2].replace('path', 'publish')}"
            why = "nothing can be proposed for it" if yes else "there is no terminal to ask on"
            raise Trouble(
                "init", f"{option} is not given, and {why}", f"{option} VALUE" + ("" if yes else ", or --yes")
            )
        _accept(question, value, answers, path)
        return value
    while True:
        value = typer.prompt(question.text, default=proposal or None)
        try:
            _accept(question, value, answers, path)
        except Trouble as trouble:
            complain([str(trouble)])
        else:
            return str(value)


def _accept(question: Question, value: str, answers: Answers, path: PurePosixPath) -> None:
    """Raises Trouble when this answer is none that the agent would take."""
    problems = config.parse_settings(str(path), text({**answers, question.key: value}))[1]
    for problem in problems:
        if problem.key == question.key:
            raise Trouble(f"{question.key} = {value}", problem.reason, problem.hint)
    if question.key == "network.parent":
        network.check_parent(value)


# --- what is written -----------------------------------------------------------------------------------------


def text(answers: Answers) -> bytes:
    """agent.toml of these answers, as far as they go."""
    values = {key: value for key, value in answers.items() if value not in ("", "none")}
    lines = ["# Settings of mirror-agent, written by `mirror-agent init`. All keys: man agent.toml."]
    for table in ("", "network", "publish.folder"):
        keys = [key for key in values if key.rpartition(".")[0] == table]
        lines += ["", f"[{table}]"] if table and keys else [""] if keys else []
        lines += [f"{key.rpartition('.')[2]} = {_quoted(values[key])}" for key in keys]
    return ("\n".join(lines) + "\n").encode()


def _quoted(value: str) -> str:
    """A basic string of TOML: what must not be in a value is escaped, for the rules to refuse it by its name."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in value) + '"'


def _refuse(path: PurePosixPath, force: bool) -> None:
    """Settings that say something are not replaced unless asked to; the form that a package brings says nothing."""
    content = files.read(path, LIMIT)
    if content is None or force:
        return
    try:
        empty = not tomllib.loads(content.decode())
    except ValueError:
        empty = False
    if not empty:
        raise Trouble(str(path), "there are settings already", "edit them; or replace them: --force")


def _write(path: PurePosixPath, answers: Answers) -> None:
    """The settings, what was there before beside them, and the folder that is published to."""
    folder = Path(path.parent)
    if not folder.parent.is_dir():
        raise Trouble(str(path), "there is no folder for it", f"mkdir -p {folder}")
    if not os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        raise Trouble(str(path), "may not be written by this user", "sudo mirror-agent init")
    folder.mkdir(mode=0o755, exist_ok=True)
    if (before := files.read(path, LIMIT)) is not None:
        files.write(File(path.with_name(path.name + ".orig"), before, owner=os.geteuid()))
    files.write(File(path, text(answers), owner=os.geteuid()))
    published = answers["publish.folder.path"]
    if published != "none" and os.geteuid() == 0:
        with files.told(published, "made a folder"):
            Path(published).mkdir(mode=0o755, parents=True, exist_ok=True)


def _next(answers: Answers) -> str:
    lines = [
        f"    take {answers['network.range']} out of what DHCP gives away",
        "    systemctl enable --now mirror-agent",
        "    cp /usr/share/mirror-agent/examples/quay.toml /etc/mirror-agent.d/",
        "    mirror-agent status",
    ]
    if answers["publish.folder.path"] != "none":
        lines.append(f"    man mirror-agent.publication    # what to do with {answers['publish.folder.path']}")
    return "\n".join(lines) + "\n"
