"""hosts.toml for containerd, one file per registry (containerd, docs/hosts.md): also for kind and plain Kubernetes."""

from __future__ import annotations

import json

from mirror_agent.formats.entries import Entry, whole
from mirror_agent.formats.text import comment
from mirror_agent.model import Document, Policy, Publication

TRUST = "/etc/containerd/certs.d/mirror-agent-ca.pem"


def render(publication: Publication) -> tuple[Document, ...]:
    """Registries only: containerd knows no mirror for a part of one."""
    return tuple(
        Document(f"containerd/{_folder(entry.source)}.toml", _hosts(entry, bool(publication.trust)))
        for entry in whole(publication)
    )


def _folder(source: str) -> str:
    """As containerd names the folder of a registry with a port: host_port_."""
    host, colon, port = source.partition(":")
    return f"{host}_{port}_" if colon else host


def _hosts(entry: Entry, private: bool) -> bytes:
    head = comment(f"Goes to /etc/containerd/certs.d/{entry.source}/hosts.toml, ca-bundle.pem to {TRUST}.")
    url = json.dumps(f"https://{entry.mirror}")
    facts = ['capabilities = ["pull", "resolve"]'] + ([f"ca = {json.dumps(TRUST)}"] if private else [])
    if entry.policy is Policy.NEVER:  # the mirror in the place of the source: without `server` there is a way back
        # up to 1.7 containerd takes no file without a table `host`, and then asks the source
        lines = [f"server = {url}", *facts, "", "[host]"]
    else:
        lines = [f"[host.{url}]", *(f"  {fact}" for fact in facts)]
    return (head + "\n" + "\n".join(lines) + "\n").encode("ascii")
