"""Where nodes look for an image, and what an image reference is: containers/image's own answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_agent.openshift import BadReferenceError, conf, parse_reference, resolve
from mirror_agent.openshift.resolution import UnreadableError, loaded
from mirror_agent.openshift.values import BY_DIGEST, BY_TAG, Endpoint, Registry

DIGEST = f"@sha256:{'0123456789abcdef' * 4}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1", "docker.io/library/nginx:1"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),  # a tag
        ("host:5000/a", "host:5000/a:latest"),
        ("quay.io/a/b:1" + DIGEST, "quay.io/a/b" + DIGEST),
        ("UPPER.io/a", "UPPER.io/a:latest"),
        ("a__b/c--d/e.f", "docker.io/a__b/c--d/e.f:latest"),
        (f"quay.io/a@sha512:{'f' * 128}", f"quay.io/a@sha512:{'f' * 128}"),
    ],
)
def test_references_are_written_out_in_full(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full
    assert str(parse_reference(full)) == full


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid reference format"),
        ("quay.io/Upper", "must be lowercase"),
        ("quay.io/a:", "invalid reference format"),
        ("quay.io/a_", "invalid reference format"),
        ("quay.io/a___b", "invalid reference format"),
        ("https://quay.io/a", "invalid reference format"),
        ("quay.io/a@sha256:abc", "invalid reference format"),
        (f"quay.io/a@sha256:{'A' * 64}", "invalid checksum digest format"),
        (f"quay.io/a@md5:{'a' * 32}", "unsupported digest algorithm"),
        ("a" * 64, "cannot specify 64-byte hexadecimal strings"),
        (f"quay.io/{'a' * 250}", "not be more than 255 characters"),
        ("quay.io/a\n", "invalid reference format"),
    ],
)
def test_what_is_no_reference(text: str, reason: str) -> None:
    with pytest.raises(BadReferenceError) as caught:
        parse_reference(text)
    assert reason in str(caught.value)


@given(st.text(alphabet="a-_.:/@*A0", max_size=60))
def test_any_text_is_a_reference_or_is_not(text: str) -> None:
    try:
        full = str(parse_reference(text))
    except BadReferenceError:
        return
    assert str(parse_reference(full)) == full


def test_a_long_name_that_does_not_match_is_told_at_once() -> None:
    with pytest.raises(BadReferenceError):  # upstream's pattern as it is would take Python for ever
        parse_reference("quay.io/" + "a" * 200 + "!")


def tried(registries: list[Registry], ref: str) -> tuple[str, ...]:
    return resolve(conf.write(registries), ref).tries


def test_the_longest_prefix_counts_alone() -> None:
    registries = [
        Registry(location="quay.io", mirrors=(Endpoint("q.lan"),), blocked=True),
        Registry(location="quay.io/a", mirrors=(Endpoint("a.lan"),)),
    ]
    assert tried(registries, "quay.io/a/b:1") == ("a.lan/b:1", "quay.io/a/b:1")
    assert tried(registries, "quay.io/ab/c:1") == ("q.lan/ab/c:1",)


def test_of_a_wildcard_and_a_host_of_the_same_length_the_wildcard_counts() -> None:
    registries = [
        Registry(location="a.example.com", mirrors=(Endpoint("host.lan"),)),
        Registry(prefix="*.example.com", mirrors=(Endpoint("wild.lan"),)),
    ]
    assert tried(registries, "a.example.com/x:1")[0] == "wild.lan/x:1"
    assert tried(registries, "ab.example.com/x:1")[0] == "wild.lan/x:1"


@pytest.mark.parametrize(
    ("pull", "by_tag", "by_digest"),
    [("", True, True), ("all", True, True), (BY_DIGEST, False, True), (BY_TAG, True, False)],
)
def test_a_mirror_serves_the_pulls_that_it_is_for(pull: str, by_tag: bool, by_digest: bool) -> None:
    registries = [Registry(location="quay.io", mirrors=(Endpoint("m.lan", pull=pull),))]
    assert (len(tried(registries, "quay.io/a:1")) == 2) is by_tag
    assert (len(tried(registries, "quay.io/a" + DIGEST)) == 2) is by_digest


def test_mirrors_of_a_digest_only_registry_serve_digests() -> None:
    text = '[[registry]]\nlocation = "quay.io"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "m.lan"\n'
    assert resolve(text, "quay.io/a:1").tries == ("quay.io/a:1",)
    assert resolve(text, "quay.io/a" + DIGEST).tries == ("m.lan/a" + DIGEST, "quay.io/a" + DIGEST)


def test_blocked_mirrors_are_not_tried() -> None:
    registries = [
        Registry(location="quay.io", mirrors=(Endpoint("bad.lan/q"), Endpoint("good.lan"))),
        Registry(location="bad.lan", blocked=True),
    ]
    assert tried(registries, "quay.io/a:1") == ("good.lan/a:1", "quay.io/a:1")


def test_one_mirror_that_cannot_be_written_out_spoils_the_pull() -> None:
    found = resolve(conf.write([Registry(location="quay.io", mirrors=(Endpoint("cache"),))]), "quay.io/a:1")
    assert found.tries == ()
    assert found.reason == "repository name must be canonical"


@pytest.mark.parametrize(
    ("registries", "reason"),
    [
        ([Registry(location="https://quay.io")], "URI schemes are not supported"),
        ([Registry(location="q", mirrors=(Endpoint("http://m"),))], "URI schemes are not supported"),
        ([Registry(location="q", insecure=True), Registry(location="q/")], "conflicting 'insecure' setting"),
        ([Registry(location="q", blocked=True), Registry(location="q/")], "conflicting 'blocked' setting"),
        ([Registry()], "both location and prefix are unset"),
    ],
)
def test_files_that_nodes_cannot_read(registries: list[Registry], reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        loaded(registries)
    assert reason in str(caught.value)
    assert reason in resolve(conf.write(registries), "nginx").reason
