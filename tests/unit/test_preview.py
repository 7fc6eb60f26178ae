"""`mirror-agent preview` from its command line: files in, words and exit code out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror_agent import cli
from mirror_agent.openshift import conf
from schema import conforms

RECIPE = Path(__file__).parents[1] / "golden" / "recipe"
OURS = ("--settings", str(RECIPE / "agent.toml"), "--definitions", str(RECIPE / "definitions"))


def mirror_set(name: str, mirror: str, kind: str = "Digest", policy: str | None = None) -> dict[str, Any]:
    entry = {"source": "quay.io", "mirrors": [mirror], **({"mirrorSourcePolicy": policy} if policy else {})}
    return {
        "apiVersion": "config.openshift.io/v1",
        "kind": f"Image{kind}MirrorSet",
        "metadata": {"name": name},
        "spec": {f"image{kind}Mirrors": [entry]},
    }


class Run:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.error = ""

    def __call__(self, *arguments: str | Path) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["mirror-agent", "preview", *map(str, arguments)])
        code = cli.main()
        out, self.error = self.capsys.readouterr()
        return code, out

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        out = self("--json", *arguments)[1]
        found = json.loads(out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


def written(path: Path, *objects: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(objects))
    return path


def test_json_has_exactly_the_shape_that_was_promised(run: Run, tmp_path: Path) -> None:
    after = written(tmp_path / "a.yaml", mirror_set("a", "quay.lan"))
    digest = "quay.io/a@sha256:" + "a" * 64
    found = run.json("--after", after, "nginx", digest)
    conforms("preview", found)
    assert found == {
        "version": 1,
        "accepted": True,
        "reason": None,
        "cost": "reload",
        "before": conf.TEMPLATE,
        "after": found["after"],
        "resolve": [
            {
                "ref": "nginx",
                "normalized": "docker.io/library/nginx:latest",
                "tries": ["docker.io/library/nginx:latest"],
                "blocked": False,
            },
            {
                "ref": digest,
                "normalized": digest,
                "tries": [digest.replace("quay.io", "quay.lan"), digest],
                "blocked": False,
            },
        ],
    }
    assert 'location = "quay.lan"' in found["after"]


def test_default_after_is_the_cluster_with_our_mirrors(run: Run) -> None:
    found = run.json(*OURS, "quay.io/a:1")
    assert found["accepted"]
    assert found["cost"] == "drain"
    assert found["after"].partition("\n\n")[2] == (RECIPE / "node-registries.conf").read_text().partition("\n\n")[2]
    assert found["resolve"][0]["tries"] == ["quay.lan.example/a:1"]
    assert found["resolve"][0]["blocked"]


def test_objects_of_our_names_are_replaced_others_stay(run: Run, tmp_path: Path) -> None:
    adopted = mirror_set("image-digest-mirror", "old.lan")
    found = run.json("--before", written(tmp_path / "a.yaml", adopted), *OURS)
    assert found["accepted"]
    assert "old.lan" in found["before"]
    assert "old.lan" not in found["after"]

    foreign = mirror_set("foreign", "old.lan")
    code, _ = run("--before", written(tmp_path / "b.yaml", adopted, foreign), *OURS)
    assert code == 1  # its policy is another one
    found = run.json("--before", written(tmp_path / "b.yaml", adopted, foreign), *OURS)
    assert 'conflicting mirrorSourcePolicy is set for the same source "quay.io"' in found["reason"]
    assert found["cost"] == "none"
    assert found["after"] == found["before"]


def test_publishing_twice_changes_nothing_the_second_time(run: Run) -> None:
    found = run.json("--before", RECIPE / "publication", *OURS)
    assert found["cost"] == "none"
    assert found["before"] == found["after"]


def test_people_see_the_difference_the_price_and_the_places(run: Run, tmp_path: Path) -> None:
    before = written(tmp_path / "b.json", mirror_set("a", "quay.lan"))
    after = written(tmp_path / "a.yml", mirror_set("a", "quay.lan"), mirror_set("a", "[q].lan", "Tag"))
    after.write_text(after.read_text().replace("[q].lan", "tags.lan"))
    code, out = run("--before", before, "--after", after, "quay.io/a", "gcr.io/a:1")
    assert code == 0
    assert '+    location = "tags.lan"' in out
    assert '-    location = "quay.lan"' not in out
    assert "OpenShift accepts this." in out
    assert "drains every node" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["quay.io/a", "tags.lan/a:latest", "open"] in lines
    assert ["=", "quay.io/a:latest", "quay.io/a:latest"] in lines
    assert ["gcr.io/a:1", "gcr.io/a:1", "open"] in lines


def test_people_are_told_what_a_refusal_means(run: Run, tmp_path: Path) -> None:
    after = written(tmp_path / "a.yaml", mirror_set("a", "quay.lan"), mirror_set("b", "q", policy="NeverContactSource"))
    code, out = run("--after", after)
    assert code == 1
    assert "OpenShift refuses this: the machine-config-operator refuses it: conflicting" in out
    assert "only its log says so" in out


def test_a_folder_is_read_to_the_bottom(run: Run, tmp_path: Path) -> None:
    (tmp_path / "below" / "it").mkdir(parents=True)
    written(tmp_path / "below" / "it" / "set.yaml", mirror_set("a", "quay.lan"))
    (tmp_path / "notes.txt").write_text("kind: [")
    (tmp_path / ".hidden.yaml").write_text("kind: [")
    assert "quay.lan" in run.json("--after", tmp_path)["after"]


def test_standard_input_is_a_file_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(mirror_set("a", "quay.lan"))))
    found = run.json("--after", "-")
    assert "quay.lan" in found["after"]


def test_an_empty_folder_is_a_cluster_without_mirrors(run: Run, tmp_path: Path) -> None:
    before = written(tmp_path / "a.yaml", mirror_set("a", "quay.lan"))
    (tmp_path / "empty").mkdir()
    found = run.json("--before", before, "--after", tmp_path / "empty")
    assert found["after"] == conf.TEMPLATE
    assert found["cost"] == "drain"


@pytest.mark.parametrize("arguments", [["UPPER/case"], ["--after", "/nonexistent"], ["--nonsense"], ["quay.io/a:"]])
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    assert run(*OURS, *arguments)[0] == 2


def test_problems_are_1_and_told(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: [")
    assert run("--after", broken) == (1, "")
    assert f"{broken}: this is neither YAML nor JSON" in run.error
    broken.write_bytes(b"\xff\xfe\xff")
    assert run("--after", broken)[0] == 1
    assert "is not UTF-8" in run.error
    broken.write_text("kind: ConfigMap\n")
    assert run("--after", broken)[0] == 1
    assert "nothing in here says where images come from" in run.error
    assert run("--settings", tmp_path / "none.toml", "--definitions", tmp_path)[0] == 1
    assert "there are no settings" in run.error
    assert "--after" in run.error
