# SPDX-License-Identifier: MIT
"""podman from the suite's own archive, as a layer for the machine that is measured.

A machine has no network, so the packages are fetched on the host: by its apt, for the machine's
suite and from the machine's list of what is installed, in directories of their own.
"""

import subprocess
import tempfile
from pathlib import Path

from tests.machine.rig import Cache, Nspawn, RigError, apt, build_layer, roots

PACKAGES = ("podman", "crun", "runc")
FETCH_S = 300
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
        lambda machine: _install(machine, roots.root(cache, suite)),
        [PACKAGES, INSTALL],
        what="podman, to compare with",
        cache=cache,
    )


def _install(machine: Nspawn, root: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="joblet-podman-") as name:
        for package in _fetch(machine.suite, root, Path(name)):
            machine.write(f"/mnt/{package.name}", package.read_bytes())
    machine.run(INSTALL, check=True, timeout=INSTALL_S)
    machine.run("rm -f /mnt/*.deb", check=True)


def _fetch(suite: str, root: Path, place: Path) -> list[Path]:
    """The packages that `root` does not have yet."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    sources = place / "sources.list"
    sources.write_text("\n".join(apt.sources(suite)) + "\n")
    own = {
        "Dir::State": f"{place}/state",
        "Dir::State::status": f"{root}/var/lib/dpkg/status",
        "Dir::Cache": f"{place}/cache",
        "Dir::Etc::sourcelist": str(sources),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    configuration = place / "apt.conf"
    lines = [*apt.options(), *(f'{key} "{value}";' for key, value in own.items())]
    configuration.write_text("\n".join(lines) + "\n")
    # without --error-on a mirror that is away leaves an update without packages, and exit status 0
    _apt(["update", "--error-on=any"], configuration)
    _apt(["install", "--yes", "--download-only", *PACKAGES], configuration)
    return sorted((place / "cache/archives").glob("*.deb"))


def _apt(words: list[str], configuration: Path) -> None:
    what = f"fetch {' '.join(PACKAGES)}"
    environ = {
        "APT_CONFIG": str(configuration),
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    try:
        done = subprocess.run(
            ["apt-get", "--quiet", *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=FETCH_S,
            check=False,
        )
    except FileNotFoundError:
        raise RigError(what, "apt-get is not installed") from None
    except subprocess.TimeoutExpired as late:
        raise RigError(
            what, f"apt-get was not done after {FETCH_S} s", late.stdout or b""
        ) from None
    if done.returncode != 0:
        raise RigError(what, f"apt-get {words[0]} exited with {done.returncode}", done.stdout)
