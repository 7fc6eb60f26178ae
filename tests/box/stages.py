"""What the box is built of. Each stage is cached by its ingredients (cache.py).

::

    rootfs ─┬─ tools           Debian 13, and the developers' venv over it
            ├─ pytest          for this machine's Python, which drives the box
            ├─ pki             the public web PKI of the box's internet: a CA, a certificate per name
            ├─ distribution    the real registry
            ├─ proxy           an HTTP proxy
            ├─ promtool        Prometheus' judge of alarms, for tests/package
            ├─ readers         containerd and Docker, for test_readers.py
            ├─ apiserver       kube-apiserver, for tests/cluster
            ├─ images ── stores    image layouts, and the upstreams' stores with them in
            └─ guest, node     layers over rootfs: what makes it the cache host, the cluster node
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from . import guest, images
from .cache import Stage, content
from .sandbox import Sandbox, isolated, run
from .topology import UPSTREAMS, internet

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent

SUITE = "trixie"
DISTRIBUTION = "github.com/distribution/distribution/v3/cmd/registry@v3.1.1"
GO_FLOOR = (1, 25)  # what distribution's go.mod asks for

_GO_SETTINGS = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false '-ldflags=-s -w'"}  # static and small

_MASKED = (  # would wait for a network that is not theirs, or work on their own while a test measures
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service",
    "console-getty.service", "getty@.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer", "fstrim.timer", "man-db.timer", "systemd-pstore.service",
    "systemd-modules-load.service",  # not in a container, and the kernel is not ours
)  # fmt: skip
_DISABLED = (
    "nginx.service", "docker-registry.service", "named.service", "netavark-dhcp-proxy.service",
    "netavark-dhcp-proxy.socket", "netavark-firewalld-reload.service",
)  # fmt: skip
_FINISH = (  # each runs in the new root file system
    ("apt-get", "clean"),
    ("systemctl", "mask", *_MASKED),
    ("systemctl", "disable", *_DISABLED),
    # an empty persistent journal: a test can read what happened before a reboot
    ("mkdir", "-p", "/var/log/journal"),
    ("sh", "-c", ": > /etc/machine-id"),
    ("python3", "-c", "import gi, pydbus, podman, cryptography.x509, pydantic, structlog, watchdog, systemd.journal"),
)


def _lines(name: str) -> list[str]:
    """A file of this folder without its comments."""
    lines = (HERE / name).read_text().splitlines()
    return [line for raw in lines if (line := raw.partition("#")[0].strip())]


PACKAGES = _lines("packages.txt")


def _make_rootfs(folder: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(folder)]
    run([*isolated(), *command], name="debootstrap")
    # Not an overlay: straight into the new folder.
    finish = "\n".join(" ".join(f"'{word}'" for word in command) for command in _FINISH)
    script = f"set -e\nmount -t proc proc '{folder}/proc'\nchroot '{folder}' sh -e <<'END'\n{finish}\nEND\n"
    run([*isolated(), "sh", "-c", script], name="finishing the root file system")


ROOTFS = Stage("rootfs", [SUITE, PACKAGES, _FINISH], _make_rootfs, fetches=True)


def _make_distribution(folder: Path) -> None:
    _go(["go", "install", DISTRIBUTION], folder, folder, {**_GO_SETTINGS, "GOBIN": str(folder)})


def _go(command: list[str], here: Path, folder: Path, settings: dict[str, str]) -> None:
    """Go of this machine, or Debian's, in `here`; it writes to `folder`."""
    if _host_go() >= GO_FLOOR:
        words = [*isolated(), "env", f"--chdir={here}", *command]
        run(words, env={**os.environ, **settings}, name="go")
        return
    # Debian 13 has Go 1.24, which fetches the newer toolchain as a module by itself
    install = "apt-get -q update && apt-get -qy --no-install-recommends install golang-go"
    settings = settings | {"GOTOOLCHAIN": "auto", "GOPATH": "/tmp/go", "GOCACHE": "/tmp/go-cache"}
    sandbox = Sandbox(
        (ROOTFS.path,), writable=(folder,), readable=(here,) if here != folder else (), environment=settings
    )
    sandbox.run(["sh", "-c", f"{install} && {shlex.join(command)}"], cwd=here)


def _host_go() -> tuple[int, ...]:
    if not shutil.which("go"):
        return (0,)
    version = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2]) or (0,)


REGISTRY = Stage("distribution", [DISTRIBUTION, _GO_SETTINGS], _make_distribution, needs=(ROOTFS,), fetches=True)


