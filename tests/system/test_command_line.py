"""The command line and the journal on a real host: init, logs, publish, completion, and what a person must act on."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from appliance import AGENT_TOML, FIVE, PUBLISHED, SETTINGS, Appliance, in_order
from schema import conforms

APP = "demo/app"


def explained(appliance: Appliance, since: str, *matches: str) -> str:
    """Lines since then with what `journalctl -x` adds to them."""
    return appliance.box.exec("journalctl", "-b", "-x", f"--after-cursor={since}", *matches).stdout


def test_init_finds_the_lan_and_writes_settings_that_work(appliance: Appliance) -> None:
    appliance.sh(f"cp /usr/share/doc/mirror-agent/agent.toml {SETTINGS} || rm {SETTINGS}")  # as before it was edited
    said = appliance.box.exec("mirror-agent", "init", "--yes", "--publish", "/srv/elsewhere").stdout
    written = appliance.sh(f"cat {SETTINGS}")
    for line in ('parent = "lan0"', 'subnet = "10.0.0.0/24"', 'gateway = "10.0.0.1"', 'path = "/srv/elsewhere"'):
        assert line in written
    assert "mirror-agent status" in said
    again = appliance.box.exec("mirror-agent", "init", "--yes", check=False)
    assert (again.returncode, "there are settings already" in again.stderr) == (1, True)
    appliance.define("quay", 'source = "quay.io"\n')
    appliance.serving("quay")
    assert "quay.mirror.lan" in appliance.sh("cat /srv/elsewhere/hosts")
    appliance.remove("quay")
    appliance.settings(AGENT_TOML)
    appliance.wait(lambda: appliance.glance()["folder"] == PUBLISHED, 20, "the settings of the other tests")


def test_one_upstream_s_story_has_what_its_pod_says(five: Appliance) -> None:
    five.pull(f"quay.io/{APP}:1.0")
    five.logged("quay")
    lines = five.box.exec("journalctl", "-b", "-o", "json", "UPSTREAM=quay.io").stdout.splitlines()
    story = [json.loads(line) for line in lines]
    assert {line["UPSTREAM"] for line in story} == {"quay.io"}
    assert {line["MIRROR"] for line in story} == {"quay"}
    agent = [line for line in story if line["SYSLOG_IDENTIFIER"] == "mirror-agent"]
    assert {"read", "claim-address", "start-units", "prove-mirror"} <= {line["ACTION"] for line in agent}
    edge = [line for line in story if line.get("CONTAINER_NAME") == "mirror-quay-edge"]
    assert any(f"/v2/{APP}/manifests/" in str(line["MESSAGE"]) for line in edge)
    registry = [line for line in story if line.get("CONTAINER_NAME") == "mirror-quay-registry"]
    assert registry
    said = five.box.exec("journalctl", "-b", "-u", "mirror-agent", "UPSTREAM=quay.io", "-o", "json").stdout.splitlines()
    assert len(said) == len(agent)


def test_one_upstream_s_story_has_its_mistakes_and_its_end(five: Appliance) -> None:
    """From a file that is wrong at first, over a change that is refused, to the removal: all by the upstream's name."""
    since, story = five.cursor(), ("UPSTREAM=story.example:5000",)
    source = 'source = "story.example:5000"\nremote = "https://quay.io"\n'
    five.define("story", f"{source}colour = 1\n")
    five.until_said("colour: unknown key", since)
    five.define("story", source)
    five.serving(*FIVE, "story")
    five.define("story", f'{source}address = "10.0.9.9"\n')
    five.until_said("10.0.9.9 is outside", since)
    five.remove("story")
    five.serving(*FIVE)
    five.settle()
    lines = five.journal(*story, since=since)
    assert {line["MIRROR"] for line in lines} == {"story"}
    problem = {"ACTION": "check", "PRIORITY": "3", "MESSAGE_ID": "a4d7e6108f2b4c93a15c7b0e3f86d29a"}
    in_order(
        lines,
        {**problem, "MESSAGE": "colour: unknown key"},
        {"ACTION": "check", "MESSAGE": "solved: "},
        {"ACTION": "read", "MESSAGE": "new definition story.toml"},
        {"ACTION": "claim-address"},
        {"ACTION": "start-units"},
        {"ACTION": "prove-mirror", "MESSAGE": "serving: pulled"},
        {**problem, "MESSAGE": "10.0.9.9 is outside"},
        {"ACTION": "check", "MESSAGE": "solved: "},
        {"ACTION": "read", "MESSAGE": "removed definition story.toml"},
        {"ACTION": "stop-units"},
        {"ACTION": "delete-file"},
    )
    assert [line["MESSAGE"] for line in five.journal("MIRROR=story", since=since) if "UPSTREAM" not in line] == []
    everything = five.box.exec("journalctl", "-b", "-o", "json", f"--after-cursor={since}", *story).stdout.splitlines()
    said = {json.loads(line).get("CONTAINER_NAME") for line in everything}
    assert {"mirror-story-edge", "mirror-story-registry"} <= said
    five.box.exec("mirror-agent", "purge", "story")
    (gone,) = five.journal("ACTION=purge", since=since)
    assert (gone["MIRROR"], gone["UPSTREAM"]) == ("story", "story.example:5000")
    assert "are gone" in gone["MESSAGE"]


