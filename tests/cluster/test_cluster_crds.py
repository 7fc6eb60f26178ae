"""What a cluster takes and refuses: the rules of openshift/schema.py, this project's CRDs and OpenShift's own agree."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException

from cluster.control_plane import MINUTE, REPO, ControlPlane, place
from mirror_agent.openshift import documents, schema

OPENSHIFTS = REPO.parent / "shared/crds"  # the originals, where this tree has them beside it
GROUP = "originals.test"  # under which they stand beside ours
PLURALS = {
    "ImageDigestMirrorSet": "imagedigestmirrorsets",
    "ImageTagMirrorSet": "imagetagmirrorsets",
    "ImageContentSourcePolicy": "imagecontentsourcepolicies",
    "Image": "images",
}
SOURCES: list[Any] = [
    "quay.io", "quay.io/a", "quay.io/a/b-c", "quay.io:443", "quay.io:443/a", "quay.io:", "quay.io:a", "quay.io:123456",
    "*.quay.io", "*.quay.io/a", "*.quay.io:443", "*", "*.", "a.*.io", "https://quay.io", "quay.io/", "quay.io//a",
    "quay.io/A", "QUAY.io", "quay.io/a:1", f"quay.io/a@sha256:{'a' * 64}", "quay_x.io", "quay.io/a_b", "quay.io/a__b",
    "quay.io/a___b", "quay.io/a.b", "quay.io/a..b", "quay.io/a-", "quay.io/-a", "[::1]:5000", "127.0.0.1:5000",
    "localhost", "localhost:5000", "a", "a/b", "", " quay.io", "quay.io\n", "a..b", "-a.io", "a-.io", "é.io",
    "x" * 300, 1, None, True, [], {},
]  # fmt: skip
POLICIES: list[Any] = ["NeverContactSource", "AllowContactingSource", "", "Other", None, 1]
MIRRORS: list[Any] = [[], ["a.lan", "b.lan"], ["a.lan", "a.lan"], None, "a.lan", {}, [[]]]
VALUES: list[Any] = [[], None, {}, "a.io", ["a.io", "b.io"], ["a.io"] * 2]
# Its schema has a format, by which a plain API server takes a text for the list; OpenShift's decodes it first.
SEARCH = "containerRuntimeSearchRegistries"


def mirror_set(kind: str, spec: Any) -> dict[str, Any]:
    return {"apiVersion": schema.KINDS[kind].api, "kind": kind, "metadata": {"name": "it"}, "spec": spec}


def corpus() -> Iterator[dict[str, Any]]:
    """Each way to say something wrong, and what stands right beside it."""
    for kind in ("ImageDigestMirrorSet", "ImageTagMirrorSet", "ImageContentSourcePolicy"):
        key = schema.KINDS[kind].entries
        entries: list[Any] = [{"source": source, "mirrors": ["a.lan"]} for source in SOURCES]
        entries += [{"source": "quay.io", "mirrors": [mirror]} for mirror in SOURCES]
        entries += [{"source": "quay.io", "mirrors": mirrors} for mirrors in MIRRORS]
        entries += [{"source": "quay.io", "mirrors": ["a.lan"], "mirrorSourcePolicy": policy} for policy in POLICIES]
        entries += [{}, {"mirrors": ["a.lan"]}, {"source": "quay.io"}, {"source": "quay.io", "x": 1}, 1, None, "a", []]
        specs: list[Any] = [{key: [entry]} for entry in entries]
        specs += [{}, {key: []}, {key: None}, {key: {}}, {"x": 1}, None, [], 1, {key: [{"source": "a.io"}] * 2}]
        yield from (mirror_set(kind, spec) for spec in specs)
        yield {key: value for key, value in mirror_set(kind, {}).items() if key != "spec"}
    lists = ("insecureRegistries", "blockedRegistries", "allowedRegistries", SEARCH)
    sources: list[Any] = [{name: [scope]} for name in lists for scope in SOURCES]
    sources += [{name: value} for name in lists for value in VALUES if (name, value) != (SEARCH, "a.io")]
    sources += [
        {one: ["a.io"], other: ["b.io"]}
        for one in lists
        for other in lists
        if one < other
    ]  # fmt: skip
    yield from (image({"registrySources": each}) for each in [*sources, {}, None, [], {"x": 1}])
    others: list[Any] = [{"additionalTrustedCA": each} for each in ({"name": "a"}, {"name": ""}, {}, None, "a")]
    others += [{}, {"externalRegistryHostnames": ["a"]}, {"imageStreamImportMode": "x"}]
    yield from map(image, others)


def image(spec: Any) -> dict[str, Any]:
    return {"apiVersion": schema.IMAGE.api, "kind": "Image", "metadata": {"name": "cluster"}, "spec": spec}


@pytest.fixture(scope="module")
def groups(server: ControlPlane) -> Mapping[str, str]:
    """Where each set of CRDs is served: ours, and OpenShift's where it is at hand."""
    files = sorted(OPENSHIFTS.glob("*.yaml")) if OPENSHIFTS.is_dir() else []
    for file in files:
        body = yaml.safe_load(file.read_text())
        if body["spec"]["names"]["kind"] in PLURALS:
            body["spec"]["group"] = GROUP
            body["metadata"] = {"name": f"{body['spec']['names']['plural']}.{GROUP}"}
            server.apply(place(body), body)
    deadline = time.monotonic() + MINUTE
    while files and not all(
        server.serves(f"/apis/{GROUP}/{schema.KINDS[kind].api.partition('/')[2]}/{plural}")
        for kind, plural in PLURALS.items()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return {"ours": "", **({"OpenShift's": GROUP} if files else {})}


def takes(server: ControlPlane, body: dict[str, Any], group: str) -> bool:
    """Does the API server take it?"""
    own, _, version = body["apiVersion"].partition("/")
    api = f"{group or own}/{version}"
    plural = PLURALS[body["kind"]]
    try:
        server.call("POST", f"/apis/{api}/{plural}?dryRun=All", {**body, "apiVersion": api})
    except ApiException as error:
        if error.status in (400, 422):
            return False
        raise
    return True


def taken(body: dict[str, Any]) -> bool:
    """The same by this project's own rules."""
    return not list(documents.refusals(documents.read([("it", json.dumps(body))]), {}))


def judged(server: ControlPlane, groups: Mapping[str, str], body: dict[str, Any]) -> None:
    ours = taken(body)
    assert {name: takes(server, body, group) for name, group in groups.items()} == dict.fromkeys(groups, ours), body


def test_each_rule(server: ControlPlane, groups: Mapping[str, str]) -> None:
    server.delete("/apis/config.openshift.io/v1/images/cluster")
    for body in corpus():
        judged(server, groups, body)


def test_the_corpus_has_both_in_every_kind() -> None:
    found = {
        (body["kind"], taken(body)) for body in corpus()
    }  # fmt: skip
    assert found == {(kind, verdict) for kind in PLURALS for verdict in (True, False)}


LOCATION = st.text("aZ0.-_:/*@é ", max_size=9)


@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.sampled_from(["ImageDigestMirrorSet", "ImageTagMirrorSet"]), LOCATION, st.lists(LOCATION, max_size=2))
def test_any_location(
    server: ControlPlane, groups: Mapping[str, str], kind: str, source: str, mirrors: list[str]
) -> None:
    entry = {"source": source, "mirrors": mirrors}
    judged(server, groups, mirror_set(kind, {schema.KINDS[kind].entries: [entry]}))


def test_the_originals_are_compared_where_they_are(groups: Mapping[str, str]) -> None:
    assert (len(groups) == 2) is Path(OPENSHIFTS).is_dir()
