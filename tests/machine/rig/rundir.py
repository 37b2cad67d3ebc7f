# SPDX-License-Identifier: MIT
"""The directory of a machine that is up, and the clearing away of those whose owner has died.

CACHE/run/NAME/lock is flocked from before the machine starts until after it is gone, by the test
process and by the process beside the machine. A directory whose lock is free is nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import signal
import time
from pathlib import Path

from .cache import Cache, remove_tree
from .errors import RigError

log = logging.getLogger("rig")

PREFIX = "joblet-rig-"
EMPTY_S = 10.0
"""How long the kernel may take to empty a cgroup whose processes have been killed."""
UNLOCKED_GRACE_S = 60.0
"""A directory without a lock may be in the making for this long."""


class RunDir:
    """A machine's name, its directory and the lock on it."""

    def __init__(self, cache: Cache, suite: str) -> None:
        # The name is also that of a cgroup and of abstract sockets: unique on the host, whatever
        # cache, checkout or PID namespace its owner has.
        self.name = f"{PREFIX}{suite}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = cache.run / self.name
        self.path.mkdir(parents=True)
        self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Ends what is left of the machine and removes its directory. Idempotent."""
        if self.lock >= 0:
            clear(self.path)
            os.close(self.lock)
            self.lock = -1


def _abandoned(path: Path) -> bool:
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime < time.time() - UNLOCKED_GRACE_S
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def sweep(cache: Cache) -> list[str]:
    """Removes what dead runs left behind: processes, cgroups, directories.

    Returns the names of the machines they belonged to. Cheap when there is nothing to do.
    """
    gone = []
    with contextlib.suppress(FileNotFoundError):
        for path in cache.run.iterdir():
            if _abandoned(path):
                clear(path)
                gone.append(path.name)
    # of another cache, or of one that somebody has removed: only what holds no process any more
    for group in _groups("*"):
        with contextlib.suppress(OSError):
            _remove_group(group)
            gone.append(group.name)
    if gone:
        log.info("swept %s", ", ".join(gone))
    return gone


def clear(path: Path) -> None:
    """Removes a machine by its run directory, whatever is left of it.

    Its cgroup is what names its processes: a machine's PID 1 can outlive systemd-nspawn.
    """
    for group in _groups(path.name.removeprefix(PREFIX)):
        _kill_group(group)
    for left in Path("/run/systemd/nspawn").glob(f"*/{path.name}"):
        with contextlib.suppress(OSError):
            left.rmdir()
    remove_tree(path)


def _groups(rest: str) -> list[Path]:
    """The cgroups of machines: made at the top, or as a scope of the host's systemd."""
    names = (PREFIX + rest, f"*.slice/{PREFIX}{rest}.scope")
    return [group for mount in _cgroup2_mounts() for name in names for group in mount.glob(name)]


def _kill_group(group: Path) -> None:
    end = time.monotonic() + EMPTY_S
    while group.exists():
        for procs in [group / "cgroup.procs", *group.glob("**/cgroup.procs")]:
            with contextlib.suppress(OSError):
                for pid in procs.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
        try:
            _remove_group(group)
        except OSError as error:
            if time.monotonic() > end:
                raise RigError(f"remove the cgroup {group}", str(error)) from None
            time.sleep(0.01)


def _remove_group(group: Path) -> None:
    """Removes a cgroup and those beneath it; OSError while one of them holds a process."""
    for name, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            Path(name).rmdir()


def _cgroup2_mounts() -> list[Path]:
    pattern = re.compile(r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 ")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(found[1]) for line in mounts if (found := pattern.match(line))]
