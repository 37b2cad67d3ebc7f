# SPDX-License-Identifier: MIT
"""What the keeper removes and compresses, with a store's real threads and files."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from joblet.errors import FailedPrecondition, Internal, NotFound
from joblet.server.logs import (
    ERR,
    OUT,
    Chunk,
    Gap,
    GapKind,
    JobLog,
    Keeping,
    LogStore,
    Selection,
    Swept,
)
from joblet.server.logs.keeper import DAY_US, Keeper
from tests.unit.logs.support import Pipe, collect, eventually, now_us, run, running, say, stream_of

ROTATION = 20_000
LINES = b"".join(b"%09d\n" % number for number in range(10_000))


class Clock:
    """The wall clock, put forward."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return now_us() + self.ahead_us


class Kept:
    """A store with a keeper, and what it was asked for."""

    def __init__(self, store: LogStore, clock: Clock, keeping: Keeping) -> None:
        self.store = store
        self.clock = clock
        self.expired: list[str] = []
        self.swept: list[Swept] = []
        self.refuse: Callable[[str], Exception | None] = lambda _: None
        self.keeper: Keeper = store.keeper(keeping, expire=self._expire, on_swept=self.swept.append)

    async def _expire(self, job_id: str) -> None:
        self.expired.append(job_id)
        if (error := self.refuse(job_id)) is not None:
            raise error
        await self.store.remove(job_id)

    async def add(self, job_id: str, data: bytes = LINES, *, end: bool = True) -> JobLog:
        log = await self.store.open(job_id)
        await log.expect({OUT})
        with log.core.pinned():
            for begin in range(0, len(data), 5000):
                say(log.core, OUT, data[begin : begin + 5000])
                await asyncio.to_thread(log.core.store)
        if end:
            await log.finish(OUT)
            await log.sync()
        return log

    def names(self, job_id: str, pattern: str) -> list[str]:
        return sorted(file.name for file in (self.store_path / job_id).glob(pattern))

    store_path: Path


@contextlib.asynccontextmanager
async def keeping(path: Path, how: Keeping) -> AsyncIterator[Kept]:
    clock = Clock()
    async with running(path, clock_us=clock, rotation_bytes=ROTATION) as store:
        kept = Kept(store, clock, how)
        kept.store_path = path
        yield kept


@contextlib.asynccontextmanager
async def at_work(keeper: Keeper) -> AsyncIterator[None]:
    task = asyncio.create_task(keeper.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_logs_older_than_the_retention_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(retention_us=3 * DAY_US)) as kept:
            for name in ("a", "b", "c"):
                await kept.add(name, b"said\n")
            writing = await kept.add("writing", b"said\n", end=False)
            assert await kept.keeper.sweep() == Swept()
            kept.clock.ahead_us = 2 * DAY_US
            os.utime(tmp_path / "b" / "index", (0, 0))
            swept = await kept.keeper.sweep()
            assert (kept.expired, swept.logs, kept.swept) == (["b"], 1, [swept])
            assert await kept.store.list() == ["a", "c", "writing"]
            kept.clock.ahead_us = 4 * DAY_US
            # "a" has a record that says that its job runs; "c" has none, and is asked for once
            kept.refuse = lambda name: (
                FailedPrecondition("delete", "it runs") if name == "a" else NotFound("delete", "?")
            )
            assert await kept.keeper.sweep() == Swept()
            assert await kept.store.list() == ["a", "c", "writing"]
            assert await kept.keeper.sweep() == Swept()
            kept.clock.ahead_us = 5 * DAY_US
            kept.refuse = lambda _: Internal("delete", "the disk fails")
            swept = await kept.keeper.sweep()
            assert (swept.logs, swept.failed) == (0, 1)
            assert kept.expired == ["b", "a", "c", "a"]
            assert not writing.ended

    run(main)


