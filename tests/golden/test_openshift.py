"""OpenShift's verdicts, case by case: objects in, verdict and registries.conf out, side by side in openshift/*.yaml.

A file holds two YAML documents: what goes in (the objects before and after, images to look for), and what
comes out.  GOLDEN_UPDATE=1 writes the second one anew.  All of these outcomes are those of the upstream code itself:
docs/preview.md says which, and how they were compared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror_agent.commands.preview import as_dict
from mirror_agent.openshift import judge, read

CASES = sorted((Path(__file__).parent / "openshift").glob("*.yaml"))
OUT = "\n---\n# What comes out.\n"


class Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    before, after = (read([(side, case.get(side) or "")]) for side in ("before", "after"))
    verdict = as_dict(judge(before, after, case.get("refs", ())))
    if verdict["before"] == verdict["after"]:
        verdict["after"] = "as before"
    return verdict


def test_there_are_cases() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_outcome_is_the_golden_one(path: Path) -> None:
    given = path.read_text().partition(OUT)[0]
    got = outcome(yaml.safe_load(given) or {})
    if os.environ.get("GOLDEN_UPDATE"):
        text = yaml.dump(got, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
        path.write_text(given + OUT + text)
    assert got == list(yaml.safe_load_all(path.read_text()))[1]
