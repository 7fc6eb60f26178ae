"""What admins bring of their own: a CA, certificates of single mirrors, roots that readers must trust.

A file that cannot be used is a problem of its mirror's; what the mirror has stays.  Keys are read, and never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mirror_agent.certificates import Pair, judging, making, reading
from mirror_agent.host import files, pairs
from mirror_agent.model import Denied, Mirror, Paths, Problem, Settings, Tls, Trouble


@dataclass(frozen=True, slots=True)
class Brought:
    """What was brought and is good; and what is not."""

    leaves: Mapping[str, Pair] = field(default_factory=dict)  # by mirror
    authority: Pair | None = None
    trust: tuple[bytes, ...] = ()  # PEM
    problems: tuple[Problem, ...] = ()


def read(mirrors: Iterable[Mirror], settings: Settings, paths: Paths) -> Brought:
    """Everything that settings and definitions name."""
    leaves: dict[str, Pair] = {}
    trust: list[bytes] = []
    problems: list[Problem] = []
    for mirror in mirrors:
        if mirror.tls is None:
            continue
        try:
            leaves[mirror.name] = _leaf(mirror.tls, mirror.host)
        except Trouble as trouble:
            problems.append(_problem(f"{mirror.name}.toml", "tls.certificate", trouble, mirror.name))
        try:
            trust += [_trust(mirror.tls.ca)] if mirror.tls.ca else []
        except Trouble as trouble:
            problems.append(_problem(f"{mirror.name}.toml", "tls.ca", trouble, mirror.name))
    authority = None
    acme = settings.certificates.acme
    try:
        trust += [_trust(acme.trust)] if acme and acme.trust else []
    except Trouble as trouble:
        problems.append(_problem(str(paths.settings), "certificates.acme.trust", trouble))
    try:
        authority = _authority(settings.certificates.ca) if settings.certificates.ca else None
    except Trouble as trouble:
        problems.append(_problem(str(paths.settings), "certificates.ca", trouble))
    return Brought(leaves, authority, tuple(trust), tuple(problems))


def _problem(file: str, key: str, trouble: Trouble, mirror: str = "") -> Problem:
    reason, denied = f"{trouble.where}: {trouble.reason}", isinstance(trouble, Denied)
    return Problem(file, key, reason, trouble.hint, mirror, denied=denied)


def _leaf(tls: Tls, host: str) -> Pair:
    pair = Pair(_part(tls.key), _part(tls.certificate))
    try:
        reason = judging.unfit(reading.facts(pair.certificate, pair.key), host)
    except ValueError as error:
        raise Trouble(str(tls.certificate), "holds no certificate that can be read", "it must be PEM") from error
    if reason:
        raise Trouble(str(tls.certificate), reason, "bring a certificate for this host, and its key, both as PEM")
    return pair


def _authority(folder: Path) -> Pair:
    pair = Pair(_part(folder / "ca.key"), _part(folder / "ca.crt"))
    making.check_authority(pair)
    return pair


def _trust(path: Path) -> bytes:
    pem = _part(path)
    try:
        reading.trust_bundle(pem)
    except ValueError as error:
        raise Trouble(str(path), "holds no certificate that can be read", "it must be PEM") from error
    return pem


def _part(path: Path) -> bytes:
    if (part := files.read(PurePosixPath(path), pairs.LIMIT)) is None:
        raise Trouble(str(path), "there is no such file", "put it there; it is read at once")
    return part
