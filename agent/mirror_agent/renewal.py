"""Floor 4: certificates renewed by hand, or at boot before the mirrors start.  Needs files only, no agent that runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from mirror_agent.certificates import judging, reading
from mirror_agent.host import authorities, files, issuers, pairs
from mirror_agent.model import Certificate, CertificateSettings, Issuer, Mirror, Paths, Trouble
from mirror_agent.plan import Desired


class Outcome(NamedTuple):
    """What became of one mirror's certificate."""

    mirror: str
    upstream: str
    why: str = ""  # it was to be renewed, "" where it was not
    made: Certificate | None = None
    trouble: Trouble | None = None


def renew(desired: Desired, names: Collection[str], only_due: bool) -> Iterator[Outcome]:
    """Renew the certificates of these mirrors, or only those that are due."""
    for mirror in desired.mirrors:
        if mirror.name not in names:
            continue
        try:
            yield _renew(mirror, desired, only_due)
        except Trouble as trouble:
            yield Outcome(mirror.name, mirror.upstream, trouble=trouble)


def _renew(mirror: Mirror, desired: Desired, only_due: bool) -> Outcome:
    none = Outcome(mirror.name, mirror.upstream)
    paths, now = desired.paths, datetime.now(UTC)
    if files.folder(paths.mirror(mirror.name) / "tls") is None:
        if only_due:
            return none  # it never ran: the agent brings it up, with a certificate
        raise Trouble(mirror.name, "does not run yet", "the agent makes its first certificate when it brings it up")
    last = pairs.current(paths.mirror(mirror.name) / "tls")
    settings = desired.settings.certificates
    if only_due and judging.issuer_of(mirror, settings) != Issuer.OWN:
        return none  # at boot there is no network yet; and what was brought does not get younger
    why = _why(mirror, settings, paths, now) if only_due else "asked for"
    if not why:
        return none
    order = issuers.Order(mirror, settings, paths, last, now, desired.leaves.get(mirror.name))
    pair = issuers.get(order)
    issuers.put(order, pair)
    return none._replace(why=why, made=reading.facts(pair.certificate, pair.key))


def _why(mirror: Mirror, settings: CertificateSettings, paths: Paths, now: datetime) -> str:
    known = authorities.read(paths.authority)
    if known is None:
        return ""
    trusted = [old.key for old in known.old]
    found = pairs.current(paths.mirror(mirror.name) / "tls")
    return judging.due(found, mirror, known.current.facts, now, trusted, settings.leaf_key)
