# SPDX-License-Identifier: MIT
"""What retention has removed of a stream, on the disk: known before it is gone.

`out.expired` and `err.expired` in a log's directory, only ever appended to, are records of 32
bytes, little endian:

    u64   position: all that the stream said before it was removed
    u64   how many bytes of it this removal took
    u64   when, microseconds since the epoch
    u32   0
    u32   CRC-32 of the 28 bytes before it, begun with the record's number

A record that is damaged, or was not written whole, says nothing. The others count, the one with the
largest position most.

Must not import anything of joblet but its neighbour files.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from joblet.server.logs.files import sync_directory, write_all

_BODY: Final = struct.Struct("<QQQI")
_OWN: Final = struct.Struct("<I")
RECORD_BYTES: Final = _BODY.size + _OWN.size
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_MODE: Final = 0o600


class Expiry(NamedTuple):
    """One removal."""

    position: int
    taken: int
    time_us: int


def load(path: Path) -> list[Expiry]:
    """The removals that a file tells of, none if there is no file. Raises OSError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for number in range(len(raw) // RECORD_BYTES):
        body = raw[number * RECORD_BYTES :][: _BODY.size]
        own = _OWN.unpack_from(raw, number * RECORD_BYTES + _BODY.size)[0]
        if zlib.crc32(body, number) == own:
            position, taken, time_us, _ = _BODY.unpack(body)
            found.append(Expiry(position, taken, time_us))
    return found


def append(path: Path, expiry: Expiry) -> None:
    """Enter a removal, durably, before it is done. Raises OSError; then it must not be done."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | _FLAGS, _MODE)
    try:
        number = os.fstat(fd).st_size // RECORD_BYTES
        body = _BODY.pack(*expiry, 0)
        write_all(fd, body + _OWN.pack(zlib.crc32(body, number)), number * RECORD_BYTES)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)  # each time: a try before this one may have ended here
