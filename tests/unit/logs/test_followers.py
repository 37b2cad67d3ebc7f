# SPDX-License-Identifier: MIT
"""Followers: one log by offset, past and future in one, whoever joins when."""

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from joblet.errors import InvalidArgument, NotFound, Unavailable
from joblet.server.logs import ERR, OUT, Chunk, Gap, GapKind
from tests.unit.logs.support import (
    Pipe,
    by_offset,
    collect,
    opened,
    read_all,
    run,
    running,
    say,
    stream_of,
    until,
    waiting,
)


def _noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_all_followers_see_the_same_whenever_they_join(tmp_path: Path) -> None:
    said = {OUT: _noise(1, 600_000), ERR: _noise(2, 250_000)}

    async def main() -> None:
        with Pipe() as out, Pipe() as err:
            async with running(tmp_path) as store:
                log = await store.open("job")
                early = [asyncio.create_task(collect(log)) for _ in range(3)]
                await log.expect({OUT, ERR})
                log.attach(OUT, out.read_end())
                log.attach(ERR, err.read_end())

                def writer(pipe: Pipe, data: bytes) -> None:
                    for at in range(0, len(data), 3331):
                        pipe.write(data[at : at + 3331])

                half = {stream: data[: len(data) // 2] for stream, data in said.items()}
                pipes = {OUT: out, ERR: err}
                await asyncio.gather(
                    *(asyncio.to_thread(writer, pipes[s], data) for s, data in half.items())
                )
                await until(log, sum(map(len, half.values())))
                middle = [asyncio.create_task(collect(log, max_bytes=n)) for n in (1000, 1 << 20)]
                snapshot = await collect(log, follow=False)
                await asyncio.gather(
                    *(
                        asyncio.to_thread(writer, pipes[s], data[len(half[s]) :])
                        for s, data in said.items()
                    )
                )
                out.hang_up()
                err.hang_up()
                await log.wait_ended()
                late = await collect(log)
                everyone = [*await asyncio.gather(*early, *middle), late]
                reference = by_offset(late)
                assert sorted(reference) == list(range(log.size))
                for items in everyone:
                    assert by_offset(items) == reference
                    for stream, data in said.items():
                        assert stream_of(items, stream) == data
                assert by_offset(snapshot) == {
                    offset: reference[offset] for offset in range(sum(map(len, half.values())))
                }
                # Resuming anywhere gives the rest, byte for byte.
                for offset in (0, 1, 4095, 77_777, log.size - 1, log.size):
                    tail = by_offset(await collect(log, offset))
                    assert tail == {o: reference[o] for o in range(offset, log.size)}

    run(main)


def test_neighbours_of_one_stream_come_as_one_chunk(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT, ERR}))
        for data in (b"one", b"two", b"three"):
            say(core, OUT, data)
        say(core, ERR, b"four")
        core.end(ERR)
        say(core, OUT, b"five")
        core.gap(GapKind.LOST, OUT, 100)
        say(core, OUT, b"six")
        core.end(OUT)
        items = read_all(core)
        found = [(i.offset, i.data if isinstance(i, Chunk) else i.bytes) for i in items]
        assert found == [
            (0, b"onetwothree"),
            (11, b"four"),
            (15, b"five"),
            (19, 100),
            (119, b"six"),
        ]
        assert [item.offset_end for item in items] == [11, 15, 19, 119, 122]
        small = read_all(core, max_bytes=4)
        assert [len(i.data) for i in small if isinstance(i, Chunk)] == [4, 4, 3, 4, 4, 3]
        for offset in range(core.size):
            (first, *_) = read_all(core, offset)
            assert first.offset == offset
            if 19 <= offset < 119:
                assert isinstance(first, Gap)
                assert first.bytes == 119 - offset
        # A chunk bears the time of its first record.
        times = {item.offset: item.time_us for item in items}
        assert read_all(core, 5)[0].time_us == times[0] + 1


