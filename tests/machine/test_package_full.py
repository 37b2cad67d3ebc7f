# SPDX-License-Identifier: MIT
"""What takes long, for `make test-full`: Debian's own tools try the packages out; a whole build is
made twice; the package's tests run on a kernel that enforces limits."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.machine import autopkgtest
from tests.machine.rig import Vm, apt, roots
from tools import deb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.machine.rig import Cache

TESTS = ("limits", "smoke")
TESTS_S = 900
PIUPARTS_S = 900

# What piuparts installs upon. systemd leaves directories of its own behind, so it is there before.
BASE = roots.Recipe(
    "piuparts",
    ["apt", "dbus", "systemd"],
    hooks=("rm -f $1/etc/dpkg/dpkg.cfg.d/99mmdebstrap",),
    excluded=(),
)

# They say how and when it was built, and are of no archive.
ABOUT = (".buildinfo", ".changes", ".log")


@pytest.fixture
def testbed(vm_suite: str, cache: Cache, installed: Callable[[str], list[Path]]) -> Iterator[Vm]:
    payload = [*installed(vm_suite), autopkgtest.testbed(vm_suite, cache)]
    with Vm(vm_suite, payload=payload, cache=cache) as machine:
        autopkgtest.install(machine)
        yield machine


@pytest.mark.timeout(2400)
def test_the_tests_of_the_package_pass_on_a_kernel_with_all_controllers(testbed: Vm) -> None:
    assert autopkgtest.run(testbed, TESTS, timeout=TESTS_S) == dict.fromkeys(TESTS, "PASS")


def base(suite: str, cache: Cache) -> Path:
    """A tar file of the root that piuparts installs upon."""

    def build(aside: Path) -> None:
        root = roots.root(cache, suite, BASE)
        subprocess.run(
            ["tar", "-C", str(root), "--one-file-system", "-czf", str(aside), "."], check=True
        )

    name = f"{suite}-{roots.key(suite, BASE)}.tar.gz"
    return cache.entry("piuparts", name, f"base of piuparts for {suite}", build)


@pytest.mark.timeout(1200)
def test_piuparts(suite: str, cache: Cache, tmp_path: Path) -> None:
    """Installed and purged in a root that has no systemd running, from the suite's archive."""
    archive, security = apt.mirrors()
    argv = ["piuparts", "--basetgz", str(base(suite, cache)), "--distribution", suite]
    argv += ["--mirror", f"{archive} main", "--tmpdir", str(tmp_path)]
    argv += ["--extra-repo", f"deb {security} {suite}-security main"]
    argv += ["--extra-repo", f"deb {archive} {suite}-updates main"]
    argv += ["--no-eatmydata", "--no-upgrade-test"]
    argv += [str(path) for path in deb.debs(deb.build(suite, cache))]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PIUPARTS_S, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout[-8000:]}"
    assert "PASS: All tests." in done.stdout


@pytest.mark.timeout(1200)
def test_built_by_somebody_else_it_is_the_same(suite: str, cache: Cache) -> None:
    """Source and binary packages, whole builds with their tests."""
    here = deb.build(suite, cache)
    there = deb.build(suite, cache, deb.Variant(elsewhere=True))
    assert here != there
    one, other = (
        {path.name: path.read_bytes() for path in built.iterdir() if path.suffix not in ABOUT}
        for built in (here, there)
    )
    assert {Path(name).suffix for name in one} >= {".deb", ".dsc", ".xz"}
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
