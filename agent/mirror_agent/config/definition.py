"""One definition file: what may be in it, and whether the file itself may be trusted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from mirror_agent.config import registries, values
from mirror_agent.config.toml import LARGEST_FILE, Table, load, parse
from mirror_agent.config.words import Mistake, kind, plain, safe, shown, text
from mirror_agent.model import Candidate, Definition, NetworkSettings, Policy, Problem, Settings, Tls, served

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
SUFFIX = ".toml"
MOST_GLOBS = 200

# What editors, packages and people leave behind or put beside: no mistakes, no definitions.
_LEFTOVER = re.compile(
    r"\..*|.*~|#.*#|README.*|.*\.(?:rpm(?:new|save|orig)|dpkg-\w+|ucf-\w+|sw[a-z]|bak|orig|old|tmp)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Context:
    """What a definition is read with."""

    name: str
    settings: Settings


def _as_list(value: object) -> object:
    """One source is written without brackets.  Docker Hub, written so, also has the name that old recipes use."""
    if value == registries.DOCKER_HUB:
        return [registries.DOCKER_HUB, registries.DOCKER_REGISTRY]
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise Mistake(f"is {kind(value)}, must be text in quotes, or a list of it", form=True)
    return [value]


class UpstreamTable(Table):
    """[upstream]: how the cache talks to the registry that it mirrors."""

    credentials: Annotated[Path | None, text(values.credentials)] = Field(
        default=None, examples=['"/etc/mirror-agent/quay.credentials"']
    )
    insecure: bool = Field(default=False, examples=["true"])
    ca: Annotated[Path | None, text(values.own_file)] = Field(
        default=None, examples=['"/etc/mirror-agent/tls/company.crt"']
    )
    proxy: Annotated[str | None, text(registries.proxy)] = Field(
        default=None, examples=['"http://proxy.example.com:3128"']
    )
    bandwidth: Annotated[int | None, text(values.bandwidth)] = Field(default=None, examples=['"10MB/s"'])
    pull_limit: bool | None = Field(default=None, examples=["true"])


class CacheTable(Table):
    """[cache]: how much is kept, and how long a tag is believed."""

    budget: Annotated[int | None, text(values.size)] = Field(default=None, examples=['"100GiB"'])
    fresh: Annotated[int, text(values.fresh)] = Field(default=60, examples=['"60s"'])
    keep: Annotated[int | None, text(values.keep)] = Field(default=None, examples=['"90d"'])


class TlsTable(Table):
    """[tls]: a certificate of the admin's own for this mirror."""

    certificate: Annotated[Path, text(values.own_file)] = Field(examples=['"/etc/mirror-agent/tls/quay.crt"'])
    key: Annotated[Path, text(values.own_file)] = Field(examples=['"/etc/mirror-agent/tls/quay.key"'])
    ca: Annotated[Path | None, text(values.own_file)] = Field(
        default=None, examples=['"/etc/mirror-agent/tls/company.crt"']
    )


