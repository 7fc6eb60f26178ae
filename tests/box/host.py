"""The box as tests use it: one object, one method per verb of the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache, stages
from .machine import Machine, environment
from .report import BoxError, step
from .sandbox import SYSTEM_PATH, Sandbox, need
from .topology import PUBLISHER, upstream

REPO = stages.REPO

_NETNS = ("inet", "gw", "lan")
_HEADERS = 52  # bytes of a packet: IPv4 20, TCP 20, its timestamps 12


@dataclass(frozen=True)
class Traffic:
    """Bytes of IP over a link since boot, as the router counts them: received from, and sent to the internet."""

    rx: int
    tx: int


class Box:
    """A test host; by default the one that the environment variable BOX names."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or os.environ.get("BOX") or "main"
        if not self.name.replace("-", "").isalnum() or len(self.name) > 32:
            raise BoxError(f"BOX={self.name!r} is not a name", "letters, digits and dashes, at most 32")
        self.machine = Machine(self.name)

    # --- life

    @staticmethod
    def build() -> None:
        """Build what a box needs and is missing."""
        _build(stages.FOR_BOXES)

    def up(self, *, bare: bool = False) -> None:
        """Boot a pristine box with the project of this tree installed (not when `bare`); drops what ran before."""
        self.build()
        with self.machine.locked():
            self.machine.kill()
            self.machine.prepare()
            if not bare:
                with step("installing the project"):
                    _install(self.machine)
            with step("booting"):
                self.machine.boot()

    def down(self) -> None:
        """Stop it and drop its state."""
        with self.machine.locked():
            self.machine.kill()
            self.machine.forget()

    @contextmanager
    def lent(self) -> Iterator[Box]:
        """The box for a block. At its end, or when this process is killed before, the box is taken down."""
        with subprocess.Popen(
            ["sh", "-c", 'cat; exec "$0" down', stages.HERE / "box"],  # reads until this process is no more
            env={**os.environ, "BOX": self.name}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as reaper:  # fmt: skip
            yield self
            self.down()
            reaper.kill()

    def reboot(self) -> None:
        """Reboot in an orderly way, with its state."""
        with self.machine.locked(), step("rebooting"):
            self.machine.reboot()

    def kill(self) -> None:
        """Power cut, as far as processes go (what they wrote stays in this machine's page cache)."""
        with self.machine.locked():
            self.machine.kill()

    def start(self) -> None:
        """Boot again with the state that is there."""
        with self.machine.locked(), step("booting"):
            if self.machine.running():
                raise BoxError(f"box {self.name} is running already")
            self.machine.boot()

    @property
    def running(self) -> bool:
        """Whether it is booted."""
        return self.machine.running()

    def status(self) -> dict[str, Any]:
        """What there is, in short."""
        running = self.running
        answer: dict[str, Any] = {"name": self.name, "running": running, "state": str(self.machine.state)}
        if running:
            answer["pid"] = self.machine.first_process()
            answer["system"] = self.machine.run(self.machine.enter("systemctl", "is-system-running"), check=False)
            answer["internet"] = "cut" if self._is_cut() else "connected"
        return answer

    # --- commands

    def command(self, where: str, argv: Sequence[str | Path]) -> list[str]:
        """The command line to run `argv` somewhere ("host", "node", "inet", "gw", "lan"), with `environment()`."""
        words = [str(word) for word in argv]
        if where in _NETNS:
            words = ["ip", "netns", "exec", where, *words]
        return self.machine.enter(*words, node=where == "node")

    def exec(self, *argv: str | Path, where: str = "host", check: bool = True, timeout: float = 120,
             input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002  # fmt: skip
        """Run a command to its end, on the cache host if not told otherwise.

        Raises subprocess.TimeoutExpired, and with `check` AssertionError with all that the command said.
        """
        done = subprocess.run(
            self.command(where, argv), env=environment(), capture_output=True, text=True, check=False, timeout=timeout,
            input=input or "",
        )  # fmt: skip
        if check and done.returncode:
            shown = " ".join(str(word) for word in argv)
            raise AssertionError(f"{where}: {shown}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def node(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """`exec` on the cluster node."""
        return self.exec(*argv, where="node", **options)

    def inet(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """`exec` on the internet."""
        return self.exec(*argv, where="inet", **options)

    def gw(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """`exec` on the router."""
        return self.exec(*argv, where="gw", **options)

    def journal(self, *options: str) -> str:
        """What journalctl says on the cache host, when it has got all that was written before."""
        script = 'journalctl --sync && exec journalctl --no-pager "$@"'
        return self.exec("sh", "-c", script, "journal", *options).stdout

    # --- the world

    def cut_internet(self) -> None:
        """Take the router's link to the internet down, until mended; a reboot does not mend it."""
        self.exec("/usr/libexec/box/internet", "cut")

    def mend_internet(self) -> None:
        """Bring the router's link to the internet up again."""
        self.exec("/usr/libexec/box/internet", "mend")

    def _is_cut(self) -> bool:
        return self.exec("test", "-e", "/var/lib/box/internet-is-cut", check=False).returncode == 0

    def bytes(self) -> dict[str, Traffic]:
        """What crossed the router's internet link since boot: "total", and by the name of who was there."""
        listing = json.loads(self.gw("nft", "--json", "list", "counters", "table", "ip", "router").stdout)
        counted = {c["name"]: c["bytes"] for entry in listing["nftables"] if (c := entry.get("counter"))}
        names = {name.rpartition("-")[0] for name in counted}
        return {name: Traffic(counted[f"{name}-rx"], counted[f"{name}-tx"]) for name in sorted(names)}

    def received(self, name: str) -> int:
        """Bytes of payload that came from somebody on the internet ("quay.io") since boot.

        The router counts packets of IP: their headers are taken off, for on a busy machine packets are smaller and
        headers more (up to 3.5 %).
        """
        time.sleep(0.2)  # for the last packets of closed connections
        listing = json.loads(self.gw("nft", "--json", "list", "counter", "ip", "router", f"{name}-rx").stdout)
        counter = next(entry["counter"] for entry in listing["nftables"] if "counter" in entry)
        return int(counter["bytes"]) - _HEADERS * int(counter["packets"])

    def images(self) -> dict[str, Any]:
        """What the upstreams served when the box was built: upstream → REPO:TAG → digests and sizes."""
        described: dict[str, Any] = json.loads((stages.GUEST.path / "etc/box/images.json").read_text())
        return described

    def push(self, upstream_name: str, image: str, *, layer_sizes: Sequence[int] = (1_000_000,),
             seed: int = 0) -> dict[str, Any]:  # fmt: skip
        """Make an image of such layers and push it to an upstream by its front door; digests and sizes.

        Pushed from within the internet, so it works while the link is cut, and no router counts it.
        """
        from . import oci  # here, since its imports would double the time of `box exec`

        target = upstream(upstream_name)
        login = [f"--dest-creds={':'.join(PUBLISHER)}"] if target.token_auth else []
        with self.machine.shared_folder() as (outside, inside):
            described = oci.noise_image(outside, layer_sizes, f"{upstream_name}/{image}/{seed}")
            copy = ["skopeo", "copy", "--quiet", *login, f"oci:{inside}", f"docker://{target.host}/{image}"]
            self.inet(*copy, timeout=600)
        return described

    def node_configure(self, published: str | Path) -> None:
        """Install a publication folder of the cache host on the node, as an admin would."""
        self.exec("/usr/libexec/box/node-configure", published)

    def node_reset(self) -> None:
        """Make the node cold: no images, no containers, no storage."""
        self.node("podman", "system", "reset", "--force")


def run(argv: Sequence[str], *, read_only: bool = False, cluster: bool = False, browser: bool = False) -> None:
    """Replace this process by `argv` in Debian 13 with the developers' tools, not booted; see README.md.

    With `cluster`, KUBEBUILDER_ASSETS is a folder with a kube-apiserver: the caller's, or the one that is built here.
    """
    given = os.environ.get("KUBEBUILDER_ASSETS", "")
    needed = (*stages.FOR_RUN, *((stages.API_SERVER,) if cluster and not given else ()),
              *((stages.BROWSER,) if browser else ()))  # fmt: skip
    _build(needed)
    for stage in needed:
        os.set_inheritable(cache.hold(stage.path), True)
    assets = (Path(given or stages.API_SERVER.path),) if cluster else ()
    originals = REPO.parent / "shared/crds"  # OpenShift's own, on the machines that have them beside this tree
    shown = (*assets, originals) if cluster and originals.is_dir() else assets
    told = {"KUBEBUILDER_ASSETS": str(assets[0])} if assets else {}
    here = Path.cwd()
    sandbox = Sandbox(
        layers=(*((stages.BROWSER.path,) if browser else ()), *(stage.path for stage in reversed(stages.FOR_RUN))),
        writable=() if read_only else (REPO,), readable=((REPO,) if read_only else ()) + shown,
        environment=_passed_on(os.environ) | told,
    )  # fmt: skip
    command = sandbox.command(argv, cwd=here if here.is_relative_to(REPO) else REPO)
    os.execvpe(command[0], command, sandbox.environ())


def pytest(arguments: Sequence[str]) -> None:
    """Replace this process by pytest on this machine, for tests that drive a box from outside."""
    _build(stages.FOR_TESTS)
    os.set_inheritable(cache.hold(stages.PYTEST.path), True)
    path = f"{stages.HERE.parent}:{stages.PYTEST.path}"
    os.execve(sys.executable, [sys.executable, "-m", "pytest", *arguments], {**os.environ, "PYTHONPATH": path})


def clean() -> None:
    """Stop every box and remove all that was ever built."""
    for state in sorted((cache.CACHE / "boxes").glob("*")):
        if state.is_dir():
            Box(state.name).down()
    with cache.locked(cache.CACHE / "build.lock", "a build is running, waiting for it"):
        shutil.rmtree(cache.CACHE)


def _passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """What a test run wants to know of the caller's environment."""
    prefixes = ("PYTEST_", "HYPOTHESIS_", "MIRROR_AGENT_")
    names = ("CI", "TERM", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTHONPATH")
    chosen = {k: v for k, v in environ.items() if k.startswith(prefixes) or k in names}
    return {"TERM": "dumb"} | chosen


def _build(wanted: Sequence[cache.Stage]) -> None:
    need("debootstrap", "systemd-nspawn", "unshare", "nsenter", "setpriv")
    cache.build(wanted)


def _install(machine: Machine) -> None:
    """The project's package, into the cache host."""
    package = stages.package()
    cache.build((package,))
    [rpm] = package.path.glob("*.noarch.rpm")
    # Debian knows nothing of rpm's: what the package requires is in packages.txt
    machine.install(
        f"cp '{rpm}' \"$ROOT/tmp/package.rpm\"\n"
        f'env -i PATH={SYSTEM_PATH} HOME=/root chroot "$ROOT" rpm --install --nodeps /tmp/package.rpm\n'
        'rm "$ROOT/tmp/package.rpm"'
    )


__all__ = ["Box", "Traffic", "run"]
