# SPDX-License-Identifier: MIT
"""Reader threads: pipes of every kind are read to their end, and none waits for another."""

import asyncio
import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from joblet.errors import FailedPrecondition, Internal, InvalidArgument, JobletError, Unavailable
from joblet.server.logs import ERR, OUT, Chunk, Settings
from tests.unit.logs.support import (
    QUICK,
    Pipe,
    collect,
    records,
    run,
    running,
    stream_of,
    until,
)


def test_a_pipe_whose_writers_left_before_it_was_attached(tmp_path: Path) -> None:
    """Opened after the last writer has gone, it has one event and no hang-up ever."""

    async def main() -> None:
        os.mkfifo(tmp_path / "fifo")
        keeper = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        sink = os.open(tmp_path / "fifo", os.O_WRONLY)
        os.write(sink, b"x" * 50_000)
        os.close(sink)
        late = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        os.close(keeper)
        settings = Settings(splice_bytes=4096, fair_splice_bytes=4096)
        async with running(tmp_path / "logs", settings=settings) as store:
            log = await store.open("job")
            await log.expect({OUT})
            log.attach(OUT, late)
            await log.wait_ended()
            assert stream_of(await collect(log), OUT) == b"x" * 50_000

    run(main)


def test_an_empty_pipe_without_writers_ends_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            pipe.hang_up()
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                await log.wait_ended()
                assert log.size == 0

    run(main)


def test_a_stranger_who_keeps_the_pipe_open_cannot_keep_the_log_open(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                pipe.write(b"the job's")
                await log.finish(OUT)
                assert log.ended
                assert log.attached == frozenset()
                os.write(pipe.sink, b"the stranger's")
                assert stream_of(await collect(log), OUT) == b"the job's"
                await log.finish(OUT)  # again: nothing
                assert log.attach(OUT, pipe.read_end()) is False
                assert log.size == len("the job's")

    run(main)


def test_finish_reads_what_is_there_and_not_what_comes(tmp_path: Path) -> None:
    """A stranger writes without pause; the end comes all the same."""

    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                stop = False

                def stranger() -> int:
                    os.set_blocking(pipe.sink, False)
                    written = 0
                    while not stop:
                        try:
                            written += os.write(pipe.sink, b"x" * 5000)
                        except BlockingIOError:
                            continue
                    return written

                writing = asyncio.create_task(asyncio.to_thread(stranger))
                await until(log, 200_000)
                await asyncio.gather(*(log.finish(OUT) for _ in range(3)))
                size = log.size
                assert log.ended
                stop = True
                assert await writing >= size
                assert log.size == size

    run(main)


def test_finish_of_a_stream_that_was_never_attached(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            await log.expect({OUT, ERR})
            await log.finish(OUT)
            assert log.ended_streams == {OUT}
            await log.finish(ERR)
            assert log.ended

    run(main)


def test_detach_leaves_what_is_unread_for_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as out, Pipe() as err:
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT, ERR})
                log.attach(OUT, out.read_end())
                log.attach(ERR, err.read_end())
                out.write(b"first ")
                await until(log, 6)
                await log.detach()
                assert log.attached == frozenset()
                out.write(b"second ")
                log.attach(OUT, out.read_end())
                await until(log, 13)
                out.write(b"")
            # A clean stop of the server detaches, too.
            out.write(b"third")
            err.write(b"err")
            async with running(tmp_path) as store:
                log = await store.open("job")
                assert not log.ended
                assert log.expected == frozenset({OUT, ERR})
                log.attach(OUT, out.read_end())
                log.attach(ERR, err.read_end())
                out.hang_up()
                err.hang_up()
                items = await collect(log)
                assert stream_of(items, OUT) == b"first second third"
                assert stream_of(items, ERR) == b"err"

    run(main)


