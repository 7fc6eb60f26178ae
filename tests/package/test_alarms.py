"""Alarms in Prometheus' own rule engine: what each fires for, and what it does not."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tree import REPO

RULES = REPO / "packaging/alerts.yml"
ALARMS = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
HOUR, DAY = 60, 24 * 60  # minutes


@dataclass(frozen=True)
class Case:
    alarm: str
    why: str
    fires: bool
    after: int  # minutes
    series: dict[str, str]  # without prefix and common labels → values of each minute, as promtool has them


CASES = [
    Case("MirrorDoesNotServe", "published", True, 10,
         {'mirror_state{state="serving"}': "0x60", "mirror_published": "1x60"}),
    Case("MirrorDoesNotServe", "new", False, 10, {'mirror_state{state="serving"}': "0x60", "mirror_published": "0x60"}),
    Case("MirrorDoesNotServe", "a restart", False, 10,
         {'mirror_state{state="serving"}': "1x3 0x2 1x60", "mirror_published": "1x60"}),
    Case("MirrorIsNotPublished", "for an hour", True, 90, {"mirror_published": "0x200"}),
    Case("MirrorIsNotPublished", "just defined", False, 30, {"mirror_published": "0x200"}),
    Case("MirrorStepFails", "on and on", True, 40, {"mirror_failed": "1x60"}),
    Case("MirrorStepFails", "now and then", False, 45, {"mirror_failed": "1x20 0x2 1x60"}),
    Case("MirrorUpstreamAway", "for a while", True, 20, {"upstream_away": "1x60"}),
    Case("MirrorUpstreamAway", "for a moment", False, 60, {"upstream_away": "0x10 1x10 0x60"}),
    Case("MirrorCertificateNotRenewed", "overdue", True, 8 * HOUR,
         {"certificate_renewal_timestamp_seconds": "0x2000"}),
    Case("MirrorCertificateNotRenewed", "renewed in time", False, 8 * HOUR,
         {"certificate_renewal_timestamp_seconds": "10000x120 5000000x2000"}),
    Case("MirrorCertificateEnds", "in two days", True, HOUR,
         {"certificate_expiration_timestamp_seconds": "180000x100", "certificate_renewal_timestamp_seconds": "0x100"}),
    Case("MirrorCertificateEnds", "short, and not due", False, HOUR,
         {"certificate_expiration_timestamp_seconds": "180000x100",
          "certificate_renewal_timestamp_seconds": "90000x100"}),
    Case("MirrorCAEnds", "in a week", True, 2 * HOUR, {'ca_expiration_timestamp_seconds{ca="CA"}': "604800x200"}),
    Case("MirrorCAEnds", "in ten years", False, 2 * HOUR,
         {'ca_expiration_timestamp_seconds{ca="CA"}': "315360000x200"}),
    Case("MirrorErrors", "one in ten", True, HOUR, {"request_errors_total": "0+6x100", "requests_total": "0+60x100"}),
    Case("MirrorErrors", "one in a hundred", False, HOUR,
         {"request_errors_total": "0+6x100", "requests_total": "0+600x100"}),
    Case("MirrorErrors", "nobody asks", False, HOUR, {"request_errors_total": "5x100", "requests_total": "5x100"}),
    Case("MirrorServesStaleTags", "all day", True, 8 * HOUR, {'content_requests_total{result="stale"}': "0+1x600"}),
    Case("MirrorServesStaleTags", "an hour", False, 8 * HOUR,
         {'content_requests_total{result="stale"}': "0+1x60 60x600"}),
    Case("MirrorCacheTooSmall", "full", True, 2 * DAY + HOUR,
         {"cache_size_bytes": "99x4000", "cache_budget_bytes": "100x4000", "fetched_bytes_total": "0+80x4000",
          "sent_bytes_total": "0+100x4000"}),
    Case("MirrorCacheTooSmall", "full, and of use", False, 2 * DAY + HOUR,
         {"cache_size_bytes": "99x4000", "cache_budget_bytes": "100x4000", "fetched_bytes_total": "0+8x4000",
          "sent_bytes_total": "0+100x4000"}),
    Case("MirrorPullLimitNearlyUsedUp", "a tenth", True, 10,
         {"upstream_pull_limit": "100x60", "upstream_pull_limit_remaining": "10x60"}),
    Case("MirrorPullLimitNearlyUsedUp", "more", False, 10,
         {"upstream_pull_limit": "100x60", "upstream_pull_limit_remaining": "11x60"}),
    Case("MirrorDiskFull", "below the floor", True, 40, {"disk_free_bytes": "9x60", "disk_floor_bytes": "10x60"}),
    Case("MirrorDiskFull", "at the floor", False, 40, {"disk_free_bytes": "10x60", "disk_floor_bytes": "10x60"}),
    Case("MirrorSettingsBroken", "left so", True, 40, {"problems": "2x60"}),
    Case("MirrorSettingsBroken", "mended", False, 40, {"problems": "2x20 0x60"}),
    Case("MirrorAgentFailures", "for hours", True, 150, {"failures": "1x200"}),
    Case("MirrorAgentFailures", "for an hour", False, 150, {"failures": "1x60 0x200"}),
    Case("MirrorAgentGone", "its file is left", True, 90, {"last_look_timestamp_seconds": "0+60x60 3600x60"}),
    Case("MirrorAgentGone", "its file is gone", True, 90, {"last_look_timestamp_seconds": "0+60x60"}),
    Case("MirrorAgentGone", "an upgrade", False, 90, {"last_look_timestamp_seconds": "0+60x60 _x5 3960+60x60"}),
    Case("MirrorAgentGone", "the host was taken away", False, 2 * DAY, {"last_look_timestamp_seconds": "0+60x60"}),
]  # fmt: skip


def named(series: str) -> str:
    """A series of one host's mirror, with all labels."""
    name, _, labels = series.partition("{")
    return f'mirror_agent_{name}{{instance="one",mirror="quay",upstream="quay.io"{"," + labels if labels else "}"}'


def test_the_rules_are_prometheus_own() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALARMS)} rules found" in done.stdout


def test_each_alarm_is_tried_with_what_it_is_for_and_with_what_it_is_not() -> None:
    assert [case.alarm for case in CASES if case.fires] == sorted(
        (case.alarm for case in CASES if case.fires), key=ALARMS.index
    )
    for fires in (True, False):
        assert {case.alarm for case in CASES if case.fires is fires} == set(ALARMS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alarm}: {case.why}")
def test_an_alarm_fires_for_what_it_is_for_and_nothing_else(case: Case, tmp_path: Path) -> None:
    firing = f'count by (instance, alertname) (ALERTS{{alertname="{case.alarm}", alertstate="firing"}})'
    labels = f'{{instance="one", alertname="{case.alarm}"}}'
    wanted = [{"labels": labels, "value": 1}] if case.fires else []
    told = {
        "interval": "1m",
        "input_series": [{"series": named(name), "values": values} for name, values in case.series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{case.after}m", "exp_samples": wanted}],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [told]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
