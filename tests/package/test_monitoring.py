"""Alarms and dashboard: each expression is PromQL, each metric and label in it is one that the agent writes."""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tree import REPO

from mirror_agent.metrics import render
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

RULES = [r for g in yaml.safe_load((REPO / "packaging/alerts.yml").read_text())["groups"] for r in g["rules"]]
DASHBOARD = json.loads((REPO / "packaging/dashboard.json").read_text())
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$mirror": ".*"}
SCRAPED = {"instance", "job"}  # Prometheus' own labels

ALERTS = [rule["expr"] for rule in RULES]
EXAMPLES = re.findall(r"^    (.*mirror_agent_.*)$", (REPO / "docs/metrics.md").read_text().split("| metric |")[1], re.M)
PANELS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def written() -> dict[str, set[str]]:
    """Names of all series that the agent writes, with their labels."""
    authority = AuthorityStatus(name="mirror-agent CA", not_after="2036-01-01T00:00:00+00:00")
    status = Status("2026-01-01T00:00:00+00:00", (mirror(),), (), (), "", "", 1, 1, authority)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(render(status).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def mirror() -> MirrorStatus:
    end, cache = "2030-01-01T00:00:00+00:00", CacheStatus(**dict.fromkeys(CacheStatus.__slots__, 1))
    values: dict[str, Any] = dict.fromkeys(MirrorStatus.__slots__, "")
    values |= {"name": "quay", "upstream": "quay.io", "state": State.SERVING, "published": True, "not_after": end}
    values |= {"certificate": CertificateStatus(serial="1", issuer="CA", renewal=end)}
    values |= {"cache": cache, "pull_limit": PullLimitStatus(end, 100, 76, 21600), "reach": ReachStatus()}
    return MirrorStatus(**values)


def plain(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Metrics of an expression with the labels that are asked of them."""
    found = re.findall(r"\b(mirror_agent_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", labels))) for name, labels in found]


@pytest.mark.parametrize("expression", ALERTS + PANELS + EXAMPLES)
def test_it_is_promql_about_what_the_agent_writes(expression: str) -> None:
    promql_parser.parse(plain(expression))
    names = selectors(expression)
    assert names
    for name, labels in names:
        assert name in written()
        assert labels <= written()[name] | SCRAPED


def test_the_dashboard_shows_every_metric() -> None:
    assert {name for expression in PANELS for name, _ in selectors(expression)} == written().keys()


def test_states_and_results_that_are_asked_for_exist() -> None:
    text = " ".join(ALERTS + PANELS)
    assert set(re.findall(r'state!?="(\w+)"', text)) <= {state.value for state in State}
    assert set(re.findall(r'result="(\w+)"', text)) <= {"hit", "miss", "stale"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alarm_says_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert "$labels.instance" in rule["annotations"]["summary"], "which of fifty hosts?"
    assert "mirror" not in labels_of(rule) or "$labels.mirror" in rule["annotations"]["summary"]
    page, _, place = rule["annotations"]["runbook"].partition("#")
    chapter = re.search(rf"^### {place}$(.+?)^##", (REPO / page).read_text(), re.IGNORECASE | re.MULTILINE | re.DOTALL)
    assert chapter
    assert "`" in chapter[1] or "above" in chapter[1], "a command, or where to read on"
    labels = labels_of(rule) | SCRAPED
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= labels


def labels_of(rule: dict[str, Any]) -> set[str]:
    return set().union(*(written()[name] for name, _ in selectors(rule["expr"])))


def test_the_runbook_is_about_alarms_that_exist() -> None:
    chapter = (REPO / "docs/troubleshooting.md").read_text().partition("\n## Alarms\n")[2].partition("\n## ")[0]
    places = {rule["annotations"]["runbook"].partition("#")[2] for rule in RULES}
    assert {name.lower() for name in re.findall(r"^### (\w+)$", chapter, re.MULTILINE)} == places


def test_variables_and_places_of_the_dashboard() -> None:
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "instance", "mirror"]
    assert {name for each in PANELS for name in re.findall(r"\$\w+", each)} <= VARIABLES.keys()
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)), "panels lie on one another"
    assert max(x for x, _ in cells) < 24
