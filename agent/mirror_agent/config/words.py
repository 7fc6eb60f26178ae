"""How mistakes are told, and what no value may hold."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import PlainValidator

_FORBIDDEN = "\"'`%$\\"


class Mistake(ValueError):
    """A value that is refused: reason and hint for a person, and the key where it is not the value's own.

    `form` says that the value has not even the form of one: an example of the key helps.
    """

    def __init__(self, reason: str, hint: str = "", key: str | None = None, form: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.key = key
        self.form = form


def safe(text: str) -> str:
    """Untrusted text with every control, format and surrogate character escaped, fit for a terminal and a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(text: str) -> str:
    """Untrusted text as a message quotes it: safe and short."""
    longest = 60
    return f'"{safe(text if len(text) <= longest else text[: longest - 1] + "…")}"'


def kind(value: object) -> str:
    """What a TOML value is, in the words of people."""
    names: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (str, "text"),
        (int, "a number"),
        (float, "a number with a fraction"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((name for a_type, name in names if isinstance(value, a_type)), "a date or time")


def closest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant, without regard to case, or None."""
    known = {w.lower(): w for w in words}
    found = difflib.get_close_matches(word.lower(), known, n=1)
    return known[found[0]] if found else None


def plain(value: object) -> str:
    """Text without control characters, quotes, %, $ and backslash.  Raises Mistake."""
    if not isinstance(value, str):
        raise Mistake(f"is {kind(value)}, must be text in quotes", form=True)
    if not value:
        raise Mistake("is empty", form=True)
    for character in value:
        if not character.isprintable():
            raise Mistake(f"holds the control character U+{ord(character):04X}", "write it anew, on one line")
        if character in _FORBIDDEN:
            raise Mistake(f"holds the character {character}, which is allowed in no value", "leave it out")
    return value


def text(parse: Callable[[str], Any]) -> PlainValidator:
    """The validator of a text value: `plain`, then its own whitelist."""
    return PlainValidator(lambda value: parse(plain(value)))
