"""Image references, as containers/image reads them (docker/reference: normalize.go, reference.go, regexp.go).

The patterns accept the same texts as upstream's; they are written so that they cannot backtrack without end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_NAME = 255  # NameTotalLengthMax
DEFAULT_DOMAIN = "docker.io"
LEGACY_DOMAIN = "index.docker.io"  # read as docker.io
OFFICIAL = "library"  # the namespace of Docker Hub's images that have none
DEFAULT_TAG = "latest"

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?"
COMPONENT = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"  # one part of a path
WILDCARD = rf"\*(?:\.{_LABEL})+"

_NAME = rf"(?:{DOMAIN}/)?{COMPONENT}(?:/{COMPONENT})*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"({_NAME})(?::({_TAG}))?(?:@({_DIGEST}))?")
_IDENTIFIER = re.compile("[a-f0-9]{64}")
_ENCODED = {  # opencontainers/go-digest, algorithm.go
    "sha256": re.compile("[a-f0-9]{64}"),
    "sha384": re.compile("[a-f0-9]{96}"),
    "sha512": re.compile("[a-f0-9]{128}"),
}


class BadReferenceError(ValueError):
    """Not an image reference; the reason in containers/image's words."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image by tag or by digest, with the name of its registry."""

    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """What a node looks for when a pod names this image (reference.ParseDockerRef).

    Without tag and digest the tag is `latest`; with both the tag does not count.  Raises BadReferenceError.
    """
    found = _parse_normalized(text)
    if found.digest:
        return Reference(found.name, "", found.digest)
    return Reference(found.name, found.tag or DEFAULT_TAG)


def parse_canonical(text: str) -> Reference:
    """A reference that is written out in full already (reference.ParseNamed).  Raises BadReferenceError."""
    found = _parse_normalized(text)
    if str(found) != text:
        raise BadReferenceError("repository name must be canonical")
    return found


def _parse_normalized(text: str) -> Reference:
    """reference.ParseNormalizedNamed."""
    if _IDENTIFIER.fullmatch(text):
        raise BadReferenceError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split_domain(text)
    repository = remainder.partition(":")[0]
    if repository.lower() != repository:
        raise BadReferenceError("invalid reference format: repository name must be lowercase")
    return _parse(f"{domain}/{remainder}")


def _split_domain(text: str) -> tuple[str, str]:
    """The registry and the rest; a first part without `.` and `:` that is not localhost is no registry."""
    first, slash, rest = text.partition("/")
    if not slash or ("." not in first and ":" not in first and first != "localhost"):
        domain, remainder = DEFAULT_DOMAIN, text
    else:
        domain, remainder = first, rest
    if domain == LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = f"{OFFICIAL}/{remainder}"
    return domain, remainder


def _parse(text: str) -> Reference:
    """reference.Parse."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        if _REFERENCE.fullmatch(text.lower()):
            raise BadReferenceError("repository name must be lowercase")
        raise BadReferenceError("invalid reference format")
    name, tag, digest = match[1], match[2] or "", match[3] or ""
    if len(name) > LONGEST_NAME:
        raise BadReferenceError(f"repository name must not be more than {LONGEST_NAME} characters")
    if digest:
        algorithm, _, encoded = digest.partition(":")
        if algorithm not in _ENCODED:
            raise BadReferenceError("unsupported digest algorithm")
        if not _ENCODED[algorithm].fullmatch(encoded):
            raise BadReferenceError("invalid checksum digest format")
    return Reference(name, tag, digest)
