"""Mirror sets for a running OpenShift or OKD cluster (4.13 and later): ImageDigestMirrorSet and ImageTagMirrorSet."""

from __future__ import annotations

from typing import Any

from mirror_agent.formats.entries import Entry, entries
from mirror_agent.formats.text import comment, yaml_document
from mirror_agent.model import Document, Publication

# The name that the installer gives to the object it makes of imageDigestSources.  Ours must be the same object: a
# second one with the same sources and another policy makes the machine-config-operator refuse both, silently.
DIGEST_SET = "image-digest-mirror"
TAG_SET = "image-tag-mirror"

COST = "On a running cluster this may drain every node, one after another: read docs/publications.md first."


def render(publication: Publication) -> tuple[Document, ...]:
    """The two sets as a pair, with the same sources and policies: with NeverContactSource in one of them alone,
    nodes could not pull by the other kind of reference at all.
    """
    found = entries(publication)
    if not found:
        return ()
    return (
        Document(
            "image-digest-mirror-set.yaml",
            yaml_document(
                comment("Images by digest. Apply it together with image-tag-mirror-set.yaml, in one command.", COST),
                mirror_set("ImageDigestMirrorSet", DIGEST_SET, "imageDigestMirrors", found),
            ),
        ),
        Document(
            "image-tag-mirror-set.yaml",
            yaml_document(
                comment("Images by tag. Apply it together with image-digest-mirror-set.yaml, in one command.", COST),
                mirror_set("ImageTagMirrorSet", TAG_SET, "imageTagMirrors", found),
            ),
        ),
    )


def mirror_set(kind: str, name: str, key: str, found: tuple[Entry, ...]) -> dict[str, Any]:
    """One object of config.openshift.io/v1.  The policy is always written: unset would mean allow."""
    return {
        "apiVersion": "config.openshift.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            key: [
                {"source": entry.source, "mirrors": [entry.mirror], "mirrorSourcePolicy": entry.policy.value}
                for entry in found
            ]
        },
    }
