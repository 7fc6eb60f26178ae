"""`make demo`: the appliance at work, and the truth about it: exit code 0 only when all that it shows was true.

Five files are dropped, five mirrors appear; a node that knows nothing but what was published pulls an image by tag
and another one by digest through each, again from a cold node, again with the internet cut, and again after the cache
host was rebooted with the internet still cut.  Every figure is measured in the run that prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .drawing import Board, amount, bad, faint, good, heading, say
from .host import REPO, Box
from .report import BoxError
from .topology import GATEWAY, LAN_PREFIX, UPSTREAMS, Upstream

NAME = "demo"  # a box of its own, whatever BOX says: `up` drops what ran in it before
PUBLISHED = "/srv/publish"
SERVING_SECONDS = 180  # five pods on a slow machine; two cores need eight seconds
PULL_SECONDS = 120
WRAPPING, WRAPPING_BYTES = 1.05, 100_000  # what IP, TLS and manifests add to the blobs on the link: at most this

SETTINGS = f"""\
domain = "mirror.lan"

[network]
parent  = "lan0"
subnet  = "{GATEWAY.rpartition(".")[0]}.0/{LAN_PREFIX}"
gateway = "{GATEWAY}"
range   = "10.0.0.4-10.0.0.60"

[publish.folder]
path = "{PUBLISHED}"
"""


class BrokenPromiseError(Exception):
    """Something that the demo promises was not so."""


@dataclass(frozen=True)
class Image:
    """What the node pulls, and how it knows that it got just that."""

    reference: str
    config: str  # digest of the configuration: podman's image id, it vouches for every layer
    blobs: dict[str, int]  # layers and configuration: digest → size

    @property
    def size(self) -> int:
        """Bytes of all its blobs."""
        return sum(self.blobs.values())


@dataclass(frozen=True)
class Sent:
    """What an upstream was asked for and gave away since boot."""

    blobs: Counter[str]  # digest → requests, by its own access log (whose byte counts are not exact with HTTP/2)
    bytes: int  # of IP, all that came from it, by the router's counter

    def since(self, before: Sent) -> Sent:
        """What came after `before`."""
        return Sent(self.blobs - before.blobs, self.bytes - before.bytes)


class Demo:
    """One run, step by step."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.images: dict[str, tuple[Image, Image]] = {}  # upstream → (by tag, by digest)

    def run(self) -> None:
        """All of it.  Raises BrokenPromiseError, BoxError and AssertionError (a command in the box failed)."""
        start = time.monotonic()
        heading("1. Build and boot: a cache host, a node, a router, an internet with five registries")
        self.box.up()
        good(f"booted {time.monotonic() - start:.1f} s after the start")
        self.drop_files()
        self.wait_until_serving("2. Five files dropped, five mirrors appear", time.monotonic())
        self.configure_node()
        first = self.pull("4. First pulls: nothing is cached, each image crosses the internet once", cold=False)
        self.check_once(first)
        again = self.pull("5. The same pulls from a cold node (all its images dropped)")
        self.check_nothing_sent(again)
        heading("6. The internet is cut")
        self.check_internet(connected=True)
        self.box.cut_internet()
        self.check_internet(connected=False)
        self.pull("7. The same pulls from a cold node, the internet is cut")
        heading("8. The cache host is rebooted, the internet is still cut")
        rebooting = time.monotonic()
        self.box.reboot()
        self.check_internet(connected=False)
        self.wait_until_serving("9. The mirrors after the reboot", rebooting)
        self.pull("10. The same pulls from a cold node after the reboot, the internet is still cut")
        self.show_result()
        heading(f"All of this was true.  {time.monotonic() - start:.0f} s in all.")
        say(f"  From the internet: {amount(sum(s.bytes for s in first.values()))} for the first pulls, "
            f"{amount(sum(s.bytes for s in again.values()))} and {sum(s.blobs.total() for s in again.values())} blobs "
            "for the same from a cold node.")  # fmt: skip

    # --- the cache host ---

    def drop_files(self) -> None:
        """Settings, the agent started and enabled, five definitions; two images for each upstream."""
        self.box.exec("mkdir", "-p", PUBLISHED)
        self.box.exec("sh", "-c", "cat > /etc/mirror-agent/agent.toml", input=SETTINGS)
        self.box.exec("systemctl", "enable", "--now", "mirror-agent")
        run = secrets.token_hex(4)  # an image that no cache anywhere can have seen
        for upstream in UPSTREAMS:
            made = self.box.push(upstream.name, f"demo/fresh:{run}", layer_sizes=(1_500_000, 500_000),
                                 seed=int(run, 16))  # fmt: skip
            there = self.box.images()[upstream.name]["demo/app:1.0"]
            tagged = next(iter(there["platforms"].values()))
            self.images[upstream.name] = (
                _image(f"{upstream.name}/demo/app:1.0", tagged),
                _image(f"{upstream.name}/demo/fresh@{made['digest']}", made),
            )
        heading("   The files, as they lie in etc/mirror-agent.d (without comments)")
        for file in sorted((REPO / "etc/mirror-agent.d").glob("*.toml")):
            lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
            faint(f"/etc/mirror-agent.d/{file.name:18} {'  '.join(lines)}")
        self.box.exec("sh", "-c", "install -m 0644 /usr/share/mirror-agent/examples/*.toml /etc/mirror-agent.d/")

    def wait_until_serving(self, title: str, start: float) -> None:
        """Show how each mirror gets there, in seconds since `start` (monotonic), or raise BrokenPromiseError."""
        heading(title)
        names = sorted(file.stem for file in (REPO / "etc/mirror-agent.d").glob("*.toml"))
        serving: set[str] = set()
        with Board(("MIRROR", "UPSTREAM", "HOST", "ADDRESS", "STATE", "AFTER"), names) as board:
            while serving != set(names):
                elapsed = time.monotonic() - start
                status = self.status()
                for row in status["mirrors"]:
                    if row["name"] in serving:
                        continue
                    cells = {"UPSTREAM": row["upstream"], "HOST": row["host"], "ADDRESS": row["address"],
                             "STATE": row["state"]}  # fmt: skip
                    if row["state"] == "serving" and status["publication"] == "up to date":
                        serving.add(row["name"])
                        board.put(row["name"], cells | {"AFTER": f"{elapsed:.1f} s"})
                    else:
                        board.put(row["name"], cells)
                        board.put(row["name"], {"AFTER": f"{elapsed:.1f} s …"}, passing=True)
                late = ", ".join(sorted(set(names) - serving))
                if elapsed > SERVING_SECONDS:
                    raise BrokenPromiseError(f"not serving after {SERVING_SECONDS} s: {late}")
                if late and self.agent_restarts() > 2:
                    raise BrokenPromiseError(f"the agent does not stay up; not serving: {late}")
                time.sleep(0.2)
        good(f"{len(serving)} of {len(names)} serve, each proved by a real pull through its own name and certificate")

    def agent_restarts(self) -> int:
        """How often systemd had to start the agent anew since boot."""
        return int(self.box.exec("systemctl", "show", "--value", "--property=NRestarts", "mirror-agent").stdout)

    def status(self) -> dict[str, Any]:
        """`mirror-agent status --json`; no mirrors while the agent has not said anything yet."""
        answer = self.box.exec("mirror-agent", "status", "--json", check=False).stdout
        return json.loads(answer) if answer.strip() else {"mirrors": []}

    # --- the node ---

    def configure_node(self) -> None:
        """Give the node the published folder, and see that it may not go past the mirrors."""
        heading("3. The node gets what was published, and nothing else")
        self.box.node_configure(PUBLISHED)
        folder = "/etc/containers/registries.conf.d"
        drop_in = self.box.node("sh", "-c", f"cat {folder}/*.conf").stdout
        tables = {table["prefix"] or table["location"]: table
                  for table in tomllib.loads(drop_in)["registry"]}  # fmt: skip
        for upstream in UPSTREAMS:
            table = tables.get(upstream.name)
            if not table or not table.get("blocked") or not table.get("mirror"):
                raise BrokenPromiseError(f"the node may reach {upstream.name} past its mirror: {table}")
        good(f"{len(tables)} sources, each with its mirror and blocked itself (policy NeverContactSource)")

    def pull(self, title: str, *, cold: bool = True) -> dict[str, Sent]:
        """Pull both images of each upstream; what each upstream gave away for it.  Raises BrokenPromiseError."""
        heading(title)
        if cold:
            self.box.node_reset()
        if self.box.node("podman", "images", "--quiet").stdout.strip():
            raise BrokenPromiseError("the node is not cold: it has images")
        before = self.sent()
        columns = ("UPSTREAM", "BY TAG", "BY DIGEST", "ITS BLOBS ASKED FOR", "BYTES FROM IT")
        names = [upstream.name for upstream in UPSTREAMS]
        with Board(columns, names) as board, ThreadPoolExecutor(len(names)) as pool:
            pulls = [pool.submit(self.pull_pair, board, name) for name in names]
            failures = [failure for pull in pulls for failure in pull.result()]
            sent = {name: count.since(before[name]) for name, count in self.sent().items()}
            for name in names if not failures else ():
                size = sum(image.size for image in self.images[name])
                board.put(name, {
                    columns[3]: str(sent[name].blobs.total()),
                    columns[4]: f"{amount(sent[name].bytes)}, {sent[name].bytes / size:.2f} of the images",
                })  # fmt: skip
        if failures:
            raise BrokenPromiseError("a pull failed:\n" + "\n".join(failures))
        good(f"{2 * len(names)} images pulled, each is byte for byte the upstream's (by digest)")
        return sent

    def pull_pair(self, board: Board, upstream: str) -> list[str]:
        """Pull the image by tag, then the one by digest; what went wrong."""
        failures = []
        for column, image in zip(("BY TAG", "BY DIGEST"), self.images[upstream], strict=True):
            board.put(upstream, {column: "…"}, passing=True)
            start = time.monotonic()
            try:
                done = self.box.node("podman", "pull", "--quiet", image.reference, check=False, timeout=PULL_SECONDS)
                why = done.stderr.strip() if done.returncode else ""
                got = done.stdout.strip()
            except subprocess.TimeoutExpired:
                why, got = f"not done after {PULL_SECONDS} s", ""
            if not why and f"sha256:{got}" != image.config:
                why = f"another image than the upstream's: {got}, not {image.config}"
            if why:
                failures.append(f"{image.reference}: {why}")
            seconds = f"{time.monotonic() - start:.1f} s"
            board.put(upstream, {column: f"✗ {seconds}" if why else f"✓ {amount(image.size)} in {seconds}"})
        return failures

    # --- the internet ---

    def sent(self) -> dict[str, Sent]:
        """What each upstream gave away since boot."""
        counters = self.box.bytes()
        return {upstream.name: self._sent(upstream, counters[upstream.host].rx) for upstream in UPSTREAMS}

    def _sent(self, upstream: Upstream, received: int) -> Sent:
        log = self.box.exec("journalctl", "--output=cat", "--boot", f"--unit=box-upstream@{upstream.name}").stdout
        return Sent(Counter(re.findall(r'"GET /v2/\S+/blobs/(sha256:\S+) HTTP/', log)), received)

    def check_once(self, sent: dict[str, Sent]) -> None:
        """Each image crossed the internet exactly once."""
        for name, count in sent.items():
            blobs = {digest: size for image in self.images[name] for digest, size in image.blobs.items()}
            size = sum(blobs.values())
            if count.blobs != Counter(blobs.keys()):
                raise BrokenPromiseError(f"{name} was not asked exactly once for each blob:\n{count.blobs}\n{blobs}")
            if not size <= count.bytes <= size * WRAPPING + WRAPPING_BYTES:
                raise BrokenPromiseError(f"{name} sent {count.bytes} bytes for images of {size} bytes")
        good("every upstream was asked for each blob exactly once")

    @staticmethod
    def check_nothing_sent(sent: dict[str, Sent]) -> None:
        """No blob crossed the internet again."""
        if again := [name for name, count in sent.items() if count.blobs]:
            raise BrokenPromiseError(f"blobs were fetched again from {', '.join(again)}")
        good("no upstream was asked for any blob")

    def check_internet(self, *, connected: bool) -> None:
        """Whether the upstreams answer the cache host and the node directly, past all mirrors."""
        asked = [(where, upstream) for where in ("host", "node") for upstream in UPSTREAMS]
        with ThreadPoolExecutor(len(asked)) as pool:
            answered = tuple(pool.map(lambda pair: self.answers(*pair), asked))
        for (where, upstream), answers in zip(asked, answered, strict=True):
            if answers != connected:
                raise BrokenPromiseError(f"{upstream.host} {'answers' if answers else 'does not answer'} the {where}")
        good(f"{'every' if connected else 'no'} upstream answers the cache host and the node directly")

    def answers(self, where: str, upstream: Upstream) -> bool:
        """Whether an upstream answers there, asked by its address: the internet's DNS is away with the rest."""
        at = f"{upstream.host}:443:{upstream.address}"
        ask = ("curl", "--silent", "--insecure", "--max-time", "2", "--resolve", at, f"https://{upstream.host}/v2/")
        return self.box.exec(*ask, where=where, check=False).returncode == 0

    def show_result(self) -> None:
        """The status table and the published mirror sets."""
        heading("11. mirror-agent status")
        faint(self.box.exec("mirror-agent", "status").stdout)
        for name in ("image-digest-mirror-set.yaml", "image-tag-mirror-set.yaml"):
            heading(f"    {PUBLISHED}/{name}")
            faint(self.box.exec("cat", f"{PUBLISHED}/{name}").stdout)


