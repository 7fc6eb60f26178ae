"""Which definitions are in force: the good ones, the last good ones of files that turned bad, never two that clash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from mirror_agent.config.definition import is_leftover, name_of, parse_definition, upstream_of
from mirror_agent.model import Candidate, Definition, Problem, Settings

MOST = 250  # definitions; one host's pods, and one folder's daemon-reload, have an end (host.md, "Cost to expect")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the folders say."""

    definitions: tuple[Definition, ...]  # in force, in the order of their names
    problems: tuple[Problem, ...]
    accepted: Mapping[str, bytes]  # by name: the exact text to fall back to when the file turns bad
    frozen: frozenset[str] = frozenset()  # there is a file, but no text of it can be in force: leave what runs alone
    upstreams: Mapping[str, str] = field(default_factory=dict)  # by name, of all whose file says so, good or bad


@dataclass(frozen=True, slots=True)
class _Text:
    """A definition and the bytes it was read from."""

    definition: Definition
    content: bytes


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a definition wants for itself alone, or (a host, not exclusive) what must be nobody's mirror."""

    kind: str  # source, address, host, name
    value: str
    key: str  # where it was written
    exclusive: bool = True


def select(
    candidates: Iterable[Candidate], accepted: Mapping[str, bytes], settings: Settings, owner: int | None = 0
) -> Reading:
    """The definitions in force, and every problem of every file.

    `candidates` are the files of all folders, those of the first folder first: of one file name the first counts.
    `accepted` are the texts that were in force before: a bad file leaves its mirror as it was, and of two files with
    the same claim the one that already made it goes on.  `owner`: see parse_definition.
    """
    problems: set[Problem] = set()
    new: dict[str, _Text] = {}
    old: dict[str, _Text] = {}
    files: dict[str, str] = {}  # by name, of all that are there, good or bad
    upstreams: dict[str, str] = {}
    for candidate in _first_of_each(candidates):
        definition, found = parse_definition(candidate, settings, owner)
        problems.update(found)
        if (name := name_of(candidate.path)) is None:
            continue
        files[name] = candidate.path
        upstreams[name] = upstream_of(candidate.content) or upstream_of(accepted.get(name, b""))
        if definition:
            new[name] = _Text(definition, candidate.content)
        if name in accepted and (text := _fallback(candidate, accepted[name], new.get(name), settings)):
            old[name] = text
    chosen = {name: new.get(name) or old[name] for name in files if name in new or name in old}
    problems.update(_settle(chosen, old, settings))
    problems.update(_limit(chosen, old))
    return Reading(
        definitions=tuple(chosen[name].definition for name in sorted(chosen)),
        problems=tuple(sorted(_with_effect(problem, accepted) for problem in problems)),
        accepted={
            name: chosen[name].content if name in chosen else accepted[name]
            for name in sorted(files)
            if name in chosen or name in accepted
        },
        frozen=frozenset(files.keys() - chosen.keys()),
        upstreams=upstreams | {name: text.definition.sources[0] for name, text in chosen.items()},
    )


