# SPDX-License-Identifier: MIT
"""What one stream of a log said, on the disk: segments, each with the checksums of its blocks.

Must not import anything of joblet but its neighbours files, format.
"""

import bisect
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from joblet.server.logs.files import LogFiles, write_all
from joblet.server.logs.format import ERR, OUT

STREAM_NAMES: Final = {OUT: "out", ERR: "err"}
# How much has one checksum, at most: what a reader reads at least to get at a byte.
BLOCK_BYTES: Final = 256 << 10
DEFAULT_ROTATION_BYTES: Final = 64 << 20

_DIGITS: Final = 15  # a petabyte
_SUMS: Final = ".sums"
_SUM: Final = struct.Struct("<QQII")
_OWN: Final = struct.Struct("<I")
_SUM_BYTES: Final = _SUM.size + _OWN.size + 4
# What a dead machine may have written last without its contents: as far back as is looked.
_DOUBTFUL_BYTES: Final = 64 << 20
_SUMS_AT_ONCE: Final = 64


class Missing(Exception):
    """Bytes that are not there, or not as they were written: so many, from the position on."""

    def __init__(self, count: int, why: str) -> None:
        super().__init__(f"{count} bytes: {why}")
        self.count = count
        self.why = why


class Sum(NamedTuple):
    """A block: `length` bytes from `position` of the stream on, at byte `at` of the file."""

    position: int
    at: int
    length: int
    crc: int

    @property
    def end(self) -> int:
        return self.position + self.length


class Segments:
    """The stored bytes of a stream. One thread at a time writes, any number read.

    A position counts the bytes that the stream has said. A segment is a file `out.POSITION` or
    `err.POSITION` (15 decimal digits), which holds the stream's bytes from that position on and
    nothing else; the next one begins when it is `rotation_bytes` long, or behind bytes that were
    never stored (overflow). Beside it lies `NAME.sums`, records of 32 bytes, little endian:

        u64   position of the block's first byte in the stream
        u64   where it lies in the segment's file
        u32   bytes, at most BLOCK_BYTES
        u32   CRC-32 of them
        u32   CRC-32 of the 24 bytes before it, begun with the record's number
        u32   0

    The valid sums are the longest prefix of whole records with the right checksum that follow one
    another from the segment's position on. Bytes behind them were written by a server that was
    killed before it could add their sums: whoever opens the log adds those.
    """

    def __init__(self, files: LogFiles, stream: int, rotation_bytes: int) -> None:
        self._files = files
        self._prefix = f"{STREAM_NAMES[stream]}."
        self._rotation_bytes = rotation_bytes
        self._starts: list[int] = []
        self._sums = 0  # of the last segment
        self._unsynced: dict[str, None] = {}
        self.end = 0  # the position behind the last byte

    @property
    def begin(self) -> int:
        """The position of the first byte that is kept."""
        return self._starts[0] if self._starts else self.end

    def load(self, names: Iterable[str], *, doubtful: bool) -> None:
        """Take what lies in the log's directory, and add sums that are not there. Raises OSError.

        `doubtful`: the machine may have died since it was written; the last blocks are read and
        compared with their sums, and what follows the first one that is not right is cut off.
        """
        found = (name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))
        self._starts = sorted(int(rest) for rest in found if rest.isdecimal())
        self._sums = self.end = 0
        while self._starts:
            self._open_last(doubtful=doubtful)
            if self.end > self._starts[-1] or len(self._starts) == 1 or not doubtful:
                return
            self._remove_last()

    def append(self, position: int, data: bytes | memoryview) -> None:
        """Store at most BLOCK_BYTES. Raises OSError; then it may be repeated."""
        goes_on = bool(self._starts) and position == self.end
        if not goes_on or position - self._starts[-1] >= self._rotation_bytes:
            self._begin(position)
        start = self._starts[-1]
        at = position - start
        write_all(self._fd(start), data, at)
        self._add(start, Sum(position, at, len(data), zlib.crc32(data)))
        self.end = position + len(data)

    def skip(self, position: int) -> None:
        """What was said up to `position` is not stored: the next segment begins there."""
        if position != self.end:
            self._begin(position)

    def read(self, position: int, count: int) -> bytes:
        """Bytes from `position` on, at least one and at most `count`, as they were written.

        Raises Missing, and OSError.
        """
        number = bisect.bisect_right(self._starts, position) - 1
        if number < 0:
            raise Missing(min(count, self.begin - position), "its segment was removed")
        start = self._starts[number]
        last = self._starts[number + 1] if number + 1 < len(self._starts) else self.end
        name = self._name(start)
        try:
            with self._files.reading(name + _SUMS) as sums, self._files.reading(name) as fd:
                data = _read(fd, sums, position, count)
        except FileNotFoundError as exc:
            raise Missing(min(count, last - position), f"{exc.filename} is not there") from exc
        if not data:
            raise Missing(min(count, last - position), f"they are not in {name}")
        return data

    def cut(self, position: int) -> None:
        """Remove what lies behind `position`. Raises OSError."""
        while self._starts and self._starts[-1] > position:
            self._remove_last()
        if not self._starts:
            self.end = position
            return
        start = self._starts[-1]
        self.end = min(self.end, position)
        os.ftruncate(self._fd(start), self.end - start)
        sums = self._sum_list(start)
        kept = [found for found in sums if found.end <= self.end]
        self._keep_sums(start, len(kept))
        self._resum(start, kept[-1].end if kept else start)

    def sync(self) -> None:
        """Make durable what was stored. Raises OSError; then it is tried again the next time."""
        for name in list(self._unsynced):
            self._unsynced.pop(name)  # before: who writes meanwhile puts it there again
            try:
                with self._files.reading(name) as fd:
                    os.fdatasync(fd)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError:
                self._unsynced[name] = None
                raise

    def _begin(self, position: int) -> None:
        """A new segment."""
        if self._starts:
            old = self._name(self._starts[-1])
            self._files.let_go(old)
            self._files.let_go(old + _SUMS)
        self._fd(position)
        self._starts.append(position)
        self._sums = 0
        self.end = position

    def _name(self, start: int) -> str:
        return f"{self._prefix}{start:0{_DIGITS}d}"

    def _fd(self, start: int) -> int:
        return self._files.get(self._name(start), create=True)

    def _sums_fd(self, start: int) -> int:
        return self._files.get(self._name(start) + _SUMS, create=True)

    def _add(self, start: int, block: Sum) -> None:
        raw = _SUM.pack(*block)
        raw += _OWN.pack(zlib.crc32(raw, self._sums)) + bytes(4)
        write_all(self._sums_fd(start), raw, self._sums * _SUM_BYTES)
        self._sums += 1
        name = self._name(start)
        self._unsynced[name] = self._unsynced[name + _SUMS] = None

    def _open_last(self, *, doubtful: bool) -> None:
        """The last segment's end and sums, repaired."""
        start = self._starts[-1]
        there = os.fstat(self._fd(start)).st_size
        self.end = start + there
        kept = [found for found in self._sum_list(start) if found.end <= self.end]
        if doubtful:
            right = len(kept) - self._wrong(start, kept)
            if right < len(kept):
                self.end = kept[right].position
                kept = kept[:right]
                os.ftruncate(self._fd(start), self.end - start)
        self._keep_sums(start, len(kept))
        self._resum(start, kept[-1].end if kept else start)

    def _wrong(self, start: int, blocks: list[Sum]) -> int:
        """How many of the last blocks, up to the end, follow one that is not as it was written."""
        fd = self._fd(start)
        first = len(blocks)
        while first and self.end - blocks[first - 1].position <= _DOUBTFUL_BYTES:
            first -= 1
        for number in range(first, len(blocks)):
            block = blocks[number]
            if zlib.crc32(os.pread(fd, block.length, block.at)) != block.crc:
                return len(blocks) - number
        return 0

    def _sum_list(self, start: int) -> list[Sum]:
        """The valid sums of a segment."""
        fd = self._sums_fd(start)
        size = os.fstat(fd).st_size
        return _sums(os.pread(fd, size, 0), 0, start)

    def _keep_sums(self, start: int, count: int) -> None:
        os.ftruncate(self._sums_fd(start), count * _SUM_BYTES)
        self._sums = count

    def _resum(self, start: int, position: int) -> None:
        """Add the sums of what lies behind those that are there."""
        fd = self._fd(start)
        while position < self.end:
            data = os.pread(fd, min(BLOCK_BYTES, self.end - position), position - start)
            if not data:
                return
            self._add(start, Sum(position, position - start, len(data), zlib.crc32(data)))
            position += len(data)

    def _remove_last(self) -> None:
        name = self._name(self._starts.pop())
        for each in (name, name + _SUMS):
            self._files.let_go(each)
            self._unsynced.pop(each, None)
            (self._files.path / each).unlink(missing_ok=True)
        if self._starts:
            self._open_last(doubtful=False)
        else:
            self._sums = self.end = 0


