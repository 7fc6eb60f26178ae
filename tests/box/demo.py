"""`make demo`: the appliance at work, and the truth about it: exit code 0 only when all that it shows was true.

Five files are dropped, five mirrors appear; a node that knows nothing but what was published pulls an image by tag
and another one by digest through each, again from a cold node, again with the internet cut, and again after the cache
host was rebooted with the internet still cut.  Every figure is measured in the run that prints it.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import signal
import subprocess
import sys
import time
import tomllib
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


class NotTrue(Exception):
    """Something that the demo promises was not so."""


@dataclass(frozen=True)
class Image:
    """What the node pulls, and how it knows that it got just that."""

    reference: str
    config: str  # digest of the configuration: podman's image id, it vouches for every layer
    size: int  # of layers and configuration, as they cross the network


@dataclass(frozen=True)
class Sent:
    """What an upstream gave away: blobs by its own access log, and all bytes of IP by the router's counter."""

    blobs: int
    blob_bytes: int
    link_bytes: int

    def since(self, before: Sent) -> Sent:
        """What came after `before`."""
        return Sent(self.blobs - before.blobs, self.blob_bytes - before.blob_bytes, self.link_bytes - before.link_bytes)


class Demo:
    """One run, step by step."""

    def __init__(self) -> None:
        self.box = Box(NAME)
        self.images: dict[str, tuple[Image, Image]] = {}  # upstream → (by tag, by digest)

    def run(self) -> None:
        """All of it.  Raises NotTrue, BoxError and AssertionError (a command in the box failed)."""
        start = time.monotonic()
        heading("1. Build and boot: a cache host, a node, a router, an internet with five registries")
        self.box.up()
        good(f"booted {time.monotonic() - start:.1f} s after the start")
        self.drop_files()
        self.wait_until_serving("2. Five files dropped, five mirrors appear")
        self.configure_node()
        first = self.pull("4. First pulls: nothing is cached, each image crosses the internet once", cold=False)
        self.check_once(first)
        again = self.pull("5. The same pulls from a cold node (all its images dropped)")
        self.check_nothing_sent(again)
        heading("6. The internet is cut")
        self.box.cut_internet()
        self.check_cut()
        self.pull("7. The same pulls from a cold node, the internet is cut")
        heading("8. The cache host is rebooted, the internet is still cut")
        self.box.reboot()
        self.check_cut()
        self.wait_until_serving("9. The mirrors after the reboot")
        self.pull("10. The same pulls from a cold node after the reboot, the internet is still cut")
        self.show_result()
        heading(f"All of this was true.  {time.monotonic() - start:.0f} s in all.")
        say(f"  From the internet: {amount(sum(s.link_bytes for s in first.values()))} for the first pulls, "
            f"{amount(sum(s.link_bytes for s in again.values()))} for the same from a cold node "
            f"({amount(sum(s.blob_bytes for s in again.values()))} of them blobs), nothing once it was cut.")  # fmt: skip

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

    def wait_until_serving(self, title: str) -> None:
        """Show how each mirror gets there.  Raises NotTrue when one does not."""
        heading(title)
        start = time.monotonic()
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
                if elapsed > SERVING_SECONDS:
                    late = ", ".join(sorted(set(names) - serving))
                    raise NotTrue(f"not serving {SERVING_SECONDS} s after the files were dropped: {late}")
                time.sleep(0.2)
        good(f"{len(serving)} of {len(names)} serve, each proved by a real pull through its own name and certificate")

    def status(self) -> dict[str, Any]:
        """`mirror-agent status --json`; no mirrors while the agent has not said anything yet."""
        answer = self.box.exec("mirror-agent", "status", "--json", check=False).stdout
        return json.loads(answer) if answer.strip() else {"mirrors": []}  # type: ignore[no-any-return]

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
                raise NotTrue(f"the node may reach {upstream.name} past its mirror: {table}")
        good(f"{len(tables)} sources, each with its mirror and blocked itself (policy NeverContactSource)")

    def pull(self, title: str, *, cold: bool = True) -> dict[str, Sent]:
        """Pull both images of each upstream; what each upstream gave away for it.  Raises NotTrue."""
        heading(title)
        if cold:
            self.box.node_reset()
        if self.box.node("podman", "images", "--quiet").stdout.strip():
            raise NotTrue("the node is not cold: it has images")
        before = self.sent()
        columns = ("UPSTREAM", "BY TAG", "BY DIGEST", "SENT BY THE UPSTREAM: BLOBS", "ALL, BY THE ROUTER")
        names = [upstream.name for upstream in UPSTREAMS]
        with Board(columns, names) as board, ThreadPoolExecutor(len(names)) as pool:
            pulls = [pool.submit(self.pull_pair, board, name) for name in names]
            failures = [failure for pull in pulls for failure in pull.result()]
            sent = {name: count.since(before[name]) for name, count in self.sent().items()}
            for name in names if not failures else ():
                share = sent[name].blob_bytes / sum(image.size for image in self.images[name])
                board.put(name, {
                    columns[3]: f"{sent[name].blobs} ({amount(sent[name].blob_bytes)}, {share:.2f}×)",
                    columns[4]: amount(sent[name].link_bytes),
                })  # fmt: skip
        if failures:
            raise NotTrue("a pull failed:\n" + "\n".join(failures))
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

    def _sent(self, upstream: Upstream, link_bytes: int) -> Sent:
        log = self.box.exec("journalctl", "--output=cat", "--boot", f"--unit=box-upstream@{upstream.name}").stdout
        sizes = re.findall(r'"GET /v2/\S+/blobs/sha256:\S+ HTTP/[0-9.]+" 200 (\d+)', log)
        return Sent(len(sizes), sum(map(int, sizes)), link_bytes)

    def check_once(self, sent: dict[str, Sent]) -> None:
        """Each image crossed the internet exactly once."""
        for name, count in sent.items():
            size = sum(image.size for image in self.images[name])
            if count.blob_bytes != size:
                raise NotTrue(f"{name} sent {count.blob_bytes} bytes of blobs for images of {size} bytes")
        good("every upstream sent each blob exactly once: 1.00× the images, to the byte")

    @staticmethod
    def check_nothing_sent(sent: dict[str, Sent]) -> None:
        """No blob crossed the internet again."""
        if again := [name for name, count in sent.items() if count.blobs]:
            raise NotTrue(f"blobs were fetched again from {', '.join(again)}")
        good("no upstream sent any blob")

    def check_cut(self) -> None:
        """No upstream answers the cache host or the node: what is served now comes from the mirrors."""
        for where in ("host", "node"):
            for upstream in UPSTREAMS:
                url = f"https://{upstream.host}/v2/"
                at = f"{upstream.host}:443:{upstream.address}"  # without DNS, which is away as well
                ask = ("curl", "--silent", "--insecure", "--max-time", "0.5", "--resolve", at, url)
                if self.box.exec(*ask, where=where, check=False).returncode == 0:
                    raise NotTrue(f"{upstream.host} can still be reached from the {where}")
        good("no upstream answers, neither to the cache host nor to the node")

    def show_result(self) -> None:
        """The status table and the published mirror sets."""
        heading("11. mirror-agent status")
        faint(self.box.exec("mirror-agent", "status").stdout)
        for name in ("image-digest-mirror-set.yaml", "image-tag-mirror-set.yaml"):
            heading(f"    {PUBLISHED}/{name}")
            faint(self.box.exec("cat", f"{PUBLISHED}/{name}").stdout)


def _image(reference: str, described: dict[str, Any]) -> Image:
    config, layers = described["config"], described["layers"]
    return Image(reference, config["digest"], config["size"] + sum(layer["size"] for layer in layers))


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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up in either case
    demo = Demo()
    code = 1
    try:
        demo.run()
        code = 0
    except (NotTrue, BoxError, AssertionError, subprocess.SubprocessError) as failure:
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
