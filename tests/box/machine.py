"""One booted box: its state folder, its cgroup, its processes.

The cgroup is the handle: the box runs if and only if a process is in it, whoever started it and however that
one ended. Killing the cgroup ends the box, and all mounts and networks with it, since they are its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from . import cache, sandbox, stages
from .report import BoxError
from .sandbox import SYSTEM_PATH, isolated

_CGROUP = "mirror-agent-box"
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
_LAYERS = {"ROOTFS": stages.ROOTFS, "GUEST": stages.GUEST, "NODE": stages.NODE}
_EXEC = "system.slice/box-exec.service"
_NODE = "system.slice/box-node.service"
_NODE_EXEC = "system.slice/box-node-exec.service"


def _cgroup_root() -> Path:
    """Where cgroup v2 is mounted: all of it, or beside v1 (hybrid)."""
    for mount in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (mount / "cgroup.procs").exists() and (mount / "cgroup.subtree_control").exists():
            return mount
    raise BoxError("no cgroup v2 on this machine", "neither /sys/fs/cgroup nor /sys/fs/cgroup/unified is one")


class Machine:
    """A box by name, running or not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = cache.CACHE / "boxes" / name
        self.cgroup = _cgroup_root() / _CGROUP / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this box against other callers that start or stop it."""
        with cache.locked(self.state.with_name(f"{self.name}.lock"), f"box {self.name} is busy, waiting"):
            yield

    # --- life and death

    def running(self) -> bool:
        """Whether any process of this box is alive."""
        with suppress(OSError):
            return "populated 1" in (self.cgroup / "cgroup.events").read_text()
        return False

    def prepare(self) -> None:
        """Empty state: both hosts as built."""
        if self.state.exists():
            cache.remove(self.state)
        for host in ("cache", "node"):
            for folder in ("upper", "work", "root", "containers"):
                (self.state / host / folder).mkdir(parents=True)
            etc = self.state / host / "upper" / "etc"
            etc.mkdir()
            # Without an id systemd would take this for a first boot and enable everything.
            (etc / "machine-id").write_text(f"{os.urandom(16).hex()}\n")
        (self.state / "exchange").mkdir()
        # what this box is made of, for a later `start`, when the tree may have changed
        for layer, stage in _LAYERS.items():
            (self.state / layer).symlink_to(stage.path)

    def boot(self) -> None:
        """Start it with the state that it has, and wait until systemd says that it is up."""
        if not self.state.exists():
            raise BoxError(f"box {self.name} has no state to boot", hint="`box up` makes a new one")
        layers = {layer: (self.state / layer).readlink() for layer in _LAYERS}
        if missing := [str(path) for path in layers.values() if not path.exists()]:
            raise BoxError(f"box {self.name} cannot boot", f"{missing[0]} was built again since", "`box up`")
        try:
            self.cgroup.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BoxError("no cgroup for the box", str(error), "in a container, it must be a privileged one") from None
        held = [cache.hold(path) for path in layers.values()]
        try:
            with (self.state / "console.log").open("ab") as console:
                supervisor = subprocess.Popen(
                    ["unshare", "--mount", "--propagation", "private", stages.HERE / "supervise"],
                    env=self._settings(layers), cwd="/", start_new_session=True, pass_fds=held,
                    stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                )  # fmt: skip
        finally:
            for descriptor in held:
                os.close(descriptor)
        self._wait_until_up(lambda: supervisor.poll() is None)

    def _settings(self, layers: Mapping[str, Path]) -> dict[str, str]:
        own = {"CGROUP": self.cgroup, "STATE": self.state, "NAME": self.name, "PATH": SYSTEM_PATH, **layers}
        return {key: str(value) for key, value in own.items()}

    def install(self, script: str) -> None:
        """Run a shell script on this machine with $ROOT, the cache host's files; for before the boot."""
        cache_host = self.state / "cache"
        mount = (
            f"mount -t overlay -o lowerdir={stages.GUEST.path}:{stages.ROOTFS.path},"
            f"upperdir={cache_host}/upper,workdir={cache_host}/work,redirect_dir=on overlay {cache_host}/root"
        )
        command = f"set -e\n{mount}\nexport ROOT={cache_host}/root\n{script}"
        sandbox.run([*isolated(), "sh", "-c", command], name="installing the project")

    def reboot(self) -> None:
        """`systemctl reboot`; returns when it is up again."""
        before = self._boot_id()
        self.run(self.enter("systemctl", "reboot"), check=False)  # it may not live to tell
        self._wait(lambda: self._boot_id() not in ("", before), 120, "did not come back from a reboot")
        self._wait_until_up(self.running)

    def kill(self) -> None:
        """End every process of the box at once. State is kept."""
        if self.running():
            (self.cgroup / "cgroup.kill").write_text("1")
        self._wait(lambda: not self.running(), 60, "still has processes after SIGKILL")
        self._remove_traces()

    def cgroups(self) -> list[Path]:
        """Those that this machine has of the box, in each hierarchy (v1 may be mounted beside v2)."""
        places = {self.cgroup, *(root / _CGROUP / self.name for root in Path("/sys/fs/cgroup").iterdir())}
        return sorted(place for place in places if place.exists())

    def _remove_traces(self) -> None:
        """Remove what is left of a dead box: empty cgroups, nspawn's folder for mounts."""
        for cgroup in self.cgroups():
            for folder in sorted((f for f in cgroup.rglob("*") if f.is_dir()), reverse=True):
                folder.rmdir()
            for folder in (cgroup, cgroup.parent):
                with suppress(OSError):  # absent, or other boxes are in it
                    folder.rmdir()
        with suppress(FileNotFoundError):
            Path(f"/run/systemd/nspawn/propagate/box-{self.name}").rmdir()

    def forget(self) -> None:
        """Drop the state of a box that does not run."""
        if self.state.exists():
            cache.remove(self.state)

    # --- waiting

    def _wait_until_up(self, alive: Callable[[], bool]) -> None:
        self._wait(lambda: self._entered() or not alive(), 120, "did not start its services")
        if not alive():
            raise BoxError(f"box {self.name} ended while it was booting", self._console())
        state = self.run(self.enter("systemctl", "is-system-running", "--wait"), check=False)
        if state != "running":
            failed = self.run(self.enter("systemctl", "list-units", "--failed", "--plain", "--no-legend"), check=False)
            raise BoxError(f"box {self.name} is {state or 'not up'}", failed, "`box exec -- journalctl -b -p warning`")

    def _entered(self) -> bool:
        for unit in (_EXEC, _NODE, _NODE_EXEC):
            with suppress(OSError):
                if (self._payload() / unit / "cgroup.procs").read_text().strip():
                    continue
            return False
        return True

    def _wait(self, condition: Callable[[], bool], seconds: float, complaint: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise BoxError(f"box {self.name} {complaint} within {seconds:.0f} s", self._console())
            time.sleep(0.02)

    def _console(self) -> str:
        with suppress(OSError):
            return "\n".join((self.state / "console.log").read_text(errors="replace").splitlines()[-20:])
        return ""

    def _boot_id(self) -> str:
        """Changes with each boot; "" while there is none."""
        pid = self.first_process()
        with suppress(OSError):
            # with the number: that of the namespace may be given again
            return "" if pid is None else f"{pid} {Path(f'/proc/{pid}/ns/pid').stat().st_ino}"
        return ""

    # --- entering

    def _payload(self) -> Path:
        return self.cgroup / "payload"

    def first_process(self) -> int | None:
        """The box's PID 1 as this machine counts, or None when it is not booted."""
        with suppress(OSError, IndexError, ValueError):
            return int((self._payload() / "init.scope" / "cgroup.procs").read_text().split()[0])
        return None

    def enter(self, *argv: str, node: bool = False) -> list[str]:
        """The command line that runs `argv` in the box. Raises BoxError when the box is not up."""
        unit, target = _EXEC, self.first_process()
        if node:
            with suppress(OSError, IndexError):
                unit, target = _NODE_EXEC, int((self._payload() / _NODE / "cgroup.procs").read_text().split()[0])
        if target is None:
            raise BoxError(f"box {self.name} is not running", hint="`box up` boots it")
        nsenter = shutil.which("nsenter", path=SYSTEM_PATH) or "nsenter"
        # First into the right cgroup (0: myself), as seen from outside; then through all namespaces.
        join = 'echo 0 > "$0" && exec "$@"'
        procs = str(self._payload() / unit / "cgroup.procs")
        return ["/bin/sh", "-c", join, procs, nsenter, f"--target={target}", *_NAMESPACES, "--", *argv]

    @contextmanager
    def shared_folder(self) -> Iterator[tuple[Path, str]]:
        """A folder that is there for this machine and for the cache host, by its two names; removed afterwards."""
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        outside = self.state / "exchange" / name
        outside.mkdir()
        try:
            yield outside, f"/var/lib/box/exchange/{name}"
        finally:
            shutil.rmtree(outside)

    def run(self, argv: list[str], check: bool = True) -> str:
        """Output of a command line from `enter`."""
        done = subprocess.run(
            argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise BoxError(f"{argv[-1]} failed in box {self.name}", (done.stderr or done.stdout).strip())
        return done.stdout.strip()


def environment() -> dict[str, str]:
    """The environment of commands in the box: nothing of this machine's but the kind of terminal."""
    clean = {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8", "USER": "root", "LOGNAME": "root"}
    return clean | {"TERM": os.environ.get("TERM") or "dumb"}
