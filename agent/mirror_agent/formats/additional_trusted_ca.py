"""additional-trusted-ca.yaml: the ConfigMap by which the nodes of a running cluster trust the mirrors.

image.config.openshift.io/cluster names it in spec.additionalTrustedCA; its keys are host names (for ports other than
443 with `..PORT`), and each goes to /etc/docker/certs.d of every node, at no cost for the nodes.
"""

from __future__ import annotations

from mirror_agent.formats.text import Block, comment, yaml_document
from mirror_agent.model import Document, Publication

NAME, NAMESPACE = "mirror-agent-ca", "openshift-config"


def render(publication: Publication) -> tuple[Document, ...]:
    """One key for each mirror, each with the whole bundle."""
    hosts = sorted(mirror.host for mirror in publication.mirrors)
    if not hosts or not publication.trust:
        return ()
    content = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "data": {host: Block(publication.trust) for host in hosts},
    }
    head = comment(
        "For a cluster whose image.config.openshift.io/cluster names no ConfigMap yet, or this one. Apply it before",
        "the mirror sets, then let that object name it (docs/publications.md).",
    )
    return (Document("additional-trusted-ca.yaml", yaml_document(head, content)),)