def _unpack(package: str, folder: Path) -> None:
    """Unpacked, not installed: for programs that need libc and nothing else."""
    script = f"apt-get -q update && apt-get -q download {package} && dpkg -x *.deb . && rm *.deb"
    Sandbox((ROOTFS.path,), writable=(folder,)).run(["sh", "-ec", script], cwd=folder)


PROXY_PACKAGE, PROMTOOL_PACKAGE = "tinyproxy-bin", "promtool"
PROXY = Stage("proxy", PROXY_PACKAGE, lambda folder: _unpack(PROXY_PACKAGE, folder), needs=(ROOTFS,), fetches=True)
PROMTOOL = Stage(
    "promtool", PROMTOOL_PACKAGE, lambda folder: _unpack(PROMTOOL_PACKAGE, folder), needs=(ROOTFS,), fetches=True
)


_READERS = _lines("readers.txt")


def _make_readers(folder: Path) -> None:
    """Unpacked, not installed: a test lays them over the node's files."""
    script = (
        f"apt-get -q update && apt-get -qy --no-install-recommends --download-only install {' '.join(_READERS)}\n"
        "for deb in /var/cache/apt/archives/*.deb; do dpkg --fsys-tarfile $deb | tar --extract; done\n"
        "rm -rf usr/share"
    )
    Sandbox((ROOTFS.path,), writable=(folder,)).run(["sh", "-ec", script], cwd=folder)


READERS = Stage("readers", _READERS, _make_readers, needs=(ROOTFS,), fetches=True)


_API_SERVER = HERE.parent / "cluster" / "apiserver"


def _make_api_server(folder: Path) -> None:
    version = re.search(r"k8s.io/kubernetes (\S+)", (_API_SERVER / "go.mod").read_text())
    assert version
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion={version[1]}"
    settings = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false -mod=readonly"}
    _go(["go", "build", f"-ldflags={flags}", "-o", f"{folder}/kube-apiserver", "."], _API_SERVER, folder, settings)


API_SERVER = Stage("apiserver", content(_API_SERVER), _make_api_server, needs=(ROOTFS,), fetches=True)


_TOOLS = [_lines("tools.txt"), _lines("dev-requirements.txt")]


def _make_tools(folder: Path) -> None:
    sandbox = Sandbox((ROOTFS.path,), upper=folder, readable=(HERE,))
    packages = f"apt-get -q update && apt-get -qy --no-install-recommends install {' '.join(_TOOLS[0])}"
    clean = "apt-get clean && rm -rf /var/lib/apt/lists/*"
    venv = "python3 -m venv --system-site-packages /opt/box-tools && /opt/box-tools/bin/pip install -r"
    sandbox.run(["sh", "-ec", f"{packages} && {clean} && {venv} {HERE}/dev-requirements.txt"])
    remove_workdir(folder)


TOOLS = Stage("tools", _TOOLS, _make_tools, needs=(ROOTFS,), fetches=True)


_BROWSER = _lines("browser.txt")


def _make_browser(folder: Path) -> None:
    sandbox = Sandbox((ROOTFS.path,), upper=folder)
    install = f"apt-get -q update && apt-get -qy --no-install-recommends install {' '.join(_BROWSER)}"
    sandbox.run(["sh", "-ec", f"{install} && apt-get clean && rm -rf /var/lib/apt/lists/*"])
    remove_workdir(folder)


BROWSER = Stage("browser", _BROWSER, _make_browser, needs=(ROOTFS,), fetches=True)


BUNDLED = REPO / "packaging/bundled.txt"


def _make_wheels(folder: Path) -> None:
    sandbox = Sandbox((ROOTFS.path,), writable=(folder,), readable=(BUNDLED.parent,))
    sandbox.run(["pip", "download", "--no-deps", "--require-hashes", "-d", folder, "-r", BUNDLED])


WHEELS = Stage("wheels", BUNDLED.read_text(), _make_wheels, needs=(ROOTFS,), fetches=True)

PACKAGED = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "agent/mirror_agent",
    "docs",
    "etc",
    "packaging",
    "pyproject.toml",
    "quadlets",
)


def package() -> Stage:
    """The project's RPM and its source RPM, of the tree as it is now."""
    made_of = {
        name: content(REPO / name) if (REPO / name).is_dir() else (REPO / name).read_text() for name in PACKAGED
    }  # fmt: skip
    return Stage("package", made_of, _make_package, needs=(TOOLS, WHEELS))


def _make_package(folder: Path) -> None:
    sandbox = Sandbox((TOOLS.path, ROOTFS.path), writable=(folder,), readable=(REPO, WHEELS.path), network=False)
    sandbox.run([REPO / "packaging/make-rpm", folder, WHEELS.path])


