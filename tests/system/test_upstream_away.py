"""An upstream that goes away and comes back: told once each, with why, what is served on, and how long it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance import Appliance, Line
from upstream_faults import FAULTS, imposter, refused, tell

APP, REACHES, METRICS = "demo/app", "/run/mirror-agent/upstreams.json", "/run/mirror-agent/metrics.prom"
AWAY, BACK = "9b4f2e71d06c4a8e8f35a7c2b1d60e94", "c70d58a3e1944fb2a6b8f10e5d2397c4"  # MESSAGE_ID


class Quay:
    """A mirror whose tags are old after a second, and what the agent says of its upstream."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        self.box = appliance.box
        self.since = appliance.cursor()

    def ask(self) -> None:
        """A client wants a tag whose time is over, and gets it; the agent looks."""
        self.box.exec("sleep", "1.1")
        self.appliance.curl("quay", f"/v2/{APP}/manifests/1.0", "-o", "/dev/null")
        self.appliance.settle()

    def told(self, message: str) -> list[Line]:
        return self.appliance.journal(f"MESSAGE_ID={message}", since=self.since)

    def until_away(self) -> Line:
        def away() -> bool:
            self.ask()
            return bool(self.told(AWAY))

        self.appliance.wait(away, 60, "that the upstream is away")
        (line,) = self.told(AWAY)
        return line

    def until_back(self) -> Line:
        """A reload tries at once; without one it is a minute later."""

        def back() -> bool:
            self.appliance.settle()
            return bool(self.told(BACK))

        self.appliance.wait(back, 60, "that the upstream is back")
        (line,) = self.told(BACK)
        return line

    def reach(self) -> dict[str, str]:
        return dict(self.appliance.mirror("quay")["reach"])

    def settled(self) -> dict[str, str]:
        """After another try: a reload is one."""
        self.appliance.settle()
        return self.reach()

    def metric(self) -> str:
        """As the file has it."""
        return self.appliance.sh(f"grep '^mirror_agent_upstream_away' {METRICS}").strip()


@pytest.fixture(scope="module")
def mirror(appliance: Appliance) -> Appliance:
    appliance.define("quay", 'source = "quay.io"\n[cache]\nfresh = "1s"\n')
    appliance.serving("quay")
    appliance.configure_node()
    appliance.pull(f"quay.io/{APP}:1.0")
    return appliance


@pytest.fixture
def quay(mirror: Appliance) -> Iterator[Quay]:
    """The upstream works, and nothing was found out of it yet."""
    mirror.sh(f"systemctl stop mirror-agent; rm -f {REACHES}; systemctl start mirror-agent")
    mirror.settle()
    mirror.serving("quay")
    found = Quay(mirror)
    yield found
    assert found.reach()["since"] == ""


def test_it_is_told_once_and_once_when_it_is_back(quay: Quay) -> None:
    with refused(quay.box):
        line = quay.until_away()
        assert (line["MIRROR"], line["UPSTREAM"], line["PRIORITY"]) == ("quay", "quay.io", "4")
        said = line["MESSAGE"]
        assert said.startswith("quay: quay.io cannot be reached since ")
        assert "UTC (quay.io: no answer: Connection refused): " in said
        assert "served on, tags as they were; nothing new can be fetched" in said
        shown = quay.box.exec("mirror-agent", "status")
        assert "quay: quay.io cannot be reached since " in shown.stdout
        assert shown.stdout.endswith("1 mirror: 1 serving; 1 upstream cannot be reached\n")
        assert "1 upstream cannot" in quay.appliance.property("mirror-agent", "StatusText")
        assert quay.metric().endswith(" 1.0")
        explained = quay.appliance.sh(f"journalctl -b -x -u mirror-agent MESSAGE_ID={AWAY}")
        assert "Subject: quay.io cannot be reached" in explained
        # nothing more of it, whatever clients ask for, and whoever looks
        since = quay.reach()["since"]
        quay.box.node("podman", "rmi", "--all", "--force")
        quay.appliance.pull(f"quay.io/{APP}:1.0")
        quay.box.exec("systemctl", "restart", "mirror-agent")
        for _ in range(3):
            quay.ask()
        assert len(quay.told(AWAY)) == 1
        assert quay.told(BACK) == []
        assert quay.reach()["since"] == since
    line = quay.until_back()
    assert "quay: quay.io can be reached again: it was away for " in line["MESSAGE"]
    assert (line["UPSTREAM"], line["PRIORITY"]) == ("quay.io", "6")
    quay.appliance.wait(lambda: quay.metric().endswith(" 0.0"), 10, "the metrics of an upstream that is back")
    assert quay.appliance.glance()["line"] == "1 mirror: 1 serving"


def test_one_that_flaps_is_told_of_at_most_each_five_minutes(quay: Quay) -> None:
    with refused(quay.box):
        quay.until_away()
    quay.until_back()
    tried = quay.reach()["tried"]
    for _ in range(2):
        with refused(quay.box):
            quay.ask()
            quay.ask()
    assert (len(quay.told(AWAY)), quay.reach()["tried"]) == (1, tried)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("no such name", "quay.io: no answer: "),
        ("black hole", "quay.io: no answer"),  # not of the names' server either
        ("another's certificate", "quay.io: its certificate is refused"),
    ],
)
def test_why_it_cannot_be_reached(quay: Quay, fault: str, why: str) -> None:
    with FAULTS[fault](quay.box):
        assert "quay.io cannot be reached since" in quay.until_away()["MESSAGE"]
        quay.appliance.wait(lambda: quay.settled()["error"].startswith(why), 30, f"the reason: {why}")
    quay.until_back()


@pytest.mark.parametrize("fault", ["404", "429", "500"])
def test_one_that_answers_is_not_away_whatever_it_says(quay: Quay, fault: str) -> None:
    """404 is a tag that was deleted there.  It is tried once, and then not for five minutes."""
    with imposter(quay.box, "truth"):
        quay.ask()
        tell(quay.box, fault)

        def tried() -> bool:
            quay.ask()
            return bool(quay.reach()["tried"])

        quay.appliance.wait(tried, 60, "a try")
        last = quay.reach()["tried"]
        for _ in range(3):
            quay.ask()
        assert quay.reach() == {"tried": last, "since": "", "error": ""}
        assert quay.told(AWAY) == []


def test_while_all_is_well_nobody_tries(quay: Quay) -> None:
    new = quay.box.push("quay.io", f"{APP}:well", layer_sizes=(1000,))

    def undisturbed() -> bool:
        """The upstream was asked, and answered each time within the 0.8 s that a client waits."""
        before, known = quay.appliance.mirror("quay")["cache"], quay.reach()
        for _ in range(3):
            quay.ask()
        quay.appliance.curl("quay", f"/v2/{APP}/manifests/{new['digest']}", "-o", "/dev/null")
        quay.appliance.settle()
        after = quay.appliance.mirror("quay")["cache"]
        if after["stale"] != before["stale"]:
            return False
        assert after["misses"] >= before["misses"] + 3
        assert quay.reach() == known
        return True

    quay.appliance.wait(undisturbed, 60, "an upstream that is quick")
