"""agent.toml: what may be in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mirror_agent.config import registries, values
from mirror_agent.config.toml import Table, parse
from mirror_agent.config.words import Mistake, safe, shown, text
from mirror_agent.model import (
    AcmeSettings,
    CacheSettings,
    CertificateSettings,
    ClusterSettings,
    Drain,
    FolderSettings,
    ImageSettings,
    LeafKey,
    NetworkSettings,
    Paths,
    Problem,
    PublishSettings,
    Settings,
    Window,
)

_CACHE = CacheSettings()
_IMAGES = ImageSettings()
_CERTIFICATES = CertificateSettings()


class NetworkTable(Table):
    """[network]: the LAN that the mirrors live on.  The order counts: a key is checked against those before it."""

    parent: Annotated[str, text(values.interface)] = Field(examples=['"eth1"'])
    subnet: Annotated[IPv4Network, text(values.subnet)] = Field(examples=['"10.0.0.0/24"'])
    gateway: Annotated[IPv4Address, text(values.address)] = Field(examples=['"10.0.0.1"'])
    range: Annotated[tuple[IPv4Address, IPv4Address], text(values.address_range)] = Field(
        examples=['"10.0.0.4-10.0.0.60"']
    )
    dns: list[Annotated[IPv4Address, text(values.address)]] = Field(default=[], examples=['["10.0.0.1"]'])

    @field_validator("gateway")
    @classmethod
    def _gateway(cls, gateway: IPv4Address, info: ValidationInfo) -> IPv4Address:
        _check_host(gateway, info.data.get("subnet"))
        return gateway

    @field_validator("range")
    @classmethod
    def _range(cls, ends: tuple[IPv4Address, IPv4Address], info: ValidationInfo) -> tuple[IPv4Address, IPv4Address]:
        for end in ends:
            _check_host(end, info.data.get("subnet"))
        gateway: IPv4Address | None = info.data.get("gateway")
        if gateway and ends[0] <= gateway <= ends[1]:
            raise Mistake(f"the gateway {gateway} lies in it", "addresses that nobody else on the LAN gets")
        return ends

    @field_validator("dns")
    @classmethod
    def _dns(cls, servers: list[IPv4Address], info: ValidationInfo) -> list[IPv4Address]:
        first, last = info.data.get("range", (None, None))
        for server in servers:
            if server.is_loopback or server.is_multicast or server.is_unspecified:
                raise Mistake(f"{server} is no name server that a pod can reach", "one of the LAN or of the internet")
            if first and first <= server <= last:
                raise Mistake(f"{server} lies in the range of the mirrors {first}-{last}", "another, or another range")
        return servers


class CacheTable(Table):
    """[cache]: where cached images live and how much of the disk they may take."""

    path: Annotated[Path, text(values.folder)] = Field(default=_CACHE.path, examples=['"/srv/mirror-agent"'])
    budget: Annotated[int, text(values.size)] = Field(default=_CACHE.budget, examples=['"100GiB"'])
    free: Annotated[int, text(values.size)] = Field(default=_CACHE.free, examples=['"10GiB"'])

    @field_validator("path")
    @classmethod
    def _path(cls, path: Path) -> Path:
        return _outside_state(path, but=_CACHE.path)


class ImagesTable(Table):
    """[images]: what runs in a pod."""

    edge: Annotated[str, text(registries.image)] = Field(default=_IMAGES.edge, examples=[f'"{_IMAGES.edge}"'])
    registry: Annotated[str, text(registries.image)] = Field(
        default=_IMAGES.registry, examples=[f'"{_IMAGES.registry}"']
    )


class AcmeTable(Table):
    """[certificates.acme]: certificates from an ACME server.  The order counts."""

    directory: Annotated[str, text(values.url)] = Field(examples=['"https://acme.example.com/directory"'])
    email: Annotated[str, text(values.email)] = Field(default="", examples=['"pki@example.com"'])
    trust: Annotated[Path | None, text(values.own_file)] = Field(
        default=None, examples=['"/etc/mirror-agent/tls/acme-root.crt"']
    )
    server: Annotated[IPv4Address | None, text(values.address)] = Field(default=None, examples=['"10.0.0.53"'])
    key: Annotated[Path | None, text(values.own_file)] = Field(
        default=None, examples=['"/etc/mirror-agent/tls/update.key"']
    )
    hook: Annotated[Path | None, text(values.own_file)] = Field(
        default=None, examples=['"/etc/mirror-agent/tls/acme-dns"'], validate_default=True
    )

    @field_validator("hook", mode="wrap")
    @classmethod
    def _one_way(cls, value: object, parse_hook: Callable[[object], Path], info: ValidationInfo) -> Path | None:
        hook = None if value is None else parse_hook(value)  # TOML has no null: it is the default
        if "server" not in info.data or "key" not in info.data:
            return hook  # told already
        server, key = info.data["server"], info.data["key"]
        if server is None and hook is None:
            raise Mistake("is missing, and so is server", "the DNS challenge is answered by server and key, or by hook")
        if (server is None) != (key is None):
            raise Mistake(
                "is missing",
                "an update of the name server needs server and key",
                "certificates.acme." + ("key" if server else "server"),
            )
        return hook


class CertificatesTable(Table):
    """[certificates]: life times of the agent's own CA and of what it issues."""

    ca_days: Annotated[int, values.days(30, 7_300)] = Field(default=_CERTIFICATES.ca_days, examples=["3650"])
    leaf_days: Annotated[int, values.days(1, 825)] = Field(
        default=_CERTIFICATES.leaf_days, examples=["90"], validate_default=True
    )
    leaf_key: Annotated[LeafKey, text(values.leaf_key)] = Field(default=_CERTIFICATES.leaf_key, examples=['"p256"'])
    roll_days: Annotated[int, values.days(1, 365)] = Field(
        default=_CERTIFICATES.roll_days, examples=["30"], validate_default=True
    )

    ca: Annotated[Path | None, text(values.own_file)] = Field(default=None, examples=['"/etc/mirror-agent/ca"'])
    acme: AcmeTable | None = None

    @field_validator("leaf_days")
    @classmethod
    def _shorter(cls, days: int, info: ValidationInfo) -> int:
        # A leaf never outlives its CA.
        if days * 2 > info.data.get("ca_days", days * 2):
            raise Mistake(f"{days} is more than half of ca_days", "a CA must live at least twice as long")
        return days

    @field_validator("roll_days")
    @classmethod
    def _in_time(cls, days: int, info: ValidationInfo) -> int:
        # It is replaced 2 roll_days before its last full leaf; the new one must be in use for a while by then.
        both = 2 * (days + info.data.get("leaf_days", 0))
        if both > info.data.get("ca_days", both):
            reason = f"{days} is too much: with leaf_days, more than half of ca_days"
            raise Mistake(reason, "a CA must live long enough to be replaced")
        return days


