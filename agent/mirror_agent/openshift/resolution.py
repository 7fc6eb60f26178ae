"""Where a node looks for an image: containers/image, pkg/sysregistriesv2/system_registries_v2.go and docker/.

FindRegistry, refMatchingPrefix, Registry.PullSourcesFromReference, Endpoint.rewriteReference; docker_image_src.go
(newImageSource) for the order, docker_client.go (newDockerClient) for what is blocked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mirror_agent.openshift import conf, reference
from mirror_agent.openshift.reference import Reference
from mirror_agent.openshift.values import BY_DIGEST, BY_TAG, Endpoint, Registry


class UnreadableError(ValueError):
    """Nodes get this registries.conf and cannot read it: no image can be pulled.  containers/image's own words."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a node does to pull an image."""

    ref: str  # as it was asked for
    normalized: str  # written out in full: registry, repository, tag or digest
    tries: tuple[str, ...]  # the locations that are contacted, in this order, until one has the image
    blocked: bool  # the source itself is never contacted
    reason: str = ""  # why nothing can be tried at all


def resolve(text: str, ref: str) -> Resolution:
    """Where a node with this registries.conf looks for an image.

    A location inside a blocked scope is refused before it is contacted, a mirror's too: it is not among the tries.
    Raises BadReferenceError.
    """
    wanted = reference.parse(ref)
    try:
        tables = loaded(conf.read(text)[1])
    except UnreadableError as error:
        return Resolution(ref, str(wanted), (), False, str(error))
    found = find(tables, wanted.name)
    if found is None:
        return Resolution(ref, str(wanted), (str(wanted),), False)
    try:
        pulls = pull_sources(found, wanted)
    except reference.BadReferenceError as error:  # one mirror that cannot be written out spoils the whole pull
        return Resolution(ref, str(wanted), (), found.blocked, str(error))
    tries = tuple(str(pull) for pull in pulls if not ((table := find(tables, pull.name)) and table.blocked))
    return Resolution(ref, str(wanted), tries, found.blocked)


def loaded(registries: Iterable[Registry]) -> tuple[Registry, ...]:
    """The tables as containers/image holds them: each with a prefix, sorted by it (postProcessRegistries).

    Only what the machine-config-operator can write is looked for.  Raises UnreadableError.
    """
    tables: dict[str, Registry] = {}  # by prefix; a second one with the same does not count
    flags: dict[str, tuple[bool, bool]] = {}  # by location
    for registry in registries:
        location, prefix = _location(registry.location), _location(registry.prefix)
        for mirror in registry.mirrors:
            _location(mirror.location)
        own = (registry.insecure, registry.blocked)
        for what, first, second in zip(
            ("insecure", "blocked"), flags.setdefault(location or prefix, own), own, strict=True
        ):
            if first != second:
                reason = f"is defined multiple times with conflicting '{what}' setting"
                raise UnreadableError(f"registry '{location}' {reason}")
        table = replace(registry, location=location, prefix=prefix or location)
        if not table.prefix:
            raise UnreadableError("invalid condition: both location and prefix are unset")
        tables.setdefault(table.prefix, table)
    return tuple(tables[prefix] for prefix in sorted(tables))


def _location(text: str) -> str:
    """parseLocation."""
    trimmed = text.rstrip("/")
    if trimmed.startswith(("http://", "https://")):
        raise UnreadableError(f"invalid location '{text}': URI schemes are not supported")
    return trimmed


def find(tables: Iterable[Registry], name: str) -> Registry | None:
    """The table with the longest prefix, the first one of those with the same length."""
    best: Registry | None = None
    for table in tables:
        if _match(name, table.prefix) is not None and len(table.prefix) > len(best.prefix if best else ""):
            best = table
    return best


def pull_sources(registry: Registry, wanted: Reference) -> tuple[Reference, ...]:
    """The mirrors that serve this kind of reference, then the source.  Raises BadReferenceError."""
    return tuple(_rewrite(endpoint, wanted, registry.prefix) for endpoint in _endpoints(registry, bool(wanted.digest)))


def _endpoints(registry: Registry, by_digest: bool) -> Iterator[Endpoint]:
    for mirror in registry.mirrors:
        if by_digest if registry.digest_only else mirror.pull != (BY_TAG if by_digest else BY_DIGEST):
            yield mirror
    yield Endpoint(registry.location)


def _rewrite(endpoint: Endpoint, wanted: Reference, prefix: str) -> Reference:
    if not endpoint.location:  # a wildcard's own: whatever host was asked for
        return wanted
    text = str(wanted)
    return reference.parse_canonical(endpoint.location + text[_match(text, prefix) :])


def _match(ref: str, prefix: str) -> int | None:
    """How much of a reference a prefix stands for, None when it does not match.

    A host matches without its port too (`example.com` matches `example.com:5000/…`): upstream calls that unintended,
    and still does it.
    """
    if prefix.startswith("*."):
        start = ref.find(prefix[1:])
        if start == -1 or "/" in ref[:start]:
            return None
        end = start + len(prefix) - 1
    elif ref.startswith(prefix):
        end = len(prefix)
    else:
        return None
    return end if end == len(ref) or ref[end] in ":/@" else None
