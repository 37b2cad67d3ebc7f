# SPDX-License-Identifier: MIT
"""The process of init mode for the journal's contents: forked at the start, like the zygote, it
forks one process for each thing to do.

    copy    lines of jobs to journald, for one connection of the server; root, without capabilities
    read    what the journal has of one job's unit, for one reader; nobody, may read files

Apart from init mode, because neither may delay a launch: entries are made and read in Python, some
ten thousand a second, and a journal file that is cut short under a reader kills it (SIGBUS). What
each needs comes along as one descriptor, whose other end the server gets; its hang-up ends the
process. A restart of init mode ends them all, and the server asks again.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys as python
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from joblet.launch import syscalls as sys
from joblet.launch.zygote import recv_fds

COPY: Final = "copy"
READ: Final = "read"
MAX_REQUEST: Final = 4096
MAX_PROCESSES: Final = 128
PATIENCE_MS: Final = 250  # that lines of a job wait for journald
NICE: Final = 5  # a launch goes first
CAP_DAC_READ_SEARCH: Final = 2
PR_SET_KEEPCAPS: Final = 8
NOBODY: Final = 65534


class JournalProcess:
    """Init mode's end."""

    def __init__(self) -> None:
        """Forks. Call before threads, before large imports."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _serve(theirs)
        theirs.close()
        self._socket.settimeout(0)

    def begin(self, what: str, fields: Mapping[str, object], end: socket.socket) -> None:
        """COPY or READ on a socket, which stays the caller's. Its hang-up without a word is the
        answer of a process that could not be begun. Raises OSError: there is none any more, or it
        is busy."""
        request = json.dumps({"what": what, **fields}).encode()
        socket.send_fds(self._socket, [request], [end.fileno()])

    def close(self) -> None:
        self._socket.close()


def _serve(sock: socket.socket) -> NoReturn:
    status = 1
    try:
        _name(b"joblet-journal")
        _close_all_but(sock.fileno())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.nice(NICE)
        # here, so that those who are forked share it
        from joblet.init import journal_copy, journal_read
        from joblet.systemd.journal import Journal

        def copy(channel: socket.socket) -> None:
            # which wants more room for its socket than everybody may have
            journal = Journal(patience_ms=PATIENCE_MS)
            sys.capset(0)
            journal_copy.serve(channel, journal)

        gc.collect()
        gc.freeze()
        running: set[int] = set()
        signal.signal(signal.SIGCHLD, lambda *_: _reap(running))
        while True:
            data, fds = recv_fds(sock, MAX_REQUEST, 1)
            if not data:
                status = 0
                break
            _reap(running)
            if fds and len(running) < MAX_PROCESSES:
                with contextlib.suppress(OSError):
                    pid = os.fork()
                    if pid == 0:
                        sock.close()
                        _run(json.loads(data), fds[0], copy, journal_read.serve)
                    running.add(pid)
            for fd in fds:
                os.close(fd)
    finally:
        os._exit(status)


def _run(
    request: Mapping[str, object],
    fd: int,
    copy: Callable[[socket.socket], None],
    read: Callable[[socket.socket, Mapping[str, object]], None],
) -> NoReturn:
    """In the child: one task, then nothing. What it cannot do, it says in the journal."""
    status = 1
    try:
        _close_all_but(fd)
        sock = socket.socket(fileno=fd)
        sock.settimeout(None)
        if request["what"] == COPY:
            _name(b"joblet-copy")
            copy(sock)
        else:
            _name(b"joblet-read")
            become_reader()
            read(sock, request)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the server has had enough
    except BaseException:
        python.excepthook(*python.exc_info())
    finally:
        os._exit(status)


def _name(name: bytes) -> None:
    sys.set_cmdline(name)
    sys.set_name(name)


def become_reader() -> None:
    """Nobody, who may read every file: what a job wrote is parsed by a C library, and root's powers
    are no use to it. Raises OSError."""
    sys.prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.capset(1 << CAP_DAC_READ_SEARCH)
    sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(max(3, kept + 1), os.sysconf("SC_OPEN_MAX"))


def _reap(running: set[int]) -> None:
    for pid in list(running):
        with contextlib.suppress(ChildProcessError):
            if not os.waitpid(pid, os.WNOHANG)[0]:
                continue
        running.discard(pid)
