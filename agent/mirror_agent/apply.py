"""Floor 4: the one place that acts.

Steps come in the order of actions.py; steps of one kind that stand together are done together (one ARP round for all
addresses, all jobs queued before any is waited for).  A step that fails takes the later steps of its mirror out of
this round, and nobody else's.  Every step may be killed and repeated.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from typing import assert_never

from mirror_agent import messages, pods, pull_limit, reach, report
from mirror_agent.actions import (
    Action,
    AnnounceAddress,
    AskPullLimit,
    AskRenewal,
    ClaimAddress,
    CreateAuthority,
    DeleteFile,
    DropAuthority,
    Evict,
    HoldFetches,
    IssueCertificate,
    MakeFolder,
    NotePublished,
    PrepareAuthority,
    ProveMirror,
    Publish,
    PublishToCluster,
    PullImage,
    ReachUpstream,
    ReloadEdge,
    ReloadSystemd,
    Remember,
    RemoveNetwork,
    RestartUnits,
    StartUnits,
    StopUnits,
    SwitchAuthority,
    Withdraw,
    WriteFile,
    WriteUnits,
)
from mirror_agent.certificates import judging, reading
from mirror_agent.config import upstream_of
from mirror_agent.host import (
    authorities,
    edge_cache,
    files,
    issuers,
    journal,
    network,
    pairs,
    pull,
    quadlet,
    state,
    store,
    upstream,
)
from mirror_agent.host.containers import Containers
from mirror_agent.host.errands import Errands
from mirror_agent.host.issuers import acme, own
from mirror_agent.host.namespace import edge_state
from mirror_agent.host.systemd import BusLost, Systemd
from mirror_agent.model import File, Folder, Issuer, Mirror, Proof, PullLimit, Role, Suggestion, Trouble
from mirror_agent.plan import Desired, Observed, hold_file, is_public, unit_upstream
from mirror_agent.targets import cluster, targets

_log = journal.get()

START_SECONDS = 90.0  # for a batch of units to start, stop or restart
ANSWER_SECONDS = 15.0  # for an edge to answer after its unit is active, or has reloaded
PULL_SECONDS = 1800.0  # for one image of a pod
# told at debug level only
QUIET = (AskPullLimit, AskRenewal, MakeFolder, NotePublished, ReachUpstream, WriteFile, Remember, ReloadSystemd)


@dataclass(frozen=True, slots=True)
class Hands:
    """What the steps are done with, and what was found out by doing them."""

    systemd: Systemd
    containers: Containers
    alive: Callable[[], None]  # called often during long work: feeds the watchdog
    claimed: set[IPv4Address]  # addresses that were probed and found free
    announced: set[str]  # starts of pods that were announced
    errands: Errands  # what waits for others


type Failures = list[tuple[Action, Trouble]]


def apply(steps: Sequence[Action], desired: Desired, observed: Observed, hands: Hands) -> Failures:
    """Do the steps; what failed, and why.  Raises nothing but BusLost: then the agent is to start anew."""
    failures: Failures = []
    held: set[str] = set()
    for _, group in itertools.groupby(steps, key=type):
        batch = [step for step in group if not step.mirror or step.alone or step.mirror not in held]
        for step in batch:
            told = isinstance(step, QUIET) or _errand(step) in hands.errands.open  # at its beginning
            tell = _log.debug if told else _log.info
            tell(f"{step} ({step.why})" if step.why else str(step), **_fields(step, desired, observed))
        for step, trouble in _do(batch, desired, observed, hands):
            failures.append((step, trouble))
            if not step.alone:
                held.add(step.mirror)
            _log.error(f"could not {step}: {trouble}", **_fields(step, desired, observed), **_message(step, trouble))
        hands.alive()
    return failures


def _do(batch: list[Action], desired: Desired, observed: Observed, hands: Hands) -> Failures:
    """One kind of step, for all mirrors that need it now."""
    failures: Failures = []
    if claims := [step for step in batch if isinstance(step, ClaimAddress)]:
        failures += _claim(claims, desired, hands)
    if stops := [step for step in batch if isinstance(step, StopUnits)]:
        failures += _stop(stops, hands)
    if starts := [step for step in batch if isinstance(step, StartUnits | RestartUnits)]:
        failures += _run(starts, desired, hands)
    for step in batch:
        try:
            _one(step, desired, observed, hands)
        except BusLost:
            raise
        except Trouble as trouble:
            failures.append((step, trouble))
        hands.alive()
    return failures


def _one(step: Action, desired: Desired, observed: Observed, hands: Hands) -> None:
    """A step that stands alone."""
    match step:
        case CreateAuthority() | PrepareAuthority() | NotePublished() | SwitchAuthority() | DropAuthority():
            _authority(step, desired, observed)
        case Remember():
            _remember(step, desired, observed)
        case PullImage():
            hands.containers.pull_image(step.image, lambda text: _progress(step, text, hands), PULL_SECONDS)
        case MakeFolder():
            files.ensure_folder(step.folder)
        case IssueCertificate():
            _issue(step, desired, observed, hands)
        case AskRenewal() | AskPullLimit() | ReachUpstream():
            _asked(step, desired, observed, hands)
        case WriteFile():
            files.write(step.file)
        case WriteUnits():
            _write_units(step, desired)
        case DeleteFile():
            files.remove(step.path)
        case ReloadSystemd():
            hands.systemd.reload()
        case ReloadEdge():
            _reload_edge(step, desired, observed, hands)
        case AnnounceAddress():
            _announce(step, desired, observed, hands)
        case ProveMirror():
            _prove(step, desired, observed)
        case RemoveNetwork():
            hands.containers.remove_network(step.network)
        case Evict():
            _evict(step, desired, observed)
        case HoldFetches():
            _hold(step, desired)
        case Publish() | PublishToCluster() | Withdraw():
            _told(step, desired, hands)
        case ClaimAddress() | StopUnits() | StartUnits() | RestartUnits():
            pass  # _do() has done them together
        case _:
            assert_never(step)  # mypy sees to it that every kind of step stands here


def repair(desired: Desired) -> None:
    """What a kill or a power cut left behind: torn pairs roll back, temporary files go.  Raises Trouble."""
    paths = desired.paths
    for folder in (paths.state, paths.accepted, paths.units):
        files.sweep(folder)
    for mirror in desired.mirrors:
        for part in ("edge", "registry", "auth"):
            files.sweep(paths.mirror(mirror.name) / part)
        if was := pairs.repair(paths.mirror(mirror.name) / "tls"):
            _log.warning(
                f"its certificate was damaged; the one before is back: {was}",
                mirror=mirror.name,
                upstream=mirror.upstream,
                action="repair",
                message_id=messages.CERTIFICATE_REPAIRED,
            )


# --- single steps --------------------------------------------------------------------------------------------


def _authority(
    step: CreateAuthority | PrepareAuthority | NotePublished | SwitchAuthority | DropAuthority,
    desired: Desired,
    observed: Observed,
) -> None:
    """One step of a CA's life."""
    place, settings, now = desired.paths.authority, desired.settings, datetime.now(UTC)
    hosts = [mirror.host for mirror in desired.mirrors]
    match step:
        case CreateAuthority():
            pair = authorities.create(place, lambda: desired.authority or own.make_authority(settings, hosts, now))
            facts = reading.facts(pair.certificate, None)
            _log.info(f"has a CA: {facts.subject}", action=step.action, message_id=messages.AUTHORITY_CREATED)
        case PrepareAuthority():
            key = authorities.prepare(place, desired.authority or own.make_authority(settings, hosts, now))
            _tell(step, f"a new CA is there, let all readers trust it ({key[:8]})", messages.AUTHORITY_PREPARED)
        case NotePublished():
            remembered = authorities.recall(place)
            published = {**remembered.published, step.key: now}
            authorities.remember(place, replace(remembered, published=published))
        case SwitchAuthority():
            leaves = [certificate.not_after for certificate in observed.certificates.values()]
            # leaves of mirrors that are not defined just now count too: none is longer than this
            authorities.switch(place, max([*leaves, now + timedelta(days=settings.certificates.leaf_days)]), now)
            _tell(step, f"certificates come from the new CA now ({step.key[:8]})", messages.AUTHORITY_SWITCHED)
        case DropAuthority():
            authorities.drop(place, step.key)
            _tell(step, f"a CA is not published any more ({step.key[:8]})", messages.AUTHORITY_DROPPED)


