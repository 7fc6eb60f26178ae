"""What the API server accepts: the rules of OpenShift's CRDs as one table per kind, and what checks them.

openshift/api: config/v1 (ImageDigestMirrorSet, ImageTagMirrorSet, Image) and operator/v1alpha1
(ImageContentSourcePolicy); openshift/kubernetes, admission/customresourcevalidation/image, for the name `cluster`.
The words are the API server's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror_agent.model import Policy
from mirror_agent.openshift.rendering import MIRROR, SOURCE

CLUSTER = "cluster"  # the only name of an image.config.openshift.io

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LONGEST_NAME = 253

_JSON_TYPES: Mapping[str, type | tuple[type, ...]] = {"object": dict, "array": list, "string": str, "boolean": bool}


@dataclass(frozen=True, slots=True)
class Rule:
    """A structural schema, as far as these CRDs use it."""

    type: str
    keys: Mapping[str, Rule] = field(default_factory=dict)
    items: Rule | None = None
    required: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    enum: tuple[str, ...] = ()
    length: tuple[int, int] = (0, 2**31)  # characters of a string, items of an array
    is_set: bool = False  # x-kubernetes-list-type: set
    check: tuple[Callable[[Any], bool], str] | None = None  # x-kubernetes-validations: a rule and its message


_TEXT = Rule("string")
_TEXTS = Rule("array", items=_TEXT)


def _entries(policy: bool, checked: bool) -> Rule:
    keys = {
        "source": Rule("string", pattern=SOURCE if checked else None),
        "mirrors": Rule("array", items=Rule("string", pattern=MIRROR if checked else None), is_set=checked),
    }
    if policy:
        keys["mirrorSourcePolicy"] = Rule("string", enum=tuple(Policy))
    return Rule("array", items=Rule("object", keys, required=("source",)))


def _of_spec(**keys: Rule) -> Rule:
    return Rule("object", {"spec": Rule("object", keys)}, required=("spec",))


_SCOPES = Rule(
    "array",
    items=Rule(
        "string",
        length=(1, 256),
        check=(
            lambda scope: SOURCE.fullmatch(scope) is not None,
            "each registry must be a valid hostname[:port][/path] or wildcard *.hostname format without tags or "
            "digests",
        ),
    ),
    length=(0, 1024),
)
_MODE = Rule("string", enum=("", "Legacy", "PreserveOriginal"))
_IMAGE = _of_spec(
    additionalTrustedCA=Rule("object", {"name": _TEXT}, required=("name",)),
    allowedRegistriesForImport=Rule("array", items=Rule("object", {"domainName": _TEXT, "insecure": Rule("boolean")})),
    externalRegistryHostnames=_TEXTS,
    imageStreamImportMode=_MODE,
    registrySources=Rule(
        "object",
        {
            "allowedRegistries": _SCOPES,
            "blockedRegistries": _SCOPES,
            "insecureRegistries": _SCOPES,
            "containerRuntimeSearchRegistries": Rule("array", items=_TEXT, length=(1, 2**31), is_set=True),
        },
        check=(
            lambda sources: not {"blockedRegistries", "allowedRegistries"} <= sources.keys(),
            "Only one of blockedRegistries or allowedRegistries may be set",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object that says something about where images come from."""

    name: str
    api: str
    entries: str  # the key of its list of entries, "" for none
    rule: Rule


DIGEST = Kind(
    "ImageDigestMirrorSet", "config.openshift.io/v1", "imageDigestMirrors",
    _of_spec(imageDigestMirrors=_entries(policy=True, checked=True)),
)  # fmt: skip
TAG = Kind(
    "ImageTagMirrorSet", "config.openshift.io/v1", "imageTagMirrors",
    _of_spec(imageTagMirrors=_entries(policy=True, checked=True)),
)  # fmt: skip
POLICY = Kind(
    "ImageContentSourcePolicy", "operator.openshift.io/v1alpha1", "repositoryDigestMirrors",
    _of_spec(repositoryDigestMirrors=_entries(policy=False, checked=False)),
)  # fmt: skip
IMAGE = Kind("Image", "config.openshift.io/v1", "", _IMAGE)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (DIGEST, TAG, POLICY, IMAGE)}


