"""The command.  The daemon needs nothing of the command line's libraries, and so does not load them."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `mirror-agent` with the arguments of this process; its exit code."""
    if sys.argv[1:] == ["run"]:
        from mirror_agent import loop, model  # noqa: PLC0415

        return loop.main(model.Paths())
    from mirror_agent import cli  # noqa: PLC0415

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
