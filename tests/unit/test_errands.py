"""host/errands.py: what waits for others does so in threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from mirror_agent.host.errands import Errands
from mirror_agent.model import Trouble

QUAY, GHCR = ("issue-certificate", "quay"), ("issue-certificate", "ghcr")
SECONDS = 60.0  # far more than any of it takes


class Somebody:
    """Whoever is waited for: answers when it is let."""

    def __init__(self) -> None:
        self.hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.asked = 0
        self._may = threading.Event()

    def answer(self) -> int:
        self.asked += 1
        assert self._may.wait(SECONDS)
        return self.asked

    def refuse(self) -> int:
        raise Trouble("https://acme.example/dir", "no", "tomorrow")

    def break_down(self) -> int:
        raise KeyError("challenges")

    def let(self) -> str:
        self._may.set()
        return self.hints.get(timeout=SECONDS)


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    found = Somebody()
    yield found
    found._may.set()


def test_nobody_waits_for_an_errand(somebody: Somebody) -> None:
    errands = Errands(somebody.hints.put)
    assert errands.take(QUAY, "a", somebody.answer) is None
    assert errands.take(QUAY, "a", somebody.answer) is None
    assert errands.under_way == errands.open == {QUAY}
    assert errands.take(GHCR, "a", lambda: 7) is None, "another one begins meanwhile"
    assert somebody.hints.get(timeout=SECONDS) == "issue-certificate ghcr"
    assert errands.under_way == {QUAY}
    assert errands.open == {QUAY, GHCR}
    assert errands.take(GHCR, "a", lambda: 8) == 7
    assert somebody.let() == "issue-certificate quay"
    assert errands.under_way == frozenset()
    assert errands.open == {QUAY}
    assert errands.take(QUAY, "a", somebody.answer) == somebody.asked == 1
    assert errands.open == frozenset()


def test_what_goes_wrong_is_told_to_who_asks(somebody: Somebody) -> None:
    errands = Errands(somebody.hints.put)
    for errand, said in ((somebody.refuse, r"dir: no \(tomorrow\)"), (somebody.break_down, "KeyError: 'challenges'")):
        assert errands.take(QUAY, "a", errand) is None
        somebody.hints.get(timeout=SECONDS)
        with pytest.raises(Trouble, match=said):
            errands.take(QUAY, "a", errand)
        assert errands.open == frozenset(), "the next one begins anew"


def test_what_was_begun_for_something_else_is_of_no_use(somebody: Somebody) -> None:
    errands = Errands(somebody.hints.put)
    assert errands.take(QUAY, "old host", lambda: 1) is None
    somebody.hints.get(timeout=SECONDS)
    assert errands.take(QUAY, "new host", lambda: 2) is None
    somebody.hints.get(timeout=SECONDS)
    assert errands.take(QUAY, "new host", lambda: 3) == 2


def test_one_without_an_end_is_told_and_never_begun_twice(somebody: Somebody) -> None:
    errands = Errands(somebody.hints.put, limit=0.0)
    assert errands.take(QUAY, "a", somebody.answer) is None
    for _ in range(2):
        assert errands.under_way == frozenset()
        assert errands.open == {QUAY}
        with pytest.raises(Trouble, match="no end of it"):
            errands.take(QUAY, "a", somebody.answer)
    somebody.let()
    assert errands.take(QUAY, "a", somebody.answer) == somebody.asked == 1
