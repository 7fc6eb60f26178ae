"""Floor 2: what a cluster should hold of ours, against what it holds, and what the difference costs.  Pure.

OpenShift's own rules decide (openshift/): nothing is written that its machine-config-operator would refuse, since it
refuses silently and then ignores every later change of mirrors too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mirror_agent.formats import additional_trusted_ca
from mirror_agent.formats.entries import Entry, entries
from mirror_agent.formats.openshift import mirror_set
from mirror_agent.model import Change, ClusterSettings, ClusterState, Cost, Drain, Policy, Pool, Publication, Trouble
from mirror_agent.openshift import Object, judge

KINDS: Mapping[str, str] = {"ImageTagMirrorSet": "imageTagMirrors", "ImageDigestMirrorSet": "imageDigestMirrors"}
ENTRIES: Mapping[str, str] = {**KINDS, "ImageContentSourcePolicy": "repositoryDigestMirrors"}
NAMESPACE = additional_trusted_ca.NAMESPACE
TRUST = additional_trusted_ca.NAME  # the ConfigMap, where the cluster names none yet
POLICY = "mirrorSourcePolicy"
MANAGED_BY, INSTANCE, HOST = "app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "mirror-agent-host"  # labels
COST: Mapping[Cost, str] = {
    Cost.NONE: "no node is touched",
    Cost.RELOAD: "CRI-O is reloaded, no drain",
    Cost.DRAIN: "drains every node",
}
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

type Key = tuple[str, str]  # kind and name
type Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be applied, in this order: trust, then mirrors."""

    trust: tuple[Change, ...] = ()
    mirrors: tuple[Change, ...] = ()
    cost: Cost = Cost.NONE  # of the mirrors; trust is free
    refused: str = ""  # why the mirrors cannot be applied
    hint: str = ""
    untrusted: bool = False  # the refusal is about trust
    notes: tuple[str, ...] = ()  # what else a person should know
    busy: str = ""  # nodes that take over an earlier change, or an upgrade

    def due(self, settings: ClusterSettings, local: datetime) -> tuple[Change, ...]:
        """What is to be applied now; `local` is the time on the host's clock."""
        if self.refused:
            return () if self.untrusted else self.trust
        return self.trust + (() if self.held(settings, local) else self.mirrors)

    def held(self, settings: ClusterSettings, local: datetime) -> str:
        """Why the mirrors are not applied now though they could be, "" when they are."""
        if not self.mirrors or self.cost is not Cost.DRAIN:
            return ""
        if settings.drain is Drain.NEVER:
            return f'held back: it {COST[self.cost]}; [publish.cluster] drain = "always" or "window" makes it'
        if settings.window and not settings.window.contains(local):
            return f"waits for its window: it {COST[self.cost]}"
        return self.busy and f"waits for a roll-out ({self.busy}): it {COST[self.cost]} once more"


class _RefusedError(Exception):
    """Nothing of it is applied: why, and the way out."""


def compare(publication: Publication, settings: ClusterSettings, state: ClusterState) -> Outcome:
    """What the cluster lacks of this publication, what applying it costs, and what speaks against it."""
    there = {_key(content): content for content in state.objects}
    mine = entries(publication)
    own = frozenset((kind, own_name(settings)) for kind in KINDS)
    former = _former({mirror.host for mirror in publication.mirrors}, settings, state)
    try:
        trust = tuple(_trust(publication, settings, state, former))
    except _RefusedError as refused:
        return Outcome(refused=str(refused.args[0]), hint=refused.args[1], untrusted=True)
    changes = tuple(_mirrors(mine, settings, state, former))
    after: dict[Key, Content] = {**there, **{(change.kind, change.name): change.body for change in changes}}
    notes = tuple(_shadows(mine, after, own))
    try:
        _check(mine, state, after, own, settings)
        verdict = judge(objects(there.values()), objects(after.values()))
    except _RefusedError as refused:
        return Outcome(trust, changes, refused=str(refused.args[0]), hint=refused.args[1], notes=notes)
    except Trouble as trouble:
        return Outcome(trust, changes, refused=trouble.reason, notes=notes)
    notes = (*notes, *verdict.notes)
    if not verdict.accepted and (changes or mine):
        hint = "mirror-agent preview shows it; nothing is written meanwhile"
        return Outcome(trust, changes, refused=verdict.reason or "", hint=hint, notes=notes)
    busy = roll_out(pool for pool in state.pools if pool.updating and not pool.degraded)
    return Outcome(trust, changes, verdict.cost, notes=notes, busy=busy)


