"""What the tests of a cluster speak in: mirrors that are published, one round of the agent, objects of others."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from mirror_agent import cluster as rules
from mirror_agent.model import ClusterSettings, ClusterState, Mirror, Policy, Publication
from mirror_agent.targets import cluster as target

CONFIG = "/apis/config.openshift.io/v1"
IDMS, ITMS, IMAGE = f"{CONFIG}/imagedigestmirrorsets", f"{CONFIG}/imagetagmirrorsets", f"{CONFIG}/images/cluster"
ICSP = "/apis/operator.openshift.io/v1alpha1/imagecontentsourcepolicies"
MCP = "/apis/machineconfiguration.openshift.io/v1/machineconfigpools"
MAPS = "/api/v1/namespaces/openshift-config/configmaps"
GOLDEN_CA = Path(__file__).parents[1] / "golden/ca.pem"


def mirror(name: str = "quay", source: str = "quay.io", policy: Policy = Policy.NEVER, number: int = 4) -> Mirror:
    return Mirror(
        name, (source,), f"https://{source}", f"{name}.mirror.lan", IPv4Address(f"10.0.0.{number}"),
        f"02:00:0a:00:00:{number:02x}", policy, None, 2**30, 60, None,
    )  # fmt: skip


def publication(*mirrors: Mirror, trust: str | None = None) -> Publication:
    return Publication(mirrors, GOLDEN_CA.read_text() if trust is None else trust)


NOON = datetime(2026, 11, 24, 12, 0)
NEVER, ALLOW = Policy.NEVER.value, Policy.ALLOW.value


def look(settings: ClusterSettings) -> ClusterState:
    target._session.cache_clear()
    return target.read(settings)


def told(published: Publication, settings: ClusterSettings, host: str = "one") -> rules.Outcome:
    """One round of the agent on a host: what it found, after it was applied."""
    outcome = rules.compare(published, settings, replace(look(settings), host=host))
    if changes := outcome.due(settings, NOON):
        target.publish(settings, changes, lambda: None)
    return outcome


def idms(cluster: ControlPlane, name: str, *entries: dict[str, Any]) -> None:
    body = {"apiVersion": "config.openshift.io/v1", "kind": "ImageDigestMirrorSet", "metadata": {"name": name}}
    cluster.apply(f"{IDMS}/{name}", {**body, "spec": {"imageDigestMirrors": list(entries)}})


def entries(cluster: ControlPlane, path: str) -> Any:
    found = cluster.get(path)
    return None if found is None else next(iter(found["spec"].values()))


def entry(source: str, *mirrors: str, policy: str = "") -> dict[str, Any]:
    return {"source": source, "mirrors": list(mirrors), **({"mirrorSourcePolicy": policy} if policy else {})}
