"""Years of CAs in a simulated time: no reader that follows what is published ever refuses a mirror."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_agent import rollover
from mirror_agent.actions import Action, DropAuthority, NotePublished, PrepareAuthority, SwitchAuthority
from mirror_agent.model import Authorities, Authority, Certificate, CertificateSettings, Rollover
from mirror_agent.rollover import Stage, View

NOW = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)
DAY = timedelta(days=1)
LIFE = CertificateSettings()


def ca(key: str, now: datetime = NOW, days: int = 3650) -> Authority:
    facts = Certificate((), (), 1, now - DAY, now + timedelta(days=days), key, subject_key=key)
    return Authority(facts, key.encode())


OLD, NEW, OTHER = ca("0d"), ca("4e"), ca("07")


def kinds(view: View, now: datetime, life: CertificateSettings = LIFE) -> list[type[Action]]:
    return [type(step) for step in rollover.steps(view, life, now)]


# --- one step after another ----------------------------------------------------------------------------------


def test_it_begins_by_itself_in_time() -> None:
    view = View(Authorities(OLD))
    begins = OLD.facts.not_after - 150 * DAY
    assert rollover.begins_at(OLD, LIFE) == begins
    assert kinds(view, begins - timedelta(seconds=1)) == []
    assert kinds(view, begins) == [PrepareAuthority]
    assert view.stage == Stage.STEADY


def test_days_count_from_when_it_is_published_everywhere() -> None:
    view = View(Authorities(OLD, NEW))
    assert view.stage == Stage.PREPARED
    assert kinds(view, NOW + 400 * DAY) == []
    assert kinds(replace(view, published=True), NOW) == [NotePublished]
    told = replace(view, published=True, rollover=Rollover({NEW.key: NOW}))
    assert told.stage == Stage.SPREADING
    assert rollover.switches_at(told, LIFE) == NOW + 30 * DAY
    assert kinds(told, NOW + 30 * DAY - timedelta(seconds=1)) == []
    assert kinds(told, NOW + 30 * DAY) == [SwitchAuthority]


def test_confirmed_by_an_admin_means_now() -> None:
    view = View(Authorities(OLD, NEW), rollover=Rollover({NEW.key: NOW}, frozenset({NEW.key})), published=True)
    assert kinds(view, NOW) == [SwitchAuthority]


def test_the_end_of_the_old_ca_waits_for_nobody() -> None:
    view = View(Authorities(OLD, NEW))
    assert kinds(view, OLD.facts.not_after - DAY - timedelta(seconds=1)) == []
    assert kinds(view, OLD.facts.not_after - DAY) == [SwitchAuthority]
    assert kinds(View(Authorities(OLD)), OLD.facts.not_after + 900 * DAY) == [PrepareAuthority]


def test_an_old_one_goes_with_its_last_leaf() -> None:
    ends = NOW + 90 * DAY
    view = View(Authorities(NEW, None, (OLD,)), rollover=Rollover(ends={OLD.key: ends}))
    assert view.stage == Stage.RETIRING
    assert kinds(view, ends - timedelta(seconds=1)) == []
    assert kinds(view, ends) == [DropAuthority]
    assert kinds(replace(view, signers={OLD.key}), ends) == [], "a mirror still shows a leaf of it: the clock is wrong"
    forgotten = replace(view, rollover=Rollover())
    assert kinds(forgotten, ends) == []
    assert DropAuthority in kinds(forgotten, OLD.facts.not_after)


def test_what_a_wrong_clock_has_made_is_dropped() -> None:
    assert kinds(View(Authorities(OLD, ca("f0", NOW + 5000 * DAY))), NOW) == [DropAuthority]


def test_an_admin_s_own_ca_comes_the_same_way() -> None:
    assert kinds(View(Authorities(OLD), brought=NEW), NOW) == [PrepareAuthority]
    assert kinds(View(Authorities(OLD, OTHER), brought=NEW), NOW) == [DropAuthority]
    assert kinds(View(Authorities(OLD, NEW), brought=NEW, published=True), NOW) == [NotePublished]
    assert kinds(View(Authorities(NEW, None, (OLD,)), brought=NEW), NEW.facts.not_after - 9 * DAY) == []


# --- years ---------------------------------------------------------------------------------------------------


@dataclass
class Host:
    """A host with one mirror and the readers of what it publishes; one look a day."""

    life: CertificateSettings
    now: datetime = NOW
    known: Authorities = field(default_factory=lambda: Authorities(OLD))
    remembered: Rollover = field(default_factory=Rollover)
    bundle: frozenset[str] = frozenset({OLD.key})  # as it was published last
    made: int = 0
    leaf: Certificate | None = None
    crossed: dict[str, str] = field(default_factory=dict)  # new CA: the old one that signed it
    sent: str | None = None  # the crossed CA that goes with the leaf

    def look(self, reachable: bool) -> None:
        """What the agent does in one go; the target can be written or not."""
        for _ in range(6):
            self.renew()
            everything = frozenset(each.key for each in self.known.all)
            signers = {self.leaf.issuer_key} if self.leaf else set()
            view = View(
                self.known, rollover=self.remembered, published=reachable and self.bundle == everything, signers=signers
            )
            steps = list(rollover.steps(view, self.life, self.now))
            for step in steps:
                self.do(step)
            if reachable:
                self.bundle = frozenset(each.key for each in self.known.all)
            if not steps:
                return
        raise AssertionError("never settled")

    def renew(self) -> None:
        """As judging.due and making.issue do."""
        current, leaf = self.known.current, self.leaf
        trusted = {each.key for each in (current, *self.known.old)}
        if leaf and leaf.issuer_key in trusted:
            aged = self.now >= leaf.not_before + (leaf.not_after - leaf.not_before) * 2 / 3
            longer = leaf.issuer_key != current.key or leaf.not_after < current.facts.not_after
            if self.now < leaf.not_after and not (aged and longer):
                return
        if self.now >= current.facts.not_after:
            return
        end = min(self.now + timedelta(days=self.life.leaf_days), current.facts.not_after)
        self.leaf = Certificate((), (), 1, self.now, end, current.key)
        self.sent = self.crossed.get(current.key) if self.known.old else None

    def do(self, step: Action) -> None:
        match step:
            case PrepareAuthority():
                self.made += 1
                self.known = replace(self.known, coming=ca(f"{self.made:02x}", self.now, self.life.ca_days))
            case NotePublished():
                self.remembered = replace(self.remembered, published={**self.remembered.published, step.key: self.now})
            case SwitchAuthority():
                before, coming = self.known.current, self.known.coming
                assert coming is not None
                assert coming.key == step.key
                ends = {**self.remembered.ends, before.key: self.now + timedelta(days=self.life.leaf_days)}
                self.remembered = replace(self.remembered, ends=ends)
                self.crossed[coming.key] = before.key
                self.known = Authorities(coming, None, (*self.known.old, before))
            case DropAuthority():
                assert step.key != self.known.current.key
                old = tuple(each for each in self.known.old if each.key != step.key)
                coming = self.known.coming if self.known.coming and self.known.coming.key != step.key else None
                self.known = Authorities(self.known.current, coming, old)
            case _:
                raise AssertionError(step)

    def serves(self, trust: frozenset[str]) -> bool:
        """Does a reader that trusts these CAs accept the mirror's certificate?"""
        if self.leaf is None or not self.leaf.not_before <= self.now < self.leaf.not_after:
            return False
        return bool(trust & {self.leaf.issuer_key, self.sent or ""})


