"""Fill a registry's store through its front door. Runs in a sandbox, with nothing but a loopback.

`python3 -m box.seed REGISTRY STORE LAYOUTS` pushes each LAYOUTS/REPO/TAG and prints what it pushed as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from . import oci
from .topology import UPSTREAMS

_PORT = 5000
_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{store}"}}}}
http: {{addr: "127.0.0.1:{port}", draintimeout: 1s}}
"""
_ACCEPT = ", ".join(
    [oci.INDEX, oci.MANIFEST]
    + [f"application/vnd.docker.distribution.manifest{kind}.v2+json" for kind in (".list", "")]
)


def main() -> None:
    """Serve the store, push everything, describe everything."""
    registry, store, layouts = sys.argv[1:]
    config = Path("/tmp/config.yml")  # the sandbox's own
    config.write_text(_CONFIG.format(store=store, port=_PORT))
    server = subprocess.Popen([registry, "serve", config], env={"OTEL_TRACES_EXPORTER": "none"}, stdout=sys.stderr)
    try:
        _wait()
        print(json.dumps(_push_all(Path(layouts)), indent=1, sort_keys=True))
    finally:
        server.terminate()
        server.wait()


def _wait() -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/v2/").close()
        except urllib.error.URLError:
            time.sleep(0.05)
        else:
            return
    sys.exit("the registry did not answer within 60 s")


def _push_all(layouts: Path) -> dict[str, Any]:
    docker_format = {u.probe for u in UPSTREAMS if u.docker_format}
    pushed = {}
    for layout in sorted(file.parent for file in layouts.rglob("oci-layout")):
        repo, tag = str(layout.parent.relative_to(layouts)), layout.name
        image = f"{repo}:{tag}"
        shape = ["--format=v2s2"] if image in docker_format else []
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false", *shape,
             f"oci:{layout}", f"docker://127.0.0.1:{_PORT}/{image}"],
            check=True,
        )  # fmt: skip
        pushed[image] = _describe(repo, tag)
    return pushed


def _describe(repo: str, tag: str) -> dict[str, Any]:
    _, digest = _manifest(repo, tag)
    return oci.describe(digest, lambda reference: _manifest(repo, reference)[0])


def _manifest(repo: str, reference: str) -> tuple[bytes, str]:
    url = f"http://127.0.0.1:{_PORT}/v2/{repo}/manifests/{reference}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": _ACCEPT})) as answer:
        return answer.read(), answer.headers["Docker-Content-Digest"]


if __name__ == "__main__":
    main()