def _make_pytest(folder: Path) -> None:
    # Pure Python, so it may be fetched by Debian 13's pip and run by whatever Python this machine has.
    sandbox = Sandbox((ROOTFS.path,), writable=(folder,), readable=(HERE,))
    sandbox.run(["pip", "install", "--target", folder, "-r", HERE / "pytest-requirements.txt"])


PYTEST = Stage("pytest", _lines("pytest-requirements.txt"), _make_pytest, needs=(ROOTFS,), fetches=True)


def _make_pki(folder: Path) -> None:
    """A CA that plays the public web PKI, a certificate for each name, and the token service's signing key."""
    folder = folder.resolve()
    sandbox = Sandbox((ROOTFS.path,), writable=(folder,), network=False)
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 -config /dev/stdin"
    for name, subject, extensions in _certificates():
        signed = "" if name in ("ca", "token") else "-CA ca.crt -CAkey ca.key"
        config = f"[req]\nprompt=no\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\nCN={subject}\n[ext]\n"
        script = f"{new} {signed} -keyout {name}.key -out {name}.crt <<'END'\n{config}{extensions}\nEND"
        sandbox.run(["sh", "-c", script], cwd=folder)


def _certificates() -> list[tuple[str, str, str]]:
    ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash"
    leaf = "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:"
    servers = [(name, name, leaf + name) for name in internet()]
    signing = "subjectKeyIdentifier=hash"
    return [("ca", "Test CA of the box's internet", ca), *servers, ("token", "token signing", signing)]


PKI = Stage("pki", _certificates(), _make_pki, needs=(ROOTFS,))


def _source(*names: str) -> dict[str, str]:
    return {name: (HERE / name).read_text() for name in names}


def _make_images(folder: Path) -> None:
    trust = folder / "ca-certificates.crt"
    public = (ROOTFS.path / "etc/ssl/certs/ca-certificates.crt").read_text()
    trust.write_text(public + (PKI.path / "ca.crt").read_text())
    images.build(folder, ROOTFS.path, trust, REGISTRY.path / "registry")


IMAGES = Stage("images", _source("images.py", "oci.py", "topology.py"), _make_images, needs=(ROOTFS, REGISTRY, PKI))


def _make_stores(folder: Path) -> None:
    for upstream in UPSTREAMS:
        store, layouts = folder / upstream.name, IMAGES.path / upstream.name
        store.mkdir()
        sandbox = Sandbox(
            (ROOTFS.path,), writable=(store,), readable=(REPO, IMAGES.path, REGISTRY.path), network=False,
            environment={"PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        program = [f"python3 -m {HERE.name}.seed", f"{REGISTRY.path}/registry", str(store), str(layouts)]
        described = sandbox.run(["sh", "-c", f"cd {HERE.parent} && exec {' '.join(program)}"], capture=True)
        (folder / f"{upstream.name}.json").write_text(described)


STORES = Stage("stores", _source("seed.py"), _make_stores, needs=(IMAGES,))


def _make_guest(folder: Path) -> None:
    guest.fill_cache_host(folder, HERE / "guest", PKI.path, STORES.path, REGISTRY.path, PROXY.path)
    Sandbox((ROOTFS.path,), upper=folder, network=False).run(["update-ca-certificates"])
    remove_workdir(folder)


def _make_node(folder: Path) -> None:
    guest.fill_node(folder, PKI.path)
    Sandbox((ROOTFS.path,), upper=folder, network=False).run(["update-ca-certificates"])
    remove_workdir(folder)


_GUEST_SOURCE = _source("guest.py", "topology.py")

GUEST = Stage("guest", [content(HERE / "guest"), _GUEST_SOURCE], _make_guest, needs=(STORES, PROXY))
NODE = Stage("node", _GUEST_SOURCE, _make_node, needs=(PKI,))

FOR_RUN = (ROOTFS, TOOLS, PROMTOOL)  # all that `box run` needs
FOR_BOXES = (ROOTFS, REGISTRY, PROXY, PKI, IMAGES, STORES, GUEST, NODE, TOOLS, WHEELS, PYTEST, READERS)  # that boot
FOR_TESTS = (*FOR_BOXES, API_SERVER)  # a test has five minutes, and compiling that may take more


def remove_workdir(upper: Path) -> None:
    """Remove what overlayfs kept beside an upper folder, now that it becomes a lower one."""
    work = upper.with_name(f"{upper.name}.work")
    if work.exists():
        shutil.rmtree(work)
