"""Floor 1: image references as people write them → what to ask which mirror for.  Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mirror_agent.model import Mirror, Trouble

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"  # distribution/reference: path-component
_REFERENCE = re.compile(
    rf"(?:docker://)?(?P<host>[a-z0-9][a-z0-9.-]*(?::[0-9]+)?)/(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)

# distribution stores a manifest under its sha256 whatever it was asked for by, and layers too, but links those
BY_SHA256 = "a mirror passes it on, and keeps it only when it is asked for by tag or by sha256"


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """An image to be asked of a mirror."""

    mirror: str
    repository: str  # at the mirror
    reference: str  # tag or digest
    text: str  # as it was written


def listed(text: str) -> Iterator[str]:
    """The references in a list of images: one a line, `#` begins a comment."""
    for line in text.splitlines():
        if word := line.partition("#")[0].strip():
            yield word


def resolve(text: str, mirrors: Collection[Mirror]) -> Wanted:
    """Whom to ask for an image, and under which name; a digest counts more than a tag, no tag is `latest`.

    Raises Trouble for what is no reference with a registry, and for one that no mirror has as its source.
    """
    found = _REFERENCE.fullmatch(text)
    if "@sha512:" in text:
        raise Trouble(text, "names its manifest by sha512", BY_SHA256)
    if not found or not ("." in found["host"] or ":" in found["host"]):
        raise Trouble(text, "is no image with its registry", 'write it as "docker.io/library/nginx:1.27"')
    host, path = found["host"], found["path"]
    if host in ("docker.io", "index.docker.io"):  # as clients do
        host, path = "docker.io", path if "/" in path else f"library/{path}"
    name = f"{host}/{path}"
    best = max(
        ((len(source), mirror.name) for mirror in mirrors for source in mirror.sources if _below(name, source)),
        default=None,
    )
    if best is None:
        raise Trouble(text, "no mirror has it", f'a definition with source = "{host}" would')
    return Wanted(best[1], path, found["digest"] or found["tag"] or "latest", text)


def _below(name: str, source: str) -> bool:
    return name == source or name.startswith(f"{source}/")


def platforms(entries: object, chosen: Collection[str]) -> Iterator[str]:
    """Digests of the images of an index for these platforms ("linux/amd64", "linux/arm/v7"); "all" is all of them.

    What is not for a platform at all ("unknown/unknown", attestations) comes with "all" only.
    """
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
            told = entry.get("platform")
            place = told if isinstance(told, dict) else {}
            name = "/".join(str(place[key]) for key in ("os", "architecture", "variant") if place.get(key))
            if "all" in chosen or not place or name in chosen or name.rpartition("/v")[0] in chosen:
                yield entry["digest"]
