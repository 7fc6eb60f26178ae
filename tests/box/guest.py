"""The layers over the root file system: what makes it the cache host, or the cluster node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import topology as t
from .topology import UPSTREAMS, Upstream

STORES = "/srv/upstream"
PKI = "/etc/box/pki"
NODE_ROOT = "/var/lib/box/node"

_UNITS = (
    "box-network", "box-gateway-dns", "box-internet-dns", "box-token", "box-node", "box-node-exec", "box-exec",
)  # fmt: skip
_RESOLV = f"nameserver {t.GATEWAY}\noptions timeout:2 attempts:2\n"
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
# No cgroup controllers are delegated to the box, so podman must not set a limit on processes.
_CONTAINERS = "[containers]\npids_limit = 0\n"
_NODE_CONTAINERS = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n[containers]\npids_limit = 0\n'
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}\n'


def fill_cache_host(folder: Path, static: Path, pki: Path, stores: Path, registry: Path, proxy: Path) -> None:
    """The cache host, and with it the services of its world: router, internet, node."""
    shutil.copytree(static, folder, symlinks=True, dirs_exist_ok=True)
    _text(folder / "etc/hostname", "cache\n")
    _text(folder / "etc/hosts", f"{_HOSTS}127.0.1.1 cache\n")
    _text(folder / "etc/resolv.conf", _RESOLV)
    _text(folder / "etc/containers/containers.conf.d/box.conf", _CONTAINERS)
    _text(folder / "etc/netns/inet/resolv.conf", f"nameserver {t.INTERNET_DNS}\n")
    _text(folder / "etc/box/topology.env", _topology())
    _text(folder / "etc/box/internet.hosts", "".join(f"{address} {name}\n" for name, address in t.internet().items()))
    _text(folder / "etc/box/token.json", json.dumps(_token_service(), indent=1))
    _text(folder / "etc/box/images.json", json.dumps(_images(stores), indent=1))
    (folder / NODE_ROOT.lstrip("/")).mkdir(parents=True)
    for upstream in UPSTREAMS:
        _text(folder / f"etc/box/upstreams/{upstream.name}.yml", _registry(upstream))
        shutil.copytree(stores / upstream.name, folder / STORES.lstrip("/") / upstream.name)
    for file in pki.iterdir():
        _copy(file, folder / PKI.lstrip("/") / file.name, 0o600 if file.suffix == ".key" else 0o644)
    _copy(registry / "registry", folder / "usr/libexec/box/registry", 0o755)
    _copy(proxy / "usr/bin/tinyproxy", folder / "usr/libexec/box/tinyproxy", 0o755)
    _trust(folder, pki)
    _enable(folder, *_UNITS, *(f"box-upstream@{u.name}" for u in UPSTREAMS))


def fill_node(folder: Path, pki: Path) -> None:
    """The cluster node: another machine, with the internet's public CA and nothing of the cache host."""
    _text(folder / "etc/hostname", "node\n")
    _text(folder / "etc/hosts", f"{_HOSTS}127.0.1.1 node\n")
    _text(folder / "etc/resolv.conf", _RESOLV)
    _text(folder / "etc/containers/containers.conf.d/box.conf", _NODE_CONTAINERS)
    _text(folder / "etc/containers/registries.conf", "")
    _text(folder / "etc/containers/policy.json", _POLICY)
    (folder / "var/lib/containers").mkdir(parents=True)
    _trust(folder, pki)


def _topology() -> str:
    facts = {
        "GATEWAY": t.GATEWAY, "CACHE_HOST": t.CACHE_HOST, "NODE": t.NODE, "LAN_PREFIX": t.LAN_PREFIX,
        "WAN_ROUTER": t.WAN_ROUTER, "WAN_INTERNET": t.WAN_INTERNET, "INTERNET_DNS": t.INTERNET_DNS,
        "INTERNET": " ".join(f"{name}={address}" for name, address in t.internet().items()),
    }  # fmt: skip
    return "".join(f'{key}="{value}"\n' for key, value in facts.items())


def _registry(upstream: Upstream) -> str:
    http: dict[str, object] = {
        "addr": f"{upstream.address}:443",
        "secret": upstream.name,
        "draintimeout": "1s",
        "tls": {"certificate": f"{PKI}/{upstream.host}.crt", "key": f"{PKI}/{upstream.host}.key"},
    }
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": f"{STORES}/{upstream.name}"}, "delete": {"enabled": True}},
        "http": http,
    }
    if upstream.token_auth:
        http["headers"] = {name: [value] for name, value in t.PULL_LIMIT.items()}
        token = {"realm": t.TOKEN_REALM, "service": t.TOKEN_SERVICE, "issuer": t.TOKEN_ISSUER}
        config["auth"] = {"token": token | {"rootcertbundle": f"{PKI}/token.crt"}}
    return json.dumps(config, indent=1)  # JSON is YAML


def _token_service() -> dict[str, object]:
    users = {
        t.PUBLISHER[0]: {"password": t.PUBLISHER[1], "push": True, "private": True},
        t.READER[0]: {"password": t.READER[1], "push": False, "private": True},
    }
    return {
        "address": t.TOKEN_ADDRESS, "issuer": t.TOKEN_ISSUER, "service": t.TOKEN_SERVICE, "users": users,
        "certificate": f"{PKI}/{t.TOKEN_HOST}.crt", "key": f"{PKI}/{t.TOKEN_HOST}.key",
        "signing_certificate": f"{PKI}/token.crt", "signing_key": f"{PKI}/token.key",
    }  # fmt: skip


def _images(stores: Path) -> dict[str, object]:
    return {u.name: json.loads((stores / f"{u.name}.json").read_text()) for u in UPSTREAMS}


def _trust(folder: Path, pki: Path) -> None:
    _copy(pki / "ca.crt", folder / "usr/local/share/ca-certificates/box-internet.crt", 0o644)


def _enable(folder: Path, *units: str) -> None:
    wants = folder / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for unit in units:
        template = unit.partition("@")[0] + "@" if "@" in unit else unit
        (wants / f"{unit}.service").symlink_to(f"/etc/systemd/system/{template}.service")


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def _copy(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)