class FolderTable(Table):
    """[publish.folder]: a folder that readers fetch the publication from."""

    path: Annotated[Path, text(values.folder)] = Field(examples=['"/srv/www/mirrors"'])
    mode: Annotated[int, text(values.mode)] = Field(default=0o644, examples=['"0640"'])
    group: Annotated[str, text(values.group)] = Field(default="", examples=['"www-data"'])

    @field_validator("path")
    @classmethod
    def _path(cls, path: Path) -> Path:
        return _outside_state(path)


class ClusterTable(Table):
    """[publish.cluster]: an OpenShift or OKD cluster that is told of the mirrors."""

    kubeconfig: Annotated[Path, text(values.kubeconfig)] = Field(examples=['"/etc/mirror-agent/kubeconfig"'])
    name: Annotated[str | None, text(values.host_label)] = Field(default=None, examples=['"rack-7"'])
    adopt: list[Annotated[str, text(values.object_name)]] = Field(default=[], examples=['["image-digest-mirror"]'])
    drain: Annotated[Drain, text(values.drain)] = Field(default=Drain.NEVER, examples=['"always"'])
    window: Annotated[Window | None, text(values.window)] = Field(
        default=None, examples=['"Sun 02:00-05:00"'], validate_default=False
    )

    @model_validator(mode="after")
    def _when(self) -> Self:
        if self.drain is Drain.WINDOW and self.window is None:
            raise Mistake("is missing", 'for example: window = "Sun 02:00-05:00"', "publish.cluster.window")
        if self.drain is not Drain.WINDOW and self.window is not None:
            raise Mistake(f'does nothing with drain = "{self.drain}"', 'drain = "window"', "publish.cluster.window")
        return self


