"""Floor 4: the CAs and certificates that this host has, and what is wrong with them.

Needs files only, no systemd and no podman: so `check` tells the same as the agent.
"""

from __future__ import annotations

from mirror_agent import messages
from mirror_agent.host import authorities, pairs
from mirror_agent.model import Authorities, Certificate, Paths, Problem, Rollover, Trouble
from mirror_agent.plan import Desired, Observed


def look(desired: Desired) -> tuple[Observed, tuple[Problem, ...]]:
    """What plan() has to know of certificates; all else is left empty."""
    known, damage = _authorities(desired.paths)
    remembered, forgotten = _rollover(desired.paths)
    observed = Observed(
        certificates=_certificates(desired),
        authority=known.current.facts if known else None,
        authorities=known,
        damaged=bool(damage),
        rollover=remembered,
    )
    return observed, (*damage, *forgotten)


def _authorities(paths: Paths) -> tuple[Authorities | None, tuple[Problem, ...]]:
    """The CAs, or what is wrong with them: that stops what needs one, and nothing else."""
    try:
        return authorities.read(paths.authority), ()
    except Trouble as trouble:
        reason = f"{trouble.reason}: no certificate is issued, no mirror is proved, nothing is published"
        return None, (Problem(trouble.where, "", reason, trouble.hint, message_id=messages.AUTHORITY_DAMAGED),)


def _rollover(paths: Paths) -> tuple[Rollover | None, tuple[Problem, ...]]:
    """What is remembered of a roll-over; where that is damaged, everything but replacing the CA goes on."""
    try:
        return authorities.recall(paths.authority), ()
    except Trouble as trouble:
        reason = f"{trouble.reason}: no CA is replaced meanwhile"
        return None, (Problem(trouble.where, "", reason, trouble.hint, message_id=trouble.message_id),)


def _certificates(desired: Desired) -> dict[str, Certificate]:
    found = {mirror.name: pairs.current(desired.paths.mirror(mirror.name) / "tls") for mirror in desired.mirrors}
    return {name: certificate for name, certificate in found.items() if certificate}
