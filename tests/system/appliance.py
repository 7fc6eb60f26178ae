"""The appliance as its user has it: files dropped into folders, the journal, systemd, status, the node's pulls.

Nothing here knows how the agent is made: this machine's Python cannot even import it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from box import Box
from box.topology import upstream

DEFINITIONS = "/etc/mirror-agent.d"
SETTINGS = "/etc/mirror-agent/agent.toml"
UNITS = "/etc/containers/systemd/mirror-agent"
STATE = "/var/lib/mirror-agent"
CACHE = f"{STATE}/cache"
PUBLISHED = "/srv/publish"
STATUS = "/run/mirror-agent/status.json"
LIMITS = "/run/mirror-agent/pull-limits.json"
UNIT_FAILED, START_FAILED = "d9b373ed55a64feb8242e02dbe79a49c", "be02cf6855d2428ba40df7e9d022f03d"  # of systemd
PYTHON = "usr/lib/python3/dist-packages"
ROLES = ("pod", "edge", "registry")  # of a mirror's services: mirror-NAME-ROLE.service
MB = 1_000_000
PATIENCE, MINUTE = 3, 60.0  # a busy machine may take so many times longer, and a minute for anything
# Bytes that may come while nobody is asked: connections say so when their idle time is over (TLS, HTTP/2; 100 each). A
# new connection costs more by its certificate alone; what is asked on one that is there, the upstream's log has.
GOODBYES = 500

# name of the shipped definition → what clients write
FIVE = {
    "docker": "docker.io", "gcr": "gcr.io", "ghcr": "ghcr.io", "quay": "quay.io", "registry-k8s": "registry.k8s.io",
}  # fmt: skip

AGENT_TOML = f"""\
domain = "mirror.lan"
[network]
parent = "lan0"
subnet = "10.0.0.0/24"
gateway = "10.0.0.1"
range = "10.0.0.4-10.0.0.60"
[publish.folder]
path = "{PUBLISHED}"
"""

# As if the upstreams had been asked for their pull limits a quarter of an hour earlier.
_EARLIER = f"""
import json, os
from datetime import datetime, timedelta
memory = json.load(open("{LIMITS}"))
for each in memory["mirrors"].values():
    each["asked"] = (datetime.fromisoformat(each["asked"]) - timedelta(minutes=15)).isoformat()
