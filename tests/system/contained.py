"""The agent as a container, on a host without its package: the Containerfile's image, installed as users do."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

from appliance import DEFINITIONS, PYTHON, Appliance
from box import Box, stages
from box.cache import Stage, build, content, hold

NAME = "localhost/mirror-agent"
QUADLETS = "/etc/containers/systemd"
NOT_HERE = "python3-kubernetes"  # the host has none; tests/cluster has
# What Debian's own image and the libraries have, of the host's files: the box has no way to a registry of base images.
# cffi by name: apt-cache does not follow cryptography to it.
BASE = """
set -e
apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances base-files base-passwd coreutils dash sed tar rpm python3-cffi-backend "$@" |
    grep '^[a-z]' | sort -u |
    xargs dpkg-query --listfiles 2> /dev/null | grep -v '^/usr/share/\\(doc\\|locale\\|man\\)/' |
    sed -nE 's,^/(s?bin|lib|lib64)/,/usr/\\1/,; s,^/(..),\\1,p' > /tmp/files
cd /
ls -d bin sbin lib lib64 var/lib/dpkg/status etc/passwd etc/group etc/ld.so.cache \
    etc/alternatives/* etc/ssl/certs/ca-certificates.crt >> /tmp/files
find usr/lib/python3* -name '*.pyc' >> /tmp/files
sort -u /tmp/files | tar --no-recursion --ignore-failed-read -T - -c | podman import --quiet - localhost/base
"""
# No more files and processes than the box itself may have.
BUILD = f"""
set -e
podman build --quiet --network=none --pull=never --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    --build-arg BASE=localhost/base --build-arg LIBRARIES="$2" -t {NAME} "$1"
podman save --quiet --output "$1/image.tar" {NAME}
"""
# As docs/installation.md says.
INSTALL = f"""
set -e
podman load --quiet --input "$1/image.tar"
podman run --rm --security-opt=label=disable --volume=/:/host \
    --entrypoint=/usr/share/mirror-agent/container/install {NAME}
mkdir -p {QUADLETS}/mirror-agent.container.d
printf '[Container]\\nVolume=/srv:/srv:rslave\\n' > {QUADLETS}/mirror-agent.container.d/srv.conf
systemctl daemon-reload
journalctl --update-catalog
"""


class Contained(Appliance):
    """A booted box with the agent in it, as a container."""

    share = "/usr/local/share"

    def enable(self) -> None:
        self.sh(f"sed -i 's/^#WantedBy/WantedBy/' {QUADLETS}/mirror-agent.container")
        self.sh("systemctl daemon-reload; systemctl start mirror-agent")

    def disable(self) -> None:
        self.sh(f"sed -i 's/^WantedBy/#WantedBy/' {QUADLETS}/mirror-agent.container; systemctl daemon-reload")

    def add_libraries(self, folder: str) -> None:
        super().add_libraries(folder)
        build = f"podman build --quiet --network=none -t {NAME} -f - /{PYTHON}"
        self.sh(f"printf 'FROM {NAME}\\nCOPY . /{PYTHON}/\\n' | {build} && systemctl restart mirror-agent")


def install(box: Box) -> Contained:
    """Boot a pristine host and put the agent onto it; it does not run yet."""
    image = _image(box)
    box.up(bare=True)
    appliance = Contained(box)
    with box.machine.shared_folder() as (outside, inside):
        (outside / "image.tar").hardlink_to(image.path / "image.tar")
        box.exec("sh", "-c", INSTALL, "sh", inside)
    appliance.sh(f"mkdir -p {DEFINITIONS}")
    return appliance


@cache
def _image(box: Box) -> Stage:
    """The image, of the tree as it is now: built once, in the box."""
    recipe, package = (stages.REPO / "Containerfile").read_text(), stages.package()
    named = re.search(r'LIBRARIES="([^"]*)"', recipe)
    assert named
    libraries = named[1].replace("\\\n", "").replace(NOT_HERE, "").split()
    build((package,))
    hold(package.path)  # this and the image until the tests are over: other trees' tests may build theirs meanwhile

    def make(folder: Path) -> None:
        with box.machine.shared_folder() as (outside, inside):
            (outside / "build/rpm").mkdir(parents=True)
            for rpm in package.path.glob("*.noarch.rpm"):
                shutil.copy(rpm, outside / "build/rpm")
            shutil.copy(stages.REPO / "Containerfile", outside)
            shutil.copytree(stages.REPO / "packaging/container", outside / "packaging/container")
            box.exec("sh", "-c", BASE, "sh", *libraries)
            box.exec("sh", "-c", BUILD, "sh", inside, " ".join(libraries), timeout=300)
            shutil.move(outside / "image.tar", folder)

    made_of = [recipe, content(stages.REPO / "packaging/container"), BASE, BUILD]
    stage = Stage("image", made_of, make, needs=(package, stages.GUEST))
    if not stage.path.is_dir():
        box.up(bare=True)
        build((stage,))
    hold(stage.path)
    return stage
