# SPDX-License-Identifier: MIT
"""Root file systems of Debian 12 and 13, made by mmdebstrap: the lowest layer of every machine.

Three of a suite: MACHINE has all that Joblet runs with and is tested with; MINIMAL boots, and has
nothing that Joblet needs; BUILD is where the package is built and checked.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from . import apt, hosttool
from .cache import Cache, key_of
from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITES = ("bookworm", "trixie")


# a machine that boots and can be looked at
SYSTEM = (
    "systemd systemd-sysv dbus libpam-systemd udev kmod iproute2 procps psmisc less"
    " ca-certificates init-system-helpers"
)
# what Joblet runs with
RUNTIME = (
    "python3 python3-dbus-next python3-grpcio python3-protobuf python3-cryptography"
    " python3-systemd python3-yaml python3-click python3-seccomp python3-zstandard libdeflate0"
)
# what builds it and tests it, in the suite's own versions
TESTING = (
    "make protobuf-compiler protobuf-compiler-grpc"
    " python3-pytest python3-pytest-timeout python3-hypothesis"
)
PACKAGES = f"{SYSTEM} {RUNTIME} {TESTING}".split()

# Nothing that starts by itself, asks the network or competes with a test for the processor.
MASKED = (
    "getty@tty1.service",
    "console-getty.service",
    "systemd-timesyncd.service",
    "systemd-pstore.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
)

EXCLUDED = ("/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/man/*")

HOOKS = (
    "echo joblet > $1/etc/hostname",
    # empty, not absent: systemd makes an id at boot without taking it for a first boot
    "rm -f $1/var/lib/dbus/machine-id; : > $1/etc/machine-id",
    "passwd -q -R $1 -d root",
    "mkdir -p $1/etc/systemd/system $1/var/log/journal",
    f"for u in {' '.join(MASKED)}; do ln -sf /dev/null $1/etc/systemd/system/$u; done",
    # else every first boot rebuilds ld.so.cache and the journal's catalogue
    "touch $1/etc/.updated $1/var/.updated",
    # what a test installs later keeps its documentation
    "rm -f $1/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
)

TIMEOUT_S = 900


def check_suite(suite: str) -> str:
    if suite not in SUITES:
        raise RigError(f"make a machine of {suite!r}", f"the suites are {', '.join(SUITES)}")
    return suite


def vm_suites() -> tuple[str, ...]:
    """The suites whose VMs are tested: $JOBLET_VM_SUITES, or the first."""
    return tuple(check_suite(s) for s in os.environ.get("JOBLET_VM_SUITES", SUITES[0]).split())


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a root is made of."""

    name: str  # empty: what every machine has unless told otherwise
    packages: Sequence[str]
    variant: str = "minbase"
    hooks: Sequence[str] = HOOKS
    excluded: Sequence[str] = EXCLUDED


CONTROL = Path(__file__).resolve().parents[3] / "packaging/debian/control"
CHECKERS = ("lintian",)


def build_depends(control: str) -> list[str]:
    """The packages that debian/control wants for a build, tests included, without versions."""
    (names,) = _relations(control, "Build-Depends")
    return [name.replace("debhelper-compat", "debhelper") for name in names]


def depends(control: str) -> list[str]:
    """The archive's packages that the binary packages of debian/control depend on."""
    own = set(re.findall(r"^Package: *(\S+)", control, re.MULTILINE))
    names = {name for field in _relations(control, "Depends") for name in field}
    return sorted(name for name in names - own if not name.startswith("$"))


def _relations(control: str, field: str) -> list[list[str]]:
    """The names in each field of this name, without versions, profiles and alternatives."""
    texts = re.findall(rf"^{field}:(.*(?:\n .*)*)", control, re.MULTILINE)
    split = [
        [re.sub(r"[(<|].*", "", w, flags=re.DOTALL).strip() for w in t.split(",")] for t in texts
    ]
    return [[name for name in names if name] for names in split]


MACHINE = Recipe("", PACKAGES)
MINIMAL = Recipe("minimal", SYSTEM.split())
BUILD = Recipe(
    "build",
    [*build_depends(CONTROL.read_text()), *CHECKERS] if CONTROL.exists() else [],
    variant="buildd",
    hooks=(),
    excluded=EXCLUDED[:1],
)


def key(suite: str, recipe: Recipe = MACHINE) -> str:
    """Changes whenever the root would: it goes into the key of everything built upon it."""
    parts = [check_suite(suite), recipe.packages, MASKED, recipe.excluded, recipe.hooks]
    if recipe.name:
        parts += [recipe.name, recipe.variant]
    return key_of(*parts)


def root(cache: Cache, suite: str, recipe: Recipe = MACHINE) -> Path:
    """The directory with the suite's root, built on first use. Read-only for everyone."""
    parts = [check_suite(suite), recipe.name, key(suite, recipe)]
    name = "-".join(part for part in parts if part)
    what = f"root of {suite}{recipe.name and ', '}{recipe.name}"
    return cache.entry("root", name, what, lambda aside: _bootstrap(suite, recipe, aside))


def _bootstrap(suite: str, recipe: Recipe, target: Path) -> None:
    argv = ["mmdebstrap", "--mode=root", f"--variant={recipe.variant}", "--quiet"]
    argv.append("--include=" + ",".join(recipe.packages))
    argv.append('--aptopt=APT::Install-Recommends "false"')
    argv += [f"--aptopt={line.rstrip(';')}" for line in apt.options()]
    argv.append("--dpkgopt=force-unsafe-io")
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded]
    argv += [f"--customize-hook={hook}" for hook in recipe.hooks]
    argv += [suite, str(target), *apt.sources(suite)]
    hosttool.run(f"build the root of {suite}", argv, called="mmdebstrap", timeout=TIMEOUT_S)