class DefinitionTable(Table):
    """A definition file.  The order counts: a key is checked against those before it."""

    upstream: UpstreamTable = UpstreamTable()
    cache: CacheTable = CacheTable()
    tls: TlsTable | None = None
    policy: Annotated[Policy, text(values.policy)] = Field(default=Policy.NEVER, examples=[f'"{Policy.NEVER}"'])
    allow: list[Annotated[str, text(values.glob)]] = Field(default=[], examples=['["library/*"]'])
    probe: Annotated[str | None, text(registries.probe)] = Field(default=None, examples=['"podman/hello:latest"'])
    host: Annotated[str | None, text(registries.host_name)] = Field(default=None, examples=['"quay.mirror.lan"'])
    address: Annotated[IPv4Address | None, text(values.address)] = Field(default=None, examples=['"10.0.0.4"'])
    source: Annotated[list[Annotated[str, text(registries.source)]], BeforeValidator(_as_list)] = Field(
        examples=['"quay.io"']
    )
    remote: str | None = Field(default=None, examples=['"https://quay.io"'], validate_default=True)

    @field_validator("host")
    @classmethod
    def _qualify(cls, host: str, info: ValidationInfo) -> str:
        """A name without a dot is one of the settings' domain."""
        return host if "." in host else registries.host_name(f"{host}.{_context(info).settings.domain}")

    @field_validator("allow")
    @classmethod
    def _some(cls, allow: list[str]) -> list[str]:
        if not allow:
            raise Mistake("is an empty list", "leave it out to allow everything")
        if len(allow) > MOST_GLOBS:
            raise Mistake(f"has {len(allow)} entries", f"at most {MOST_GLOBS}")
        return allow

    @field_validator("probe")
    @classmethod
    def _allowed(cls, probe: str, info: ValidationInfo) -> str:
        if not served(probe, info.data.get("allow", ())):
            raise Mistake(f"{shown(probe)} is not among what allow names", "the mirror would refuse its own proof")
        return probe

    @field_validator("address")
    @classmethod
    def _in_range(cls, address: IPv4Address, info: ValidationInfo) -> IPv4Address:
        network = _context(info).settings.network
        if address == network.gateway:
            raise Mistake(f"{address} is the gateway's", _free(network))
        if address in (network.subnet.network_address, network.subnet.broadcast_address):
            raise Mistake(f"{address} is no host's address in {network.subnet}", _free(network))
        if not network.first <= address <= network.last:
            reason = f"{address} is outside the range {network.first}-{network.last} of the settings"
            raise Mistake(reason, "another one, or widen network.range")
        return address

    @field_validator("source")
    @classmethod
    def _sources(cls, sources: list[str], info: ValidationInfo) -> list[str]:
        if not sources:
            raise Mistake("is an empty list", form=True)
        if len(set(sources)) < len(sources):
            raise Mistake(f"{shown(Counter(sources).most_common(1)[0][0])} is written twice", "leave one of them out")
        for source in sources:
            if "host" in info.data and _host_of(source) == _own_host(info):
                raise Mistake(f"{shown(source)} is the mirror itself", "the source is what clients write today")
        return sources

    @field_validator("remote", mode="plain")
    @classmethod
    def _remote(cls, value: object, info: ValidationInfo) -> str | None:
        if value is not None:  # TOML has no null: it is the default
            return _checked(registries.remote(plain(value)), info)
        if "source" not in info.data:
            return None
        try:
            return _checked(_default_remote(info.data["source"]), info)
        except Mistake as mistake:
            raise Mistake(mistake.reason, mistake.hint, mistake.key or "source") from None


def _default_remote(sources: list[str]) -> str:
    hosts = list(dict.fromkeys(registries.registry_of(source) for source in sources))
    if len(hosts) > 1:
        raise Mistake(
            f"{shown(hosts[0])} and {shown(hosts[1])} are two registries, one mirror serves one",
            "one file for each; or, where both are names of one registry, say which with remote",
        )
    return registries.remote(f"https://{hosts[0]}")


def _checked(remote: str, info: ValidationInfo) -> str:
    """A remote against what else was written, and against the mirrors' own names and addresses."""
    scheme, _, rest = remote.partition("://")
    upstream: UpstreamTable | None = info.data.get("upstream")
    if upstream and scheme == "http" and not upstream.insecure:
        raise Mistake(f"{shown(remote)} is not https", "if that is meant: [upstream] insecure = true")
    if upstream and scheme == "https" and upstream.insecure:
        raise Mistake(f"would do nothing: {shown(remote)} is https", "leave it out", "upstream.insecure")
    if upstream and scheme == "http" and upstream.ca and not (upstream.proxy or "").startswith("https"):
        raise Mistake(f"would do nothing: {shown(remote)} is not https", "leave it out", "upstream.ca")
    host = rest.partition(":")[0]
    if "host" in info.data and host == _own_host(info):
        raise Mistake(f"{shown(remote)} is the mirror itself", "the remote is the registry to be mirrored")
    if upstream and upstream.pull_limit:
        _can_be_asked(remote, info)
    _not_ours(remote, info)
    if upstream and upstream.proxy:
        _not_ours(upstream.proxy, info, "upstream.proxy")
    return remote


def _can_be_asked(remote: str, info: ValidationInfo) -> None:
    """Raises Mistake where a remote cannot be asked what is left of its limit."""
    key = "upstream.pull_limit"
    if remote.startswith("http:"):
        raise Mistake(f"{shown(remote)} is not https, and is not asked", "leave it out", key)
    known = remote in registries.PULL_LIMITS or remote in registries.PROBES
    if not known and "probe" in info.data and not info.data["probe"]:
        raise Mistake("there is no image to ask about", 'name one: probe = "repository:tag"', key)


def _not_ours(url: str, info: ValidationInfo, key: str | None = None) -> None:
    """Raises Mistake where a URL leads to a mirror's address."""
    network = _context(info).settings.network
    host = url.partition("://")[2].partition(":")[0]
    if registries.is_address(host) and network.first <= IPv4Address(host) <= network.last:
        reason = f"{shown(url)} has an address of the mirrors: {network.first}-{network.last}"
        raise Mistake(reason, "name the upstream registry itself", key)


def _free(network: NetworkSettings) -> str:
    return f"one of {network.first}-{network.last} that nobody has; without this line the agent chooses one"


