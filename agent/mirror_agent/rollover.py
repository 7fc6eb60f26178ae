"""Floor 2: replacing a CA without a reader that loses its trust.  Pure: facts and `now` in, steps out.

Prepare: a next CA is made and published beside the current one.  Spread: readers learn to trust it, for `roll_days`
or until an admin confirms that all do: no target can tell.  Switch: leaves come from it from now on; those of the old
one are renewed when they are due, and until it is dropped a certificate of the new CA signed by the old one is sent
along, so that a reader that trusts the old one only is served too.  Drop: the last leaf of the old CA has ended.

What is there is read from the CA's folder; only moments are remembered (model.Rollover), so that every step may be
killed and repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from mirror_agent.actions import Action, DropAuthority, NotePublished, PrepareAuthority, SwitchAuthority
from mirror_agent.certificates import judging
from mirror_agent.model import Authorities, Authority, CertificateSettings, Rollover

LAST_MOMENT = timedelta(days=1)  # before the current CA's end the next one is used, whoever trusts it


class Stage(StrEnum):
    """Where a roll-over stands."""

    STEADY = "steady"
    PREPARED = "prepared"  # the next CA is made, and not published everywhere yet
    SPREADING = "spreading"  # readers learn to trust it
    RETIRING = "retiring"  # it signs; the old one is still trusted


@dataclass(frozen=True, slots=True)
class View:
    """The CAs of this host, and what is known about them."""

    known: Authorities
    brought: Authority | None = None  # an admin's own, which is to be the current one
    rollover: Rollover = field(default_factory=Rollover)
    published: bool = False  # every target has just now what should be published
    signers: Collection[str] = ()  # keys of the CAs by which mirrors' leaves are signed now

    @property
    def stage(self) -> Stage:
        """Where the roll-over stands; a new one counts more than the end of the last."""
        if coming := self.known.coming:
            return Stage.SPREADING if coming.key in self.rollover.published else Stage.PREPARED
        return Stage.RETIRING if self.known.old else Stage.STEADY


def steps(view: View, settings: CertificateSettings, now: datetime) -> Iterator[Action]:
    """What is to be done next for the CAs."""
    coming = view.known.coming
    if coming and (why := _unwanted(coming, view, now)):
        yield DropAuthority("", why, coming.key)
    elif coming:
        if view.published and coming.key not in view.rollover.published:
            yield NotePublished("", "readers can fetch it now", coming.key)
        if why := _may_switch(coming, view, settings, now):
            yield SwitchAuthority("", why, coming.key)
    elif why := _needed(view, settings, now):
        yield PrepareAuthority("", why)
    for old in view.known.old:
        if now >= drops_at(old, view.rollover) and old.key not in view.signers:
            yield DropAuthority("", "its last certificate has ended", old.key)


def begins_at(current: Authority, settings: CertificateSettings) -> datetime:
    """When replacing a CA begins by itself: so early that it never signs a leaf shorter than `leaf_days`."""
    return current.facts.not_after - timedelta(days=settings.leaf_days + 2 * settings.roll_days)


def switches_at(view: View, settings: CertificateSettings) -> datetime | None:
    """When leaves come from the next CA at the latest, as far as that is known; None where there is no next one."""
    if view.known.coming is None:
        return None
    last = view.known.current.facts.not_after - LAST_MOMENT
    since = view.rollover.published.get(view.known.coming.key)
    return min(last, since + timedelta(days=settings.roll_days)) if since else last


def drops_at(old: Authority, rollover: Rollover) -> datetime:
    """When an old CA need not be trusted any more."""
    return min(old.facts.not_after, rollover.ends.get(old.key, old.facts.not_after))


def _needed(view: View, settings: CertificateSettings, now: datetime) -> str:
    """Why a next CA is to be made, "" when it is not."""
    if view.brought:
        other = view.brought.key != view.known.current.key and judging.valid(view.brought.facts, now)
        return "certificates.ca names another CA" if other else ""
    if now >= begins_at(view.known.current, settings):
        return f"the CA ends at {view.known.current.facts.not_after:%Y-%m-%d}"
    return ""


def _unwanted(coming: Authority, view: View, now: datetime) -> str:
    """Why a next CA is not to be used at all."""
    if view.brought and coming.key != view.brought.key:
        return "certificates.ca names another CA"
    if now < coming.facts.not_before:
        return "it was made while the clock was ahead"
    if now >= coming.facts.not_after:
        return "it has ended"
    return ""


def _may_switch(coming: Authority, view: View, settings: CertificateSettings, now: datetime) -> str:
    """Why the next CA is to be used from now on, "" while it is not."""
    if coming.key in view.rollover.confirmed:
        return "an admin has confirmed that it is trusted"
    since = view.rollover.published.get(coming.key)
    if since and now >= since + timedelta(days=settings.roll_days):
        return f"published since {since:%Y-%m-%d}"
    if now >= view.known.current.facts.not_after - LAST_MOMENT:
        return f"the CA before ends at {view.known.current.facts.not_after:%Y-%m-%d %H:%M} UTC"
    return ""