def _first_of_each(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """The files that count: the first of a name, unless it masks the name or is somebody's leftover."""
    seen: set[str] = set()
    for candidate in candidates:
        filename = PurePosixPath(candidate.path).name
        if filename in seen or is_leftover(filename):
            continue
        seen.add(filename)
        if candidate.kind != "masked":
            yield candidate


def _fallback(candidate: Candidate, content: bytes, new: _Text | None, settings: Settings) -> _Text | None:
    """The definition that was in force, if it still can be."""
    if new and new.content == content:
        return new
    definition, _ = parse_definition(Candidate(candidate.path, "regular", content=content), settings)
    return _Text(definition, content) if definition else None


def _with_effect(problem: Problem, accepted: Mapping[str, bytes]) -> Problem:
    """Say what becomes of the mirror."""
    if problem.mirror not in accepted:
        return problem
    effect = f"mirror {problem.mirror} keeps running as it was"
    return replace(problem, hint=f"{problem.hint}; {effect}" if problem.hint else effect)


# --- claims ----------------------------------------------------------------------------------------------------


def _claims(definition: Definition, settings: Settings) -> dict[tuple[str, str], _Claim]:
    """All that a definition claims, by (kind, value)."""
    name = definition.name
    host = definition.host or f"{name}.{settings.domain}"
    claims = [_Claim("source", source, "source") for source in definition.sources]
    claims += [_Claim("host", host, "host")]
    # podman has one name space for pods and containers: mirror-NAME, mirror-NAME-edge, mirror-NAME-registry
    claims += [_Claim("name", taken, "") for taken in (name, f"{name}-edge", f"{name}-registry")]
    if definition.address:
        claims.append(_Claim("address", str(definition.address), "address"))
    # A mirror behind a mirror proves nothing, and one that lies in a blocked source blocks itself (openshift.md).
    hosts = [("remote", definition.remote.partition("://")[2]), *(("source", s) for s in definition.sources)]
    claims += [_Claim("host", url.partition("/")[0].partition(":")[0], key, exclusive=False) for key, url in hosts]
    result: dict[tuple[str, str], _Claim] = {}
    for claim in claims:
        result.setdefault((claim.kind, claim.value), claim)
    return result


def _settle(chosen: dict[str, _Text], old: Mapping[str, _Text], settings: Settings) -> Iterator[Problem]:
    """Take out of `chosen` what clashes, or put back what was in force, until nothing clashes.

    All losers of a round leave together, so that no order of files or names decides.  Each round moves at least one
    mirror from its new text to its old one, or from that to none: it ends.
    """
    before = {name: _claims(text.definition, settings) for name, text in old.items()}
    while clashes := list(_clashes(chosen, settings)):
        lost: set[str] = set()
        for wanted in clashes:
            identity = next((claim.kind, claim.value) for claim in wanted.values())
            winners = [name for name in wanted if identity in before.get(name, ())]
            if len(winners) > 1 and any(wanted[name].exclusive for name in winners):
                winners = []
            for name in wanted.keys() - winners:
                lost.add(name)
                yield _clash(name, winners, wanted, {n: chosen[n].definition.file for n in wanted})
        for name in lost:
            if name in old and chosen[name].content != old[name].content:
                chosen[name] = old[name]
            else:
                del chosen[name]


def _clashes(chosen: Mapping[str, _Text], settings: Settings) -> Iterator[dict[str, _Claim]]:
    """Everything that two or more want, by name in order."""
    index: defaultdict[tuple[str, str], dict[str, _Claim]] = defaultdict(dict)
    for name in sorted(chosen):
        for identity, claim in _claims(chosen[name].definition, settings).items():
            index[identity][name] = claim
    for wanted in index.values():
        if len(wanted) > 1 and any(claim.exclusive for claim in wanted.values()):
            yield wanted


def _clash(loser: str, winners: list[str], wanted: Mapping[str, _Claim], files: Mapping[str, str]) -> Problem:
    """Why a definition is not in force, naming the other file."""
    claim = wanted[loser]
    # Where nobody wins, those that are really in the way: two that pull from the same host do not clash.
    others = winners or [n for n in wanted if n != loser and (claim.exclusive or wanted[n].exclusive)]
    named = ", ".join(files[name] for name in others[:2]) + (f" and {len(others) - 2} more" if others[2:] else "")
    outcome = f"which {'goes' if len(winners) == 1 else 'go'} on" if winners else "and none of them is put into force"
    hint = "take it out of one of them"
    match claim.kind, claim.exclusive, wanted[others[0]].exclusive:
        case "host", False, _:
            reason = f'"{claim.value}" is the mirror of {named}, {outcome}'
            hint = "a mirror cannot stand behind a mirror"
        case "host", True, False:
            reason = f'"{claim.value}" is a registry for {named}, {outcome}'
            hint = "give the mirror another host name"
        case "name", _, _:
            reason = f'its pod or a container would be named "mirror-{claim.value}", as in {named}, {outcome}'
            hint = "rename one of the files"
        case _:
            what = {"source": "a source", "address": "the address", "host": "the host name"}[claim.kind]
            reason = f'"{claim.value}" is also {what} of {named}, {outcome}'
    return Problem(files[loser], claim.key, reason, hint, loser)


def _limit(chosen: dict[str, _Text], old: Mapping[str, _Text]) -> Iterator[Problem]:
    """Keep to MOST definitions: first those that ran, then by name."""
    ranked = sorted(chosen, key=lambda name: (name not in old, name))
    left_out = ranked[MOST:]
    for name in left_out:
        yield Problem(
            chosen[name].definition.file,
            "",
            f"is one of {len(ranked)} definitions, and one host takes {MOST}",
            "take some away, or spread them over more hosts",
            name,
        )
        del chosen[name]