def stored(kind: Kind, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object as the API server takes it: a key of the schema whose value is null counts as absent.

    k8s.io/apiextensions-apiserver, pkg/apiserver/schema/defaulting: PruneNonNullableNullsWithoutDefaults.
    """
    found: Mapping[str, Any] = _stored(kind.rule, content)
    return found


def _stored(rule: Rule, value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if each is not None or key not in rule.keys}
        return {key: _stored(rule.keys[key], each) if key in rule.keys else each for key, each in kept.items()}
    if isinstance(value, list) and rule.items:
        return [_stored(rule.items, each) for each in value]
    return value


def mistakes(kind: Kind, content: Mapping[str, Any]) -> Iterator[str]:
    """Why the API server refuses this object, nothing when it does not."""
    api = content.get("apiVersion")
    if api != kind.api:
        yield f"apiVersion: no matches for kind {_shown(kind.name)} in version {_shown(api)}, it is {kind.api}"
    yield from _name(kind, content)
    yield from _wrong(kind.rule, content, "")


def unknown(kind: Kind, content: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the spec that the API server drops without another word than a warning."""
    spec = kind.rule.keys["spec"]
    if isinstance(content.get("spec"), dict):
        yield from _unknown(spec, content["spec"], "spec")


def _name(kind: Kind, content: Mapping[str, Any]) -> Iterator[str]:
    metadata = content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if name is None and not (isinstance(metadata, dict) and metadata.get("generateName")):
        yield "metadata.name: Required value: name or generateName is required"
    elif name is not None and (not isinstance(name, str) or len(name) > LONGEST_NAME or not _NAME.fullmatch(name)):
        yield f"metadata.name: Invalid value: {_shown(name)}: a lowercase RFC 1123 subdomain is wanted"
    elif kind is IMAGE and name != CLUSTER:
        yield f"metadata.name: Invalid value: {_shown(name)}: must be {CLUSTER}"


def _wrong(rule: Rule, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, _JSON_TYPES[rule.type]):
        wanted = f"must be of type {rule.type}: {_shown(_type(value))}"
        yield f"{path}: Invalid value: {_shown(value)}: {path} in body {wanted}"
        return
    before = 0
    for mistake in _parts(rule, value, path):
        before += 1
        yield mistake
    if rule.check and not before and not rule.check[0](value):
        yield f"{path}: Invalid value: {_shown(value)}: {rule.check[1]}"


def _parts(rule: Rule, value: Any, path: str) -> Iterator[str]:
    match value:
        case dict():
            yield from (f"{_join(path, key)}: Required value" for key in rule.required if key not in value)
            for key, below in rule.keys.items():
                if key in value:
                    yield from _wrong(below, value[key], _join(path, key))
        case list():
            yield from _length(rule, len(value), path, "items")
            if rule.is_set:
                yield from (
                    f"{path}[{index}]: Duplicate value: {_shown(item)}"
                    for index, item in enumerate(value)
                    if item in value[:index]
                )
            for index, item in enumerate(value):
                if rule.items:
                    yield from _wrong(rule.items, item, f"{path}[{index}]")
        case str():
            yield from _length(rule, len(value), path, "chars long")
            if rule.enum and value not in rule.enum:
                wanted = ", ".join(map(_shown, rule.enum))
                yield f"{path}: Unsupported value: {_shown(value)}: supported values: {wanted}"
            if rule.pattern and not rule.pattern.fullmatch(value):
                yield f"{path}: Invalid value: {_shown(value)}: {path} in body should match a host[:port][/path]"


def _length(rule: Rule, size: int, path: str, unit: str) -> Iterator[str]:
    least, most = rule.length
    if size < least:
        yield f"{path}: Invalid value: {path} in body should have at least {least} {unit}"
    if size > most:
        yield f"{path}: Too long: may not be more than {most} {unit}"


def _unknown(rule: Rule, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            if key not in rule.keys:
                yield f"{path}.{key}"
            else:
                yield from _unknown(rule.keys[key], below, f"{path}.{key}")
    elif isinstance(value, list) and rule.items:
        for index, item in enumerate(value):
            yield from _unknown(rule.items, item, f"{path}[{index}]")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _type(value: Any) -> str:
    for name, kind in (("boolean", bool), ("integer", int), ("number", float)):
        if isinstance(value, kind):
            return name
    return next((name for name, kind in _JSON_TYPES.items() if isinstance(value, kind)), "null")
