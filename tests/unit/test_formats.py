"""What holds for every format, then what is special about each."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import permutations
from typing import Any

import pytest
import yaml

from mirror_agent.formats import FORMATS, Format
from mirror_agent.model import Document, Mirror, Policy, Publication

CA = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUXw==\n-----END CERTIFICATE-----\n"
NEXT_CA = "-----BEGIN CERTIFICATE-----\nMIIBtDCCAVmgAwIBAgIUYA==\n-----END CERTIFICATE-----\n"


def mirror(name: str, *sources: str, address: str = "10.0.0.4", policy: Policy = Policy.NEVER) -> Mirror:
    return Mirror(
        name=name,
        sources=sources,
        remote=f"https://{sources[0]}",
        host=f"{name}.mirror.lan",
        address=IPv4Address(address),
        mac="02:00:0a:00:00:04",
        policy=policy,
        credentials=None,
        budget=2**30,
        fresh=60,
        probe=None,
    )


QUAY = mirror("quay", "quay.io")
DOCKER = mirror("docker", "docker.io", "registry-1.docker.io", address="10.0.0.15")
TEAM = mirror("team", "ghcr.io/team", address="10.0.0.6", policy=Policy.ALLOW)
PUBLICATION = Publication((QUAY, DOCKER, TEAM), CA)

every_format = pytest.mark.parametrize("render", FORMATS.values(), ids=FORMATS.keys())


def rendered(publication: Publication) -> dict[str, str]:
    return {d.name: d.content.decode() for render in FORMATS.values() for d in render(publication)}


def parsed(document: Document) -> object:
    """What a reader of this kind of file makes of it."""
    text = document.content.decode("ascii")
    if document.name.endswith(".yaml"):
        return list(yaml.safe_load_all(text))
    if document.name.endswith(".json"):
        return json.loads(text)
    if document.name.endswith((".toml", "agent.conf")):
        return tomllib.loads(text)
    if document.name.endswith(".pem"):
        return re.findall(r"-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]+\n)+-----END CERTIFICATE-----\n", text)
    return [line.split() for line in text.splitlines() if not line.startswith("#")]


class TestEveryFormat:
    @every_format
    def test_is_byte_stable_whatever_the_order_of_the_mirrors(self, render: Format) -> None:
        orders = [replace(PUBLICATION, mirrors=order) for order in permutations(PUBLICATION.mirrors)]
        assert len({render(publication) for publication in orders}) == 1

    @every_format
    def test_ends_with_one_newline_and_parses_back(self, render: Format) -> None:
        for document in render(PUBLICATION):
            assert document.content.endswith(b"\n")
            assert not document.content.endswith(b"\n\n")
            assert b"\t" not in document.content
            assert b"\r" not in document.content
            assert parsed(document)

    @every_format
    def test_tells_who_wrote_it_where_comments_are_allowed(self, render: Format) -> None:
        for document in render(PUBLICATION):
            if not document.name.endswith((".pem", ".json")):
                assert document.content.startswith(b"# Written by mirror-agent; edits here are lost.")

    @every_format
    def test_has_plain_names_of_its_own(self, render: Format) -> None:
        names = [document.name for document in render(PUBLICATION)]
        others = {d.name for other in FORMATS.values() if other is not render for d in other(PUBLICATION)}
        assert len(set(names)) == len(names)
        assert not others & set(names)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)?", name) for name in names)

    @every_format
    def test_no_mirrors_and_no_trust_give_nothing(self, render: Format) -> None:
        assert render(Publication((), "")) == ()

    @every_format
    def test_every_mirror_is_told_to_the_reader_or_none(self, render: Format) -> None:
        name = next(name for name, known in FORMATS.items() if known is render)
        able = {"docker": {DOCKER}, **{each: {QUAY, DOCKER} for each in ("containerd", "rancher", "talos")}}
        text = "".join(document.content.decode() for document in render(PUBLICATION))
        told = {mirror for mirror in PUBLICATION.mirrors if mirror.host in text}
        assert told in ([able[name]] if name in able else [set(), set(PUBLICATION.mirrors)])


def test_trust_is_told_before_any_mirror() -> None:
    assert next(iter(rendered(PUBLICATION))) == "ca-bundle.pem"


def test_no_mirrors_publish_the_trust_alone() -> None:
    assert rendered(Publication((), CA)) == {"ca-bundle.pem": CA}


class TestOpenShift:
    @staticmethod
    def sets(*mirrors: Mirror) -> tuple[Any, Any]:
        texts = rendered(Publication(mirrors, CA))
        return yaml.safe_load(texts["image-digest-mirror-set.yaml"]), yaml.safe_load(texts["image-tag-mirror-set.yaml"])

    def test_the_digest_set_is_the_installers_own_object(self) -> None:
        digest, _ = self.sets(QUAY)
        assert digest == {
            "apiVersion": "config.openshift.io/v1",
            "kind": "ImageDigestMirrorSet",
            "metadata": {"name": "image-digest-mirror"},
            "spec": {
                "imageDigestMirrors": [
                    {"source": "quay.io", "mirrors": ["quay.mirror.lan"], "mirrorSourcePolicy": "NeverContactSource"}
                ]
            },
        }

    def test_both_sets_have_the_same_entries(self) -> None:
        digest, tag = self.sets(TEAM, QUAY, DOCKER)
        assert digest["spec"]["imageDigestMirrors"] == tag["spec"]["imageTagMirrors"]
        assert (tag["kind"], tag["metadata"]["name"]) == ("ImageTagMirrorSet", "image-tag-mirror")

    def test_one_entry_per_source_in_order_with_its_policy(self) -> None:
        digest, _ = self.sets(TEAM, QUAY, DOCKER)
        assert [(e["source"], e["mirrors"], e["mirrorSourcePolicy"]) for e in digest["spec"]["imageDigestMirrors"]] == [
            ("docker.io", ["docker.mirror.lan"], "NeverContactSource"),
            ("ghcr.io/team", ["team.mirror.lan/team"], "AllowContactingSource"),
            ("quay.io", ["quay.mirror.lan"], "NeverContactSource"),
            ("registry-1.docker.io", ["docker.mirror.lan"], "NeverContactSource"),
        ]

    def test_a_long_name_stays_on_its_line(self) -> None:
        label = "a" * 60
        long = replace(QUAY, host=f"{label}.{label}.{label}.mirror.lan")
        assert f"    - {long.host}\n" in rendered(Publication((long,), CA))["image-digest-mirror-set.yaml"]


class TestInstallConfig:
    def test_has_no_policy_which_older_installers_do_not_know(self) -> None:
        content = yaml.safe_load(rendered(PUBLICATION)["install-config.fragment.yaml"])
        assert [set(entry) for entry in content["imageDigestSources"]] == [{"source", "mirrors"}] * 4

    @pytest.mark.parametrize("trust", [CA, CA + NEXT_CA], ids=["one CA", "roll-over"])
    def test_the_bundle_is_the_pem_to_the_byte_and_the_end_of_the_file(self, trust: str) -> None:
        text = rendered(replace(PUBLICATION, trust=trust))["install-config.fragment.yaml"]
        assert yaml.safe_load(text)["additionalTrustBundle"] == trust
        assert text.endswith("additionalTrustBundle: |\n" + "".join(f"  {line}\n" for line in trust.splitlines()))

    def test_pasted_above_other_keys_it_is_still_the_pem(self) -> None:
        text = rendered(PUBLICATION)["install-config.fragment.yaml"] + "\n\nplatform:\n  none: {}\n"
        assert yaml.safe_load(text)["additionalTrustBundle"] == CA


class TestAgentInstaller:
    @staticmethod
    def sources(*mirrors: Mirror) -> dict[str, str]:
        content = yaml.safe_load(rendered(Publication(mirrors, CA))["agent-install-config.fragment.yaml"])
        return {entry["source"]: entry["mirrors"][0] for entry in content["imageDigestSources"]}

    def test_names_the_repositories_of_release_payloads_in_full(self) -> None:
        assert self.sources(QUAY, DOCKER) == {
            "docker.io": "docker.mirror.lan",
            "quay.io": "quay.mirror.lan",
            "quay.io/okd/scos-content": "quay.mirror.lan/okd/scos-content",
            "quay.io/okd/scos-release": "quay.mirror.lan/okd/scos-release",
            "quay.io/openshift-release-dev/ocp-release": "quay.mirror.lan/openshift-release-dev/ocp-release",
            "quay.io/openshift-release-dev/ocp-v4.0-art-dev": "quay.mirror.lan/openshift-release-dev/ocp-v4.0-art-dev",
            "quay.io/openshift/okd": "quay.mirror.lan/openshift/okd",
            "quay.io/openshift/okd-content": "quay.mirror.lan/openshift/okd-content",
            "registry-1.docker.io": "docker.mirror.lan",
        }

    def test_at_the_mirror_of_the_most_specific_source(self) -> None:
        okd = mirror("okd", "quay.io/okd/scos-release", "quay.io/okd", address="10.0.0.7")
        assert {source: place for source, place in self.sources(QUAY, okd).items() if "/okd/" in source} == {
            "quay.io/okd/scos-content": "okd.mirror.lan/okd/scos-content",
            "quay.io/okd/scos-release": "okd.mirror.lan/okd/scos-release",
        }

    def test_without_a_mirror_for_quay_it_is_the_same_as_for_other_installers(self) -> None:
        assert self.sources(TEAM) == {"ghcr.io/team": "team.mirror.lan/team"}


class TestTrustOfClusters:
    def test_each_mirror_has_a_key_in_the_config_map_of_additional_trusted_ca(self) -> None:
        content = yaml.safe_load(rendered(replace(PUBLICATION, trust=CA + NEXT_CA))["additional-trusted-ca.yaml"])
        assert content["metadata"] == {"name": "mirror-agent-ca", "namespace": "openshift-config"}
        assert content["data"] == dict.fromkeys(
            ["docker.mirror.lan", "quay.mirror.lan", "team.mirror.lan"], CA + NEXT_CA
        )

    def test_the_users_bundle_is_bare_pem_and_fits_any_namespace(self) -> None:
        content = yaml.safe_load(rendered(PUBLICATION)["user-ca-bundle.yaml"])
        assert (content["metadata"], content["data"]) == ({"name": "user-ca-bundle"}, {"ca-bundle.crt": CA})

    def test_there_is_none_where_readers_trust_the_mirrors_already(self) -> None:
        texts = rendered(Publication((QUAY,), ""))
        assert not {"additional-trusted-ca.yaml", "user-ca-bundle.yaml"} & texts.keys()


def test_a_hosted_cluster_is_told_of_sources_and_trust() -> None:
    assert yaml.safe_load(rendered(Publication((QUAY, TEAM), CA))["hypershift/hosted-cluster.patch.yaml"]) == {
        "spec": {
            "imageContentSources": [
                {"source": "ghcr.io/team", "mirrors": ["team.mirror.lan/team"]},
                {"source": "quay.io", "mirrors": ["quay.mirror.lan"]},
            ],
            "additionalTrustBundle": {"name": "user-ca-bundle"},
        }
    }


class TestRegistriesConf:
    def test_is_what_nodes_have(self) -> None:
        text = rendered(Publication((QUAY, TEAM), CA))["registries.conf.d/50-mirror-agent.conf"]
        assert text.partition("\n\n")[2] == (
            "[[registry]]\n"
            '  prefix = ""\n'
            '  location = "ghcr.io/team"\n'
            "\n"
            "  [[registry.mirror]]\n"
            '    location = "team.mirror.lan/team"\n'
            '    pull-from-mirror = "digest-only"\n'
            "\n"
            "  [[registry.mirror]]\n"
            '    location = "team.mirror.lan/team"\n'
            '    pull-from-mirror = "tag-only"\n'
            "\n"
            "[[registry]]\n"
            '  prefix = ""\n'
            '  location = "quay.io"\n'
            "  blocked = true\n"
            "\n"
            "  [[registry.mirror]]\n"
            '    location = "quay.mirror.lan"\n'
            '    pull-from-mirror = "digest-only"\n'
            "\n"
            "  [[registry.mirror]]\n"
            '    location = "quay.mirror.lan"\n'
            '    pull-from-mirror = "tag-only"\n'
        )

    def test_sets_nothing_global_since_that_would_replace_the_hosts_own(self) -> None:
        content = tomllib.loads(rendered(PUBLICATION)["registries.conf.d/50-mirror-agent.conf"])
        assert set(content) == {"registry"}


def test_hosts_are_aligned_and_in_the_order_of_their_addresses() -> None:
    lines = rendered(PUBLICATION)["hosts"].splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "10.0.0.4   quay.mirror.lan",
        "10.0.0.6   team.mirror.lan",
        "10.0.0.15  docker.mirror.lan",
    ]


def test_the_bundle_is_bare_pem() -> None:
    assert rendered(replace(PUBLICATION, trust=CA + NEXT_CA))["ca-bundle.pem"] == CA + NEXT_CA


class TestContainerd:
    def test_never_puts_the_mirror_in_the_place_of_the_source(self) -> None:
        assert tomllib.loads(rendered(PUBLICATION)["containerd/quay.io.toml"]) == {
            "server": "https://quay.mirror.lan",
            "capabilities": ["pull", "resolve"],
            "ca": "/etc/containerd/certs.d/mirror-agent-ca.pem",
            "host": {},  # containerd up to 1.7 refuses a file without
        }

    def test_allow_leaves_the_source_as_the_last_way(self) -> None:
        allowed = replace(QUAY, policy=Policy.ALLOW)
        assert tomllib.loads(rendered(Publication((allowed,), ""))["containerd/quay.io.toml"]) == {
            "host": {"https://quay.mirror.lan": {"capabilities": ["pull", "resolve"]}}
        }

    def test_a_port_is_written_as_containerd_names_folders(self) -> None:
        port = replace(QUAY, sources=("registry.corp:5000",))
        assert "containerd/registry.corp_5000_.toml" in rendered(Publication((port,), CA))


def test_rancher_has_the_registries_and_the_trust_of_their_mirrors() -> None:
    assert yaml.safe_load(rendered(Publication((DOCKER, TEAM), CA))["rancher/registries.yaml"]) == {
        "mirrors": {
            "docker.io": {"endpoint": ["https://docker.mirror.lan"]},
            "registry-1.docker.io": {"endpoint": ["https://docker.mirror.lan"]},
        },
        "configs": {"docker.mirror.lan": {"tls": {"ca_file": "/etc/rancher/mirror-agent-ca.pem"}}},
    }


def test_docker_is_told_of_docker_hub_alone() -> None:
    assert json.loads(rendered(PUBLICATION)["docker/daemon.json"]) == {
        "registry-mirrors": ["https://docker.mirror.lan"]
    }
    assert "docker/daemon.json" not in rendered(Publication((QUAY, TEAM), CA))


def test_talos_has_a_document_for_each_registry_and_each_mirror() -> None:
    assert list(yaml.safe_load_all(rendered(Publication((QUAY, TEAM), CA))["talos/registries.yaml"])) == [
        {
            "apiVersion": "v1alpha1",
            "kind": "RegistryMirrorConfig",
            "name": "quay.io",
            "endpoints": [{"url": "https://quay.mirror.lan"}],
            "skipFallback": True,
        },
        {"apiVersion": "v1alpha1", "kind": "RegistryTLSConfig", "name": "quay.mirror.lan", "ca": CA},
    ]


def test_dnsmasq_has_a_record_for_each_mirror() -> None:
    text = rendered(Publication((DOCKER, TEAM), CA))["dnsmasq.conf"]
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "host-record=team.mirror.lan,10.0.0.6",
        "host-record=docker.mirror.lan,10.0.0.15",
    ]