def _tell(step: Action, text: str, message_id: str) -> None:
    """What a person should know of a roll-over, with its explanation."""
    _log.warning(text, action=step.action, message_id=message_id)


def _issue(step: IssueCertificate, desired: Desired, observed: Observed, hands: Hands) -> None:
    """An ACME server may take its time: its certificate is put in place when it is there, at a later look."""
    mirror, settings = _mirror(desired, step.mirror), desired.settings.certificates
    last, now = observed.certificates.get(mirror.name), datetime.now(UTC)
    order = issuers.Order(mirror, settings, desired.paths, last, now, desired.leaves.get(mirror.name))
    if judging.issuer_of(mirror, settings) is Issuer.ACME:
        cause = mirror.host, settings.acme, settings.leaf_key
        if (pair := hands.errands.take(_errand(step), cause, lambda: issuers.get(order))) is None:
            return
    else:
        pair = issuers.get(order)
    issuers.put(order, pair)
    made = reading.facts(pair.certificate, pair.key)
    _log.info(reading.told(made), **_fields(step, desired, observed), message_id=messages.CERTIFICATE_ISSUED)


def _asked(step: AskRenewal | AskPullLimit | ReachUpstream, desired: Desired, observed: Observed, hands: Hands) -> None:
    """What others say, and whether they are there."""
    match step:
        case AskRenewal():
            _ask_renewal(step, desired, observed, hands)
        case AskPullLimit():
            _ask_pull_limit(step, desired, observed, hands)
        case ReachUpstream():
            _reach_upstream(step, desired, observed, hands)


