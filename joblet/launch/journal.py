# SPDX-License-Identifier: MIT
"""A job's stdout and stderr as streams of the journal, for the log driver `journald`. stdlib alone.

journald asks the kernel who writes: a line belongs to the unit of the process that wrote it, or,
where that process is gone by then, to the one that the stream's header names (which counts since
root wrote it). So the streams are opened from inside the job's scope. They outlive journald's
restarts: systemd keeps them for it.

Nothing tells a reader that the last lines of a job were dropped (journald says so only before the
next line that it takes). So PID 1 ends each stream with a line of its own, END: where it is
missing, something before it is.
"""

import contextlib
import os
import socket
import struct
from typing import Final

PATH: Final = "/run/systemd/journal/stdout"
# priorities of syslog(3), one for each stream: readers tell the streams apart by them
INFO: Final = 6
WARNING: Final = 4
# no job can write it so that it counts: readers look for root's alone
END: Final = "joblet: end of the output"

CONNECT_S: Final = 5  # journald's backlog can be full
END_S: Final = 1  # its socket can be full, too; less than PID 1's margin at a stop
SEND_BUFFER_BYTES: Final = 1 << 20  # as much as a pipe has: the job waits when it is full
SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h


def locate() -> int:
    """A descriptor of journald's socket, for `open_streams` when the path is out of sight. Raises
    OSError."""
    return os.open(PATH, os.O_PATH | os.O_CLOEXEC)


def open_streams(located: int, job: str, unit: str, *, merge: bool) -> list[int]:
    """The write ends: stdout's and stderr's, or one for both. Raises OSError, nothing open then."""
    out = _open_stream(located, header(job[:8], unit, INFO))
    if merge:
        return [out]
    try:
        return [out, _open_stream(located, header(job[:8], unit, WARNING))]
    except OSError:
        os.close(out)
        raise


def header(identifier: str, unit: str, priority: int) -> bytes:
    """The lines that a stream begins with (sd_journal_stream_fd(3) writes the same): identifier,
    unit, priority; then switches: "<N>" before a line is no priority, and no line goes on to
    syslog, the kernel's buffer or the console unless journald.conf says so."""
    return f"{identifier}\n{unit}\n{priority}\n0\n0\n0\n0\n".encode()


def _open_stream(located: int, lines: bytes) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
        _patience(stream, CONNECT_S)
        stream.connect(f"/proc/self/fd/{located}")
        stream.shutdown(socket.SHUT_RD)
        with contextlib.suppress(OSError):  # what the system gives everybody does as well
            stream.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        stream.sendall(lines)
        _patience(stream, 0)  # the job waits as long as it must
        return stream.detach()


def end(fd: int) -> None:
    """The last line of a stream. Waits a moment for room; then it is missing, and readers say that
    something may be."""
    with contextlib.suppress(OSError):
        stream = socket.socket(fileno=os.dup(fd))
        with stream:
            _patience(stream, END_S)
            stream.sendall(f"{END}\n".encode())


def _patience(stream: socket.socket, seconds: int) -> None:
    """How long a call may wait; 0: for ever. The socket's own, so not Python's time-out, which
    would make it non-blocking for the job as well."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", seconds, 0))