@settings(max_examples=60)
@given(
    life=st.sampled_from([CertificateSettings(), CertificateSettings(400, 60, 14), CertificateSettings(120, 10, 30)]),
    away=st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 20)), max_size=1),
    cut=st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 60)), max_size=1),
    lazy=st.integers(1, 14),
)
def test_years_of_cas(
    life: CertificateSettings, away: list[tuple[int, int]], cut: list[tuple[int, int]], lazy: int
) -> None:
    """The agent is off for some days, the target cannot be written for some weeks, a reader fetches now and then."""
    host, reader, full = Host(life), frozenset({OLD.key}), []
    host.known = Authorities(ca(OLD.key, NOW, life.ca_days))
    days = 2 * life.ca_days if life.ca_days < 500 else 4200
    off = {day for start, length in away for day in range(start, start + min(length, life.leaf_days // 4))}
    unwritable = {day for start, length in cut for day in range(start, start + min(length, life.roll_days // 2))}
    for day in range(days):
        host.now = NOW + day * DAY
        if day not in off:
            host.look(day not in unwritable)
        if day % lazy == 0:
            reader = host.bundle
        if host.leaf and host.leaf.not_before == host.now:
            full.append(host.leaf.not_after - host.leaf.not_before)
        assert host.serves(reader), f"day {day}: {host.known} {host.leaf} {reader}"
        assert len(host.known.all) <= 3
    assert host.made >= 1
    if not off and not unwritable:
        assert set(full) == {timedelta(days=life.leaf_days)}, "a leaf was shorter than it should be"


def test_nothing_is_done_twice() -> None:
    host = Host(LIFE, known=Authorities(ca("0d", NOW, 3650)))
    for day in range(3600, 3700):
        host.now = NOW + day * DAY
        host.look(True)
        before = (host.known, host.remembered, host.leaf)
        host.look(True)
        assert (host.known, host.remembered, host.leaf) == before
