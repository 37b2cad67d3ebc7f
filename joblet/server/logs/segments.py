# SPDX-License-Identifier: MIT
"""What one stream of a log said, on the disk: segments, each with the checksums of its blocks.

Must not import anything of joblet but its neighbours blocks, checksum, expired, files, format,
sealing.
"""

import bisect
import errno
import os
import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from joblet.server.logs import blocks, expired, sealing
from joblet.server.logs.blocks import BLOCK_BYTES, SUM_BYTES, Missing, Sum, Sums
from joblet.server.logs.checksum import crc32
from joblet.server.logs.files import LogFiles, sync_directory, write_all
from joblet.server.logs.format import ERR, OUT
from joblet.server.logs.sealing import SEALED, SUMS

STREAM_NAMES: Final = {OUT: "out", ERR: "err"}
DEFAULT_ROTATION_BYTES: Final = 64 << 20

_DIGITS: Final = 15  # a petabyte
_SEGMENT: Final = re.compile(r"([0-9]{15,})((?:\.zst)?(?:\.new)?(?:\.sums)?)", re.ASCII)
_EXPIRED: Final = "expired"
# Fewer bytes that are not stored are no reason for another file.
_HOLE_BYTES: Final = 64 << 20


class Stored(NamedTuple):
    """A segment as it lies on the disk."""

    start: int
    size: int  # bytes on the disk, its checksums included
    time_ns: int  # when it was last added to
    sealed: bool