def _ask_renewal(step: AskRenewal, desired: Desired, observed: Observed, hands: Hands) -> None:
    """A server that does not answer is asked again later; our own rule does not need it."""
    settings, certificate = desired.settings.certificates.acme, observed.certificates.get(step.mirror)
    if settings is None or certificate is None:
        return
    before = observed.suggested.get(step.mirror)
    at = before.at if before and before.serial == certificate.serial else None
    try:
        errand = partial(acme.suggest, settings, desired.paths, certificate)
        if (answer := hands.errands.take(_errand(step), (settings, certificate.serial), errand)) is None:
            return
        at = answer.at
    except Trouble as trouble:
        _log.info(str(trouble), **_fields(step, desired, observed))
    names = {mirror.name for mirror in desired.mirrors}
    kept = {name: each for name, each in state.load_suggestions(desired.paths.suggestions).items() if name in names}
    kept[step.mirror] = Suggestion(certificate.serial, datetime.now(UTC), at)
    state.save_suggestions(desired.paths.suggestions, kept)


def _ask_pull_limit(step: AskPullLimit, desired: Desired, observed: Observed, hands: Hands) -> None:
    """An upstream that does not answer is asked again later; nothing needs its answer."""
    mirror, infra = _mirror(desired, step.mirror), observed.container(step.mirror, None)
    if infra is None or mirror.pull_limit is None:
        return
    login, cas = desired.secrets.get(mirror.name), _upstream_cas(mirror, desired)
    errand = partial(upstream.pull_limit, infra.namespace, mirror, login.content if login else b"", cas)
    try:
        if (answer := hands.errands.take(_errand(step), (mirror, login, cas), errand)) is None:
            return
    except Trouble as trouble:
        answer = PullLimit(datetime.now(UTC), error=str(trouble))
    before, now = observed.pull_limits.get(mirror.name), datetime.now(UTC)
    limit = pull_limit.noted(before, answer)
    names = {each.name for each in desired.mirrors}
    kept = {name: each for name, each in observed.pull_limits.items() if name in names}
    state.save_pull_limits(desired.paths.pull_limits, {**kept, mirror.name: limit})
    _tell_pull_limit(mirror, before or PullLimit(now), limit, _fields(step, desired, observed))


