"""Metrics: what the file says, and that docs/metrics.md tells of each."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mirror_agent.metrics import render
from mirror_agent.model import Problem
from mirror_agent.report import (
    AuthorityStatus,
    CacheStatus,
    CertificateStatus,
    MirrorStatus,
    PullLimitStatus,
    ReachStatus,
    State,
    Status,
)

DOCS = Path(__file__).parents[2] / "docs/metrics.md"

CACHE = CacheStatus(
    budget=1000, size=600, images=3, requests=50, hits=30, misses=10, stale=2, errors=1, sent=9000, fetched=700
)
MIRROR = MirrorStatus(
    "quay", "quay.io", ("quay.io",), "quay.mirror.lan", "10.0.0.4", "NeverContactSource", State.SERVING, True,
    "podman/hello:latest", "2026-01-01T00:00:00+00:00", "", CACHE,
    CertificateStatus("1f", "mirror-agent CA", renewal="2025-12-01T00:00:00+00:00"),
    PullLimitStatus("2025-11-01T00:00:00+00:00", 100, 76, 21600, "198.51.100.7"),
)  # fmt: skip
STATUS = Status("2025-01-01T00:00:00+00:00", (MIRROR,), (), (), "up to date", "/srv", 5000, 400,
                AuthorityStatus(name="mirror-agent CA", not_after="2036-01-01T00:00:00+00:00"))  # fmt: skip


def samples(status: Status) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(render(status).decode()):
        for sample in family.samples:
            found[sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "upstream")] = sample.value
    return found


def test_every_number_is_there() -> None:
    found = samples(STATUS)
    version = next(key for key in found if key[0] == "mirror_agent_build_info")
    states: dict[tuple[str, ...], float] = {
        ("mirror_agent_mirror_state", "quay", state): float(state == "serving") for state in State
    }
    results: dict[tuple[str, ...], float] = {
        ("mirror_agent_content_requests_total", "quay", result): count
        for result, count in (("hit", 30), ("miss", 10), ("stale", 2))
    }
    assert found == {
        version: 1,
        ("mirror_agent_last_look_timestamp_seconds",): 1735689600,
        ("mirror_agent_problems",): 0,
        ("mirror_agent_failures",): 0,
        ("mirror_agent_disk_free_bytes",): 5000,
        ("mirror_agent_disk_floor_bytes",): 400,
        **states,
        ("mirror_agent_mirror_published", "quay"): 1,
        ("mirror_agent_mirror_failed", "quay"): 0,
        ("mirror_agent_certificate_expiration_timestamp_seconds", "quay"): 1767225600,
        ("mirror_agent_certificate_renewal_timestamp_seconds", "quay"): 1764547200,
        ("mirror_agent_certificate_failed", "quay"): 0,
        ("mirror_agent_certificate_info", "mirror-agent CA", "quay", "1f"): 1,
        ("mirror_agent_ca_expiration_timestamp_seconds", "mirror-agent CA"): 2082758400,
        ("mirror_agent_cache_size_bytes", "quay"): 600,
        ("mirror_agent_cache_budget_bytes", "quay"): 1000,
        ("mirror_agent_cache_images", "quay"): 3,
        ("mirror_agent_upstream_away", "quay"): 0,
        ("mirror_agent_upstream_pull_limit", "quay"): 100,
        ("mirror_agent_upstream_pull_limit_remaining", "quay"): 76,
        ("mirror_agent_upstream_pull_limit_window_seconds", "quay"): 21600,
        ("mirror_agent_upstream_pull_limit_failed", "quay"): 0,
        ("mirror_agent_requests_total", "quay"): 50,
        ("mirror_agent_request_errors_total", "quay"): 1,
        **results,
        ("mirror_agent_sent_bytes_total", "quay"): 9000,
        ("mirror_agent_fetched_bytes_total", "quay"): 700,
    }


def test_without_a_certificate_there_is_no_end_of_it() -> None:
    found = samples(replace(STATUS, mirrors=(replace(MIRROR, not_after="", reason="broken"),)))
    assert ("mirror_agent_certificate_expiration_timestamp_seconds", "quay") not in found
    assert found["mirror_agent_mirror_failed", "quay"] == 1


def test_a_renewal_that_failed_is_seen() -> None:
    failed = replace(MIRROR, certificate=replace(MIRROR.certificate, error="the clock is wrong"))
    assert samples(replace(STATUS, mirrors=(failed,)))["mirror_agent_certificate_failed", "quay"] == 1


def test_an_upstream_that_is_away_is_seen() -> None:
    away = replace(MIRROR, reach=ReachStatus(STATUS.at, STATUS.at, "refused"))
    assert samples(replace(STATUS, mirrors=(away,)))["mirror_agent_upstream_away", "quay"] == 1


LIMITS = "mirror_agent_upstream_pull_limit"


def test_what_is_not_known_of_a_pull_limit_is_absent() -> None:
    def told(said: PullLimitStatus | None) -> dict[str, float]:
        found = samples(replace(STATUS, mirrors=(replace(MIRROR, pull_limit=said),)))
        return {key[0].removeprefix(LIMITS): value for key, value in found.items() if key[0].startswith(LIMITS)}

    assert told(None) == told(PullLimitStatus()) == {}
    assert told(PullLimitStatus("2025-11-01T00:00:00+00:00")) == {"_failed": 0}
    assert told(PullLimitStatus("2025-11-01T00:00:00+00:00", error="HTTP 401")) == {"_failed": 1}


def test_problems_are_counted() -> None:
    assert samples(replace(STATUS, problems=(Problem("a", "b", "c"),)))["mirror_agent_problems",] == 1


def test_without_mirrors_every_name_is_still_told() -> None:
    assert dict(families(replace(STATUS, mirrors=()))) == dict(families(STATUS))


def families(status: Status) -> Iterator[tuple[str, str]]:
    """Name and type, as the file's own comments tell."""
    return iter(re.findall(r"^# TYPE (\S+) (\S+)$", render(status).decode(), re.MULTILINE))


def test_the_docs_have_each_metric_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(mirror_agent_\w+)` \| (\w+) \|([^|]*)\|", DOCS.read_text(), re.MULTILINE)
    labels: dict[str, set[str]] = {name: set() for name, _ in families(STATUS)}
    for family in text_string_to_metric_families(render(STATUS).decode()):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
    assert sorted((name, kind) for name, kind, _ in rows) == sorted(families(STATUS))
    assert {name: {word for word in re.split(r"[ ,]+", listed) if word} for name, _, listed in rows} == labels


def test_names_in_the_examples_exist() -> None:
    used = set(re.findall(r"mirror_agent_\w+", DOCS.read_text()))
    assert used == {name for name, _ in families(STATUS)}