def test_logs_is_the_story_of_one_mirror_with_systemd_s_part(five: Appliance) -> None:
    said = five.box.exec("mirror-agent", "logs", "quay", "--lines", "all", "--since", "-1h").stdout
    for part in (
        "new definition quay.toml",
        "Started mirror-quay-edge.service",
        "mirror-quay-registry",
        "serving: pulled",
    ):
        assert part in said, part
    assert "ghcr" not in said.replace("ghcr.io/v2", "")
    assert " podman[" not in said  # its own event log
    last = five.box.exec("mirror-agent", "logs", "quay", "--lines", "1", "--json").stdout
    assert json.loads(last)["__CURSOR"]
    unknown = five.box.exec("mirror-agent", "logs", "nobody", check=False)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "there is no such mirror" in unknown.stderr
    assert five.box.exec("mirror-agent", "logs", "../etc", check=False).returncode == 2


def test_a_name_that_is_no_mirror_s_is_refused_alike(five: Appliance) -> None:
    said = {five.box.exec("mirror-agent", word, "nobody", check=False).stderr for word in ("renew", "cache")}
    assert said == {"nobody: there is no such mirror (mirror-agent status shows them)\n"}


def test_what_a_command_does_is_in_the_story(five: Appliance) -> None:
    since = five.cursor()
    five.box.exec("mirror-agent", "renew", "quay")
    line = five.until_said("has a certificate until", since)
    assert (line["MIRROR"], line["UPSTREAM"], line["ACTION"]) == ("quay", "quay.io", "issue-certificate")
    assert line["MESSAGE"].endswith("(asked for)")
    unit = five.box.exec("journalctl", "-b", "-u", "mirror-agent", "-o", "json", f"--after-cursor={since}").stdout
    assert line["__CURSOR"] in [json.loads(each)["__CURSOR"] for each in unit.splitlines()]
    assert "(asked for)" in five.box.exec("systemctl", "status", "-n100", "--full", "mirror-agent").stdout
    assert "Subject: Mirror quay has a new certificate" in explained(five, since, "MIRROR=quay")


@pytest.mark.parametrize("columns", [80, 60])
def test_what_a_person_sees_fits_a_narrow_terminal(five: Appliance, columns: int) -> None:
    for words in ("status", "cache", "ca show", "check", "plan"):
        command = f"stty columns {columns}; mirror-agent {words}"
        said = five.box.exec("script", "--quiet", "--return", "--command", command, "/dev/null").stdout
        lines = re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()
        assert [line for line in lines if len(line) > columns and "SHA-256" not in line] == [], words
        assert not words.startswith("s") or sum(line.startswith("registry-k8s ") for line in lines) == 3


def test_status_waits_for_an_agent_that_starts_and_says_when_there_is_none(five: Appliance) -> None:
    five.box.exec("systemctl", "stop", "mirror-agent")
    stopped = five.box.exec("mirror-agent", "status", check=False)
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert "does not run; mirrors that run go on (systemctl start mirror-agent)" in stopped.stderr
    said = five.sh("systemctl start --no-block mirror-agent && mirror-agent status", check=False)
    assert "quay.mirror.lan" in said
    five.serving(*FIVE)