def _sums(raw: bytes, number: int, position: int | None) -> list[Sum]:
    """The valid records at the beginning of `raw`, the first of which is `number`."""
    found: list[Sum] = []
    for at in range(0, len(raw) - _SUM_BYTES + 1, _SUM_BYTES):
        body = raw[at : at + _SUM.size]
        if zlib.crc32(body, number) != _OWN.unpack_from(raw, at + _SUM.size)[0]:
            break
        block = Sum(*_SUM.unpack(body))
        if position is not None and block.position != position:
            break
        found.append(block)
        position = block.end
        number += 1
    return found


def _read(fd: int, sums: int, position: int, count: int) -> bytes:
    """As Segments.read, from one segment."""
    parts: list[memoryview] = []
    here = position
    for block in _blocks(sums, position):
        if not block.position <= here < block.end:
            break
        data = os.pread(fd, block.length, block.at)
        if len(data) != block.length or zlib.crc32(data) != block.crc:
            if parts:
                break  # who reads on meets it
            raise Missing(min(count, block.end - here), "its checksum is wrong")
        first = here - block.position
        parts.append(memoryview(data)[first : first + position + count - here])
        here += len(parts[-1])
        if here == position + count:
            break
    return b"".join(parts)


def _blocks(sums: int, position: int) -> Iterator[Sum]:
    """The valid records from the one on that should cover `position`."""
    number = _covering(sums, os.fstat(sums).st_size // _SUM_BYTES, position)
    many = 2
    while raw := os.pread(sums, many * _SUM_BYTES, number * _SUM_BYTES):
        found = _sums(raw, number, None)
        yield from found
        if len(found) < many:
            return
        number += many
        many = _SUMS_AT_ONCE


def _covering(sums: int, total: int, position: int) -> int:
    """The number of the last record whose block begins at `position` or before."""
    low, high = 0, total
    while low < high:
        middle = (low + high) // 2
        raw = os.pread(sums, 8, middle * _SUM_BYTES)
        if int.from_bytes(raw, "little") <= position:
            low = middle + 1
        else:
            high = middle
    return max(0, low - 1)
