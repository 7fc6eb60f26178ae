"""TOML into a checked table, or into every mistake in it, told to a person.

tomllib and pydantic do the work; what they say is put into the words of the admin: file, key, reason, hint.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mirror_agent.config.words import Mistake, closest, kind, safe, shown
from mirror_agent.model import Problem

LARGEST_FILE = 64 * 2**10
LONGEST_LINE = 1_000  # tomllib's time grows with the square of the parts of a dotted key: 15 s for one of 64 KiB

MOST_PROBLEMS = 20  # of one file: whoever has more has put the wrong file here

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TABLE = re.compile(r"\((?:'[^']*'(?:, |,)?)+\)")  # tomllib shows a table's name as a tuple

# What tomllib says, and what helps.
_ADVICE = (
    ("Invalid value", 'text stands in quotes: key = "value"'),
    ("Expected '='", 'a line is: key = "value"'),
    ("Invalid statement", 'a line is: key = "value"'),
    ("Cannot overwrite", "a key may be written only once"),
    ("Cannot declare", "a table may be opened only once"),
    ("Duplicate", "a key may be written only once"),
    ("Expected newline", "one key in a line, and text in quotes"),
    ("Illegal character '\\n'", "a quote is not closed in this line"),
    ("Unterminated string", "a quote is not closed"),
    ('Expected "', "a quote is not closed"),
    ("Expected ']'", "a bracket is not closed"),
    ("Unclosed", "a bracket is not closed"),
)


class Table(BaseModel):
    """A table of TOML: no key but its own, no type but the declared one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


def parse[T: Table](
    schema: type[T], file: str, content: bytes, context: object, mirror: str = ""
) -> tuple[T | None, tuple[Problem, ...]]:
    """A file as a table of this schema, or None and every mistake.  Never raises on any content."""
    try:
        raw = load(content)
    except Mistake as mistake:
        return None, (Problem(file, "", mistake.reason, mistake.hint, mirror),)
    try:
        return schema.model_validate(raw, context=context), ()
    except ValidationError as error:
        return None, tuple(_problems(error, schema, file, mirror))


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that a file of this schema may have, tables before what is in them: (dotted key, field)."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        if table := _table(field):
            yield from keys(table, f"{prefix}{name}.")


def _table(field: FieldInfo) -> type[BaseModel] | None:
    kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def load(content: bytes) -> dict[str, Any]:
    """Bytes as TOML.  Raises Mistake."""
    if len(content) > LARGEST_FILE:
        raise Mistake(f"is larger than {LARGEST_FILE // 2**10} KiB", "a definition has a dozen lines")
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Mistake("begins with a byte order mark", "save it as UTF-8 without BOM")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Mistake(f"is not UTF-8 in line {line}", "save it as UTF-8") from None
    for number, line_text in enumerate(text.split("\n"), 1):
        if len(line_text) > LONGEST_LINE:
            raise Mistake(f"line {number} is longer than {LONGEST_LINE} characters", "break the list into lines")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(str(error), text) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, brackets in brackets in brackets
        raise Mistake("is not TOML: a number or a nesting without end", "man mirror-agent.d has examples") from None


def _syntax(message: str, text: str) -> Mistake:
    """tomllib's message, with its place in front.  No line is quoted: there could be a password in it."""
    place = _PLACE.search(message)
    what = _TABLE.sub(lambda path: "[" + ".".join(re.findall(r"'([^']*)'", path[0])) + "]", _PLACE.sub("", message))
    if place and place[1]:
        where = f"line {place[1]}, column {place[2]}"
    else:
        where = f"line {len(text.splitlines()) or 1}, at the end of the file"
    hint = next((advice for start, advice in _ADVICE if what.startswith(start)), "")
    return Mistake(f"is not TOML: {where}: {safe(what)}", hint)


def _problems(error: ValidationError, schema: type[BaseModel], file: str, mirror: str) -> Iterator[Problem]:
    """What pydantic found, in the order of the keys."""
    known = dict(keys(schema))
    details = error.errors(include_url=False)
    found: set[Problem] = set()
    for detail in details[:MOST_PROBLEMS]:
        # An item of a list has the list's key: its value stands in the reason.
        parts = [part for part in detail["loc"] if isinstance(part, str)]
        key = ".".join(part if _BARE.fullmatch(part) else shown(part) for part in parts)
        mistake = _mistake(detail, key, known)
        found.add(Problem(file, key if mistake.key is None else mistake.key, mistake.reason, mistake.hint, mirror))
    yield from sorted(found)
    if len(details) > MOST_PROBLEMS:
        yield Problem(file, "", f"has {len(details) - MOST_PROBLEMS} more mistakes", "mend these first", mirror)


def _mistake(detail: ErrorDetails, key: str, known: dict[str, FieldInfo]) -> Mistake:
    match detail["type"]:
        case "value_error":
            mistake: Mistake = detail["ctx"]["error"]
            return Mistake(mistake.reason, _example(key, known)) if mistake.form else mistake
        case "missing":
            return Mistake("is missing", _example(key, known, needed=True))
        case "extra_forbidden":
            return Mistake("unknown key", _unknown(key, known))
        case "bool_type":
            return Mistake(f"is {kind(detail['input'])}, must be true or false", _example(key, known))
        case "list_type":
            return Mistake(f"is {kind(detail['input'])}, must be a list", _example(key, known))
        case _:  # of the types in our schemas only a table is left
            return Mistake(f"is {kind(detail['input'])}, must be a table", _example(key, known))


def _example(key: str, known: dict[str, FieldInfo], needed: bool = False) -> str:
    """A line as it could be; of a table all its keys, or those that it needs."""
    field = known[key]
    table, _, name = key.rpartition(".")
    if inner := _table(field):
        names = ", ".join(sorted(key for key, each in inner.model_fields.items() if each.is_required() or not needed))
        return f"a line [{key}], and below it: {names}"
    line = f"{name} = {field.examples[0]}" if field.examples else ""
    return f"for example, below [{table}]: {line}" if table else f"for example: {line}"


def _unknown(key: str, known: dict[str, FieldInfo]) -> str:
    """What to do about a key that is none: it stands in the wrong table, is misspelt, or is not there at all."""
    table, _, name = key.rpartition(".")
    for other in known:
        if other.rpartition(".")[2] == name:
            home = other.rpartition(".")[0]
            return f"it belongs below [{home}]" if home else "it belongs to the top, before the first [table]"
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == table]
    meant = closest(name, siblings)
    return f'did you mean "{meant}"?' if meant else "known here: " + ", ".join(sorted(siblings))
