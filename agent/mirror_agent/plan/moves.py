"""Who has which address, and mirrors that take over each other's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from mirror_agent import pods
from mirror_agent.actions import Action, RestartUnits, StartUnits, StopUnits
from mirror_agent.model import Mirror
from mirror_agent.plan.values import Desired, Observed


def holds(mirror: Mirror, observed: Observed) -> bool:
    """Does the mirror's pod run with the address that the mirror is to have?"""
    infra = observed.container(mirror.name, None)
    return infra is not None and infra.address == mirror.address


def unheld(desired: Desired, observed: Observed) -> frozenset[IPv4Address]:
    """Addresses that mirrors do not hold yet: for these alone a claim counts.

    One that was held and is no longer may have been taken by somebody meanwhile: it is claimed again.
    """
    return frozenset(mirror.address for mirror in desired.mirrors if not holds(mirror, observed))


def waits_for(mirror: Mirror, observed: Observed) -> str:
    """Another mirror whose pod runs with this one's address, "" for none."""
    others = (c for c in observed.containers if c.mirror != mirror.name)
    return next((c.mirror for c in others if c.address == mirror.address), "")


def make_way(steps: Iterable[Action], desired: Desired, observed: Observed) -> Iterator[Action]:
    """The steps, but no pod is started with an address that another one has: podman refuses that.

    It waits until the other has moved or gone, and runs on meanwhile.  Pods that wait for each other in a circle are
    stopped together; then all of their addresses are free.
    """
    mirrors = {mirror.name: mirror for mirror in desired.mirrors}
    steps = tuple(steps)
    starting = {step.mirror for step in steps if _starts_pod(step)}
    waits = {name: other for name in starting if (other := waits_for(mirrors[name], observed))}
    for step in steps:
        if step.mirror not in waits or not _starts_pod(step):
            yield step
        elif _in_circle(step.mirror, waits):
            why = f"{waits[step.mirror]} has its new address, and is to move too"
            yield StopUnits(step.mirror, why, (pods.pod_service(step.mirror),))


def _starts_pod(step: Action) -> bool:
    return isinstance(step, StartUnits | RestartUnits) and pods.pod_service(step.mirror) in step.units


def _in_circle(name: str, waits: Mapping[str, str]) -> bool:
    """Does whoever `name` waits for wait for `name` in the end?"""
    other = waits[name]
    for _ in waits:
        if other == name:
            return True
        other = waits.get(other, "")
    return False
