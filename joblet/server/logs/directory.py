# SPDX-License-Identifier: MIT
"""The directory that logs lie in: whose it is, what it can do, and how its last user left it.

    <directory>/.lock            locked by the one process that uses the directory
    <directory>/.clean           tag of the boot whose last server stopped cleanly
    <directory>/<job id>/        a log: out, err, index (format.IndexState)
    <directory>/.removed-<id>/   a log that is being removed

Blocking. Must not import anything of joblet but joblet.errors and its neighbours files, recovery.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Final

from joblet.errors import FailedPrecondition, InvalidArgument
from joblet.server.logs.faults import fault
from joblet.server.logs.files import INDEX_NAME, STREAM_NAMES, sync_directory, write_all
from joblet.server.logs.recovery import UNKNOWN_BOOT

_JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_REMOVED: Final = ".removed-"
_CLEAN: Final = ".clean"
_LOCK: Final = ".lock"
_PROBE: Final = ".probe"
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FLAGS: Final = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_CANNOT_SPLICE: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class LogDirectory:
    """Valid between `take` and `release`. `boot_id`: this boot, None asks the kernel.

    `boot` is the tag of this boot, `clean_boot` of one that ended with a clean stop, everything
    synced, or UNKNOWN_BOOT.
    """

    def __init__(self, path: Path, boot_id: str | None) -> None:
        self.path = path
        self.boot = self.clean_boot = UNKNOWN_BOOT
        self._boot_id = boot_id
        self._lock_fd = -1

    def take(self) -> None:
        """Raises FailedPrecondition if another process has it or its filesystem cannot splice,
        ResourceExhausted or Internal if the disk refuses. Then nothing is held."""
        what = f"keep output in {self.path}"
        try:
            self.path.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.path / _LOCK, os.O_RDWR | _FLAGS, _FILE_MODE)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._probe_splice(what)
            boot_id = self._boot_id or _BOOT_ID.read_text(encoding="ascii").strip()
            self.boot = _boot_tag(boot_id)
            self.clean_boot = self._take_clean_mark()
            for entry in self.path.iterdir():
                if entry.name.startswith(_REMOVED):
                    shutil.rmtree(entry, ignore_errors=True)
        except BlockingIOError as exc:
            self.release()
            raise FailedPrecondition(
                what, "another server uses it", hint="stop it, or set another directory"
            ) from exc
        except OSError as exc:
            self.release()
            raise fault(what, exc) from exc
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def mark_clean(self) -> None:
        """Say that all of this boot is synced so far; `take` takes it back. Raises OSError."""
        new = self.path / f"{_CLEAN}.new"
        fd = os.open(new, os.O_WRONLY | os.O_TRUNC | _FLAGS, _FILE_MODE)
        try:
            write_all(fd, f"{self.boot:016x}\n".encode(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(self.path / _CLEAN)
        sync_directory(self.path)

    def log_path(self, job_id: str) -> Path:
        """Raises InvalidArgument for what cannot be the name of a log."""
        if not _JOB_ID.fullmatch(job_id):
            raise InvalidArgument("use a log", f"{job_id!r} is not a job id")
        return self.path / job_id

    def holds(self, job_id: str) -> bool:
        return (self.log_path(job_id) / INDEX_NAME).exists()

    def has_something(self, job_id: str) -> bool:
        """Whether anything of a log is there, however damaged."""
        path = self.log_path(job_id)
        return any((path / name).exists() for name in (INDEX_NAME, *STREAM_NAMES.values()))

    def make(self, job_id: str) -> Path:
        """The directory of a log, made if it is not there. Raises OSError."""
        path = self.log_path(job_id)
        path.mkdir(_DIRECTORY_MODE, exist_ok=True)
        return path

    def list(self) -> list[str]:
        """Ids of the logs, sorted. Raises OSError."""
        with os.scandir(self.path) as entries:
            return sorted(
                entry.name for entry in entries if _JOB_ID.fullmatch(entry.name) and entry.is_dir()
            )

    def remove(self, job_id: str) -> None:
        """Remove a log: at once from the list, then its files. Raises OSError."""
        aside = self.path / f"{_REMOVED}{job_id}"
        shutil.rmtree(aside, ignore_errors=True)  # of a removal that was cut short
        self.log_path(job_id).rename(aside)
        shutil.rmtree(aside)

    def _probe_splice(self, what: str) -> None:
        """Move a byte from a pipe into a file, as the readers will."""
        path = self.path / _PROBE
        with contextlib.ExitStack() as stack:
            target = os.open(path, os.O_RDWR | os.O_TRUNC | _FLAGS, _FILE_MODE)
            stack.callback(os.close, target)
            stack.callback(path.unlink)
            source, sink = os.pipe()
            stack.callback(os.close, source)
            stack.callback(os.close, sink)
            os.write(sink, b"1")
            try:
                os.splice(source, target, 1, offset_dst=0)
            except OSError as exc:
                if exc.errno not in _CANNOT_SPLICE:
                    raise
                raise FailedPrecondition(
                    what,
                    "its filesystem cannot take data from a pipe (splice)",
                    hint="set a directory on ext4, xfs, btrfs or tmpfs",
                ) from exc

    def _take_clean_mark(self) -> int:
        """The boot that ended cleanly. The mark of this boot is removed, durably: it is not true
        any more once somebody writes."""
        mark = self.path / _CLEAN
        try:
            boot = int(mark.read_text(encoding="ascii"), 16)
        except (FileNotFoundError, ValueError):
            return UNKNOWN_BOOT
        if boot == self.boot:
            mark.unlink()
            sync_directory(self.path)
        return boot


def _boot_tag(boot_id: str) -> int:
    """64 bits for a boot, never UNKNOWN_BOOT."""
    digest = hashlib.blake2b(boot_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
