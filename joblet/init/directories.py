# SPDX-License-Identifier: MIT
"""Job directories: made, looked at and removed by root; a job's whole state that must outlive a
server.

    ID/         root 0700
      out err   FIFOs of 1 MiB, root 0222: write-only for whoever holds one, unreachable by name
      ctl       the socket on which PID 1 listens
      exit      the exit record; *.rest what was left in the pipes
      work/     the job's own, /work inside

Everything is opened relative to a descriptor of the directory above, and never through a link.
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from joblet import link
from joblet.errors import AlreadyExists, FailedPrecondition, Internal, NotFound
from joblet.launch.plan import JOB_ID

PIPE_SIZE: Final = 1 << 20  # bytes; an unprivileged user would get 64 of that size only
RESULTS: Final = ("exit", "out.rest", "err.rest")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    def __init__(self, base: Path) -> None:
        """base: root's own; missing, it is made 0711. Raises Internal when it is not root's
        alone."""
        self.base = base
        try:
            if not base.exists():
                base.mkdir(parents=True)
                base.chmod(0o711)  # whatever the umask says
            self._fd = os.open(base, _DIRECTORY)
        except OSError as error:
            raise Internal(
                f"use {base} for job directories", error.strerror or str(error)
            ) from None
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            os.close(self._fd)
            raise Internal(
                f"use {base} for job directories",
                "it can be written by others than root",
                hint=f"chown root:root {base}; chmod 0711 {base}",
            )
        # the uid range of every directory: a range is free again when its directory is gone
        self.uids: dict[str, int] = dict(self._scan())

    def close(self) -> None:
        os.close(self._fd)

    def path(self, job: str) -> str:
        return f"{self.base}/{job}"

    def _scan(self) -> Iterator[tuple[str, int]]:
        for name in os.listdir(self._fd):
            if not JOB_ID.fullmatch(name):
                continue
            try:
                yield name, os.stat(f"{name}/work", dir_fd=self._fd, follow_symlinks=False).st_uid
            except OSError:
                yield name, -1

    def jobs(self) -> list[tuple[str, int]]:
        """(job, uid range's base or -1) of every directory."""
        return list(self._scan())

    def create(self, job: str, uid: int, streams: Sequence[str]) -> tuple[int, list[int]]:
        """(directory's fd, read and write end of each stream). Raises AlreadyExists, Internal;
        then nothing is left."""
        with contextlib.ExitStack() as undo:
            try:
                os.mkdir(job, 0o700, dir_fd=self._fd)
                undo.callback(shutil.rmtree, job, dir_fd=self._fd, ignore_errors=True)
                fd = os.open(job, _DIRECTORY, dir_fd=self._fd)
                undo.callback(os.close, fd)
                os.mkdir("work", 0o700, dir_fd=fd)
                os.chown("work", uid, uid, dir_fd=fd, follow_symlinks=False)
                ends: list[int] = []
                for name in streams:
                    os.mkfifo(name, 0o222, dir_fd=fd)
                    os.chmod(name, 0o222, dir_fd=fd)  # noqa: S103 - whatever the umask says
                    # both ends before anyone reads: a FIFO without a writer reads as its end
                    for flags in (os.O_RDONLY | os.O_NONBLOCK, os.O_WRONLY):
                        end = os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)
                        undo.callback(os.close, end)
                        ends.append(end)
                    fcntl.fcntl(ends[-1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except FileExistsError:
                raise AlreadyExists("make the job's directory", f"job {job} has one") from None
            except OSError as error:
                raise Internal("make the job's directory", str(error)) from None
            undo.pop_all()
        self.uids[job] = uid
        return fd, ends

    def connect(self, job: str) -> tuple[str, socket.socket | None]:
        """(link.CONNECTED, socket) | (BUSY | GONE | NEVER, None): non-blocking, so that a frozen
        job hangs nobody."""
        with self._open(job) as fd:
            connection = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                connection.connect(f"/proc/self/fd/{fd}/ctl")
            except BlockingIOError:
                connection.close()
                return link.BUSY, None
            except ConnectionRefusedError:
                connection.close()
                return link.GONE, None
            except FileNotFoundError:
                connection.close()
                return link.NEVER, None
            except OSError as error:  # not known is not never: what lives must not be cleaned up
                connection.close()
                raise Internal(f"connect to job {job}", str(error)) from None
            return link.CONNECTED, connection

    def state(self, job: str) -> str:
        """LIVE, GONE or NEVER, without taking a place in PID 1's backlog for longer than the
        look."""
        state, connection = self.connect(job)
        if connection is not None:
            connection.close()
        return link.LIVE if state in (link.CONNECTED, link.BUSY) else state

    def results(self, job: str) -> tuple[list[str], list[int]]:
        """Read-only descriptors of what PID 1 left, with their names. Raises FailedPrecondition
        while it lives."""
        if self.state(job) == link.LIVE:
            raise FailedPrecondition(f"read the results of job {job}", "its PID 1 is still there")
        names: list[str] = []
        fds: list[int] = []
        with self._open(job) as fd:
            for name in RESULTS:
                try:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    fds.append(os.open(name, flags, dir_fd=fd))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    link.close_all(fds)
                    raise Internal(f"read {name} of job {job}", str(error)) from None
                names.append(name)
        return names, fds

    def remove(self, job: str) -> None:
        """Blocking: a job may have left many files. Nothing of a job that lives is removed."""
        try:
            if self.state(job) == link.LIVE:
                raise FailedPrecondition(f"clean up job {job}", "its PID 1 is still there")
        except NotFound:
            self.uids.pop(job, None)
            return
        try:
            _remove_tree(job, self._fd)
        except OSError as error:
            raise Internal(f"remove the directory of job {job}", str(error)) from None
        self.uids.pop(job, None)

    @contextlib.contextmanager
    def _open(self, job: str) -> Iterator[int]:
        try:
            fd = os.open(job, _DIRECTORY, dir_fd=self._fd)
        except OSError:
            raise NotFound(f"open the directory of job {job}", "there is none") from None
        try:
            yield fd
        finally:
            os.close(fd)


def _remove_tree(name: str, dir_fd: int) -> None:
    """Remove a directory with all that is in it. Raises OSError.

    Not shutil.rmtree: a job can nest directories deeper than Python's stack or its descriptors go.
    Here each directory that is found moves up beside the others, under a number, until it is empty.
    Follows no links; nobody else changes anything in there.
    """
    top = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        todo = [entry for entry in os.listdir(top) if _is_directory(entry, top)]
        # numbers that an earlier try has left are names like any other
        numbers = itertools.count(1 + max((int(n) for n in todo if n.isdecimal()), default=0))
        while todo:
            inner = os.open(todo[-1], _DIRECTORY, dir_fd=top)
            try:
                found = _empty(inner, top, numbers)
            finally:
                os.close(inner)
            os.rmdir(todo.pop(), dir_fd=top)
            todo += found
        for entry in os.listdir(top):
            os.unlink(entry, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _empty(fd: int, top: int, numbers: Iterator[int]) -> list[str]:
    """Files of a directory are removed, directories moved to `top`; their new names."""
    moved: list[str] = []
    again = True
    while again:  # a filesystem may pass over entries while others are removed
        again = False
        with os.scandir(fd) as entries:
            for entry in entries:
                again = True
                if entry.is_dir(follow_symlinks=False):
                    moved.append(str(next(numbers)))
                    os.rename(entry.name, moved[-1], src_dir_fd=fd, dst_dir_fd=top)
                else:
                    os.unlink(entry.name, dir_fd=fd)
    return moved


def _is_directory(name: str, dir_fd: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
