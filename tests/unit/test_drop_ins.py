"""The watch on folders, on real ones: what changes is hinted at, also in a folder that comes, goes and comes back."""

import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror_agent.sources import Stop, Watched, drop_ins


class Ear:
    """Hears hints."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __call__(self, text: str) -> None:
        self.heard.put(text)

    def hears(self, path: Path) -> bool:
        try:
            while True:
                if self.heard.get(timeout=60) == str(path):
                    return True
        except queue.Empty:
            return False

    def quiet(self, seconds: float = 0.3) -> bool:
        try:
            self.heard.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def forget(self, seconds: float = 0.3) -> None:
        while not self.quiet(seconds):
            pass

    def forget_all(self) -> None:
        """What is late on a busy machine, too: before nothing more may be heard."""
        self.forget(2.0)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def folder(tmp_path: Path, ear: Ear) -> Iterator[Path]:
    """A folder below one that is there; it is itself not there yet."""
    before = threading.active_count()
    folder = tmp_path / "mirror-agent.d"
    stop = drop_ins.start(Watched((folder,), _nothing, _nothing, _nothing, int), ear)
    yield folder
    stop()
    assert threading.active_count() == before


def _nothing(_: object) -> Stop:
    return lambda: None


def test_a_file_that_is_written_renamed_and_deleted(folder: Path, ear: Ear) -> None:
    folder.mkdir()
    assert ear.hears(folder)
    (folder / "new").write_text("x")
    assert ear.hears(folder / "new")
    (folder / "new").rename(folder / "quay.toml")
    assert ear.hears(folder / "quay.toml")
    ear.forget()
    (folder / "quay.toml").chmod(0o600)
    assert ear.hears(folder / "quay.toml")
    ear.forget()
    (folder / "quay.toml").unlink()
    assert ear.hears(folder / "quay.toml")


def test_reading_is_not_heard(folder: Path, ear: Ear) -> None:
    folder.mkdir()
    (folder / "quay.toml").write_text("x")
    ear.forget_all()
    (folder / "quay.toml").read_text()
    list(folder.iterdir())
    assert ear.quiet()


def test_strangers_beside_the_folder_are_not_heard(folder: Path, ear: Ear) -> None:
    (folder.parent / "other").write_text("x")
    assert ear.quiet()


def test_a_folder_that_is_deleted_and_made_again(folder: Path, ear: Ear) -> None:
    for _ in range(3):
        folder.mkdir()
        assert ear.hears(folder)
        (folder / "quay.toml").write_text("x")
        assert ear.hears(folder / "quay.toml")
        shutil.rmtree(folder)
        ear.forget()


def test_a_folder_that_is_exchanged_by_renames(folder: Path, ear: Ear) -> None:
    folder.mkdir()
    other = folder.with_name("other")
    other.mkdir()
    ear.forget()
    folder.rename(folder.with_name("old"))
    other.rename(folder)
    assert ear.hears(folder)
    ear.forget()
    (folder / "quay.toml").write_text("x")
    assert ear.hears(folder / "quay.toml")
    ear.forget_all()
    (folder.with_name("old") / "quay.toml").write_text("x")
    assert ear.quiet()


def test_a_folder_whose_parents_go_and_come_back(tmp_path: Path, ear: Ear) -> None:
    folder = tmp_path / "etc" / "site" / "mirror-agent.d"
    stop = drop_ins.start(Watched((folder,), _nothing, _nothing, _nothing, int), ear)
    try:
        for _ in range(2):
            folder.mkdir(parents=True)
            assert ear.hears(folder)
            (folder / "quay.toml").write_text("x")
            assert ear.hears(folder / "quay.toml")
            shutil.rmtree(tmp_path / "etc")
            ear.forget()
    finally:
        stop()


def test_a_folder_that_is_a_link(tmp_path: Path, ear: Ear) -> None:
    """What it leads to may be exchanged, and the link itself."""
    link, place, other = tmp_path / "etc" / "mirror-agent.d", tmp_path / "host" / "mirror-agent.d", tmp_path / "other"
    for made in (link.parent, place, other):
        made.mkdir(parents=True)
    link.symlink_to(place)
    stop = drop_ins.start(Watched((link,), _nothing, _nothing, _nothing, int), ear)
    try:
        for _ in range(2):
            (place / "quay.toml").write_text("x")
            assert ear.hears(place / "quay.toml")
            place.rename(place.with_name("old"))
            ear.forget()
            place.mkdir()
            assert ear.hears(place)
            ear.forget()
            shutil.rmtree(place.with_name("old"))
        link.with_name("new").symlink_to(other)
        link.with_name("new").rename(link)
        assert ear.hears(link)
        ear.forget()
        (other / "quay.toml").write_text("x")
        assert ear.hears(other / "quay.toml")
        ear.forget_all()
        (place / "quay.toml").write_text("x")
        assert ear.quiet()
    finally:
        stop()
