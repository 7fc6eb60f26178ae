"""The agent is killed with -9 at many points of its work: what it makes in the end is what it makes undisturbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from appliance import DEFINITIONS, FIVE, PUBLISHED, STATE, STATUS, UNITS, Appliance, slow_pull

APP = "demo/app"
PLACED = 'source = "gcr.io"\naddress = "10.0.0.57"\n'
MOVED = 'source = "gcr.io"\naddress = "10.0.0.58"\nprobe = "demo/app:1.0"\n'
ALL = f"cp $EXAMPLES/*.toml .; printf '{PLACED}' > gcr.toml"
OTHER = 'source = "quay.io"\nremote = "https://ghcr.io"\npolicy = "AllowContactingSource"\n'

# Changes by people, each with the steps that it takes: the agent is killed as soon as it says that it begins one.
CHANGES = (
    (f"rm -f gcr.toml; printf '{OTHER}' > quay.toml", "read stop-units write-units restart-units publish"),
    (
        f"printf '{MOVED}' > gcr.toml",
        "claim-address issue-certificate start-units announce-address prove-mirror",
    ),
    ("rm -f ghcr.toml registry-k8s.toml; cp $EXAMPLES/quay.toml .", "stop-units delete-file restart-units"),
    (ALL, "read claim-address start-units prove-mirror publish"),
)
FIRST = (
    "create-authority pull-image write-units claim-address issue-certificate "
    "start-units announce-address prove-mirror publish"
)

# Starts the agent and kills it at its first line about a step; says whether there was one. Without: when there is
# nothing left to do, by two reloads (see settle()) and its status.
_KILL = r"""
journalctl --sync
cursor=$(journalctl -n0 --show-cursor | sed -n 's/^-- cursor: //p')
systemctl reset-failed mirror-agent
systemctl restart mirror-agent
follow() { exec timeout 90 journalctl -f -t mirror-agent -o cat --after-cursor="$cursor" ACTION="$1"; }
rm -f /run/settled
(systemctl reload mirror-agent && systemctl reload mirror-agent && touch /run/settled) >/dev/null 2>&1 &
settled() {
    [ -e /run/settled ] && grep -q '"publication": "up to date"' $STATUS &&
        ! grep -qE '"state": "(starting|preparing)"' $STATUS
}
exec 3< <(follow "$1" 2>/dev/null)
follower=$!
while [ $SECONDS -lt 60 ]; do
    if read -r -t 0.2 line <&3; then echo "$1"; break; fi
    ! settled || break
