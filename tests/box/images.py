"""The images of the box's internet: the production images, made of Debian's files, and small ones to pull.

The official images cannot be downloaded where the tests run. What matters of them is the same here: names,
users, paths, entrypoint, stop signal, and the programs themselves (nginx, distribution 3.1.1).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import oci
from .sandbox import Sandbox
from .topology import UPSTREAMS, Upstream

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_PASSWD = "root:x:0:0:root:/root:/bin/sh\n{0}:x:{1}:{1}:{0}:/nonexistent:/bin/false\nnobody:x:65534:65534::/:\n"
_GROUP = "root:x:0:\n{0}:x:{1}:\nnogroup:x:65534:\n"
_TOOLS = ("sh", "cat", "printf", "wget", "ls", "kill", "sleep", "id", "env", "ps", "test", "find", "nslookup")

# As the official image: a command that starts with - or is the server's name goes through a set-up
# phase, everything else is run as it is. There is nothing to set up here.
_NGINX_ENTRYPOINT = '#!/bin/sh\nset -e\nexec "$@"\n'

# As the official image: a configuration file means `registry serve`, everything else goes to `registry`.
_REGISTRY_ENTRYPOINT = """#!/bin/sh
set -e
case "$1" in
*.yml) exec registry serve "$@" ;;
sh) shift; exec /bin/sh "$@" ;;
*) exec registry "$@" ;;
esac
"""
_REGISTRY_CONFIG = """version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":5000"}
"""
_NGINX_CONFIG = """worker_processes auto;
pid /run/nginx.pid;
events {}
http { include /etc/nginx/mime.types; server { listen 80; } }
"""


def build(folder: Path, rootfs: Path, trust: Path, registry: Path) -> None:
    """Fill `folder` with a layout UPSTREAM/REPO/TAG for every image that the internet has."""
    for upstream in UPSTREAMS:
        home = folder / upstream.name
        _probe(home / upstream.probe.replace(":", "/"), upstream)
        _demo(home / "demo/app/1.0", f"{upstream.name}/demo/app")
        if upstream.token_auth:
            _demo(home / "library/app/1.0", f"{upstream.name}/library/app")
            _demo(home / "private/app/1.0", f"{upstream.name}/private/app")
            _probe(home / "ratelimitpreview/test/latest", upstream)
            _nginx(home / "library/nginx/stable", rootfs, trust)
            _registry(home / "library/registry/3", rootfs, trust, registry)


def _probe(folder: Path, upstream: Upstream) -> None:
    layout = oci.Layout(folder)
    manifests = []
    for arch in ("amd64", "arm64"):
        layer = layout.layer([oci.Entry("hello", text=f"hello from {upstream.name} on {arch}\n", mode=0o644)])
        manifests.append(layout.manifest([layer], {"Cmd": ["/hello"]}, arch))
    layout.finish(layout.index(manifests))


def _demo(folder: Path, seed: str) -> None:
    """Three layers, about 6 MB in all, other bytes for every seed."""
    layout = oci.Layout(folder)
    sizes = [size + random.Random(seed).randrange(100_000) for size in (4_000_000, 1_500_000, 300_000)]
    layers = [layout.noise(size, f"{seed}/{number}") for number, size in enumerate(sizes)]
    layout.finish(layout.index([layout.manifest(layers, {"Labels": {"app": seed}})]))


def _nginx(folder: Path, rootfs: Path, trust: Path) -> None:
    programs = ("/usr/sbin/nginx", "/usr/bin/curl")
    files = [oci.Entry(path, rootfs / path.lstrip("/")) for path in (*programs, *_libraries(rootfs, programs))]
    entries = [
        *_base(rootfs, trust, "nginx", 101),
        *files,
        oci.Entry("/etc/nginx"),
        oci.Entry("/etc/nginx/mime.types", rootfs / "etc/nginx/mime.types", mode=0o644),
        oci.Entry("/etc/nginx/nginx.conf", text=_NGINX_CONFIG, mode=0o644),
        *map(oci.Entry, ("/var/log/nginx", "/var/cache/nginx", "/var/lib/nginx", "/usr/share/nginx")),
        oci.Entry("/docker-entrypoint.sh", text=_NGINX_ENTRYPOINT),
    ]
    config = {
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}},
    }
    _image(folder, entries, config)


def _registry(folder: Path, rootfs: Path, trust: Path, registry: Path) -> None:
    entries = [
        *_base(rootfs, trust, "registry", 65532),
        oci.Entry("/bin/registry", registry),
        oci.Entry("/etc/distribution"),
        oci.Entry("/etc/distribution/config.yml", text=_REGISTRY_CONFIG, mode=0o644),
        oci.Entry("/var/lib/registry"),
        oci.Entry("/entrypoint.sh", text=_REGISTRY_ENTRYPOINT),
    ]
    config = {
        "Entrypoint": ["/entrypoint.sh"],
        "Cmd": ["/etc/distribution/config.yml"],
        "Volumes": {"/var/lib/registry": {}},
        "ExposedPorts": {"5000/tcp": {}},
    }
    _image(folder, entries, config, ["OTEL_TRACES_EXPORTER=none"])


def _image(
    folder: Path, entries: list[oci.Entry], config: Mapping[str, object], environment: Iterable[str] = ()
) -> None:
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    layout = oci.Layout(folder)
    layout.finish(layout.index([layout.manifest([layout.layer(entries)], {"Env": [path, *environment], **config})]))


def _base(rootfs: Path, trust: Path, user: str, uid: int) -> Iterable[oci.Entry]:
    """What both images have of a distribution: folders, users, a shell, and the public CAs."""
    yield from (oci.Entry(path) for path in ("/bin", "/etc", "/etc/ssl", "/etc/ssl/certs", "/run", "/var/lib"))
    yield oci.Entry("/tmp", mode=0o1777)
    yield oci.Entry("/bin/busybox", rootfs / "usr/bin/busybox")
    yield from (oci.Entry(f"/bin/{tool}", link="busybox") for tool in _TOOLS)
    yield oci.Entry("/etc/passwd", text=_PASSWD.format(user, uid), mode=0o644)
    yield oci.Entry("/etc/group", text=_GROUP.format(user, uid), mode=0o644)
    yield oci.Entry("/etc/nsswitch.conf", text="hosts: files dns\n", mode=0o644)
    yield oci.Entry(CA_BUNDLE, trust, mode=0o644)


def _libraries(rootfs: Path, programs: Iterable[str]) -> list[str]:
    """The shared libraries of programs, as the loader of that root file system finds them."""
    listing = Sandbox((rootfs,), network=False).run(["ldd", *programs], capture=True)
    paths = {word for line in listing.splitlines() for word in line.split() if word.startswith("/")}
    found = {path for path in paths if not path.endswith(":")}
    # opened by libc when a thread ends (pthread_exit), so ldd does not know of it; without it nginx's workers abort
    return sorted(found | {f"/{path.relative_to(rootfs)}" for path in rootfs.glob("usr/lib/*/libgcc_s.so.1")})