class Segments:
    """The stored bytes of a stream. One thread at a time writes, any number read.

    A position counts the bytes that the stream has said. A segment is a file `out.POSITION` or
    `err.POSITION` (15 decimal digits), which holds the stream's bytes from that position on and
    nothing else; the next one begins when it is `rotation_bytes` long. For bytes that were never
    stored (overflow) there is a hole, or, if they are many, the next segment begins behind them.
    Beside it lies `NAME.sums`, records of 32 bytes, little endian:

        u64   position of the block's first byte in the stream
        u64   where it lies in the segment's file
        u32   bytes, at most BLOCK_BYTES
        u32   CRC-32 of them
        u32   how many bytes it is in the file: as many
        u32   CRC-32 of the 28 bytes before it, begun with the record's number

    A sealed segment, to which nothing is added any more, is `NAME.zst` instead: zstd frames one
    after the other, a block each, so that zstdcat and zstdless show it. Its `NAME.zst.sums` has the
    same records: position, bytes and checksum of a block as it was written, place and size of its
    frame. sealing says in which steps the one takes the other's place.

    Each record counts by itself. The bytes of a block whose record is damaged are missing, and so
    are those that do not have their checksum; what lies behind them can be read. Bytes behind the
    last record of the last segment, at most BLOCK_BYTES, were written by a server that was killed
    before it could add their sum: whoever opens the log adds it, unless the machine died since.
    More than that, or with something else where their record should be, is damage, and cut off.

    Retention removes the oldest segments, never the last; what it removed stands in `out.expired`
    or `err.expired` before it does (see expired).
    """

    def __init__(self, files: LogFiles, stream: int, rotation_bytes: int) -> None:
        self._files = files
        self._prefix = f"{STREAM_NAMES[stream]}."
        self._rotation_bytes = rotation_bytes
        self._starts: list[int] = []
        self._sealed: set[int] = set()
        self._sums = 0  # of the last segment
        self._unsynced: dict[str, None] = {}
        self.new_names = False  # since they were last made durable
        self.begun = 0  # how many segments, since it was loaded
        self.end = 0  # the position behind the last byte
        self.expired = 0  # what the stream said before this position was removed

    @property
    def begin(self) -> int:
        """The position of the first byte that is kept."""
        return self._starts[0] if self._starts else self.end

    @property
    def unsynced(self) -> int:
        """How many files are not durable."""
        return len(self._unsynced)

    def load(self, names: Iterable[str], *, doubtful: bool) -> None:
        """Take what lies in the log's directory, and add sums that are not there. Raises OSError.

        `doubtful`: the machine may have died since it was written; bytes without a checksum are cut
        off. What a server that was killed had begun to seal or to remove is cleaned up.
        """
        removals = expired.load(self._files.path / f"{self._prefix}{_EXPIRED}")
        self.expired = max((removal.position for removal in removals), default=0)
        self._starts = self._tidy(names)
        self._sums = 0
        self.end = self.expired
        # what a server that was killed had stored, and not yet made durable
        for start in self._starts:
            if start not in self._sealed:
                self._unsynced[self.name(start)] = self._unsynced[self.name(start) + SUMS] = None
        self.new_names = bool(self._starts)
        while self._starts:
            self._open_last(doubtful=doubtful)
            if self.end > self._starts[-1] or len(self._starts) == 1 or not doubtful:
                return
            self._remove_last()

    def append(self, position: int, data: bytes | memoryview) -> None:
        """Store at most BLOCK_BYTES. Raises OSError; then it may be repeated."""
        goes_on = bool(self._starts) and position == self.end
        goes_on = goes_on and self._starts[-1] not in self._sealed
        if not goes_on or position - self._starts[-1] >= self._rotation_bytes:
            self._begin(position)
        start = self._starts[-1]
        at = position - start
        write_all(self._fd(start), data, at)
        self._add(start, _block(position, at, data))
        self.end = position + len(data)

    def skip(self, position: int, *, hole: bool = True) -> None:
        """What was said up to `position` is not stored. Raises OSError; then it may be repeated.

        `hole`: there may be a hole in its place; one at the end is not seen by the next opening.
        """
        if position == self.end:
            return
        if (
            not hole
            or not self._starts
            or self._starts[-1] in self._sealed
            or position - self.end > _HOLE_BYTES
        ):
            self._begin(position)
            return
        start = self._starts[-1]
        os.ftruncate(self._fd(start), position - start)
        self._unsynced[self.name(start)] = None
        self.end = position

    def read(self, position: int, count: int) -> bytes:
        """Bytes from `position` on, at least one and at most `count`, as they were written.

        Raises Missing, and OSError.
        """
        starts = self._starts  # retention puts another list in its place
        number = bisect.bisect_right(starts, position) - 1
        if number < 0:
            behind = starts[0] if starts else self.end
            raise self._missing(position, min(count, behind - position), "its segment is not there")
        start = starts[number]
        last = starts[number + 1] if number + 1 < len(starts) else self.end
        count = min(count, last - position)
        name = self.name(start)
        # A segment may be sealed at any moment; then the other form is there.
        for form, contents in (("", blocks.plain), (SEALED, blocks.compressed)):
            try:
                with (
                    self._files.reading(name + form + SUMS) as sums,
                    self._files.reading(name + form) as fd,
                ):
                    return blocks.read(fd, Sums(sums), contents, position, count)
            except FileNotFoundError:
                continue
        raise self._missing(position, count, f"{name} is not there")

    def cut(self, position: int) -> None:
        """Remove what lies behind `position`. Raises OSError."""
        while self._starts and self._starts[-1] > position:
            self._remove_last()
        self.end = min(self.end, position) if self._starts else position
        if not self._starts or self._starts[-1] in self._sealed:
            return  # nobody reads behind the end
        start = self._starts[-1]
        fd, sums = self._fd(start), Sums(self._sums_fd(start))
        last = sums.last(lambda block: block.end <= position)
        count, kept = (last[0] + 1, last[1].end) if last else (0, start)
        cut = sums.at(count)
        damaged = cut is not None and blocks.plain(fd, cut) is None
        os.ftruncate(fd, self.end - start)
        self._keep_sums(start, count)
        if damaged and kept < self.end:
            data = os.pread(fd, self.end - kept, kept - start)
            wrong = _block(kept, kept - start, data)
            self._add(start, wrong._replace(crc=~wrong.crc & 0xFFFFFFFF))  # it stays damaged
        else:
            self._resum(start, kept)

    def seal(self, start: int, *, pause: Callable[[], None], step: Callable[[str], None]) -> None:
        """Write the compressed form of a segment beside it; `publish` puts it in its place.

        Takes long, changes nothing. Raises Damaged, OSError, and what `pause` raises (see sealing).
        """
        sealing.compress(self._files.path, self.name(start), start, pause=pause, step=step)

    def publish(self, start: int, step: Callable[[str], None]) -> None:
        """Put the compressed form in a segment's place. Raises OSError; then it may be repeated,
        by whoever opens the log."""
        path, name = self._files.path, self.name(start)
        if start not in self._starts:
            sealing.discard(path, name)
            return
        (path / f"{name}{sealing.NEW}{SUMS}").rename(path / f"{name}{SEALED}{SUMS}")
        step("seal:sums")
        (path / f"{name}{sealing.NEW}").rename(path / f"{name}{SEALED}")
        self._sealed.add(start)
        step("seal:renamed")
        sync_directory(path)
        step("seal:synced")
        self._drop(name)
        step("seal:removed")
        self._drop(name + SUMS)
        step("seal:done")

    def expire(self, position: int, time_us: int, step: Callable[[str], None]) -> int:
        """Remove the segments before the one that begins at `position`; bytes that it said.

        Durably entered before the first is removed. Raises OSError.
        """
        gone = [start for start in self._starts if start < position]
        if not gone:
            return 0
        count = position - max(self.expired, gone[0])
        removal = expired.Expiry(position, count, time_us)
        expired.append(self._files.path / f"{self._prefix}{_EXPIRED}", removal)
        step("expire:entered")
        self.expired = position
        self._starts = self._starts[len(gone) :]
        for start in gone:
            self._drop_all(start)
            step("expire:removed")
        return count

    def stored(self) -> list[Stored]:
        """The segments, oldest first. Raises OSError."""
        found = []
        for start in self._starts:
            sealed = start in self._sealed
            name = self.name(start) + (SEALED if sealed else "")
            try:
                stat = (self._files.path / name).stat()
                size = min(stat.st_size, stat.st_blocks * 512)  # less what was left out
                size += (self._files.path / f"{name}{SUMS}").stat().st_size
            except FileNotFoundError:
                continue
            found.append(Stored(start, size, stat.st_mtime_ns, sealed))
        return found

    def take_unsynced(self) -> list[str]:
        """Names of files that are not durable; from now on they count as such."""
        names = list(self._unsynced)
        for name in names:  # before they are synced: who writes meanwhile puts it there again
            self._unsynced.pop(name, None)
        return names

    def give_back(self, names: Iterable[str]) -> None:
        """These could not be made durable."""
        self._unsynced.update(dict.fromkeys(n for n in names if n.startswith(self._prefix)))

    def _missing(self, position: int, count: int, why: str) -> Missing:
        if position < self.expired:
            return Missing(min(count, self.expired - position), "it has expired", expired=True)
        return Missing(count, why)

    def _tidy(self, names: Iterable[str]) -> list[int]:
        """The segments' beginnings. What does not belong to one is removed."""
        plain: set[int] = set()
        forms: dict[str, tuple[int, str]] = {}
        self._sealed = set()
        for name in names:
            match = _SEGMENT.fullmatch(name.removeprefix(self._prefix))
            if match is not None and name.startswith(self._prefix):
                forms[name] = int(match[1]), match[2]
        for start, form in forms.values():
            if start >= self.expired and form in ("", SEALED):
                (self._sealed if form else plain).add(start)
        if plain & self._sealed:
            sync_directory(self._files.path)  # before the plain one goes
            plain -= self._sealed
        there = {"": plain, SUMS: plain, SEALED: self._sealed, f"{SEALED}{SUMS}": self._sealed}
        for name, (start, form) in sorted(forms.items()):
            if start not in there.get(form, ()):
                self._drop(name)
        return sorted(plain | self._sealed)

    def _begin(self, position: int) -> None:
        """A new segment."""
        if self._starts:
            old = self.name(self._starts[-1])
            self._files.let_go(old)
            self._files.let_go(old + SUMS)
        if position in self._sealed:  # of which nothing can be read
            self._drop_all(position)
            self._starts = self._starts[:-1]
        self._fd(position)
        self._starts.append(position)
        self._sums = 0
        self.begun += 1
        self.new_names = True
        self.end = position

    def name(self, start: int) -> str:
        """Of the file of the segment that begins there, before it is sealed."""
        return f"{self._prefix}{start:0{_DIGITS}d}"

    def _fd(self, start: int) -> int:
        return self._files.get(self.name(start), create=True)

    def _sums_fd(self, start: int) -> int:
        return self._files.get(self.name(start) + SUMS, create=True)

    def _add(self, start: int, block: Sum) -> None:
        raw = blocks.encode(block, self._sums)
        write_all(self._sums_fd(start), raw, self._sums * SUM_BYTES)
        self._sums += 1
        name = self.name(start)
        self._unsynced[name] = self._unsynced[name + SUMS] = None

    def _open_last(self, *, doubtful: bool) -> None:
        """The last segment's end and sums, repaired."""
        start = self._starts[-1]
        if start in self._sealed:
            self.end = start + self._sealed_bytes(start)
            return
        there = os.fstat(self._fd(start)).st_size
        sums = Sums(self._sums_fd(start))
        last = sums.last(lambda block: block.at + block.length <= there)
        count, kept = (last[0] + 1, last[1].end) if last else (0, start)
        self._keep_sums(start, count)
        tail = start + there - kept
        if doubtful or tail > BLOCK_BYTES or sums.total > count:
            os.ftruncate(self._fd(start), kept - start)
            tail = 0
        self.end = kept + tail
        self._resum(start, kept)

    def _sealed_bytes(self, start: int) -> int:
        """How much the last segment holds, if it is sealed."""
        name = self.name(start) + SEALED
        try:
            with self._files.reading(name + SUMS) as fd:
                last = Sums(fd).last(lambda _: True)
        except FileNotFoundError:
            return 0
        return last[1].end - start if last else 0

    def _keep_sums(self, start: int, count: int) -> None:
        os.ftruncate(self._sums_fd(start), count * SUM_BYTES)
        self._sums = count

    def _resum(self, start: int, position: int) -> None:
        """Add the sums of what lies behind those that are there."""
        fd = self._fd(start)
        while (position := start + _data_at(fd, position - start)) < self.end:
            data = os.pread(fd, min(BLOCK_BYTES, self.end - position), position - start)
            if not data:
                return
            self._add(start, _block(position, position - start, data))
            position += len(data)

    def _remove_last(self) -> None:
        self._drop_all(self._starts.pop())
        if self._starts:
            self._open_last(doubtful=False)
        else:
            self._sums, self.end = 0, self.expired

    def _drop_all(self, start: int) -> None:
        """Remove a segment, whatever its form; its bytes first."""
        name = self.name(start)
        for each in (name, name + SEALED, name + SUMS, name + SEALED + SUMS):
            self._drop(each)
        self._sealed.discard(start)

    def _drop(self, name: str) -> None:
        self._files.let_go(name)
        self._unsynced.pop(name, None)
        (self._files.path / name).unlink(missing_ok=True)


def _data_at(fd: int, at: int) -> int:
    """Where in a file there is something that is no hole, from `at` on; the end, if nothing is."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return max(at, os.fstat(fd).st_size)


def _block(position: int, at: int, data: bytes | memoryview) -> Sum:
    return Sum(position, at, len(data), crc32(data), len(data))
