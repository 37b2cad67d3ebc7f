# SPDX-License-Identifier: MIT
"""The directories that logs lie in, on the disk and in the stage: whose they are, what they can do,
and how their last user left them.

    <directory>/.lock            locked by the one process that uses the directory
    <directory>/.clean           tag of the boot whose last server stopped cleanly
    <directory>/<job id>/        a log: index (format.IndexState), segments (segments.Segments) and
                                 what of them has expired (expired)
    <directory>/.removed-<id>/   a log that is being removed
    <stage>/.lock                likewise
    <stage>/<job id>/            what of a log is not in its directory yet (stage)
    <spill>/<job id>/            what of that was moved to a disk, because the stage was nearly full

Blocking. Must not import anything of joblet but joblet.errors and its neighbours faults, files,
recovery, stage.
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
from joblet.server.logs.files import INDEX_NAME, sync_directory, write_all
from joblet.server.logs.recovery import UNKNOWN_BOOT
from joblet.server.logs.stage import spilled_to

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
    """Valid between `take` and `release`. `stage`: on a tmpfs, see stage. `spill`: may be None.
    `boot_id`: this boot, None asks the kernel.

    `boot` is the tag of this boot, `clean_boot` of one that ended with a clean stop, everything
    synced, or UNKNOWN_BOOT.
    """

    def __init__(self, path: Path, stage: Path, spill: Path | None, boot_id: str | None) -> None:
        self.path = path
        self.stage = stage
        self.spill = spill
        self.boot = self.clean_boot = UNKNOWN_BOOT
        self._boot_id = boot_id
        self._locks: list[int] = []

    def take(self) -> None:
        """Raises FailedPrecondition if another process has them or the stage's filesystem cannot
        splice, ResourceExhausted or Internal if the disk refuses. Then nothing is held."""
        what = f"keep output in {self.path}"
        try:
            self._lock(self.path)
            what = f"stage output in {self.stage}"
            self._lock(self.stage)
            self._probe_splice(what)
            self._take_spill()
            what = f"keep output in {self.path}"
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
        while self._locks:
            os.close(self._locks.pop())

    def _lock(self, path: Path) -> None:
        path.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
        fd = os.open(path / _LOCK, os.O_RDWR | _FLAGS, _FILE_MODE)
        self._locks.append(fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

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

    def stage_path(self, job_id: str) -> Path:
        """Where what is staged of a log lies. Raises as log_path."""
        return self.stage / self.log_path(job_id).name

    def spill_path(self, job_id: str) -> Path | None:
        """Where what is spilled of a log lies. Raises as log_path."""
        return None if self.spill is None else self.spill / self.log_path(job_id).name

    def list_staged(self) -> list[str]:
        """Ids of the logs of which something is staged, sorted. Raises OSError."""
        return _logs_in(self.stage)

    def holds(self, job_id: str) -> bool:
        return (self.log_path(job_id) / INDEX_NAME).exists()

    def has_something(self, job_id: str) -> bool:
        """Whether anything of a log is there, however damaged."""
        paths = (self.log_path(job_id), self.stage_path(job_id))
        return any(path.is_dir() and any(path.iterdir()) for path in paths)

    def make(self, job_id: str) -> Path:
        """The directory of a log, made if it is not there. Raises OSError."""
        path = self.log_path(job_id)
        path.mkdir(_DIRECTORY_MODE, exist_ok=True)
        return path

    def list(self) -> list[str]:
        """Ids of the logs, sorted. Raises OSError."""
        return _logs_in(self.path)

    def remove(self, job_id: str) -> None:
        """Remove a log: at once from the list, then its files. Raises OSError."""
        aside = self.path / f"{_REMOVED}{job_id}"
        shutil.rmtree(aside, ignore_errors=True)  # of a removal that was cut short
        there = True
        try:
            self.log_path(job_id).rename(aside)
        except FileNotFoundError:
            there = False
        # not before: a log that cannot be removed keeps all of it
        stage = self.stage_path(job_id)
        for path in (self.spill_path(job_id), spilled_to(stage), stage):
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
        if not there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.log_path(job_id))
        shutil.rmtree(aside)

    def sync(self) -> None:
        """Make durable which logs there are. Raises OSError."""
        sync_directory(self.path)

    def _take_spill(self) -> None:
        """What is spilled belongs to what is staged: without that, it is a dead machine's.

        A directory that cannot be used keeps nobody from starting: who would spill waits.
        """
        if self.spill is None:
            return
        with contextlib.suppress(OSError):
            self.spill.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            for job_id in set(_logs_in(self.spill)) - set(_logs_in(self.stage)):
                shutil.rmtree(self.spill / job_id, ignore_errors=True)

    def _probe_splice(self, what: str) -> None:
        """Move a byte from a pipe into a file, as the readers will."""
        path = self.stage / _PROBE
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
                    hint="set paths.stage_dir to a directory on a tmpfs",
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


def _logs_in(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(
            entry.name for entry in entries if _JOB_ID.fullmatch(entry.name) and entry.is_dir()
        )


def _boot_tag(boot_id: str) -> int:
    """64 bits for a boot, never UNKNOWN_BOOT."""
    digest = hashlib.blake2b(boot_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