def test_many_tiny_records_are_read_in_one_go(tmp_path: Path) -> None:
    data = _noise(3, 5000)
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT}))
        for at in range(len(data)):
            say(core, OUT, data[at : at + 1])
        items = read_all(core)
        assert [item.offset for item in items] == [0]
        for offset in (0, 1, 1023, 1024, 1025, 4999):
            assert stream_of(read_all(core, offset), OUT) == data[offset:]


def test_a_bad_offset_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            await log.expect({OUT})
            with pytest.raises(
                InvalidArgument, match="offset 1 is not in the log, which ends at 0"
            ):
                log.follow(1)
            with pytest.raises(InvalidArgument, match="offset -1"):
                log.read_at(-1)
            with pytest.raises(InvalidArgument, match="chunks of 0 bytes"):
                log.follow(max_bytes=0)
            assert log.read_at(0) is None
            assert await collect(log, follow=False) == []

    run(main)


def test_growth_wakes_a_follower_and_nothing_else_does(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                follower = log.follow()
                for number in range(50):
                    reading = asyncio.create_task(follower.read())
                    await waiting(log)
                    pipe.write(b"%d" % number)
                    chunk = await reading
                    assert isinstance(chunk, Chunk)
                    assert chunk.data == b"%d" % number
                pipe.hang_up()
                assert await follower.read() is None
                assert await follower.read() is None
                assert not log.core.waiters

    run(main)


def test_a_follower_that_gives_up_leaves_nothing_and_can_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path) as store:
                log = await store.open("job")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                follower = log.follow()
                reading = asyncio.create_task(follower.read())
                await waiting(log)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                assert not log.core.waiters
                pipe.write(b"later")
                chunk = await follower.read()
                assert isinstance(chunk, Chunk)
                assert (chunk.data, follower.offset) == (b"later", 5)

    run(main)


def test_one_wake_up_serves_many_changes_of_many_logs(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            logs = [await store.open(f"job-{number}") for number in range(200)]
            for log in logs:
                await log.expect({OUT})
            loop = asyncio.get_running_loop()
            reading = [asyncio.create_task(log.follow().read()) for log in logs]
            await waiting(*logs)
            calls: list[object] = []
            real = loop.call_soon_threadsafe

            def counting(function: Callable[..., object], *args: Any, **options: Any) -> Any:
                calls.append(function)
                return real(function, *args, **options)

            loop.call_soon_threadsafe = counting  # type: ignore[method-assign, assignment]
            try:

                def everything() -> None:
                    for log in logs:
                        with log.core.files.pinned():
                            say(log.core, OUT, b"x")
                            say(log.core, OUT, b"y")

                thread = threading.Thread(target=everything)
                thread.start()
                thread.join()  # the loop does not run meanwhile
                assert len(calls) == 1
            finally:
                loop.call_soon_threadsafe = real  # type: ignore[method-assign]
            for chunk in await asyncio.gather(*reading):
                assert isinstance(chunk, Chunk)
                assert chunk.data == b"xy"

    run(main)


def test_a_log_with_no_streams_ends_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            assert log.expected is None
            reading = asyncio.create_task(collect(log))
            await log.expect(())
            assert await reading == []
            await log.wait_ended()
            assert log.ended

    run(main)


def test_followers_hear_that_the_store_stops_or_the_log_is_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            kept, removed = await store.open("kept"), await store.open("removed")
            tasks = [
                asyncio.create_task(coroutine)
                for coroutine in (
                    collect(kept),
                    kept.wait_ended(),
                    collect(removed),
                    removed.wait_ended(),
                )
            ]
            await waiting(kept, removed, count=2)
            await store.remove("removed")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 2 + [NotFound] * 2
        with pytest.raises(Unavailable):
            await kept.sync()
        with pytest.raises(Unavailable):
            await collect(kept)

    run(main)
