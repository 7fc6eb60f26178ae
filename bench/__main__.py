"""`make bench`: measure, print, and write it to the documentation."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from box import Box, BoxError

from . import page
from .results import Results
from .run import QUICK, Run, Sizes

REPO = Path(__file__).resolve().parent.parent
RECORD = REPO / "bench/results.json"


def main() -> int:
    """Exit code 0: measured; goals that were missed are in the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="whether it works: a minute, figures of no worth, no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there, too")
    parser.add_argument("--again", action="store_true", help="write the page from the last run, measure nothing")
    options = parser.parse_args()
    if options.again:
        _write(Results.from_json(RECORD.read_text()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))  # so that the box is taken down
    try:
        results = Run(Box("bench"), QUICK if options.quick else Sizes()).all()
    except (BoxError, AssertionError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 1
    print(f"\n{page.text(results)}\n")
    if options.json:
        options.json.write_text(results.to_json())
    if not options.quick:
        _write(results)
    return 0


def _write(results: Results) -> None:
    RECORD.write_text(results.to_json())
    (REPO / "docs/benchmark.md").write_text(page.markdown(results))
    subprocess.run([sys.executable, REPO / "docs/make-pictures"], check=True)
    print("written: bench/results.json, docs/benchmark.md, docs/pictures/benchmark.svg\n")
    print("Compare by hand, the figures of README.md that come from here:")
    print(page.to_compare(results, (REPO / "README.md").read_text()))


if __name__ == "__main__":
    sys.exit(main())
