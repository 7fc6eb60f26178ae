"""Floor 1: a mirror → the quadlet units and configuration files that run it.

The texts are those of quadlets/ (Jinja2, nothing undefined passes).  Values come from files that an admin dropped, so
each one is matched against a whitelist of characters, and every unit is parsed back and compared with what was meant:
a newline, a quote, a trailing backslash or a `%` in a value would otherwise add keys, words or expansions
(design/host.md, "Injection", measured).

Hashes are taken over what a unit does, not over its comments, description or ordering: an upgrade that changes only
those restarts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath

import jinja2
import yaml

from mirror_agent.model import File, Folder, Mirror, Network, Paths, Pod, Role, Settings, Trouble

LABEL = "io.mirror-agent"
MINIMUM_PODMAN = (5, 0)  # .pod units
EDGE_ID, REGISTRY_ID = 101, 65532  # uid and gid in the official images of nginx and distribution

LEAST_BURST = 256 * 2**10  # bytes that may come at once under a bandwidth: packets on loopback have up to 64 KiB

_DEFAULT_DEPENDENCIES = (5, 3)  # [Quadlet] DefaultDependencies=
_PENDING = "0" * 16  # stands for a hash while that hash is taken

_LABEL_RE = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_PATH_RE = r"(/[A-Za-z0-9_+@-][A-Za-z0-9._+@-]*)+"  # no component starts with a dot: so no '..' either
_ALLOWED = {
    "name": _LABEL_RE,
    "source": r"[a-z0-9][a-z0-9._:/-]*",
    "remote": r"https?://[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?",
    "proxy": r"https?://[a-z0-9][a-z0-9.-]*:[0-9]{1,5}",
    "glob": r"[a-z0-9*][a-z0-9._*/-]*",
    "mac": r"[0-9a-f]{2}(:[0-9a-f]{2}){5}",
    "path": _PATH_RE,
    "image": r"[a-z0-9][A-Za-z0-9._/:-]*(@sha256:[0-9a-f]{64})?",
    "parent": r"[A-Za-z0-9_][A-Za-z0-9._-]{0,14}",
    "network": r"mirror-agent-[0-9a-f]{12}",
}

Value = str | bool | tuple[str, ...]
Entry = tuple[str, str, str]  # section, key, value


@dataclass(frozen=True, slots=True)
class Templates:
    """The texts of quadlets/, by what they become."""

    network: str
    pod: str
    edge: str
    registry: str
    edge_config: str
    registry_config: str
    credentials: str


def load_templates(folder: Path) -> Templates:
    """Read quadlets/.  Raises OSError."""

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    return Templates(
        network=text("mirror.network"),
        pod=text("mirror.pod"),
        edge=text("edge.container"),
        registry=text("registry.container"),
        edge_config=text("nginx.conf"),
        registry_config=text("config.yml"),
        credentials=text("credentials"),
    )


def pod_name(mirror: str) -> str:
    """Name a mirror's pod, and of its quadlet file without the suffix."""
    return f"mirror-{mirror}"


def pod_service(mirror: str) -> str:
    """Name the systemd unit of a mirror's pod."""
    return f"{pod_name(mirror)}-pod.service"


def container_name(mirror: str, role: Role) -> str:
    """Name one of a mirror's containers, and of its quadlet file without the suffix."""
    return f"{pod_name(mirror)}-{role}"


def container_service(mirror: str, role: Role) -> str:
    """Name the systemd unit of one of a mirror's containers."""
    return f"{container_name(mirror, role)}.service"


def upstream_ca_path(paths: Paths, mirror: str) -> PurePosixPath:
    """Where a mirror's registry finds the CAs of its upstream: among its configuration."""
    return paths.mirror(mirror) / "registry" / "upstream-ca.pem"


def render_network(settings: Settings, templates: Templates, paths: Paths, podman_version: tuple[int, int]) -> Network:
    """Render the LAN of all mirrors.  Raises Trouble for a value that must not be in a unit."""
    lan = settings.network
    values: dict[str, Value] = {
        "parent": _checked("parent", lan.parent, "network.parent"),
        "subnet": str(lan.subnet),
        "gateway": str(lan.gateway),
        "default_dependencies": podman_version >= _DEFAULT_DEPENDENCIES,
    }
    name = f"mirror-agent-{_effect(_unit(templates.network, {**values, 'name': 'mirror-agent-' + '0' * 12}))[:12]}"
    text = _unit(templates.network, {**values, "name": name})
    return Network(name=name, unit=_file(paths.units / f"{name}.network", text))


