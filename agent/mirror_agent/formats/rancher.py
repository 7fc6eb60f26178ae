"""registries.yaml for k3s and RKE2 (docs.k3s.io, "Private Registry Configuration")."""

from __future__ import annotations

from typing import Any

from mirror_agent.formats.entries import whole
from mirror_agent.formats.text import comment, yaml_document
from mirror_agent.model import Document, Publication

TRUST = "/etc/rancher/mirror-agent-ca.pem"


def render(publication: Publication) -> tuple[Document, ...]:
    """Whether a node may go to the source is no matter of this file but of a flag, for all registries at once."""
    found = whole(publication)
    if not found:
        return ()
    content: dict[str, Any] = {"mirrors": {entry.source: {"endpoint": [f"https://{entry.mirror}"]} for entry in found}}
    if publication.trust:
        content["configs"] = {host: {"tls": {"ca_file": TRUST}} for host in sorted({entry.mirror for entry in found})}
    head = comment(
        f"Goes to /etc/rancher/k3s/ or /etc/rancher/rke2/, ca-bundle.pem to {TRUST}; then restart k3s or rke2.",
        "NeverContactSource is a flag there: --disable-default-registry-endpoint.",
    )
    return (Document("rancher/registries.yaml", yaml_document(head, content)),)
