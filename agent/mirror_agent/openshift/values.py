"""What the rules of this package speak in: the objects of a cluster that say where images come from."""

from __future__ import annotations

from dataclasses import dataclass

from mirror_agent.model import Policy


class RefusedError(Exception):
    """The machine-config-operator does not render this: nodes keep the file that they have.  Its own words."""


@dataclass(frozen=True, slots=True, order=True)
class MirrorSet:
    """One entry of an ImageDigestMirrorSet, ImageTagMirrorSet or ImageContentSourcePolicy."""

    source: str
    mirrors: tuple[str, ...] = ()
    policy: Policy = Policy.ALLOW  # unset means allow


@dataclass(frozen=True, slots=True)
class Sources:
    """`spec.registrySources` of image.config.openshift.io/cluster.  None: the key is not there."""

    insecure: tuple[str, ...] | None = None
    blocked: tuple[str, ...] | None = None
    allowed: tuple[str, ...] | None = None
    search: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """All that a cluster says about where images come from.  The order of objects means nothing.

    Each of the first three holds one tuple of entries per object: an object without entries counts too, since the
    machine-config-operator writes the file anew as soon as there is one.
    """

    digest: tuple[tuple[MirrorSet, ...], ...] = ()  # ImageDigestMirrorSet
    tag: tuple[tuple[MirrorSet, ...], ...] = ()  # ImageTagMirrorSet
    policies: tuple[tuple[MirrorSet, ...], ...] = ()  # ImageContentSourcePolicy: digests, always allow
    sources: Sources = Sources()
    release: str = ""  # the release image, where a ClusterVersion tells it


@dataclass(frozen=True, slots=True)
class Endpoint:
    """sysregistriesv2.Endpoint, as far as OpenShift uses it."""

    location: str
    insecure: bool = False
    pull: str = ""  # pull-from-mirror: "", "all", "digest-only", "tag-only"


@dataclass(frozen=True, slots=True)
class Registry:
    """One [[registry]] table of registries.conf: sysregistriesv2.Registry."""

    prefix: str = ""
    location: str = ""
    insecure: bool = False
    mirrors: tuple[Endpoint, ...] = ()
    blocked: bool = False
    digest_only: bool = False  # mirror-by-digest-only, older than pull-from-mirror

    @property
    def scope(self) -> str:
        """What it is known by: the prefix, or the location where there is none."""
        return self.prefix or self.location


BY_DIGEST, BY_TAG = "digest-only", "tag-only"
