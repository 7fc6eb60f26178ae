"""Floor 1: when a mirror's upstream is looked at, and what is said of one that cannot be reached.  Pure.

No upstream is looked at while clients get what they ask for.  A request that came to nothing is a doubt: distribution
answers for an upstream that is away with what it has, or 404 (3.1.1, proxytagservice.go), so it is no more than that.
Then a connection is opened as far as the upstream's proved name, and nothing is asked through it: no limit counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from mirror_agent.model import Mirror, Reach

AGAIN = timedelta(seconds=45)  # between two tries while it is away: less than between two looks, so that each is one
TRUSTED = timedelta(minutes=5)  # after it was reached, whatever comes to nothing: so it may flap, and is not told to


def known(last: Reach | None, mirror: Mirror) -> Reach | None:
    """What was found out, if it was about the upstream that the mirror has now."""
    return last if last and last.remote == mirror.remote else None


def due(last: Reach | None, doubt: datetime | None, now: datetime) -> bool:
    """Is it time to look (again)?  `doubt` is when something was last wanted of it that did not come."""
    if last is None or not last.tried <= now:  # the clock was wrong then
        return doubt is not None or (last is not None and last.since is not None)
    if last.since:
        return now >= last.tried + AGAIN
    return doubt is not None and doubt > last.tried and now >= last.tried + TRUSTED


def overdue(known: Mapping[str, Reach]) -> dict[str, Reach]:
    """The same, so that those that are away are to be tried now."""
    return {name: replace(last, tried=last.tried - AGAIN) if last.since else last for name, last in known.items()}


def noted(last: Reach | None, remote: str, error: str, doubt: datetime | None, now: datetime) -> Reach:
    """What is known after a try; `error` is why it failed, "" when it did not."""
    if not error:
        return Reach(remote, now)
    began = last.since if last and last.since else min(doubt or now, now)
    return Reach(remote, now, began, error)


def away(upstream: str, since: datetime, error: str, now: datetime) -> str:
    """For people: "quay.io cannot be reached since 14:02 UTC (quay.io: no answer: Connection refused)"."""
    when = f"{since:%H:%M}" if since.date() == now.date() else f"{since:%Y-%m-%d %H:%M}"
    return f"{upstream} cannot be reached since {when} UTC ({error})"


def lasted(span: timedelta) -> str:
    """For people: "40 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    seconds = max(int(span.total_seconds()), 0)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((place for place, (_, size) in enumerate(units) if seconds >= size), 3)
    (name, size), (below, small) = units[first], units[min(first + 1, 3)]
    rest = seconds % size // small
    more = f" {rest} {below}" if rest and name in ("d", "h") else ""
    return f"{seconds // size} {name}{more}"
