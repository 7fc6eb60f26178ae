"""`mirror-agent preview` without --before: what the change does to the very cluster that the agent tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control_plane import ControlPlane
from cluster.story import IDMS, IMAGE, ITMS, NEVER, entries, entry, idms
from cluster.test_cluster_round import KUBECONFIG
from mirror_agent import cli
from mirror_agent import cluster as rules
from mirror_agent.commands.wanted import find_paths, read_files
from mirror_agent.model import ClusterSettings, Publication
from mirror_agent.openshift import conf
from mirror_agent.targets import cluster as target

RECIPE = Path(__file__).parents[1] / "golden/recipe"
type Preview = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(settings: ClusterSettings, tmp_path: Path) -> Iterator[Path]:
    """agent.toml and definitions of the recipe, and a cluster in it."""
    KUBECONFIG.parent.mkdir(exist_ok=True)
    KUBECONFIG.write_text(settings.kubeconfig.read_text())
    toml = tmp_path / "agent.toml"
    text = (RECIPE / "agent.toml").read_text().split("[publish")[0]
    toml.write_text(f'{text}\n[publish.cluster]\nkubeconfig = "{KUBECONFIG}"\nname = "lab"\n')
    yield toml
    KUBECONFIG.unlink(missing_ok=True)


@pytest.fixture
def preview(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Preview:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        target._session.cache_clear()
        where = ("--settings", files, "--definitions", RECIPE / "definitions")
        monkeypatch.setattr(sys, "argv", ["mirror-agent", "preview", *map(str, (*where, *arguments))])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def found(answer: tuple[int, str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(answer[1])
    return shown


def ours(files: Path) -> tuple[Publication, ClusterSettings]:
    wanted = read_files(find_paths(files, RECIPE / "definitions"))
    assert wanted.desired
    assert wanted.desired.settings.publish.cluster
    return Publication(wanted.desired.mirrors, ""), wanted.desired.settings.publish.cluster


def test_before_is_the_cluster_as_it_is(cluster: ControlPlane, preview: Preview, tmp_path: Path) -> None:
    idms(cluster, "theirs", entry("example.com", "elsewhere.lan"))
    image = cluster.get(IMAGE)
    image["spec"]["registrySources"] = {"blockedRegistries": ["bad.example"]}
    cluster.call("PUT", IMAGE, image)
    after = tmp_path / "after"
    after.mkdir()
    shown = found(preview("--json", "--after", after))
    assert 'location = "elsewhere.lan"' in shown["before"]
    assert 'location = "bad.example"' in shown["before"]
    assert shown["after"] == conf.TEMPLATE
    assert shown["cost"] == "drain"


def test_after_is_what_the_agent_then_makes_of_it(cluster: ControlPlane, files: Path, preview: Preview) -> None:
    idms(cluster, "theirs", entry("example.com", "elsewhere.lan"))
    code, text, _ = preview("--json", "quay.io/podman/hello:1")
    shown = json.loads(text)
    assert code == 0
    assert shown["accepted"]
    assert shown["cost"] == "drain"
    assert shown["resolve"][0]["tries"] == ["quay.lan.example/podman/hello:1"]
    assert "the agent: held back: it drains every node" in preview()[1]  # its default

    publication, settings = ours(files)
    outcome = rules.compare(publication, settings, target.read(settings))
    assert outcome.cost.value == shown["cost"]
    target.publish(settings, outcome.mirrors, lambda: None)
    assert entries(cluster, f"{IDMS}/mirror-agent-lab")
    assert entries(cluster, f"{ITMS}/mirror-agent-lab")
    again = found(preview("--json"))
    assert again["before"] == again["after"] == shown["after"]
    assert again["cost"] == "none"


def test_a_conflict_is_told_with_the_way_out(cluster: ControlPlane, files: Path, preview: Preview) -> None:
    idms(cluster, "image-digest-mirror", entry("quay.io", "quay.lan.example"))
    code, text, _ = preview()
    assert code == 1
    assert "OpenShift refuses this" in text
    assert 'adopt = ["image-digest-mirror"]' in text
    files.write_text(files.read_text() + 'adopt = ["image-digest-mirror"]\n')
    shown = found(preview("--json"))
    assert shown["accepted"]
    assert shown["after"].count('prefix = "quay.io"') + shown["after"].count('location = "quay.io"') > 0


def test_what_the_agent_alone_refuses_is_refused(cluster: ControlPlane, preview: Preview) -> None:
    idms(cluster, "theirs", entry("quay.lan.example", "elsewhere.lan", policy=NEVER))
    code, text, _ = preview("--json", "quay.io/a:1")
    shown = json.loads(text)
    assert code == 1
    assert not shown["accepted"]
    assert "the agent does not apply it: quay.lan.example is itself under quay.lan.example" in shown["reason"]
    assert (shown["cost"], shown["after"]) == ("none", shown["before"])


def test_a_file_takes_the_place_of_the_cluster(cluster: ControlPlane, preview: Preview, tmp_path: Path) -> None:
    idms(cluster, "theirs", entry("example.com", "elsewhere.lan"))
    before = tmp_path / "before.yaml"
    body = {"apiVersion": "config.openshift.io/v1", "kind": "ImageDigestMirrorSet", "metadata": {"name": "a"}}
    spec = {"imageDigestMirrors": [entry("example.org", "b.lan")]}
    before.write_text(yaml.safe_dump({**body, "spec": spec}))
    KUBECONFIG.unlink()  # it is not asked
    shown = found(preview("--json", "--before", before))
    assert "b.lan" in shown["before"]
    assert "elsewhere.lan" not in shown["before"]
    assert "quay.lan.example" in shown["after"]


def test_a_cluster_that_cannot_be_asked_is_an_error_with_a_way_out(
    cluster: ControlPlane, preview: Preview, tmp_path: Path
) -> None:
    after = tmp_path / "after"
    after.mkdir()
    KUBECONFIG.write_text(cluster.kubeconfig("ended"))
    for arguments in ((), ("--after", after), ("--json",)):
        code, text, error = preview(*arguments)
        assert (code, text) == (1, "")
        assert "the credentials are not accepted" in error
        assert "--before" in error
    cluster.stop()
    try:
        code, text, error = preview()
        assert (code, text) == (1, "")
        assert "cannot be reached: Connection refused" in error
        assert "--before" in error
    finally:
        cluster.start()


def test_wrong_settings_are_told_and_none_are_no_cluster(
    files: Path, preview: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after = tmp_path / "after"
    after.mkdir()
    files.write_text("nonsense = 1\n")
    code, text, error = preview("--after", after)
    assert (code, text) == (1, "")
    assert "whether there is a cluster to ask is not known" in error
    monkeypatch.setattr(sys, "argv", ["mirror-agent", "preview", "--json", "--after", str(after)])
    assert cli.main() == 0  # a machine without an agent
    assert json.loads(capsys.readouterr()[0])["before"] == conf.TEMPLATE
