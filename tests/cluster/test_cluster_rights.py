"""packaging/rbac.yaml: with it all works, and without any single verb of it something does not."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import pytest

from cluster.control_plane import MINUTE, USER, ControlPlane, manifest, place
from cluster.story import entry, idms, mirror, publication, told
from mirror_agent.model import ClusterSettings
from mirror_agent.targets import TargetError
from mirror_agent.targets.watch import Watches

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
VERBS = [
    (role["kind"], index, resource, verb)
    for role in manifest()
    if role["kind"] in ("ClusterRole", "Role")
    for index, rule in enumerate(role["rules"])
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


def without(kind: str, index: int, resource: str, verb: str) -> dict[str, Any]:
    """The role with one verb on one resource less."""
    role: dict[str, Any] = copy.deepcopy(next(each for each in manifest() if each["kind"] == kind))
    rule = role["rules"].pop(index)
    less = {**rule, "resources": [resource], "verbs": [each for each in rule["verbs"] if each != verb]}
    rest = {**rule, "resources": [each for each in rule["resources"] if each != resource]}
    role["rules"] += [each for each in (less, rest) if each["verbs"] and each["resources"]]
    return role


def allowed(cluster: ControlPlane, kind: str, index: int, resource: str, verb: str) -> bool:
    role = next(each for each in manifest() if each["kind"] == kind)
    rule = role["rules"][index]
    asked = {"group": rule["apiGroups"][0], "resource": resource, "verb": verb}
    asked |= {"name": rule["resourceNames"][0]} if "resourceNames" in rule else {}
    asked |= {"namespace": role["metadata"]["namespace"]} if "namespace" in role["metadata"] else {}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
    spec = {"user": USER, "groups": ["system:authenticated"], "resourceAttributes": asked}
    return bool(cluster.call("POST", REVIEWS, {**body, "spec": spec})["status"]["allowed"])


def watch_all(settings: ClusterSettings) -> None:
    """Begin all watches, and raise what speaks against one of them."""
    watches = Watches()
    stop = watches.on_change(lambda _: None)
    watches.follow(settings, None)
    try:
        deadline = time.monotonic() + MINUTE
        while not all(each.error or each.opened for each in watches.running):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for each in watches.running:
            if each.error:
                raise each.error
    finally:
        stop()


def story(cluster: ControlPlane, settings: ClusterSettings) -> None:
    """All that the agent does in a cluster: look, watch, create, change, adopt."""
    watch_all(settings)
    idms(cluster, "image-digest-mirror", entry("quay.io", "quay.mirror.lan"))
    adopting = replace(settings, adopt=("image-digest-mirror",))
    told(publication(mirror()), adopting)
    assert told(publication(mirror(), mirror("ghcr", "ghcr.io", number=5)), adopting).refused == ""


def wait_until(wanted: bool, cluster: ControlPlane, *right: Any) -> None:
    """The API server learns of roles a moment later."""
    deadline = time.monotonic() + MINUTE
    while allowed(cluster, *right) is not wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_with_all_of_them_all_works(cluster: ControlPlane, settings: ClusterSettings) -> None:
    for right in VERBS:
        wait_until(True, cluster, *right)
    story(cluster, settings)


@pytest.mark.parametrize("right", VERBS, ids=lambda right: " ".join(map(str, right)))
def test_each_verb_is_needed(
    cluster: ControlPlane, settings: ClusterSettings, right: tuple[str, int, str, str]
) -> None:
    role = without(*right)
    try:
        cluster.call("PUT", place(role), role)
        wait_until(False, cluster, *right)
        with pytest.raises(TargetError, match="not allowed"):
            story(cluster, settings)
    finally:
        original = next(each for each in manifest() if each["kind"] == right[0])
        cluster.call("PUT", place(original), original)
        wait_until(True, cluster, *right)


def test_it_may_do_nothing_else(cluster: ControlPlane) -> None:
    refused = [("imagedigestmirrorsets", "delete"), ("imagedigestmirrorsets", "get")]
    for resource, verb in refused:
        assert not allowed(cluster, "ClusterRole", 0, resource, verb)
    assert not allowed(cluster, "ClusterRole", 3, "images", "create")
    assert not allowed(cluster, "Role", 0, "secrets", "get")
    assert not allowed(cluster, "Role", 0, "configmaps", "delete")
