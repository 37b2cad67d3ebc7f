# SPDX-License-Identifier: MIT
"""A VM booted once and frozen: clones of it are up in about a second instead of ten.

An entry of the cache holds `memory` (the RAM, a sparse file), `state` (the devices, a migration
stream) and `disk.qcow2` (what the boot wrote, over the image). A clone maps the RAM privately,
copied on write, so nothing is read ahead and clones share what they do not change: the migration
capability x-ignore-shared leaves it out of the stream.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING

from . import emulator, image, kernel, roots
from .cache import Cache, key_of
from .emulator import Emulator
from .errors import BootFailed, RigError
from .rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BOOT_S = 240.0
"""Under emulation, on a busy machine."""
MIGRATE_S = 120.0
RESTORE_S = 60.0
IGNORE_SHARED = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]

# Read once before the freeze, so that a clone finds in its page cache what every test runs first.
WARM = (
    "systemctl --version; journalctl --version; python3 -c 'import asyncio, grpc, sqlite3, yaml,"
    " dbus_next, click, cryptography, systemd.journal'; systemd-run --wait --pipe true; sync"
)


def key(suite: str, layers: Sequence[Path], *, audit: bool) -> str:
    return key_of(image.key(suite, layers), emulator.fingerprint(audit=audit), WARM)


def snapshot(cache: Cache, suite: str, layers: Sequence[Path] = (), *, audit: bool = False) -> Path:
    """The directory with the frozen machine, made on first use."""
    roots.check_suite(suite)
    if os.uname().machine != "x86_64":
        raise RigError("make a VM", f"this is {os.uname().machine}, and VMs are made on x86_64")
    disk = image.image(cache, suite, layers)

    def build(aside: Path) -> None:
        _freeze(cache, suite, disk, aside, audit=audit)

    name = f"{suite}-{key(suite, layers, audit=audit)}"
    return cache.entry("snapshot", name, f"snapshot of the {suite} VM", build)


def overlay(disk: Path, base: Path, base_format: str) -> None:
    """A new qcow2 file over `base`, which it names by a relative path: a cache can be moved."""
    relative = os.path.relpath(base, disk.parent)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format, "-b", relative, str(disk)]
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except FileNotFoundError:
        raise RigError("make a VM's disk", "qemu-img is not installed") from None
    if done.returncode != 0:
        raise RigError("make a VM's disk", f"exit code {done.returncode}", done.stdout)


def options(
    cache: Cache,
    suite: str,
    directory: Path,
    disk: Path,
    memory: Path,
    *,
    share: bool,
    audit: bool,
) -> list[str]:
    """The emulator's options for a machine of this suite in a run directory."""
    boot = kernel.kernel(cache, suite)
    return emulator.options(
        disk,
        blank(directory / "payload", emulator.PAYLOAD_SIZE),
        blank(directory / "scratch", emulator.SCRATCH_SIZE),
        memory,
        share=share,
        vmlinux=boot / "vmlinux",
        initrd=boot / "initrd",
        audit=audit,
    )


def blank(path: Path, size: int) -> Path:
    """A file of exactly `size` bytes, with zeros behind what it holds already."""
    with path.open("ab") as file:
        file.truncate(size)
    return path


def settle(machine: Emulator, timeout: float) -> None:
    """Waits until the guest answers and systemd has no job left, whatever has become of them."""
    begun = time.monotonic()
    machine.agent.ready(timeout)
    left = max(timeout - (time.monotonic() - begun), 1.0)
    machine.agent.run(["systemctl", "is-system-running", "--wait"], left)


def _freeze(cache: Cache, suite: str, disk: Path, aside: Path, *, audit: bool) -> None:
    aside.mkdir()
    overlay(aside / "disk.qcow2", disk, "raw")
    directory = RunDir(cache, suite)
    memory = aside / "memory"
    argv = options(
        cache, suite, directory.path, aside / "disk.qcow2", memory, share=True, audit=audit
    )
    try:
        machine = Emulator(directory, argv)
        try:
            settle(machine, BOOT_S)
            machine.agent.run(["/bin/sh", "-c", WARM], BOOT_S)
            machine.qmp.call("stop")
            machine.qmp.call("migrate-set-capabilities", capabilities=IGNORE_SHARED)
            target = shlex.quote(str(aside / "state"))
            machine.qmp.call("migrate", uri=f"exec:cat > {target}")
            machine.qmp.migrated(MIGRATE_S)
            machine.qmp.call("quit")
            machine.wait(RESTORE_S)
        except RigError as error:
            serial = (directory.path / "serial.log").read_text(errors="replace")
            text = f"{machine.log}\n{serial}"
            raise BootFailed(f"boot the {suite} VM", str(error), text) from None
        finally:
            machine.kill()
    finally:
        directory.close()
    for name in ("memory", "state", "disk.qcow2"):
        (aside / name).chmod(0o400)


def restore(machine: Emulator, frozen: Path) -> None:
    """Lets an emulator started with `-incoming defer` go on where the snapshot stopped."""
    machine.qmp.call("migrate-set-capabilities", capabilities=IGNORE_SHARED)
    source = shlex.quote(str(frozen / "state"))
    machine.qmp.call("migrate-incoming", uri=f"exec:cat {source}")
    machine.qmp.migrated(RESTORE_S)
    machine.qmp.call("cont")
    machine.agent.ready(RESTORE_S)
    # the guest's clock stood still
    machine.agent.run(["date", "-s", f"@{time.time():.6f}"], RESTORE_S).check()