def render_pod(
    mirror: Mirror,
    settings: Settings,
    network: Network,
    paths: Paths,
    templates: Templates,
    podman_version: tuple[int, int],
    upstream_ca: str = "",
) -> Pod:
    """Render everything on disk that runs one mirror.  Raises Trouble for a value that must not be in a unit.

    `upstream_ca` is the text of `mirror.ca`: PEM of certificates, nothing else.
    """
    if podman_version < MINIMUM_PODMAN:
        raise Trouble("podman", f"version {'.'.join(map(str, podman_version))} is too old", "5.0 or later is needed")
    name = _checked("name", mirror.name, "name")
    state = paths.mirror(name)
    cache = PurePosixPath(settings.cache.path) / name
    edge_config, edge_config_hash = _edge_config(templates, mirror)
    config = _registry_config(templates, _checked("remote", mirror.remote, "remote"))

    common: dict[str, Value] = {
        "label": LABEL,
        "mirror": name,
        "upstream": _checked("source", mirror.upstream, "source"),
        "pod": pod_name(name),
        "state": _checked("path", str(state), "state"),
        "cache": _checked("path", str(cache), "cache.path"),
        "default_dependencies": podman_version >= _DEFAULT_DEPENDENCIES,
    }
    of_pod: dict[str, Value] = {
        **common,
        "network": _checked("network", network.name, "network"),
        "parent": _checked("parent", settings.network.parent, "network.parent"),
        "address": str(mirror.address),
        "mac": _checked("mac", mirror.mac, "mac"),
        "dns": tuple(map(str, settings.network.dns)),
        "bandwidth": str(mirror.bandwidth) if mirror.bandwidth else False,
        "burst": str(max((mirror.bandwidth or 0) // 4, LEAST_BURST)),
    }
    pod_unit, pod_hash = _hashed_unit(lambda h: _unit(templates.pod, {**of_pod, "pod_hash": h}))

    of_registry: dict[str, Value] = {
        "ca": mirror.ca is not None,
        "proxy": _checked("proxy", mirror.proxy, "upstream.proxy") if mirror.proxy else False,
    }

    def container(role: Role, template: str, image: str, *restart_on: str) -> tuple[str, str]:
        values = {
            **common,
            **(of_registry if role == Role.REGISTRY else {}),
            "image": _checked("image", image, f"images.{role}"),
            "container": container_name(name, role),
            "pod_hash": pod_hash,
        }
        return _hashed_unit(lambda h: _unit(template, {**values, "unit_hash": h}), *restart_on)

    edge_unit, edge_hash = container(Role.EDGE, templates.edge, settings.images.edge)
    at_start = (config, templates.credentials, *([upstream_ca] if upstream_ca else []))
    registry_unit, registry_hash = container(Role.REGISTRY, templates.registry, settings.images.registry, *at_start)
    return Pod(
        mirror=name,
        folders=(
            Folder(state / "edge"),
            Folder(state / "registry"),
            Folder(state / "tls", 0o700, EDGE_ID),
            Folder(state / "auth", 0o700, REGISTRY_ID),
            Folder(cache, 0o700),
            Folder(cache / "edge", 0o700, EDGE_ID),
            Folder(cache / "registry", 0o755, REGISTRY_ID),
        ),
        units=(
            _file(paths.units / f"{pod_name(name)}.pod", pod_unit),
            _file(paths.units / f"{container_name(name, Role.EDGE)}.container", edge_unit),
            _file(paths.units / f"{container_name(name, Role.REGISTRY)}.container", registry_unit),
        ),
        configs=(
            _file(state / "edge" / "nginx.conf", edge_config),
            _file(state / "registry" / "config.yml", config),
            _file(state / "registry" / "credentials", templates.credentials, 0o755),
            *([_file(upstream_ca_path(paths, name), upstream_ca)] if upstream_ca else []),
        ),
        pod_hash=pod_hash,
        container_hashes=((Role.EDGE, edge_hash), (Role.REGISTRY, registry_hash)),
        edge_config=edge_config_hash,
        images=(settings.images.edge, settings.images.registry),
    )


def parse_unit(text: str) -> tuple[Entry, ...]:
    """Read a unit's entries in their order, as systemd.syntax(7) reads them.  Raises ValueError for what is none.

    Line continuations are refused: the templates have none, so one is an injected backslash.
    """
    entries: list[Entry] = []
    section = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            continue
        key, equals, value = line.partition("=")
        if not section or not equals or not key.isalnum() or value.endswith("\\") or not value.isprintable():
            raise ValueError(f"line {number} is no entry of a unit: {line!r}")
        entries.append((section, key, value))
    return tuple(entries)


def verify(text: str, template: str, values: Mapping[str, Value]) -> None:
    """Parse a unit back and compare it with what was meant: the template's entries, each value in its place.

    Raises Trouble when they differ: then a value has changed more than the words that it stands for.
    """
    marks: dict[str, str] = {}

    def mark(value: Value) -> Value:
        if isinstance(value, bool):
            return value
        if isinstance(value, tuple):
            return tuple(str(mark(item)) for item in value)
        token = f"@{len(marks)}@"  # neither a template nor an allowed value has this
        marks[token] = value
        return token

    def meaning(found: re.Match[str]) -> str:
        return marks[found.group()]

    skeleton = parse_unit(_render(template, {name: mark(value) for name, value in values.items()}))
    meant = tuple((section, key, re.sub(r"@\d+@", meaning, value)) for section, key, value in skeleton)
    try:
        written = parse_unit(text)
    except ValueError as error:
        raise Trouble("unit", str(error), "a value from a definition or agent.toml is not clean") from error
    if written != meant:
        wrong = sorted({f"[{section}] {key}" for section, key, _ in set(written) ^ set(meant)})
        raise Trouble("unit", f"{', '.join(wrong)} is not what was meant", "a value has broken out of its place")


def _checked(kind: str, value: str, key: str) -> str:
    if not re.fullmatch(_ALLOWED[kind], value, re.ASCII):
        raise Trouble(key, f"{value!r} must not be written to a unit", f"allowed is {_ALLOWED[kind]}")
    return value


@cache  # they are the same for all mirrors, and compiling one takes a hundred times what rendering it does
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701  # nothing here is HTML; values are whitelisted instead
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template)


def _render(template: str, values: Mapping[str, Value]) -> str:
    return _compiled(template).render(values)


def _unit(template: str, values: Mapping[str, Value]) -> str:
    text = _render(template, values)
    verify(text, template, values)
    return text


def _edge_config(templates: Templates, mirror: Mirror) -> tuple[str, str]:
    """Render nginx.conf and its hash.

    nginx counts whole seconds: what is valid for n is asked for again after n to n + 1; what is valid for 0 it does not
    store.
    """
    values: dict[str, Value] = {
        "fresh": str(max(mirror.fresh - 1, 1)),
        "allow": tuple(_pattern(glob) for glob in mirror.allow),
    }
    return _hashed(lambda digest: _render(templates.edge_config, {**values, "edge_config": digest}))


def _pattern(glob: str) -> str:
    """A glob of repositories as a regular expression: `*` is any number of characters."""
    return _checked("glob", glob, "allow").replace(".", r"\.").replace("*", ".*")


def _registry_config(templates: Templates, remote: str) -> str:
    text = _render(templates.registry_config, {"remote": remote})
    if yaml.safe_load(text)["proxy"]["remoteurl"] != remote:
        raise Trouble("remote", f"{remote!r} does not survive the registry's configuration")
    return text


def _hash(*parts: str) -> str:
    """First 16 hex digits of SHA-256 over the parts, each ended by a NUL."""
    return sha256("".join(part + "\0" for part in parts).encode()).hexdigest()[:16]


def _effect(text: str) -> str:
    """Hash of what a unit does when it runs: not its comments, not [Unit], [Install] or [Quadlet]."""
    return _hash(*("\0".join(entry) for entry in parse_unit(text) if entry[0] not in ("Unit", "Install", "Quadlet")))


def _hashed(render: Callable[[str], str]) -> tuple[str, str]:
    """Render a text that holds the hash of itself, and that hash."""
    digest = _hash(render(_PENDING))
    return render(digest), digest


def _hashed_unit(render: Callable[[str], str], *restart_on: str) -> tuple[str, str]:
    """Render a unit that holds the hash of what it does and of the files that it reads at start, and that hash."""
    digest = _hash(_effect(render(_PENDING)), *restart_on)
    return render(digest), digest


def _file(path: PurePosixPath, text: str, mode: int = 0o644) -> File:
    return File(path, text.encode(), mode)
