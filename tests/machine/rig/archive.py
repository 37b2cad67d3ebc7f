# SPDX-License-Identifier: MIT
"""Packages of a suite's archive for machines, which have no network.

They are fetched on the host: by its apt, for the machine's suite and from the machine's list of
what is installed, in directories of their own. As a layer, what is fetched is a machine's warm
package cache: apt in it knows the archive's packages, and downloads none of these.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import apt, hosttool, roots
from .cache import Cache, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FETCH_S = 300
LISTS = "var/lib/apt/lists"
ARCHIVES = "var/cache/apt/archives"


def archive(
    cache: Cache, suite: str, packages: Sequence[str], recipe: roots.Recipe = roots.MACHINE
) -> Path:
    """A layer with the packages, and all they need, that a root of this recipe does not have.

    Raises RigError: no network, no such package.
    """
    root = roots.root(cache, suite, recipe)
    name = f"{suite}-{key_of(roots.key(suite, recipe), sorted(packages))}"
    return cache.entry(
        "archive", name, f"archive for {suite}", lambda aside: _fetch(suite, root, packages, aside)
    )


def _fetch(suite: str, root: Path, packages: Sequence[str], target: Path) -> None:
    for directory in (LISTS, ARCHIVES):
        (target / directory / "partial").mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="joblet-apt-") as name:
        place = Path(name)
        sources = place / "sources.list"
        sources.write_text("\n".join(apt.sources(suite)) + "\n")
        own = {
            "Dir::State": str(place),
            "Dir::State::lists": str(target / LISTS),
            "Dir::State::status": f"{root}/var/lib/dpkg/status",
            "Dir::Cache": str(place),
            "Dir::Cache::archives": str(target / ARCHIVES),
            "Dir::Etc::sourcelist": str(sources),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
        }
        configuration = place / "apt.conf"
        lines = [*apt.options(), *(f'{key} "{value}";' for key, value in own.items())]
        configuration.write_text("\n".join(lines) + "\n")
        what = f"fetch {' '.join(packages)}"
        # without --error-on a mirror that is away leaves an update without packages, and exit
        # status 0
        _apt(what, ["update", "--error-on=any"], configuration)
        _apt(what, ["install", "--yes", "--download-only", *packages], configuration)
    for lock in target.rglob("lock"):
        lock.unlink()


def _apt(what: str, words: list[str], configuration: Path) -> None:
    environ = {
        "APT_CONFIG": str(configuration),
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    argv = ["apt-get", "--quiet", *words]
    hosttool.run(what, argv, called=f"apt-get {words[0]}", timeout=FETCH_S, env=environ)
