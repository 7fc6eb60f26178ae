"""What removed mirrors leave on a host is found, and nothing else is taken for it."""

import os
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath

import pytest
from simulator import QUAY, Host, Written

from mirror_agent import left
from mirror_agent.host import state
from mirror_agent.left import Left
from mirror_agent.model import Paths
from mirror_agent.plan import Desired
from mirror_agent.wish import Remembered

OLD = IPv4Address("10.0.0.9")


@pytest.fixture
def desired(tmp_path: Path) -> Desired:
    """One mirror, quay, on a host with the state of a few more."""
    found = Host().desired(Written({"quay": QUAY}))
    paths = Paths(state=PurePosixPath(tmp_path / "state"), units=PurePosixPath(tmp_path / "units"))
    (tmp_path / "state").mkdir()
    cache = replace(found.settings.cache, path=tmp_path / "cache")
    return replace(found, paths=paths, settings=replace(found.settings, cache=cache))


def make(folder: Path, content: bytes = b"") -> None:
    folder.mkdir(parents=True)
    if content:
        (folder / "data").write_bytes(content)


def test_nothing_is_left_on_a_new_host(desired: Desired) -> None:
    assert left.find(desired, Remembered({"quay": IPv4Address("10.0.0.4")}, {})) == ()


def test_all_of_one_is_found_wherever_it_lies(desired: Desired, tmp_path: Path) -> None:
    make(tmp_path / "cache/gcr/registry", b"x" * 100_000)
    make(tmp_path / "cache/gcr/edge")
    (tmp_path / "cache/gcr/registry/link").symlink_to("/usr/bin/python3")
    make(tmp_path / "state/mirrors/gcr/tls")
    keeps = {"a": {"gcr": [("x", "1"), ("y", "2")]}, "b": {"gcr": [("x", "1")]}}
    state.save_keeps(desired.paths.keeps, keeps, os.geteuid())
    (found,) = left.find(desired, Remembered({"gcr": OLD}, {}))
    assert found == Left("gcr", found.size, certificate=True, address=OLD, pinned=3)
    assert 100_000 <= found.size < 200_000


def test_each_part_alone_is_enough(desired: Desired, tmp_path: Path) -> None:
    make(tmp_path / "cache/cached/edge")
    make(tmp_path / "state/mirrors/certified/tls")
    state.save_keeps(desired.paths.keeps, {"a": {"pinned": [("x", "1")]}}, os.geteuid())
    found = left.find(desired, Remembered({"leased": OLD}, {}))
    assert [each.name for each in found] == ["cached", "certified", "leased", "pinned"]


def test_what_exists_or_is_no_mirror_s_is_left_alone(desired: Desired, tmp_path: Path) -> None:
    for name in ("quay/registry", "lost+found", "photos", "Bad Name/registry"):
        make(tmp_path / "cache" / name)
    (tmp_path / "cache/file").write_text("")
    make(tmp_path / "cache/stopping/registry")
    make(tmp_path / "units")
    (tmp_path / "units/mirror-stopping.pod").write_text("Label=io.mirror-agent.mirror=stopping\n")
    assert left.find(desired, Remembered({}, {})) == ()
    assert left.present(desired) >= {"quay", "stopping"}
