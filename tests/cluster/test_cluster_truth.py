"""The cluster is told the truth, by the account and the rules of packaging/rbac.yaml, and no more often than needed."""

from __future__ import annotations

from dataclasses import replace
from datetime import time
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.story import (
    ALLOW,
    ICSP,
    IDMS,
    IMAGE,
    ITMS,
    MAPS,
    MCP,
    NEVER,
    NOON,
    entries,
    entry,
    idms,
    look,
    mirror,
    publication,
    told,
)
from mirror_agent import cluster as rules
from mirror_agent.model import ClusterSettings, Cost, Drain, Window
from mirror_agent.targets import TargetError
from mirror_agent.targets import cluster as target

OURS = [entry("quay.io", "quay.mirror.lan", policy=NEVER)]


def test_the_pair_and_its_trust_are_there_after_one_round(cluster: ControlPlane, settings: ClusterSettings) -> None:
    outcome = told(publication(mirror()), settings)
    assert outcome.cost is Cost.DRAIN  # the first mirror for tags
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == OURS
    assert entries(cluster, f"{ITMS}/mirror-agent-lab") == OURS
    assert cluster.get(f"{MAPS}/mirror-agent-ca")["data"] == {"quay.mirror.lan": publication().trust}
    assert cluster.get(IMAGE)["spec"]["additionalTrustedCA"] == {"name": "mirror-agent-ca"}
    managers = {field["manager"] for field in cluster.get(f"{IDMS}/mirror-agent-lab")["metadata"]["managedFields"]}
    assert managers == {"mirror-agent"}


def test_nothing_is_written_when_nothing_changes(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings)
    again = told(publication(mirror()), settings)
    assert (again.trust, again.mirrors, again.cost, again.refused) == ((), (), Cost.NONE, "")


def test_trust_is_applied_before_mirrors(settings: ClusterSettings) -> None:
    outcome = rules.compare(publication(mirror()), settings, look(settings))
    assert [change.kind for change in outcome.due(settings, NOON)] == [
        "ConfigMap", "Image", "ImageTagMirrorSet", "ImageDigestMirrorSet",
    ]  # fmt: skip


def test_one_more_mirror_and_one_less(cluster: ControlPlane, settings: ClusterSettings) -> None:
    ghcr = mirror("ghcr", "ghcr.io", number=5)
    told(publication(mirror()), settings)
    assert told(publication(mirror(), ghcr), settings).cost is Cost.DRAIN
    assert {each["source"] for each in entries(cluster, f"{IDMS}/mirror-agent-lab")} == {"quay.io", "ghcr.io"}
    told(publication(mirror()), settings)
    assert entries(cluster, f"{ITMS}/mirror-agent-lab") == OURS
    assert set(cluster.get(f"{MAPS}/mirror-agent-ca")["data"]) == {"quay.mirror.lan", "ghcr.mirror.lan"}
    told(publication(mirror()), settings)  # the key goes when no set names it any more
    assert set(cluster.get(f"{MAPS}/mirror-agent-ca")["data"]) == {"quay.mirror.lan"}
    told(publication(), settings)
    told(publication(), settings)
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == []
    assert "data" not in cluster.get(f"{MAPS}/mirror-agent-ca")


def test_a_new_ca_goes_out_without_cost(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings)
    both = publication().trust * 2
    outcome = told(publication(mirror(), trust=both), settings)
    assert (outcome.mirrors, outcome.cost) == ((), Cost.NONE)
    assert cluster.get(f"{MAPS}/mirror-agent-ca")["data"] == {"quay.mirror.lan": both}


def test_drift_is_put_right(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings)
    edited = cluster.get(f"{IDMS}/mirror-agent-lab")
    edited["spec"]["imageDigestMirrors"] = []
    cluster.call("PUT", f"{IDMS}/mirror-agent-lab", edited)
    cluster.delete(f"{ITMS}/mirror-agent-lab")
    told(publication(mirror()), settings)
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == entries(cluster, f"{ITMS}/mirror-agent-lab") == OURS


def test_two_cache_hosts_leave_each_other_alone(cluster: ControlPlane, settings: ClusterSettings) -> None:
    other = replace(settings, name="other")
    mine, theirs = publication(mirror()), publication(mirror("quay2", number=9))
    told(mine, settings)
    told(theirs, other, host="two")
    for each, name, host in ((mine, settings, "one"), (theirs, other, "two")):
        again = told(each, name, host)
        assert (again.trust, again.mirrors, again.refused) == ((), (), "")
    assert set(cluster.get(f"{MAPS}/mirror-agent-ca")["data"]) == {"quay.mirror.lan", "quay2.mirror.lan"}


