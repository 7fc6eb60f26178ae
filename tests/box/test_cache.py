"""The cache: made once, whole or not at all, and removed only when nobody uses it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from . import cache
from .cache import Stage
from .report import BoxError
from .sandbox import workdir


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE", tmp_path)


def writing(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "file").write_text(text)

    return make


def built() -> set[str]:
    return {path.name for path in cache.CACHE.iterdir() if path.name != "build.lock"}


def test_a_stage_is_made_once() -> None:
    made: list[Path] = []
    stage = Stage("one", 1, made.append)
    cache.build([stage])
    cache.build([stage])
    assert len(made) == 1
    assert built() == {stage.path.name}


def test_what_it_is_made_of_is_in_its_name() -> None:
    base, other = Stage("base", "a", writing("")), Stage("base", "b", writing(""))
    assert base.path != other.path
    assert Stage("top", 1, writing(""), needs=(base,)).path != Stage("top", 1, writing(""), needs=(other,)).path


def test_a_build_that_fails_leaves_nothing_that_looks_finished() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    stage = Stage("one", 1, fail)
    with pytest.raises(KeyboardInterrupt):
        cache.build([stage])
    assert not stage.path.exists()
    whole = Stage("one", 1, writing("whole"))
    cache.build([whole])
    assert built() == {whole.path.name}
    assert [file.name for file in whole.path.iterdir()] == ["file"]


def test_what_a_box_was_made_of_stays_until_the_box_goes() -> None:
    first, *others = (Stage("one", number, writing("")) for number in range(4))
    cache.build([first])
    state = cache.CACHE / "boxes" / "main"
    state.mkdir(parents=True)
    (state / "ROOTFS").symlink_to(first.path)
    for stage in others:
        cache.build([stage])
    assert first.path.exists()
    (state / "ROOTFS").unlink()
    cache.build([Stage("one", "new", writing(""))])
    assert not first.path.exists()


def test_old_generations_go_but_those_in_use_stay() -> None:
    first, *others = (Stage("one", number, writing("")) for number in range(4))
    cache.build([first])
    held = cache.hold(first.path)
    for age, stage in enumerate(others):
        cache.build([stage])
        os.utime(stage.path, (age, age))
    assert first.path.exists()
    assert others[-1].path.exists()
    os.close(held)
    cache.build([Stage("one", "new", writing(""))])
    assert len(built()) == cache.GENERATIONS


@pytest.mark.parametrize("fetches", [True, False], ids=["fetched", "made here"])
def test_what_could_not_be_fetched_is_fetched_once_more(monkeypatch: pytest.MonkeyPatch, fetches: bool) -> None:
    monkeypatch.setattr(cache, "PAUSE_SECONDS", 0)
    tries: list[Path] = []

    def make(folder: Path) -> None:
        tries.append(folder)
        (folder / str(len(tries))).touch()
        workdir(folder)  # as overlayfs wants it, beside it
        if len(tries) == 1:
            raise BoxError("apt-get failed with exit code 100", "Connection timed out")

    stage = Stage("one", 1, make, fetches=fetches)
    with nullcontext() if fetches else pytest.raises(BoxError):
        cache.build([stage])
    assert stage.path.exists() == fetches
    assert len(tries) == 1 + fetches
    if fetches:
        assert sorted(file.name for file in stage.path.iterdir()) == ["2"]
