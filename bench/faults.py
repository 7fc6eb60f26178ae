"""What happens when something goes wrong: the recipe's registry beside a mirror of ours."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from box import Box, BoxError

from .results import HANG, OFFLINE, POD, RECIPE, RESTART
from .world import ADDRESSES, HOST, World

_HOLE = """
table ip hole {
  chain forward { type filter hook forward priority 0; oifname wan drop; iifname wan drop; }
  chain input { type filter hook input priority 0; iifname wan drop; }
}
"""
# as podman and skopeo ask
_KINDS = ("oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2",
          "docker.distribution.manifest.v2")  # fmt: skip
_ACCEPT = "Accept: " + ", ".join(f"application/vnd.{kind}+json" for kind in _KINDS)
_PATIENCE = 60  # seconds that a client waits for an answer
_CONTAINER = f"bench-{RECIPE}"
_URLS = {RECIPE: f"https://{ADDRESSES[RECIPE]}", POD: f"https://{HOST}"}

Row = tuple[str, dict[str, str]]


def all_of_them(world: World) -> Iterator[Row]:
    """What happened, and what each did.  The recipe's registry does not survive the last."""
    yield _restart(world.box)
    yield _upstream_hangs(world.box)
    yield _start_without_internet(world.box)


def _restart(box: Box) -> Row:
    recipe = _gap(box, _URLS[RECIPE], ["podman", "restart", "-t1", _CONTAINER], 60)
    pod = _gap(box, _URLS[POD], ["systemctl", "restart", "mirror-quay-pod"], 10)
    edge = _gap(box, _URLS[POD], ["podman", "kill", "mirror-quay-edge"], 10)
    return RESTART, {
        RECIPE: f"{recipe:.1f} s", POD: f"{pod:.1f} s (the whole pod), {edge:.1f} s (its edge killed)",
    }  # fmt: skip


def _gap(box: Box, url: str, command: list[str], seconds: int) -> float:
    """The longest time for which the node gets no answer; done when it has got some again for a while."""
    watch = f"""
        end=$(($(date +%s) + {seconds})) failed=no again=0
        while [ $(date +%s) -lt $end ] && [ $again -lt 40 ]; do
            if curl -skf -o /dev/null -m 0.5 {url}/v2/; then
                date +%s.%N
                [ $failed = no ] || again=$((again + 1))
            else
                failed=yes again=0
            fi
            sleep 0.05
        done"""
    answers: list[float] = []

    def look() -> None:
        said = box.node("sh", "-c", watch, check=False, timeout=seconds + 30).stdout
        answers.extend(map(float, said.split()))

    looking = threading.Thread(target=look)
    looking.start()
    time.sleep(2)
    box.exec(*command)
    looking.join()
    if len(answers) < 2:
        raise BoxError(f"{url} never answered")
    return max(later - earlier for earlier, later in pairwise(answers))


def _upstream_hangs(box: Box) -> Row:
    """Cached tags while packets to the upstream vanish."""
    for who in (RECIPE, POD):
        if not (said := _ask(box, who)).startswith("200"):
            raise BoxError(f"{_URLS[who]}: {said}")
    time.sleep(5)  # no longer fresh
    box.gw("nft", "-f", "-", input=_HOLE)
    try:
        first, second = (_ask(box, POD) for _ in range(2))
        return HANG, {
            RECIPE: _ask(box, RECIPE), POD: f"{first}; asked again: {second}",
        }  # fmt: skip
    finally:
        box.gw("nft", "delete", "table", "ip", "hole")


def _ask(box: Box, who: str) -> str:
    done = box.node("curl", "-sk", "-o", "/dev/null", "-m", str(_PATIENCE), "-H", _ACCEPT, "-w",
                    "%{http_code} after %{time_total} s", f"{_URLS[who]}/v2/demo/app/manifests/1.0",
                    check=False, timeout=_PATIENCE + 30)  # fmt: skip
    return re.sub(r"(\.\d\d)\d+", r"\1", done.stdout).replace("000 after", "no answer after")


def _start_without_internet(box: Box) -> Row:
    """Both are started anew while the internet is away, with what they had cached."""
    with _cut(box):
        box.exec("podman", "restart", "-t1", _CONTAINER)
        exited = box.exec("timeout", str(_PATIENCE), "podman", "wait", _CONTAINER, check=False, timeout=_PATIENCE + 30)
        recipe = "starts"
        if exited.returncode == 0:
            said = box.exec("podman", "logs", "--tail=100", _CONTAINER)
            why = next((line for line in (said.stderr + said.stdout).splitlines() if line.startswith("panic:")), "")
            recipe = f"exit code {exited.stdout.strip()} ({why[:30].strip()})"
        started = time.monotonic()
        box.exec("systemctl", "restart", "mirror-quay-pod")
        while not _ask(box, POD).startswith("200"):
            if time.monotonic() > started + _PATIENCE:
                raise BoxError("the mirror does not start without the internet")
            time.sleep(0.1)
        return OFFLINE, {
            RECIPE: recipe, POD: f"serves after {time.monotonic() - started:.1f} s",
        }  # fmt: skip


@contextmanager
def _cut(box: Box) -> Iterator[None]:
    box.cut_internet()
    try:
        yield
    finally:
        box.mend_internet()