def place(settings: ClusterSettings) -> str:
    """How people know the cluster."""
    return f"the cluster of {settings.kubeconfig}"


def own_name(settings: ClusterSettings) -> str:
    """The name of this cache host's pair of objects."""
    return f"mirror-agent-{settings.name}"


def hosts(settings: ClusterSettings, state: ClusterState) -> frozenset[str]:
    """The mirrors' hosts that the cluster is told of in this cache host's own objects."""
    own = [each for each in state.objects if _key(each)[0] in KINDS and _key(each)[1] == own_name(settings)]
    return frozenset[str]().union(*map(_hosts, own))


def objects(contents: Iterable[Content]) -> dict[Key, Object]:
    """Objects as the API server has them, for OpenShift's rules."""
    return {_key(content): Object(*_key(content), content, "the cluster") for content in contents}


def roll_out(pools: Iterable[Pool]) -> str:
    """How far the nodes are, in one line."""
    lines = []
    for pool in sorted(pools, key=lambda each: each.name):
        state = f"degraded: {pool.degraded}" if pool.degraded else "updating" if pool.updating else "done"
        lines.append(f"{pool.name} {pool.updated}/{pool.machines} {state}")
    return "; ".join(lines)


# --- the mirror sets -----------------------------------------------------------------------------------------


def _mirrors(
    mine: tuple[Entry, ...], settings: ClusterSettings, state: ClusterState, former: tuple[Content, ...]
) -> Iterator[Change]:
    """In an order that never leaves a policy alone: two that differ are ignored until they agree.

    So entries of others that lose our policy come first, those that get it come last.
    """
    policies = {_host(entry.mirror): entry.policy for entry in mine}
    objects = {_key(content): content for content in state.objects}
    told = hosts(settings, state).union(*map(_hosts, former))
    adopted = [
        (change, gives)
        for (kind, name), content in sorted(objects.items())
        if kind in KINDS and name in settings.adopt
        for change, gives in _adopted(content, policies, told - policies.keys())
    ]
    yield from (change for change, gives in adopted if not gives)
    for kind, key in KINDS.items():
        there = objects.get((kind, own_name(settings)))
        body = mirror_set(kind, own_name(settings), key, mine)
        body["metadata"]["labels"] = labels(settings.name, state.host)
        if there is None and not mine:
            continue
        if there is None or _said(there) != _said(body) or not _labelled(there, body):
            yield Change(body, force=there is not None and _is_ours(there, settings, state))
    for content in former:  # after the new ones: what they say is never missing
        kind, name = _key(content)
        body = mirror_set(kind, name, KINDS[kind], ())
        body["metadata"]["labels"] = labels(_labels(content)[INSTANCE], state.host)
        yield Change(body, force=True)
    yield from (change for change, gives in adopted if gives)


def _adopted(content: Content, policies: Mapping[str, Policy], gone: Set[str]) -> Iterator[tuple[Change, bool]]:
    """Somebody else's object with our policy where its mirrors are ours, all else as it is; and does it get any?"""
    key, gives = KINDS[_key(content)[0]], False
    new: list[Content] = []
    for entry in _entries(content):
        found = {_host(mirror) for mirror in entry.get("mirrors", ())}
        ours = [policies[host] for host in sorted(found & policies.keys())]
        if ours and _policy(entry) is not ours[0]:
            new.append({**entry, POLICY: ours[0].value})
            gives = True
        elif not ours and found & gone and _policy(entry) is Policy.NEVER:
            # a mirror that is withdrawn must not stay the only way to its images
            new.append({name: value for name, value in entry.items() if name != POLICY})
        else:
            new.append(entry)
    if new != _entries(content):
        head = {"name": _key(content)[1], "resourceVersion": content["metadata"].get("resourceVersion", "")}
        body = {"apiVersion": "config.openshift.io/v1", "kind": _key(content)[0], "metadata": head, "spec": {key: new}}
        yield Change(body, force=True), gives


