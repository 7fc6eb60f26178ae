"""Floor 7: the command line.  The daemon does not load this file (see __main__.py)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
import typer.core
from typer._completion_classes import completion_init

from mirror_agent import __version__
from mirror_agent.commands import (
    ca,
    cache,
    check,
    init,
    logs,
    plan,
    preview,
    publish,
    purge,
    render,
    renew,
    status,
    warm,
)
from mirror_agent.commands.common import DONE, PROBLEM, complain
from mirror_agent.model import Trouble

PROGRAM, COMPLETE = "mirror-agent", "_MIRROR_AGENT_COMPLETE"  # by which shells ask for what could be typed

typer.core.rich = None  # type: ignore[assignment,attr-defined] # with it typer 0.15 escapes brackets that nothing unescapes

app = typer.Typer(
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


@app.command()
def run() -> None:
    """Run the agent: what mirror-agent.service does.  Takes no options."""
    raise typer.BadParameter("`mirror-agent run` takes no options")


@app.command()
def version() -> None:
    """Show the version."""
    sys.stdout.write(f"mirror-agent {__version__}\n")


# A command is a file of commands/ and a row here; `--help` shows them in this order.
app.command("init")(init.init)
app.command("check")(check.check)
app.command("render")(render.render)
app.command("plan")(plan.show_plan)
app.command("preview")(preview.preview)
app.command("status")(status.show_status)
app.command("logs")(logs.logs)
app.command("publish")(publish.publish)
app.command("renew")(renew.renew)
app.add_typer(ca.app, name="ca")
app.command("warm")(warm.warm)
app.command("release")(warm.release)
app.command("cache")(cache.show_cache)
app.command("purge")(purge.purge)


def main() -> int:
    """Run the command line; its exit code."""
    if COMPLETE in os.environ:  # asked by a shell, by the scripts that packaging/build makes
        completion_init()
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)  # typer.Exit does not come out of it: its code is returned
    except (typer.Abort, KeyboardInterrupt):
        return PROBLEM
    except Trouble as trouble:
        complain([str(trouble)])
        return PROBLEM
    except ModuleNotFoundError as missing:
        complain([_library(missing)])
        return PROBLEM
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # click's own: wrong usage
            error.show()
            return int(error.exit_code)
        raise
    return code if isinstance(code, int) else DONE


def _library(missing: ModuleNotFoundError) -> str:
    """What to install: `check`, `render`, `preview` and `init` do without what the agent itself needs."""
    name = (missing.name or "").partition(".")[0]
    package = {"gi": "python3-gobject (Debian: python3-gi)", "yaml": "python3-pyyaml (Debian: python3-yaml)"}
    return f"this command needs the Python library {name!r}: install {package.get(name, f'python3-{name}')}"