done
main=$(systemctl show --value -p MainPID mirror-agent)
systemctl kill -s KILL mirror-agent
kill $follower
# until systemd has seen it: what is asked of the unit before is asked of the one that is dying
while [ "$(systemctl show --value -p MainPID mirror-agent)" = "$main" ]; do sleep 0.05; done
"""


def kill_at(appliance: Appliance, steps: str) -> set[str]:
    """Start the agent for each step anew, and kill it in the middle of that; the steps that were hit."""
    script = f"STATUS={STATUS}\n{_KILL}"
    return {appliance.box.exec("bash", "-c", script, "kill", step).stdout.strip() for step in steps.split()} - {""}


def edit(appliance: Appliance, script: str) -> None:
    appliance.sh(f"EXAMPLES={appliance.examples}; cd {DEFINITIONS} && " + script.replace("\n", "\\n"))


def end_state(appliance: Appliance) -> dict[str, str]:
    """All that the agent makes and that does not depend on the hour: files with their modes and owners, leases."""
    configs = " ".join(f"{STATE}/mirrors/*/{part}" for part in ("edge", "registry", "auth"))
    listing = f"cd / && find {UNITS} {PUBLISHED} {STATE}/accepted {configs}"
    return {
        "files": appliance.sh(f"{listing} -type f ! -name index.html -exec sha256sum {{}} + | sort -k2"),
        "modes": appliance.sh(f"{listing} -printf '%p %y %m %U %G\\n' | sort"),
        "leases": json.dumps(json.loads(appliance.sh(f"cat {STATE}/leases.json")), sort_keys=True),
        "authority": appliance.sh(
            f"cd {STATE}/ca; find . -type f -exec sha256sum {{}} + | sort -k2; find -printf '%p %y %m %U %l\\n' | sort"
        ),
        "units": appliance.sh(
            "systemctl list-units --all --plain --no-legend 'mirror-*' | awk '{print $1, $2, $3, $4}'"
        ),
        "networks": appliance.sh("podman network ls --format '{{.Name}}' | sort"),
        "containers": appliance.sh("podman ps -a --format '{{.Names}} {{.State}}' | sort"),
    }


def litter(appliance: Appliance) -> str:
    """Temporary and torn files."""
    names = "-name '.*' ! -name .mirror-agent.json -o -name '*.tmp' -o -name '*.new' -o -size 0"
    where = f"{UNITS} {STATE} {PUBLISHED} -path {STATE}/cache -prune -o"
    return appliance.sh(f"find {where} \\( {names} \\) -type f -print")


def check_certificates(appliance: Appliance) -> None:
    """What each edge serves is for its host and address, valid now, and signed by what is published."""
    for name in FIVE:
        address = appliance.mirror(name)["address"]
        checked = appliance.box.node(
            "sh", "-c", f"openssl s_client -connect {address}:443 -servername {name}.mirror.lan -verify_return_error "
            f"-verify_hostname {name}.mirror.lan -CAfile /etc/containers/certs.d/{name}.mirror.lan/ca.crt </dev/null",
        ).stdout  # fmt: skip
        assert "Verify return code: 0 (ok)" in checked
        until = datetime.fromisoformat(appliance.mirror(name)["not_after"])
        assert (until - datetime.now(UTC)).days > 80
        script = "openssl x509 -pubkey -noout -in tls.crt; openssl pkey -pubout -in tls.key"
        matches = appliance.sh(f"cd {STATE}/mirrors/{name}/tls/current; {script}")
        half = len(matches) // 2
        assert matches[:half] == matches[half:]


def test_killed_at_many_points_of_many_changes(five: Appliance) -> None:
    edit(five, ALL)
    five.settle()
    undisturbed = end_state(five)
    assert litter(five) == ""
    large = five.box.push("docker.io", "slow/app:1", layer_sizes=(25_000_000,))["layers"][0]["digest"]
    docker, hit = five.starts("docker"), set()
    with slow_pull(five, "docker", "slow/app", large, rate=150_000):
        for change, steps in CHANGES:
            edit(five, change)
            hit |= kill_at(five, steps)
        assert five.starts("docker") == docker, "a mirror that nobody changed was touched"
    print("killed in the middle of:", ", ".join(sorted(hit)))
    assert len(hit) >= 8, "most kills came too late"

    edit(five, f"rm -f *; {ALL}")
    five.box.exec("systemctl", "reset-failed", "mirror-agent")
    five.box.exec("systemctl", "restart", "mirror-agent")
    five.serving(*FIVE)
    five.settle()
    now = end_state(five)
    for part, what in undisturbed.items():
        assert now[part] == what, part
    assert litter(five) == ""
    assert five.glance()["problems"] == []
    five.configure_node()
    check_certificates(five)
    five.box.node("ip", "neigh", "flush", "dev", "lan0")
    for name, source in FIVE.items():
        five.pull(f"{source}/{APP}:1.0")
        assert five.starts(name)


def test_killed_during_its_very_first_start(bare: Appliance, boot: Callable[[], Appliance]) -> None:
    """From nothing: CA, images, leases, certificates, network, units, publication."""
    bare.box.exec("systemctl", "stop", "mirror-agent", "mirror-*")
    bare = boot()
    bare.drop(*FIVE)
    hit = kill_at(bare, FIRST)
    print("killed in the middle of:", ", ".join(sorted(hit)))
    assert len(hit) >= 7, "most kills came too late"
    bare.box.exec("systemctl", "reset-failed", "mirror-agent")
    bare.box.exec("systemctl", "start", "mirror-agent")
    bare.serving(*FIVE)
    bare.settle()
    assert litter(bare) == ""
    assert len(bare.starts(*FIVE)) == 15
    assert len(json.loads(bare.sh(f"cat {STATE}/leases.json"))["leases"]) == 5
    bare.configure_node()
    check_certificates(bare)
    for source in FIVE.values():
        bare.pull(f"{source}/{APP}:1.0")
