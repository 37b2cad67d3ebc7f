# SPDX-License-Identifier: MIT
"""podman from the suite's own archive, as a layer for the machine that is measured."""

from pathlib import Path

from tests.machine.rig import Cache, Nspawn, build_layer
from tests.machine.rig.archive import archive

PACKAGES = ("podman", "crun", "runc")
INSTALL_S = 300

# Alone it starts nothing: a service of its own would be measured along with everybody.
INSTALL = """
set -e
export DEBIAN_FRONTEND=noninteractive
dpkg --install --force-unsafe-io /mnt/*.deb
cd /usr/lib/systemd/system
systemctl mask $(ls -d podman*.service podman*.socket podman*.timer | grep -v @)
"""


def podman_layer(suite: str, cache: Cache) -> Path:
    """The layer, made when it is not in the cache. Raises RigError: no network, no such package."""
    return build_layer(
        suite,
        [],
        _install,
        [PACKAGES, INSTALL],
        what="podman, to compare with",
        cache=cache,
    )


def _install(machine: Nspawn) -> None:
    for package in sorted(archive(machine.cache, machine.suite, PACKAGES).rglob("*.deb")):
        machine.write(f"/mnt/{package.name}", package.read_bytes())
    machine.run(INSTALL, check=True, timeout=INSTALL_S)
    machine.run("rm -f /mnt/*.deb", check=True)