def test_an_object_of_somebody_else_with_our_name_is_left_alone(
    cluster: ControlPlane, settings: ClusterSettings
) -> None:
    idms(cluster, "mirror-agent-lab", entry("ghcr.io", "elsewhere.lan"))
    assert told(publication(mirror()), settings).refused == (
        "ImageDigestMirrorSet mirror-agent-lab is not this agent's"
    )
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == [entry("ghcr.io", "elsewhere.lan")]


def test_another_name_takes_the_place_of_the_old_one_at_no_cost(
    cluster: ControlPlane, settings: ClusterSettings
) -> None:
    told(publication(mirror()), settings)
    data = cluster.get(f"{MAPS}/mirror-agent-ca")["data"]
    renamed = replace(settings, name="rack-7", drain=Drain.NEVER)
    outcome = told(publication(mirror()), renamed)
    assert (outcome.refused, outcome.cost) == ("", Cost.NONE)
    assert [str(change) for change in outcome.mirrors] == [
        "ImageTagMirrorSet mirror-agent-rack-7", "ImageDigestMirrorSet mirror-agent-rack-7",
        "ImageDigestMirrorSet mirror-agent-lab", "ImageTagMirrorSet mirror-agent-lab",
    ]  # fmt: skip
    for path in (IDMS, ITMS):
        assert entries(cluster, f"{path}/mirror-agent-rack-7") == OURS
        assert entries(cluster, f"{path}/mirror-agent-lab") == []
    assert cluster.get(f"{MAPS}/mirror-agent-ca")["data"] == data
    again = told(publication(mirror()), renamed)
    assert (again.trust, again.mirrors) == ((), ())
    both = publication().trust * 2
    assert told(publication(mirror(), trust=both), renamed).refused == ""  # the keys are the new name's now
    assert cluster.get(f"{MAPS}/mirror-agent-ca")["data"] == {"quay.mirror.lan": both}


def test_another_name_and_a_mirror_less_at_once(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror(), mirror("ghcr", "ghcr.io", number=5)), settings)
    renamed = replace(settings, name="rack-7")
    assert told(publication(mirror()), renamed).cost is Cost.DRAIN
    told(publication(mirror()), renamed)
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == []
    assert set(cluster.get(f"{MAPS}/mirror-agent-ca")["data"]) == {"quay.mirror.lan"}
    again = told(publication(mirror()), renamed)
    assert (again.trust, again.mirrors) == ((), ())


def test_two_cache_hosts_of_one_name_do_not_fight(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings)
    outcome = told(publication(mirror("quay2", number=9)), settings, host="another")
    assert outcome.refused == "ImageDigestMirrorSet mirror-agent-lab is not this agent's"
    assert "set another [publish.cluster] name" in outcome.hint
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == OURS
    # a host that took the other's place
    assert "oc label imagedigestmirrorset mirror-agent-lab mirror-agent-host-" in outcome.hint
    for path in (IDMS, ITMS):
        there = cluster.get(f"{path}/mirror-agent-lab")
        del there["metadata"]["labels"]["mirror-agent-host"]
        cluster.call("PUT", f"{path}/mirror-agent-lab", there)
    assert told(publication(mirror()), settings, host="another").refused == ""
    assert told(publication(mirror()), settings, host="another").mirrors == ()
    assert told(publication(mirror()), settings).refused != ""


def test_a_cloned_host_withdraws_nothing(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings)
    told(publication(mirror("quay2", number=9)), replace(settings, name="other"))  # with the same machine-id
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == OURS
    assert told(publication(mirror()), settings).mirrors == ()


def test_a_host_without_an_identity_works_too(cluster: ControlPlane, settings: ClusterSettings) -> None:
    told(publication(mirror()), settings, host="")
    assert told(publication(mirror()), settings, host="").mirrors == ()
    assert told(publication(mirror()), settings).refused == ""  # it has one now
    assert cluster.get(f"{IDMS}/mirror-agent-lab")["metadata"]["labels"]["mirror-agent-host"] == "one"


# --- objects of others -----------------------------------------------------------------------------------------


