"""The file by which a folder tells which of its files are ours, and by which a copy of it can be checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mirror_agent.targets.target import TargetError

MANIFEST = ".mirror-agent.json"
VERSION = 1
DEFAULT_MODE = "0644"  # of a manifest that names none


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names of published files with the SHA-256 (hex) of their content, and who was to read them.

    The latter is what was asked for: a share may have a mind of its own about modes and groups.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    mode: str = DEFAULT_MODE
    group: str = ""

    @classmethod
    def parse(cls, content: bytes | None, folder: Path) -> Manifest:
        """The manifest in these bytes, an empty one for None.  Raises TargetError: not a manifest, or a newer one."""
        if content is None:
            return cls()
        where = str(folder / MANIFEST)
        hint = "remove it; the files beside it then have to be removed by hand too"
        try:
            value: Any = json.loads(content)
        except ValueError as error:  # UnicodeDecodeError is one
            raise TargetError(where, f"this is not JSON: {error}", hint) from error
        if not isinstance(value, dict) or value.get("version") != VERSION:
            raise TargetError(where, f"this is not a manifest of version {VERSION}", hint)
        files = value.get("files")
        if not isinstance(files, dict) or not all(isinstance(sum_, str) for sum_ in files.values()):
            raise TargetError(where, "`files` is not a table of names and sums", hint)
        return cls(files, str(value.get("mode", DEFAULT_MODE)), str(value.get("group", "")))

    def joined(self, new: Manifest) -> Manifest:
        """What is ours while one set of files becomes the other: all of both."""
        return replace(self, files={**self.files, **new.files})

    def text(self) -> bytes:
        """The manifest's bytes, the same for the same files."""
        value: dict[str, Any] = {"version": VERSION, "files": dict(sorted(self.files.items()))}
        if (self.mode, self.group) != (DEFAULT_MODE, ""):
            value |= {"mode": self.mode, "group": self.group}
        return (json.dumps(value, indent=2) + "\n").encode("ascii")
