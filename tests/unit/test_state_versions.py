"""Upgrade and downgrade: what a release has written is read by every later one, and what is newer is left alone.

tests/golden/state/VERSION has the files of a version as a release wrote them; they are never edited.  Where the last
test fails, the form has changed: raise state.VERSION, let the models read the older versions too, and put the new
form into a folder of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mirror_agent.host import state
from mirror_agent.model import Proof, Rollover, Suggestion, Trouble
from mirror_agent.usage import Counters, Usage

ME = os.geteuid()
FILES = Path(__file__).parents[1] / "golden/state"
AT = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)
KEY = "30e9fe51" * 8
IMAGE = ("podman/hello", "sha256:" + "6e" * 32)
COUNTERS = Counters(requests=1, hits=2, misses=3, stale=4, errors=5, sent=6, fetched=7)

# file → what it says, and what reads and writes it
KNOWN: dict[str, tuple[Any, Callable[[PurePosixPath], Any], Callable[[PurePosixPath, Any], bool]]] = {
    "leases.json": (
        {"docker": IPv4Address("10.0.0.35"), "quay": IPv4Address("10.0.0.42")},
        state.load_leases,
        lambda path, value: state.save_leases(path, value, ME),
    ),
    "proofs.json": (
        {"quay": Proof("quay.mirror.lan", IPv4Address("10.0.0.42"), "https://quay.io", "podman/hello:latest", AT)},
        state.load_proofs,
        lambda path, value: state.save_proofs(path, value, ME),
    ),
    "usage.json": (
        ({"quay": Usage({IMAGE: AT}, COUNTERS)}, "s=1;i=2"),
        state.load_usage,
        lambda path, value: state.save_usage(path, value[0], value[1], ME),
    ),
    "keeps.json": (
        {"friday": {"quay": {IMAGE}}},
        state.load_keeps,
        lambda path, value: state.save_keeps(path, value, ME),
    ),
    "renewals.json": (
        {"docker": Suggestion(0x17F86F76, AT, None), "quay": Suggestion(0x44CF6CEF, AT, AT)},
        state.load_suggestions,
        lambda path, value: state.save_suggestions(path, value, ME),
    ),
    "rollover.json": (
        Rollover({KEY: AT}, frozenset({KEY}), {KEY: AT}),
        state.load_rollover,
        lambda path, value: state.save_rollover(path, value, ME),
    ),
}
WRITTEN = sorted(FILES.glob("*/*.json"))


def test_every_file_is_there_in_every_version() -> None:
    versions = {folder.name: {file.name for file in folder.iterdir()} for folder in FILES.iterdir()}
    assert versions == {str(version): set(KNOWN) for version in range(1, state.VERSION + 1)}


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_a_release_has_written_is_understood(file: Path) -> None:
    value, load, _ = KNOWN[file.name]
    before = file.read_bytes()
    assert load(PurePosixPath(file)) == value
    assert file.read_bytes() == before, "looking at it changes nothing"


@pytest.mark.parametrize("name", KNOWN)
def test_state_of_a_newer_agent_is_left_alone_and_told(tmp_path: Path, name: str) -> None:
    _, load, _ = KNOWN[name]
    newer = (FILES / "1" / name).read_text().replace('"version": 1', f'"version": {state.VERSION + 1}', 1)
    (tmp_path / name).write_text(newer)
    with pytest.raises(Trouble) as told:
        load(PurePosixPath(tmp_path / name))
    assert told.value.reason == f"is of version {state.VERSION + 1}, this agent knows {state.VERSION} at most"
    assert told.value.hint == "install the newer agent again that has written it"
    assert (tmp_path / name).read_text() == newer


@pytest.mark.parametrize("name", KNOWN)
def test_the_form_is_that_of_its_version(tmp_path: Path, name: str) -> None:
    value, _, save = KNOWN[name]
    save(PurePosixPath(tmp_path / name), value)
    written = re.sub(r',\n +"\w+": 0\b', "", (tmp_path / name).read_text())  # counters that have not counted
    assert written == (FILES / str(state.VERSION) / name).read_text()
