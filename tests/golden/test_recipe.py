"""What is published for the recipe is, object for object, what its author wrote by hand.

`recipe/` is the recipe (names, addresses, sources, policy), `docker-and-path/` what it does not have: Docker Hub
known by name, a source with a path, AllowContactingSource.  GOLDEN_UPDATE=1 writes publication/ anew.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror_agent.addresses import assign, resolve
from mirror_agent.config import parse_settings, select
from mirror_agent.formats import FORMATS
from mirror_agent.model import Candidate, Mirror, Publication

HERE = Path(__file__).parent
RECIPE = HERE / "recipe"
CASES = [RECIPE, HERE / "docker-and-path"]
TRUST = (HERE / "ca.pem").read_text()


def mirrors(case: Path) -> tuple[Mirror, ...]:
    """The whole way from the files that an admin drops."""
    settings, problems = parse_settings("agent.toml", (case / "agent.toml").read_bytes())
    assert settings, problems
    files = sorted((case / "definitions").iterdir())
    reading = select([Candidate(file.name, "regular", content=file.read_bytes()) for file in files], {}, settings)
    leases, unplaced = assign(reading.definitions, {}, settings.network)
    assert not reading.problems
    assert not unplaced
    return tuple(resolve(definition, leases[definition.name], settings) for definition in reading.definitions)


def published(case: Path) -> dict[str, bytes]:
    publication = Publication(mirrors(case), TRUST)
    return {d.name: d.content for render in FORMATS.values() for d in render(publication)}


def as_a_set(value: Any) -> Any:
    """An object without the order of its lists: entries stand for themselves."""
    if isinstance(value, dict):
        return {key: as_a_set(below) for key, below in value.items()}
    if isinstance(value, list):
        return sorted((as_a_set(below) for below in value), key=repr_of)
    return value


def repr_of(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_publication_is_the_golden_one_to_the_byte(case: Path) -> None:
    folder = case / "publication"
    wanted = published(case)
    if os.environ.get("GOLDEN_UPDATE"):
        for name, content in wanted.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    golden = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert wanted == golden


@pytest.mark.parametrize(
    ("file", "by_hand"),
    [
        ("image-digest-mirror-set.yaml", "idms.yaml"),
        ("image-tag-mirror-set.yaml", "itms.yaml"),
        ("install-config.fragment.yaml", "install-config.yaml"),
    ],
)
def test_recipe_is_object_for_object_what_its_author_wrote(file: str, by_hand: str) -> None:
    ours = yaml.safe_load(published(RECIPE)[file])
    theirs = yaml.safe_load((RECIPE / "by-hand" / by_hand).read_text())
    assert as_a_set(ours) == as_a_set(theirs)


def test_drop_in_is_what_nodes_have_after_the_recipe() -> None:
    node = (RECIPE / "node-registries.conf").read_text()
    drop_in = published(RECIPE)["registries.conf.d/50-mirror-agent.conf"].decode()
    assert drop_in.partition("\n\n")[2] == node.partition("\n\n")[2]
    assert len(tomllib.loads(drop_in)["registry"]) == 5


def test_node_configuration_follows_from_the_published_sets() -> None:
    """The rules by which the machine-config-operator reads a pair of sets (openshift/runtime-utils)."""
    sets = published(RECIPE)
    tables: dict[str, dict[str, Any]] = {}
    for file, key, kind in (
        ("image-digest-mirror-set.yaml", "imageDigestMirrors", "digest-only"),
        ("image-tag-mirror-set.yaml", "imageTagMirrors", "tag-only"),
    ):
        for entry in sorted(yaml.safe_load(sets[file])["spec"][key], key=lambda entry: str(entry["source"])):
            table = tables.setdefault(entry["source"], {"prefix": "", "location": entry["source"], "mirror": []})
            if entry["mirrorSourcePolicy"] == "NeverContactSource":
                table["blocked"] = True
            table["mirror"] += [{"location": mirror, "pull-from-mirror": kind} for mirror in entry["mirrors"]]
    assert list(tables.values()) == tomllib.loads((RECIPE / "node-registries.conf").read_text())["registry"]
