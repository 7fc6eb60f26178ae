"""ca-bundle.pem: the CA certificates that readers must trust."""

from __future__ import annotations

from mirror_agent.model import Document, Publication


def render(publication: Publication) -> tuple[Document, ...]:
    """The bare PEM blocks, also while there is no mirror: trust must be there before the first one.

    No comment: text around the blocks is an error to strict readers (install-config's additionalTrustBundle).
    """
    if not publication.trust:
        return ()
    return (Document("ca-bundle.pem", publication.trust.encode("ascii")),)
