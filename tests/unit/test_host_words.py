"""What podman, quadlet and systemd say, turned into what a person or the loop needs."""

import pytest

from mirror_agent.host import containers, podman_events, quadlet, systemd


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/org/freedesktop/systemd1/unit/mirror_2dquay_2dedge_2eservice", "mirror-quay-edge.service"),
        ("/org/freedesktop/systemd1/unit/_31_2emount", "1.mount"),
        ("/org/freedesktop/systemd1/unit/a_5fb_2eservice", "a_b.service"),
    ],
)
def test_units_of_object_paths(path: str, name: str) -> None:
    assert systemd.unit_name(path) == name


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("pinging container registry docker.io: tls: failed to verify certificate: x509: unknown authority", "certs.d"),
        ("dial tcp: lookup docker.io: no such host", "resolve names"),
        ("toomanyrequests: You have reached your pull rate limit", "limits pulls"),
        ("reading manifest 9 in docker.io/library/nginx: manifest unknown", "agent.toml"),
        ("requested access to the resource is denied", "podman login"),
        ("dial tcp 10.0.0.1:443: connect: connection refused", "no way to the registry"),
        ("write /var/lib/containers: no space left on device", "podman system df"),
    ],
)
def test_hints_at_podmans_messages(message: str, advice: str) -> None:
    assert advice in containers.hint(message)


def test_an_unknown_message_has_no_hint() -> None:
    assert containers.hint("something new") == ""


def event(action: str, unit: str | None) -> dict[str, object]:
    return {"Action": action, "Actor": {"ID": "1", "Attributes": {"PODMAN_SYSTEMD_UNIT": unit} if unit else {}}}


def test_events_of_our_containers_are_hints() -> None:
    assert podman_events.hint(event("died", "mirror-quay-edge.service")) == "mirror-quay-edge.service died"
    assert podman_events.hint(event("exec", "mirror-quay-edge.service")) == ""
    assert podman_events.hint(event("died", "other.service")) == ""
    assert podman_events.hint(event("died", None)) == ""
    assert podman_events.hint({}) == ""


def test_units_of_quadlet_files() -> None:
    files = ("mirror-quay.pod", "mirror-quay-edge.container", "mirror-agent-1.network")
    assert [quadlet.service(file) for file in files] == [
        "mirror-quay-pod.service",
        "mirror-quay-edge.service",
        "mirror-agent-1-network.service",
    ]


def test_complaints_lose_the_noise_but_nothing_else() -> None:
    complaint = "converting \"a.container\": unsupported key 'X' in group 'Container' in {}a.container"
    said = (
        "quadlet-generator[77]: Loading source unit file /tmp/s/a.container\n"
        f"quadlet-generator[77]: {complaint.format('/tmp/s/')}\n"
    )
    assert quadlet.complaints(said, "/tmp/s") == [complaint.format("")]
