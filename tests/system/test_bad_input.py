"""Mistakes of people: each told with file, key and reason; nothing that runs is lost or touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from appliance import AGENT_TOML, DEFINITIONS, STATE, Appliance

GOOD = ("docker", "quay")
QUAY = 'source = "quay.io"\naddress = "10.0.0.50"\n'


@dataclass(frozen=True)
class Mistake:
    """A file that is refused: its content, and the key and a part of the reason that people are told."""

    name: str
    content: str
    key: str
    reason: str
    make: str = 'cat > "$1"'  # how it gets its content

    @property
    def file(self) -> str:
        return f"{self.name}.toml"


def of(name: str, line: str, key: str, reason: str, source: str = 'source = "x.example"\n') -> Mistake:
    """A definition that would be good without one line."""
    return Mistake(name, source + line, key, reason)


MISTAKES = (
    Mistake("no-toml", "source = quay.io\n", "", "line 1"),
    Mistake("empty", "", "source", "missing"),
    Mistake("not-utf8", "", "", "UTF-8", r"""printf 'source = "\377"\n' > "$1" """),
    of("unknown-key", 'sorce = "x.example"\n', "sorce", "unknown key"),
    of("unknown-in-table", '[upstream]\npassword = "x"\n', "upstream.password", "unknown key"),
    of("number", "host = 5\n", "host", "number"),
    of("truth", "policy = true\n", "policy", "true or false"),
    of("bad-policy", 'policy = "never"\n', "policy", "policy"),
    of("empty-source", "", "source", "empty", 'source = ""\n'),
    of("no-sources", "", "source", "empty", "source = []\n"),
    of("scheme", "", "source", "scheme", 'source = "https://x.example"\n'),
    of("tag", "", "source", "tag", 'source = "x.example/app:1"\n'),
    of("wildcard", "", "source", "wildcard", 'source = "*.example"\n'),
    of("plain-http", 'remote = "http://x.example"\n', "remote", "https"),
    of("userinfo", 'remote = "https://me:my-password@x.example"\n', "remote", "user name"),
    of("loopback", 'remote = "https://127.0.0.1"\n', "remote", "loopback"),
    of("link-local", 'remote = "https://169.254.169.254"\n', "remote", "link-local"),
    of("itself", 'remote = "https://itself.mirror.lan"\n', "remote", "the mirror itself"),
    of("a-mirror", 'remote = "https://quay.mirror.lan"\n', "remote", "quay.mirror.lan"),
    of("outside", 'address = "10.0.0.99"\n', "address", "outside the range"),
    of("gateway", 'address = "10.0.0.1"\n', "address", "gateway"),
    of("same-address", 'address = "10.0.0.50"\n', "address", "quay.toml"),
    of("same-source", "", "source", "quay.toml", 'source = "quay.io"\n'),
    of("same-host", 'host = "quay.mirror.lan"\n', "host", "quay.toml"),
    of("bad-host", 'host = "a_b.mirror.lan"\n', "host", "underscore"),
    of("new-line", 'host = "a\\nVolume=/:/host"\n', "host", "U+000A"),
    of("escape", 'probe = "a/b:1\\u001b[2J"\n', "probe", "U+001B"),
    of("quote", "host = 'a\"b'\n", "host", 'character "'),
    of("percent", 'host = "%H.mirror.lan"\n', "host", "character %"),
    of("dollar", 'host = "$HOME.lan"\n', "host", "character $"),
    of("backslash", "host = 'a\\'\n", "host", "character \\"),
    of("credentials", '[upstream]\ncredentials = "/etc/shadow"\n', "upstream.credentials", "/etc/mirror-agent"),
    of("no-size", '[cache]\nbudget = "lots"\n', "cache.budget", "no size"),
    of("no-time", '[cache]\nfresh = "soon"\n', "cache.fresh", "length of time"),
    Mistake("Upper", 'source = "x.example"\n', "", "no mirror's name"),
    Mistake("two.parts", 'source = "x.example"\n', "", "no mirror's name"),
    Mistake("link", "", "", "link", 'ln -s /etc/passwd "$1"'),
    Mistake("fifo", "", "", "regular file", 'mkfifo "$1"'),
    Mistake("folder", "", "", "regular file", 'mkdir "$1"'),
    Mistake("device", "", "", "regular file", 'mknod "$1" c 1 5'),
    Mistake("not-roots", 'source = "x.example"\n', "", "owned by uid 65534", 'cat > "$1"; chown nobody "$1"'),
    Mistake("group-writes", 'source = "x.example"\n', "", "its group", 'cat > "$1"; chmod 664 "$1"'),
    Mistake("others-write", 'source = "x.example"\n', "", "others", 'cat > "$1"; chmod 646 "$1"'),
    Mistake("large", "", "", "larger than 64 KiB", 'yes "# much" | head -c 10485760 > "$1"'),
)


@pytest.fixture(scope="module")
def pair(appliance: Appliance) -> Appliance:
    """Two mirrors that serve."""
    appliance.define("quay", QUAY)
    appliance.drop("docker")
    appliance.serving(*GOOD)
    return appliance


@pytest.fixture(scope="module")
def told(pair: Appliance) -> dict[str, Any]:
    """All bad files at once, among two good ones: what the journal, `status` and `check` say about each."""
    before, since = pair.starts(*GOOD), pair.cursor()
    pair.sh("mkdir -p /root/bad")
    for mistake in MISTAKES:
        script = f"umask 022; set -- '/root/bad/{mistake.file}'; {mistake.make}"
        pair.box.exec("bash", "-c", script, input=mistake.content)
    # whole, each: a moment with other owners and modes would be another mistake, or none
    pair.sh(f"cp -a /root/bad /root/whole; mv /root/whole/* {DEFINITIONS}/")
    pair.settle()
    found = {
        "journal": pair.journal("PRIORITY=3", since=since),
        "status": pair.status(),
        "check": json.loads(pair.box.exec("mirror-agent", "check", "--json", check=False).stdout),
        "code": pair.box.exec("mirror-agent", "check", check=False).returncode,
        "undisturbed": pair.starts(*GOOD) == before,
        "again": len(pair.journal("PRIORITY=3", since=since)),
    }
    pair.sh(f"cd /root/bad && for f in *; do rm -r {DEFINITIONS}/$f; done")
    pair.settle()
    found["solved"] = [line for line in pair.journal(since=since) if "solved: " in line["MESSAGE"]]
    found["left"] = pair.status()["problems"]
    return found


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: str(mistake.name))
def test_a_mistake_is_told_with_file_key_and_reason(told: dict[str, Any], mistake: Mistake) -> None:
    path = f"{DEFINITIONS}/{mistake.file}"
    for place in ("status", "check"):
        problems = [p for p in told[place]["problems"] if p["file"] == path]
        assert any(p["key"] == mistake.key and mistake.reason in p["reason"] for p in problems), (place, problems)
    where = f"{path}: {mistake.key}" if mistake.key else path
    assert any(where in line["MESSAGE"] and mistake.reason in line["MESSAGE"] for line in told["journal"])


def test_good_ones_among_them_are_not_touched(told: dict[str, Any], pair: Appliance) -> None:
    assert told["undisturbed"]
    assert {row["name"]: row["state"] for row in told["status"]["mirrors"]} == dict.fromkeys(GOOD, "serving")
    assert told["code"] == 1
    assert len(told["journal"]) == len(told["status"]["problems"]), "each problem is told once"
    assert "my-password" not in json.dumps(told), "a password was repeated"
    assert "\x1b" not in json.dumps(told, ensure_ascii=False)
    assert told["left"] == []
    assert len(told["solved"]) == len(told["journal"])
    assert pair.box.exec("mirror-agent", "check").returncode == 0
    assert pair.sh("ls /var/lib/mirror-agent/accepted").split() == [f"{name}.toml" for name in GOOD]


BROKEN = {
    "not TOML": "cat > $f",
    "unknown key": """printf 'source = "quay.io"\\nfoo = 1\\n' > $f""",
    "cut off": """printf 'source = "qu' > $f""",
    "empty": ": > $f",
    "group-writable": "chmod g+w $f",
    "another's": "chown nobody $f",
    "a link": "mv $f /root/elsewhere.toml && ln -s /root/elsewhere.toml $f",
    "a FIFO": "rm $f && mkfifo $f",
    "10 MB": "yes '# much' | head -c 10485760 > $f",
    "docker's source": """printf 'source = "docker.io"\\n' > $f""",
}


@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_turns_bad_leaves_its_mirror_as_it_was(pair: Appliance, script: str) -> None:
    before, published = pair.starts(*GOOD), pair.published("hosts")
    pair.box.exec("bash", "-c", f"f={DEFINITIONS}/quay.toml; {script}", input="source quay.io")
    try:
        pair.wait(lambda: pair.glance()["problems"], 10, "the problem")
        pair.settle()
        problems = pair.glance()["problems"]
        assert {p["file"] for p in problems} == {f"{DEFINITIONS}/quay.toml"}
        assert all("keeps running as it was" in p["hint"] for p in problems), problems
        assert pair.starts(*GOOD) == before
        assert pair.mirror("quay")["state"] == "serving"
        assert pair.mirror("quay")["address"] == "10.0.0.50"
        assert pair.published("hosts") == published
    finally:
        pair.define("quay", QUAY)  # in one step: a moment without the file would remove the mirror
    pair.wait(lambda: not pair.glance()["problems"], 10, "the end of the problem")
    pair.settle()
    assert pair.starts(*GOOD) == before


def test_two_new_files_that_want_the_same_are_both_named_and_neither_starts(pair: Appliance) -> None:
    pair.sh(f"""cd {DEFINITIONS}; for n in first second; do printf 'source = "gcr.io"\\n' > $n.toml; done""")
    pair.settle()
    found = {(p["file"], p["key"]) for p in pair.glance()["problems"]}
    assert found == {(f"{DEFINITIONS}/{name}.toml", "source") for name in ("first", "second")}
    assert all("gcr.io" in p["reason"] for p in pair.glance()["problems"])
    assert pair.starts("first", "second") == {}
    pair.remove("first")
    pair.serving(*GOOD, "second")
    pair.define("first", 'source = "gcr.io"\n')
    pair.settle()
    (problem,) = pair.glance()["problems"]
    assert problem["file"] == f"{DEFINITIONS}/first.toml"
    assert "second.toml" in problem["reason"]
    assert pair.mirror("second")["state"] == "serving"
    pair.remove("first", "second")
    pair.serving(*GOOD)


def test_a_thousand_files(pair: Appliance) -> None:
    """Half of them nonsense, half of them want what quay has: all told, nothing lost."""
    before = pair.starts(*GOOD)
    pair.sh(f"""mkdir /root/many; cd /root/many; for n in $(seq 500); do
        echo nonsense > bad-$n.toml; printf 'source = "quay.io"\\n' > same-$n.toml; done; cp * {DEFINITIONS}/""")
    pair.wait(lambda: len(pair.glance()["problems"]) == 1000, 60, "a thousand problems")
    pair.settle()
    assert pair.starts(*GOOD) == before
    assert {row["name"]: row["state"] for row in pair.glance()["mirrors"]} == dict.fromkeys(GOOD, "serving")
    pair.sh(f"cd /root/many; for f in *; do rm {DEFINITIONS}/$f; done")
    pair.wait(lambda: not pair.glance()["problems"], 60, "no more problems")
    assert pair.starts(*GOOD) == before


def test_the_folder_of_definitions_goes_and_comes_back(pair: Appliance) -> None:
    before, since = pair.starts(*GOOD), pair.cursor()
    pair.sh(f"mv {DEFINITIONS} /root/away")
    pair.until_said("folder of definitions is gone", since)
    pair.settle()
    assert pair.starts(*GOOD) == before
    pair.sh(f"mkdir {DEFINITIONS}; cp -a /root/away/. {DEFINITIONS}/")
    pair.settle()
    assert pair.starts(*GOOD) == before
    pair.drop("gcr")  # the new folder is watched
    pair.serving(*GOOD, "gcr")
    pair.remove("gcr")
    pair.serving(*GOOD)


BAD_SETTINGS = {
    "not TOML": ("domain = mirror.lan\n", "", "line 1"),
    "unknown key": (f"domian = 1\n{AGENT_TOML}", "domian", "unknown key"),
    "no network": ('domain = "mirror.lan"\n', "network", "missing"),
    "a range without room": (AGENT_TOML.replace("10.0.0.4-", "10.1.0.4-"), "network.range", "10.1.0.4"),
    "empty": ("", "domain", "missing"),
}


@pytest.mark.parametrize(("content", "key", "reason"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_with_wrong_settings_everything_stays_as_it_is(pair: Appliance, content: str, key: str, reason: str) -> None:
    before, since, state = pair.starts(*GOOD), pair.cursor(), pair.sh(f"ls -Rl --time-style=full-iso {STATE}/accepted")
    pair.settings(content)
    try:
        line = pair.until_said("/etc/mirror-agent/agent.toml: " + key, since)
        assert line["PRIORITY"] == "3"
        assert any(reason in line["MESSAGE"] for line in pair.journal("PRIORITY=3", since=since))
        pair.remove("quay")  # not acted on: what the settings would make of it is not known
        pair.settle()
        assert "stays as it is" in pair.property("mirror-agent", "StatusText")
        assert pair.box.exec("mirror-agent", "check", check=False).returncode == 1
        assert pair.starts(*GOOD) == before
    finally:
        pair.define("quay", QUAY)
        pair.settings()
    pair.settle()
    pair.serving(*GOOD)
    assert pair.starts(*GOOD) == before
    assert pair.sh(f"ls -Rl --time-style=full-iso {STATE}/accepted") == state