json.dump(memory, open("{LIMITS}.new", "w"))
os.replace("{LIMITS}.new", "{LIMITS}")
"""

Status = dict[str, Any]
Line = dict[str, str]


class Appliance:
    """A booted box with the agent in it."""

    share = "/usr/share"  # where the project's files lie

    def __init__(self, box: Box) -> None:
        self.box = box
        self.examples = f"{self.share}/mirror-agent/examples"  # the shipped definitions

    # --- what an admin does

    def write(self, path: str, content: str) -> None:
        """Put a file in place at once, as careful people and programs do."""
        quoted = shlex.quote(path)
        script = f"d=$(dirname {quoted}); t=$(mktemp $d/.new.XXXXXX); cat > $t && chmod 644 $t && mv -f $t {quoted}"
        self.box.exec("sh", "-c", script, input=content)

    def enable(self) -> None:
        """Start the agent, now and with the host."""
        self.box.exec("systemctl", "enable", "--quiet", "--now", "mirror-agent")

    def disable(self) -> None:
        """Do not start it with the host any more."""
        self.box.exec("systemctl", "disable", "--quiet", "mirror-agent")

    def add_libraries(self, folder: str) -> None:
        """Let the agent have these Python libraries of Debian's too."""
        self.sh(f"cp -an {folder}/. /{PYTHON}/ && python3 -c 'import kubernetes'")

    def settings(self, content: str = AGENT_TOML) -> None:
        self.write(SETTINGS, content)

    def define(self, name: str, content: str) -> None:
        self.write(f"{DEFINITIONS}/{name}.toml", content)

    def drop(self, *names: str) -> None:
        """Copy shipped definitions in, all in one go."""
        self.box.exec("cp", *(f"{self.examples}/{name}.toml" for name in names), DEFINITIONS)

    def remove(self, *names: str) -> None:
        self.box.exec("rm", *(f"{DEFINITIONS}/{name}.toml" for name in names))

    def sh(self, script: str, *, check: bool = True, timeout: float = 120) -> str:
        return self.box.exec("sh", "-c", script, check=check, timeout=timeout).stdout

    # --- what a user sees

    def status(self) -> Status:
        """`mirror-agent status --json`; its exit code says whether all is well, which is not asked here."""
        answer: Status = json.loads(self.box.exec("mirror-agent", "status", "--json", check=False).stdout)
        return answer

    def glance(self) -> Status:
        """The same from the file that the command reads: cheap enough to look often."""
        text = self.box.exec("cat", STATUS, check=False).stdout
        answer: Status = json.loads(text) if text else {"mirrors": [], "problems": [], "failures": [], "line": ""}
        return answer

    def mirror(self, name: str) -> dict[str, Any]:
        """One line of the status; empty when there is no such mirror."""
        return next((row for row in self.glance()["mirrors"] if row["name"] == name), {})

    def journal(self, *matches: str, since: str = "") -> list[Line]:
        """The agent's lines of this boot; `matches` are FIELD=VALUE, `since` a cursor."""
        options = [f"--after-cursor={since}"] if since else []
        said = self.box.journal("-b", "-o", "json", "-t", "mirror-agent", *options, *matches)
        return [json.loads(line) for line in said.splitlines()]

    def failures(self, since: str) -> list[Line]:
        """What went wrong with mirrors after a cursor: units that failed, and what the agent says as an error."""
        failed = [f"MESSAGE_ID={each}" for each in (UNIT_FAILED, START_FAILED)]
        said = self.box.journal("-b", "-o", "json", f"--after-cursor={since}", *failed)
        lines = [json.loads(line) for line in said.splitlines()]
        errors = [line for line in self.journal(since=since) if int(line["PRIORITY"]) <= 3]
        return [line for line in lines if line.get("UNIT", "").startswith("mirror-")] + errors

    def cursor(self) -> str:
        """The end of the journal as it is now."""
        said = self.box.journal("-b", "-n0", "--show-cursor")
        return said.partition("-- cursor: ")[2].strip()

    def property(self, unit: str, name: str) -> str:
        return self.box.exec("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def manager(self, name: str) -> str:
        """A property of systemd itself."""
        return self.box.exec("systemctl", "show", "--value", "-p", name).stdout.strip()

    def starts(self, *names: str) -> dict[str, str]:
        """What changes when a service of a mirror is started again: service → invocation and main process."""
        services = [f"mirror-{name}-{role}.service" for name in names for role in ROLES]
        listing = self.box.exec("systemctl", "show", "-p", "Id,InvocationID,MainPID,ActiveState", *services).stdout
        found = {}
        for block in listing.strip().split("\n\n"):
            facts = dict(line.split("=", 1) for line in block.splitlines())
            if facts["ActiveState"] == "active":
                found[facts["Id"]] = f"{facts['InvocationID']} {facts['MainPID']}"
        return found

    def containers(self) -> dict[str, str]:
        """Running containers of mirrors with what tells one start from another."""
        listing = self.box.exec("podman", "ps", "--format", "{{.Names}} {{.ID}} {{.Pid}}").stdout
        found = dict(line.split(" ", 1) for line in listing.splitlines())
        return {name: start for name, start in found.items() if name != "mirror-agent"}

    def published(self, name: str) -> str:
        return self.box.exec("cat", f"{PUBLISHED}/{name}", check=False).stdout

    def hosts(self) -> dict[str, str]:
        """The published names with their addresses."""
        lines = [line.split() for line in self.published("hosts").splitlines() if line and line[0] != "#"]
        return {name: address for address, name in lines}

    # --- waiting

    def wait(self, condition: Callable[[], object], seconds: float, what: str, *, least: float = MINUTE) -> None:
        """Until it is true; the assertion says what was waited for.  `seconds`: on a machine that is not busy.

        `least` is what it may take all the same: less than a minute only where that is the promise.
        """
        patience = max(PATIENCE * seconds, least)
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}\n{self._brief()}"
            time.sleep(0.15)

    def _brief(self) -> str:
        now = self.glance()
        rows = (f"{row['name']}: {row['state']} {row['reason']}" for row in now["mirrors"])
        return "\n".join([now["line"], *rows, *map(str, now["problems"] + now["failures"])])

    def serving(self, *names: str, seconds: float = 60) -> None:
        """Until exactly these mirrors serve and the publication is up to date."""

        def done() -> bool:
            now = self.glance()
            rows = {row["name"]: row for row in now["mirrors"]}
            good = all(row["state"] == "serving" and row["published"] for row in rows.values())
            return rows.keys() == set(names) and good and now.get("publication") == "up to date"

        self.wait(done, seconds, f"serving: {', '.join(names)}")

    def settle(self) -> None:
        """Until the agent has done all that follows from what was done before this call.

        A reload is answered between two bursts of work only: after the second, a whole burst lies in between.
        """
        for _ in range(2):
            self.box.exec("systemctl", "reload", "mirror-agent")

    def until_said(self, text: str, since: str, seconds: float = 20) -> Line:
        """Until the agent has written a line with this in it; the line."""
        found: list[Line] = []

        argv = ["journalctl", "-b", "-o", "json", "-t", "mirror-agent", *([f"--after-cursor={since}"] if since else [])]

        def said() -> bool:
            lines = map(json.loads, self.box.exec(*argv).stdout.splitlines())
            found[:] = [line for line in lines if text in line["MESSAGE"]]
            return bool(found)

        self.wait(said, seconds, f"a line of the journal with {text!r}")
        return found[0]

    # --- pull limits

    def pull_limit(self, name: str) -> dict[str, Any]:
        """What the mirror's upstream has said of its limit; empty where it is not asked."""
        return self.mirror(name).get("pull_limit") or {}

    def until_asked(self, name: str) -> None:
        """Until the mirror's upstream was asked for the first time: for a quarter of an hour nothing asks it again."""
        self.wait(lambda: self.pull_limit(name).get("asked"), 15, "what is left of the pull limit")

    def time_passes(self) -> None:
        """It is time to ask upstreams for their limits again, as soon as the agent looks."""
        self.box.exec("python3", "-c", _EARLIER)

    def ask_again(self, name: str, seconds: float = 15) -> dict[str, Any]:
        """What a mirror's upstream says to the next question."""
        self.time_passes()
        before = self._asked(name)
        self.settle()

        def answered() -> bool:
            last = self._asked(name)
            return last != before and self.pull_limit(name)["asked"][:19] == last

        self.wait(answered, seconds, "an answer about the pull limit")
        return self.pull_limit(name)

    def _asked(self, name: str) -> str:
        """As the agent remembers it, whatever is shown."""
        memory = json.loads(self.box.exec("cat", LIMITS).stdout)
        return str(memory["mirrors"][name]["asked"])[:19]

    # --- the node

    def configure_node(self) -> None:
        """Give the node what is published."""
        self.box.node_configure(PUBLISHED)

    def logged(self, name: str) -> None:
        """Until the journal has the edge's log of all that clients have got from a mirror: podman hands it on."""
        mark = f"/v2/?{time.monotonic_ns()}"
        self.curl(name, mark)
        log = ["journalctl", "-b", "-n", "100", "-o", "cat", f"CONTAINER_NAME=mirror-{name}-edge"]
        self.wait(lambda: mark in self.box.exec(*log).stdout, 10, "what the edge has logged")

    def curl(self, name: str, path: str, *options: str) -> str:
        """One request of the node to a mirror, with all that a client checks; fails with its HTTP status."""
        return self.box.node(*self.curl_command(name), "--fail", *options, f"https://{name}.mirror.lan{path}").stdout

    @staticmethod
    def curl_command(name: str) -> list[str]:
        return ["curl", "-sS", "-m", "60", "--cacert", f"/etc/containers/certs.d/{name}.mirror.lan/ca.crt"]

    def blob_digest(self, name: str, repository: str, digest: str) -> str:
        """The digest of the bytes that the node gets from a mirror for a blob."""
        command = shlex.join(
            [*self.curl_command(name), "--fail", f"https://{name}.mirror.lan/v2/{repository}/blobs/{digest}"]
        )
        script = f"set -o pipefail; {command} | sha256sum"
        return "sha256:" + self.box.node("bash", "-c", script).stdout.split()[0]

    def pull(self, image: str) -> None:
        self.box.node("podman", "pull", "--quiet", image)

    # --- the upstreams

    def received(self, source: str) -> int:
        """Bytes of payload that came from an upstream since boot."""
        return self.box.received(source)

    def asked(self, source: str, since: str) -> list[str]:
        """METHOD PATH of each request that an upstream got after a cursor, by its own log."""
        said = self.box.journal("-o", "cat", f"--after-cursor={since}", "-u", f"box-upstream@{upstream(source).name}")
        return re.findall(r'"((?:GET|HEAD) /\S*)', said)

    @contextmanager
    def not_asked(self, *sources: str) -> Iterator[None]:
        """While the block runs, these upstreams get no request, and send nothing."""
        since, before = self.cursor(), {source: self.received(source) for source in sources}
        yield
        assert {source: self.asked(source, since) for source in sources} == {source: [] for source in sources}
        grown = {source: self.received(source) - before[source] for source in sources}
        assert max(grown.values()) < GOODBYES, grown


