"""Certificates in the planner: when one is due, what is told early, what is held back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from mirror_agent import formats, messages, rollover
from mirror_agent.certificates import judging, reading
from mirror_agent.model import (
    Authority,
    Certificate,
    Issuer,
    Mirror,
    Problem,
    Publication,
    Rollover,
)
from mirror_agent.plan.publications import cluster_outcome
from mirror_agent.plan.values import Desired, Observed


def rollover_view(desired: Desired, observed: Observed) -> rollover.View | None:
    """The CAs and what is known about them, None where there is none yet."""
    if observed.authorities is None:
        return None
    bundle = formats.trust.render(Publication((), observed.trust))
    held = all(published.get(each.name) == each.content for each in bundle for published in observed.published.values())
    if outcome := cluster_outcome(desired, observed):
        held = held and not outcome.trust and not outcome.untrusted
    return rollover.View(
        observed.authorities,
        brought=_brought(desired),
        rollover=observed.rollover or Rollover(),
        published=held and not observed.unread,
        signers={certificate.issuer_key for certificate in observed.certificates.values()},
    )


def _brought(desired: Desired) -> Authority | None:
    if (pair := desired.authority) is None:
        return None
    return Authority(reading.facts(pair.certificate, pair.key), pair.certificate)


def problems(desired: Desired, observed: Observed, now: datetime) -> tuple[Problem, ...]:
    """What the host, or the calendar, shows to be wrong with what the admin wrote or brought."""
    refused = []
    if (outcome := cluster_outcome(desired, observed)) and outcome.refused:
        where, failed = str(desired.paths.settings), messages.TARGET_FAILED
        refused = [Problem(where, "publish.cluster", outcome.refused, outcome.hint, message_id=failed)]
    forbidden = (*_forbidden(desired, observed), *_will_forbid(desired, observed))
    return (*forbidden, *_ending(desired, observed, now), *refused)


def _forbidden(desired: Desired, observed: Observed) -> Iterator[Problem]:
    """Mirrors that the CA may not vouch for: told early, and held back where they need a certificate now."""
    settings, known = desired.settings.certificates, observed.authorities
    for mirror in desired.mirrors if known else ():
        if known is None or judging.issuer_of(mirror, settings) != Issuer.OWN:
            continue
        if not (reason := judging.forbids(known.current.pem, mirror.host, mirror.address)):
            continue
        hint = judging.WAY_OUT
        if known.coming and not judging.forbids(known.coming.pem, mirror.host, mirror.address):
            view = rollover_view(desired, observed)
            at = view and rollover.switches_at(view, settings)
            hint = f"the next CA permits it: it is used from {at:%Y-%m-%d} on, or after mirror-agent ca roll --confirm"
        yield Problem(f"{mirror.name}.toml", "host", f"the CA {reason}", hint, mirror.name)


def _will_forbid(desired: Desired, observed: Observed) -> Iterator[Problem]:
    """Mirrors that the CA to come may not vouch for, told while there is time."""
    settings, known, brought = desired.settings.certificates, observed.authorities, _brought(desired)
    coming = brought or (known.coming if known else None)
    if coming is None or (known and coming.key == known.current.key):
        return
    hint = "choose another host or address; or bring a CA that permits it" if brought else judging.WAY_OUT
    for mirror in desired.mirrors:
        reason = judging.forbids(coming.pem, mirror.host, mirror.address)
        if reason and judging.issuer_of(mirror, settings) == Issuer.OWN:
            yield Problem(f"{mirror.name}.toml", "host", f"the next CA {reason}", hint, mirror.name)


def _ending(desired: Desired, observed: Observed, now: datetime) -> Iterator[Problem]:
    """What an admin brought and nobody but the admin can renew."""
    settings, known = desired.settings.certificates, observed.authorities
    for mirror in desired.mirrors:
        found = _brought_leaf(mirror, desired) or observed.certificates.get(mirror.name)
        if mirror.tls and found and (reason := _age(found, judging.next_due(found), now)):
            hint = "put a new certificate and its key there: they are taken at once"
            reason = f"{mirror.tls.certificate} {reason}"
            yield Problem(f"{mirror.name}.toml", "tls.certificate", reason, hint, mirror.name)
    authority = _brought(desired) or (known and known.current)
    if settings.ca and authority and (reason := _age(authority.facts, rollover.begins_at(authority, settings), now)):
        hint = "put a new one there, in good time"
        yield Problem(str(desired.paths.settings), "certificates.ca", f"the CA in {settings.ca} {reason}", hint)


def _age(certificate: Certificate, soon: datetime, now: datetime) -> str:
    """What is wrong with a certificate's life, "" for nothing; `soon` is when its end has come near."""
    if now < certificate.not_before:
        return f"is not valid before {certificate.not_before:%Y-%m-%d %H:%M} UTC, and not used until then"
    word = "ended" if now >= certificate.not_after else "ends"
    return f"{word} at {certificate.not_after:%Y-%m-%d %H:%M} UTC" if now >= soon else ""


def _brought_leaf(mirror: Mirror, desired: Desired) -> Certificate | None:
    pair = desired.leaves.get(mirror.name)
    return reading.facts(pair.certificate, pair.key) if pair else None


def withheld(desired: Desired, observed: Observed, now: datetime) -> frozenset[str]:
    """Mirrors for which no certificate can be had: what runs of them is left as it is."""
    forbidden = {problem.mirror for problem in _forbidden(desired, observed)}
    return frozenset(
        mirror.name
        for mirror in desired.mirrors
        if (mirror.name in forbidden and due(mirror, desired, observed, now))
        or (observed.damaged and _lacks(mirror, desired, observed))
        or (mirror.tls and mirror.name not in observed.certificates and not due(mirror, desired, observed, now))
    )


def due(mirror: Mirror, desired: Desired, observed: Observed, now: datetime) -> str:
    """Why a mirror needs a new certificate, "" when it needs none or none can be had."""
    certificate, known = observed.certificates.get(mirror.name), observed.authorities
    if observed.authority is None and not observed.damaged:
        return ""
    kind = desired.settings.certificates.leaf_key
    match judging.issuer_of(mirror, desired.settings.certificates):
        case Issuer.BROUGHT:
            brought = _brought_leaf(mirror, desired)
            if brought is None or brought == certificate or not judging.valid(brought, now):
                return ""
            return f"{mirror.tls and mirror.tls.certificate} is another one"
        case Issuer.ACME:
            own = [each.key for each in known.all] if known else ()
            suggested = observed.suggested.get(mirror.name)
            return judging.due_elsewhere(certificate, mirror, own, now, suggested, kind)
    if observed.authority is None:
        return ""  # damaged
    trusted = [old.key for old in known.old] if known else ()
    return judging.due(certificate, mirror, observed.authority, now, trusted, kind)


def _lacks(mirror: Mirror, desired: Desired, observed: Observed) -> bool:
    """Does it need a certificate of the host's CA before it can serve as it should?  One that merely ends does not."""
    if judging.issuer_of(mirror, desired.settings.certificates) != Issuer.OWN:
        return False
    found = observed.certificates.get(mirror.name)
    if found is None or not found.key_matches:
        return True
    return mirror.host not in found.hosts or mirror.address not in found.addresses


def is_public(mirror: Mirror, desired: Desired) -> bool:
    """Is its certificate by a CA that readers trust already, as this host does?"""
    acme = desired.settings.certificates.acme
    return mirror.tls.ca is None if mirror.tls else acme is not None and acme.trust is None
