"""What a log line becomes: a sentence, fields, and never a secret or a terminal escape."""

import contextlib
from typing import Any

import pytest
import structlog

from mirror_agent.host import journal


def line(**fields: Any) -> dict[str, Any]:
    cleaned = journal.no_secrets(None, "info", dict(fields))
    return dict(journal.plain(None, "info", cleaned))


def test_a_sentence_with_its_subject_and_its_figures() -> None:
    told = line(event="started", mirror="quay", upstream="quay.io", action="start", seconds=0.5351, tries=2)
    assert journal.message(told) == "quay: started (seconds=0.535 tries=2)"


def test_fields_of_the_journal() -> None:
    owner = {"owner-mac": "52:54:00:12:34:56"}
    told = line(event="taken", level="warning", mirror="quay", message_id="0a" * 16, **owner)
    assert journal.fields(told) == [
        "MESSAGE=quay: taken (owner-mac=52:54:00:12:34:56)",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=mirror-agent",
        "OBJECT_SYSTEMD_UNIT=mirror-agent.service",
        "MIRROR=quay",
        f"MESSAGE_ID={'0a' * 16}",
        "OWNER_MAC=52:54:00:12:34:56",
    ]


def test_a_field_cannot_pose_as_one_of_systemds() -> None:
    told = line(event="x", level="info", _pid=1, priority=0, message="y")
    assert journal.fields(told) == [
        "MESSAGE=x (_pid=1 priority=0 message=y)",
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=mirror-agent",
        "OBJECT_SYSTEMD_UNIT=mirror-agent.service",
        "PID=1",
    ]


@pytest.mark.parametrize("key", ["password", "upstream_token", "Authorization", "secret", "credentials", "private_key"])
def test_secrets_are_not_logged(key: str) -> None:
    assert "hunter2" not in str(journal.fields(line(event="x", **{key: "hunter2"})))


def test_urls_lose_user_and_password() -> None:
    told = line(event="pull from https://me:hunter2@quay.io/v2/ failed", remote="https://me@ghcr.io")
    assert "me" not in journal.message(told).replace("remote", "")
    assert "https://quay.io/v2/" in journal.message(told)


def test_control_characters_are_shown_not_sent() -> None:
    told = line(event="bad file \x1b[2J\nFAKE=1", file="a\r\x00b")
    assert journal.message(told) == r"bad file \x1b[2J\nFAKE=1 (file=a\r\x00b)"


def test_a_traceback_keeps_its_lines() -> None:
    told = line(event="gave up", exception='Traceback:\n  File "x"\x1b')
    assert journal.message(told) == 'gave up\nTraceback:\n  File "x"\\x1b'


def test_what_flaps_is_told_and_then_told_to_be_flapping() -> None:
    now = [0.0]
    flood = journal.Flood(lambda: now[0])

    def say(**fields: str) -> structlog.typing.EventDict | None:
        try:
            return flood(None, "info", {"event": "up and down", "level": "info", **fields})
        except structlog.DropEvent:
            return None

    lines = [say(mirror="quay", action="start") for _ in range(10 * journal.BURST)]
    told = [line for line in lines if line]
    assert len(told) == journal.BURST
    assert told[-1]["event"] == "up and down; no more lines like this for 10 min"
    assert {line["event"] for line in told[:-1]} == {"up and down"}
    # nothing else is held back by it
    assert say(mirror="ghcr", action="start")
    assert say(mirror="quay", action="prove")
    assert say(mirror="quay", action="start", level="error")

    now[0] = journal.WINDOW_S
    after = say(mirror="quay", action="start")
    assert after
    assert (after["event"], after["suppressed"]) == ("up and down", 9 * journal.BURST)


def test_an_hour_of_flapping_is_a_bounded_number_of_lines() -> None:
    now = [0.0]
    flood = journal.Flood(lambda: now[0])
    count = 0
    for second in range(3600):
        now[0] = float(second)
        for action in ("start", "announce", "prove"):
            with contextlib.suppress(structlog.DropEvent):
                flood(None, "info", {"event": "again", "level": "info", "mirror": "quay", "action": action})
                count += 1
    assert count == 3 * 6 * journal.BURST
