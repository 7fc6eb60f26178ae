"""Floor 5: look, plan, apply; again until there is nothing to do; then wait for a hint or a deadline.

An event carries no facts, it only says that it is time to look again.  What could not be done is tried again with a
growing delay, for its own subject only: one bad file, mirror or target never stops the others.
"""

from __future__ import annotations

import json
import queue
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mirror_agent import messages, metrics, observe, plan, reach, report, status, wish
from mirror_agent.actions import Action, Evict, Publish
from mirror_agent.apply import Failures, Hands, apply, repair
from mirror_agent.clients import TIGHT_SECONDS, Clients
from mirror_agent.host import disk, files, journal, notify, state
from mirror_agent.host.containers import Containers
from mirror_agent.host.errands import Errands
from mirror_agent.host.systemd import BusLost, Systemd
from mirror_agent.memory import Memory, key
from mirror_agent.model import CacheSettings, File, Paths, Problem, Trouble
from mirror_agent.showing import Showing
from mirror_agent.sources import SOURCES, Stop, Watched
from mirror_agent.targets.watch import Watches

_log = journal.get()

QUIET_SECONDS = 0.5  # an editor or `cp *` makes many events: look when they are over
QUIET_LIMIT_SECONDS = 5.0
LOOK_SECONDS = 60.0  # a full look even without an event: NFS, overflowing queues, clocks
UNPROVED_SECONDS = 5.0  # while a mirror waits for the first pull by any client
ROLL_OUT_SECONDS = 15.0  # while nodes of a cluster take a change over, or it does not answer (it is asked less often)
UNSETTLED_SECONDS = 2.0  # while something starts
BEAT_SECONDS = 50.0  # between two writings of metrics that have not changed
ALIVE_SECONDS = 20.0  # the watchdog is fed at least this often while nothing happens
ROUNDS = 30  # of look, plan, apply in one go; more would mean that two rules fight
STATUS_LIMIT = 4 * 2**20  # bytes of the status file
FOLDERS = ("credentials", "tls", "ca")  # below /etc/mirror-agent: what definitions and settings name lies there
_FUTILE = "was done, but nothing changed by it"
_DEFECT = "a defect of the agent: report it with what mirror-agent plan says"
_RELOAD = "reload"  # the hint of SIGHUP
_NOTHING = report.Status("", (), (), (), "", "", 0, 0)


