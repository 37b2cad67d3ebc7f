# SPDX-License-Identifier: MIT
"""Where roots, kernels, images, snapshots and layers are kept: made once, used by every run.

    $JOBLET_CACHE, or $XDG_CACHE_HOME/joblet, or ~/.cache/joblet
      KIND/KEY          a finished entry; it appears by rename and is never changed afterwards
      lock/KIND-KEY     flock: whoever builds holds it, others wait for the result
      tmp/KIND-KEY.*    an entry in the making
      run/NAME/         a machine that is up, see rundir.py

KEY is a hash of everything that makes the entry, so an entry is either right or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("rig")

OVERLAYFS_MAGIC = 0x794C7630
KEEP_DAYS = 7
"""Entries of kinds that follow the working tree are removed when unused for so long."""


def default_root() -> Path:
    """The cache directory of this user; see the module's docstring."""
    own = os.environ.get("JOBLET_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "joblet"


def key_of(*parts: object) -> str:
    """A short hash of JSON-able parts: the same parts, the same key, on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def filesystem_magic(path: Path) -> int:
    """statfs(2)'s f_type of the filesystem that holds `path`."""
    out = subprocess.run(
        ["stat", "-f", "-c", "%t", str(path)], check=True, stdout=subprocess.PIPE
    ).stdout
    return int(out, 16)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive flock on `path`, waiting for it as long as it takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_tree(path: Path) -> None:
    """rm -rf: handles what chroots leave behind, and never follows a link."""
    if path.is_symlink() or path.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=True)


class Cache:
    """The cache below `root`. Safe for any number of processes and threads."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def on_overlay(self) -> bool:
        """Whether the cache lies on overlayfs, which takes neither an upper directory nor
        whiteouts (a container whose root is an overlay): then both live on tmpfs and in tars."""
        self.root.mkdir(parents=True, exist_ok=True)
        return filesystem_magic(self.root) == OVERLAYFS_MAGIC

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def entry(self, kind: str, key: str, what: str, build: Callable[[Path], None]) -> Path:
        """The finished entry KIND/KEY; `build` makes it when it is absent.

        `build` is given a directory that does not exist yet and leaves there a directory or a
        file. It runs at most once at a time on this host; whatever it raises is passed on and
        nothing is left behind. `what` names the entry in the log.
        """
        final = self.path(kind, key)
        with contextlib.suppress(OSError):
            os.utime(final)  # "used now", for prune()
            return final
        with locked(self.root / "lock" / f"{kind}-{key}"):
            if final.exists():
                return final
            making = self.root / "tmp"
            making.mkdir(parents=True, exist_ok=True)
            for left in making.glob(f"{kind}-{key}.*"):  # we hold the lock: its maker is dead
                remove_tree(left)
            aside = making / f"{kind}-{key}.{os.getpid()}"
            log.info("building %s", what)
            begun = time.monotonic()
            try:
                build(aside)
                final.parent.mkdir(parents=True, exist_ok=True)
                aside.rename(final)
            except BaseException:
                remove_tree(aside)
                raise
            os.utime(final)
            log.info("%s: %.1f s", what, time.monotonic() - begun)
        return final

    def prune(self, kind: str, days: float = KEEP_DAYS) -> None:
        """Removes the entries of one kind that nobody has asked for in `days` days."""
        oldest = time.time() - days * 86400
        with contextlib.suppress(FileNotFoundError):
            for entry in (self.root / kind).iterdir():
                if entry.stat().st_mtime < oldest:
                    remove_tree(entry)
