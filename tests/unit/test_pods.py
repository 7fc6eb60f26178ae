"""pods.py: what is written to a host, and that no value can write more than its own words."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path, PurePosixPath

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mirror_agent import pods
from mirror_agent.model import (
    CacheSettings,
    File,
    ImageSettings,
    Mirror,
    NetworkSettings,
    Paths,
    Pod,
    Policy,
    Role,
    Settings,
    Trouble,
)

TEMPLATES = pods.load_templates(Path(__file__).parents[2] / "quadlets")
LAN = NetworkSettings(
    "lan0", IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.1"), IPv4Address("10.0.0.4"), IPv4Address("10.0.0.60")
)
SETTINGS = Settings("mirror.lan", LAN)
QUAY = Mirror(
    name="quay",
    sources=("quay.io",),
    remote="https://quay.io",
    host="quay.mirror.lan",
    address=IPv4Address("10.0.0.4"),
    mac="02:00:0a:00:00:04",
    policy=Policy.NEVER,
    credentials=None,
    budget=2**30,
    fresh=60,
    probe=None,
)
PODMAN = (5, 4)


def render(mirror: Mirror = QUAY, settings: Settings = SETTINGS, version: tuple[int, int] = PODMAN) -> Pod:
    network = pods.render_network(settings, TEMPLATES, Paths(), version)
    return pods.render_pod(mirror, settings, network, Paths(), TEMPLATES, version)


def text(files: tuple[File, ...], name: str) -> str:
    return next(file.content for file in files if file.path.name == name).decode()


def nginx_conf(mirror: Mirror) -> str:
    return text(render(mirror).configs, "nginx.conf")


def values(files: tuple[File, ...], name: str, key: str) -> list[str]:
    return [value for _, found, value in pods.parse_unit(text(files, name)) if found == key]


def label(pod: Pod, role: Role, key: str) -> str:
    labels = values(pod.units, f"mirror-quay-{role}.container", "Label")
    return dict(item.split("=", 1) for item in labels)[f"io.mirror-agent.{key}"]


def test_files_and_units_have_the_names_that_quadlet_turns_into_services() -> None:
    pod = render()
    assert [file.path.name for file in pod.units] == [
        "mirror-quay.pod",
        "mirror-quay-edge.container",
        "mirror-quay-registry.container",
    ]
    assert {file.path.parent for file in pod.units} == {Paths().units}
    assert pods.pod_service("quay") == "mirror-quay-pod.service"
    assert pods.container_service("quay", Role.EDGE) == "mirror-quay-edge.service"
    network = pods.render_network(SETTINGS, TEMPLATES, Paths(), PODMAN)
    assert network.unit.path.name == f"{network.name}.network"
    assert values(pod.units, "mirror-quay.pod", "Network") == [f"{network.name}.network"]


def test_a_pod_has_its_fixed_address_and_mac() -> None:
    arguments = values(render().units, "mirror-quay.pod", "PodmanArgs")
    assert "--ip=10.0.0.4" in arguments
    assert "--mac-address=02:00:0a:00:00:04" in arguments
    assert "--exit-policy=continue" in arguments
    assert not [argument for argument in arguments if argument.startswith("--dns=")]


def test_name_servers_of_the_settings_reach_the_pod() -> None:
    lan = dataclasses.replace(LAN, dns=(IPv4Address("10.0.0.1"), IPv4Address("9.9.9.9")))
    arguments = values(
        render(settings=dataclasses.replace(SETTINGS, network=lan)).units, "mirror-quay.pod", "PodmanArgs"
    )
    assert [a for a in arguments if a.startswith("--dns=")] == ["--dns=10.0.0.1", "--dns=9.9.9.9"]


@pytest.mark.parametrize("role", Role)
def test_containers_are_locked_down(role: Role) -> None:
    entries = pods.parse_unit(text(render().units, f"mirror-quay-{role}.container"))
    for entry in (
        ("Container", "ReadOnly", "true"),
        ("Container", "DropCapability", "all"),
        ("Container", "NoNewPrivileges", "true"),
        ("Container", "Pull", "never"),
        ("Container", "User", {"edge": "101", "registry": "65532"}[role]),
        ("Service", "Restart", "always"),
        ("Unit", "StartLimitIntervalSec", "0"),
    ):
        assert entry in entries
    assert ("Service", "SuccessExitStatus", "1") not in entries  # it would hide that a start failed


def test_only_the_two_caches_are_writable() -> None:
    units = render().units
    volumes = [
        volume
        for role in Role
        for volume in values(units, f"mirror-quay-{role}.container", "Volume")
        if ":rw" in volume
    ]
    assert volumes == [
        "/var/lib/mirror-agent/cache/quay/edge:/var/cache/edge:rw,z",
        "/var/lib/mirror-agent/cache/quay/registry:/var/lib/registry:rw,z",
    ]


def test_selinux_labels_every_mounted_folder_and_only_caches_for_all_containers() -> None:
    units = render().units
    for role in Role:
        for volume in values(units, f"mirror-quay-{role}.container", "Volume"):
            assert volume.split(",")[-1] == ("z" if volume.startswith("/var/lib/mirror-agent/cache/") else "Z"), volume


def test_every_mounted_folder_is_in_the_list_of_folders() -> None:
    pod = render()
    folders = {str(folder.path): folder for folder in pod.folders}
    for role in Role:
        for volume in values(pod.units, f"mirror-quay-{role}.container", "Volume"):
            assert volume.split(":")[0] in folders
    assert folders["/var/lib/mirror-agent/mirrors/quay/tls"].owner == pods.EDGE_ID
    assert folders["/var/lib/mirror-agent/mirrors/quay/tls"].mode == 0o700
    assert folders["/var/lib/mirror-agent/cache/quay"].mode == 0o700


def test_the_registry_never_purges_and_never_asks_at_start() -> None:
    config = yaml.safe_load(text(render().configs, "config.yml"))
    assert config["proxy"]["remoteurl"] == "https://quay.io"
    assert config["proxy"]["ttl"] == "0s"
    assert config["proxy"]["exec"]["command"] == "/etc/distribution/credentials"
    assert "cache" not in config["storage"]
    assert "redirect" not in config["storage"]
    assert config["http"]["addr"] == "127.0.0.1:5000"
    helper = next(file for file in render().configs if file.path.name == "credentials")
    assert helper.mode == 0o755


def test_the_edge_answers_with_the_hash_of_its_configuration() -> None:
    pod = render()
    assert f'return 200 "{pod.edge_config}"' in text(pod.configs, "nginx.conf")


@pytest.mark.parametrize(("fresh", "written"), [(60, "200 59s;"), (300, "200 299s;"), (1, "200 1s;")])
def test_fresh_reaches_the_edge(fresh: int, written: str) -> None:
    """Never later than said, as nginx counts; 0 would mean: do not store, so there would be nothing stale to serve."""
    assert f"proxy_cache_valid {written}" in text(render(dataclasses.replace(QUAY, fresh=fresh)).configs, "nginx.conf")


def test_a_mirror_that_says_nothing_of_its_way_out_has_nothing_of_it() -> None:
    """So one that is added later restarts no other mirror."""
    pod = render()
    units = "".join(file.content.decode() for file in pod.units)
    assert not re.search(r"SSL_CERT|_PROXY|\btc\b", units)
    assert {file.path.name for file in pod.configs} == {"nginx.conf", "config.yml", "credentials"}


def test_the_host_s_proxy_variables_reach_no_container() -> None:
    for unit in ("mirror-quay-edge.container", "mirror-quay-registry.container"):
        assert "--http-proxy=false" in values(render().units, unit, "PodmanArgs")


def test_the_way_out_reaches_the_units() -> None:
    mirror = dataclasses.replace(QUAY, ca=Path("/x"), proxy="http://proxy.lan:3128", bandwidth=4 * 10**6)
    units = render(mirror).units
    environment = dict(e.split("=", 1) for e in values(units, "mirror-quay-registry.container", "Environment"))
    # the image's own folder stays: its bundle is in it
    assert environment["SSL_CERT_DIR"].split(":") == ["/etc/ssl/certs", "/etc/distribution"]
    assert environment["HTTPS_PROXY"] == environment["HTTP_PROXY"] == "http://proxy.lan:3128"
    (shape,) = values(units, "mirror-quay.pod", "ExecStartPost")
    assert " rate 4000000bps burst 1000000 cburst 1000000 " in shape


# --- identities: what changes restarts exactly what it must


def hashes(pod: Pod) -> tuple[str, str, str, str]:
    by_role = dict(pod.container_hashes)
    return pod.pod_hash, by_role[Role.EDGE], by_role[Role.REGISTRY], pod.edge_config


def test_the_labels_are_the_hashes() -> None:
    pod = render()
    for role, digest in pod.container_hashes:
        assert label(pod, role, "unit") == digest
        assert label(pod, role, "pod") == pod.pod_hash
        assert label(pod, role, "mirror") == "quay"
        assert label(pod, role, "role") == role


def test_rendering_again_changes_nothing() -> None:
    assert render() == render()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"fresh": 120}, "...c"),
        ({"remote": "https://mirror.example"}, "..r."),
        ({"address": IPv4Address("10.0.0.9")}, "per."),
        ({"proxy": "http://proxy.lan:3128"}, "..r."),
        ({"bandwidth": 10**7}, "per."),
        ({"policy": Policy.ALLOW}, "...."),
        ({"budget": 1}, "...."),
        ({"host": "other.lan"}, "...."),
        ({"sources": ("quay.io", "other.io")}, "...."),
    ],
)
def test_a_change_touches_only_what_depends_on_it(change: dict[str, object], differs: str) -> None:
    before, after = hashes(render()), hashes(render(dataclasses.replace(QUAY, **change)))  # type: ignore[arg-type]
    assert "".join("." if a == b else mark for a, b, mark in zip(before, after, "perc", strict=True)) == differs


def test_another_image_touches_only_its_container() -> None:
    images = ImageSettings(edge="localhost/nginx:new")
    before, after = hashes(render()), hashes(render(settings=dataclasses.replace(SETTINGS, images=images)))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_a_newer_podman_restarts_nothing() -> None:
    old, new = render(version=(5, 0)), render(version=(5, 4))
    assert hashes(old) == hashes(new)
    assert values(old.units, "mirror-quay.pod", "DefaultDependencies") == []
    assert values(new.units, "mirror-quay.pod", "DefaultDependencies") == ["false"]
    networks = [pods.render_network(SETTINGS, TEMPLATES, Paths(), version) for version in ((5, 0), (5, 4))]
    assert networks[0].name == networks[1].name


def test_another_parent_is_another_network() -> None:
    other = dataclasses.replace(SETTINGS, network=dataclasses.replace(LAN, parent="br-lan"))
    names = {pods.render_network(settings, TEMPLATES, Paths(), PODMAN).name for settings in (SETTINGS, other)}
    assert len(names) == 2


def test_a_podman_without_pods_is_refused() -> None:
    with pytest.raises(Trouble, match=r"5\.0 or later"):
        render(version=(4, 9))


# --- injection

EVIL = ("\n", "\r", "\0", "\\", "%", "$", '"', "'", "`", ";", " ", "\t", "{", "}", "*", "\u2028", "é", "..")


@pytest.mark.parametrize(
    ("field", "evil"),
    [(field, evil) for field in ("name", "mac", "proxy") for evil in EVIL]
    # two dots mean nothing in a description or a URL
    + [(field, evil) for field in ("sources", "remote") for evil in EVIL if evil != ".."],
)
def test_a_value_with_another_meaning_is_refused(field: str, evil: str) -> None:
    mirror = dataclasses.replace(QUAY, proxy="http://proxy.lan:3128")
    good = mirror.sources[0] if field == "sources" else str(getattr(mirror, field))
    for bad in (good + evil, good[:3] + evil + good[3:], evil + good):
        value: object = (bad,) if field == "sources" else bad
        with pytest.raises(Trouble):
            render(dataclasses.replace(QUAY, **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("evil", EVIL)
def test_settings_with_another_meaning_are_refused(evil: str) -> None:
    broken = (
        dataclasses.replace(SETTINGS, cache=CacheSettings(path=Path(f"/srv/{evil}/x"))),
        dataclasses.replace(SETTINGS, images=ImageSettings(edge=f"{evil}nginx")),
        dataclasses.replace(SETTINGS, network=dataclasses.replace(LAN, parent=f"e{evil}th0" if evil != ".." else "..")),
    )
    for settings in broken:
        with pytest.raises(Trouble):
            render(settings=settings)


@given(st.text())
def test_verify_finds_every_value_that_breaks_out(value: str) -> None:
    """Without the whitelist: either the unit reads back as it was meant, or it is refused."""
    template, meant = "[Unit]\nDescription={{ value }}!\n[Service]\nRestart=always\n", {"value": value}
    unit = jinja2.Environment(autoescape=False).from_string(template).render(meant)
    try:
        pods.verify(unit, template, meant)
    except Trouble:
        return
    assert pods.parse_unit(unit) == (("Unit", "Description", f"{value}!"), ("Service", "Restart", "always"))


@pytest.mark.parametrize("value", ["x\nPodmanArgs=--privileged", "x\n[Service]\nExecStartPre=/bin/evil", "x\\"])
def test_verify_names_what_broke_out(value: str) -> None:
    template = "[Pod]\nPodName={{ value }}\n[Service]\nRestart=always"
    with pytest.raises(Trouble, match=r"broken out|not clean"):
        pods.verify(template.replace("{{ value }}", value), template, {"value": value})


def test_a_template_with_an_unknown_word_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        pods.verify("[Pod]", "[Pod]\nPodName={{ unknown }}", {})


def test_paths_are_posix_on_every_machine() -> None:
    assert all(isinstance(file.path, PurePosixPath) for file in render().units)


@pytest.mark.parametrize(
    ("path", "denied"),
    [
        ("/v2/library/nginx/manifests/1.27", False),
        ("/v2/library/a/b/blobs/sha256:1", False),
        ("/v2/team/app/tags/list", False),
        ("/v2/team/app2/manifests/1", True),
        ("/v2/team/manifests/1", True),
        ("/v2/other/library/nginx/manifests/1", True),
        ("/v2/team/app/manifests/secret/manifests/1", True),  # a repository of that name, not a tag of team/app
        ("/v2/teamxapp/manifests/1", True),
        ("/v2/x.y/manifests/1", False),
        ("/v2/xzy/manifests/1", True),
        ("/v2/", False),
        ("/v2/anything/referrers/sha256:1", False),  # not found, whatever it is
    ],
)
def test_the_edge_denies_what_is_not_allowed(path: str, denied: bool) -> None:
    """The map as nginx reads it: the first expression that matches."""
    conf = nginx_conf(dataclasses.replace(QUAY, allow=("library/*", "team/app", "x.y")))
    body = re.search(r"map \$uri \$denied \{(.*?)\n    \}", conf, re.DOTALL)
    assert body
    rules = re.findall(r'"~(.*)" (\d);', body[1])
    assert next((value for pattern, value in rules if re.search(pattern, path)), "0") == str(int(denied))
    assert "if ($denied) { return 451; }" in conf


def test_without_an_allow_list_nothing_is_denied() -> None:
    assert "denied" not in nginx_conf(QUAY)


@pytest.mark.parametrize("glob", ['a"', "a;", "a b", "a\n", "A", "a$", ""])
def test_an_allow_list_cannot_break_out(glob: str) -> None:
    with pytest.raises(Trouble):
        nginx_conf(dataclasses.replace(QUAY, allow=(glob,)))