class Agent:
    """The daemon.  One thread looks, plans and applies; sources only put hints into the queue."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._memory = Memory()
        self._systemd = Systemd()
        self._containers = Containers()
        self._hands = Hands(self._systemd, self._containers, notify.watchdog, set(), set(), Errands(self._hints.put))
        self._clients = Clients(paths)
        self._page = Showing()
        self._cache = CacheSettings().path
        self._told: Mapping[Problem, dict[str, str]] = {}  # with the fields of its line
        self._upstreams: Mapping[str, str] = {}  # by mirror, as last read
        self._shown = ""
        self._last = _NOTHING
        self._beat = 0.0  # when the metrics are written again, changed or not (monotonic)
        self._cluster = report.ClusterStatus()
        self._watches = Watches()
        self._repaired = False
        self._stopping = False

    def run(self) -> None:
        """Work until SIGTERM.  Raises BusLost, and Trouble where systemd or podman cannot be reached at all."""
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, self._signalled)
        signal.signal(signal.SIGHUP, self._signalled)
        etc = self._paths.settings.parent
        folders = (*self._paths.definitions, etc, *(etc / name for name in FOLDERS))
        watched = Watched(
            tuple(map(Path, folders)),
            self._systemd.on_change,
            self._containers.on_event,
            self._watches.on_change,
            lambda: disk.free(self._cache),
        )
        stops = self._start(watched)
        try:
            notify.ready()
            while not self._stopping:
                self._wait(self._converge())
        finally:
            notify.stopping()
            for stop in stops:
                stop()
            self._clients.save()
            self._hands.errands.close()
            self._containers.close()

    def _start(self, watched: Watched) -> list[Stop]:
        """All sources that can be had: without one of them changes are seen a minute later."""
        stops: list[Stop] = []
        for name, start in SOURCES.items():
            try:
                stops.append(start(watched, self._hints.put))
            except BusLost:
                raise
            except Trouble as trouble:
                journal.get().warning(f"events of {name} are not seen at once: {trouble}", action="run")
        return stops

    def _signalled(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            notify.reloading()
            self._hints.put(_RELOAD)
            return
        self._stopping = True
        self._hints.put("stop")

    def _wait(self, seconds: float) -> None:
        """Until something hints, and it is quiet again; or for `seconds`."""
        deadline = min([time.monotonic() + seconds, *self._attempts()])
        hint = self._next(deadline)
        limit = time.monotonic() + QUIET_LIMIT_SECONDS
        while hint and not self._stopping:
            if hint == _RELOAD:
                self._memory.blocked.clear()
                self._reach_again()
                self._reloaded()
                return
            hint = self._next(min(limit, time.monotonic() + QUIET_SECONDS))

    def _reach_again(self) -> None:
        """Upstreams that were away are tried now: what kept them away may just have been mended."""
        try:
            known = state.load_reaches(self._paths.reaches)
            state.save_reaches(self._paths.reaches, reach.overdue(known))
        except Trouble as trouble:
            journal.get().error(str(trouble), action="run")

    def _reloaded(self) -> None:
        """The reload is over: for systemd, and for the ExecReload= of a container, which waits itself."""
        notify.ready()
        try:
            files.write(File(self._paths.reloaded, b""))
        except Trouble as trouble:
            journal.get().error(str(trouble), action="run")

    def _next(self, deadline: float) -> str:
        """The next hint, "" when there was none until `deadline` (monotonic)."""
        while (left := deadline - time.monotonic()) > 0:
            notify.watchdog()
            try:
                return self._hints.get(timeout=min(left, ALIVE_SECONDS))
            except queue.Empty:
                continue
        return ""

    def _attempts(self) -> list[float]:
        """When failed steps are tried again (monotonic)."""
        now = datetime.now(UTC)
        waits = [(blocked.until - now).total_seconds() for blocked in self._memory.blocked.values()]
        return [time.monotonic() + max(seconds, 0.1) for seconds in waits]

    # --- one burst of work ---

    def _converge(self) -> float:
        """Look, plan, apply until nothing is left to do now.  Seconds until the next look, if nothing hints before."""
        if self._systemd.lost.is_set():
            raise BusLost
        done: Sequence[Action] = ()
        for _ in range(ROUNDS):
            try:
                desired, observed, problems = self._look()
            except BusLost:
                raise
            except Trouble as trouble:
                problem = Problem(
                    trouble.where,
                    "",
                    trouble.reason,
                    trouble.hint,
                    message_id=trouble.message_id or messages.HOST_SILENT,
                )
                self._tell((problem,))
                self._hold(f"waits: {trouble}", (problem,))
                return UNSETTLED_SECONDS
            if desired is None or observed is None:
                self._tell(problems)
                number = f"{len(problems)} mistake{'s' if len(problems) > 1 else ''}"
                self._hold(f"everything stays as it is: {number} in {self._paths.settings}", problems)
                return LOOK_SECONDS
            now = datetime.now(UTC)
            problems = (*problems, *plan.problems(desired, observed, now))
            self._tell(problems)
            steps = plan.plan(desired, observed, now)
            self._memory.settle(desired, observed, steps)
            under_way = self._hands.errands.under_way
            futile = [step for step in self._memory.due(steps, desired, now, under_way) if step in done]
            self._note([(step, Trouble(str(step), _FUTILE, _DEFECT)) for step in futile], desired)
            todo = self._memory.due(steps, desired, now, under_way)
            shown = status.describe(desired, observed, steps, self._memory.failures(), problems, now)
            self._show(shown)
            self._tell_cluster(shown.cluster)
            if not any(isinstance(step, Publish) for step in todo):  # else it would tell of files that come just now
                self._page.show(shown, desired, observed)
            if not todo:
                return min(_patience(shown), TIGHT_SECONDS if self._clients.soon else LOOK_SECONDS)
            failures = apply(todo, desired, observed, self._hands)
            self._note(failures, desired)
            if any(isinstance(step, Evict) for step in todo):
                self._clients.again()
            stopped = {step.mirror for step, _ in failures if step.mirror}  # not all of their steps were done
            opened = self._hands.errands.open
            done = [step for step in todo if step.mirror not in stopped and key(step) not in opened]
        journal.get().error(f"not settled after {ROUNDS} rounds: {', '.join(map(str, done))}")
        return LOOK_SECONDS

    def _look(self) -> tuple[plan.Desired | None, plan.Observed | None, tuple[Problem, ...]]:
        memory = wish.remembered(self._paths)
        major, minor, _ = self._containers.version()
        wanted = wish.read(self._paths, memory, (major, minor))
        self._upstreams = wanted.upstreams
        if wanted.desired is None:
            return None, None, wanted.problems
        if not self._repaired:
            repair(wanted.desired)
            self._repaired = True
        desired, fallen = self._memory.fall_back(wanted.desired)
        usage, stores = self._clients.look(desired)
        self._cache = desired.settings.cache.path
        hands, clients = self._hands, self._clients
        seen = observe.Seen(
            hands.claimed, hands.announced, usage, clients.fills, stores, clients.doubts, clients.wounded
        )
        observed, unreachable = observe.look(desired, memory, self._systemd, self._containers, seen)
        observed = replace(observed, unwell=self._memory.unwell(plan.unwell(desired, observed), time.monotonic()))
        self._clients.forget(observed)
        self._hands.claimed.intersection_update(plan.unheld(desired, observed))
        for ended in self._watches.follow(desired.settings.publish.cluster, observed.cluster):
            journal.get().warning(ended, action="run")
        problems = (*wanted.problems, *fallen, *unreachable, *_full(desired, observed))
        return desired, observed, (*problems, *_late(desired, observed, self._watches.trouble()))

    def _note(self, failures: Failures, desired: plan.Desired) -> None:
        now = datetime.now(UTC)
        for step, trouble in failures:
            self._memory.failed(step, str(trouble), desired, now)

    # --- what people see ---

    def _tell(self, problems: Collection[Problem]) -> None:
        """Each problem once, when it comes, and once when it is gone."""
        current = {problem: self._told.get(problem) or self._about(problem) for problem in problems}
        for problem in sorted(current.keys() - self._told.keys()):
            kind = problem.message_id or self._kind(problem)
            journal.get().error(str(problem), **current[problem], message_id=kind)
        for problem in sorted(self._told.keys() - current.keys()):
            journal.get().info(f"solved: {replace(problem, hint='')}", **self._told[problem])
        self._told = current

    def _about(self, problem: Problem) -> dict[str, str]:
        fields = {"mirror": problem.mirror, "upstream": self._upstreams.get(problem.mirror, "")}
        return {"action": "check", **{key: value for key, value in fields.items() if value}}

    def _kind(self, problem: Problem) -> str:
        broken = problem.file == str(self._paths.settings)
        return messages.SETTINGS_BROKEN if broken else messages.DEFINITION_BROKEN

    def _show(self, shown: report.Status) -> None:
        """The status file, when something in it changed, and the line of systemctl status."""
        values = shown.as_json()
        text = json.dumps({key: value for key, value in values.items() if key != "at"})
        self._measure(shown, changed=text != self._shown)
        if text == self._shown:
            return
        self._shown = text
        try:
            files.write(File(self._paths.status, (json.dumps(values, indent=2) + "\n").encode()))
        except Trouble as trouble:
            journal.get().error(str(trouble), action="status")
        notify.status(shown.line)

    def _measure(self, shown: report.Status, *, changed: bool) -> None:
        """The metrics, when they have changed; now and then also when not: they tell that the agent is there."""
        self._last = shown
        if not changed and time.monotonic() < self._beat:
            return
        self._beat = time.monotonic() + BEAT_SECONDS
        try:
            files.write(File(self._paths.metrics, metrics.render(shown)))
        except Trouble as trouble:
            journal.get().error(str(trouble), action="status")

    def _tell_cluster(self, shown: report.ClusterStatus) -> None:
        """What a cluster is about to do, each time that it changes: its nodes are other people's."""
        before, self._cluster = self._cluster, shown
        if shown.state != before.state and shown.state:
            journal.get().info(f"{shown.place}: {shown.state}", action="publish-to-cluster")
        if shown.roll_out != before.roll_out and shown.roll_out:
            tell = journal.get().warning if "degraded" in shown.roll_out else journal.get().info
            tell(f"{shown.place}: nodes: {shown.roll_out}", action="publish-to-cluster")
        for note in sorted(set(shown.notes) - set(before.notes)):
            journal.get().warning(f"{shown.place}: {note}", action="publish-to-cluster")

    def _hold(self, line: str, problems: Collection[Problem]) -> None:
        """Everything stays as it was last shown, by the agent before this one maybe; what is new is why."""
        notify.status(line)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._measure(replace(self._last, at=now, problems=tuple(problems)), changed=line != self._shown)
        if line == self._shown:
            return
        self._shown = line  # so that the next _show() is one
        try:
            before = json.loads(files.read(self._paths.status, STATUS_LIMIT) or b"{}")
            if before.get("version") != report.VERSION:
                before = _NOTHING.as_json()
            told = {"at": now, "line": line}
            values = {**before, **told, "problems": [report.told(problem) for problem in problems]}
            files.write(File(self._paths.status, (json.dumps(values, indent=2) + "\n").encode()))
        except (Trouble, ValueError) as error:
            journal.get().error(str(error), action="status")


