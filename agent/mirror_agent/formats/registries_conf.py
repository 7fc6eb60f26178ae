"""A drop-in of containers-registries.conf.d(5) for podman, CRI-O, skopeo and MicroShift."""

from __future__ import annotations

import json

from mirror_agent.formats.entries import Entry, entries
from mirror_agent.formats.text import comment
from mirror_agent.model import Document, Policy, Publication

NAME = "registries.conf.d/50-mirror-agent.conf"


def render(publication: Publication) -> tuple[Document, ...]:
    """One [[registry]] table per source, to the byte what the machine-config-operator renders for nodes from our two
    mirror sets; but no global key: such a key in a drop-in would replace the host's own.
    """
    found = entries(publication)
    if not found:
        return ()
    head = comment(
        "Goes to /etc/containers/registries.conf.d/. A table here replaces one with the same source in any file that",
        "is read before this one.",
    )
    return (Document(NAME, (head + "".join(f"\n{_table(entry)}" for entry in found)).encode("ascii")),)


def _table(entry: Entry) -> str:
    # `prefix = ""` means the location (containers/image, sysregistriesv2).  `blocked` forbids the source itself, its
    # mirrors stay in use.  Digest mirrors stand before tag mirrors, as nodes have them.
    blocked = "  blocked = true\n" if entry.policy is Policy.NEVER else ""
    mirrors = "".join(
        f"\n  [[registry.mirror]]\n    location = {_string(entry.mirror)}\n    pull-from-mirror = {_string(kind)}\n"
        for kind in ("digest-only", "tag-only")
    )
    return f'[[registry]]\n  prefix = ""\n  location = {_string(entry.source)}\n{blocked}{mirrors}'


def _string(value: str) -> str:
    # A JSON string of printable characters is a TOML basic string, with the same escapes.
    return json.dumps(value)
