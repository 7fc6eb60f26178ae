"""install-config.fragment.yaml: what goes into install-config.yaml before a cluster is installed."""

from __future__ import annotations

from typing import Any

from mirror_agent.formats.entries import entries
from mirror_agent.formats.text import Block, comment, yaml_document
from mirror_agent.model import Document, Publication


def render(publication: Publication) -> tuple[Document, ...]:
    """Render imageDigestSources and additionalTrustBundle, ready to be pasted.

    Without `sourcePolicy`: only installers since the end of 2025 know it.  The PEM is the end of the file, since the
    installer refuses any text after the last block.
    """
    found = entries(publication)
    if not found:
        return ()
    content: dict[str, Any] = {
        "imageDigestSources": [{"source": entry.source, "mirrors": [entry.mirror]} for entry in found]
    }
    if publication.trust:
        content["additionalTrustBundle"] = Block(publication.trust)
    head = comment(
        "Paste both keys into install-config.yaml before the installation. There is no such key for tags and no",
        "policy: apply the two mirror sets once the cluster is up (docs/publications.md).",
    )
    return (Document("install-config.fragment.yaml", yaml_document(head, content)),)