def test_the_installers_own_object_conflicts_and_the_way_out_is_told(
    cluster: ControlPlane, settings: ClusterSettings
) -> None:
    installed = [entry("quay.io", "quay.mirror.lan"), entry("registry.redhat.io", "rh.elsewhere.lan")]
    idms(cluster, "image-digest-mirror", *installed)
    outcome = told(publication(mirror()), settings)
    assert "ImageDigestMirrorSet image-digest-mirror" in outcome.refused
    assert 'adopt = ["image-digest-mirror"]' in outcome.hint
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") is None
    assert cluster.get(f"{MAPS}/mirror-agent-ca") is not None  # trust costs nothing and helps

    adopting = replace(settings, adopt=("image-digest-mirror",))
    assert told(publication(mirror()), adopting).refused == ""
    assert entries(cluster, f"{IDMS}/image-digest-mirror") == [OURS[0], installed[1]]
    assert told(publication(mirror()), adopting).mirrors == ()


def test_adoption_is_undone_with_the_mirror(cluster: ControlPlane, settings: ClusterSettings) -> None:
    adopting = replace(settings, adopt=("image-digest-mirror",))
    idms(cluster, "image-digest-mirror", entry("quay.io", "quay.mirror.lan"))
    told(publication(mirror()), adopting)
    assert entries(cluster, f"{IDMS}/image-digest-mirror") == OURS
    told(publication(), adopting)
    assert entries(cluster, f"{IDMS}/image-digest-mirror") == [entry("quay.io", "quay.mirror.lan")]
    assert told(publication(), adopting).mirrors == ()


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (entry("quay.io", "elsewhere.lan", policy=ALLOW), "quay.io is AllowContactingSource in ImageDigestMirrorSet"),
        (entry("*.mirror.lan", "elsewhere.lan", policy=NEVER), "quay.mirror.lan is itself under *.mirror.lan"),
        (entry("quay.mirror.lan", "elsewhere.lan", policy=NEVER), "quay.mirror.lan is itself under quay.mirror.lan"),
    ],
)
def test_what_stands_against_ours_is_named(
    cluster: ControlPlane, settings: ClusterSettings, theirs: dict[str, Any], said: str
) -> None:
    idms(cluster, "theirs", theirs)
    outcome = told(publication(mirror()), settings)
    assert said in outcome.refused
    assert "theirs" in outcome.refused
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") is None


def test_the_old_kind_counts_too(cluster: ControlPlane, settings: ClusterSettings) -> None:
    body = {"apiVersion": "operator.openshift.io/v1alpha1", "kind": "ImageContentSourcePolicy"}
    spec = {"repositoryDigestMirrors": [entry("quay.io", "old.lan")]}
    cluster.apply(f"{ICSP}/old", {**body, "metadata": {"name": "old"}, "spec": spec})
    assert "ImageContentSourcePolicy old" in told(publication(mirror()), settings).refused


def test_what_hides_ours_is_told(cluster: ControlPlane, settings: ClusterSettings) -> None:
    idms(cluster, "payload", entry("quay.io/openshift-release-dev", "elsewhere.lan"))
    outcome = told(publication(mirror()), settings)
    assert outcome.refused == ""
    assert any("ImageDigestMirrorSet payload" in note and "hides our quay.io" in note for note in outcome.notes)


def test_the_admins_own_trust_stays(cluster: ControlPlane, settings: ClusterSettings) -> None:
    theirs = {"registry.corp..5000": "their CA"}
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mirror-agent-ca"}}
    cluster.apply(f"{MAPS}/mirror-agent-ca", {**head, "data": theirs})
    told(publication(mirror()), settings)
    assert cluster.get(f"{MAPS}/mirror-agent-ca")["data"] == {**theirs, "quay.mirror.lan": publication().trust}
    told(publication(), settings)
    told(publication(), settings)
    assert cluster.get(f"{MAPS}/mirror-agent-ca")["data"] == theirs


def test_a_key_of_the_admins_without_our_ca_is_refused(cluster: ControlPlane, settings: ClusterSettings) -> None:
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mirror-agent-ca"}}
    cluster.apply(f"{MAPS}/mirror-agent-ca", {**head, "data": {"quay.mirror.lan": "their CA"}})
    outcome = told(publication(mirror()), settings)
    assert "a key quay.mirror.lan of somebody else" in outcome.refused
    assert outcome.due(settings, NOON) == ()


# --- cost ------------------------------------------------------------------------------------------------------


def test_what_drains_is_held_back_and_told(cluster: ControlPlane, settings: ClusterSettings) -> None:
    careful = replace(settings, drain=Drain.NEVER)
    outcome = told(publication(mirror()), careful)
    assert outcome.held(careful, NOON).startswith("held back: it drains every node")
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") is None
    assert cluster.get(f"{MAPS}/mirror-agent-ca") is not None