def labels(name: str, host: str) -> dict[str, str]:
    """By which the agent knows its objects, also when somebody has edited them, and those that had another name."""
    return {MANAGED_BY: "mirror-agent", INSTANCE: name, **({HOST: host} if host else {})}


def _labels(content: Content) -> Mapping[str, str]:
    return content["metadata"].get("labels") or {}


def _labelled(there: Content, body: Content) -> bool:
    return _labels(body).items() <= _labels(there).items()


def _is_ours(content: Content, settings: ClusterSettings, state: ClusterState) -> bool:
    there = _labels(content)
    known = labels(settings.name, "").items() <= there.items()
    return known and (not state.host or there.get(HOST, state.host) == state.host)


def _former(ours: Set[str], settings: ClusterSettings, state: ClusterState) -> tuple[Content, ...]:
    """Objects that this host made when it had another [publish.cluster] name.

    They name mirrors of ours: a host that was cloned, machine-id and all, has others.
    """
    return tuple(
        content
        for content in sorted(state.objects, key=_key)
        if _key(content)[0] in KINDS
        and state.host
        and _labels(content).get(HOST) == state.host
        and _labels(content).get(MANAGED_BY) == "mirror-agent"
        and _labels(content).get(INSTANCE, settings.name) != settings.name
        and ours & _hosts(content)
    )


# --- what speaks against it ----------------------------------------------------------------------------------


def _check(
    mine: tuple[Entry, ...],
    state: ClusterState,
    after: Mapping[Key, Content],
    own: frozenset[Key],
    settings: ClusterSettings,
) -> None:
    """Raises _RefusedError with the name of the object that stands against ours."""
    for content in sorted(state.objects, key=_key):
        if _key(content) in own and not _is_ours(content, settings, state):
            what, hint = " ".join(_key(content)), "set another [publish.cluster] name"
            if HOST in _labels(content):
                hint += f"; or, if this host took its place: oc label {what.lower()} {HOST}-"
            raise _RefusedError(f"{what} is not this agent's", hint)
    policies = {entry.source: entry for entry in mine}
    ours = {_host(entry.mirror) for entry in mine}
    for key, entry in _foreign(after, own):
        mirrors = entry.get("mirrors", ())
        known = policies.get(entry["source"])
        if known and _policy(entry) is not known.policy:
            what = f"{entry['source']} is {_policy(entry)} in {' '.join(key)}, ours is {known.policy}"
            if any(_host(mirror) in ours for mirror in mirrors) and key[0] in KINDS and key[1] not in settings.adopt:
                hint = f'in agent.toml: [publish.cluster] adopt = ["{key[1]}"] gives those entries our policy'
            else:
                hint = "give it the same policy, or take the source out of one of the two"
            raise _RefusedError(f"{what}: OpenShift would ignore both, and every later change of mirrors", hint)
        if _policy(entry) is Policy.NEVER and (bad := next((h for h in ours if _covers(entry["source"], h)), None)):
            raise _RefusedError(
                f"{bad} is itself under {entry['source']}, which {' '.join(key)} blocks",
                "a mirror there blocks itself: another domain, or another policy there",
            )


def _shadows(mine: tuple[Entry, ...], after: Mapping[Key, Content], own: frozenset[Key]) -> Iterator[str]:
    """More specific sources of others take the place of ours entirely."""
    for key, entry in _foreign(after, own):
        for ours in mine:
            if entry["source"].startswith(ours.source + "/"):
                yield f"{' '.join(key)}: its {entry['source']} hides our {ours.source} there, with mirrors and policy"


def _foreign(objects: Mapping[Key, Content], own: frozenset[Key]) -> Iterator[tuple[Key, Content]]:
    for key in sorted(objects.keys() - own):
        yield from ((key, entry) for entry in _entries(objects[key]))


