"""What is on disk after a crash or a failure at every single system call, and that the next run completes it.

The work runs in a forked child, for real.  A profile hook sees each call into the operating system just before it
is made, and kills the child there with SIGKILL, or lets the call fail with ENOSPC.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path, PurePosixPath
from types import FrameType

import pytest
from issued import ADDRESS, CA, HOST, NOW, authority

from mirror_agent.certificates import Pair, making, reading
from mirror_agent.host import authorities, files, pairs
from mirror_agent.model import File, Rollover, Trouble

ME = os.geteuid()
CALLS = {"open", "close", "read", "write", "fsync", "fchown", "fchmod", "mkdir", "rename", "symlink", "link", "unlink"}
CALLS |= {"rmdir", "readlink", "stat", "fstat", "lstat", "listdir", "scandir"}
FINISHED, TROUBLE, BUG = 0, 3, 4
KILL, FAIL = "kill", "fail"


def interrupted(work: Callable[[], object], at: int, how: str) -> bool:
    """Run `work` in a child and interrupt it before call number `at`.  False when it was through before that."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_child(work, at, how))
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    code = os.WEXITSTATUS(status)
    assert code in (FINISHED, TROUBLE), "an error that is no Trouble, see stderr"
    return code == TROUBLE


def _child(work: Callable[[], object], at: int, how: str) -> int:
    seen = 0

    def before(_frame: FrameType, event: str, called: object) -> None:
        nonlocal seen
        if event != "c_call" or getattr(called, "__module__", "") != "posix":
            return
        if getattr(called, "__name__", "") in CALLS:
            seen += 1
            if seen == at and how == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            elif seen == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    try:
        sys.setprofile(before)
        work()
    except Trouble:
        return TROUBLE
    except BaseException:
        sys.setprofile(None)
        traceback.print_exc()
        return BUG
    finally:
        sys.setprofile(None)
    # A failure that the work could live with (nothing there to compare with: then write) is no Trouble.
    return FINISHED if seen < at else TROUBLE


def every_interruption(
    folder: Path, prepare: Callable[[PurePosixPath], None], work: Callable[[PurePosixPath], object], how: str
) -> list[PurePosixPath]:
    """One folder for each call of `work`, as an interruption there left it."""
    left: list[PurePosixPath] = []
    for at in range(1, 1000):
        place = PurePosixPath(folder / f"{at}")
        os.mkdir(place, 0o700)
        prepare(place)
        if not interrupted(lambda place=place: work(place), at, how):  # type: ignore[misc]
            assert at > 5, "the hook saw nothing"
            return left
        left.append(place)
    raise AssertionError("never through")


def temporaries(place: PurePosixPath) -> list[Path]:
    return [path for path in Path(place).rglob(".*") if path.name.startswith(".mirror-agent-")]


# --- a file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [KILL, FAIL])
@pytest.mark.parametrize("old", [None, b"old" * 1000])
def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, old: bytes | None, how: str) -> None:
    def file(place: PurePosixPath, content: bytes) -> File:
        return File(place / "file", content, 0o640, ME)

    def prepare(place: PurePosixPath) -> None:
        if old is not None:
            files.write(file(place, old))

    new = b"new" * 3000
    left = every_interruption(tmp_path, prepare, lambda place: files.write(file(place, new)), how)
    seen = set()
    for place in left:
        there = files.read(place / "file", 10_000)
        assert there in (old, new)
        seen.add(there)
        assert len(temporaries(place)) <= (1 if how == KILL else 0)
        files.sweep(place)
        files.write(file(place, new))
        assert files.tree(place) == {place / "file": file(place, new)}
    assert seen == {old, new}


# --- a mirror's certificate ----------------------------------------------------------------------------------

OLDEST, OLD, NEW = (making.issue(CA, HOST, ADDRESS, NOW + timedelta(days=day), 90) for day in range(3))


def install(place: PurePosixPath, pair: Pair) -> str:
    return pairs.install(place, pair.key, pair.certificate, ME)


def served(place: PurePosixPath) -> Pair | None:
    """What the edge reads through the link, by path as nginx does."""
    paths = [Path(place / "current" / name) for name in ("tls.key", "tls.crt")]
    if not any(path.exists() for path in paths):
        return None
    return Pair(*(path.read_bytes() for path in paths))


def name_of(pair: Pair) -> str:
    return f"g-{reading.facts(pair.certificate, None).serial:x}"


def nothing(place: PurePosixPath) -> None:
    pass


def one(place: PurePosixPath) -> None:
    install(place, OLD)


def two(place: PurePosixPath) -> None:
    install(place, OLDEST)
    install(place, OLD)


def same(place: PurePosixPath) -> None:
    install(place, OLD)
    install(place, NEW)


