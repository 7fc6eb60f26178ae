"""The watch on free space: it hints at what shrinks, the more often the less there is."""

import queue
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror_agent.host.disk import free
from mirror_agent.sources import Watched, disk


def _nothing(_: Callable[[str], None]) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("course", "hints"),
    [
        ([1000, 950, 905, 901, 900], []),
        ([1000, 899], ["899 bytes free"]),
        ([1000, 899, 850, 800], ["899 bytes free", "800 bytes free"]),
        ([1000, 2000, 1700], ["1700 bytes free"]),
        ([0, 0, 500, 500], []),
        ([500, 0, 0], ["0 bytes free"]),
    ],
)
def test_each_tenth_that_is_gone_is_a_hint(
    monkeypatch: pytest.MonkeyPatch, course: list[int], hints: list[str]
) -> None:
    monkeypatch.setattr(disk, "POLL_SECONDS", 0.01)
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    over: queue.SimpleQueue[None] = queue.SimpleQueue()
    left = iter(course)

    def next_free() -> int:
        space = next(left, None)
        if space is None:
            over.put(None)
        return course[-1] if space is None else space

    stop = disk.start(Watched((), _nothing, _nothing, _nothing, next_free), heard.put)
    for _ in range(2):  # the last value was seen, and seen again
        over.get(timeout=60)
    stop()
    assert [heard.get() for _ in range(heard.qsize())] == hints


def test_what_cannot_be_asked_is_nothing(tmp_path: Path) -> None:
    assert free(tmp_path) > 0
    assert free(tmp_path / "gone") == 0
