"""What the bench makes of its measurements: ratios, goals, the page and the picture, from the last recorded run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import page
from bench.results import BARE, LIMIT, POD, RECIPE, Memory, Results, Sample

REPO = Path(__file__).resolve().parents[2]
RECORDED = Results.from_json((REPO / "bench/results.json").read_text())


def sample(what: str, who: str, number: int, seconds: float, internet: int = 0) -> Sample:
    return Sample(what, who, 6, number, seconds, 6000, internet, {"registry": seconds / 10})


def run(pod: float, rss: float = 50e6) -> Results:
    """Three rounds, each slower than the one before it for all: `pod` is how much slower a pod is than the rest."""
    samples = []
    for number, busy in enumerate((1.0, 2.0, 4.0)):
        samples += [
            sample("cold line", "line", number, 2 * busy),
            sample("cold lan", LIMIT, number, busy),
            sample("cold", POD, number, 3 * busy * pod, 1010),
            sample("warm", LIMIT, number, busy),
            sample("warm", POD, number, busy * pod),
        ]
    samples.append(sample("cold", RECIPE, 0, 21, 7000))
    return Results({}, tuple(samples), (Memory(POD, "idle", "registry", 1, rss, rss, rss),))


def test_a_record_is_read_as_it_was_written() -> None:
    assert Results.from_json(RECORDED.to_json()) == RECORDED


def test_ratios_are_taken_within_a_round_so_that_a_busy_machine_does_not_change_them() -> None:
    results = run(pod=1.1)
    assert results.of_least("cold", POD, 6) == pytest.approx(1.1)
    assert results.of_least("cold", RECIPE, 6) == pytest.approx(7)  # one round only: with the least of that round
    assert results.of_limit("warm", POD, 6) == pytest.approx(1 / 1.1)
    assert results.trips("cold", POD, 6) == pytest.approx(1.01)
    assert results.cpu("warm", POD, 6) == pytest.approx({"registry": 2 * 1.1 / 10 / 6000 * 1e9})


@pytest.mark.parametrize(
    ("pod", "rss", "reached"),
    [(1.0, 50e6, [True, True, True]), (1.1, 61e6, [True, False, False]), (1.2, 50e6, [False, False, True])],
)
def test_goals_are_judged_by_what_was_measured(pod: float, rss: float, reached: list[bool]) -> None:
    assert [goal[2] for goal in run(pod, rss).goals()] == reached


def test_the_page_is_that_of_the_recorded_run() -> None:
    assert (REPO / "docs/benchmark.md").read_text() == page.markdown(RECORDED), "make bench BENCH=--again"


def test_the_record_is_of_a_whole_run() -> None:
    assert RECORDED.clients("cold") == RECORDED.clients("warm") == [1, 6, 20]
    assert len(RECORDED.faults) == 3
    for who in (RECIPE, BARE, POD, LIMIT):
        assert RECORDED.processes(who, "idle")
        assert RECORDED.processes(who, "load")


def test_tables_are_aligned() -> None:
    for table in page.tables(RECORDED):
        lines = table.markdown().splitlines()[-len(table.rows) - 2 :]
        assert len({len(line) for line in lines}) == 1, table.title
        assert all(len(row) == len(table.columns) for row in table.rows), table.title


def test_the_readme_s_lines_to_compare_are_those_with_figures_of_the_bench() -> None:
    readme = (REPO / "README.md").read_text()
    named = [line.split(":")[1] for line in page.to_compare(RECORDED, readme).splitlines() if line[0] != " "]
    rows = [number for number, line in enumerate(readme.splitlines(), 1) if "[b]" in line and line[0] == "|"]
    assert list(map(int, named)) == rows
