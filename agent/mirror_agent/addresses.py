"""Floor 1: the address that a mirror keeps, the MAC that follows from it, and a definition with nothing left open."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from mirror_agent.model import Definition, Mirror, NetworkSettings, Problem, Settings, served


def mac_of(address: IPv4Address) -> str:
    """The MAC of an address, locally administered (02:…).

    A mirror that restarts with the MAC that the LAN knows is reachable after 0.1 s, with another one after about 40 s
    (host.md, "Macvlan").
    """
    return ":".join(f"{byte:02x}" for byte in (2, 0, *address.packed))


def resolve(definition: Definition, address: IPv4Address, settings: Settings) -> Mirror:
    """A definition with nothing left open: what was not written comes from the settings and from the address."""
    return Mirror(
        name=definition.name,
        sources=definition.sources,
        remote=definition.remote,
        host=definition.host or f"{definition.name}.{settings.domain}",
        address=address,
        mac=mac_of(address),
        policy=definition.policy,
        credentials=definition.credentials,
        budget=settings.cache.budget if definition.budget is None else definition.budget,
        fresh=definition.fresh,
        probe=definition.probe if definition.probe and served(definition.probe, definition.allow) else None,
        keep=definition.keep,
        allow=definition.allow,
        tls=definition.tls,
        ca=definition.ca,
        proxy=definition.proxy,
        bandwidth=definition.bandwidth,
        pull_limit=definition.pull_limit,
    )


def assign(
    definitions: Iterable[Definition],
    leases: Mapping[str, IPv4Address],
    network: NetworkSettings,
    frozen: Collection[str] = (),
) -> tuple[Mapping[str, IPv4Address], tuple[Problem, ...]]:
    """The leases from now on, those of removed definitions included, and who gets no address or not the one it wants.

    An address that is written wins over the lease of another, which then moves; but it takes neither the last place of
    a mirror that runs nor the address of a frozen one.  Written addresses are distinct and in the range (select()
    sees to it).  A definition that is not in the result has no address; one whose written address is refused keeps its
    lease.  The order of `definitions` does not count.
    """
    by_name = {definition.name: definition for definition in sorted(definitions, key=lambda d: d.name)}
    held = _usable(by_name, leases, network)
    gone = {name: address for name, address in leases.items() if name not in by_name}
    others = {name: address for name, address in gone.items() if address not in held.values()}
    untouchable = {others[name]: name for name in frozen if name in others}
    written = {n: d.address for n, d in by_name.items() if d.address and d.address not in untouchable}
    blocked = {n: untouchable[d.address] for n, d in by_name.items() if d.address in untouchable}
    late = _withdraw(written, held, others, network)

    settled = _settled(written, held)
    taken = _taken(written, held, others)
    moved = [name for name in held if name not in settled]
    newcomers = [name for name in by_name if not (name in held or name in settled or name in blocked or name in late)]
    homeless = []
    for name in moved + newcomers:
        if address := next(_free(name, taken, network), None):
            settled[name] = address
            taken.add(address)
        else:
            homeless.append(name)
    kept = {name: address for name, address in others.items() if address not in settled.values()}

    hint = _hint([name for name in kept if name not in frozen and _in_range(kept[name], network)])
    full = f"no address is left in {network.first}-{network.last}"
    reasons = [(name, "", full, hint) for name in homeless]
    reasons += [
        (name, "address", f"{by_name[name].address} is leased to another mirror, and {full}", hint) for name in late
    ]
    reasons += [
        (name, "address", f"{by_name[name].address} is the address of mirror {blocked[name]}", _FROZEN)
        for name in blocked
    ]
    problems = (Problem(by_name[name].file, key, reason, hint, name) for name, key, reason, hint in reasons)
    return dict(sorted((settled | kept).items())), tuple(sorted(problems))


_FROZEN = "that mirror is left as it is, because its definition is in doubt"


def _withdraw(
    written: dict[str, IPv4Address],
    held: Mapping[str, IPv4Address],
    others: Mapping[str, IPv4Address],
    network: NetworkSettings,
) -> list[str]:
    """Take back written addresses until those that would have to move find a place; the names that lost theirs.

    When too few places are left, the cause is a newcomer on the lease of another: all others bring an address for the
    one that they take.
    """
    late: list[str] = []
    while len(held.keys() - _settled(written, held).keys()) > _room(_taken(written, held, others), network):
        late.append(max(n for n, address in written.items() if n not in held and address in held.values()))
        del written[late[-1]]
    return late


def _settled(written: Mapping[str, IPv4Address], held: Mapping[str, IPv4Address]) -> dict[str, IPv4Address]:
    """Who has its address without a choice: it is written, or leased and wanted by nobody else."""
    wanted = set(written.values())
    return {**written, **{n: address for n, address in held.items() if n not in written and address not in wanted}}


def _taken(
    written: Mapping[str, IPv4Address], held: Mapping[str, IPv4Address], others: Mapping[str, IPv4Address]
) -> set[IPv4Address]:
    return {*_settled(written, held).values(), *others.values()}


def _room(taken: Collection[IPv4Address], network: NetworkSettings) -> int:
    return _count(network) - sum(_in_range(address, network) for address in taken)


def _hint(removed: Collection[str]) -> str:
    """What would make room."""
    if removed:
        return f"removed mirrors keep their addresses until: mirror-agent purge {' '.join(sorted(removed))}"
    return "widen [network] range in the settings"


def _usable(
    names: Collection[str], leases: Mapping[str, IPv4Address], network: NetworkSettings
) -> dict[str, IPv4Address]:
    """The leases that can still be kept: in the range, and (the file may have been edited) nobody else's."""
    result: dict[str, IPv4Address] = {}
    for name in sorted(names):
        if name in leases and _in_range(leases[name], network) and leases[name] not in result.values():
            result[name] = leases[name]
    return result


def _in_range(address: IPv4Address, network: NetworkSettings) -> bool:
    return network.first <= address <= network.last


def _count(network: NetworkSettings) -> int:
    return int(network.last) - int(network.first) + 1


def _free(name: str, taken: Collection[IPv4Address], network: NetworkSettings) -> Iterator[IPv4Address]:
    """The free addresses, from a place on that follows from the name: the same one on a host that lost its leases."""
    count = _count(network)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    for step in range(min(count, len(taken) + 1)):
        address = network.first + (start + step) % count
        if address not in taken:
            yield address
