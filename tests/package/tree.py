"""The tree that is packaged, and how."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]
PACKAGED = ("CHANGELOG.md", "LICENSE", "README.md", "agent", "docs", "etc", "packaging", "pyproject.toml", "quadlets")


@dataclass(frozen=True)
class Built:
    """A binary package and its source package."""

    rpm: Path
    source: Path


def build(tree: Path, target: Path, wheels: Path, *options: str, **environment: str) -> Built:
    """Build the packages of a tree, without the network; options are rpmbuild's."""
    subprocess.run(
        [tree / "packaging/make-rpm", target, wheels, *options], env={**os.environ, **environment}, check=True
    )
    [rpm], [source] = target.glob("*.noarch.rpm"), target.glob("*.src.rpm")
    return Built(rpm, source)


def copy_of_tree(target: Path) -> Path:
    """The tree in another place, with other times and other modes (but for what is a program)."""
    for name in PACKAGED:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, target / name)
    subprocess.run(["chmod", "-R", "g+w,o-rx", target], check=True)
    subprocess.run(["find", target, "-exec", "touch", "-d", "2031-01-01", "{}", "+"], check=True)
    return target