@pytest.mark.parametrize(
    ("name", "document"),
    [("trust", "ca-bundle.pem"), ("hosts", "hosts"), ("install_config", "install-config.fragment.yaml"),
     ("registries_conf", "registries.conf.d/50-mirror-agent.conf")],
)  # fmt: skip
def test_publish_prints_what_is_published(five: Appliance, name: str, document: str) -> None:
    done = five.box.exec("mirror-agent", "publish", "--format", name)
    assert (done.stdout, done.stderr) == (five.published(document), "")


def test_publish_prints_both_mirror_sets_as_one_stream(five: Appliance) -> None:
    said = five.box.exec("mirror-agent", "publish", "--format", "openshift").stdout
    assert said.split("---\n") == [five.published(f"image-{kind}-mirror-set.yaml") for kind in ("digest", "tag")]
    assert five.box.exec("mirror-agent", "publish", "--format", "nonsense", check=False).returncode == 2


def test_json_is_as_documented(five: Appliance) -> None:
    """What check and preview print needs no host: tests/unit."""

    def said(*words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(five.box.exec("mirror-agent", *words, "--json", check=False).stdout)
        return answer

    more = "/etc/mirror-agent/more"
    five.sh(f"mkdir {more} && cp {five.examples}/quay.toml {more}/")
    five.pull(f"quay.io/{APP}:1.0")
    conforms("warm", said("warm", f"quay.io/{APP}:1.0"))
    conforms("cache", said("cache", "quay"), whole=False)  # nothing was left by mirrors that are gone
    conforms("ca show", said("ca", "show"))
    conforms("status", said("status"), whole=False)  # neither problems nor failures
    conforms("plan", said("plan", "--definitions", more))
    conforms("plan", said("plan"), whole=False)
    five.sh(f"rm -r {more}")


def test_completion_offers_commands_options_and_mirrors(five: Appliance) -> None:
    script = r"""
. "$1/bash-completion/completions/mirror-agent"
function=$(complete -p mirror-agent | sed 's/.*-F \([^ ]*\).*/\1/')
complete_words() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    $function mirror-agent
    echo "${COMPREPLY[@]}"
}
complete_words mirror-agent re
complete_words mirror-agent logs q
complete_words mirror-agent publish --format openshi
complete_words mirror-agent init --ran
"""
    said = [line.split() for line in five.box.exec("bash", "-c", script, "bash", five.share).stdout.splitlines()]
    assert [set(words) for words in said] == [{"render", "renew", "release"}, {"quay"}, {"openshift"}, {"--range"}]


@pytest.mark.package("only root reaches the container; its command says so (test_container.py)")
def test_without_root_it_says_so(five: Appliance) -> None:
    for words in (["plan"], ["publish", "--format", "hosts"], ["purge", "quay"], ["renew"]):
        done = five.box.exec("setpriv", "--reuid=nobody", "--clear-groups", "mirror-agent", *words, check=False)
        assert done.returncode == 1, words
        assert "root" in done.stderr
        assert "sudo mirror-agent" in done.stderr
        assert "Traceback" not in done.stderr
    assert five.box.exec("setpriv", "--reuid=nobody", "--clear-groups", "mirror-agent", "check").returncode == 0
    assert five.box.exec("setpriv", "--reuid=nobody", "--clear-groups", "mirror-agent", "status").returncode == 0


@pytest.mark.package("without podman there is no container")
def test_without_podman_or_systemd_it_says_so(five: Appliance) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec mirror-agent plan']
    for place, name in (("/run/podman", "podman"), ("/run/dbus", "D-Bus")):
        done = five.box.exec(*hidden, place, check=False)
        assert done.returncode == 1
        assert name in done.stderr
        assert "systemctl start" in done.stderr or "dbus running" in done.stderr
        assert "Traceback" not in done.stderr


# --- what a person must act on -------------------------------------------------------------------------------


def test_a_broken_definition_is_explained(five: Appliance) -> None:
    since = five.cursor()
    five.define("broken", 'source = "https://quay.io"\n')
    five.until_said("has a scheme", since)
    text = explained(five, since, "MIRROR=broken")
    assert "Subject: A definition cannot be put into force" in text
    assert "mirror-agent.d(5)" in text
    five.remove("broken")


def test_broken_settings_are_explained(five: Appliance) -> None:
    since = five.cursor()
    five.settings(AGENT_TOML.replace('parent = "lan0"', 'parent = ""'))
    five.until_said("network.parent: is empty", since)
    assert "Subject: The settings of mirror-agent cannot be used" in explained(five, since)
    problems = "grep -c '^mirror_agent_problems 1.0$' /run/mirror-agent/metrics.prom"
    five.wait(lambda: five.sh(problems, check=False).strip() == "1", 10, "the same in the metrics")
    five.settings()
    five.serving(*FIVE)


def test_an_address_that_is_taken_is_explained_with_the_mirror_s_name(five: Appliance) -> None:
    since = five.cursor()
    five.define("taken", 'source = "taken.example"\nremote = "https://quay.io"\naddress = "10.0.0.50"\n')
    for address in ("10.0.0.50/32", "10.0.0.51/32"):
        five.box.gw("ip", "address", "add", address, "dev", "lan0")
    five.define("taken", 'source = "taken.example"\nremote = "https://quay.io"\naddress = "10.0.0.51"\n')
    five.until_said("10.0.0.51: is taken by", since)
    assert "Subject: The address of mirror taken is taken by another machine" in explained(five, since, "MIRROR=taken")
    five.remove("taken")
    five.sh(
        "ip netns exec gw ip address del 10.0.0.50/32 dev lan0; ip netns exec gw ip address del 10.0.0.51/32 dev lan0"
    )
    five.serving(*FIVE)


def test_an_image_that_is_not_to_be_had_is_explained(five: Appliance) -> None:
    since = five.cursor()
    five.settings(AGENT_TOML + '[images]\nedge = "docker.io/library/nothing:1"\n')
    five.until_said("could not pull image docker.io/library/nothing:1", since)
    assert "Subject: An image that mirrors run on is not to be had" in explained(five, since)
    five.settings()
    five.serving(*FIVE)


def test_an_upstream_that_refuses_the_account_is_explained(five: Appliance) -> None:
    since = five.cursor()
    five.sh("umask 077; printf 'reader\\nwrong\\n' > /etc/mirror-agent/wrong.credentials")
    five.define("refused", 'source = "refused.example"\nremote = "https://registry-1.docker.io"\n'
                'probe = "private/app:1.0"\n'
                '[upstream]\ncredentials = "/etc/mirror-agent/wrong.credentials"\n')  # fmt: skip
    five.until_said("could not prove by pulling private/app:1.0", since, seconds=40)
    text = explained(five, since, "MIRROR=refused")
    assert "Subject: Mirror refused did not serve a real pull" in text
    assert "docker://refused.example/" in text
    five.remove("refused")
    five.serving(*FIVE)


def test_a_target_that_cannot_be_reached_is_explained(five: Appliance) -> None:
    since = five.cursor()
    five.sh(f"mv {PUBLISHED} {PUBLISHED}.away")
    five.settle()
    five.until_said(PUBLISHED, since)
    assert "Subject: The publication cannot be read or written" in explained(five, since)
    five.sh(f"mv {PUBLISHED}.away {PUBLISHED}")
    five.settle()
    five.serving(*FIVE)


def test_a_file_that_flaps_fills_no_journal(five: Appliance) -> None:
    """Ninety mistakes in ten minutes, of one mirror: sixty lines, the last of which says that it is the last."""
    since = five.cursor()
    for letter in "ababab":
        mistakes = "".join(f"{letter}{number} = 1\n" for number in range(15))
        five.define("flaps", f'source = "flaps.example"\nremote = "https://quay.io"\n{mistakes}')
        five.settle()
    five.define("calm", "source = 1\n")
    five.until_said("calm.toml", since)  # another one is told all the same
    errors = [line for line in five.journal("MIRROR=flaps", since=since) if line["PRIORITY"] == "3"]
    assert len(errors) == 60
    ends = ["no more lines like this for" in line["MESSAGE"] for line in errors]
    assert ends == [False] * 59 + [True]
    five.remove("flaps", "calm")
    five.settle()
