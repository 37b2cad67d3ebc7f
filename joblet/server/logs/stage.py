# SPDX-License-Identifier: MIT
"""Where output waits for the disk: a tmpfs, so that no job ever waits for one.

A byte that has left a job's pipe is in the stage until it is in the store; a killed server loses
neither, and the next one goes on from both.

    <stage>/<job id>/index       the log's index, as on the disk, from the first record on that is
                                 not there; sparse, each record lies where it lies on the disk
    <stage>/<job id>/out, err    what the streams said, from the first byte on that is not in the
                                 store; sparse, each byte lies at its position in the stream
    <stage>/<job id>/out.z, err.z    blocks of that which were compressed when the stage was nearly
                                 full (frames.Frames), and have a hole above
    <spill>/<job id>/out.z, err.z    the same, moved to a disk with room
    <stage>/<job id>/spill       a symbolic link to that directory, made before anything is moved
                                 there: a later server may be configured to spill elsewhere
    <stage>/<job id>/out.moved, err.moved    a byte for each block, not 0 if it was moved there

What is stored is punched out of the files, and a log without anything staged has no directory.

Must not import anything of joblet but its neighbours files, format, frames, segments, syscalls.
"""

import collections
import contextlib
import dataclasses
import enum
import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joblet.server.logs import format as fmt
from joblet.server.logs.files import INDEX_NAME, FileCache, LogFiles, write_all
from joblet.server.logs.frames import BLOCK_BYTES, PAGE_BYTES, Frames
from joblet.server.logs.segments import STREAM_NAMES
from joblet.server.logs.syscalls import punch

if TYPE_CHECKING:
    from collections.abc import Callable

_FRAMES: Final = ".z"
_SPILLED: Final = "spill"
_MOVED: Final = ".moved"


class Shelf(enum.Enum):
    """Where packed blocks are put."""

    STAGE = enum.auto()
    SPILL = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be staged, of all logs, and how much is a batch."""

    limit_bytes: int = 256 << 20
    limit_chunks: int = 100_000
    batch_bytes: int = 4 << 20
    batch_chunks: int = 100


class Room:
    """How much output is staged, of all logs. Called from any thread.

    It is `pressed` from three quarters of a limit on until there is an eighth of it less, and full
    from the limit on until an eighth of it is free again; then `on_room` is called, once.
    `on_pressed` is called when it becomes pressed (True) and when it is no longer (False),
    `on_batch` whenever something comes and there is enough for a batch.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.bytes = 0
        self.chunks = 0
        self.pressed = False
        self._full = False
        self._high = Mark.of(bounds, 6)
        self._relieved = Mark.of(bounds, 5)
        self._low = Mark.of(bounds, 7)
        self.on_room: Callable[[], None] = _ignore
        self.on_pressed: Callable[[bool], None] = _ignore
        self.on_batch: Callable[[], None] = _ignore
        self._lock = threading.Lock()

    @property
    def has_batch(self) -> bool:
        bounds = self.bounds
        return self.bytes >= bounds.batch_bytes or self.chunks >= bounds.batch_chunks

    def is_full(self) -> bool:
        return self._full

    @property
    def pressure(self) -> float:
        """How far it is from where it became pressed (0) to where it is full (1, or more)."""
        high, bounds = self._high, self.bounds
        of_bytes = (self.bytes - high.bytes) / max(1, bounds.limit_bytes - high.bytes)
        of_chunks = (self.chunks - high.chunks) / max(1, bounds.limit_chunks - high.chunks)
        return max(0.0, of_bytes, of_chunks)

    def take(self, count: int, chunks: int) -> None:
        pressed = False
        with self._lock:
            self.bytes += count
            self.chunks += chunks
            bounds, high = self.bounds, self._high
            if self.bytes >= high.bytes or self.chunks >= high.chunks:
                pressed, self.pressed = not self.pressed, True
                if self.bytes >= bounds.limit_bytes or self.chunks >= bounds.limit_chunks:
                    self._full = True
        if pressed:
            self.on_pressed(True)  # noqa: FBT003 - what it says is what it is
        if self.has_batch:
            self.on_batch()

    def free(self, count: int, chunks: int) -> None:
        with self._lock:
            self.bytes -= count
            self.chunks -= chunks
            was_full, was_pressed = self._full, self.pressed
            self._full = was_full and not self._low.reached(self)
            self.pressed = was_pressed and not self._relieved.reached(self)
        if was_pressed and not self.pressed:
            self.on_pressed(False)  # noqa: FBT003 - what it says is what it is
        if was_full and not self._full:
            self.on_room()


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """So many eighths of the limits."""

    bytes: int
    chunks: int

    @classmethod
    def of(cls, bounds: Bounds, eighths: int) -> "Mark":
        return cls(
            bounds.limit_bytes - bounds.limit_bytes * (8 - eighths) // 8,
            bounds.limit_chunks - bounds.limit_chunks * (8 - eighths) // 8,
        )

    def reached(self, room: Room) -> bool:
        return room.bytes <= self.bytes and room.chunks <= self.chunks


