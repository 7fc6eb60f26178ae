"""The agent's log: whole sentences for people, fields for machines.

Under systemd a line goes to the journal natively: `journalctl UPSTREAM=quay.io` finds it, and a MESSAGE_ID has its
explanation in the catalog (`journalctl -x`).  On a terminal it is a coloured line.  Values from outside are shown
with their control characters escaped, and nothing that is named like a secret is written at all.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger
from systemd.journal import Reader, sendv

IDENTIFIER, UNIT = "mirror-agent", "mirror-agent.service"

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}  # syslog(3)
BURST, WINDOW_S = 60, 600.0  # lines of a kind, and for how long: an image pulled slowly tells its progress 60 times
TOLD = 100  # lines of a mirror that are looked at for its upstream: nearly each one has it

_SECRET = re.compile(r"passw|secret|token|authorization|credential|private|api_?key", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_SPOKEN = ("event", "level", "upstream", "mirror", "action", "message_id", "exception")  # never repeated in a message


def get(**fields: Any) -> FilteringBoundLogger:
    """A logger whose lines carry `fields`.

    Fields with a meaning of their own: upstream, mirror, action, message_id (a key of the journal catalog).
    """
    return cast("FilteringBoundLogger", structlog.get_logger(**fields))


def configure(debug: bool = False, native: bool = False) -> None:
    """Send all logging, that of libraries too (from warnings on), to the journal or to standard error.

    `native`: to the journal in any case; what a command did by hand is part of the story.
    """
    journal = native or _is_journal(os.environ.get("JOURNAL_STREAM", ""))
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        no_secrets,
        plain,
        Flood(time.monotonic),
    ]
    if journal:
        processors.append(_to_journal)
    else:
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        processors.append(_console())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=_Journal if journal else structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.root.handlers[:] = [_Bridge()]
    logging.root.setLevel(logging.WARNING)


def upstream_of(mirror: str) -> str:
    """The upstream that the story has named a mirror's, newest line first; "" where there is none any more."""
    with Reader() as reader:
        reader.add_match(SYSLOG_IDENTIFIER=IDENTIFIER, MIRROR=mirror, _UID=0)
        reader.seek_tail()
        for _ in range(TOLD):
            if not (entry := reader.get_previous()):
                break
            if found := entry.get("UPSTREAM"):
                return str(found)
    return ""


def _console() -> Processor:
    # the padding by its place: structlog 25.5 renamed it
    return structlog.dev.ConsoleRenderer(
        0, colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _is_journal(stream: str) -> bool:
    """Is standard error that of the journal, as JOURNAL_STREAM claims (systemd.exec(5))?"""
    try:
        facts = os.fstat(2)
    except OSError:
        return False
    return stream == f"{facts.st_dev}:{facts.st_ino}"


# --- how many lines ---------------------------------------------------------------------------------------


class Flood:
    """At most BURST lines of a kind in WINDOW_S: what flaps is told, and then told to be flapping.

    A kind is a level, a mirror and an action: one mirror never silences another, nor its failures its story.  The last
    line before the silence says so, the first one after it how many there were.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock  # seconds
        self._kinds: dict[tuple[object, ...], tuple[float, int]] = {}  # when the window began, lines since

    def __call__(self, _logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        """A processor of structlog's.  Raises DropEvent."""
        kind, now = tuple(line.get(key) for key in ("level", "mirror", "action")), self._clock()
        began, count = self._kinds.get(kind, (now, 0))
        if now - began >= WINDOW_S:
            if count > BURST:
                line["suppressed"] = count - BURST
            began, count = now, 0
        self._kinds[kind] = began, count + 1
        if count >= BURST:
            raise structlog.DropEvent
        if count == BURST - 1:
            line["event"] = (
                f"{line.get('event', '')}; no more lines like this for {(began + WINDOW_S - now) / 60:.0f} min"
            )
        return line


# --- what a line becomes -------------------------------------------------------------------------------------


def no_secrets(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Drop the values of keys that are named like secrets, and user names and passwords from URLs."""
    for key, value in line.items():
        if _SECRET.search(key):
            line[key] = "(not logged)"
        elif isinstance(value, str):
            line[key] = _USERINFO.sub("", value)
    return line


def plain(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Make every value a number or a text of one line that cannot steer a terminal.  Tracebacks keep their lines."""
    for key, value in line.items():
        if isinstance(value, bool | int):
            continue
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        kept = "\n" if key == "exception" else ""
        line[key] = "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)
    return line


def message(line: Mapping[str, Any]) -> str:
    """The sentence for a person: "MIRROR: event (key=value …)", a traceback below it."""
    subject = f"{line['mirror']}: " if line.get("mirror") else ""
    rest = " ".join(f"{key}={value}" for key, value in line.items() if key not in _SPOKEN)
    text = f"{subject}{line.get('event', '')}" + (f" ({rest})" if rest else "")
    return text + (f"\n{line['exception']}" if line.get("exception") else "")


def fields(line: Mapping[str, Any]) -> list[str]:
    """The journal's fields for a line (systemd.journal-fields(7)): names in capitals, letters, digits and `_`.

    OBJECT_SYSTEMD_UNIT is whom the line is about: by it `journalctl -u` and `systemctl status` show what root's
    commands did, beside what the service says itself.
    """
    level = str(line.get("level", "info"))
    made = {"MESSAGE": message(line), "PRIORITY": _PRIORITIES.get(level, 6), "SYSLOG_IDENTIFIER": IDENTIFIER}
    made["OBJECT_SYSTEMD_UNIT"] = UNIT
    for key, value in line.items():
        name = re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_0123456789")[:64]
        if name and key not in ("event", "level"):
            made.setdefault(name, value)
    return [f"{name}={value}" for name, value in made.items()]


def _to_journal(_logger: WrappedLogger, _method: str, line: EventDict) -> tuple[tuple[list[str]], dict[str, Any]]:
    return (fields(line),), {}


class _Journal:
    """The end of the line: structlog calls the method that has the level's name."""

    def __init__(self, *_: Any) -> None:
        pass

    @staticmethod
    def send(fields_of_line: list[str]) -> None:
        """Hand a line to journald."""
        sendv(*fields_of_line)

    debug = info = warning = error = critical = exception = msg = send


class _Bridge(logging.Handler):
    """What libraries say through `logging`, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: a broken line of a library must not stop the agent."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        get(library=record.name).log(record.levelno, text, exc_info=record.exc_info)
