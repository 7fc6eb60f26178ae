"""What OpenShift makes of a change: accepted or refused, at what cost, and where images then come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mirror_agent.model import Cost
from mirror_agent.openshift import conf, documents, rendering, resolution
from mirror_agent.openshift.documents import Objects
from mirror_agent.openshift.draining import cost
from mirror_agent.openshift.resolution import Resolution
from mirror_agent.openshift.values import Cluster, RefusedError


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a change.  What is refused changes nothing: `after` is then `before`, and the cost none."""

    accepted: bool
    reason: str | None  # why not
    cost: Cost
    before: str  # registries.conf as nodes have it
    after: str  # as they get it
    resolve: tuple[Resolution, ...]
    notes: tuple[str, ...] = ()  # what else a person should know


def judge(before: Objects, after: Objects, refs: Iterable[str] = ()) -> Verdict:
    """What happens when a cluster's objects go from `before` to `after`, these being all that it has.

    The API server looks at what is new or changed, the machine-config-operator at everything, and containers/image
    at the file that comes out.  Raises Trouble where an object has no form that a cluster could hold,
    BadReferenceError for a `ref` that is no image.
    """
    old, notes = _file(documents.cluster(before))
    if wrong := next(documents.refusals(after, before), None):
        reason: str | None = f"the API server refuses {wrong}"
        new = old
    else:
        state = documents.cluster(after)
        new, reason = _rendered(state, old)
        notes += [f"the API server drops a key that it does not know: {path}" for path in documents.dropped(after)]
        notes += _remarks(state)
        if state.sources.search != documents.cluster(before).sources.search:
            notes.append(
                "containerRuntimeSearchRegistries goes to registries.conf.d/01-image-searchRegistries.conf: "
                "the machine-config-operator reboots every node for a change of it"
            )
    resolved = tuple(resolution.resolve(new, ref) for ref in refs)
    return Verdict(reason is None, reason, cost(old, new), old, new, resolved, tuple(notes))


def _file(state: Cluster) -> tuple[str, list[str]]:
    """What nodes have before the change."""
    try:
        return rendering.render(state), []
    except RefusedError as error:
        note = f"the machine-config-operator refuses what is there before the change already ({error}): nodes still "
        return conf.TEMPLATE, [note + "have an older file that cannot be told from here; a fresh node's is shown"]


def _rendered(state: Cluster, old: str) -> tuple[str, str | None]:
    try:
        text = rendering.render(state)
    except RefusedError as error:
        return old, f"the machine-config-operator refuses it: {error}"
    try:
        resolution.loaded(conf.read(text)[1])
    except resolution.UnreadableError as error:
        return text, f"nodes get the file and cannot read it: {error}"
    return text, None


def _remarks(state: Cluster) -> Iterator[str]:
    if state.policies and (state.digest or state.tag):
        yield (
            "ImageContentSourcePolicy stands beside the newer kinds: OpenShift 4.13 before 4.13.27 refuses that, later "
            "ones merge them"
        )
    if state.sources.blocked and not state.release:
        yield (
            "blocked registries: OpenShift does not block what holds its own release image, as long as that has no "
            "mirror that is not blocked; that image is not known here (a ClusterVersion object tells it)"
        )
