"""Floor 2: what the agent remembers from one look to the next: what failed and when it is tried again.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from mirror_agent import messages, plan, report
from mirror_agent.actions import Action, IssueCertificate, RestartUnits, StartUnits
from mirror_agent.certificates import judging
from mirror_agent.model import Mirror, Pod, Problem

BACKOFF_SECONDS = (2, 5, 15, 30, 60, 120, 300)

type Key = tuple[str, str]  # kind of step, subject


@dataclass(slots=True)
class _Blocked:
    """A kind of step that failed for a subject: not before `until`, unless what it is for has changed."""

    count: int
    until: datetime
    cause: object  # what was desired when it failed
    failure: report.Failure


@dataclass(slots=True)
class Memory:
    """What the agent remembers between two looks.  Losing it costs a repeated attempt, never a mistake."""

    blocked: dict[Key, _Blocked] = field(default_factory=dict)
    good: dict[str, tuple[Mirror, Pod]] = field(default_factory=dict)  # as it last ran with all as it should be
    rejected: dict[str, tuple[Pod, Mirror, Pod]] = field(default_factory=dict)  # (does not start, runs instead)

    since: dict[str, float] = field(default_factory=dict)  # mirrors that do not answer: from when on (monotonic)

    def unwell(self, names: Collection[str], clock: float) -> dict[str, float]:
        """For how long each of these mirrors has not answered, in seconds; `clock` is monotonic.

        Not by the time of day: a host without a battery starts in the past and leaps when it learns the time.
        """
        self.since = {name: self.since.get(name, clock) for name in names}
        return {name: clock - since for name, since in self.since.items()}

    def may(self, step: Action, desired: plan.Desired, now: datetime) -> bool:
        """Is this step not waiting for its next attempt?"""
        blocked = self.blocked.get(key(step))
        return blocked is None or now >= blocked.until or blocked.cause != _cause(step, desired)

    def due(
        self, steps: Iterable[Action], desired: plan.Desired, now: datetime, under_way: Collection[Key] = ()
    ) -> list[Action]:
        """The steps to do now: those that wait for no attempt, nor for a step of their mirror that does.

        `under_way` are steps that were begun, and have not ended.
        """
        held: set[str] = set()
        due = []
        for step in steps:
            if key(step) in under_way or not self.may(step, desired, now):
                held |= {step.mirror} if step.mirror and not step.alone else set()
            elif step.alone or step.mirror not in held:
                due.append(step)
        return due

    def failed(self, step: Action, reason: str, desired: plan.Desired, now: datetime) -> None:
        """A step failed: wait longer each time."""
        which, cause = key(step), _cause(step, desired)
        before = self.blocked.get(which)
        count = before.count if before and before.cause == cause else 0
        if isinstance(step, IssueCertificate):
            again = now + judging.retry(count + 1, step.not_after, now)
        else:
            again = now + timedelta(seconds=BACKOFF_SECONDS[min(count, len(BACKOFF_SECONDS) - 1)])
        self.blocked[which] = _Blocked(count + 1, again, cause, report.Failure(step.mirror, step.action, reason, again))
        if isinstance(step, StartUnits | RestartUnits) and step.mirror in self.good:
            bad = desired.pods[step.mirror]
            if bad != self.good[step.mirror][1]:
                self.rejected[step.mirror] = (bad, *self.good[step.mirror])

    def settle(self, desired: plan.Desired, observed: plan.Observed, steps: Collection[Action]) -> None:
        """Forget failures of steps that are no longer wanted; remember pods that run as they should."""
        wanted = {key(step) for step in steps}
        self.blocked = {which: blocked for which, blocked in self.blocked.items() if which in wanted}
        busy = {step.mirror for step in steps if not step.alone}
        for mirror in desired.mirrors:
            pod = desired.pods[mirror.name]
            if plan.runs(pod, observed) and mirror.name not in busy:
                self.good[mirror.name] = (mirror, pod)

    def fall_back(self, desired: plan.Desired) -> tuple[plan.Desired, tuple[Problem, ...]]:
        """A mirror whose new definition does not start runs as it last did, until the definition changes again.

        Where another mirror has its address by now, there is no way back: the new definition is tried again and again.
        """
        self.rejected = {name: kept for name, kept in self.rejected.items() if desired.pods.get(name) == kept[0]}
        back = {name: (mirror, good) for name, (_, mirror, good) in self.rejected.items()}
        while True:
            mirrors = tuple(back[m.name][0] if m.name in back else m for m in desired.mirrors)
            count = Counter(mirror.address for mirror in mirrors)
            if not (crowded := [name for name, (mirror, _) in back.items() if count[mirror.address] > 1]):
                break
            for name in crowded:
                del back[name]
        problems = tuple(
            Problem(f"{name}.toml", "", "the mirror does not start with it and runs as before",
                    f"journalctl -u mirror-{name}-edge -u mirror-{name}-registry tells why", name,
                    messages.FALLEN_BACK)
            for name in back
        )  # fmt: skip
        pods = {**desired.pods, **{name: good for name, (_, good) in back.items()}}
        return replace(desired, mirrors=mirrors, pods=pods), problems

    def failures(self) -> dict[str, report.Failure]:
        """The last failure of each mirror, and of each subject that serves all of them."""
        found = self.blocked.items()
        return {blocked.failure.mirror or which[1] or which[0]: blocked.failure for which, blocked in found}


def key(step: Action) -> Key:
    """What tells one attempt at something from another."""
    return step.action, step.subject


def _cause(step: Action, desired: plan.Desired) -> object:
    """What a failed step was for.  When it changes, the step is tried again at once."""
    if not step.mirror:
        return step
    return desired.pods.get(step.mirror), next((m for m in desired.mirrors if m.name == step.mirror), None)
