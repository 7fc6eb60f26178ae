"""What the machine-config-operator makes of a cluster's objects, or why it makes nothing of them.

machine-config-operator, pkg/controller/container-runtime-config: helpers.go (updateRegistriesConfig,
validateRegistriesConfScopes, getValidBlockedAndAllowedRegistries, updatePolicyJSON) and
container_runtime_config_controller.go (registriesConfigIgnition); runtime-utils, pkg/registries/registries.go
(EditRegistriesConfig, ScopeIsNestedInsideScope).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from mirror_agent.model import Policy
from mirror_agent.openshift import conf, merge, reference, resolution
from mirror_agent.openshift.values import BY_DIGEST, BY_TAG, Cluster, Endpoint, MirrorSet, RefusedError, Registry

_LOCATION = rf"{reference.DOMAIN}(?:/{reference.COMPONENT})*"
MIRROR = re.compile(_LOCATION)
SOURCE = re.compile(rf"{reference.WILDCARD}|{_LOCATION}")


def render(cluster: Cluster) -> str:
    """The file /etc/containers/registries.conf that nodes get.  Raises RefusedError: they keep the one they have."""
    sources = cluster.sources
    blocked, allowed = _payload(cluster)
    text = conf.TEMPLATE
    if sources.insecure is not None or blocked or cluster.policies or cluster.digest or cluster.tag:
        _check_scopes(sources.insecure or (), "insecure")
        _check_scopes(blocked, "blocked")
        _check_entries(cluster)
        text = conf.write(edit(sources.insecure or (), blocked, _digest(cluster), chain(*cluster.tag)))
    if allowed and _denied(cluster, blocked) and not _payload_alone(cluster, allowed):
        raise RefusedError("invalid images config: only one of AllowedRegistries or BlockedRegistries may be specified")
    _check_scopes(allowed, "allowed")
    return text


def nested(scope: str, outer: str) -> bool:
    """Does a scope lie within another?  (runtime-utils, ScopeIsNestedInsideScope)"""
    if scope == outer or scope.startswith(f"{outer}/"):
        return True
    if not outer.startswith("*."):
        return False
    if ":" in scope:
        host = scope.split(":")[0]
        return host.endswith(outer[1:]) and "/" not in host
    return scope.split("/")[0].endswith(outer[1:])


# --- refusals ------------------------------------------------------------------------------------------------


def _check_scopes(scopes: Iterable[str], what: str) -> None:
    """IsValidRegistriesConfScope."""
    for scope in scopes:
        wild = scope.startswith("*.") and not set(scope[2:]) & set("/@:*")
        if not scope or ("*" in scope and not wild):
            raise RefusedError(f'invalid entry for {what} registries "{scope}"')


def _check_entries(cluster: Cluster) -> None:
    """One source, one policy, in all objects of the cluster; and each source and mirror of the right form.

    The objects are looked at in a fixed order, so that the same cluster is always refused for the same reason; the
    machine-config-operator looks at them in no particular one.
    """
    policies: dict[str, Policy] = {}
    for entry in chain(*sorted(cluster.digest), *sorted(cluster.policies), *sorted(cluster.tag)):
        if not SOURCE.fullmatch(entry.source):
            raise RefusedError(f'invalid format for source "{entry.source}"')
        if policies.setdefault(entry.source, entry.policy) is not entry.policy:
            raise RefusedError(
                f'conflicting mirrorSourcePolicy is set for the same source "{entry.source}" in '
                "imagedigestmirrorsets, imagetagmirrorsets, or imagecontentsourcepolicies"
            )
        for mirror in entry.mirrors:
            if not MIRROR.fullmatch(mirror):
                raise RefusedError(f'invalid format for mirror "{mirror}"')
            if entry.policy is Policy.NEVER and mirror == entry.source:
                raise RefusedError(
                    f'cannot set mirrorSourcePolicy: NeverContactSource if the source "{entry.source}" is one of '
                    "the mirrors"
                )


# --- the release payload -------------------------------------------------------------------------------------


def _payload(cluster: Cluster) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The blocked registries of registries.conf, the allowed ones of policy.json.

    A scope that holds the release image is not blocked, unless digests of it have a mirror that is not blocked.
    Without a release image, which only a ClusterVersion tells, every scope is blocked.
    """
    blocked, allowed = cluster.sources.blocked or (), cluster.sources.allowed or ()
    if not cluster.release:
        return blocked, allowed
    name = _release_name(cluster)
    kept = []
    needed = []
    for scope in blocked:
        if nested(name, scope):
            try:
                if not _has_usable_mirror(cluster):
                    continue
            except (RefusedError, resolution.UnreadableError, reference.BadReferenceError):
                return (), ()
            needed.append(name)
        kept.append(scope)
    return tuple(kept), (*needed, *allowed)