def _tell_pull_limit(mirror: Mirror, before: PullLimit, limit: PullLimit, fields: Mapping[str, str]) -> None:
    """Once when it gets low, once when it is not any more; once when the upstream cannot be asked."""
    if limit.error:
        if not before.error:
            _log.info(f"what is left of the pull limit is not known: {limit.error}", **fields)
        return
    left = f"{report.pulls(limit.remaining, limit.limit or 0, limit.window)} are left at {mirror.upstream}"
    if limit.low and not before.low:
        more = "what is cached is served" if mirror.credentials else "an account has more: upstream.credentials"
        _log.warning(f"{left}: nearly used up ({more})", **fields, message_id=messages.PULL_LIMIT_LOW)
    elif before.low and not limit.low:
        _log.info(left if limit.limit is not None else f"{mirror.upstream} tells of no pull limit", **fields)


def _reach_upstream(step: ReachUpstream, desired: Desired, observed: Observed, hands: Hands) -> None:
    """What it comes to is told once, when it changes."""
    mirror, infra = _mirror(desired, step.mirror), observed.container(step.mirror, None)
    if infra is None:
        return
    before, cas, error = reach.known(observed.reaches.get(mirror.name), mirror), _upstream_cas(mirror, desired), ""
    errand = partial(upstream.reach, infra.namespace, mirror, cas)
    try:
        if hands.errands.take(_errand(step), (mirror, cas), errand) is None:
            return
    except Trouble as trouble:
        # a pod that has just stopped says nothing of its upstream
        error = str(trouble) if trouble.where != infra.namespace else before.error if before else ""
    after, names = reach.noted(before, mirror.remote, error, step.doubt, datetime.now(UTC)), desired.pods.keys()
    kept = {name: each for name, each in observed.reaches.items() if name in names}
    state.save_reaches(desired.paths.reaches, {**kept, mirror.name: after})
    since, fields = before.since if before else None, _fields(step, desired, observed)
    if after.since and not since:
        number = fill.images if (fill := observed.fills.get(mirror.name)) else 0
        images = {0: "what is cached is", 1: "1 cached image is"}.get(number, f"{number} cached images are")
        served = f"{images} served on, tags as they were; nothing new can be fetched"
        told = f"{reach.away(mirror.upstream, after.since, error, after.tried)}: {served}"
        _log.warning(told, **fields, message_id=messages.UPSTREAM_AWAY)
    elif since and not after.since:
        told = f"{mirror.upstream} can be reached again: it was away for {reach.lasted(after.tried - since)}"
        _log.info(told, **fields, message_id=messages.UPSTREAM_BACK)


def _upstream_cas(mirror: Mirror, desired: Desired) -> str:
    """PEM of what the mirror's registry trusts beside the public CAs."""
    ca = pods.upstream_ca_path(desired.paths, mirror.name)
    return b"".join(file.content for file in desired.pods[mirror.name].configs if file.path == ca).decode("ascii")


def _errand(step: Action) -> tuple[str, str]:
    return step.action, step.subject


def _remember(step: Remember, desired: Desired, observed: Observed) -> None:
    """Keep leases and definitions.  Here the journal's story of each change begins: with the file that was read.

    A proof goes with its definition: a mirror that comes back is published after a new pull, not before it runs.
    """
    paths, before = desired.paths, observed.accepted
    for name in sorted(name for name in {*before, *step.accepted} if before.get(name) != step.accepted.get(name)):
        what = "new" if name not in before else "changed" if name in step.accepted else "removed"
        fields = {**_fields(replace(step, mirror=name), desired, observed), "action": "read"}
        kept = "; its cached images and its address are kept until `mirror-agent purge`" if what == "removed" else ""
        _log.info(f"{what} definition {name}.toml{kept}", **fields)
    proofs = state.load_proofs(paths.proofs)
    state.save_proofs(paths.proofs, {n: p for n, p in proofs.items() if n in step.accepted or n in desired.frozen})
    state.save_leases(paths.leases, step.leases)
    files.ensure_folder(Folder(paths.accepted, 0o700))
    for name, text in step.accepted.items():
        state.save_accepted(paths.accepted, name, text)
    for name in state.load_accepted(paths.accepted).keys() - step.accepted.keys():
        state.drop_accepted(paths.accepted, name)


def _write_units(step: WriteUnits, desired: Desired) -> None:
    """Only what podman's own generator understands is written; then all files of the mirror are."""
    pod = desired.pods.get(step.mirror)
    complete = {unit.path.name: unit.content for unit in (*(pod.units if pod else ()), desired.network.unit)}
    quadlet.check(complete)
    files.ensure_folder(Folder(desired.paths.units))
    for file in step.files:
        files.write(file)


