"""Floor 4: what the admin wrote, read from the disk → what should exist.

Needs files only: so `check` and `render` work in a git hook, without root, systemd and podman.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath

from mirror_agent import addresses, config, pods
from mirror_agent.certificates import reading
from mirror_agent.host import bring, files, state
from mirror_agent.model import Candidate, Denied, File, Mirror, Paths, Problem, Settings, Trouble
from mirror_agent.plan import Desired, compose

SETTINGS_LIMIT = 64 * 1024  # bytes of agent.toml
CREDENTIALS_LIMIT = 16 * 1024  # bytes of a credentials file: a token may be long
BUNDLE_LIMIT = 2**20  # bytes of an upstream's CAs: all public ones are a quarter of that


@dataclass(frozen=True, slots=True)
class Wish:
    """What the admin wrote, read.  Without valid settings there is nothing desired: all stays as it is."""

    desired: Desired | None
    problems: tuple[Problem, ...]
    upstreams: Mapping[str, str] = field(default_factory=dict)  # by mirror, also of those whose file has a mistake


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the agent kept from its earlier runs."""

    leases: Mapping[str, IPv4Address]
    accepted: Mapping[str, bytes]


def remembered(paths: Paths) -> Remembered:
    """Leases and definitions in force.  Raises Trouble where a file is damaged: never an empty memory instead."""
    return Remembered(state.load_leases(paths.leases), state.load_accepted(paths.accepted))


def read(
    paths: Paths, memory: Remembered, podman: tuple[int, int], owner: int | None = 0, secrets: bool = True
) -> Wish:
    """Read settings and definitions, and say what should exist.

    `owner` is the uid that files must belong to, None for any; without `secrets` credentials are not looked at.
    Raises Trouble where templates or the definitions' folders cannot be read.
    """
    settings, problems = read_settings(paths)
    if settings is None:
        return Wish(None, problems)
    reading = config.select(_candidates(paths), memory.accepted, settings, owner)
    leases, more = addresses.assign(reading.definitions, memory.leases, settings.network, reading.frozen)
    mirrors = [
        addresses.resolve(definition, leases[definition.name], settings)
        for definition in reading.definitions
        if definition.name in leases
    ]
    credentials, missing = _credentials(mirrors, paths) if secrets else ({}, ())
    upstream_cas, unread = _upstream_cas(mirrors, paths) if secrets else ({}, ())
    brought = bring.read(mirrors, settings, paths) if secrets else bring.Brought()
    desired = compose(
        settings,
        mirrors,
        paths=paths,
        templates=_templates(paths),
        podman=podman,
        leases=leases,
        accepted=reading.accepted,
        secrets=credentials,
        leaves=brought.leaves,
        authority=brought.authority,
        trust=brought.trust,
        upstream_cas=upstream_cas,
        frozen=reading.frozen | {problem.mirror for problem in more},
    )
    found = (*problems, *reading.problems, *more, *missing, *unread, *brought.problems, *desired.problems)
    return Wish(desired, found, reading.upstreams)


def read_settings(paths: Paths) -> tuple[Settings | None, tuple[Problem, ...]]:
    """agent.toml alone; None where there is none, or a mistake in it.  Raises Trouble where it cannot be read."""
    content = files.read(paths.settings, SETTINGS_LIMIT)
    if content is None:
        hint = "`mirror-agent init` writes them"
        return None, (Problem(str(paths.settings), "", "there are no settings", hint),)
    return config.parse_settings(str(paths.settings), content)


def _templates(paths: Paths) -> pods.Templates:
    try:
        return pods.load_templates(Path(paths.templates))
    except OSError as error:
        reason = f"a template cannot be read: {error.strerror}"
        raise Trouble(str(error.filename), reason, "install mirror-agent again") from error


def _candidates(paths: Paths) -> tuple[Candidate, ...]:
    """Without any folder of definitions something is wrong with the host, and no mirror is removed by it."""
    if not any(files.folder(path, follow=True) for path in paths.definitions):
        raise Trouble(str(paths.definitions[0]), "the folder of definitions is gone", "all mirrors stay; make it again")
    return files.scan(paths.definitions)


def _credentials(mirrors: Iterable[Mirror], paths: Paths) -> tuple[Mapping[str, File], tuple[Problem, ...]]:
    """Each mirror's credentials for its upstream, as the registry's helper reads them.

    A file that cannot be used leaves the credentials that the mirror has.
    """
    found: dict[str, File] = {}
    problems: list[Problem] = []
    for mirror in mirrors:
        if mirror.credentials is None:
            continue
        path = paths.mirror(mirror.name) / "auth" / "auth.json"
        try:
            found[mirror.name] = File(path, _login(mirror.credentials), 0o400, pods.REGISTRY_ID)
        except Trouble as trouble:
            key = "upstream.credentials"
            reason, denied = f"{trouble.where} {trouble.reason}", isinstance(trouble, Denied)
            problems.append(Problem(f"{mirror.name}.toml", key, reason, trouble.hint, mirror.name, denied=denied))
            if before := _before(path):
                found[mirror.name] = before
    return found, tuple(problems)


def _before(path: PurePosixPath) -> File | None:
    """What the mirror has so far; only root can see it."""
    with suppress(Denied):
        return files.tree(path.parent).get(path)
    return None


def _upstream_cas(mirrors: Iterable[Mirror], paths: Paths) -> tuple[Mapping[str, str], tuple[Problem, ...]]:
    """The certificates that mirrors trust their upstreams by, and nothing else that is in those files.

    A file that cannot be used leaves those that the mirror has.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for mirror in mirrors:
        if mirror.ca is None:
            continue
        try:
            found[mirror.name] = _bundle(mirror.ca)
        except Trouble as trouble:
            key = "upstream.ca"
            reason, denied = f"{trouble.where} {trouble.reason}", isinstance(trouble, Denied)
            problems.append(Problem(f"{mirror.name}.toml", key, reason, trouble.hint, mirror.name, denied=denied))
            if before := _before(pods.upstream_ca_path(paths, mirror.name)):
                found[mirror.name] = before.content.decode("ascii", "replace")
    return found, tuple(problems)


def _bundle(path: Path) -> str:
    form = "PEM of the CA certificates"
    content = files.read(PurePosixPath(path), BUNDLE_LIMIT)
    if content is None:
        raise Trouble(str(path), "there is no such file", form)
    try:
        return reading.trust_bundle(content)
    except ValueError as error:
        raise Trouble(str(path), "holds no certificate that can be read", form) from error


def _login(path: Path) -> bytes:
    """User name on the first line, password or token on the second → Docker's credential helper protocol."""
    form = "user name on the first line, password or token on the second"
    content = files.read(PurePosixPath(path), CREDENTIALS_LIMIT)
    if content is None:
        raise Trouble(str(path), "there is no such file", form)
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Trouble(str(path), "is not UTF-8", form) from error
    if len(lines) != len(form.split(",")) or not all(line.strip() for line in lines):
        raise Trouble(str(path), "is not two lines", form)
    return json.dumps({"Username": lines[0].strip(), "Secret": lines[1].strip()}).encode()
