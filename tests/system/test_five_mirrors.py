"""Five dropped files become five mirrors: what the node pulls, what it costs, what people see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance import FIVE, MB, PUBLISHED, STATE, UNITS, Appliance, in_order, parts, weight

APP = "demo/app"  # about 6 MB, on every upstream


@pytest.fixture(scope="module", autouse=True)
def alone(five: Appliance) -> None:
    """The node has no way to the internet: what it pulls, a mirror has served."""
    rules = "table ip alone { chain forward { type filter hook forward priority 0; ip saddr 10.0.0.100 drop; }; }"
    five.box.gw("nft", rules)


def test_the_journal_tells_the_story(five: Appliance) -> None:
    for name, source in FIVE.items():
        story = five.journal(f"MIRROR={name}")
        assert {line["UPSTREAM"] for line in story} == {source}
        in_order(
            story,
            {"ACTION": "read", "MESSAGE": f"{name}.toml"},
            {"ACTION": "claim-address", "MESSAGE": five.mirror(name)["address"]},
            {"ACTION": "issue-certificate"},
            {"ACTION": "write-units", "MESSAGE": f"mirror-{name}-edge.container"},
            {"ACTION": "start-units"},
            {"ACTION": "announce-address"},
            {"ACTION": "prove-mirror", "MESSAGE": f"serving: pulled {five.mirror(name)['proved']}"},
        )
        first, last = (int(line["__REALTIME_TIMESTAMP"]) for line in (story[0], story[-1]))
        print(f"{name}: {(last - first) / 1e6:.1f} s from reading its file to the first good pull")
    assert five.journal("UPSTREAM=quay.io") == five.journal("MIRROR=quay")


def test_images_are_there_before_any_unit_needs_them(five: Appliance) -> None:
    actions = [line.get("ACTION") for line in five.journal()]
    assert actions.count("pull-image") >= 2
    last_pull = max(n for n, action in enumerate(actions) if action == "pull-image")
    assert last_pull < actions.index("write-units")
    assert five.sh(f"grep -L '^Pull=never$' {UNITS}/*.container") == ""


@pytest.mark.parametrize(("name", "source"), FIVE.items(), ids=list(FIVE))
def test_a_node_pulls_by_tag_and_by_digest_what_the_upstream_has(five: Appliance, name: str, source: str) -> None:
    image = five.box.images()[source][f"{APP}:1.0"]
    for reference in (f"{source}/{APP}:1.0", f"{source}/{APP}@{image['digest']}"):
        five.pull(reference)
        got = five.box.node("podman", "image", "inspect", "--format", "{{.RepoDigests}}", reference).stdout
        assert f"{source}/{APP}@{image['digest']}" in got
        five.box.node("podman", "rmi", "--all", "--force")
    for blob in parts(image):
        assert five.blob_digest(name, APP, blob["digest"]) == blob["digest"]


def test_only_through_the_mirrors(five: Appliance) -> None:
    """NeverContactSource: without the mirror there is no pull, although podman knows where quay.io is."""
    five.box.gw("nft", "flush chain ip alone forward")
    five.box.exec("systemctl", "stop", "mirror-agent", "mirror-quay-pod")
    five.box.node("ip", "neigh", "flush", "dev", "lan0")  # or it takes 30 s to give up
    pull = ("podman", "pull", "--quiet", "--retry=0", f"quay.io/{APP}:1.0")
    with five.not_asked("quay.io"):
        assert five.box.node(*pull, check=False).returncode != 0
    five.box.exec("systemctl", "start", "mirror-agent")
    five.settle()
    five.pull(f"quay.io/{APP}:1.0")


def cold_copy(appliance: Appliance, reference: str, folder: str) -> None:
    appliance.box.node("skopeo", "copy", "--quiet", f"docker://{reference}", f"dir:/tmp/{folder}", timeout=300)
    appliance.box.node("rm", "-r", f"/tmp/{folder}")


@pytest.mark.parametrize("clients", [1, 6])
def test_cold_clients_cost_the_upstream_the_image_once(five: Appliance, clients: int) -> None:
    image = five.box.push("ghcr.io", f"cold/{clients}:1", layer_sizes=(14 * MB, 6 * MB))
    before = five.received("ghcr.io")
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda n: cold_copy(five, f"ghcr.io/cold/{clients}:1", f"cold-{n}"), range(clients)))
    ratio = (five.received("ghcr.io") - before) / weight(image)
    print(f"upstream bytes for {clients} cold clients: {ratio:.4f} of the image")
    assert 1.0 <= ratio <= 1.02


def test_systemctl_status_has_one_true_line(five: Appliance) -> None:
    assert five.property("mirror-agent", "StatusText") == "5 mirrors: 5 serving"
    assert five.status()["line"] == "5 mirrors: 5 serving"
    table = five.box.exec("mirror-agent", "status").stdout
    assert all(f"{name}.mirror.lan" in table for name in FIVE)


@pytest.mark.package("a container is confined by other means: test_container.py")
def test_the_service_is_confined(five: Appliance) -> None:
    said = five.box.exec("systemd-analyze", "security", "--no-pager", "mirror-agent").stdout
    exposure = float(said.rpartition("exposure level for mirror-agent.service: ")[2].split()[0])
    assert exposure <= 3.0, said


def snapshot(appliance: Appliance) -> list[str]:
    """Every file of the agent's with inode, times, owner and mode."""
    shown = "find {} -path {}/cache -prune -o -printf '%p %i %T@ %C@ %U %m %s\\n' | sort"
    return [
        line for folder in (UNITS, STATE, PUBLISHED) for line in appliance.sh(shown.format(folder, STATE)).splitlines()
    ]


def test_a_second_run_writes_nothing_reloads_nothing_restarts_nothing(five: Appliance) -> None:
    five.box.exec("systemctl", "restart", "mirror-agent")  # so that what clients did until now is counted
    five.settle()
    loaded = "UnitsLoadTimestampMonotonic"
    files = snapshot(five)
    before = five.manager(loaded), five.starts(*FIVE), five.containers()
    since, agent = five.cursor(), five.property("mirror-agent", "MainPID")
    five.box.exec("systemctl", "restart", "mirror-agent")
    five.settle()
    assert five.property("mirror-agent", "MainPID") != agent
    assert set(snapshot(five)) - set(files) == set()
    assert (five.manager(loaded), five.starts(*FIVE), five.containers()) == before
    assert {line.get("ACTION") for line in five.journal(since=since)} <= {"announce-address"}