def test_beyond_the_bytes_in_all_the_oldest_go_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(max_bytes=270_000)) as kept:
            for number, name in enumerate(("c", "a", "d", "b")):
                await kept.add(name)
                os.utime(tmp_path / name / "index", (number, now_us() / 1e6 - 100 + number))
            swept = await kept.keeper.sweep()
            assert kept.expired == ["c", "a"]
            assert swept.log_bytes > 200_000
            # What is still written stays, however much it is.
            log = await kept.add("running", LINES * 3, end=False)
            swept = await kept.keeper.sweep()
            assert kept.expired == ["c", "a", "d", "b"]
            assert (swept.logs, swept.shortened) == (2, 0)
            assert stream_of(await collect(log, follow=False), OUT) == LINES * 3

    run(main)


def test_a_job_that_prints_and_prints_stays_within_its_bound(tmp_path: Path) -> None:
    async def main() -> None:
        how = Keeping(max_bytes_per_job=60_000, compress=False)
        async with keeping(tmp_path, how) as kept, at_work(kept.keeper):
            log = await kept.store.open("job")
            await log.expect({OUT})
            follower = log.follow()
            with Pipe() as pipe:
                log.attach(OUT, pipe.read_end())
                for _ in range(30):
                    await asyncio.to_thread(pipe.write, LINES[:20_000])
                    await eventually(lambda: kept.names("job", "out.*[0-9]"))
                pipe.hang_up()
                await log.wait_ended()
            core, segments = log.core, log.core.segments[OUT]
            await eventually(lambda: core.stored_records == core.state.records)
            await eventually(lambda: sum(each.size for each in segments.stored()) <= 60_000)
            assert log.size == 600_000
            assert kept.swept == []  # told with the next sweep, or at the end
            offset = 0
            while (item := await follower.read()) is not None:
                assert item.offset == offset
                offset = item.offset_end
                if isinstance(item, Gap):
                    assert (item.kind, item.bytes) == (GapKind.EXPIRED, offset - item.offset)
                else:
                    expected = LINES[:20_000] * 31
                    begin = item.offset % 20_000
                    assert item.data == expected[begin : begin + len(item.data)]
            assert offset == 600_000
        (swept,) = kept.swept
        assert (swept.shortened, swept.shortened_bytes) == (1, segments.expired)
        assert segments.expired >= 540_000

    run(main)


def test_what_expired_of_one_stream_is_counted_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping()) as kept:
            log = await kept.store.open("job")
            await log.expect({OUT, ERR})
            with log.core.pinned():
                for number in range(2500):
                    say(log.core, OUT, b"o" * 20)
                    say(log.core, ERR, b"e" * 10)
                    if number % 100 == 0:
                        log.core.store()
                log.core.store()
                log.core.expire(1)
            gone = {stream: segments.expired for stream, segments in log.core.segments.items()}
            assert all(gone.values())
            for stream in (OUT, ERR):
                selected = log.select(Selection(stream=stream, follow=False))
                await selected.open()
                items = [piece.item async for piece in selected]
                gaps = [item for item in items if isinstance(item, Gap)]
                assert {gap.kind for gap in gaps} == {GapKind.EXPIRED}
                assert sum(gap.bytes or 0 for gap in gaps) == gone[stream]
                assert len(gaps) < 20
                data = b"".join(item.data for item in items if isinstance(item, Chunk))
                assert len(data) == log.stream_bytes(stream) - gone[stream]

    run(main)


def test_what_is_complete_is_compressed_and_can_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping()) as kept:
            ended = await kept.add("ended")
            log = await kept.add("running", end=False)
            small = await kept.add("small", b"little\n")
            await kept.keeper.sweep()
            await kept.keeper.seal()
            # of the one that runs all but the last; the other has just ended
            assert len(kept.names("running", "out.*[0-9].zst")) == 4
            assert len(kept.names("running", "out.*[0-9]")) == 1
            assert kept.names("ended", "*.zst") == []
            with log.core.pinned():
                say(log.core, OUT, b"more")
            assert stream_of(await collect(log, follow=False), OUT) == LINES + b"more"
            kept.clock.ahead_us = 3_600_000_000
            before = sum(f.stat().st_size for f in (tmp_path / "ended").iterdir())
            await kept.keeper.sweep()
            await kept.keeper.seal()
            assert kept.names("ended", "out.*[0-9]") == []
            assert sum(f.stat().st_size for f in (tmp_path / "ended").iterdir()) < before / 2
            assert kept.names("small", "*.zst") == []
            assert stream_of(await collect(ended), OUT) == LINES
            assert stream_of(await collect(small), OUT) == b"little\n"
            assert stream_of(await collect(ended, 55_555, max_bytes=7), OUT) == LINES[55_555:]
        async with running(tmp_path) as store:
            assert stream_of(await collect(await store.open("ended")), OUT) == LINES

    run(main)


