"""Each MESSAGE_ID has its text in the journal's catalog, and the catalog has no other."""

from __future__ import annotations

import re
from pathlib import Path

from mirror_agent import messages

CATALOG = Path(__file__).parents[2] / "packaging/mirror-agent.catalog"
IDS = {name: value for name, value in vars(messages).items() if name.isupper()}


def entries() -> dict[str, str]:
    parts = re.split(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_ids_are_journald_s() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in IDS.values())
    assert len(set(IDS.values())) == len(IDS)


def test_every_id_is_explained_and_nothing_else_is() -> None:
    assert set(entries()) == set(IDS.values())


def test_an_explanation_has_a_subject_and_says_what_to_do() -> None:
    for text in entries().values():
        head, _, body = text.strip().partition("\n\n")
        assert re.fullmatch(r"Subject: \S.*\nDefined-By: mirror-agent", head)
        assert len(body.split()) > 30
        assert "`" in body, "a command or a file that helps"


def test_every_id_is_used() -> None:
    source = "".join(path.read_text() for path in (CATALOG.parents[1] / "agent/mirror_agent").rglob("*.py"))
    assert [name for name in IDS if f"messages.{name}" not in source] == []
