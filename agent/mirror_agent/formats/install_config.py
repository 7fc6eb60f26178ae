"""What goes into install-config.yaml before a cluster is installed, also by the agent-based installer."""

from __future__ import annotations

from typing import Any

from mirror_agent.formats.entries import Entry, entries
from mirror_agent.formats.text import Block, comment, yaml_document
from mirror_agent.model import Document, Publication

# The repositories of release payloads (OpenShift, OKD since 4.16, OKD before).  The agent-based installer looks for
# the one of its release image among the sources, letter by letter: a registry or organisation is not found by it.
PAYLOADS = (
    "quay.io/openshift-release-dev/ocp-release", "quay.io/openshift-release-dev/ocp-v4.0-art-dev",
    "quay.io/okd/scos-release", "quay.io/okd/scos-content",
    "quay.io/openshift/okd", "quay.io/openshift/okd-content",
)  # fmt: skip


def render(publication: Publication) -> tuple[Document, ...]:
    """install-config.fragment.yaml: imageDigestSources and additionalTrustBundle, ready to be pasted."""
    head = comment(
        "Paste both keys into install-config.yaml before the installation. There is no such key for tags and no",
        "policy: apply the two mirror sets once the cluster is up (docs/publications.md).",
    )
    return _fragment("install-config.fragment.yaml", head, entries(publication), publication.trust)


def render_agent(publication: Publication) -> tuple[Document, ...]:
    """agent-install-config.fragment.yaml: the same, and the repositories of release payloads by their full names."""
    found = entries(publication)
    exact = [_within(payload, found) for payload in PAYLOADS if all(payload != entry.source for entry in found)]
    head = comment(
        "For `openshift-install agent create image`: paste both keys into install-config.yaml. A source that is more",
        "specific than another hides it, its policy too (docs/publications.md).",
    )
    more = (entry for entry in exact if entry)
    return _fragment("agent-install-config.fragment.yaml", head, (*found, *more), publication.trust)


def _within(repository: str, found: tuple[Entry, ...]) -> Entry | None:
    """The entry of a repository that lies in the source of another one: the longest, as nodes choose."""
    around = [entry for entry in found if repository.startswith(f"{entry.source}/")]
    if not around:
        return None
    entry = max(around, key=lambda each: len(each.source))
    return Entry(repository, entry.mirror + repository.removeprefix(entry.source), entry.policy)


def _fragment(name: str, head: str, found: tuple[Entry, ...], trust: str) -> tuple[Document, ...]:
    """Without `sourcePolicy`: only installers since the end of 2025 know it.

    The PEM is the end of the file, since the installer refuses any text after the last block.
    """
    if not found:
        return ()
    content: dict[str, Any] = {
        "imageDigestSources": [{"source": entry.source, "mirrors": [entry.mirror]} for entry in sorted(found)]
    }
    if trust:
        content["additionalTrustBundle"] = Block(trust)
    return (Document(name, yaml_document(head, content)),)