@pytest.mark.parametrize("how", [KILL, FAIL])
@pytest.mark.parametrize(
    ("prepare", "before", "kept"),
    [(nothing, {None}, set()), (one, {OLD}, {OLD}), (two, {OLD}, {OLD}), (same, {NEW}, {OLD})],
)
def test_the_current_pair_always_matches(
    tmp_path: Path, prepare: Callable[[PurePosixPath], None], before: set[Pair | None], kept: set[Pair], how: str
) -> None:
    left = every_interruption(tmp_path, prepare, lambda place: install(place, NEW), how)
    seen = set()
    for place in left:
        pair = served(place)
        assert pair in before | {NEW}
        seen.add(pair)
        facts = pairs.current(place)
        assert (facts is None) == (pair is None)
        assert facts is None or facts.key_matches
        assert install(place, NEW) == name_of(NEW)
        assert served(place) == NEW
        assert set(os.listdir(place)) == {"current", *map(name_of, kept | {NEW})}
        assert install(place, NEW) == name_of(NEW)
        assert set(os.listdir(place)) == {"current", *map(name_of, kept | {NEW})}
    assert seen == before | {NEW}


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_the_way_back_can_be_interrupted(tmp_path: Path, how: str) -> None:
    for place in every_interruption(tmp_path, same, pairs.rollback, how):
        assert served(place) in (OLD, NEW)
        if served(place) == NEW:
            assert pairs.rollback(place) == name_of(OLD)
        assert served(place) == OLD
        assert pairs.repair(place) == ""
        install(place, NEW)
        assert set(os.listdir(place)) == {"current", name_of(OLD), name_of(NEW)}


def broken(place: PurePosixPath) -> None:
    same(place)
    Path(place / "current" / "tls.key").write_bytes(OLD.key)


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_a_repair_can_be_interrupted(tmp_path: Path, how: str) -> None:
    for place in every_interruption(tmp_path, broken, pairs.repair, how):
        pairs.repair(place)
        assert served(place) == OLD


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_a_broken_pair_is_replaced(tmp_path: Path, how: str) -> None:
    """Even one with the very serial that is installed again."""
    for place in every_interruption(tmp_path, broken, lambda place: install(place, NEW), how):
        install(place, NEW)
        assert served(place) == NEW
        assert temporaries(place) == []


# --- the CA --------------------------------------------------------------------------------------------------

ANOTHER = authority()
ENDS = NOW + timedelta(days=90)


def key(pair: Pair) -> str:
    return reading.facts(pair.certificate, None).subject_key


def create(place: PurePosixPath) -> None:
    authorities.create(place / "ca", lambda: CA, ME)


def prepared(place: PurePosixPath) -> None:
    create(place)
    authorities.prepare(place / "ca", ANOTHER, ME)


def switch(place: PurePosixPath) -> None:
    authorities.switch(place / "ca", ENDS, NOW, ME)


def switched(place: PurePosixPath) -> None:
    prepared(place)
    switch(place)


def modes(place: PurePosixPath) -> dict[str, int]:
    files_there = [path for path in Path(place / "ca").rglob("*") if not path.is_symlink()]
    return {path.name: path.stat().st_mode & 0o777 for path in files_there}


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_a_ca_is_never_half_and_never_replaced(tmp_path: Path, how: str) -> None:
    results = set()
    for place in every_interruption(tmp_path, nothing, create, how):
        known = authorities.read(place / "ca")
        there = {path.name for path in Path(place).glob("ca/a-*")}
        pair = authorities.create(place / "ca", lambda: ANOTHER, ME)
        results.add(pair)
        assert pair == authorities.load(place / "ca")
        if known or there:
            assert pair == CA
        assert modes(place) == {f"a-{key(pair)[:16]}": 0o700, "ca.key": 0o600, "ca.crt": 0o644}
        assert os.stat(place / "ca").st_mode & 0o777 == 0o700
    assert results == {CA, ANOTHER}


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_a_next_ca_is_whole_or_not_there(tmp_path: Path, how: str) -> None:
    def prepare(place: PurePosixPath) -> str:
        return authorities.prepare(place / "ca", ANOTHER, ME)

    seen = set()
    for place in every_interruption(tmp_path, create, prepare, how):
        known = authorities.read(place / "ca")
        assert known is not None
        assert (known.current.key, known.old) == (key(CA), ())
        seen.add(known.coming and known.coming.key)
        assert prepare(place) == key(ANOTHER)
        again = authorities.read(place / "ca")
        assert again is not None
        assert again.coming is not None
        assert (again.coming.key, again.current.key, again.old) == (key(ANOTHER), key(CA), ())
    assert seen == {None, key(ANOTHER)}


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_what_signs_changes_in_one_step(tmp_path: Path, how: str) -> None:
    """And both are published at every moment."""
    seen = set()
    for place in every_interruption(tmp_path, prepared, switch, how):
        known = authorities.read(place / "ca")
        assert known is not None
        assert {each.key for each in known.all} == {key(CA), key(ANOTHER)}
        signs = authorities.load(place / "ca")
        seen.add(signs)
        if signs == ANOTHER:
            assert authorities.cross(place / "ca") != b""
            assert authorities.recall(place / "ca").ends == {key(CA): ENDS}
            assert known.coming is None
        else:
            switch(place)
        assert authorities.load(place / "ca") == ANOTHER
    assert seen == {CA, ANOTHER}


@pytest.mark.parametrize("how", [KILL, FAIL])
def test_an_old_ca_goes(tmp_path: Path, how: str) -> None:
    def drop(place: PurePosixPath) -> None:
        authorities.drop(place / "ca", key(CA), ME)

    for place in every_interruption(tmp_path, switched, drop, how):
        assert authorities.load(place / "ca") == ANOTHER
        assert authorities.read(place / "ca") is not None
        drop(place)
        known = authorities.read(place / "ca")
        assert known is not None
        assert [each.key for each in known.all] == [key(ANOTHER)]
        assert authorities.recall(place / "ca") == Rollover()
        assert authorities.cross(place / "ca") == b""
