"""Texts into objects, objects into a cluster's state, and what the API server refuses before anybody reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from mirror_agent.model import Policy, Trouble
from mirror_agent.openshift import Cluster, MirrorSet, Sources, documents, judge, read, schema

SET: dict[str, Any] = {
    "apiVersion": "config.openshift.io/v1",
    "kind": "ImageDigestMirrorSet",
    "metadata": {"name": "ours"},
    "spec": {"imageDigestMirrors": [{"source": "quay.io", "mirrors": ["quay.lan"]}]},
}
WANTED = Cluster(digest=((MirrorSet("quay.io", ("quay.lan",)),),))


def image(**sources: Any) -> dict[str, Any]:
    return {
        "apiVersion": "config.openshift.io/v1",
        "kind": "Image",
        "metadata": {"name": "cluster"},
        "spec": {"registrySources": sources},
    }


def state(*texts: str) -> Cluster:
    return documents.cluster(read([(f"file{index}", text) for index, text in enumerate(texts)]))


@pytest.mark.parametrize(
    "text",
    [
        yaml.safe_dump(SET),
        json.dumps(SET),
        json.dumps(SET, indent="\t"),
        json.dumps(SET) + "\n" + json.dumps({"kind": "ConfigMap", "apiVersion": "v1"}),
        json.dumps(SET) + "\n---\n" + json.dumps({"kind": "ConfigMap", "apiVersion": "v1"}),
        "---\n---\n" + yaml.safe_dump(SET) + "---\n- a list\n---\ntext\n",
        yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [SET]}),
        yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [{"kind": "List", "items": [SET, 1]}]}),
        json.dumps(
            {
                "apiVersion": SET["apiVersion"],
                "kind": "ImageDigestMirrorSetList",
                "items": [{key: SET[key] for key in ("metadata", "spec")}],
            }
        ),
        "{apiVersion: config.openshift.io/v1, kind: ImageDigestMirrorSet, metadata: {name: ours},\n"
        " spec: {imageDigestMirrors: [{source: quay.io, mirrors: [quay.lan]}]}}",
    ],
)
def test_objects_are_found_in_all_that_oc_writes_and_reads(text: str) -> None:
    assert state(text) == WANTED


@pytest.mark.parametrize("text", ["", "---\n", "a: b\n", "kind: 1\n", "imageDigestSources: []\n"])
def test_other_texts_hold_none(text: str) -> None:
    assert not read([("file", text)])


@pytest.mark.parametrize("text", ["a: [", "{'a", "\ta: b", "a: !!python/object:os.system {}", "[" * 5000])
def test_what_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(Trouble) as caught:
        read([("broken.yaml", text)])
    assert caught.value.where == "broken.yaml"


def test_scalars_are_what_they_are_for_kubectl() -> None:
    text = (
        "kind: Image\nmetadata: {name: cluster}\nspec: {registrySources: {insecureRegistries: [2024-01-01, 10:30, 1e]}}"
    )
    assert state(text).sources.insecure == ("2024-01-01", "10:30", "1e")


def test_of_two_objects_with_one_name_the_later_one_counts() -> None:
    later = {**SET, "spec": {"imageDigestMirrors": []}}
    assert state(yaml.safe_dump(SET), yaml.safe_dump(later)).digest == ((),)


def test_container_images_of_the_image_api_are_other_things() -> None:
    other = {"apiVersion": "image.openshift.io/v1", "kind": "Image", "metadata": {"name": "sha256:ab"}}
    assert not read([("f", yaml.safe_dump(other))])


def test_every_kind_is_understood() -> None:
    digest = {**SET, "spec": {"imageDigestMirrors": [{"source": "a", "mirrorSourcePolicy": "NeverContactSource"}]}}
    tag = {**SET, "kind": "ImageTagMirrorSet", "spec": {"imageTagMirrors": [{"source": "b"}]}}
    old = {
        **SET,
        "apiVersion": "operator.openshift.io/v1alpha1",
        "kind": "ImageContentSourcePolicy",
        "spec": {"repositoryDigestMirrors": [{"source": "c", "mirrors": ["d"]}]},
    }
    version = {
        "apiVersion": "config.openshift.io/v1",
        "kind": "ClusterVersion",
        "metadata": {"name": "version"},
        "status": {"desired": {"image": "quay.io/r@sha256:" + "a" * 64}},
    }
    assert state(*map(yaml.safe_dump, (digest, tag, old, version, image(blockedRegistries=["e"])))) == Cluster(
        digest=((MirrorSet("a", (), Policy.NEVER),),),
        tag=((MirrorSet("b"),),),
        policies=((MirrorSet("c", ("d",)),),),
        sources=Sources(blocked=("e",)),
        release="quay.io/r@sha256:" + "a" * 64,
    )


def with_entry(**entry: Any) -> dict[str, Any]:
    return {**SET, "spec": {"imageDigestMirrors": [entry]}}


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ({**SET, "apiVersion": "config.openshift.io/v2"}, "apiVersion: no matches for kind"),
        ({**SET, "metadata": {}}, "metadata.name: Required value"),
        ({**SET, "metadata": None}, "metadata.name: Required value"),
        ({**SET, "metadata": {"name": "Upper"}}, "metadata.name: Invalid value"),
        ({**SET, "metadata": {"name": "a" * 254}}, "metadata.name: Invalid value"),
        ({**SET, "metadata": {"name": 1}}, "metadata.name: Invalid value"),
        ({key: SET[key] for key in ("apiVersion", "kind", "metadata")}, "spec: Required value"),
        ({**SET, "spec": None}, "spec: Required value"),
        ({**SET, "spec": []}, 'must be of type object: "array"'),
        ({**SET, "spec": {"imageDigestMirrors": {}}}, 'must be of type array: "object"'),
        (with_entry(mirrors=["a"]), "spec.imageDigestMirrors[0].source: Required value"),
        (with_entry(source=1), "spec.imageDigestMirrors[0].source: Invalid value: 1"),
        (with_entry(source="a/"), "in body should match"),
        (with_entry(source="a\n"), "in body should match"),
        (with_entry(source="a", mirrors=["b", "c", "b"]), 'mirrors[2]: Duplicate value: "b"'),
        (with_entry(source="a", mirrors=["*.b"]), "mirrors[0]: Invalid value"),
        (with_entry(source="a", mirrors={}), 'must be of type array: "object"'),
        (with_entry(source="a", mirrorSourcePolicy="Never"), 'Unsupported value: "Never"'),
        ({**image(), "metadata": {"name": "other"}}, "must be cluster"),
        (image(insecureRegistries=[""]), "should have at least 1 chars long"),
        (image(insecureRegistries=["a" * 257]), "Too long"),
        (image(insecureRegistries=["a"] * 1025), "Too long"),
        (image(blockedRegistries=["a:b"]), "each registry must be a valid hostname"),
        (image(blockedRegistries=[], allowedRegistries=[]), "Only one of"),
        (image(containerRuntimeSearchRegistries=[]), "should have at least 1 items"),
        (image(containerRuntimeSearchRegistries=["a", "a"]), "Duplicate value"),
        ({**image(), "spec": {"additionalTrustedCA": {}}}, "additionalTrustedCA.name: Required value"),
        ({**image(), "spec": {"imageStreamImportMode": "x"}}, "Unsupported value"),
    ],
)
def test_what_the_api_server_refuses(content: dict[str, Any], mistake: str) -> None:
    found = read([("f", json.dumps(content))])
    assert any(mistake in text for text in documents.refusals(found, {})), list(documents.refusals(found, {}))
    verdict = judge({}, found)
    assert not verdict.accepted
    assert "the API server refuses" in (verdict.reason or "")
    assert verdict.after == verdict.before


def test_null_is_absent() -> None:
    text = json.dumps(with_entry(source="quay.io", mirrors=None, mirrorSourcePolicy=None))
    assert list(documents.refusals(read([("f", text)]), {})) == []
    assert state(text) == Cluster(digest=((MirrorSet("quay.io"),),))


@pytest.mark.parametrize("kind", schema.KINDS.values(), ids=lambda kind: kind.name)
def test_the_smallest_object_of_each_kind_is_accepted(kind: schema.Kind) -> None:
    assert not [*schema.mistakes(kind, {"apiVersion": kind.api, "metadata": {"name": "cluster"}, "spec": {}})]


def test_what_the_cluster_has_is_not_refused_again() -> None:
    """Rules grow: an object that a cluster took long ago may break one that is younger."""
    old = read([("f", json.dumps(image(insecureRegistries=["a:b"])))])
    assert judge(old, old).accepted
    changed = read([("f", json.dumps(image(insecureRegistries=["a:b", "c"])))])
    assert not judge(old, changed).accepted


def test_an_object_that_no_cluster_can_hold_is_told() -> None:
    broken = read([("dump.yaml", json.dumps(with_entry(source="a", mirrors="b")))])
    with pytest.raises(Trouble) as caught:
        judge(broken, {})
    assert "mirrors" in caught.value.reason
    assert caught.value.where == "dump.yaml"


def test_notes_say_what_the_verdict_cannot() -> None:
    def notes(before: dict[str, Any] | None, *after: dict[str, Any]) -> str:
        def objects(*contents: dict[str, Any] | None) -> documents.Objects:
            return read([(str(i), json.dumps(c)) for i, c in enumerate(contents) if c])

        return "\n".join(judge(objects(before), objects(*after)).notes)

    never = with_entry(source="quay.io", mirrors=["quay.lan"], mirrorSourcePolicy="NeverContactSource")
    old = {
        "apiVersion": "operator.openshift.io/v1alpha1",
        "kind": "ImageContentSourcePolicy",
        "metadata": {"name": "old"},
        "spec": {"repositoryDigestMirrors": [{"source": "quay.io", "mirrors": ["quay.lan"]}]},
    }
    conflict = {"apiVersion": "v1", "kind": "List", "items": [old, never]}
    assert notes(None, SET) == ""
    assert "drops a key" in notes(None, with_entry(source="a", sourcePolicy="x"))
    assert "imageDigestMirrors[0].sourcePolicy" in notes(None, with_entry(source="a", sourcePolicy="x"))
    assert "4.13.27" in notes(None, SET, old)
    assert "refuses what is there before" in notes(conflict, SET)
    assert "release image" in notes(None, image(blockedRegistries=["a"]))
    assert "reboots" in notes(None, image(containerRuntimeSearchRegistries=["a"]))


def test_nodes_that_cannot_read_the_file_are_told() -> None:
    """Only clusters whose CRD is older than its rule for insecureRegistries take such an entry."""
    odd = read([("f", json.dumps(image(insecureRegistries=["https://a"])))])
    verdict = judge(odd, odd, ["nginx"])
    assert not verdict.accepted
    assert "nodes get the file and cannot read it" in (verdict.reason or "")
    assert 'location = "https://a"' in verdict.after
    assert verdict.resolve[0].tries == ()