def _announce(step: AnnounceAddress, desired: Desired, observed: Observed, hands: Hands) -> None:
    mirror, infra = _mirror(desired, step.mirror), observed.container(step.mirror, None)
    if infra is not None:
        network.announce(infra.namespace, mirror.address, mirror.mac)
        hands.announced.add(step.start)


def _reload_edge(step: ReloadEdge, desired: Desired, observed: Observed, hands: Hands) -> None:
    """Proved by a handshake.  An edge that goes on with all but the new certificate gets the one before back."""
    tls = desired.paths.mirror(step.mirror) / "tls"
    there = pairs.current(tls)  # one that was issued in this very round, maybe
    result = hands.systemd.reload_units([step.unit], START_SECONDS)[step.unit]
    if result == "done" and _answers(step.mirror, desired, hands, there.serial if there else step.serial):
        return
    if _answers(step.mirror, desired, hands):
        was = pairs.rollback(tls)
        text = f"the edge did not take its new certificate; the one before is back: {was}"
        _log.error(text, **_fields(step, desired, observed), message_id=messages.CERTIFICATE_ROLLED_BACK)
    what = "was not taken" if result == "done" else f"was refused: its reload ended with {result!r}"
    raise Trouble(step.unit, f"the new configuration or certificate {what}", f"journalctl -u {step.unit}")


def _prove(step: ProveMirror, desired: Desired, observed: Observed) -> None:
    mirror, infra = _mirror(desired, step.mirror), observed.container(step.mirror, None)
    if infra is None:
        return  # it stopped meanwhile; the next look finds out
    image = pull.pull(infra.namespace, mirror, observed.trust, step.image, public=is_public(mirror, desired))
    proof = Proof(mirror.host, mirror.address, mirror.remote, image, datetime.now(UTC))
    state.save_proofs(desired.paths.proofs, {**state.load_proofs(desired.paths.proofs), mirror.name: proof})
    _log.info(f"serving: pulled {image} through https://{mirror.host}", **_fields(step, desired, observed))


def _evict(step: Evict, desired: Desired, observed: Observed) -> None:
    root = desired.settings.cache.path / step.mirror
    try:
        store.evict(root / "registry", step.eviction, observed.stores[step.mirror])
        edge_cache.forget(root / "edge" / "meta", step.eviction.images)
    except OSError as error:
        raise files.trouble(error.filename or root, "removed", error) from error


def _hold(step: HoldFetches, desired: Desired) -> None:
    mark = hold_file(desired, step.mirror)
    if step.full:
        files.write(File(mark, b""))
    else:
        files.remove(mark)


def _told(step: Publish | PublishToCluster | Withdraw, desired: Desired, hands: Hands) -> None:
    """What readers learn."""
    match step:
        case Publish():
            _publish(step, desired)
        case PublishToCluster():
            _publish_to_cluster(step, desired, hands)
        case Withdraw():
            state.drop_proof(desired.paths.proofs, step.mirror)


def _publish(step: Publish, desired: Desired) -> None:
    for target in targets(desired.settings.publish):
        if target.place == step.target:
            target.publish(step.documents)


def _publish_to_cluster(step: PublishToCluster, desired: Desired, hands: Hands) -> None:
    if settings := desired.settings.publish.cluster:
        cluster.publish(settings, step.changes, hands.alive)


# --- steps that are done together ----------------------------------------------------------------------------


def _claim(batch: Sequence[ClaimAddress], desired: Desired, hands: Hands) -> Failures:
    parent = desired.settings.network.parent
    try:
        network.check_parent(parent)
        taken = network.arp_probes(parent, [step.address for step in batch])
    except Trouble as trouble:
        unfit = Trouble(trouble.where, trouble.reason, trouble.hint, messages.PARENT_UNFIT)
        return [(step, unfit) for step in batch]
    failures: Failures = []
    for step in batch:
        if mac := taken.get(step.address):
            hint = f"another machine on {parent} uses it; free it there, or set another address in {step.mirror}.toml"
            failures.append((step, Trouble(str(step.address), f"is taken by {mac}", hint, messages.ADDRESS_TAKEN)))
        else:
            hands.claimed.add(step.address)
    return failures


