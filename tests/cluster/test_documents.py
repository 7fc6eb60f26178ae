"""The documents for admins, as they lie in the folder, are what a real API server takes: strictly, and to the byte."""

from __future__ import annotations

import pytest
import yaml

from cluster.control_plane import ControlPlane
from cluster.story import GOLDEN_CA, IDMS, ITMS, MAPS, mirror, publication
from mirror_agent.formats import FORMATS
from mirror_agent.model import Policy

MIRRORS = (mirror(), mirror("team", "ghcr.io/team", Policy.ALLOW, 6), mirror("docker", "docker.io", number=15))
DOCUMENTS = {each.name: each.content for render in FORMATS.values() for each in render(publication(*MIRRORS))}
PATHS = {
    "image-digest-mirror-set.yaml": f"{IDMS}/image-digest-mirror",
    "image-tag-mirror-set.yaml": f"{ITMS}/image-tag-mirror",
    "additional-trusted-ca.yaml": f"{MAPS}/mirror-agent-ca",
    "user-ca-bundle.yaml": f"{MAPS}/user-ca-bundle",
}


@pytest.mark.parametrize("name", PATHS)
def test_is_accepted_as_it_is(cluster: ControlPlane, name: str) -> None:
    body = yaml.safe_load(DOCUMENTS[name])
    query = "?fieldManager=admin&fieldValidation=Strict&dryRun=All"
    kept = cluster.call("PATCH", PATHS[name] + query, body, "application/apply-patch+yaml")
    told = "data" if body["kind"] == "ConfigMap" else "spec"
    assert kept[told] == body[told]


def test_trust_goes_under_the_name_of_each_mirror() -> None:
    data = yaml.safe_load(DOCUMENTS["additional-trusted-ca.yaml"])["data"]
    assert data == {each.host: GOLDEN_CA.read_text() for each in sorted(MIRRORS, key=lambda each: each.host)}
