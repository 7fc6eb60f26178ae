"""hypershift/hosted-cluster.patch.yaml: what a HostedCluster (hosted control planes) is told.

spec.imageContentSources knows no policy and no tags: nodes may go on to the source, and images by tag come from there.
"""

from __future__ import annotations

from typing import Any

from mirror_agent.formats import user_ca_bundle
from mirror_agent.formats.entries import entries
from mirror_agent.formats.text import comment, yaml_document
from mirror_agent.model import Document, Publication


def render(publication: Publication) -> tuple[Document, ...]:
    """A merge patch of a HostedCluster: its sources, and the ConfigMap of user-ca-bundle.yaml as its trust."""
    found = entries(publication)
    if not found:
        return ()
    spec: dict[str, Any] = {
        "imageContentSources": [{"source": entry.source, "mirrors": [entry.mirror]} for entry in found]
    }
    if publication.trust:
        spec["additionalTrustBundle"] = {"name": user_ca_bundle.NAME}
    head = comment(
        "oc -n NAMESPACE patch hostedcluster NAME --type=merge --patch-file=hosted-cluster.patch.yaml",
        "It replaces the whole list that is there, and a change rolls the node pools (docs/publications.md).",
    )
    return (Document("hypershift/hosted-cluster.patch.yaml", yaml_document(head, {"spec": spec})),)
