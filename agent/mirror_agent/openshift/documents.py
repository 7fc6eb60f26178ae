"""YAML and JSON texts → the objects in them that say where images come from → a Cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mirror_agent.model import Policy, Trouble
from mirror_agent.openshift import schema
from mirror_agent.openshift.values import Cluster, MirrorSet, Sources

_CLUSTER_VERSION = "ClusterVersion"  # read for its release image
_GROUP = "config.openshift.io/"


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a cluster, as it was written."""

    kind: str
    name: str  # "" where there is none
    content: Mapping[str, Any]
    where: str  # the file it comes from

    def __str__(self) -> str:
        return f"{self.kind} {self.name or '(without a name)'}"


Key = tuple[str, str]
Objects = Mapping[Key, Object]  # by kind and name; those without a name by kind and place


_SCALARS: Mapping[str, re.Pattern[str] | None] = {  # None: a text for us
    "tag:yaml.org,2002:timestamp": None,
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
}


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: no dates, no numbers of base 60 (`10:30`)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [(tag, _SCALARS.get(tag, pattern)) for tag, pattern in resolvers if _SCALARS.get(tag, pattern)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(files: Iterable[tuple[str, str]]) -> Objects:
    """The objects in texts, each given with its name.  Of two with the same name the later one counts.

    Lists are opened, documents of other kinds passed over.  Raises Trouble where a text is neither YAML nor JSON.
    """
    found: dict[Key, Object] = {}
    for where, text in files:
        for index, content in enumerate(_objects(where, _documents(where, text))):
            item = _object(where, content)
            if item is not None:
                found[item.kind, item.name or f"{where} {index}"] = item
    return found


def _documents(where: str, text: str) -> Iterator[Any]:
    if text.lstrip().startswith(("{", "[")):
        try:
            yield from _jsons(text)
            return
        except (ValueError, RecursionError):
            pass  # YAML in flow style starts so too
    try:
        yield from yaml.load_all(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise Trouble(
            where, f"this is neither YAML nor JSON: {reason}", "oc get …  -o yaml writes such a file"
        ) from error


def _jsons(text: str) -> list[Any]:
    """One JSON text after the other."""
    found = []
    decoder = json.JSONDecoder()
    start = 0
    while rest := text[start:].lstrip():
        start = len(text) - len(rest)
        content, start = decoder.raw_decode(text, start)
        found.append(content)
    return found


def _objects(where: str, contents: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for content in contents:
        if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
            continue
        kind = content["kind"]
        if kind.endswith("List") and isinstance(content.get("items"), list):
            missing = {} if kind == "List" else {"kind": kind[: -len("List")], "apiVersion": content.get("apiVersion")}
            yield from _objects(where, ({**missing, **item} for item in content["items"] if isinstance(item, dict)))
        else:
            yield content


def _object(where: str, content: dict[str, Any]) -> Object | None:
    kind, api, metadata = content["kind"], content.get("apiVersion"), content.get("metadata")
    if kind in (schema.IMAGE.name, _CLUSTER_VERSION):  # names that other groups have too
        if isinstance(api, str) and not api.startswith(_GROUP):
            return None
    elif kind not in schema.KINDS:
        return None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    known = schema.KINDS.get(kind)
    stored = schema.stored(known, content) if known else content
    return Object(kind, name if isinstance(name, str) else "", stored, where)


# --- a cluster's state ---------------------------------------------------------------------------------------


def refusals(objects: Objects, known: Objects) -> Iterator[str]:
    """Why the API server would not store what is new or changed among these objects."""
    for key, item in objects.items():
        kind = schema.KINDS.get(item.kind)
        if kind is None or (key in known and known[key].content.get("spec") == item.content.get("spec")):
            continue
        for mistake in schema.mistakes(kind, item.content):
            yield f"{item}: {mistake}"


def dropped(objects: Objects) -> Iterator[str]:
    """Keys that the API server does not know, and drops."""
    for item in objects.values():
        if kind := schema.KINDS.get(item.kind):
            yield from (f"{item}: {path}" for path in schema.unknown(kind, item.content))


def cluster(objects: Objects) -> Cluster:
    """What the objects say, as one value.  Raises Trouble where one is not of the form of its kind."""
    by_kind: dict[str, list[Object]] = {}
    for item in objects.values():
        by_kind.setdefault(item.kind, []).append(item)
    try:
        return Cluster(
            digest=_sets(by_kind, schema.DIGEST),
            tag=_sets(by_kind, schema.TAG),
            policies=_sets(by_kind, schema.POLICY),
            sources=_sources(by_kind.get(schema.IMAGE.name, [])),
            release=next(map(_release, by_kind.get(_CLUSTER_VERSION, [])), ""),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = next(refusals(objects, {}), f"{type(error).__name__}: {error}")
        where = ", ".join(sorted({item.where for item in objects.values()}))
        raise Trouble(where, f"no cluster can hold this object: {problem}", "") from error


def _sets(by_kind: Mapping[str, list[Object]], kind: schema.Kind) -> tuple[tuple[MirrorSet, ...], ...]:
    return tuple(tuple(map(_entry, item.content["spec"].get(kind.entries, ()))) for item in by_kind.get(kind.name, []))


def _entry(content: Mapping[str, Any]) -> MirrorSet:
    policy = content.get("mirrorSourcePolicy") or Policy.ALLOW
    return MirrorSet(_text(content["source"]), _texts(content.get("mirrors", ())), Policy(policy))


def _sources(items: Iterable[Object]) -> Sources:
    for item in items:
        if item.name == schema.CLUSTER:
            sources = item.content["spec"].get("registrySources", {})
            keys = ("insecureRegistries", "blockedRegistries", "allowedRegistries", "containerRuntimeSearchRegistries")
            return Sources(*(_texts(sources[key]) if key in sources else None for key in keys))
    return Sources()


def _release(item: Object) -> str:
    return _text(item.content.get("status", {}).get("desired", {}).get("image", ""))


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is not a list")
    return tuple(map(_text, value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value
