"""What the agent remembers between its runs: addresses, proofs, and the last good text of each definition.

Everything else is read back from what runs.  The files are JSON with a version, in the order of the names, so that
the same memory is the same bytes.  A file that cannot be understood is a Trouble and never an empty memory: that
would give every mirror a new address, or take all of them out of what is published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from mirror_agent import messages
from mirror_agent.host import files
from mirror_agent.model import File, ImageName, Proof, PullLimit, Reach, Rollover, Suggestion, Trouble
from mirror_agent.usage import Counters, Usage

VERSION = 1
LIMIT = 4 * 1024 * 1024  # bytes; a thousand mirrors take a tenth of it
USAGE_LIMIT = 256 * 1024 * 1024  # bytes; an image takes 150

_NAME = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_ACCEPTED = re.compile(rf"({_NAME})\.toml")

type _Name = Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]


type _Key = Annotated[str, StringConstraints(pattern="^([0-9a-f]{2}){1,64}$")]


class _Stored(BaseModel):
    # built when it is first read or written: most commands need one of them
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class _Leases(_Stored):
    version: Literal[1] = 1
    leases: dict[_Name, IPv4Address]

    @model_validator(mode="after")
    def _apart(self) -> _Leases:
        owners: dict[IPv4Address, str] = {}
        for name, address in self.leases.items():
            if address in owners:
                raise ValueError(f"{owners[address]} and {name} have the same address {address}")
            owners[address] = name
        return self


class _Proof(_Stored):
    host: str
    address: IPv4Address
    remote: str
    image: str
    at: AwareDatetime


class _Proofs(_Stored):
    version: Literal[1] = 1
    proofs: dict[_Name, _Proof]


class _Used(_Stored):
    used: dict[str, AwareDatetime]  # by "repository@digest"
    counters: dict[str, int]


class _Usage(_Stored):
    version: Literal[1] = 1
    cursor: str  # of the journal
    mirrors: dict[_Name, _Used]


class _Keeps(_Stored):
    version: Literal[1] = 1
    keeps: dict[_Name, dict[_Name, list[str]]]  # set → mirror → "repository@digest"


class _Suggestion(_Stored):
    serial: Annotated[str, StringConstraints(pattern="^[0-9a-f]{1,40}$")]
    asked: AwareDatetime
    at: AwareDatetime | None


class _Suggestions(_Stored):
    version: Literal[1] = 1
    mirrors: dict[_Name, _Suggestion]


class _PullLimit(_Stored):
    asked: AwareDatetime
    limit: int | None
    remaining: int
    window: int
    source: str
    low: bool
    error: str


class _PullLimits(_Stored):
    version: Literal[1] = 1
    mirrors: dict[_Name, _PullLimit]


class _Reach(_Stored):
    remote: str
    tried: AwareDatetime
    since: AwareDatetime | None
    error: str


class _Reaches(_Stored):
    version: Literal[1] = 1
    mirrors: dict[_Name, _Reach]


class _Rollover(_Stored):
    version: Literal[1] = 1
    published: dict[_Key, AwareDatetime]
    confirmed: list[_Key]
    ends: dict[_Key, AwareDatetime]


def load_leases(path: PurePosixPath) -> Mapping[str, IPv4Address]:
    """The addresses that mirrors keep, by mirror; none where there is no file yet.

    Raises Trouble where the file is damaged or written by a newer agent.
    """
    stored = _load(path, _Leases, LIMIT, "every mirror may then get another address")
    return stored.leases if stored else {}


def save_leases(path: PurePosixPath, leases: Mapping[str, IPv4Address], owner: int = 0) -> bool:
    """Remember the addresses.  True when the file was not already so."""
    return _save(path, _Leases(leases=dict(sorted(leases.items()))), owner)


def load_proofs(path: PurePosixPath) -> Mapping[str, Proof]:
    """The last real pull through each mirror, by mirror; none where there is no file yet.

    Raises Trouble where the file is damaged or written by a newer agent.
    """
    stored = _load(path, _Proofs, LIMIT, "every mirror is then published again after its next real pull")
    return {name: Proof(**dict(proof)) for name, proof in stored.proofs.items()} if stored else {}


def drop_proof(path: PurePosixPath, mirror: str) -> bool:
    """Forget that a mirror has served a real pull.  True when it was known."""
    return save_proofs(path, {name: proof for name, proof in load_proofs(path).items() if name != mirror})


def save_proofs(path: PurePosixPath, proofs: Mapping[str, Proof], owner: int = 0) -> bool:
    """Remember the proofs.  True when the file was not already so."""
    stored = {
        name: _Proof(host=proof.host, address=proof.address, remote=proof.remote, image=proof.image, at=proof.at)
        for name, proof in sorted(proofs.items())
    }
    return _save(path, _Proofs(proofs=stored), owner)


def load_usage(path: PurePosixPath) -> tuple[Mapping[str, Usage], str]:
    """What clients did, by mirror, and the journal's cursor up to which it was read; nothing where there is no file.

    Raises Trouble where the file is damaged or written by a newer agent.
    """
    stored = _load(path, _Usage, USAGE_LIMIT, "eviction then goes by when images were fetched, and counters begin anew")
    if not stored:
        return {}, ""
    mirrors = {}
    for name, mirror in stored.mirrors.items():
        used = {(image.partition("@")[0], image.partition("@")[2]): at for image, at in mirror.used.items()}
        known = {key: value for key, value in mirror.counters.items() if key in Counters.__slots__}
        mirrors[name] = Usage(used, Counters(**known))
    return mirrors, stored.cursor


def save_usage(path: PurePosixPath, mirrors: Mapping[str, Usage], cursor: str, owner: int = 0) -> bool:
    """Remember what clients did.  True when the file was not already so."""
    stored = {
        name: _Used(
            used={f"{repository}@{digest}": at for (repository, digest), at in sorted(usage.used.items())},
            counters=asdict(usage.counters),
        )
        for name, usage in sorted(mirrors.items())
    }
    return _save(path, _Usage(cursor=cursor, mirrors=stored), owner)


def load_keeps(path: PurePosixPath) -> Mapping[str, Mapping[str, Collection[ImageName]]]:
    """Pinned images, by set and mirror; none where there is no file yet.

    Raises Trouble where the file is damaged or written by a newer agent.
    """
    stored = _load(path, _Keeps, USAGE_LIMIT, "nothing is pinned then: warm the sets again")
    found = {}
    for name, mirrors in (stored.keeps if stored else {}).items():
        found[name] = {
            mirror: frozenset((image.partition("@")[0], image.partition("@")[2]) for image in images)
            for mirror, images in mirrors.items()
        }
    return found


def save_keeps(path: PurePosixPath, keeps: Mapping[str, Mapping[str, Collection[ImageName]]], owner: int = 0) -> bool:
    """Remember the pinned images.  True when the file was not already so."""
    stored = {
        name: {
            mirror: sorted(f"{repository}@{digest}" for repository, digest in images)
            for mirror, images in sorted(mirrors.items())
            if images
        }
        for name, mirrors in sorted(keeps.items())
    }
    return _save(path, _Keeps(keeps=stored), owner)


def load_suggestions(path: PurePosixPath) -> Mapping[str, Suggestion]:
    """What an ACME server said about renewals, by mirror; nothing where there is no file.

    Raises Trouble where the file is damaged or written by a newer agent.
    """
    stored = _load(path, _Suggestions, LIMIT, "the server is asked again")
    if not stored:
        return {}
    return {name: Suggestion(int(each.serial, 16), each.asked, each.at) for name, each in stored.mirrors.items()}


def save_suggestions(path: PurePosixPath, suggestions: Mapping[str, Suggestion], owner: int = 0) -> bool:
    """Remember it.  True when the file was not already so."""
    stored = {
        name: _Suggestion(serial=f"{each.serial:x}", asked=each.asked, at=each.at)
        for name, each in sorted(suggestions.items())
    }
    return _save(path, _Suggestions(mirrors=stored), owner)


def load_pull_limits(path: PurePosixPath) -> Mapping[str, PullLimit]:
    """What upstreams said of their limits, by mirror; nothing where there is no file, or none that is understood.

    Then they are asked again: it is not worth more.
    """
    try:
        stored = _load(path, _PullLimits, LIMIT, "the upstreams are asked again")
    except Trouble:
        return {}
    return {name: PullLimit(**dict(each)) for name, each in stored.mirrors.items()} if stored else {}


def save_pull_limits(path: PurePosixPath, limits: Mapping[str, PullLimit], owner: int = 0) -> bool:
    """Remember it.  True when the file was not already so."""
    stored = {name: _PullLimit(**asdict(each)) for name, each in sorted(limits.items())}
    return _save(path, _PullLimits(mirrors=stored), owner)


def load_reaches(path: PurePosixPath) -> Mapping[str, Reach]:
    """Which upstreams can be reached, by mirror; nothing where there is no file, or none that is understood.

    Then it is found out again: it is not worth more.
    """
    try:
        stored = _load(path, _Reaches, LIMIT, "it is found out again")
    except Trouble:
        return {}
    return {name: Reach(**dict(each)) for name, each in stored.mirrors.items()} if stored else {}


def save_reaches(path: PurePosixPath, reaches: Mapping[str, Reach], owner: int = 0) -> bool:
    """Remember it.  True when the file was not already so."""
    stored = {name: _Reach(**asdict(each)) for name, each in sorted(reaches.items())}
    return _save(path, _Reaches(mirrors=stored), owner)


def load_rollover(path: PurePosixPath) -> Rollover:
    """What is remembered while a CA is replaced; nothing where there is no file.

    Raises Trouble where the file is damaged or written by a newer agent.
    """
    stored = _load(path, _Rollover, LIMIT, "a CA that is being replaced is then replaced later")
    return Rollover(stored.published, frozenset(stored.confirmed), stored.ends) if stored else Rollover()


def save_rollover(path: PurePosixPath, rollover: Rollover, owner: int = 0) -> bool:
    """Remember moments of a roll-over.  True when the file was not already so."""
    published, ends = (dict(sorted(each.items())) for each in (rollover.published, rollover.ends))
    return _save(path, _Rollover(published=published, confirmed=sorted(rollover.confirmed), ends=ends), owner)


def load_accepted(folder: PurePosixPath) -> Mapping[str, bytes]:
    """The last good text of each definition, by mirror.  Files that are none of ours are left alone."""
    found = {}
    for path, file in files.tree(folder).items():
        if path.parent == folder and (match := _ACCEPTED.fullmatch(path.name)):
            found[match[1]] = file.content
    return found


def save_accepted(folder: PurePosixPath, name: str, text: bytes, owner: int = 0) -> bool:
    """Remember a definition's text.  True when it was not already so."""
    return files.write(File(_accepted(folder, name), text, 0o600, owner))


