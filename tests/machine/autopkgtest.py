# SPDX-License-Identifier: MIT
"""autopkgtest of the package in a machine that has it installed, by its backend `null`: the machine
is the testbed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.machine.rig.archive import archive
from tools import deb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.machine.rig import Cache, Machine

PACKAGES = ("autopkgtest", "dpkg-dev")
SOURCE = "/var/tmp/joblet"  # a path of the machine
APT = "env DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes --no-install-recommends"
INSTALL_S = 600

# Newer versions take no machine at hand for a container, or for a machine, of its own.
RESTRICTIONS = ("isolation-container", "isolation-machine")


def testbed(suite: str, cache: Cache) -> Path:
    """The layer with what install() installs."""
    return archive(cache, suite, PACKAGES)


def install(machine: Machine) -> None:
    """autopkgtest, from the layer of testbed(), and the source package's tree."""
    machine.run(f"{APT} install {' '.join(PACKAGES)}", timeout=INSTALL_S, check=True)
    with tempfile.TemporaryDirectory(prefix="joblet-source-") as name:
        deb.export(Path(name))
        packed = subprocess.run(
            ["tar", "-C", name, "-cf", "-", "."], check=True, capture_output=True
        )
    machine.write(f"{SOURCE}.tar", packed.stdout)
    unpack = f"mkdir {SOURCE} && tar -C {SOURCE} -xf {SOURCE}.tar --no-same-owner"
    machine.run(unpack, timeout=INSTALL_S, check=True)


def run(machine: Machine, tests: Sequence[str], *, timeout: float) -> dict[str, str]:
    """Runs these tests, and returns what autopkgtest's summary says of each: PASS, FAIL …

    Raises CommandFailed, with the end of the output, when one has not passed.
    """
    words = [
        "autopkgtest",
        "--no-built-binaries",
        f"--ignore-restrictions={','.join(RESTRICTIONS)}",
    ]
    words += [f"--test-name={test}" for test in tests]
    words += [f"{SOURCE}/", "--", "null"]
    done = machine.run(["sh", "-c", 'exec "$@" 2>&1', "sh", *words], timeout=timeout).check()
    print(done.text)
    _, _, summary = done.text.rpartition("summary\n")
    return dict(re.findall(r"^(\S+) +([A-Z]+)\b", summary, re.MULTILINE))