def _covers(source: str, host: str) -> bool:
    return host == source or (source.startswith("*.") and host.endswith(source[1:]))


# --- trust ---------------------------------------------------------------------------------------------------


def trust_name(objects: Iterable[Content]) -> str:
    """The ConfigMap that the cluster takes registries' CAs from, or the one that is to be made."""
    image = next((each for each in objects if _key(each) == ("Image", "cluster")), None)
    return str(_named(image) or TRUST)


def _trust(
    publication: Publication, settings: ClusterSettings, state: ClusterState, former: tuple[Content, ...]
) -> Iterator[Change]:
    """One key for each mirror, beside those of others: node by node in /etc/docker/certs.d, without any drain.

    A mirror that is withdrawn keeps its key for as long as the mirror sets still name it.
    """
    name, manager = trust_name(state.objects), f"mirror-agent-{settings.name}"
    told = hosts(settings, state).union(*map(_hosts, former))
    wanted: Set[str] = told | {mirror.host for mirror in publication.mirrors}
    image = next((each for each in state.objects if _key(each) == ("Image", "cluster")), None)
    there: Mapping[str, str] = (state.trust or {}).get("data") or {}
    owned = _owned(state.trust, manager)
    names = sorted({f"mirror-agent-{_labels(each)[INSTANCE]}" for each in former})
    left = {each: keys for each in names if (keys := _owned(state.trust, each))}  # to this host under other names
    if not publication.trust:  # every reader trusts the certificates already
        wanted = set()
    if not wanted and not owned and not left:
        return
    if image is None:
        raise _RefusedError("it has no image.config.openshift.io/cluster", "is this OpenShift or OKD?")
    data: dict[str, str] = {}
    for host in sorted(wanted):
        if host in there and host not in owned.union(*left.values()):
            if not set(_BLOCK.findall(publication.trust)) <= set(_BLOCK.findall(there[host])):
                where = f"ConfigMap {NAMESPACE}/{name}"
                raise _RefusedError(f"{where} has a key {host} of somebody else, without our CA", "remove that key")
        else:
            data[host] = publication.trust
    head = {"name": name, "namespace": NAMESPACE}
    if any(there.get(host) != trust for host, trust in data.items()) or owned - data.keys() or left:
        yield Change({"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": data}, manager, bool(left))
    for each in left:  # they give up what is ours now, and take the rest away
        yield Change({"apiVersion": "v1", "kind": "ConfigMap", "metadata": head}, each)
    if wanted and _named(image) is None:
        spec = {"additionalTrustedCA": {"name": name}}
        head = {"name": "cluster"}
        yield Change({"apiVersion": "config.openshift.io/v1", "kind": "Image", "metadata": head, "spec": spec})


def _owned(config_map: Content | None, manager: str) -> set[str]:
    """The keys that are this cache host's by the API server's own books."""
    fields = ((config_map or {}).get("metadata") or {}).get("managedFields") or ()
    mine = (each.get("fieldsV1", {}).get("f:data", {}) for each in fields if each.get("manager") == manager)
    return {key.removeprefix("f:") for data in mine for key in data if key.startswith("f:")}


def _named(image: Content | None) -> str | None:
    spec = (image or {}).get("spec") or {}
    return (spec.get("additionalTrustedCA") or {}).get("name") or None


# --- contents ------------------------------------------------------------------------------------------------


def _key(content: Content) -> Key:
    return content["kind"], content["metadata"]["name"]


def _entries(content: Content) -> list[Content]:
    return list((content.get("spec") or {}).get(ENTRIES.get(content["kind"], ""), ()))


def _hosts(content: Content) -> frozenset[str]:
    return frozenset(_host(mirror) for entry in _entries(content) for mirror in entry.get("mirrors", ()))


def _said(content: Content) -> list[tuple[str, tuple[str, ...], Policy]]:
    """What a set says, whatever the order of its entries."""
    return sorted((e["source"], tuple(e.get("mirrors", ())), _policy(e)) for e in _entries(content))


def _policy(entry: Content) -> Policy:
    return Policy(entry.get(POLICY) or Policy.ALLOW)


def _host(location: str) -> str:
    return location.partition("/")[0]