def _release_name(cluster: Cluster) -> str:
    try:
        return reference.parse_canonical(cluster.release).name
    except reference.BadReferenceError as error:
        raise RefusedError("error parsing reference of release image") from error


def _has_usable_mirror(cluster: Cluster) -> bool:
    """payloadRepoHasUnblockedMirror."""
    sources = cluster.sources
    release = reference.parse_canonical(cluster.release)
    registries = edit(sources.insecure or (), sources.blocked or (), _digest(cluster), ())
    found = resolution.find(resolution.loaded(registries), release.name)
    pulls = resolution.pull_sources(found, release) if found else ()
    return any(not any(nested(pull.name, scope) for scope in sources.blocked or ()) for pull in pulls)


def _denied(cluster: Cluster, blocked: tuple[str, ...]) -> tuple[str, ...]:
    """The blocked registries of policy.json: without the release's own repository."""
    name = _release_name(cluster) if cluster.release else ""
    return tuple(scope for scope in blocked if scope != name)


def _payload_alone(cluster: Cluster, allowed: tuple[str, ...]) -> bool:
    return bool(cluster.release) and allowed == (_release_name(cluster),)


# --- registries.conf -----------------------------------------------------------------------------------------


def _digest(cluster: Cluster) -> Iterator[MirrorSet]:
    return chain(*cluster.digest, *cluster.policies)


def edit(
    insecure: Iterable[str], blocked: Iterable[str], digest: Iterable[MirrorSet], tag: Iterable[MirrorSet]
) -> tuple[Registry, ...]:
    """The tables, in the order of the file (EditRegistriesConfig).  Raises RefusedError."""
    tables: dict[str, Registry] = {}  # by scope, in the order in which they were made

    def table(scope: str) -> Registry:
        wild = scope.startswith("*.")
        return tables.setdefault(scope, Registry(prefix=scope) if wild else Registry(location=scope))

    by_digest, by_tag = merge.merged(digest), merge.merged(tag)
    for sets, pull in ((by_digest, BY_DIGEST), (by_tag, BY_TAG)):
        for entry in sets:
            found = table(entry.source)
            tables[entry.source] = replace(
                found,
                blocked=found.blocked or entry.policy is Policy.NEVER,
                mirrors=(*found.mirrors, *(Endpoint(mirror, pull=pull) for mirror in entry.mirrors)),
            )
    insecure, blocked = tuple(insecure), tuple(blocked)
    for outer in blocked:
        table(outer)
    for outer in insecure:
        table(outer)
        for scope, found in tables.items():
            mirrors = tuple(replace(m, insecure=m.insecure or nested(m.location, outer)) for m in found.mirrors)
            tables[scope] = replace(found, insecure=found.insecure or nested(scope, outer), mirrors=mirrors)
    for outer in blocked:
        for scope, found in tables.items():
            tables[scope] = replace(found, blocked=found.blocked or nested(scope, outer))
    for entry in (*by_digest, *by_tag):
        _inherit(tables, entry.source)
    return tuple(tables.values())


def _inherit(tables: dict[str, Registry], source: str) -> None:
    """Tables within a mirrored scope that have no mirrors of their own get its mirrors: else they would hide them."""
    for scope, found in tables.items():
        if scope != source and nested(scope, source) and not found.mirrors:
            if source.startswith("*."):
                raise RefusedError(
                    f'internal error: mirrorsAdjustedForNestedScope for a wildcard scope "{source}" '
                    f'("{scope}" lies within it, and is insecure or blocked)'
                )
            rest = scope[len(source) :]
            mirrors = tuple(replace(m, location=m.location + rest) for m in tables[source].mirrors)
            tables[scope] = replace(found, mirrors=mirrors)
