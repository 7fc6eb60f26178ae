"""`mirror-agent warm` and `mirror-agent release`."""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mirror_agent import plan
from mirror_agent.certificates import reading
from mirror_agent.commands.common import PROBLEM, JsonOption, counted, show_json
from mirror_agent.commands.screen import complain, screen
from mirror_agent.commands.wanted import read_files
from mirror_agent.host import authorities, pins, pull, warming
from mirror_agent.model import Paths, Trouble
from mirror_agent.references import Wanted, listed, resolve
from mirror_agent.report import size

LIST_LIMIT = 4 * 2**20  # bytes of a list of images
TOLD_S = 10.0  # between two lines of progress where there is no terminal
_SET = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # uname(1) → OCI; others have the same name in both


def warm(
    images: Annotated[
        list[str], typer.Argument(metavar="FILE|IMAGE…", help="Images with their registry, or files with one a line.")
    ],
    keep: Annotated[str, typer.Option("--keep", metavar="NAME", help="Pin them until `release NAME`.")] = "",
    platforms: Annotated[
        list[str] | None, typer.Option("--platform", metavar="OS/ARCH", help="Again for more, or `all`.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=32, help="Downloads at a time.")] = 6,
    as_json: JsonOption = False,
) -> None:
    """Pull images into the mirrors before anybody needs them.

    What is there is not fetched again: an interrupted run goes on where it was.  An OpenShift release image brings its
    payload along.  The platform is this host's if none is chosen.
    """
    if keep and not _SET.fullmatch(keep):
        raise typer.BadParameter(f"{keep!r}: up to 32 lower-case letters, digits and hyphens", param_hint="--keep")
    if os.geteuid() != 0:
        raise Trouble("warm", "only root reaches the mirrors from inside", "sudo mirror-agent warm …")
    paths = Paths()
    desired = _desired(paths)
    troubles: dict[str, Trouble | None] = {}
    wanted: list[Wanted] = []
    for text in _texts(images):
        try:
            wanted.append(resolve(text, desired.mirrors))
        except Trouble as trouble:
            troubles[text] = trouble
    sources = _sources(paths, desired)
    for each in [each for each in wanted if each.mirror not in sources]:
        wanted.remove(each)
        troubles[each.text] = Trouble(each.mirror, "the mirror does not run", "mirror-agent status")
    run = warming.Warming(
        sources,
        platforms or [f"linux/{_MACHINES.get(platform.machine(), platform.machine())}"],
        jobs,
        pins.Pinning(paths, keep) if keep else None,
    )
    begin = time.monotonic()
    with _shown(run, as_json):
        troubles |= run.run(wanted)
    end, seconds = run.progress(), time.monotonic() - begin
    failed = {text: trouble for text, trouble in troubles.items() if trouble}
    if as_json:
        told = [{"image": text, "trouble": str(trouble or "")} for text, trouble in sorted(troubles.items())]
        show_json({"images": told, "bytes": end.total, "fetched": end.fetched, "there": end.there, "seconds": seconds})
    else:
        complain(str(trouble) for _, trouble in sorted(failed.items()))
        good = counted(len(troubles) - len(failed), "image")
        rate = size(end.fetched / seconds) if end.fetched else "0 B"
        screen().print(
            f"{good} of {len(troubles)} in the mirrors, {size(end.there)} were there, {size(end.fetched)} came in "
            f"{seconds:.0f} s ({rate}/s)" + (f"; kept as {keep}" if keep else "")
        )
    if failed:
        raise typer.Exit(PROBLEM)


def release(names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Sets that `warm --keep` made.")]) -> None:
    """Unpin sets of images.

    They leave the cache like all others, when they are the least recently used.
    """
    paths, missing = Paths(), []
    if os.geteuid() != 0:
        raise Trouble("release", "only root may unpin images", f"sudo mirror-agent release {' '.join(names)}")
    with pins.changed(paths) as keeps:
        for name in names:
            images = keeps.pop(name, None)
            if images is None:
                missing.append(f"{name}: there is no set of that name (mirror-agent cache shows them)")
            else:
                sys.stdout.write(f"{name}: {counted(sum(map(len, images.values())), 'image')} may leave the cache\n")
    complain(missing)
    if missing:
        raise typer.Exit(PROBLEM)


def _texts(images: list[str]) -> list[str]:
    """The references that were given, and those in the files that were given."""
    found: list[str] = []
    for word in images:
        path = Path(word)
        if word != "-" and not path.is_file():
            found.append(word)
            continue
        content = sys.stdin.buffer.read(LIST_LIMIT + 1) if word == "-" else path.read_bytes()
        if len(content) > LIST_LIMIT:
            raise Trouble(word, f"is larger than {LIST_LIMIT} bytes", "a list has one image a line")
        try:
            found += listed(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Trouble(word, "is no list of images: not UTF-8", "one image a line") from error
    return list(dict.fromkeys(found))


def _desired(paths: Paths) -> plan.Desired:
    wanted = read_files(paths, secrets=True)
    if wanted.desired is None:
        complain(map(str, wanted.problems))
        raise typer.Exit(PROBLEM)
    return wanted.desired


def _sources(paths: Paths, desired: plan.Desired) -> Mapping[str, warming.Source]:
    """The mirrors that run, with the way into their namespaces."""
    # here, since most other commands work on machines without podman
    from mirror_agent.host.containers import Containers  # noqa: PLC0415

    containers = Containers()
    running = {container.mirror: container.namespace for container in containers.states() if container.role is None}
    containers.close()
    cache = desired.settings.cache.path
    own = reading.trust_bundle(authorities.trust(paths.authority), *desired.trust)
    return {
        mirror.name: warming.Source(
            mirror,
            running[mirror.name],
            cache / mirror.name / "registry",
            own + (pull.public_roots() if plan.is_public(mirror, desired) else ""),
        )
        for mirror in desired.mirrors
        if mirror.name in running
    }


# --- progress ------------------------------------------------------------------------------------------------


@contextmanager
def _shown(run: warming.Warming, quiet: bool) -> Iterator[None]:
    """A bar on a terminal, a line now and then elsewhere, to standard error."""
    if quiet:
        yield
        return
    over = threading.Event()
    console = screen(error=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )
    task = bar.add_task("", total=None)

    def tell() -> None:
        begin = time.monotonic()
        while not over.wait(0.5 if console.is_terminal else TOLD_S):
            now, seconds = run.progress(), time.monotonic() - begin
            words = (
                f"{now.done} of {counted(now.images, 'image')}, {size(now.there + now.fetched)} of {size(now.total)}, "
                f"{size(now.fetched / seconds)}/s"
            )
            if console.is_terminal:
                bar.update(task, description=words, completed=now.there + now.fetched, total=now.total or None)
            else:
                left = (now.total - now.there - now.fetched) * seconds / now.fetched if now.fetched else 0
                console.print(Text(f"{words}, {left:.0f} s left"))

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    with bar if console.is_terminal else nullcontext():
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
