# SPDX-License-Identifier: MIT
"""Stores, pipes and models of logs that the tests of this directory share."""

import asyncio
import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

from joblet.server.logs import Chunk, Gap, JobLog, LogStore, Settings
from joblet.server.logs import format as fmt
from joblet.server.logs.core import LogCore
from joblet.server.logs.files import FileCache, LogFiles
from joblet.server.logs.overflow import Overflow
from joblet.server.logs.recovery import recover
from joblet.server.logs.segments import Segments
from joblet.server.logs.stage import Bounds, Room, StagedLog
from joblet.server.logs.view import HELD, LogView, Place

BOOT: Final = 11
OTHER_BOOT: Final = 22

# Retries soon, so that a test does not wait for a back-off meant for disks.
QUICK: Final = Settings(retry_first_s=0.001, retry_last_s=0.01)


def ticking() -> Callable[[], int]:
    """A clock whose every reading is one microsecond after the one before."""
    ticks = itertools.count(1_000_000)
    return lambda: next(ticks)


def nothing(*_: object) -> None:
    """A callback nobody listens to."""


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run an async test; whatever hangs is cut off with a traceback of where."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main(), 50)

    return asyncio.run(bounded())


@contextlib.asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[LogStore]:
    options.setdefault("clock_us", ticking())
    options.setdefault("settings", QUICK)
    stage = options.pop("stage", directory.with_name(f"{directory.name}.stage"))
    store = LogStore(directory, stage, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


class Pipe:
    """A pipe as a job has it: `sink` is the job's, a copy of the read end stays with its PID 1."""

    def __init__(self, size: int = 1 << 20) -> None:
        self._kept, self.sink = os.pipe()
        fcntl.fcntl(self.sink, fcntl.F_SETPIPE_SZ, size)

    def read_end(self) -> int:
        """A copy for a reader to own."""
        return os.dup(self._kept)

    def write(self, data: bytes) -> None:
        """All of it; blocks while the pipe is full."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.sink, view) :]

    def hang_up(self) -> None:
        """The last writer leaves."""
        os.close(self.sink)
        self.sink = -1

    def __enter__(self) -> "Pipe":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._kept)
        if self.sink >= 0:
            os.close(self.sink)


async def until(log: JobLog, size: int) -> None:
    """Return once the log has grown to `size`."""
    core = log.core
    while core.size < size:
        await core.changed(lambda: core.size < size)


async def waiting(*logs: JobLog, count: int = 1) -> None:
    """Return once so many wait for growth of each log."""
    # Nothing tells that a task has come to wait.
    while any(len(log.core.waiters) < count for log in logs):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object]) -> None:
    """Return once it holds; for what threads do, and tell nobody of."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def collect(log: JobLog, from_offset: int = 0, **options: Any) -> list[Chunk | Gap]:
    return [item async for item in log.follow(from_offset, **options)]


def stream_of(items: Iterable[Chunk | Gap], stream: int) -> bytes:
    """What a stream said, gaps left out."""
    return b"".join(
        item.data for item in items if isinstance(item, Chunk) and item.stream == stream
    )


def by_offset(items: Iterable[Chunk | Gap]) -> dict[int, tuple[int, int]]:
    """Stream and byte at each log offset that has one; fails if an offset has two."""
    found: dict[int, tuple[int, int]] = {}
    for item in items:
        if isinstance(item, Chunk):
            for position, byte in enumerate(item.data, item.offset):
                assert position not in found
                found[position] = (item.stream, byte)
    return found


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    boot: int = BOOT,
    clean_boot: int = 0,
    clock_us: Callable[[], int] | None = None,
    known: bool = False,
    kept: bool = True,
    rotation: int = 64 << 20,
    step: Callable[[str], None] = nothing,
) -> Any:
    """A log without threads: opened, repaired, its files pinned.

    `kept`: what was staged is stored at the end, as a server that stops does; otherwise it was
    killed. `known`: its job ran before; if there is nothing of it, all it said is lost.
    """
    path.mkdir(exist_ok=True)
    clock_us = clock_us or ticking()
    cache = FileCache(0)
    files = LogFiles(path, cache)
    staged = StagedLog(stage_of(path), cache)
    segments = {stream: Segments(files, stream, rotation) for stream in fmt.STREAMS}
    try:
        with files.pinned(), staged.files.pinned():
            state = recover(
                files,
                segments,
                staged,
                job_id="job",
                boot=boot,
                clean_boot=clean_boot,
                now_us=clock_us,
                step=step,
                from_earlier_boot=known,
            )
            room = Room(Bounds())
            core = LogCore(
                "job",
                files,
                state,
                segments=segments,
                staged=StagedLog(stage_of(path), cache),
                room=room,
                clock_us=clock_us,
                wake=nothing,
                on_staged=nothing,
                on_stored=nothing,
                on_dirty=nothing,
                on_clean=nothing,
                step=step,
                policy=Overflow(room, spare=lambda: 0).policy(),
            )
            with core.pinned():
                yield core
                if kept:
                    core.store()
                    core.staged.remove()
    finally:
        cache.close()


def stage_of(path: Path) -> Path:
    """Where `opened` stages."""
    return path.with_name(f"{path.name}.stage")


def say(core: LogCore, stream: int, data: bytes) -> None:
    """What a reader thread does, with a write instead of a splice."""
    os.pwrite(core.staged.stream(stream), data, core.written[stream])
    core.written[stream] += len(data)
    core.enter(stream)


def seen(log: LogCore | LogView) -> LogView:
    """As its readers see it; with the secrets that nobody sees, if it is seen so already."""
    return LogView(log) if isinstance(log, LogCore) else log


def read_all(
    log: LogCore | LogView, from_offset: int = 0, max_bytes: int = 1 << 20
) -> list[Chunk | Gap]:
    view = seen(log)
    items: list[Chunk | Gap] = []
    place = Place(from_offset)
    while (found := view.read(place, max_bytes)) is not None:
        assert found is not HELD
        item, place = found
        items.append(item)
    return items


def records(path: Path) -> list[fmt.Record]:
    """The records of a log's index, each of which must be valid."""
    raw = (path / "index").read_bytes()
    assert len(raw) % fmt.RECORD_BYTES == 0
    state = fmt.IndexState()
    found = []
    for number in range(len(raw) // fmt.RECORD_BYTES):
        piece = raw[number * fmt.RECORD_BYTES : (number + 1) * fmt.RECORD_BYTES]
        record = fmt.decode(piece, number)
        assert record is not None
        assert state.accepts(record)
        state.apply(record, piece)
        found.append(record)
    return found


def now_us() -> int:
    return time.time_ns() // 1000
