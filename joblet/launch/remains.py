# SPDX-License-Identifier: MIT
"""What PID 1 leaves in the job's directory: the exit record, and what was still in the pipes.
stdlib alone.

The current directory is the job's. Files are written aside and renamed, so that each is there
whole or
not at all; nothing is synced before `leave`, since PID 1 lives under the job's own I/O limit.
"""

import fcntl
import os
import struct
from collections.abc import Mapping
from typing import Final

from joblet.launch import syscalls as sys
from joblet.launch.protocol import ExitRecord

EXIT: Final = "exit"


def write_exit(record: ExitRecord) -> None:
    """Raises OSError; then no `exit` of this version is there."""
    prepare_exit(record)
    publish_exit()


def prepare_exit(record: ExitRecord) -> None:
    """All of `write_exit` that needs room. Raises OSError."""
    fd = os.open("exit.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = record.to_bytes()
        if os.write(fd, data) != len(data):
            raise OSError(28, "short write")
    finally:
        os.close(fd)


def publish_exit() -> None:
    os.rename("exit.new", EXIT)


def reserve(streams: Mapping[str, int]) -> dict[str, tuple[int, int, int]]:
    """Room on disk for what each FIFO holds: name -> (fifo, file, bytes). Raises OSError, nothing
    moved.

    Without the room nothing may be taken out of a pipe: a rest that is half in the file and half in
    the pipe would be read in the wrong order.
    """
    reserved: dict[str, tuple[int, int, int]] = {}
    try:
        for name, fifo in streams.items():
            buffer = bytearray(4)
            fcntl.ioctl(fifo, sys.FIONREAD, buffer)
            (count,) = struct.unpack("i", buffer)
            fd = os.open(f"{name}.rest", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            reserved[name] = (fifo, fd, count)
            if count:
                os.posix_fallocate(fd, 0, count)
    except OSError:
        release(reserved)
        raise
    return reserved


def release(reserved: Mapping[str, tuple[int, int, int]]) -> None:
    """Give up a reservation of which nothing has been used."""
    for _, fd, _ in reserved.values():
        os.close(fd)


def drain(reserved: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    """Move exactly the counted bytes of each FIFO into its rest; the counts that arrived."""
    counts: dict[str, int] = {}
    for name, (fifo, fd, count) in reserved.items():
        moved = 0
        while moved < count:
            taken = os.splice(fifo, fd, count - moved, offset_dst=moved)
            if not taken:
                break
            moved += taken
        os.ftruncate(fd, moved)
        counts[name] = moved
    return counts


def leave(reserved: Mapping[str, tuple[int, int, int]]) -> None:
    """Rests and record to the disk; after this PID 1 has nothing left to say."""
    for _, fd, _ in reserved.values():
        os.fsync(fd)
        os.close(fd)
    for name in (EXIT, "."):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
