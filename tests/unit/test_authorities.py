"""host/authorities.py: the CAs on disk.  Interruptions are in test_crashes.py."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path, PurePosixPath

import pytest
from issued import CA, LEAF, NOW, authority

from mirror_agent.certificates import Pair, reading
from mirror_agent.host import authorities, files
from mirror_agent.model import Rollover, Trouble

ME = os.geteuid()


NEXT, THIRD = authority(), authority()


def key(pair: Pair) -> str:
    return reading.facts(pair.certificate, None).subject_key


def no_other() -> Pair:
    raise AssertionError("a second CA was made")


def snapshot(top: PurePosixPath) -> dict[str, tuple[int, int]]:
    paths = [Path(top), *Path(top).rglob("*")]
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}


@pytest.fixture
def place(tmp_path: Path) -> PurePosixPath:
    place = PurePosixPath(tmp_path / "ca")
    authorities.create(place, lambda: CA, ME)
    return place


def test_a_ca_is_made_once(tmp_path: Path) -> None:
    place = PurePosixPath(tmp_path / "ca")
    assert authorities.read(place) is None
    pair = authorities.create(place, authority, ME)
    known, before = authorities.read(place), snapshot(place)
    assert known is not None
    assert (known.current.key, known.coming, known.old) == (key(pair), None, ())
    assert authorities.create(place, no_other, ME) == authorities.load(place) == pair
    assert snapshot(place) == before


def test_an_empty_folder_of_the_package_is_used(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(0o755)
    authorities.create(PurePosixPath(tmp_path / "ca"), authority, ME)
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("ca.key", None, "ca.key: is missing"),
        ("ca.crt", None, "ca.crt: is missing"),
        ("ca.key", b"", "ca.key: is not the key of ca.crt"),
        ("ca.key", LEAF.key, "ca.key: is not the key of ca.crt"),
        ("ca.crt", b"", "ca.crt: holds no certificate"),
        ("ca.crt", CA.certificate[:99], "ca.crt: holds no certificate"),
        ("ca.crt", b"#" * (files.DEFINITION_LIMIT + 1), "ca.crt: is larger than"),
    ],
)
def test_a_damaged_ca_is_told_and_left_alone(
    place: PurePosixPath, name: str, content: bytes | None, reason: str
) -> None:
    path = Path(place / "current" / name)
    path.unlink() if content is None else path.write_bytes(content)
    before = snapshot(place)
    for look in (authorities.read, authorities.load, lambda place: authorities.create(place, no_other, ME)):
        with pytest.raises(Trouble, match=reason) as caught:
            look(place)
        assert caught.value.hint
    assert snapshot(place) == before


def test_two_cas_without_a_current_one_are_a_person_s_choice(place: PurePosixPath) -> None:
    authorities.prepare(place, NEXT, ME)
    os.unlink(place / "current")
    for look in (authorities.read, lambda place: authorities.create(place, no_other, ME)):
        with pytest.raises(Trouble, match="current: is missing") as caught:
            look(place)
        assert "ln -s a-" in caught.value.hint


def test_a_single_ca_without_its_link_is_taken_again_if_it_is_whole(place: PurePosixPath) -> None:
    os.unlink(place / "current")
    assert authorities.read(place) is None
    assert authorities.create(place, no_other, ME) == CA
    os.unlink(place / "current" / "ca.key")
    os.unlink(place / "current")
    with pytest.raises(Trouble, match=r"ca\.key: is missing"):
        authorities.read(place)


def test_one_ca_after_another(place: PurePosixPath) -> None:
    old, new = key(CA), key(NEXT)
    assert authorities.prepare(place, NEXT, ME) == new
    assert authorities.prepare(place, NEXT, ME) == new
    with pytest.raises(Trouble, match="another CA is current or next already"):
        authorities.prepare(place, THIRD, ME)
    with pytest.raises(Trouble, match="is the current CA"):
        authorities.drop(place, old, ME)
    assert authorities.load(place) == CA
    assert authorities.cross(place) == b""

    ends = NOW + timedelta(days=90)
    authorities.switch(place, ends, NOW, ME)
    known = authorities.read(place)
    assert known is not None
    assert (known.current.key, known.coming, [each.key for each in known.old]) == (new, None, [old])
    assert {each.key for each in known.all} == {old, new}
    assert authorities.load(place) == NEXT
    assert authorities.recall(place) == Rollover(ends={old: ends})
    assert not os.path.exists(place / f"a-{old[:16]}/ca.key"), "what signs no more has no key"
    assert authorities.cross(place).count(b"BEGIN CERTIFICATE") == 1
    authorities.switch(place, ends, NOW, ME)  # nothing is prepared: nothing happens
    assert authorities.load(place) == NEXT

    authorities.drop(place, old, ME)
    known = authorities.read(place)
    assert known is not None
    assert [each.key for each in known.all] == [new]
    assert authorities.recall(place) == Rollover()


def test_a_next_ca_can_be_dropped(place: PurePosixPath) -> None:
    authorities.prepare(place, NEXT, ME)
    authorities.remember(place, Rollover({key(NEXT): NOW}, frozenset({key(NEXT)})), ME)
    authorities.drop(place, key(NEXT), ME)
    known = authorities.read(place)
    assert known is not None
    assert [each.key for each in known.all] == [key(CA)]
    assert authorities.recall(place) == Rollover()
    authorities.prepare(place, THIRD, ME)


def test_a_link_that_leads_elsewhere_is_no_ca(place: PurePosixPath, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink("../elsewhere", place / "next")
    known = authorities.read(place)
    assert known is not None
    assert known.coming is None
