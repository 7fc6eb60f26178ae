"""Floor 1: what OpenShift and its nodes make of mirror configuration.  Pure: texts and values in, values out.

Every rule is a translation of upstream code, step by step; each file names the code it follows.  docs/preview.md says
which versions, and how the translation was checked against the code itself.

- `documents`: YAML and JSON → objects → `Cluster`; `schema`: what the API server accepts
- `rendering`: `Cluster` → registries.conf, or why it is refused (machine-config-operator, runtime-utils)
- `draining`: two registries.conf → what the change costs (machine-config-daemon)
- `resolution`, `reference`: registries.conf and an image → the locations a node tries (containers/image)
- `verdict`: all of it for one change
"""

from __future__ import annotations

from mirror_agent.openshift.documents import Object, Objects, read
from mirror_agent.openshift.draining import cost
from mirror_agent.openshift.reference import BadReferenceError
from mirror_agent.openshift.reference import parse as parse_reference
from mirror_agent.openshift.rendering import render
from mirror_agent.openshift.resolution import Resolution, resolve
from mirror_agent.openshift.values import Cluster, MirrorSet, RefusedError, Sources
from mirror_agent.openshift.verdict import Verdict, judge

__all__ = [
    "BadReferenceError",
    "Cluster",
    "MirrorSet",
    "Object",
    "Objects",
    "RefusedError",
    "Resolution",
    "Sources",
    "Verdict",
    "cost",
    "judge",
    "parse_reference",
    "read",
    "render",
    "resolve",
]