def _full(desired: plan.Desired, observed: plan.Observed) -> Iterator[Problem]:
    """A full disk is something that a person must act on."""
    cache = desired.settings.cache
    if observed.held:
        reason = f"the disk is full: less than a quarter of the {report.size(cache.free)} that are to be left is free"
        hint = "what is cached is served, nothing new is fetched: make room, or release what is kept"
        yield Problem(str(cache.path), "", reason, hint, message_id=messages.DISK_FULL)


def _late(desired: plan.Desired, observed: plan.Observed, trouble: Trouble | None) -> Iterator[Problem]:
    """Drift in a cluster that is put right a minute later only: it can be read, and does not tell what changes."""
    if trouble and observed.cluster:
        reason = f"{trouble.where}: what changes there is not seen at once: {trouble.reason}"
        where = str(desired.paths.settings)
        yield Problem(where, "publish.cluster", reason, trouble.hint, message_id=messages.TARGET_FAILED)


def _patience(shown: report.Status) -> float:
    """Seconds to the next look when nothing hints: short while something is on its way."""
    states = {mirror.state for mirror in shown.mirrors}
    if states & {report.State.STARTING, report.State.PREPARING}:
        return UNSETTLED_SECONDS
    if report.State.UNPROVED in states:
        return UNPROVED_SECONDS
    cluster = shown.cluster
    return ROLL_OUT_SECONDS if "updating" in cluster.roll_out or cluster.state == report.UNREAD else LOOK_SECONDS


def main(paths: Paths) -> int:
    """`mirror-agent run`.  Exit code 0 after SIGTERM, 1 when it must be started anew."""
    journal.configure()
    try:
        Agent(paths).run()
    except Trouble as trouble:
        journal.get().critical(str(trouble), action="run")
        return 1
    return 0
