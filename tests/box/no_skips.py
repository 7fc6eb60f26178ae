"""pytest plugin: a skipped test is no passed test. `pytest -p box.no_skips` ends with an error when one was skipped."""

from __future__ import annotations

import pytest
from _pytest.terminal import TerminalReporter


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a good end into a bad one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter
        and reporter.stats.get("skipped")
        and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say why."""
    if skipped := terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(f"FAILED: {len(skipped)} skipped, and here every test has to run", red=True)
