# SPDX-License-Identifier: MIT
"""The blocks of a segment, each with a checksum: records of its sums file, and reading by them.

A record says by its own checksum whether it is one, so what lies behind a damaged record can still
be found, and how many bytes are missing there is known from the records around it. Nothing is given
to a reader whose checksum was not computed.

Must not import anything of joblet but its neighbour checksum.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

import zstandard

from joblet.server.logs.checksum import crc32

# How much has one checksum, at most: what a reader reads at least to get at a byte.
BLOCK_BYTES: Final = 256 << 10

_BODY: Final = struct.Struct("<QQIII")
_OWN: Final = struct.Struct("<I")
SUM_BYTES: Final = _BODY.size + _OWN.size
_FIRST: Final = 2  # records read at once: few at first, because most reads want one or two
_MORE: Final = 128


class Missing(Exception):
    """Bytes that are not there, or not as they were written: so many, from the position on.

    `expired`: they were removed because their time had come.
    """

    def __init__(self, count: int, why: str, *, expired: bool = False) -> None:
        super().__init__(f"{count} bytes: {why}")
        self.count = count
        self.why = why
        self.expired = expired


class Sum(NamedTuple):
    """A block: `length` bytes from `position` of the stream on, as `stored` bytes at byte `at` of
    the file. `crc` is of the bytes themselves."""

    position: int
    at: int
    length: int
    crc: int
    stored: int

    @property
    def end(self) -> int:
        return self.position + self.length


# The bytes of a block, None if they are not as they were written. Raises OSError.
Contents: TypeAlias = Callable[[int, Sum], "bytes | None"]


def encode(block: Sum, number: int) -> bytes:
    """Record `number` of a sums file."""
    body = _BODY.pack(*block)
    return body + _OWN.pack(zlib.crc32(body, number & 0xFFFFFFFF))


def decode(raw: bytes, at: int, number: int) -> Sum | None:
    """The record at byte `at` of `raw`, None if it is not record `number`."""
    body = raw[at : at + _BODY.size]
    if len(raw) < at + SUM_BYTES:
        return None
    if zlib.crc32(body, number & 0xFFFFFFFF) != _OWN.unpack_from(raw, at + _BODY.size)[0]:
        return None
    return Sum(*_BODY.unpack(body))


class Sums:
    """The sums file behind a descriptor, for reading. Everything raises OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.total = os.fstat(fd).st_size // SUM_BYTES

    def walk(self, number: int) -> Iterator[Sum | None]:
        """The records from `number` on; None for one that is damaged."""
        many = _FIRST
        while number < self.total:
            raw = os.pread(self._fd, many * SUM_BYTES, number * SUM_BYTES)
            if len(raw) < SUM_BYTES:
                return
            for at in range(0, len(raw) - SUM_BYTES + 1, SUM_BYTES):
                yield decode(raw, at, number)
                number += 1
            many = _MORE

    def first_valid(self, number: int, behind: int) -> tuple[int, Sum] | None:
        """The first record in [number, behind) that is not damaged."""
        for at, block in enumerate(self.walk(number), number):
            if at >= behind:
                return None
            if block is not None:
                return at, block
        return None

    def covering(self, position: int) -> tuple[int, Sum] | None:
        """The last record that is not damaged and begins at `position` or before."""
        found: tuple[int, Sum] | None = None
        low, high = 0, self.total
        while low < high:
            middle = (low + high) // 2
            valid = self.first_valid(middle, high)
            if valid is None or valid[1].position > position:
                high = middle
            else:
                found = valid
                low = valid[0] + 1
        return found

    def at(self, number: int) -> Sum | None:
        """One record; None if it is damaged or not there."""
        return decode(os.pread(self._fd, SUM_BYTES, number * SUM_BYTES), 0, number)

    def last(self, fits: Callable[[Sum], bool]) -> tuple[int, Sum] | None:
        """The last record that is not damaged and fits."""
        for number in range(self.total - 1, -1, -1):
            block = self.at(number)
            if block is not None and fits(block):
                return number, block
        return None


def read(fd: int, sums: Sums, contents: Contents, position: int, count: int) -> bytes:
    """Bytes of a segment from `position` on, at least one and at most `count`.

    Raises Missing, and OSError.
    """
    found = sums.covering(position)
    if found is None or found[1].end <= position:
        behind = sums.first_valid(found[0] + 1 if found else 0, sums.total)
        gone = count if behind is None else min(count, behind[1].position - position)
        raise Missing(gone, "their checksum is not there")
    parts: list[memoryview] = []
    here = position
    for block in sums.walk(found[0]):
        if block is None or not block.position <= here < block.end:
            break
        data = contents(fd, block)
        if data is None:
            if parts:
                break  # who reads on meets it
            raise Missing(min(count, block.end - here), "their checksum is wrong")
        first = here - block.position
        parts.append(memoryview(data)[first : first + position + count - here])
        here += len(parts[-1])
        if here == position + count:
            break
    return b"".join(parts)


def plain(fd: int, block: Sum) -> bytes | None:
    """Contents of a segment as it was written."""
    data = os.pread(fd, block.length, block.at)
    right = len(data) == block.length and crc32(data) == block.crc
    return data if right else None


def compressed(fd: int, block: Sum) -> bytes | None:
    """Contents of a segment of zstd frames."""
    frame = os.pread(fd, block.stored, block.at)
    try:
        # what the frame says is what would be allocated
        if zstandard.frame_content_size(frame) != block.length:
            return None
        data = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError:
        return None
    right = len(data) == block.length and crc32(data) == block.crc
    return data if right else None