def test_who_waits_for_a_stream_that_is_detached_hears_it(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            resume = asyncio.Event()
            loop = asyncio.get_running_loop()

            def step(name: str) -> None:
                # Hold the thread, so that both commands are there when it looks.
                if name == "reader:opened":
                    asyncio.run_coroutine_threadsafe(resume.wait(), loop).result()

            async with running(tmp_path, step=step) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                detaching = asyncio.create_task(log.detach())
                await asyncio.sleep(0)
                finishing = asyncio.create_task(log.finish(OUT))
                await asyncio.sleep(0)
                resume.set()
                await detaching
                with pytest.raises(Unavailable, match="its pipe was detached"):
                    await finishing
                assert not log.ended

    run(main)


def test_a_merged_job_has_one_stream(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT})
                with pytest.raises(InvalidArgument, match=r"its log has \[1\]"):
                    log.attach(ERR, pipe.read_end())
                with pytest.raises(InvalidArgument):
                    await log.finish(ERR)
                with pytest.raises(FailedPrecondition):
                    await log.expect({OUT, ERR})
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                with pytest.raises(FailedPrecondition, match="in use"):
                    log.attach(OUT, pipe.read_end())
                pipe.write(b"both")
                pipe.hang_up()
                assert stream_of(await collect(log), OUT) == b"both"
            assert not (tmp_path / "job" / "err").exists()

    run(main)


def test_only_pipes_are_attached(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            fd = os.open("/dev/null", os.O_RDONLY)
            with pytest.raises(InvalidArgument, match="is not a pipe"):
                log.attach(OUT, fd)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    run(main)


@pytest.mark.parametrize("readers", [1, 2])
def test_300_jobs_and_none_waits_for_those_who_scream(tmp_path: Path, readers: int) -> None:
    """A clock that counts records orders them across logs: from when a whisper is in its pipe
    until it is entered, each pipe of its thread has had at most two turns. (How many turns those
    of another thread have meanwhile is the scheduler's affair.)"""
    count, screaming = 300, 30
    ticks = itertools.count(1)
    last = 0

    def clock() -> int:
        nonlocal last
        last = next(ticks)
        return last

    async def main() -> None:
        settings = Settings(splice_bytes=4096, fair_splice_bytes=4096)
        pipes = [Pipe() if n < screaming else Pipe(4096) for n in range(count)]
        try:
            for pipe in pipes[:screaming]:
                pipe.write(b"A" * (1 << 20))
            options = {"clock_us": clock, "readers": readers, "settings": settings}
            async with running(tmp_path, **options) as store:
                logs = [await store.open(f"job-{number}") for number in range(count)]
                for log in logs:
                    await log.expect({OUT})
                for log, pipe in zip(logs, pipes, strict=True):
                    log.attach(OUT, pipe.read_end())
                written = []
                for pipe in pipes[screaming:]:
                    pipe.write(b"psst")
                    written.append(last)
                for pipe in pipes:
                    pipe.hang_up()
                await asyncio.gather(*(log.wait_ended() for log in logs))
                assert [log.size for log in logs[:screaming]] == [1 << 20] * screaming
                for log, before in zip(logs[screaming:], written, strict=True):
                    (chunk,) = await collect(log)
                    assert isinstance(chunk, Chunk)
                    assert chunk.data == b"psst"
                    # A turn is a record, or two with the end.
                    assert readers > 1 or chunk.time_us - before <= 2 * 2 * count
        finally:
            for pipe in pipes:
                pipe.__exit__()

    run(main)


def test_pipes_beyond_many_are_small_unless_they_are_full(tmp_path: Path) -> None:
    settings = Settings(fair_splice_bytes=16_384, many_pipes=2)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            pipes = [stack.enter_context(Pipe()) for _ in range(4)]
            full = b"x" * 500_000
            pipes[3].write(full)
            store = await stack.enter_async_context(running(tmp_path, settings=settings, readers=1))
            logs = [await store.open(f"job{number}") for number in range(4)]
            for log, pipe in zip(logs, pipes, strict=True):
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
            for pipe in pipes[:3]:
                pipe.write(b"said")
            for log, size in zip(logs, (4, 4, 4, len(full)), strict=True):
                await until(log, size)
            sizes = [fcntl.fcntl(pipe.sink, fcntl.F_GETPIPE_SZ) for pipe in pipes]
            assert sizes == [1 << 20, 1 << 20, 16_384, 1 << 20]
            for log, pipe in zip(logs, pipes, strict=True):
                pipe.write(b"y" * 100_000)
                pipe.hang_up()
                await log.wait_ended()
            assert stream_of(await collect(logs[2]), OUT) == b"said" + b"y" * 100_000
            assert stream_of(await collect(logs[3]), OUT) == full + b"y" * 100_000

    run(main)


def test_a_bug_in_one_pipe_stops_that_pipe_and_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, JobletError | None]] = []

    async def main() -> None:
        failing = True
        seen = asyncio.Event()

        def on_trouble(job_id: str, error: JobletError | None) -> None:
            told.append((job_id, error))
            seen.set()

        with Pipe() as bad, Pipe() as good:
            async with running(tmp_path, readers=1, on_trouble=on_trouble) as store:
                log, other = await store.open("bad"), await store.open("good")
                real = log.core.enter

                def enter(stream: int) -> None:
                    if failing:
                        raise ZeroDivisionError("a bug")
                    real(stream)

                log.core.enter = enter  # type: ignore[method-assign]
                for each, pipe in ((log, bad), (other, good)):
                    await each.expect({OUT})
                    each.attach(OUT, pipe.read_end())
                bad.write(b"kept")
                good.write(b"fine")
                await until(other, 4)
                await seen.wait()
                trouble = log.trouble
                assert isinstance(trouble, Internal)
                assert "a bug" in str(trouble)
                seen.clear()
                failing = False
                bad.hang_up()
                await log.wait_ended()
                await seen.wait()
                assert log.trouble is None
                assert stream_of(await collect(log), OUT) == b"kept"
        assert [(job, error is None) for job, error in told] == [("bad", False), ("bad", True)]

    run(main)