def _context(info: ValidationInfo) -> Context:
    assert isinstance(info.context, Context)  # noqa: S101 - pydantic hands through what parse_definition gave it
    return info.context


def _own_host(info: ValidationInfo) -> str:
    context = _context(info)
    host: str = info.data["host"] or f"{context.name}.{context.settings.domain}"
    return host


def _host_of(source: str) -> str:
    return source.partition("/")[0].partition(":")[0]


# --- the file --------------------------------------------------------------------------------------------------


def is_leftover(path: str) -> bool:
    """Is this what an editor or a package manager leaves in a folder?  Not worth a word."""
    return _LEFTOVER.fullmatch(PurePosixPath(path).name) is not None


def name_of(path: str) -> str | None:
    """The mirror's name that a path says, or None where it is no plain NAME.toml."""
    stem = PurePosixPath(path).name.removesuffix(SUFFIX)
    return stem if NAME.fullmatch(stem) and path.endswith(SUFFIX) else None


def parse_definition(
    candidate: Candidate, settings: Settings, owner: int | None = 0
) -> tuple[Definition | None, tuple[Problem, ...]]:
    """A file as a definition, or None and every mistake in it.

    `owner` is the uid that, beside root, may own the file; None: neither owner nor mode is looked at (`check` in a
    checkout of git, which keeps neither).
    """
    file = safe(candidate.path)
    name = name_of(candidate.path)
    if name is None:
        return None, (_bad_name(file, candidate.path),)
    facts = tuple(Problem(file, "", reason, hint, name) for reason, hint in _facts(candidate, owner))
    if facts and not candidate.content:
        return None, facts
    table, problems = parse(DefinitionTable, file, candidate.content, Context(name, settings), name)
    if facts or table is None:
        return None, tuple(sorted({*facts, *problems}))
    assert table.remote is not None  # noqa: S101 - only without a valid source
    return _definition(name, file, table, table.remote), ()


def upstream_of(content: bytes) -> str:
    """The upstream that a text names, also one with mistakes elsewhere; "" where that cannot be read."""
    try:
        sources = _as_list(load(content).get("source"))
        return registries.source(plain(sources[0])) if isinstance(sources, list) and sources else ""
    except Mistake:
        return ""


def _bad_name(file: str, path: str) -> Problem:
    if not path.endswith(SUFFIX):
        return Problem(file, "", f"is not read: its name does not end in {SUFFIX}", "rename it, or move it elsewhere")
    return Problem(
        file,
        "",
        "its name is no mirror's name",
        f"NAME{SUFFIX}, with a NAME of up to 32 lower-case letters, digits and hyphens",
    )


def _facts(candidate: Candidate, owner: int | None) -> Iterator[tuple[str, str]]:
    """What is wrong with the file itself, as (reason, hint)."""
    if candidate.kind == "link":
        yield "is a link, and links are not followed", "only a link to /dev/null has a meaning: no mirror"
    elif candidate.kind != "regular":
        yield "is not a regular file", ""
    if candidate.kind != "regular":
        return
    if candidate.size > LARGEST_FILE:
        yield f"is larger than {LARGEST_FILE // 2**10} KiB", "a definition has a dozen lines"
    if owner is None:
        return
    if candidate.owner not in (0, owner):
        yield f"is owned by uid {candidate.owner}, not by root", f"chown root: {safe(candidate.path)}"
    if candidate.mode & 0o022:
        who = {0o020: "its group", 0o002: "others"}.get(candidate.mode & 0o022, "group and others")
        yield f"can be written by {who}", f"chmod go-w {safe(candidate.path)}"


def _definition(name: str, file: str, table: DefinitionTable, remote: str) -> Definition:
    return Definition(
        name=name,
        file=file,
        sources=tuple(table.source),
        remote=remote,
        host=table.host,
        address=table.address,
        policy=table.policy,
        insecure=table.upstream.insecure,
        credentials=table.upstream.credentials,
        ca=table.upstream.ca,
        proxy=table.upstream.proxy,
        bandwidth=table.upstream.bandwidth,
        budget=table.cache.budget,
        fresh=table.cache.fresh,
        probe=table.probe or registries.PROBES.get(remote),
        tls=Tls(**dict(table.tls)) if table.tls else None,
        keep=table.cache.keep,
        allow=tuple(table.allow),
        pull_limit=_asked_about(table, remote),
    )


def _asked_about(table: DefinitionTable, remote: str) -> str | None:
    """The image by which the upstream is asked what is left of its limit on pulls."""
    known, wanted = registries.PULL_LIMITS.get(remote), table.upstream.pull_limit
    return known or table.probe or registries.PROBES.get(remote) if wanted or (known and wanted is None) else None
