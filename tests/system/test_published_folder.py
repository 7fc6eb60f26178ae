"""The published folder as its readers have it: the page, who may read, a share whose server is away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from appliance import AGENT_TOML, PUBLISHED, Appliance
from box import stages

SHARE = "/srv/share"
HOSTILE = "<img src=x onerror=alert(1)>.toml"


@pytest.fixture(scope="module")
def quay(appliance: Appliance) -> Appliance:
    """One mirror that serves."""
    appliance.drop("quay")
    appliance.serving("quay")
    appliance.settle()
    return appliance


@pytest.fixture(autouse=True)
def as_before(quay: Appliance) -> Iterator[None]:
    """Every test ends with the settings and the one mirror of the others."""
    yield
    quay.settings()
    quay.sh("cd /etc/mirror-agent.d; find . -type f ! -name quay.toml -delete")
    quay.serving("quay")


def page(appliance: Appliance, folder: str = PUBLISHED) -> str:
    return appliance.box.exec("cat", f"{folder}/index.html", check=False).stdout


def stamps(appliance: Appliance) -> str:
    return appliance.sh(f"cd {PUBLISHED} && find . -printf '%P %i %T@ %m %g\\n' | sort")


def modes(appliance: Appliance) -> set[str]:
    """Of all that is there; not checked: a file may be replaced while they are read."""
    return set(appliance.sh(f"find {PUBLISHED} -mindepth 1 -printf '%y %m %g\\n'", check=False).splitlines())


# --- the page


def test_the_page_tells_how_each_mirror_is_and_has_every_file(quay: Appliance) -> None:
    row, said = quay.mirror("quay"), page(quay)
    for fact in ("1 mirror: 1 serving", "quay.mirror.lan", row["address"], row["not_after"][:10],
                 row["certificate"]["renewal"][:10]):  # fmt: skip
        assert fact in said
    published = quay.sh(f"cd {PUBLISHED} && find . -type f ! -name '.*' ! -name index.html -printf '%P\\n'").split()
    assert len(published) > 8
    for name in published:
        assert f'href="{name}" download' in said
    assert "index.html" not in quay.published(".mirror-agent.json")


def test_the_page_is_not_written_for_nothing_and_no_line_is(quay: Appliance) -> None:
    before, since = stamps(quay), quay.cursor()
    quay.configure_node()
    quay.pull("quay.io/demo/app:1.0")  # counters move
    quay.logged("quay")
    quay.settle()
    quay.box.exec("systemctl", "restart", "mirror-agent")
    quay.settle()
    assert quay.mirror("quay")["cache"]["requests"] > 0
    assert stamps(quay) == before
    assert not [line["MESSAGE"] for line in quay.journal(since=since) if "publish" in line["MESSAGE"]]


def test_the_page_tells_of_a_mirror_that_is_not_published_and_quotes_no_definition_as_markup(quay: Appliance) -> None:
    since = quay.cursor()
    quay.sh(f"touch '/etc/mirror-agent.d/{HOSTILE}'")
    quay.define("ghcr", 'source = "ghcr.io"\nremote = "https://ghcr.io:443"\n')  # not proved until a client pulls
    quay.wait(lambda: "1 unproved, 1 serving; 1 problem" in page(quay), 30, "the page")
    said = page(quay)
    assert "&lt;img src=x onerror=alert(1)&gt;.toml" in said
    assert "<img" not in said
    assert not [line for line in quay.journal(since=since) if line.get("ACTION") == "publish"]
    assert "ghcr.mirror.lan" in said
    assert "not published" in said


def test_a_page_that_was_removed_comes_back_and_one_of_somebody_else_stays(quay: Appliance) -> None:
    quay.sh(f"rm {PUBLISHED}/index.html")
    quay.settle()
    assert "1 serving" in page(quay)
    since = quay.cursor()
    quay.sh(f"echo 'our intranet' > {PUBLISHED}/index.html")
    quay.settle()
    quay.settle()
    assert page(quay) == "our intranet\n"
    said = [line["MESSAGE"] for line in quay.journal(since=since) if "index.html" in line["MESSAGE"]]
    assert len(said) == 1, "it is told once"
    assert quay.glance()["publication"] == "up to date"
    quay.sh(f"rm {PUBLISHED}/index.html")
    quay.settle()


# --- who may read


def test_mode_and_group_follow_the_settings(quay: Appliance) -> None:
    before = quay.published("hosts")
    assert modes(quay) == {"f 644 root", "d 755 root"}
    quay.settings(f'{AGENT_TOML}mode = "0640"\ngroup = "www-data"\n')
    quay.wait(lambda: modes(quay) == {"f 640 www-data", "d 750 www-data"}, 20, "mode and group")
    assert quay.published("hosts") == before
    quay.settle()
    settled = stamps(quay)
    quay.sh(f"chmod 666 {PUBLISHED}/hosts")
    quay.settle()
    assert modes(quay) == {"f 640 www-data", "d 750 www-data"}
    quay.settle()
    changed = {line.split()[0] for line in set(stamps(quay).splitlines()) - set(settled.splitlines())}
    assert {name for name in changed if not name[0].isdigit()} == {"hosts"}

    since = quay.cursor()
    quay.settings(f'{AGENT_TOML}group = "no-such-group"\n')
    line = quay.until_said("no-such-group", since)
    assert "publish.folder.group" in line["MESSAGE"]
    assert modes(quay) == {"f 640 www-data", "d 750 www-data"}, "it stays as it was"
    assert quay.mirror("quay")["state"] == "serving"
    [problem] = quay.glance()["problems"]
    assert problem["key"] == "publish.folder.group"

    quay.settings()
    quay.wait(lambda: {m for m in modes(quay) if m[0] == "f"} == {"f 644 root"}, 20, "the default")


# --- a share whose server is away


@pytest.fixture
def share(quay: Appliance) -> Iterator[str]:
    """A file system with a server of its own, mounted at SHARE; the unit of the server."""
    library = "usr/lib/x86_64-linux-gnu"
    with quay.box.machine.shared_folder() as (outside, inside):
        shutil.copy(stages.TOOLS.path / "usr/bin/bindfs", outside)
        for file in (stages.TOOLS.path / library).glob("libfuse*.so.*"):
            shutil.copy(file, outside)
        quay.sh(f"mkdir -p {SHARE} /srv/behind /opt/share && cp {inside}/* /opt/share")
    quay.box.exec(
        "systemd-run", "--unit=share", "--setenv=LD_LIBRARY_PATH=/opt/share", "/opt/share/bindfs", "-f",
        "/srv/behind", SHARE,
    )  # fmt: skip
    quay.wait(lambda: quay.box.exec("mountpoint", "-q", SHARE, check=False).returncode == 0, 10, "the share")
    yield "share.service"
    quay.sh(f"systemctl kill -s CONT share; umount -l {SHARE}; systemctl stop share", check=False)


def test_a_share_that_hangs_holds_up_no_mirror_and_is_published_to_when_it_answers(quay: Appliance, share: str) -> None:
    quay.settings(AGENT_TOML.replace(PUBLISHED, SHARE))
    quay.wait(lambda: "1 serving" in page(quay, SHARE), 30, "the page on the share")
    agent, mirrors, since = quay.property("mirror-agent", "MainPID"), quay.starts("quay"), quay.cursor()
    quay.box.exec("systemctl", "kill", "-s", "STOP", share)
    quay.drop("gcr")
    quay.wait(lambda: quay.mirror("gcr").get("state") == "serving", 60, "a new mirror while the share hangs")
    quay.until_said("does not answer", since)
    assert "cannot be reached" in quay.glance()["publication"]
    begun = time.monotonic()
    quay.box.exec("mirror-agent", "plan", check=False, timeout=60)
    assert time.monotonic() - begun < 30
    quay.box.exec("systemctl", "restart", "mirror-agent", timeout=60)  # also it can be stopped and started
    quay.wait(lambda: quay.property("mirror-agent", "MainPID") not in ("0", agent), 20, "another agent")
    assert quay.starts("quay") == mirrors

    quay.box.exec("systemctl", "kill", "-s", "CONT", share)
    quay.wait(lambda: "gcr.mirror.lan" in quay.sh("cat /srv/behind/hosts"), 90, "the publication")
    quay.wait(lambda: "2 serving" in page(quay, SHARE), 30, "the page")
    told = [line["MESSAGE"] for line in quay.journal(since=since) if "does not answer" in line["MESSAGE"]]
    assert len(told) <= 4, told