def _image(reference: str, described: dict[str, Any]) -> Image:
    config, layers = described["config"], described["layers"]
    return Image(reference, config["digest"], {blob["digest"]: blob["size"] for blob in (config, *layers)})


def _explain(box: Box, failure: BaseException) -> None:
    """What was not true, and what the agent says about it."""
    say()
    first, _, rest = str(failure).partition("\n")
    bad(first or type(failure).__name__)
    faint(rest)
    if not box.running:
        return
    for command in (["mirror-agent", "status"], ["journalctl", "--no-pager", "--lines=40", "--unit=mirror-agent"]):
        try:
            done = box.exec(*command, check=False, timeout=20)
        except (subprocess.SubprocessError, BoxError) as error:
            faint(f"{' '.join(command)}: {error}")
            continue
        heading(f"  {' '.join(command)}")
        faint(done.stdout + done.stderr)


def main() -> int:
    """Run the demo; exit code 0 only if all of it was true."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the box running, to look around in it")
    keep = parser.parse_args().keep
    if os.geteuid() != 0:
        print("demo: it boots a machine: run it as root (sudo make demo)", file=sys.stderr)
        return 1
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up in either case
    demo = Demo(Box(NAME))
    code = 1
    try:
        demo.run()
        code = 0
    except (BrokenPromiseError, BoxError, AssertionError, subprocess.SubprocessError) as failure:
        _explain(demo.box, failure)
    except KeyboardInterrupt:
        say("\n  interrupted")
        code = 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if keep:
            say(f"\n  The box is left running: BOX={NAME} tests/box/box shell; BOX={NAME} tests/box/box down")
        else:
            demo.box.down()
    return code
