"""docs/json.md against what commands print: the keys of a form, with the types of their values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs/json.md"
VERSION = 1
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)


@cache
def forms() -> dict[str, dict[str, set[str]]]:
    """By command: each key with the types that the page gives it."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    chapters = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: {key: set(kinds.split(" or ")) for key, kinds in _rows(text)} for name, text in chapters.items()}


def _rows(text: str) -> Iterator[tuple[str, str]]:
    for key, kinds in _ROW.findall(text):
        yield key, kinds.replace("true or false", "truth")


def shape(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Each key of an answer with its value's type."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from shape(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from shape(item, f"{place}[]")
    elif isinstance(value, list):
        assert all(isinstance(item, str) for item in value), place
        yield place, "list of text" if value else "empty list"
    else:
        yield place, {bool: "truth", int: "number", float: "number", str: "text", type(None): "null"}[type(value)]


def conforms(command: str, answer: dict[str, Any], *, whole: bool = True) -> None:
    """Assert that an answer has the form of the page; `whole`: that no key of it is missing."""
    form = forms()[command]
    assert (next(iter(answer)), answer["version"]) == ("version", VERSION)
    found = set(shape(answer))
    for key, kind in found:
        if kind == "empty list":
            assert form.get(key) == {"list of text"} or any(each.startswith(f"{key}[].") for each in form), key
        else:
            assert kind in form.get(key, ()), f"{command}: {key} is {kind}, docs/json.md says {form.get(key)}"
    missing = form.keys() - {key for key, _ in found}
    assert not whole or not missing, f"{command}: not there: {sorted(missing)}"
