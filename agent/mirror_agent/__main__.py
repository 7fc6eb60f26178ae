"""The command.  The daemon needs nothing of the command line's libraries, and so does not load them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> int:
    """Run `mirror-agent` with the arguments of this process; its exit code."""
    if sys.argv[1:] == ["run"]:
        from mirror_agent import loop, model  # noqa: PLC0415

        return loop.main(model.Paths())
    with _hidden("rich"):  # typer would load all of it, highlighting and Markdown too, for help that is plain here
        import typer.main  # noqa: F401, PLC0415
    from mirror_agent import cli  # noqa: PLC0415

    return cli.main()


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Importing this module fails meanwhile (importlib: None in sys.modules)."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if before:
            sys.modules[module] = before


if __name__ == "__main__":
    sys.exit(main())
