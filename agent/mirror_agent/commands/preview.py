"""`mirror-agent preview`: what a change of mirror configuration does to a cluster, told before it is made."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from mirror_agent import cluster as rules
from mirror_agent import openshift, plan, wish
from mirror_agent.commands.common import PROBLEM, DefinitionsOption, JsonOption, SettingsOption, show_json
from mirror_agent.commands.screen import complain, screen, show_table
from mirror_agent.commands.wanted import find_paths, read_files
from mirror_agent.host import files
from mirror_agent.model import ClusterSettings, ClusterState, Cost, Document, Paths, Problem, Publication, Trouble
from mirror_agent.targets import cluster as target

SUFFIXES = (".yaml", ".yml", ".json")
LARGEST_FILE = 64 * 2**20  # bytes: a dump of a large cluster's objects has a few MiB

_COST = {
    Cost.NONE: "nothing: the nodes' file stays as it is, to the byte",
    Cost.RELOAD: "no drain: CRI-O reads the new file on every node, nothing is interrupted",
    Cost.DRAIN: "drains every node, one after another (a cluster of a single node is not drained)",
}
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def preview(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[REF…]", help="Images: where does a node look?")] = None,
    before: Annotated[
        Path | None,
        typer.Option("--before", metavar="FILE|DIR", help="What it has.  Default: the cluster of agent.toml, if any."),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option("--after", metavar="FILE|DIR", help="All it shall have.  Default: the same, and our mirrors."),
    ] = None,
    settings: SettingsOption = None,
    definitions: DefinitionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a change does to an OpenShift cluster.

    A change of mirror configuration: the verdict, the cost, the file on nodes, where a node looks for an image.  Works
    with and without mirrors of ours, and on files alone.  FILE or DIR hold YAML or JSON: ImageDigestMirrorSet,
    ImageTagMirrorSet, ImageContentSourcePolicy, image.config.openshift.io; `-` is standard input.  Our mirrors are
    previewed as if each was proved.  Exit code 1: OpenShift refuses the change, or the cluster cannot be reached.
    """
    for ref in refs or ():
        try:
            openshift.parse_reference(ref)
        except openshift.BadReferenceError as error:
            raise typer.BadParameter(f"{ref!r} is no image: {error}") from error
    for path in (before, after):
        if path and str(path) != "-" and not path.exists():
            raise typer.BadParameter(f"there is no {path}")
    paths = find_paths(settings, definitions)
    old = read(before) if before else _cluster(paths, asked=settings is not None or after is None)
    problems: tuple[Problem, ...] = ()
    if after:
        verdict = openshift.judge(old, read(after), refs or ())
    else:
        verdict, problems = _with_ours(old, paths, refs or ())
    if as_json:
        show_json(as_dict(verdict))
    else:
        show(verdict, screen())
    if problems or not verdict.accepted:
        raise typer.Exit(PROBLEM)


def _cluster(paths: Paths, asked: bool) -> openshift.Objects:
    """What the cluster of agent.toml has, nothing where it names none.  `asked`: there must be an agent.toml."""
    hint = "--before and --after FILE preview what you have; an empty folder is a new cluster"
    if not asked and not Path(paths.settings).exists():
        return {}
    settings, problems = wish.read_settings(paths)
    if settings is None:
        complain(map(str, problems))
        raise Trouble("preview", "whether there is a cluster to ask is not known without settings", hint)
    if settings.publish.cluster is None:
        return {}
    try:
        return rules.objects(target.read(settings.publish.cluster).objects)
    except Trouble as trouble:
        raise Trouble(trouble.where, trouble.reason, "; ".join(filter(None, (trouble.hint, hint)))) from trouble


def _with_ours(
    before: openshift.Objects, paths: Paths, refs: Iterable[str]
) -> tuple[openshift.Verdict, tuple[Problem, ...]]:
    wanted = read_files(paths)
    complain(map(str, wanted.problems))
    if wanted.desired is None:
        reason = "without settings there is no publication of ours to preview"
        raise Trouble("preview", reason, "--after FILE previews what you have; --settings and --definitions name ours")
    publication = Publication(wanted.desired.mirrors, "")
    settings = wanted.desired.settings.publish.cluster
    if settings is None:
        after = published(before, plan.documents(publication))
        return openshift.judge(before, after, refs), wanted.problems
    return by_agent(before, publication, settings, refs), wanted.problems


