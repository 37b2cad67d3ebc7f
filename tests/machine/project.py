# SPDX-License-Identifier: MIT
"""The project of this working tree, installed: the layer that test machines get on their root.

It is what users get: the Debian packages of the tree, built in the suite's own build root and
installed by apt. Both are kept in the cache by what they are made of, so an unchanged tree costs
nothing, and the tests' own files do not count as a change.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.machine.rig import Cache, Nspawn, build_layer
from tools import deb

if TYPE_CHECKING:
    from pathlib import Path

INSTALL_S = 300
WHERE = "/mnt"

# Nothing to download: the root has what the packages depend on.
INSTALL = f"""
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get install --quiet --yes --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \\
    {WHERE}/*.deb
systemctl is-active joblet.service joblet-init.service
"""


def project_layer(suite: str, cache: Cache | None = None) -> list[Path]:
    """The layers of the installed project for one suite, built when the tree has changed."""
    cache = cache or Cache()
    built = deb.build(suite, cache, deb.Variant(quick=True))
    cache.prune("layer")
    layer = build_layer(
        suite,
        [],
        _install,
        [INSTALL, [_hash(package) for package in deb.debs(built)]],
        what="the installed project",
        binds_ro={package: f"{WHERE}/{package.name}" for package in deb.debs(built)},
        cache=cache,
    )
    return [layer]


def _install(machine: Nspawn) -> None:
    machine.run(INSTALL, check=True, timeout=INSTALL_S)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
