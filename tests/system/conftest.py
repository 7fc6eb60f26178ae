"""One box for each worker; each module starts with a pristine one (3 s), so that no module depends on another."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

import contained
from appliance import FIVE, PUBLISHED, Appliance
from box import Box

# what takes longest, first: or a parallel run would end with one of them alone
LONGEST = ("faults", "certificate_life", "data_path", "changes", "command_line", "certificate_issuers", "crash")
# names of links and of network namespaces in a box; the machine may get others meanwhile, of what else runs on it
OF_A_BOX = {"lan", "lan0", "wan", "gw", "inet", "node", "host", "host-lan0", "router", "router-lan0", "node-lan0"}
TAIL = 80  # lines of the agent's journal that a failed test shows


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agent", choices=("package", "container"), default="package", help="how it is installed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "package(why): is about the package, not about the agent")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first. Tests of the package, and with the container all that need no agent, are left out."""
    items.sort(key=_place)
    if config.getoption("--agent") == "package":
        return
    needed = [item for item in items if isinstance(item, pytest.Function) and "bare" in item.fixturenames]
    out = [item for item in items if item not in needed or item.get_closest_marker("package")]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def session_box() -> Iterator[Box]:
    """The box, not booted. At the end nothing of it may be left on this machine."""
    before = _namespaces()
    with Box().lent() as box:
        yield box
    assert not box.running
    assert not box.machine.state.exists()
    assert str(box.machine.state) not in Path("/proc/mounts").read_text(), "mounts are left"
    assert box.machine.cgroups() == [], "processes are left"
    assert not (_namespaces() - before) & OF_A_BOX


@pytest.fixture(scope="session")
def boot(session_box: Box, request: pytest.FixtureRequest) -> Callable[[], Appliance]:
    """Boots a pristine host with the project installed and configured, as often as it is called."""

    def anew() -> Appliance:
        if request.config.getoption("--agent") == "container":
            appliance: Appliance = contained.install(session_box)
        else:
            session_box.up()
            appliance = Appliance(session_box)
        appliance.sh(f"mkdir -p {PUBLISHED}")
        appliance.settings()
        return appliance

    return anew


@pytest.fixture(scope="module")
def bare(boot: Callable[[], Appliance]) -> Appliance:
    """A pristine host with the project installed and configured; the agent does not run yet."""
    return boot()


@pytest.fixture(scope="module")
def appliance(bare: Appliance) -> Appliance:
    """A pristine host on which the agent runs; no mirrors yet."""
    bare.enable()
    return bare


@pytest.fixture(scope="module")
def five(appliance: Appliance) -> Appliance:
    """Five mirrors that serve, and a node that pulls only through them."""
    appliance.drop(*FIVE)
    appliance.serving(*FIVE)
    appliance.configure_node()
    return appliance


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the agent said last."""
    report = yield
    funcargs = getattr(item, "funcargs", {})
    found = next((value for value in funcargs.values() if isinstance(value, Appliance)), None)
    if report.failed and found and found.box.running:
        said = found.box.exec("journalctl", "-b", "-t", "mirror-agent", "-o", "short-precise", f"-n{TAIL}", check=False)
        report.sections.append((f"the agent's journal in box {found.box.name}", said.stdout))
    return report


def _place(item: pytest.Item) -> int:
    module = item.path.stem.removeprefix("test_")
    return LONGEST.index(module) if module in LONGEST else len(LONGEST)


def _namespaces() -> set[str]:
    """This machine's own links and named network namespaces: none of the box's may ever be among them."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    named = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0].partition("@")[0] for line in (links + named).splitlines()}
