# SPDX-License-Identifier: MIT
"""The zygote: a warm process that holds nothing but what a PID 1 needs, and forks one per request.

stdlib alone; init mode forks it before it imports anything large. It lives in the service's cgroup
(half-launched PID 1s die with the service), reads requests from one SEQPACKET socket, and exits at
its end of file. One request is the directory's path with REQUEST_FDS descriptors and the FIFOs'
ends;
the answer is the pid with a pidfd, or an errno.
"""

import array
import contextlib
import gc
import os
import signal
import socket
from typing import Final, NoReturn

from joblet.launch import command, pid1
from joblet.launch import syscalls as sys

# plan (Plan.to_checked in a memfd), directory, gate; behind them each stream's read and write end
REQUEST_FDS: Final = 3
MAX_REQUEST: Final = 4096


class Zygote:
    """Init mode's end. One request at a time: send it, wait until `socket` is readable, take the
    answer."""

    def __init__(self) -> None:
        """Forks the zygote. Call before threads, before large imports."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()
            _serve(theirs)
        theirs.close()
        self.socket.settimeout(0)

    def request(self, directory: str, fds: list[int]) -> None:
        """Ask for a PID 1; about 2 ms to the answer. Raises OSError: the zygote is gone."""
        socket.send_fds(self.socket, [os.fsencode(directory)], fds)

    def answer(self) -> tuple[int, int]:
        """(pid, pidfd) of the new PID 1, in init mode's own PID namespace.

        Raises OSError: the zygote's errno, BlockingIOError before the answer is there, ECONNRESET
        when
        the zygote is gone.
        """
        data, received = recv_fds(self.socket, MAX_REQUEST, 1)
        if not data:
            raise ConnectionResetError("the zygote is gone")
        number = int(data)
        if not received:
            raise OSError(-number, os.strerror(-number))
        return number, received[0]

    def close(self) -> None:
        self.socket.close()


def recv_fds(sock: socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """recvmsg with descriptors that are close-on-exec from the start.

    Never socket.recv_fds: it does not pass MSG_CMSG_CLOEXEC on.
    """
    room = socket.CMSG_SPACE(count * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _serve(sock: socket.socket) -> NoReturn:
    status = 1
    try:
        sys.set_cmdline(b"joblet-zygote")
        sys.set_name(b"joblet-zygote")
        # what systemd passed to init mode is not for here: the listening socket would live on in
        # every PID 1
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        # a PID 1 starts with every signal blocked, and children of the zygote reap themselves
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        command.ignored()
        gc.collect()
        gc.freeze()
        while True:
            data, fds = recv_fds(sock, MAX_REQUEST, REQUEST_FDS + 4)
            if not data:
                status = 0
                break
            _fork(sock, own, os.fsdecode(data), fds)
            for fd in fds:
                os.close(fd)
    finally:
        os._exit(status)


def _fork(sock: socket.socket, own: int, directory: str, fds: list[int]) -> None:
    try:
        sys.unshare(sys.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                sock.close()
                os.close(own)
                pid1.main(directory, fds)
        finally:
            sys.setns(own, sys.CLONE_NEWPID)
        # it waits for go, so it is there; were it gone, its pid could not be another's yet
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        with contextlib.suppress(OSError):
            sock.send(str(-(error.errno or 1)).encode())
        return
    try:
        socket.send_fds(sock, [str(pid).encode()], [pidfd])
    finally:
        os.close(pidfd)