def test_a_reader_of_the_plain_file_is_not_disturbed(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(seal_after_us=0)) as kept:
            log = await kept.add("job")
            with (tmp_path / "job" / kept.names("job", "out.*[0-9]")[0]).open("rb") as file:
                follower = log.follow(max_bytes=1000)
                first = await follower.read()
                await kept.keeper.sweep()
                await kept.keeper.seal()
                assert file.read() == LINES[:20_000]
            assert kept.names("job", "out.*[0-9]") == []
            rest = [item async for item in follower]
            assert first is not None
            assert stream_of([first, *rest], OUT) == LINES

    run(main)


def test_damage_is_told_once_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(seal_after_us=0)) as kept:
            log = await kept.add("job")
            name = kept.names("job", "out.*[0-9]")[1]
            raw = bytearray((tmp_path / "job" / name).read_bytes())
            raw[7000] ^= 1
            (tmp_path / "job" / name).write_bytes(raw)
            for _ in range(2):
                await kept.keeper.sweep()
                await kept.keeper.seal()
            assert kept.names("job", "out.*[0-9]") == [name]
            assert (tmp_path / "job" / name).read_bytes() == raw
            items = await collect(log)
            assert [item.bytes for item in items if isinstance(item, Gap)] == [5000]
        (told,) = [record for record in caplog.records if "damaged" in record.getMessage()]
        assert name in told.getMessage()

    run(main)


def test_a_full_disk_while_it_compresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(seal_after_us=0)) as kept:
            log = await kept.add("job")
            real = os.pwrite

            def pwrite(fd: int, data: bytes, offset: int) -> int:
                if ".zst" in str(Path(f"/proc/self/fd/{fd}").readlink()) and offset:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(fd, data[:100], offset)

            before = kept.names("job", "*")
            monkeypatch.setattr(os, "pwrite", pwrite)
            await kept.keeper.sweep()
            await kept.keeper.seal()
            assert kept.names("job", "*") == before
            monkeypatch.setattr(os, "pwrite", real)
            await kept.keeper.sweep()
            await kept.keeper.seal()
            assert kept.names("job", "out.*[0-9]") == []
            assert stream_of(await collect(log), OUT) == LINES

    run(main)


def test_it_waits_while_output_comes_fast_and_stops_when_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(seal_after_us=0)) as kept:
            await kept.add("job")
            kept.store._room.take(2 << 20, 0)  # as much is staged
            async with at_work(kept.keeper):
                await eventually(lambda: kept.names("job", "*.new"))
            assert kept.names("job", "*.new*") == []
            assert len(kept.names("job", "out.*[0-9]")) == 5
            kept.store._room.free(2 << 20, 0)

    run(main)


def test_many_logs_are_swept(tmp_path: Path) -> None:
    async def main() -> None:
        async with keeping(tmp_path, Keeping(retention_us=DAY_US)) as kept:
            await kept.add("new", b"x")
            for number in range(2000):
                (tmp_path / f"job-{number:04}").mkdir()
                (tmp_path / f"job-{number:04}" / "index").touch()
                os.utime(tmp_path / f"job-{number:04}" / "index", (0, 0))
            swept = await kept.keeper.sweep()
            assert swept.logs == 2000
            assert await kept.store.list() == ["new"]

    run(main)
