"""podman's own judgement of quadlet files, before any of them is installed.

One unknown key silently drops a whole unit while the others still come up, so what would be generated is looked at
as well as the exit status.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mirror_agent.model import Trouble

GENERATORS = (Path("/usr/libexec/podman/quadlet"), Path("/usr/lib/podman/quadlet"))
DRY_RUN_S = 30.0  # 9 to 14 ms for five files

_SUFFIXES = {".container": "", ".pod": "-pod", ".network": "-network", ".volume": "-volume", ".image": "-image"}
_QUADLET = "quadlet-generator"


def generator() -> Path:
    """Where podman's quadlet is.  Raises Trouble when podman has none (before 4.4) or is not installed."""
    for path in GENERATORS:
        if path.exists():
            return path
    raise Trouble("podman", f"its quadlet generator is not at {GENERATORS[0]}", "install podman 5.0 or newer")


def service(file: str) -> str:
    """The unit that quadlet makes of a file (podman-systemd.unit(5)).  Raises KeyError for a foreign suffix."""
    path = Path(file)
    return f"{path.stem}{_SUFFIXES[path.suffix]}.service"


def complaints(stderr: str, stage: str) -> list[str]:
    """Quadlet's messages without the noise: its own name and process id, and where the files were staged.

    One looks like: converting "a.container": unsupported key 'X' in group 'Container' in a.container
    """
    lines = []
    for line in stderr.splitlines():
        text = re.sub(rf"^{_QUADLET}\[\d+\]:\s*", "", line.strip()).replace(stage + "/", "")
        if text and not text.startswith("Loading source unit file"):
            lines.append(text)
    return lines


def check(files: Mapping[str, bytes]) -> None:
    """Let quadlet judge the complete set of files (names without a folder): a missing .network is an error too.

    Raises Trouble with the file and quadlet's own words.
    """
    program = generator()
    with tempfile.TemporaryDirectory(prefix="mirror-agent-quadlet-") as stage:
        for name, content in files.items():
            (Path(stage) / name).write_bytes(content)
        try:
            result = subprocess.run(
                [program, "-dryrun"],
                env={"QUADLET_UNIT_DIRS": stage, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DRY_RUN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Trouble(str(program), f"no answer within {DRY_RUN_S:.0f} s", "is the host overloaded?") from error
        said = complaints(result.stderr, stage)
    made = set(re.findall(r"^---(.+)---$", result.stdout, re.MULTILINE))
    missing = [name for name in sorted(files) if service(name) not in made]
    if result.returncode == 0 and not missing:
        return
    guilty = next((name for name in sorted(files) if any(name in line for line in said)), "")
    reason = "; ".join(said) or f"quadlet makes no unit of it (exit status {result.returncode})"
    raise Trouble(guilty or (missing[0] if missing else "quadlet"), reason)