def _stop(batch: Sequence[StopUnits], hands: Hands) -> Failures:
    """All jobs at once.  A unit that ended as failed is forgotten by systemd too: its file can go then."""
    results = hands.systemd.stop([unit for step in batch for unit in step.units], START_SECONDS)
    failures: Failures = []
    for step in batch:
        if bad := [unit for unit in step.units if results[unit] != "done"]:
            reason, hint = f"its stop ended with {results[bad[0]]!r}", f"journalctl -u {bad[0]}"
            failures.append((step, Trouble(bad[0], reason, hint)))
        for unit in set(step.units).difference(bad):
            hands.systemd.reset_failed(unit)
    return failures


def _run(batch: Sequence[StartUnits | RestartUnits], desired: Desired, hands: Hands) -> Failures:
    """All jobs at once (20 pods: 2.4 s instead of 8), then wait until each edge answers with what it should."""
    call = hands.systemd.restart if isinstance(batch[0], RestartUnits) else hands.systemd.start
    results = call([unit for step in batch for unit in step.units], START_SECONDS)
    failures: Failures = []
    for step in batch:
        hands.alive()
        hands.claimed.discard(_mirror(desired, step.mirror).address)  # held from now on, or to be probed again
        bad = [unit for unit in step.units if results[unit] != "done"]
        if bad:
            how = ", ".join(f"{unit} ended with {results[unit]!r}" for unit in bad)
            failures.append((step, Trouble(step.mirror, how, f"journalctl -u {bad[0]}")))
        elif not _answers(step.mirror, desired, hands):
            unit = pods.container_service(step.mirror, Role.EDGE)
            failures.append((step, Trouble(unit, "it runs, but does not answer", f"journalctl -u {unit}")))
    return failures


def _answers(name: str, desired: Desired, hands: Hands, serial: int | None = None) -> bool:
    """Wait until a mirror's edge answers with its configuration, and with this certificate if one is given."""
    mirror, config = _mirror(desired, name), desired.pods[name].edge_config
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        infra = next((c for c in hands.containers.states() if c.mirror == name and c.role is None), None)
        try:
            edge = edge_state(infra.namespace, mirror.host) if infra else None
        except Trouble:  # the namespace went away between the two looks: a restart is not over yet
            edge = None
        if edge and edge.config == config and serial in (None, edge.serial):
            return True
        hands.alive()
        time.sleep(0.1)
    return False


# --- words ---------------------------------------------------------------------------------------------------


def _mirror(desired: Desired, name: str) -> Mirror:
    return next(mirror for mirror in desired.mirrors if mirror.name == name)


def _progress(step: PullImage, text: str, hands: Hands) -> None:
    hands.alive()
    _log.info(f"pulling {step.image}: {text}", action=step.action)


def _fields(step: Action, desired: Desired, observed: Observed) -> dict[str, str]:
    """The journal's fields of a step: ACTION=, and of a mirror's also MIRROR= and UPSTREAM=."""
    fields = {"action": step.action}
    if step.mirror:
        fields["mirror"] = step.mirror
        defined = (m.upstream for m in desired.mirrors if m.name == step.mirror)
        known = unit_upstream(step.mirror, observed.files.values())
        fields["upstream"] = next(defined, "") or known or upstream_of(observed.accepted.get(step.mirror, b""))
    return {key: value for key, value in fields.items() if value}


_FAILED: Mapping[type[Action], str] = {
    PullImage: messages.IMAGE_MISSING,
    WriteUnits: messages.START_FAILED,
    StopUnits: messages.START_FAILED,
    StartUnits: messages.START_FAILED,
    RestartUnits: messages.START_FAILED,
    IssueCertificate: messages.RENEWAL_FAILED,
    ProveMirror: messages.PROOF_FAILED,
    Publish: messages.TARGET_FAILED,
    PublishToCluster: messages.TARGET_FAILED,
}


def _message(step: Action, trouble: Trouble) -> dict[str, str]:
    """The MESSAGE_ID of a failed step, if there is one."""
    found = trouble.message_id or _FAILED.get(type(step), "")
    return {"message_id": found} if found else {}