@pytest.mark.parametrize(
    ("hours", "applied"), [(("11:00", "13:00"), True), (("13:00", "14:00"), False), (("22:00", "12:01"), True)]
)
def test_what_drains_has_its_hours(
    cluster: ControlPlane, settings: ClusterSettings, hours: tuple[str, str], applied: bool
) -> None:
    window = Window(None, *map(time.fromisoformat, hours))
    outcome = told(publication(mirror()), replace(settings, drain=Drain.WINDOW, window=window))  # at noon
    assert (entries(cluster, f"{IDMS}/mirror-agent-lab") == OURS) is applied
    assert cluster.get(f"{MAPS}/mirror-agent-ca") is not None
    held = outcome.held(replace(settings, drain=Drain.WINDOW, window=window), NOON)
    assert held == ("" if applied else "waits for its window: it drains every node")


def updating(cluster: ControlPlane) -> None:
    """Nodes that are on their way."""
    head = {"apiVersion": "machineconfiguration.openshift.io/v1", "kind": "MachineConfigPool"}
    pool = cluster.call("POST", MCP, {**head, "metadata": {"name": "worker"}, "spec": {}})
    conditions = [
        {"type": "Updating", "status": "True", "lastTransitionTime": None, "reason": "", "message": ""},
        {"type": "Degraded", "status": "False", "lastTransitionTime": None, "reason": "", "message": ""},
    ]
    counts = {"machineCount": 3, "updatedMachineCount": 1, "readyMachineCount": 1, "unavailableMachineCount": 1}
    pool["status"] = {**counts, "degradedMachineCount": 0, "conditions": conditions}
    cluster.call("PUT", f"{MCP}/worker/status", pool)


def test_nodes_are_not_drained_again_before_they_are_done(cluster: ControlPlane, settings: ClusterSettings) -> None:
    updating(cluster)
    outcome = told(publication(mirror()), settings)
    assert outcome.held(settings, NOON) == (
        "waits for a roll-out (worker 1/3 updating): it drains every node once more"
    )
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") is None
    pool = cluster.get(f"{MCP}/worker")
    pool["status"]["conditions"][0]["status"] = "False"
    cluster.call("PUT", f"{MCP}/worker/status", pool)
    told(publication(mirror()), settings)
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == OURS


def test_a_roll_out_that_is_stuck_is_not_waited_for(cluster: ControlPlane, settings: ClusterSettings) -> None:
    updating(cluster)
    pool = cluster.get(f"{MCP}/worker")
    pool["status"]["conditions"][1] |= {"status": "True", "message": "node a: no space"}
    cluster.call("PUT", f"{MCP}/worker/status", pool)
    told(publication(mirror()), settings)
    assert entries(cluster, f"{IDMS}/mirror-agent-lab") == OURS


def test_the_nodes_are_followed(cluster: ControlPlane, settings: ClusterSettings) -> None:
    path = f"{MCP}/worker"
    updating(cluster)
    assert rules.roll_out(look(settings).pools) == "worker 1/3 updating"
    pool = cluster.get(path)
    pool["status"]["conditions"][1] |= {"status": "True", "message": "node a:\n  no space"}
    cluster.call("PUT", f"{path}/status", pool)
    assert rules.roll_out(look(settings).pools) == "worker 1/3 degraded: node a: no space"


def test_an_unknown_field_is_an_error_of_ours_not_dropped(settings: ClusterSettings) -> None:
    (change,) = (c for c in rules.compare(publication(mirror()), settings, look(settings)).mirrors if "Tag" in c.kind)
    wrong = replace(change, body={**change.body, "spec": {"imageTagMirrors": [], "sourcePolicy": NEVER}})
    with pytest.raises(TargetError, match="sourcePolicy"):
        target.publish(settings, (wrong,), lambda: None)


def test_a_dry_run_of_all_comes_before_anything_is_written(cluster: ControlPlane, settings: ClusterSettings) -> None:
    changes = rules.compare(publication(mirror()), settings, look(settings)).due(settings, NOON)
    bad = replace(changes[-1], body={**changes[-1].body, "spec": {"imageDigestMirrors": [entry("https://quay.io")]}})
    with pytest.raises(TargetError, match="it is refused"):
        target.publish(settings, (*changes[:-1], bad), lambda: None)
    assert entries(cluster, f"{ITMS}/mirror-agent-lab") is None
    assert cluster.get(f"{MAPS}/mirror-agent-ca") is None
