"""/etc/containers/registries.conf: written as the machine-config-operator does, and read."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from mirror_agent.openshift.values import Endpoint, Registry

# templates/{master,worker,arbiter}/01-*-container-runtime/_base/files/container-registries.yaml: what nodes have
# as long as no object says anything.
SEARCH = ("registry.access.redhat.com", "docker.io")
TEMPLATE = f"unqualified-search-registries = ['{SEARCH[0]}', '{SEARCH[1]}']\n"


def write(registries: Iterable[Registry]) -> str:
    """The file with these tables, to the byte: BurntSushi/toml over sysregistriesv2.V2RegistriesConf.

    Keys without a value are left out where the struct says omitempty; `prefix` and the three global ones do not.
    """
    lines = [
        f"unqualified-search-registries = [{', '.join(map(_quoted, SEARCH))}]",
        'short-name-mode = ""',
        'additional-layer-store-auth-helper = ""',
    ]
    for registry in registries:
        lines += ["", "[[registry]]", f"  prefix = {_quoted(registry.prefix)}"]
        lines += [f"  {line}" for line in _endpoint(Endpoint(registry.location, registry.insecure))]
        lines += ["  blocked = true"] if registry.blocked else []
        for mirror in registry.mirrors:
            lines += ["", "  [[registry.mirror]]"]
            lines += [f"    {line}" for line in _endpoint(mirror)]
    return "\n".join(lines) + "\n"


def _endpoint(endpoint: Endpoint) -> Iterable[str]:
    if endpoint.location:
        yield f"location = {_quoted(endpoint.location)}"
    if endpoint.insecure:
        yield "insecure = true"
    if endpoint.pull:
        yield f"pull-from-mirror = {_quoted(endpoint.pull)}"


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x20), 0x7F)} | {
    ord(char): escape for char, escape in (("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r"), ('"', r"\""), ("\\", r"\\"))
}


def read(text: str) -> tuple[tuple[str, ...], tuple[Registry, ...]]:
    """The search registries and the tables of a file.  Raises ValueError when it is not such a file."""
    try:
        content = tomllib.loads(text)
        search = tuple(map(str, content.get("unqualified-search-registries", ())))
        return search, tuple(_registry(table) for table in content.get("registry", ()))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"this is not a registries.conf: {error}") from error


def _registry(table: dict[str, Any]) -> Registry:
    return Registry(
        prefix=table.get("prefix", ""),
        location=table.get("location", ""),
        insecure=table.get("insecure", False),
        mirrors=tuple(
            Endpoint(mirror.get("location", ""), mirror.get("insecure", False), mirror.get("pull-from-mirror", ""))
            for mirror in table.get("mirror", ())
        ),
        blocked=table.get("blocked", False),
        digest_only=table.get("mirror-by-digest-only", False),
    )