def test_the_death_of_a_reader_is_told_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        dead: asyncio.Future[JobletError] = asyncio.get_running_loop().create_future()
        dying = False

        def step(name: str) -> None:
            if dying and name == "reader:polled":
                raise ZeroDivisionError("a bug")

        with Pipe() as pipe:
            async with running(tmp_path, readers=1, step=step, on_death=dead.set_result) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                pipe.write(b"before ")
                await until(log, 7)
                dying = True
                pipe.write(b"after")
                assert "a bug" in str(await dead)
                with pytest.raises(Internal, match="log-reader-0 ended"):
                    await log.finish(OUT)
                with pytest.raises(Unavailable, match="no reader thread is left"):
                    (await store.open("other")).attach(OUT, pipe.read_end())
                assert not store.statistics().readers[0].alive
            pipe.hang_up()
            async with running(tmp_path) as store:
                log = await store.open("job")
                log.attach(OUT, pipe.read_end())
                assert stream_of(await collect(log), OUT) == b"before after"

    run(main)


def test_small_writes_gather(tmp_path: Path) -> None:
    """With a pause after a small round, many small writes become few records."""

    async def main() -> None:
        settings = Settings(pace_s=0.2)
        with Pipe() as pipe:
            async with running(tmp_path, settings=settings) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                pipe.write(b"first line\n")
                await until(log, 11)  # it does not wait for the pause
                for _ in range(500):
                    pipe.write(b"a line\n")
                pipe.hang_up()
                await log.wait_ended()
                assert log.size == 11 + 500 * 7
        data = [record for record in records(tmp_path / "job") if record.length > 10]
        assert len(data) <= 20

    run(main)


def _failing(error: OSError, times: int) -> Callable[..., int]:
    real, left = os.splice, iter(range(times))

    def splice(source: int, target: int, count: int, **options: int) -> int:
        if next(left, None) is not None:
            raise error
        return real(source, target, count, **options)

    return splice


def test_trouble_is_told_once_and_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[JobletError | None] = []

    async def main() -> None:
        over = asyncio.Event()

        def on_trouble(_: str, error: JobletError | None) -> None:
            told.append(error)
            if error is None:
                over.set()

        with Pipe() as pipe:
            async with running(tmp_path, settings=QUICK, on_trouble=on_trouble) as store:
                log = await store.open("job")
                await log.expect({OUT})
                monkeypatch.setattr(os, "splice", _failing(OSError(5, "Input/output error"), 7))
                log.attach(OUT, pipe.read_end())
                pipe.write(b"kept")
                await until(log, 4)
                await over.wait()
                pauses = sum(reader.pauses for reader in store.statistics().readers)
                assert pauses == 7
        assert [str(error) for error in told] == [
            "cannot keep the output of job job: Input/output error",
            "None",
        ]

    run(main)