class StagedLog:
    """The staged files of one log; made when something is staged. Everything raises OSError.

    Descriptors are valid while it is pinned. `spill`: the directory of what is moved to a disk.
    A reader of bytes sees one stream of them, whatever form they are in.
    """

    def __init__(self, path: Path, cache: FileCache, spill: Path | None = None) -> None:
        self.files = LogFiles(path, cache)
        self._spill = spill
        self._linked = False  # the stage says where that is
        self._lock = threading.Lock()
        # Of each stream: where the packed blocks lie, and the room that they take in the stage.
        self._packed: dict[int, dict[int, tuple[Frames, int]]] = {s: {} for s in STREAM_NAMES}
        # Blocks that a killed server has moved to where they are not any more.
        self._gone: dict[int, set[int]] = {s: set() for s in STREAM_NAMES}
        self._freed = dict.fromkeys(STREAM_NAMES, 0)  # the position before which all is freed
        self._next = dict.fromkeys(STREAM_NAMES, 0)  # the block that is to be packed next
        # Blocks with holes: ranges, in order.
        self._holes: dict[int, collections.deque[tuple[int, int]]] = {
            s: collections.deque() for s in STREAM_NAMES
        }
        self._hollow = dict.fromkeys(STREAM_NAMES, (0, 0))  # the last hole

    @property
    def spill(self) -> Path | None:
        """Where what is spilled of it lies; what is loaded may lie elsewhere than configured."""
        return self._spill

    def load(self) -> None:
        """Take the packed blocks that a killed server left, wherever it has put them."""
        self._spill = spilled_to(self.files.path) or self._spill
        for stream, shelf in [(s, shelf) for s in STREAM_NAMES for shelf in Shelf]:
            if (frames := self._frames(stream, shelf)) is not None:
                for block in frames.blocks():
                    if frames.read(block) is not None:
                        self._packed[stream][block] = frames, 0
        for stream, name in STREAM_NAMES.items():
            for block in self._moved(name):
                # killed between the two, it has left the block here as well
                if block not in self._packed[stream] and not self._is_here(stream, block):
                    self._gone[stream].add(block)

    def _moved(self, name: str) -> list[int]:
        try:
            with self.files.reading(f"{name}{_MOVED}") as fd:
                marks = os.pread(fd, os.fstat(fd).st_size, 0)
        except FileNotFoundError:
            return []
        return [block for block, mark in enumerate(marks) if mark]

    def _is_here(self, stream: int, block: int) -> bool:
        """Whether a block's bytes are those of the job. What is punched out is read as zeros, and
        with large pages need not be a hole."""
        raw = self.files.get(STREAM_NAMES[stream])
        return any(os.pread(raw, BLOCK_BYTES, block * BLOCK_BYTES))

    def index(self) -> int:
        return self.files.index(create=True)

    def stream(self, stream: int) -> int:
        return self.files.get(STREAM_NAMES[stream], create=True)

    def length(self, stream: int) -> int:
        """The position behind the last staged byte, 0 if there is none."""
        try:
            return os.fstat(self.files.get(STREAM_NAMES[stream])).st_size
        except FileNotFoundError:
            return 0

    def records(self) -> int:
        """The number behind the last staged record, 0 if there is none."""
        try:
            return os.fstat(self.files.index()).st_size // fmt.RECORD_BYTES
        except FileNotFoundError:
            return 0

    def read(self, stream: int, position: int, count: int) -> bytes:
        """Zeros where nothing is staged, less where the file ends (or somebody frees)."""
        if not self._packed[stream]:
            data = os.pread(self.files.get(STREAM_NAMES[stream]), count, position)
            if not self._packed[stream]:
                return data
        buffer = memoryview(bytearray(count))
        return bytes(buffer[: self._gather(stream, position, buffer)])

    def next_byte(self, stream: int, position: int) -> int:
        """The position of the first byte from this one on that was not freed (or lies in a page
        with one that was not); the end if there is none."""
        found = self._next_raw(stream, position)
        while found // BLOCK_BYTES in self._gone[stream]:
            found = self._next_raw(stream, (found // BLOCK_BYTES + 1) * BLOCK_BYTES)
        ends = (block + 1 for block in self._packed[stream])
        first = min((end * BLOCK_BYTES for end in ends if end * BLOCK_BYTES > position), default=0)
        return min(found, max(position, first - BLOCK_BYTES)) if first else found

    def data_end(self, stream: int, position: int, end: int) -> int:
        """How far, up to `end`, all bytes from this position on are there: none was freed (but for
        those in a page with one that was not), or moved to where nobody finds it."""
        while position < end:
            block = position // BLOCK_BYTES
            behind = (block + 1) * BLOCK_BYTES
            if block in self._gone[stream]:
                break
            if block not in self._packed[stream]:
                hole = os.lseek(self.files.get(STREAM_NAMES[stream]), position, os.SEEK_HOLE)
                if hole < min(end, behind):
                    return hole
            position = behind
        return min(position, end)

    def _next_raw(self, stream: int, position: int) -> int:
        try:
            return os.lseek(self.files.get(STREAM_NAMES[stream]), position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # behind the last one
                raise
            return max(position, self.length(stream))

    def read_into(self, stream: int, position: int, buffer: memoryview) -> int:
        """As read; how many bytes."""
        if not self._packed[stream]:
            count = os.preadv(self.files.get(STREAM_NAMES[stream]), [buffer], position)
            if not self._packed[stream]:
                return count
        return self._gather(stream, position, buffer)

    def _gather(self, stream: int, position: int, buffer: memoryview) -> int:
        """As read_into, from blocks that are packed and others."""
        packed = self._packed[stream]
        done = 0
        while done < len(buffer):
            block, first = divmod(position + done, BLOCK_BYTES)
            most = min(BLOCK_BYTES - first, len(buffer) - done)
            if (found := packed.get(block)) is None:
                part = buffer[done : done + most]
                count = os.preadv(self.files.get(STREAM_NAMES[stream]), [part], position + done)
                if block in packed:
                    continue  # packed meanwhile: a hole may have been read
            else:
                data = found[0].read(block)
                if data is None:
                    break  # freed meanwhile, or damaged
                count = most
                buffer[done : done + most] = data[first : first + most]
            done += count
            if count < most:
                break
        return done

    def read_index(self, number: int, count: int) -> bytes:
        """Records, raw."""
        at = number * fmt.RECORD_BYTES
        return os.pread(self.files.index(), count * fmt.RECORD_BYTES, at)

    def free(self, stream: int, begin: int, end: int) -> int:
        """These bytes are stored; how much room of theirs that gives back, holes left out. All
        before them is freed."""
        with self._lock:
            self._freed[stream] = end
            given, gone = self._counted(stream, begin, end)
            for block, _ in gone:
                del self._packed[stream][block]
            holes = self._holes[stream]
            while holes and holes[0][1] * BLOCK_BYTES <= end:
                holes.popleft()
        # What cannot be given back now goes with the log; it is stored, whatever happens here.
        with contextlib.suppress(OSError):
            _punch(self.files.get(STREAM_NAMES[stream]), begin, end)
        for block, frames in gone:
            with contextlib.suppress(OSError):
                frames.free(block)
        return given

    def room(self, stream: int, begin: int, end: int) -> int:
        """How much room the bytes between two positions have taken, holes counted in."""
        with self._lock:
            return self._counted(stream, begin, end)[0]

    def _counted(self, stream: int, begin: int, end: int) -> tuple[int, list[tuple[int, Frames]]]:
        """As room, and the packed blocks that end there, which count as a whole."""
        packed = self._packed[stream]
        room = end - begin
        ended: list[tuple[int, Frames]] = []
        for block in range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)) if packed else ():
            if (found := packed.get(block)) is not None:
                behind = (block + 1) * BLOCK_BYTES
                room -= min(end, behind) - max(begin, behind - BLOCK_BYTES)
                if behind <= end:
                    room += found[1]
                    ended.append((block, found[0]))
        return room, ended

    def will_hollow(self, stream: int, begin: int, end: int) -> None:
        """Nobody will read these bytes, behind all others: what they lie in is never packed."""
        first, last = begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        with self._lock:
            holes = self._holes[stream]
            if holes and holes[-1][1] >= first:
                first = holes.pop()[0]
            holes.append((first, last))

    def hollow(self, stream: int, begin: int, end: int) -> int:
        """Give back the room of bytes that nobody will read; how much that was. The pages at both
        ends keep theirs, because others may be in them."""
        since, until = self._hollow[stream]
        if until != begin:
            since = begin
        self._hollow[stream] = since, end
        first = max(since + -since % PAGE_BYTES, begin - begin % PAGE_BYTES)
        last = end - end % PAGE_BYTES
        if first >= last:
            return 0
        punch(self.files.get(STREAM_NAMES[stream]), first, last)
        return last - first

    def next_block(self, stream: int, begin: int, end: int) -> int | None:
        """The first block between two positions that nobody has tried to pack."""
        block = max(self._next[stream], -(-begin // BLOCK_BYTES))
        with self._lock:
            for first, last in self._holes[stream]:
                if first <= block < last:
                    block = last
        return block if (block + 1) * BLOCK_BYTES <= end else None

    def pack(self, stream: int, block: int, shelf: Shelf, step: "Callable[[str], None]") -> int:
        """Pack a block whose bytes all came; how much room of the stage that gives back.

        It is tried once: not again if it does not become smaller. Nobody else packs.
        """
        self._next[stream] = block + 1
        frames = self._frames(stream, shelf)
        if frames is None:
            return 0
        begin, end = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        try:
            raw = self.files.get(STREAM_NAMES[stream])
        except FileNotFoundError:
            if not self.files.dropped:
                raise
            return 0  # all of it was stored meanwhile
        data = os.pread(raw, BLOCK_BYTES, begin)
        spilled = shelf is Shelf.SPILL
        try:
            if spilled and not self._linked:
                self._link(frames.path.parent)
            room = frames.write(block, data, step, always=spilled)
            if spilled:
                step("overflow:spilled")
                self._mark(stream, block)
        except OSError:
            if self.files.dropped:  # all of it was stored meanwhile
                self._unused(frames, block)
                return 0
            self._next[stream] = block
            with contextlib.suppress(OSError):
                self._unused(frames, block)
            raise
        if room == 0:
            return 0
        step("overflow:framed")
        room = 0 if spilled else room
        with self._lock:
            # What the writer has freed of it was counted as it was.
            useful = begin >= self._freed[stream] and not self.files.dropped
            if useful:
                self._packed[stream][block] = frames, room
        if not useful:
            self._unused(frames, block)
            return 0
        punch(raw, begin, end)
        step("overflow:packed")
        return BLOCK_BYTES - room

    def _unused(self, frames: Frames, block: int) -> None:
        if not self.files.dropped:
            frames.free(block)
            return
        frames.remove()
        with contextlib.suppress(OSError):
            frames.path.parent.rmdir()
        with contextlib.suppress(OSError):  # who removed the others may not have seen these
            for own in (_SPILLED, *(f"{name}{_MOVED}" for name in STREAM_NAMES.values())):
                (self.files.path / own).unlink(missing_ok=True)
            self.files.path.rmdir()

    def _link(self, spill: Path) -> None:
        """Say in the stage where blocks are moved to."""
        with contextlib.suppress(FileExistsError):
            (self.files.path / _SPILLED).symlink_to(spill.absolute())
        self._linked = True

    def _mark(self, stream: int, block: int) -> None:
        """Say that a block is moved, before its own room is freed."""
        path = self.files.path / f"{STREAM_NAMES[stream]}{_MOVED}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, b"\1", block)
        finally:
            os.close(fd)

    def _frames(self, stream: int, shelf: Shelf) -> Frames | None:
        path = self.files.path if shelf is Shelf.STAGE else self._spill
        return None if path is None else Frames(path / f"{STREAM_NAMES[stream]}{_FRAMES}")

    def free_index(self, begin: int, end: int) -> None:
        """These records are on the disk."""
        with contextlib.suppress(OSError):
            _punch(self.files.index(), begin * fmt.RECORD_BYTES, end * fmt.RECORD_BYTES)

    def remove(self) -> None:
        """Everything of it is stored. Who has it pinned can read on."""
        with self._lock:
            self.files.dropped = True
        # What is spilled goes first: it is told from what a dead machine left by what is staged.
        for stream, name in STREAM_NAMES.items():
            if (spilled := self._frames(stream, Shelf.SPILL)) is not None:
                spilled.remove()
            for own in (_FRAMES, _MOVED):
                (self.files.path / f"{name}{own}").unlink(missing_ok=True)
        for name in (_SPILLED, *STREAM_NAMES.values(), INDEX_NAME):
            (self.files.path / name).unlink(missing_ok=True)
        for path in (self._spill, self.files.path):
            with contextlib.suppress(OSError):  # who packs this moment tidies up behind it
                if path is not None:
                    path.rmdir()


def spilled_to(path: Path) -> Path | None:
    """Where blocks of the log that is staged in a directory were moved to; None if none were."""
    try:
        found = (path / _SPILLED).readlink()
    except OSError:
        return None
    return found if found.name == path.name else None


def _punch(fd: int, begin: int, end: int) -> None:
    """Whole pages only; one that is begun goes with what follows in it."""
    first = begin - begin % PAGE_BYTES
    last = end - end % PAGE_BYTES
    if first < last:
        punch(fd, first, last)


def _ignore(*_: object) -> None:
    """Nobody waits for room."""