def drop_accepted(folder: PurePosixPath, name: str) -> bool:
    """Forget a definition's text.  True when there was one."""
    return files.remove(_accepted(folder, name))


def _accepted(folder: PurePosixPath, name: str) -> PurePosixPath:
    if not _ACCEPTED.fullmatch(f"{name}.toml"):
        raise ValueError(f"not the name of a mirror: {name!r}")
    return folder / f"{name}.toml"


def _load[T: _Stored](path: PurePosixPath, kind: type[T], limit: int, loss: str) -> T | None:
    content = files.read(path, limit)
    if content is None:
        return None
    hint = f"bring it back from a backup, or remove it: {loss}"
    try:
        version = _version(content)
        if version > VERSION:
            newer = f"is of version {version}, this agent knows {VERSION} at most"
            raise Trouble(
                str(path), newer, "install the newer agent again that has written it", messages.STATE_UNUSABLE
            )
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Trouble(
            str(path), f"is damaged: {place + ': ' if place else ''}{first['msg']}", hint, messages.STATE_UNUSABLE
        ) from error
    except ValueError as error:
        raise Trouble(str(path), f"is damaged: {error}", hint, messages.STATE_UNUSABLE) from error


def _version(content: bytes) -> int:
    stored = json.loads(content, object_pairs_hook=_once)
    version = stored.get("version") if isinstance(stored, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError("it has no version")
    return version


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _save(path: PurePosixPath, stored: _Stored, owner: int) -> bool:
    text = json.dumps(stored.model_dump(mode="json"), indent=2) + "\n"
    return files.write(File(path, text.encode("utf-8"), 0o600, owner))
