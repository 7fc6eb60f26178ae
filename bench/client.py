"""Runs on the node: many clients at the same time.  A job comes as JSON on standard input, what it took goes out.

A client is curl, as fast as a client can be: it decrypts, and throws away.  It takes the steps of the job one after
another, and the addresses of a step side by side, as podman does with the manifest and the layers of an image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

_ACCEPT = ", ".join(f"application/vnd.{kind}+json" for kind in ("oci.image.manifest.v1", "oci.image.index.v1"))
_CURL = ("curl", "-q", "-sS", "-k", "--fail", "--http1.1", "-H", f"Accept: {_ACCEPT}", "-w", "%{size_download}\n")


def main() -> None:
    """Do the job: `clients`, `at_once`, `steps` (lists of addresses)."""
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = []
        for number, urls in enumerate(job["steps"]):
            steps.append(folder / f"step{number}")
            steps[-1].write_text("".join(f'url = "{url}"\noutput = "/dev/null"\n' for url in urls))
        clients: list[_Client] = [_Client(folder / f"said{n}", steps, job) for n in range(job["clients"])]
        start = time.monotonic()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = time.monotonic() - start
        errors = [client.error for client in clients if client.error]
    print(json.dumps({"seconds": seconds, "bytes": sum(client.bytes for client in clients), "errors": errors[:3]}))


class _Client(threading.Thread):
    def __init__(self, said: Path, steps: list[Path], job: dict[str, Any]) -> None:
        super().__init__()
        self.said, self.steps = said, steps
        self.options = ("-Z", "--parallel-immediate", "--parallel-max", str(job["at_once"]))
        self.bytes = 0
        self.error = ""

    def run(self) -> None:
        for step in self.steps:
            with self.said.open("w") as out:
                done = subprocess.run(
                    [*_CURL, *self.options, "-K", step], stdout=out, stderr=subprocess.PIPE, text=True, check=False
                )
            if done.returncode:
                self.error = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"curl {done.returncode}"
                return
            self.bytes += sum(map(int, self.said.read_text().split()))


if __name__ == "__main__":
    main()
