#!/usr/bin/python3
"""The common recipe (registry:2 in proxy mode, each on a macvlan) beside mirror-agent, measured in the test host.

Prints figures that README.md has.  Needs root and what tests/box needs; takes about four minutes, most of which is
waiting for the recipe.  The recipe's registry is Debian's docker-registry 2.8.3.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent / "tests")

from box import Box  # noqa: E402  (the folder has to be known first)
from box.demo import PUBLISHED, SETTINGS, Demo  # noqa: E402

LAYERS = (32_000_000,) * 4
RECIPE = "10.0.0.2:5000"  # on the cache host itself: what is measured is the registry
RECIPE_CONFIG = f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: /var/lib/recipe}}}}
http: {{addr: "{RECIPE}"}}
proxy: {{remoteurl: https://quay.io}}
"""
OURS, OUR_HOST = "10.0.0.4", "quay.mirror.lan"
LONE = "10.0.0.99"  # a container with a random MAC, as podman-compose starts it
HOLE = """
table ip hole {
  chain forward { type filter hook forward priority 0; oifname wan drop; iifname wan drop; }
  chain input { type filter hook input priority 0; iifname wan drop; }
}
"""
# as podman and skopeo ask: the edge keeps a tag's answer for each of the kinds that clients accept
KINDS = ("oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2",
         "docker.distribution.manifest.v2")  # fmt: skip
ACCEPT = "Accept: " + ", ".join(f"application/vnd.{kind}+json" for kind in KINDS)
PATIENCE = 60  # seconds that a client waits for an answer


def main() -> None:
    """Boot, measure, print."""
    box = Box("bench")
    box.up()
    try:
        _begin(box)
        _bytes(box)
        _restart(box)
        _upstream_hangs(box)
        _start_without_internet(box)
    finally:
        box.down()


def _tell(what: str, recipe: str, ours: str) -> None:
    print(f"{what:58}  {recipe:38}  {ours}", flush=True)


def _begin(box: Box) -> None:
    box.exec("sh", "-c", "cat > /etc/mirror-agent/agent.toml", input=SETTINGS)
    box.exec("mkdir", "-p", PUBLISHED)
    box.exec("systemctl", "enable", "--now", "mirror-agent")
    # fresh: so that a tag has to be asked for again within the time of this run
    text = f'source = "quay.io"\naddress = "{OURS}"\n[cache]\nfresh = "1s"\n'
    box.exec("sh", "-c", "cat > /etc/mirror-agent.d/quay.toml", input=text)
    _serving(box)
    box.node_configure(PUBLISHED)
    box.exec("sh", "-c", "cat > /etc/recipe.yml", input=RECIPE_CONFIG)
    box.exec("systemd-run", "--unit=recipe", "docker-registry", "serve", "/etc/recipe.yml")
    box.node("curl", "-sf", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", f"http://{RECIPE}/v2/")
    _tell("", "recipe", "mirror-agent")


def _serving(box: Box) -> None:
    demo = Demo(box)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = demo.status()
        if [row["state"] for row in status["mirrors"]] == ["serving"] and status["publication"] == "up to date":
            return
        time.sleep(0.1)
    raise SystemExit("the mirror does not serve")


def _bytes(box: Box) -> None:
    """What one image costs on the link, and how long it takes clients that ask for it at the same time."""
    for clients in (1, 6):
        found = []
        for host in (RECIPE, OUR_HOST):
            image = f"bench/{secrets.token_hex(4)}:1"
            made = box.push("quay.io", image, layer_sizes=LAYERS, seed=secrets.randbits(32))
            size = sum(layer["size"] for layer in made["layers"])
            before, start = box.bytes()["quay.io"].rx, time.monotonic()
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(lambda number: _pull(box, host, image, number), range(clients)))  # noqa: B023
            took = time.monotonic() - start
            time.sleep(2)  # what is fetched behind the client's back counts as well
            found.append(f"{(box.bytes()['quay.io'].rx - before) / size:.2f} x the image, {took:.1f} s")
        _tell(f"from the internet, {clients} cold client(s), {size / 1e6:.0f} MB", *found)


