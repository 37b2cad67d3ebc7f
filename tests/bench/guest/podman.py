# SPDX-License-Identifier: MIT
"""podman run, as fully as this machine lets it: the first way that works is the one measured.

A machine without cgroup controllers, or without CAP_SYS_RESOURCE, refuses what podman asks for by
default; what was left out stands in the row. The image holds the two commands and nothing else, on
a tmpfs; the network is the host's, as a job's.
"""

import dataclasses
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tests.bench.guest import stamp
from tests.bench.guest.errors import Broken
from tests.bench.guest.peers import Process

STORAGE: Final = Path("/var/lib/containers")
IMAGE: Final = "localhost/joblet-bench"
ROOT: Final = Path("/var/tmp/joblet-bench-image")
SETUP_S: Final = 60

DRIVERS: Final = ("overlay", "vfs")
WAYS: Final = (
    ("crun", ()),
    ("crun", ("--pids-limit=-1",)),
    ("runc", ("--pids-limit=-1",)),
    ("crun", ("--cgroups=disabled",)),
)
"""Runtime and options, the most complete first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Podman:
    """How podman is called in this machine."""

    version: str
    driver: str
    runtime: str
    options: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        storage = [f"--root={STORAGE}/{self.driver}", f"--runroot=/run/containers/{self.driver}"]
        return ["podman", *storage, f"--storage-driver={self.driver}", f"--runtime={self.runtime}"]

    @property
    def description(self) -> str:
        words = [f"podman {self.version}", self.runtime, *self.options, f"{self.driver} on tmpfs"]
        return ", ".join(words)

    def run(self, *options: str) -> list[str]:
        return [*self.command, "run", "--network=host", *self.options, *options, IMAGE]

    @property
    def peer(self) -> Process:
        return Process(" ".join(["podman run --rm", *self.options]), *self.run("--rm"))


def find() -> Podman:
    """The image imported, a way found. Raises Broken, with what podman said last."""
    if shutil.which("podman") is None:
        raise Broken("podman is not installed")
    version = _said(["podman", "--version"]).split()[-1]
    _said(["mount", "-t", "tmpfs", "tmpfs", str(STORAGE)])
    image = _image()
    last = ""
    for driver in DRIVERS:
        first = Podman(version, driver, *WAYS[0])
        try:
            _said([*first.command, "import", str(image), IMAGE])
        except Broken as error:
            last = str(error)
            continue
        for way in WAYS:
            found = Podman(version, driver, *way)
            try:
                _said([*found.run("--rm"), "true"])
                found.peer.run(stamp.PATH.name)
            except Broken as error:
                last = str(error)
            else:
                return found
    raise Broken(last)


def _image() -> Path:
    """A tar of `true`, `sleep` and the stamp, with what they load."""
    (ROOT / "usr/bin").mkdir(parents=True, exist_ok=True)
    names = ("bin", "lib", "lib64", "sbin")
    for name in names:
        (ROOT / f"usr/{name}").mkdir(exist_ok=True)
        (ROOT / name).symlink_to(f"usr/{name}")
    programs = [Path("/usr/bin/true"), Path("/usr/bin/sleep")]
    if stamp.PATH.read_bytes() == stamp.DATE:
        programs += [Path("/usr/bin/date"), Path("/usr/bin/sh")]
    for path in [stamp.PATH, *programs, *_libraries(programs)]:
        target = ROOT / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)  # what a link names, under the link's name
    image = ROOT.with_suffix(".tar")
    with tarfile.open(image, "w") as tar:
        tar.add(ROOT, ".")
    return image


def _libraries(programs: list[Path]) -> set[Path]:
    """The files that programs need to start, by the names under which the loader finds them."""
    words = _said(["ldd", *map(str, programs)]).split()
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def _said(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SETUP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Broken(f"{argv[0]} was not done after {SETUP_S} s") from None
    text = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise Broken(f"{argv[0]}: {text.splitlines()[-1] if text else done.returncode}")
    return text
