# SPDX-License-Identifier: MIT
"""Where output waits for the disk: a tmpfs, so that no job ever waits for one.

A byte that has left a job's pipe is in the stage until it is in the store; a killed server loses
neither, and the next one goes on from both.

    <stage>/<job id>/index       the log's index, as on the disk, from the first record on that is
                                 not there; sparse, each record lies where it lies on the disk
    <stage>/<job id>/out, err    what the streams said, from the first byte on that is not in the
                                 store; sparse, each byte lies at its position in the stream

What is stored is punched out of the files, and a log without anything staged has no directory.

Must not import anything of joblet but its neighbours files, format, segments, syscalls.
"""

import contextlib
import dataclasses
import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joblet.server.logs import format as fmt
from joblet.server.logs.files import INDEX_NAME, FileCache, LogFiles
from joblet.server.logs.segments import STREAM_NAMES
from joblet.server.logs.syscalls import punch

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGE_BYTES: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be staged, of all logs, and how much is a batch."""

    limit_bytes: int = 256 << 20
    limit_chunks: int = 100_000
    batch_bytes: int = 4 << 20
    batch_chunks: int = 100


class Room:
    """How much output is staged, of all logs. Called from any thread.

    It is full from the limits on until an eighth of them is free again; then `on_room` is called,
    once. `on_batch` is called whenever something comes and there is enough for a batch.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.bytes = 0
        self.chunks = 0
        self._full = False
        self.on_room: Callable[[], None] = _ignore
        self.on_batch: Callable[[], None] = _ignore
        self._lock = threading.Lock()

    @property
    def has_batch(self) -> bool:
        bounds = self.bounds
        return self.bytes >= bounds.batch_bytes or self.chunks >= bounds.batch_chunks

    def is_full(self) -> bool:
        return self._full

    def take(self, count: int, chunks: int) -> None:
        with self._lock:
            self.bytes += count
            self.chunks += chunks
            bounds = self.bounds
            if self.bytes >= bounds.limit_bytes or self.chunks >= bounds.limit_chunks:
                self._full = True
        if self.has_batch:
            self.on_batch()

    def free(self, count: int, chunks: int) -> None:
        with self._lock:
            self.bytes -= count
            self.chunks -= chunks
            was, self._full = self._full, self._full and not self._has_some()
        if was and not self._full:
            self.on_room()

    def _has_some(self) -> bool:
        bounds = self.bounds
        low_bytes = bounds.limit_bytes - bounds.limit_bytes // 8
        low_chunks = bounds.limit_chunks - bounds.limit_chunks // 8
        return self.bytes <= low_bytes and self.chunks <= low_chunks


class StagedLog:
    """The staged files of one log; made when something is staged. Everything raises OSError.

    Descriptors are valid while it is pinned.
    """

    def __init__(self, path: Path, cache: FileCache) -> None:
        self.files = LogFiles(path, cache)

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
        """Zeros where nothing is staged, less where the file ends."""
        return os.pread(self.files.get(STREAM_NAMES[stream]), count, position)

    def next_byte(self, stream: int, position: int) -> int:
        """The position of the first byte from this one on that was not freed (or lies in a page
        with one that was not); the end if there is none."""
        try:
            return os.lseek(self.files.get(STREAM_NAMES[stream]), position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # behind the last one
                raise
            return max(position, self.length(stream))

    def read_into(self, stream: int, position: int, buffer: memoryview) -> int:
        """As read; how many bytes."""
        return os.preadv(self.files.get(STREAM_NAMES[stream]), [buffer], position)

    def read_index(self, number: int, count: int) -> bytes:
        """Records, raw."""
        at = number * fmt.RECORD_BYTES
        return os.pread(self.files.index(), count * fmt.RECORD_BYTES, at)

    def free(self, stream: int, begin: int, end: int) -> None:
        """These bytes are stored."""
        _punch(self.files.get(STREAM_NAMES[stream]), begin, end)

    def free_index(self, begin: int, end: int) -> None:
        """These records are on the disk."""
        _punch(self.files.index(), begin * fmt.RECORD_BYTES, end * fmt.RECORD_BYTES)

    def remove(self) -> None:
        """Everything of it is stored. Who has it pinned can read on."""
        self.files.dropped = True
        for name in (*STREAM_NAMES.values(), INDEX_NAME):
            (self.files.path / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.files.path.rmdir()


def _punch(fd: int, begin: int, end: int) -> None:
    """Whole pages only; one that is begun goes with what follows in it."""
    first = begin - begin % _PAGE_BYTES
    last = end - end % _PAGE_BYTES
    if first < last:
        punch(fd, first, last)


def _ignore() -> None:
    """Nobody waits for room."""
