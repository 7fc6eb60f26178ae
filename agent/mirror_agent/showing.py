"""Floor 4: the page of the published folder, drawn anew when it has to be."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from mirror_agent import page, plan
from mirror_agent.host import journal
from mirror_agent.model import Trouble
from mirror_agent.report import Status
from mirror_agent.targets import targets


class Showing:
    """It is no step of the plan: nothing waits for a page, and nothing else fails with it."""

    def __init__(self) -> None:
        self._told = ""

    def show(self, status: Status, desired: plan.Desired, observed: plan.Observed) -> None:
        """To each target that has a page and can be read.  What goes wrong is told once."""
        wrong = ""
        for target in targets(desired.settings.publish):
            documents = observed.published.get(target.place)
            if target.show is None or documents is None:
                continue
            due = partial(page.due, status=status, documents=documents, now=datetime.now(UTC))
            try:
                target.show(due)
            except Trouble as trouble:
                wrong = str(trouble)
        if wrong and wrong != self._told:
            journal.get().warning(wrong, action="show")
        self._told = wrong