def by_agent(
    before: openshift.Objects, publication: Publication, settings: ClusterSettings, refs: Iterable[str]
) -> openshift.Verdict:
    """What comes of it when the agent itself tells the cluster: by the publisher's own rules."""
    openshift.judge(before, before)  # raises Trouble where a file has what no cluster could hold
    known = tuple({**item.content, "kind": item.kind} for item in before.values() if item.name)
    state = ClusterState(known, host=target.this_host())
    outcome = rules.compare(publication, settings, state)
    after = {**before, **rules.objects(change.body for change in outcome.mirrors)}
    verdict = openshift.judge(before, after, refs)
    if outcome.refused and verdict.accepted:
        reason = f"the agent does not apply it: {outcome.refused}"
        verdict = replace(openshift.judge(before, before, refs), accepted=False, reason=reason)
    held = outcome.held(settings, datetime.now())  # a window is of the host's clock
    said = (*verdict.notes, *outcome.notes, outcome.hint, held and f"the agent: {held}")
    return replace(verdict, notes=tuple(dict.fromkeys(filter(None, said))))


def read(path: Path) -> openshift.Objects:
    """The objects in a file, below a folder, or in standard input (`-`).  Raises Trouble."""
    if str(path) == "-":
        return _objects("standard input", [("standard input", sys.stdin.read())])
    if path.is_dir():
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith(".")
        )
        return _objects(str(path), [(str(file), _text(file)) for file in found], empty=True)
    return _objects(str(path), [(str(path), _text(path))])


def _objects(where: str, texts: list[tuple[str, str]], empty: bool = False) -> openshift.Objects:
    found = openshift.read(texts)
    if not found and not (empty and not texts):
        kinds = "ImageDigestMirrorSet, ImageTagMirrorSet, ImageContentSourcePolicy and image.config.openshift.io"
        raise Trouble(where, "nothing in here says where images come from", f"what counts: {kinds}, as YAML or JSON")
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise files.trouble(path, "read", error) from error
    if len(content) > LARGEST_FILE:
        raise Trouble(str(path), "is too large", f"at most {LARGEST_FILE // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Trouble(str(path), "is not UTF-8", "YAML or JSON is wanted") from error


def published(before: openshift.Objects, documents: Iterable[Document]) -> openshift.Objects:
    """A cluster's objects with ours: of the same name, ours take the place of what is there."""
    texts = [(d.name, d.content.decode()) for d in documents if d.name.endswith(SUFFIXES)]
    return {**before, **openshift.read(texts)}


def as_dict(verdict: openshift.Verdict) -> dict[str, Any]:
    """The verdict for machines: the shape is fixed."""
    return {
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "cost": verdict.cost.value,
        "before": verdict.before,
        "after": verdict.after,
        "resolve": [
            {"ref": r.ref, "normalized": r.normalized, "tries": list(r.tries), "blocked": r.blocked}
            for r in verdict.resolve
        ],
    }


def show(verdict: openshift.Verdict, console: Console) -> None:
    """The verdict for people."""
    for line in _diff(verdict.before, verdict.after):
        colour = _COLOURS.get(line[:1], "") if line[:3] not in ("+++", "---") else "bold"
        console.print(f"[{colour}]{escape(line)}[/]" if colour else escape(line))
    if verdict.accepted:
        console.print("[green]OpenShift accepts this.[/]")
        console.print(f"What it costs: {_COST[verdict.cost]}.")
    else:
        console.print(f"[red]OpenShift refuses this: {escape(verdict.reason or '')}[/]")
        if verdict.before == verdict.after:
            console.print(
                "Nodes keep the registries.conf that they have. When the machine-config-operator refuses, none of the "
                "cluster's mirror configuration changes any more until this is put right, and only its log says so."
            )
    for note in verdict.notes:
        console.print(f"[yellow]Note:[/] {escape(note)}")
    if verdict.resolve:
        columns = ("IMAGE", "A NODE TRIES", "SOURCE")
        show_table(columns, map(_row, verdict.resolve), long=columns[:2])


def _diff(before: str, after: str) -> Iterator[str]:
    if before == after:
        yield from after.splitlines()
        return
    names = ("registries.conf before", "registries.conf after")
    yield from difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="", n=100_000)


def _row(resolution: openshift.Resolution) -> tuple[str, str, str]:
    same = resolution.ref == resolution.normalized
    image = resolution.ref if same else f"{resolution.ref}\n= {resolution.normalized}"
    tries = "\n".join(resolution.tries) or f"nothing{resolution.reason and ': ' + resolution.reason}"
    return escape(image), escape(tries), "[red]blocked[/]" if resolution.blocked else "open"
