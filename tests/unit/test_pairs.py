"""host/pairs.py: generations and the CA's folder.  Interruptions are in test_crashes.py."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path, PurePosixPath

import pytest
from issued import ADDRESS, CA, HOST, NOW

from mirror_agent.certificates import Pair, making, reading
from mirror_agent.host import pairs
from mirror_agent.model import Trouble

ME = os.geteuid()


FIRST, SECOND, THIRD = (making.issue(CA, HOST, ADDRESS, NOW + timedelta(days=day), 90) for day in range(3))


@pytest.fixture
def tls(tmp_path: Path) -> PurePosixPath:
    (tmp_path / "tls").mkdir(0o700)
    return PurePosixPath(tmp_path / "tls")


def install(tls: PurePosixPath, pair: Pair) -> str:
    return pairs.install(tls, pair.key, pair.certificate, ME)


def serial(pair: Pair) -> int:
    return reading.facts(pair.certificate, None).serial


def snapshot(top: PurePosixPath) -> dict[str, tuple[int, int]]:
    paths = [Path(top), *Path(top).rglob("*")]
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}


# --- generations ---------------------------------------------------------------------------------------------


def test_what_is_installed_is_current(tls: PurePosixPath) -> None:
    assert pairs.current(tls) is None
    name = install(tls, FIRST)
    assert name == f"g-{serial(FIRST):x}"
    assert os.readlink(tls / "current") == name
    assert pairs.current(tls) == reading.facts(*reversed(FIRST))
    modes = {each: stat.S_IMODE(os.stat(tls / each).st_mode) for each in (name, "current/tls.key", "current/tls.crt")}
    assert modes == {name: 0o700, "current/tls.key": 0o600, "current/tls.crt": 0o644}


@pytest.mark.skipif(ME != 0, reason="only root can give files away")
def test_the_edge_owns_its_pair(tls: PurePosixPath) -> None:
    os.chown(tls, 101, 101)
    name = pairs.install(tls, FIRST.key, FIRST.certificate, 101)
    owners = {os.stat(tls / each).st_uid for each in (name, "current/tls.key", "current/tls.crt")}
    assert owners == {101}


def test_the_second_run_writes_nothing(tls: PurePosixPath) -> None:
    install(tls, FIRST)
    install(tls, SECOND)
    before = snapshot(tls)
    install(tls, SECOND)
    pairs.current(tls)
    pairs.repair(tls)
    assert snapshot(tls) == before


def test_one_earlier_generation_is_kept(tls: PurePosixPath) -> None:
    names = [install(tls, pair) for pair in (FIRST, SECOND, THIRD)]
    assert set(os.listdir(tls)) == {"current", *names[1:]}
    assert pairs.rollback(tls) == names[1]
    assert set(os.listdir(tls)) == {"current", names[1]}
    with pytest.raises(Trouble, match="no earlier certificate"):
        pairs.rollback(tls)
    assert pairs.current(tls) == reading.facts(*reversed(SECOND))


def test_the_earlier_one_is_what_was_current(tls: PurePosixPath) -> None:
    """Not what was made last: after a clock that went back, that would be another."""
    install(tls, THIRD)
    name = install(tls, FIRST)
    install(tls, SECOND)
    assert pairs.rollback(tls) == name


def test_a_pair_that_does_not_match_changes_nothing(tls: PurePosixPath) -> None:
    install(tls, FIRST)
    before = snapshot(tls)
    with pytest.raises(Trouble, match="does not belong"):
        pairs.install(tls, FIRST.key, SECOND.certificate, ME)
    with pytest.raises(Trouble, match="cannot be read"):
        pairs.install(tls, FIRST.key, b"", ME)
    assert snapshot(tls) == before


def test_no_folder(tmp_path: Path) -> None:
    none = PurePosixPath(tmp_path / "none")
    assert pairs.current(none) is None
    assert pairs.repair(none) == ""
    with pytest.raises(Trouble, match="its folder does not exist"):
        install(none, FIRST)


@pytest.mark.parametrize("damage", ["key", "no key", "certificate", "no certificate", "empty", "dangling", "gone"])
def test_a_broken_pair_is_seen_and_repaired(tls: PurePosixPath, damage: str) -> None:
    earlier = install(tls, FIRST)
    current = Path(tls / install(tls, SECOND))
    match damage:
        case "key":
            (current / "tls.key").write_bytes(FIRST.key)
        case "no key":
            (current / "tls.key").unlink()
        case "certificate":
            (current / "tls.crt").write_bytes(SECOND.certificate[:100])
        case "no certificate":
            (current / "tls.crt").unlink()
        case "empty":
            (current / "tls.crt").write_bytes(b"")
        case "dangling":
            current.rename(current.with_name("g-elsewhere"))
        case "gone":
            os.unlink(tls / "current")
    seen = pairs.current(tls)
    if damage in ("key", "no key"):
        assert seen is not None
        assert not seen.key_matches
    else:
        assert seen is None
    assert pairs.repair(tls) == (earlier if damage != "gone" else current.name)
    repaired = pairs.current(tls)
    assert repaired is not None
    assert repaired.key_matches


def test_nothing_to_go_back_to_leaves_all_as_it_is(tls: PurePosixPath) -> None:
    name = install(tls, FIRST)
    Path(tls / name / "tls.key").write_bytes(b"")
    before = snapshot(tls)
    assert pairs.repair(tls) == ""
    assert snapshot(tls) == before
    install(tls, SECOND)
    assert set(os.listdir(tls)) == {"current", f"g-{serial(SECOND):x}"}


def test_links_planted_by_the_edge_s_user_lead_nowhere(tls: PurePosixPath, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "tls.key").write_bytes(FIRST.key)
    (outside / "tls.crt").write_bytes(FIRST.certificate)
    os.symlink("../outside", tls / "current")
    assert pairs.current(tls) is None
    os.unlink(tls / "current")
    os.symlink("../outside", tls / "g-1")
    os.symlink("g-1", tls / "current")
    assert pairs.current(tls) is None
    os.symlink(outside, tls / f"g-{serial(SECOND):x}")
    install(tls, SECOND)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "tls.key": FIRST.key,
        "tls.crt": FIRST.certificate,
    }
    assert set(os.listdir(tls)) == {"current", f"g-{serial(SECOND):x}"}


def test_a_link_for_the_folder_is_refused(tls: PurePosixPath, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("tls")
    with pytest.raises(Trouble, match="a folder is needed there"):
        install(PurePosixPath(tmp_path / "link"), FIRST)


def test_running_out_of_descriptors_is_no_damage(tls: PurePosixPath) -> None:
    """A good pair that cannot be opened just now must not be taken for a broken one and rolled back."""
    import resource

    install(tls, FIRST)
    install(tls, SECOND)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, low = snapshot(tls), max(int(name) for name in os.listdir("/proc/self/fd"))
    holes = [os.open("/dev/null", os.O_RDONLY) for _ in range(low)]
    try:
        for room in range(1, 3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(holes) + 1 + room, limits[1]))
            with pytest.raises(Trouble, match="too many open files"):
                pairs.repair(tls)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for hole in holes:
            os.close(hole)
    assert snapshot(tls) == before
