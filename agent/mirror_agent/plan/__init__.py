"""Floor 2: what should exist, and what is to be done about it.  Pure: facts in, values out.

compose() says what should exist.  plan() compares it with what is there and returns the next steps, never more than
are safe to do on what was observed: a unit is written when its images are there, started when it is loaded, published
when it was proved.  The loop observes again after each round, so that every step may fail, be killed or be repeated.
"""

from __future__ import annotations

from mirror_agent.plan.leaves import is_public, problems, rollover_view
from mirror_agent.plan.moves import unheld, waits_for
from mirror_agent.plan.names import hold_file, service_of, unit_owner, unit_services, unit_upstream
from mirror_agent.plan.publications import answers, cluster_outcome, documents, in_doubt, publication, unwell
from mirror_agent.plan.steps import plan, runs
from mirror_agent.plan.values import Desired, Observed, compose

__all__ = [
    "Desired",
    "Observed",
    "answers",
    "cluster_outcome",
    "compose",
    "documents",
    "hold_file",
    "in_doubt",
    "is_public",
    "plan",
    "problems",
    "publication",
    "rollover_view",
    "runs",
    "service_of",
    "unheld",
    "unit_owner",
    "unit_services",
    "unit_upstream",
    "unwell",
    "waits_for",
]
