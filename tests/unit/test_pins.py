"""The file of the images that are kept: how often it is written, and what a kill leaves of it."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from time import monotonic, sleep

import pytest

from mirror_agent.host import pins, state
from mirror_agent.model import ImageName, Paths, Trouble

AGENT = Path(__file__).parents[2] / "agent"
MANY = 5000
AGES_S = 3600.0  # a pause that no test outlives


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=PurePosixPath(tmp_path))


def image(number: int) -> ImageName:
    return f"team/app-{number}", f"sha256:{number:064x}"


def kept(paths: Paths) -> set[ImageName]:
    sets = state.load_keeps(paths.keeps).values()
    return {each for mirrors in sets for images in mirrors.values() for each in images}


@contextmanager
def writes() -> Iterator[list[str]]:
    """Each time that the file takes its place."""
    seen: list[str] = []
    counting = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "os.rename" and counting and args[1] == "keeps.json":
            seen.append(str(args[1]))

    sys.addaudithook(hook)
    yield seen
    counting = False


def wait(until: Callable[[], bool]) -> None:
    deadline = monotonic() + 60
    while not until():
        assert monotonic() < deadline
        sleep(0.01)


def test_the_first_is_written_at_once_and_the_rest_together(paths: Paths) -> None:
    with writes() as seen:
        with pins.Pinning(paths, "cluster", AGES_S) as pin:
            pin("quay", image(0))
            wait(lambda: kept(paths) == {image(0)})
            for number in range(MANY):
                pin("quay", image(number))
        assert len(seen) == 2
    assert kept(paths) == {image(number) for number in range(MANY)}


def test_while_another_changes_the_sets_nothing_is_lost_and_all_waits_for_one_write(paths: Paths) -> None:
    with writes() as seen:
        with open(paths.state / "keeps.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pins.Pinning(paths, "cluster", 0.0) as pin:
                for number in range(MANY):
                    pin("quay", image(number))
                state.save_keeps(paths.keeps, {"other": {"gcr": [image(7)]}}, os.geteuid())
                lock.close()
        assert len(seen) == 2  # that of this test is counted too
    found = state.load_keeps(paths.keeps)
    assert found == {"other": {"gcr": {image(7)}}, "cluster": {"quay": {image(number) for number in range(MANY)}}}


def test_without_an_image_there_is_no_set(paths: Paths) -> None:
    with pins.Pinning(paths, "cluster"):
        pass
    assert state.load_keeps(paths.keeps) == {}


def test_damaged_sets_are_told_before_anything_is_fetched(paths: Paths) -> None:
    Path(paths.keeps).write_text("{")
    with pytest.raises(Trouble, match="damaged"), pins.Pinning(paths, "cluster"):
        pytest.fail("began")


def test_what_cannot_be_written_is_told_in_the_end(paths: Paths) -> None:
    pinning = pins.Pinning(paths, "cluster", AGES_S)
    pin = pinning.__enter__()
    Path(paths.keeps).write_text("{")
    pin("quay", image(1))
    with pytest.raises(Trouble, match="damaged"):
        pinning.__exit__(None, None, None)


KILLED = """
import os, sys
from pathlib import PurePosixPath
from mirror_agent.host import pins
from mirror_agent.model import Paths

left = int(sys.argv[2])
def hook(event, args):
    global left
    if event in ("open", "os.rename") and ("keeps" in str(args) or ".tmp" in str(args)):
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(hook)
with pins.Pinning(Paths(state=PurePosixPath(sys.argv[1])), "cluster", 0.0) as pin:
    for number in range(3):
        pin("quay", (f"team/app-{number}", f"sha256:{number:064x}"))
"""


def test_killed_at_any_step_it_leaves_whole_sets_and_the_next_run_completes_them(paths: Paths) -> None:
    everything = {image(number) for number in range(3)}
    for step in range(100):
        command = [sys.executable, "-c", KILLED, str(paths.state), str(step)]
        code = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(AGENT)}, check=False).returncode
        assert kept(paths) <= everything
        if code == 0:
            break
        assert code == 9
    assert step > 5
    assert kept(paths) == everything
