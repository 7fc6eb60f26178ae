"""How the formats write comments and YAML: one place, so that all files read alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

OURS = "Written by mirror-agent; edits here are lost. Change the definitions of the mirrors instead."


class Block(str):
    """A text of several lines that YAML shows as it is (a literal block), such as a PEM."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that knows Block."""


_Dumper.add_representer(
    Block, lambda dumper, block: dumper.represent_scalar("tag:yaml.org,2002:str", str(block), style="|")
)


def comment(*lines: str) -> str:
    """The head of a file that allows `#` comments.  No time stamp: the same facts give the same bytes."""
    return "".join(f"# {line}\n" for line in (OURS, *lines))


def yaml_document(head: str, content: Mapping[str, Any]) -> bytes:
    """YAML in block style with the keys in the order given, below `head`.  Lines are never folded."""
    text = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=False, width=10_000
    )
    return (head + text).encode("ascii")
