"""registry-mirrors of Docker's daemon.json (docs.docker.com, "Registry as a pull through cache"): Docker Hub alone."""

from __future__ import annotations

import json

from mirror_agent.formats.entries import whole
from mirror_agent.model import Document, Publication

HUB = "docker.io"


def render(publication: Publication) -> tuple[Document, ...]:
    """No comment: JSON has none.  Docker knows no policy: it goes to the Hub when the mirror cannot serve."""
    urls = [f"https://{entry.mirror}" for entry in whole(publication) if entry.source == HUB]
    if not urls:
        return ()
    return (Document("docker/daemon.json", (json.dumps({"registry-mirrors": urls}, indent=2) + "\n").encode("ascii")),)
