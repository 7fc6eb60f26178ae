"""What every target can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mirror_agent.model import Document, Trouble


class TargetError(Trouble):
    """A target could not be read or written.  What was published before is still there."""

    def __init__(self, where: str, reason: str, hint: str = "", key: str = "publish") -> None:
        super().__init__(where, reason, hint)
        self.key = key  # of the settings, that it is about


@dataclass(frozen=True, slots=True)
class Target:
    """One place of publication.  Both functions raise TargetError and nothing else for what people can mend."""

    place: str  # for people: "/srv/mirror-agent"
    read: Callable[[], Mapping[str, bytes]]  # what is published there now, by document name
    publish: Callable[[tuple[Document, ...]], tuple[str, ...]]  # make it these documents; the names that changed
    # Shows people a page beside the documents: the function says what it is to be, given what it is; None: as it is.
    show: Callable[[Callable[[bytes | None], bytes | None]], None] | None = None
