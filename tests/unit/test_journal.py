"""What a log line becomes: a sentence, fields, and never a secret or a terminal escape."""

from typing import Any

import pytest

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