def parts(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Descriptors of all blobs that a client on amd64 fetches of an image."""
    one = image["platforms"]["linux/amd64"] if "platforms" in image else image
    return [one["config"], *one["layers"]]


def weight(image: Mapping[str, Any]) -> int:
    return sum(int(blob["size"]) for blob in parts(image))


# A client that reads slowly until it is told to hurry, so that the download lies around what a test does: the slower,
# the less is left, so that it does not end by itself however long that takes.
_SLOW_CLIENT = """
import hashlib, os, ssl, sys, time, urllib.request
url, trust, go, rate = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
context = ssl.create_default_context(cafile=trust)
context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # by_hand.py has openssl's own idea of certificates
answer = urllib.request.urlopen(url, context=context, timeout=60)
digest, size, total = hashlib.sha256(), 0, int(answer.headers["Content-Length"])
while piece := answer.read(65536):
    digest.update(piece)
    size += len(piece)
    print(size, flush=True)
    if not os.path.exists(go):
        time.sleep(min(65536 / rate * total / max(total - size, 1), 5))
print(digest.hexdigest(), flush=True)
"""


@dataclass(frozen=True)
class SlowPull:
    """A download that goes on."""

    appliance: Appliance
    work: str  # a folder of the node
    digest: str

    def size(self) -> int:
        """Bytes that have come so far."""
        said = self.appliance.box.node("cat", f"{self.work}/out").stdout.split()
        return int(said[-1]) if said and len(said[-1]) < 64 else 0

    def begun(self) -> None:
        """Wait for the first bytes."""
        self.appliance.wait(lambda: self.size() > 0, 15, "the first bytes of the slow pull")

    def finish(self) -> None:
        """The rest of it, at once: it must be whole, and in one go."""
        box = self.appliance.box
        assert not self._finished(), "the slow pull was over too soon: it proved nothing"
        box.node("touch", f"{self.work}/go")
        self.appliance.wait(self._finished, 30, "the end of the slow pull")
        last = f"cd {self.work}; tail -n1 out; cat err code"
        said = box.node("sh", "-c", last).stdout.split("\n")
        assert (f"sha256:{said[0]}", said[-2]) == (self.digest, "0"), said

    def _finished(self) -> bool:
        return bool(self.appliance.box.node("cat", f"{self.work}/code", check=False).stdout)


def begin_slowly(appliance: Appliance, name: str, repository: str, digest: str, *, rate: int = 250_000) -> SlowPull:
    """Let a blob come slowly through a mirror."""
    box = appliance.box
    work = box.node("mktemp", "-d").stdout.strip()
    url = f"https://{name}.mirror.lan/v2/{repository}/blobs/{digest}"
    trust = f"/etc/containers/certs.d/{name}.mirror.lan/ca.crt"
    client = shlex.join(["python3", "-c", _SLOW_CLIENT, url, trust, f"{work}/go", str(rate)])
    box.node("sh", "-c", f"({client} > {work}/out 2> {work}/err; echo $? > {work}/code) >/dev/null 2>&1 &")
    return SlowPull(appliance, work, digest)


@contextmanager
def slow_pull(
    appliance: Appliance, name: str, repository: str, digest: str, *, rate: int = 250_000
) -> Iterator[SlowPull]:
    """A blob comes slowly through a mirror while the block runs; afterwards it must be whole, in one go."""
    pull = begin_slowly(appliance, name, repository, digest, rate=rate)
    pull.begun()
    yield pull
    pull.finish()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def in_order(lines: Sequence[Line], *wanted: Mapping[str, str]) -> None:
    """Assert that lines with these fields (MESSAGE: a part of it) are there, in this order."""
    rest = iter(lines)
    for fields in wanted:
        assert any(
            all(
                value in line.get(key, "") if key == "MESSAGE" else line.get(key) == value
                for key, value in fields.items()
            )
            for line in rest
        ), f"no line {fields} (or not in this order) in:\n" + "\n".join(line["MESSAGE"] for line in lines)
