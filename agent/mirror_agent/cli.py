"""Floor 7: the command line.  The daemon does not load this file (see __main__.py)."""

from __future__ import annotations

import difflib
import os
import pkgutil
import sys
from typing import Annotated, NamedTuple

import click
import typer
import typer.core
import typer.main

from mirror_agent import __version__
from mirror_agent.commands.common import DONE, PROBLEM
from mirror_agent.model import Trouble

PROGRAM, COMPLETE = "mirror-agent", "_MIRROR_AGENT_COMPLETE"  # by which shells ask for what could be typed


class Row(NamedTuple):
    """A command: the function or group that does it, and what the overview says of it: the beginning of its help."""

    where: str  # module:name
    help: str


# Help shows them in this order.  A command's module is loaded when it is chosen: those of all take half a second.
COMMANDS = {
    "run": Row("cli:run", "Run the agent: what mirror-agent.service does."),
    "version": Row("cli:version", "Show the version."),
    "init": Row("commands.init:init", "Write agent.toml after a few questions."),
    "check": Row("commands.check:check", "Check settings and definitions, all mistakes at once."),
    "render": Row("commands.render:render", "Write every file that a host would get, below a folder."),
    "plan": Row("commands.plan:show_plan", "Show what the agent would do next."),
    "preview": Row("commands.preview:preview", "Show what a change does to an OpenShift cluster."),
    "status": Row("commands.status:show_status", "Show how the mirrors are."),
    "logs": Row("commands.logs:logs", "Show one mirror's story."),
    "publish": Row("commands.publish:publish", "Print what is published, in one format."),
    "renew": Row("commands.renew:renew", "Renew certificates now."),
    "ca": Row("commands.ca:app", "The CA that signs the mirrors' certificates, and its successor."),
    "warm": Row("commands.warm:warm", "Pull images into the mirrors before anybody needs them."),
    "release": Row("commands.warm:release", "Unpin sets of images."),
    "cache": Row("commands.cache:show_cache", "Show the images that are cached."),
    "purge": Row("commands.purge:purge", "Drop what removed mirrors have left."),
}


def load(name: str) -> click.Command:
    """A command of the table with its options, from its own module; a group with the commands below it."""
    found = pkgutil.resolve_name(f"mirror_agent.{COMMANDS[name].where}")
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


class _Table(typer.core.TyperGroup):
    """The commands of the table: their names and lines are enough for help and completion."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = COMMANDS.get(cmd_name)
        return click.Command(cmd_name, help=row.help) if row else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            name, known, rest = super().resolve_command(ctx, args)
        except click.UsageError as wrong:
            if meant := difflib.get_close_matches(args[0], COMMANDS, 1):
                wrong.message += f" Did you mean {meant[0]!r}?"
            raise
        return name, load(name) if name and known else None, rest


app = typer.Typer(
    cls=_Table,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain: the frames of rich's help are wider than what they frame
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pull-through registry mirrors, driven by files in /etc/mirror-agent.d.",
    epilog="Exit codes: 0 done, 1 a problem was found, 2 wrong usage.  Manual: man mirror-agent",
)


def _version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the agent: what mirror-agent.service does.  Takes no options."""
    raise typer.BadParameter("`mirror-agent run` takes no options")


def version() -> None:
    """Show the version."""
    sys.stdout.write(f"mirror-agent {__version__}\n")


def main() -> int:
    """Run the command line; its exit code."""
    if COMPLETE in os.environ:  # asked by a shell, by the scripts that packaging/build makes
        _prepare_completion()
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)  # typer.Exit does not come out of it: its code is returned
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        return PROBLEM
    except Trouble as trouble:
        return _problem(str(trouble))
    except ModuleNotFoundError as missing:
        return _problem(_library(missing))
    except click.ClickException as wrong:  # usage
        wrong.show()
        return wrong.exit_code
    except BrokenPipeError:  # `| head` has seen enough; what is left must not be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PROBLEM
    except OSError as refused:
        return _refused(refused)
    return code if isinstance(code, int) else DONE


def _prepare_completion() -> None:
    from typer import _completion_classes  # noqa: PLC0415 - of use for this only

    _completion_classes._sanitize_help_text = lambda text: text  # ours has no markup: rich is not loaded to take it out
    _completion_classes.completion_init()


def _problem(text: str) -> int:
    from mirror_agent.commands.screen import complain  # noqa: PLC0415 - what goes well does without colours

    complain([text])
    return PROBLEM


def _refused(error: OSError) -> int:
    from mirror_agent.host import files  # noqa: PLC0415 - as above

    return _problem(str(files.trouble(error.filename or PROGRAM, "used", error)))


def _library(missing: ModuleNotFoundError) -> str:
    """What to install: `check`, `render`, `preview` and `init` do without what the agent itself needs."""
    name = (missing.name or "").partition(".")[0]
    package = {"gi": "python3-gobject (Debian: python3-gi)", "yaml": "python3-pyyaml (Debian: python3-yaml)"}
    return f"this command needs the Python library {name!r}: install {package.get(name, f'python3-{name}')}"
