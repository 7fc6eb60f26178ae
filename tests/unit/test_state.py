"""host/state.py: what is remembered is read back the same, and what cannot be understood is never taken for nothing."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror_agent.host import state
from mirror_agent.model import Proof, Trouble

ME = os.geteuid()
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
text = st.text(st.characters(codec="utf-8"), max_size=40)
proofs = st.builds(
    Proof,
    host=text,
    address=st.ip_addresses(v=4),
    remote=text,
    image=text,
    at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
on_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> PurePosixPath:
    return PurePosixPath(tmp_path / "state.json")


@on_disk
@given(
    st.lists(st.tuples(names, st.ip_addresses(v=4)), unique_by=(lambda pair: pair[0], lambda pair: pair[1])).map(dict)
)
def test_leases_are_kept(path: PurePosixPath, leases: dict[str, IPv4Address]) -> None:
    state.save_leases(path, leases, ME)
    assert state.load_leases(path) == leases
    backwards = dict(reversed(leases.items()))
    assert not state.save_leases(path, backwards, ME)


@on_disk
@given(st.dictionaries(names, proofs))
def test_proofs_are_kept(path: PurePosixPath, kept: dict[str, Proof]) -> None:
    state.save_proofs(path, kept, ME)
    assert state.load_proofs(path) == kept
    assert not state.save_proofs(path, state.load_proofs(path), ME)


def test_the_bytes_are_these(path: PurePosixPath) -> None:
    state.save_leases(path, {"quay": IPv4Address("10.0.0.5"), "docker": IPv4Address("10.0.0.4")}, ME)
    assert Path(path).read_text() == (
        '{\n  "version": 1,\n  "leases": {\n    "docker": "10.0.0.4",\n    "quay": "10.0.0.5"\n  }\n}\n'
    )
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_a_proof_in_another_zone_is_the_same_moment(path: PurePosixPath) -> None:
    at = datetime(2026, 11, 24, 9, 0, tzinfo=timezone(timedelta(hours=2)))
    proof = Proof("quay.mirror.lan", IPv4Address("10.0.0.4"), "https://quay.io", "a@sha256:00", at)
    state.save_proofs(path, {"quay": proof}, ME)
    assert state.load_proofs(path) == {"quay": proof}


def test_nothing_yet_is_empty(path: PurePosixPath) -> None:
    assert state.load_leases(path) == {}
    assert state.load_proofs(path) == {}
    assert state.load_accepted(path) == {}


LEASES = '{"version": 1, "leases": {"quay": "10.0.0.4"}}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is damaged"),
        ("\0" * 512, "is damaged"),
        (LEASES[:-9], "is damaged"),
        (LEASES.encode("utf-16").decode("latin-1"), "is damaged"),
        ("[]", "no version"),
        ("{}", "no version"),
        (LEASES.replace("1,", "true,"), "no version"),
        (LEASES.replace("1,", "0,"), "version"),
        (LEASES.replace("leases", "lease"), "damaged: leases: Field required"),
        (LEASES.replace("10.0.0.4", "10.0.0.400"), "damaged: leases.quay: "),
        (LEASES.replace('"10.0.0.4"', "4"), "damaged: leases.quay: "),
        (LEASES.replace("quay", "../quay"), "damaged: leases"),
        (LEASES.replace("quay", "quay\\n"), "damaged: leases"),
        (LEASES.replace("}}", '}, "more": 1}'), "damaged: more"),
        (LEASES.replace("}}", ', "quay": "10.0.0.5"}}'), "damaged: a name is there twice"),
        (LEASES.replace("}}", ', "gcr": "10.0.0.4"}}'), "quay and gcr have the same address 10.0.0.4"),
    ],
)
def test_damage_is_told_and_never_empty(path: PurePosixPath, content: str, reason: str) -> None:
    Path(path).write_text(content)
    with pytest.raises(Trouble, match=reason) as caught:
        state.load_leases(path)
    assert caught.value.where == str(path)
    assert "remove it: every mirror may then get another address" in caught.value.hint
    assert Path(path).read_text() == content


def test_a_newer_agent_s_file_is_told(path: PurePosixPath) -> None:
    Path(path).write_text('{"version": 2, "who": "knows"}')
    for load in (state.load_leases, state.load_proofs):
        with pytest.raises(Trouble, match=r"is of version 2, this agent knows 1 at most \(install the newer agent"):
            load(path)


def test_a_proof_without_a_zone_is_damage(path: PurePosixPath) -> None:
    proof = Proof("h", IPv4Address("10.0.0.4"), "r", "i", datetime(2026, 1, 1, tzinfo=UTC))
    state.save_proofs(path, {"quay": proof}, ME)
    Path(path).write_text(Path(path).read_text().replace("00Z", "00"))
    with pytest.raises(Trouble, match=r"damaged: proofs\.quay\.at"):
        state.load_proofs(path)


def test_definitions_are_kept_by_name(tmp_path: Path) -> None:
    folder = PurePosixPath(tmp_path)
    assert state.save_accepted(folder, "quay", b'source = "quay.io"\n', ME)
    assert not state.save_accepted(folder, "quay", b'source = "quay.io"\n', ME)
    assert state.save_accepted(folder, "gcr", b"\xff", ME)
    (tmp_path / ".mirror-agent-0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / "README").write_bytes(b"an admin's note")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "ghcr.toml").write_bytes(b"")
    assert state.load_accepted(folder) == {"quay": b'source = "quay.io"\n', "gcr": b"\xff"}
    assert state.drop_accepted(folder, "gcr")
    assert not state.drop_accepted(folder, "gcr")
    assert set(state.load_accepted(folder)) == {"quay"}


@pytest.mark.parametrize("name", ["", "..", "../quay", "a/b", "Quay", "-quay", "quay\n", "q" * 33])
def test_a_name_is_not_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a mirror"):
        state.save_accepted(PurePosixPath(tmp_path), name, b"", ME)
    with pytest.raises(ValueError, match="not the name of a mirror"):
        state.drop_accepted(PurePosixPath(tmp_path), name)
