"""Documents of a machine configuration for Talos 1.12 and later: RegistryMirrorConfig, RegistryTLSConfig."""

from __future__ import annotations

from typing import Any

from mirror_agent.formats.entries import whole
from mirror_agent.formats.text import Block, comment, yaml_document
from mirror_agent.model import Document, Policy, Publication


def render(publication: Publication) -> tuple[Document, ...]:
    """One document per registry, then one per mirror with the CA."""
    found = whole(publication)
    if not found:
        return ()
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1alpha1",
            "kind": "RegistryMirrorConfig",
            "name": entry.source,
            "endpoints": [{"url": f"https://{entry.mirror}"}],
            "skipFallback": entry.policy is Policy.NEVER,
        }
        for entry in found
    ]
    if publication.trust:
        documents += [
            {"apiVersion": "v1alpha1", "kind": "RegistryTLSConfig", "name": host, "ca": Block(publication.trust)}
            for host in sorted({entry.mirror for entry in found})
        ]
    head = comment("talosctl patch machineconfig --patch @registries.yaml; Talos 1.12 or later.")
    parts = [yaml_document("", document) for document in documents]
    return (Document("talos/registries.yaml", head.encode("ascii") + b"---\n".join(parts)),)
