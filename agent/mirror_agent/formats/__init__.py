"""Floor 1: what readers are told, as files.  Pure: a format makes documents of a publication and nothing else.

The same publication gives the same bytes, whatever the order of its mirrors.  No mirrors give no documents but the
trust, so that nobody applies an empty mirror set to a cluster.

A new format is one module with `render` and one row in FORMATS; tests/unit/test_formats.py goes over every row.
docs/publications.md says what each file is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mirror_agent.formats import (
    additional_trusted_ca,
    containerd,
    dnsmasq,
    docker,
    hosts,
    hypershift,
    install_config,
    openshift,
    rancher,
    registries_conf,
    talos,
    trust,
    user_ca_bundle,
)
from mirror_agent.model import Document, Publication

Format = Callable[[Publication], tuple[Document, ...]]

# In the order in which targets write them: trust stands first, because a reader that was told of a mirror before it
# was told of the mirror's CA cannot pull at all.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "trust": trust.render,
        "additional_trusted_ca": additional_trusted_ca.render,
        "user_ca_bundle": user_ca_bundle.render,
        "hosts": hosts.render,
        "openshift": openshift.render,
        "install_config": install_config.render,
        "agent_installer": install_config.render_agent,
        "hypershift": hypershift.render,
        "registries_conf": registries_conf.render,
        "containerd": containerd.render,
        "rancher": rancher.render,
        "docker": docker.render,
        "talos": talos.render,
        "dnsmasq": dnsmasq.render,
    }
)
