"""user-ca-bundle.yaml: the ConfigMap by which a whole cluster trusts the CA, beyond its nodes' pulls."""

from __future__ import annotations

from mirror_agent.formats.text import Block, comment, yaml_document
from mirror_agent.model import Document, Publication

NAME = "user-ca-bundle"  # the installer's name for it; proxy/cluster and HostedClusters refer to it


def render(publication: Publication) -> tuple[Document, ...]:
    """Without a namespace: openshift-config of a cluster, or that of a HostedCluster.

    No comment inside the bundle: cluster-network-operator refuses what is no PEM.
    """
    if not publication.mirrors or not publication.trust:
        return ()
    content = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME},
        "data": {"ca-bundle.crt": Block(publication.trust)},
    }
    head = comment(
        "It replaces the bundle that is there: add yours. In openshift-config each node rebuilds its trust store",
        "and restarts CRI-O for it; additional-trusted-ca.yaml costs nothing (docs/publications.md).",
    )
    return (Document("user-ca-bundle.yaml", yaml_document(head, content)),)
