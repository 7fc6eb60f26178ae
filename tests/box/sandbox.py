"""Commands in a root file system that is not booted: own mounts and processes, gone when the command ends.

The root is an overlay: `layers` (topmost first) are never written; what the command writes goes to `upper`,
or to memory and away. Nothing is mounted outside the sandbox's own mount namespace, so there is nothing to
clean up, however it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .report import BoxError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = "/opt/box-tools"  # where the developers' venv is, in sandboxes that have it

# This machine's way to the package registries, for pip, go and apt in a sandbox: settings, and the CA bundle.
_ONLINE = ("PIP_", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOFLAGS", "GOINSECURE", "SSL_CERT_FILE",
           "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_FROM_HOST = ("/etc/resolv.conf", "/etc/hosts", _CA_BUNDLE, "/etc/pip.conf")

HINT = "tests/box/host-packages installs what the box needs"

_ENTER = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$SCRATCH"
mkdir "$SCRATCH/upper" "$SCRATCH/work" "$SCRATCH/root"
root=$SCRATCH/root
mount -t overlay -o "lowerdir=$LOWER,upperdir=${UPPER:-$SCRATCH/upper},workdir=${WORK:-$SCRATCH/work}" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp" -o mode=1777
mount -t tmpfs tmpfs "$root/run" -o mode=755
for file in $FROM_HOST; do
    [ -e "$file" ] || continue
    [ -e "$root$file" ] || : > "$root$file"
    mount --bind "$file" "$root$file"
done
[ -z "$LOOPBACK" ] || ip link set lo up
printf '%s\\n' "$BINDS" | while IFS=: read -r how source target; do
    [ -n "$source" ] || continue
    mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
    [ "$how" = rw ] || mount -o "remount,bind,ro" "$root$target"
done
unset SCRATCH LOWER UPPER WORK FROM_HOST BINDS LOOPBACK
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Sandbox:
    """How to enter a root file system. `upper` (to keep what is written) needs a sibling for overlayfs' work."""

    layers: tuple[Path, ...]
    upper: Path | None = None
    writable: tuple[Path, ...] = ()  # of this machine, at the same paths
    readable: tuple[Path, ...] = ()
    network: bool = True  # this machine's; else a namespace with nothing but a loopback
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, argv: Sequence[str | Path], *, cwd: Path | str = "/", capture: bool = False) -> str:
        """Run a command to its end; its output if captured. Raises BoxError when it fails."""
        return run(self.command(argv, cwd), env=self.environ(), capture=capture, name=Path(argv[0]).name)

    def command(self, argv: Sequence[str | Path], cwd: Path | str = "/") -> list[str]:
        """The full command line that enters the sandbox and runs `argv` there; wants `environ()`."""
        inside = ["/usr/bin/env", f"--chdir={cwd}", *map(str, argv)]
        net = [] if self.network else ["--net"]
        return [*isolated(*net), "/bin/sh", "-c", _ENTER, "sandbox", *inside]

    def environ(self) -> dict[str, str]:
        """The environment for `command()`: the sandbox's own, plus what its first steps need."""
        binds = [f"rw:{p}:{p}" for p in self.writable] + [f"ro:{p}:{p}" for p in self.readable]
        own = {"PATH": f"{TOOLS}/bin:{SYSTEM_PATH}", "HOME": "/root", "LANG": "C.UTF-8", "LOGNAME": "root"}
        setup = {
            "SCRATCH": "/mnt",  # any folder that exists: only this sandbox sees what is mounted there
            "LOWER": ":".join(map(str, self.layers)),
            "UPPER": str(self.upper or ""),
            "WORK": str(workdir(self.upper)) if self.upper else "",
            "BINDS": "\n".join(binds),
            "FROM_HOST": " ".join(_FROM_HOST) if self.network else "",
            "LOOPBACK": "" if self.network else "yes",
        }
        return own | (_online() if self.network else {}) | dict(self.environment) | setup


def workdir(upper: Path) -> Path:
    """The work folder that overlayfs wants beside an upper one, made when absent."""
    work = upper.with_name(f"{upper.name}.work")
    work.mkdir(exist_ok=True)
    return work


def _online() -> dict[str, str]:
    chosen = {k: v for k, v in os.environ.items() if k.startswith(_ONLINE) and k != "PIP_FIND_LINKS"}
    return chosen | {"PIP_CERT": _CA_BUNDLE, "SSL_CERT_FILE": _CA_BUNDLE, "REQUESTS_CA_BUNDLE": _CA_BUNDLE}


def isolated(*options: str) -> list[str]:
    """A prefix for a command: mounts and processes of its own, which all end with it."""
    # --kill-child: the first process of the new namespace dies with unshare, and with that one all in there
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", *options, "--"]


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, capture: bool = False, name: str) -> str:
    """Run a command; what it says is shown only when it fails, as the reason of the BoxError.

    It dies with this process, so that a killed build leaves nothing behind that still writes.
    """
    try:
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", *argv], env=env, text=True, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE if capture else subprocess.STDOUT,
        )  # fmt: skip
    except FileNotFoundError:
        raise BoxError("setpriv: not found", "it is part of util-linux", HINT) from None
    if done.returncode:
        said = f"{done.stderr or ''}{done.stdout}".splitlines()
        raise BoxError(f"{name} failed with exit code {done.returncode}", "\n".join(said[-30:]))
    return done.stdout


def need(*programs: str) -> None:
    """Raise BoxError when a program is missing on this machine."""
    missing = [p for p in programs if not shutil.which(p)]
    if missing:
        raise BoxError(f"this machine lacks {', '.join(missing)}", hint=HINT)
    if os.geteuid() != 0:
        raise BoxError("the box needs root", "it mounts file systems and makes network namespaces", "run it as root")