def _pull(box: Box, host: str, image: str, number: int) -> None:
    plain = ["--src-tls-verify=false"] if host == RECIPE else []
    copy = ["skopeo", "copy", "-q", *plain, f"docker://{host}/{image}", f"dir:/tmp/copy{number}"]
    box.node("sh", "-c", f"rm -rf /tmp/copy{number} && {' '.join(copy)} && rm -rf /tmp/copy{number}", timeout=600)


def _restart(box: Box) -> None:
    """The longest time for which the node gets no answer while a container restarts."""
    network = box.exec("podman", "network", "ls", "-q", "--filter=driver=macvlan").stdout.strip()
    box.exec("podman", "run", "-d", "--name=lone", f"--network={network}", f"--ip={LONE}",
             "docker.io/library/registry:3")  # fmt: skip
    recipe = _gap(box, f"http://{LONE}:5000/v2/", ["podman", "restart", "-t1", "lone"], 60)
    ours = _gap(box, f"https://{OUR_HOST}/v2/", ["systemctl", "restart", "mirror-quay-pod"], 20)
    edge = _gap(box, f"https://{OUR_HOST}/v2/", ["podman", "kill", "mirror-quay-edge"], 20)
    _tell("no answer while it restarts", f"{recipe:.1f} s", f"{ours:.1f} s (whole pod), {edge:.1f} s (edge killed)")


def _gap(box: Box, url: str, command: list[str], seconds: int) -> float:
    watch = f"end=$(($(date +%s)+{seconds})); while [ $(date +%s) -lt $end ]; do " \
        f"curl -skf -o /dev/null -m 0.5 {url} && date +%s.%N; sleep 0.05; done"  # fmt: skip
    answers: list[float] = []

    def look() -> None:
        said = box.node("sh", "-c", watch, check=False, timeout=seconds + 30).stdout
        answers.extend(map(float, said.split()))

    looking = threading.Thread(target=look)
    looking.start()
    time.sleep(2)
    box.exec(*command)
    looking.join()
    if not answers:
        raise SystemExit(f"{url} never answered")
    return max(later - earlier for earlier, later in pairwise(answers))


def _upstream_hangs(box: Box) -> None:
    """Cached tags while packets to the upstream vanish."""
    for host in (RECIPE, OUR_HOST):
        _pull(box, host, "demo/app:1.0", 0)
    time.sleep(5)  # no longer fresh
    box.gw("nft", "-f", "-", input=HOLE)
    try:
        first, second = (_ask(box, f"https://{OUR_HOST}") for _ in range(2))
        recipe = _ask(box, f"http://{RECIPE}")
        _tell("a cached tag while the upstream hangs", recipe, f"{first}; asked again: {second}")
    finally:
        box.gw("nft", "delete", "table", "ip", "hole")


def _ask(box: Box, base: str) -> str:
    done = box.node("curl", "-sk", "-o", "/dev/null", "-m", str(PATIENCE), "-H", ACCEPT, "-w",
                    "%{http_code} after %{time_total} s", f"{base}/v2/demo/app/manifests/1.0",
                    check=False, timeout=PATIENCE + 30)  # fmt: skip
    return re.sub(r"(\.\d\d)\d+", r"\1", done.stdout).replace("000 after", "no answer after")


def _start_without_internet(box: Box) -> None:
    """Both are started anew while the internet is away, with what they had cached."""
    with _cut(box):
        box.exec("systemctl", "stop", "recipe", check=False)
        box.exec("systemctl", "reset-failed", "recipe", check=False)
        done = box.exec("docker-registry", "serve", "/etc/recipe.yml", check=False, timeout=PATIENCE)
        why = next((line for line in done.stderr.splitlines() if line.startswith("panic:")), "")
        recipe = f"exit code {done.returncode} ({why[:30].strip()})" if done.returncode else "starts"
        started = time.monotonic()
        box.exec("systemctl", "restart", "mirror-quay-pod")
        while not _ask(box, f"https://{OUR_HOST}").startswith("200"):
            if time.monotonic() > started + PATIENCE:
                raise SystemExit("the mirror does not start without the internet")
            time.sleep(0.1)
        _tell("started while the internet is away", recipe, f"serves after {time.monotonic() - started:.1f} s")


@contextmanager
def _cut(box: Box) -> Iterator[None]:
    box.cut_internet()
    try:
        yield
    finally:
        box.mend_internet()


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
