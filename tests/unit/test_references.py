"""References as people write them, and which mirror has them."""

from ipaddress import IPv4Address

import pytest

from mirror_agent.model import Mirror, Policy, Trouble
from mirror_agent.references import Wanted, listed, platforms, resolve

DIGEST = f"sha256:{'a' * 64}"


def mirror(name: str, *sources: str) -> Mirror:
    return Mirror(
        name, sources, f"https://{sources[0]}", f"{name}.lan", IPv4Address("10.0.0.4"), "", Policy.NEVER, None, 1, 60,
        None,
    )  # fmt: skip


MIRRORS = (
    mirror("docker", "docker.io", "registry-1.docker.io"),
    mirror("quay", "quay.io"),
    mirror("okd", "quay.io/okd"),
    mirror("lab", "registry.lab:5000/team"),
)


@pytest.mark.parametrize(
    ("text", "name", "repository", "reference"),
    [
        ("quay.io/podman/hello", "quay", "podman/hello", "latest"),
        ("quay.io/podman/hello:v1", "quay", "podman/hello", "v1"),
        ("docker://quay.io/podman/hello:v1", "quay", "podman/hello", "v1"),
        (f"quay.io/podman/hello@{DIGEST}", "quay", "podman/hello", DIGEST),
        (f"quay.io/podman/hello:v1@{DIGEST}", "quay", "podman/hello", DIGEST),
        ("docker.io/nginx:1.27", "docker", "library/nginx", "1.27"),
        ("index.docker.io/nginx", "docker", "library/nginx", "latest"),
        ("docker.io/bitnami/nginx", "docker", "bitnami/nginx", "latest"),
        ("registry-1.docker.io/nginx", "docker", "nginx", "latest"),
        ("quay.io/okd/app", "okd", "okd/app", "latest"),
        ("quay.io/okdx/app", "quay", "okdx/app", "latest"),
        ("registry.lab:5000/team/app:2", "lab", "team/app", "2"),
    ],
)
def test_a_reference_finds_its_mirror(text: str, name: str, repository: str, reference: str) -> None:
    assert resolve(text, MIRRORS) == Wanted(name, repository, reference, text)


@pytest.mark.parametrize(
    "text",
    ["nginx", "library/nginx", "", "quay.io", "quay.io/", "quay.io/UPPER", "quay.io/a:b:c", f"quay.io/a@{DIGEST}0",
     "quay.io/a/../b", "https://quay.io/a", "quay.io/a b", "quay.io/a@sha256:12"],
)  # fmt: skip
def test_what_is_no_reference_is_told(text: str) -> None:
    with pytest.raises(Trouble, match="is no image with its registry"):
        resolve(text, MIRRORS)


def test_a_manifest_by_sha512_is_told_to_be_none_that_is_kept() -> None:
    with pytest.raises(Trouble, match="names its manifest by sha512"):
        resolve(f"quay.io/a@sha512:{'a' * 128}", MIRRORS)


@pytest.mark.parametrize("text", ["gcr.io/a", "registry.lab:5000/other/a", "registry.lab/team/a"])
def test_what_no_mirror_has_is_told(text: str) -> None:
    with pytest.raises(Trouble, match="no mirror has it"):
        resolve(text, MIRRORS)


def test_a_list_has_one_image_a_line() -> None:
    assert list(listed("# all\n\nquay.io/a:1  # why\n  quay.io/b\r\n")) == ["quay.io/a:1", "quay.io/b"]


INDEX = [
    {"digest": "amd64", "platform": {"os": "linux", "architecture": "amd64"}},
    {"digest": "arm", "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
    {"digest": "arm64", "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
    {"digest": "attestation", "platform": {"os": "unknown", "architecture": "unknown"}},
    {"digest": "anywhere"},
    {"digest": 5, "platform": "?"},
    "nonsense",
]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (["linux/amd64"], ["amd64", "anywhere"]),
        (["linux/arm64"], ["arm64", "anywhere"]),
        (["linux/arm/v7"], ["arm", "anywhere"]),
        (["linux/arm/v6"], ["anywhere"]),
        (["linux/arm"], ["arm", "anywhere"]),
        (["linux/amd64", "linux/arm64"], ["amd64", "arm64", "anywhere"]),
        (["all"], ["amd64", "arm", "arm64", "attestation", "anywhere"]),
    ],
)
def test_platforms_are_chosen(chosen: list[str], found: list[str]) -> None:
    assert list(platforms(INDEX, chosen)) == found


def test_what_is_no_list_has_no_images() -> None:
    assert list(platforms({"a": 1}, ["all"])) == []