class PublishTable(Table):
    """[publish]: where the publication goes, and what leaves it."""

    folder: FolderTable | None = None
    cluster: ClusterTable | None = None
    withdraw_after: Annotated[int | None, text(values.withdraw_after)] = Field(default=None, examples=['"12h"'])


class SettingsTable(Table):
    """agent.toml.  The order counts: a key is checked against those before it."""

    domain: Annotated[str, text(registries.domain)] = Field(examples=['"mirror.lan"'])
    network: NetworkTable
    cache: CacheTable = CacheTable()
    images: ImagesTable = ImagesTable()
    certificates: CertificatesTable = CertificatesTable()
    publish: PublishTable = PublishTable()

    @field_validator("publish")
    @classmethod
    def _apart(cls, publish: PublishTable, info: ValidationInfo) -> PublishTable:
        # What is published is world-readable, what is cached is not: one cannot lie in the other.
        cache: CacheTable | None = info.data.get("cache")
        folder = publish.folder
        if cache and folder and (folder.path.is_relative_to(cache.path) or cache.path.is_relative_to(folder.path)):
            raise Mistake(f"{folder.path} and the cache {cache.path} lie in one another", "", "publish.folder.path")
        return publish


def parse_settings(file: str, content: bytes) -> tuple[Settings | None, tuple[Problem, ...]]:
    """agent.toml as settings with every default filled in, or None and every mistake in it."""
    table, problems = parse(SettingsTable, safe(file), content, None)
    if table is None:
        return None, problems
    lan = table.network
    return Settings(
        domain=table.domain,
        network=NetworkSettings(lan.parent, lan.subnet, lan.gateway, *lan.range, dns=tuple(lan.dns)),
        cache=CacheSettings(table.cache.path, table.cache.budget, table.cache.free),
        images=ImageSettings(table.images.edge, table.images.registry),
        certificates=_certificates(table.certificates),
        publish=PublishSettings(
            FolderSettings(**dict(table.publish.folder)) if table.publish.folder else None,
            _cluster(table.publish.cluster, table.domain),
            table.publish.withdraw_after,
        ),
    ), ()


def _cluster(table: ClusterTable | None, domain: str) -> ClusterSettings | None:
    if table is None:
        return None
    name = table.name or re.sub(r"[^a-z0-9]+", "-", domain)[:40].strip("-")
    return ClusterSettings(table.kubeconfig, name, tuple(table.adopt), table.drain, table.window)


def _certificates(table: CertificatesTable) -> CertificateSettings:
    acme = AcmeSettings(**dict(table.acme)) if table.acme else None
    return CertificateSettings(**{**dict(table), "acme": acme})


def _check_host(address: IPv4Address, subnet: IPv4Network | None) -> None:
    """Refuse what is no host's address in the subnet.  Raises Mistake."""
    if subnet is None:
        return
    if address not in subnet:
        raise Mistake(f"{address} is outside the subnet {subnet}", "one of this subnet, or mend network.subnet")
    if address in (subnet.network_address, subnet.broadcast_address):
        raise Mistake(f"{address} is no host's address in {subnet}", "any but its first and its last")


def _outside_state(path: Path, but: Path | None = None) -> Path:
    """Refuse a folder in or around the agent's state.  Raises Mistake."""
    state = Path(Paths().state)
    inside = path.is_relative_to(state) and not (but and path.is_relative_to(but))
    if inside or state.is_relative_to(path):
        raise Mistake(f"{shown(str(path))} holds the agent's own state", 'a folder of its own, as "/srv/mirror-agent"')
    return path
