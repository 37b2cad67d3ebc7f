# SPDX-License-Identifier: MIT
"""Logs of jobs that are in the journal, as the server reads them; a scripted reader."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from joblet import link
from joblet.errors import InvalidArgument, Unavailable
from joblet.model import JOURNALD, End, Job, JobSpec, JobState, Reason
from joblet.server.journal_log import (
    Begin,
    Complete,
    Cover,
    Item,
    JournalLogs,
    Missing,
    Text,
    Wanted,
)
from joblet.server.launcher import Launcher
from tests.unit.server.pid1 import Init
from tests.unit.server.support import job, job_id, jobs_of, run, until

pytestmark = pytest.mark.usefixtures("no_leaks")

SPEC = JobSpec("true", log_driver=JOURNALD)
RUNNING = job(spec=SPEC, state=JobState.RUNNING, started_us=77)
ENDED = dataclasses.replace(RUNNING, state=JobState.COMPLETED, ended_us=99, end=End(Reason.EXITED))
ALL = Wanted()


@pytest.fixture
def init(tmp_path: Path) -> Any:
    with jobs_of(tmp_path / "w") as made:
        yield made


async def already() -> Job:
    return ENDED


class Reading:
    """A reader of the server's, and the other end of it."""

    def __init__(self, init: Init, made: AsyncIterator[Item]) -> None:
        self.init = init
        self.items: list[Item] = []
        self.task = asyncio.ensure_future(self._read(made))

    async def _read(self, made: AsyncIterator[Item]) -> None:
        async for item in made:
            self.items.append(item)

    async def end(self, number: int = 1) -> socket.socket:
        """Of the reader with this number."""
        await until(lambda: len(self.init.readers) >= number or self.task.done())
        return self.init.readers[number - 1][0]

    def asked(self, number: int = 1) -> dict[str, Any]:
        return self.init.readers[number - 1][1]


@contextlib.asynccontextmanager
async def reading(
    init: Init,
    wanted: Wanted = ALL,
    of: Job = RUNNING,
    ended: Callable[[], Awaitable[Job]] | None = already,
) -> AsyncIterator[Reading]:
    made = JournalLogs(cast(Launcher, init)).read(of, wanted, ended)
    one = Reading(init, made)
    try:
        yield one
    finally:
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)
        await made.aclose()


def text(number: int, data: bytes = b"x\n", stream: int = 1) -> bytes:
    return link.frame({"stream": stream, "time_us": number, "cursor": f"i={number}"}, data)


def end(*missing: int) -> bytes:
    return link.frame({"end": True, "missing": list(missing)})


def test_lines_gaps_and_the_end(init: Init) -> None:
    async def main() -> None:
        async with reading(init) as one:
            sock = await one.end()
            sock.send(text(1, b"a\nb\n") + text(2, b"e\n", 2))
            await until(lambda: len(one.items) == 2)
            gap = {"stream": 0, "time_us": 3, "cursor": "i=3", "gap": "dropped", "lines": 9}
            sock.send(link.frame(gap))
            sock.send(end())
            await one.task
            assert one.items == [
                Text(b"a\nb\n", 1, 1, "i=1"),
                Text(b"e\n", 2, 2, "i=2"),
                Missing("dropped", 9, 0, 3, "i=3"),
                Complete(),
            ]
            assert one.asked() == {
                "job": job_id(1), "cursor": "", "since_us": 0, "until_us": 0, "tail": -1,
                "stream": 0, "began_us": 77, "streams": 2, "single": 0,
            }  # fmt: skip

    run(main)


@pytest.mark.parametrize(
    ("missing", "gaps"),
    [
        ((), []),
        ((2,), [Missing("lost", -1, 2, 99)]),
        ((1, 2), [Missing("lost", -1, 0, 99)]),
    ],
)
def test_a_stream_without_its_end_has_lost_something(
    init: Init, missing: tuple[int, ...], gaps: list[Missing]
) -> None:
    async def main() -> None:
        async with reading(init) as one:
            (await one.end()).send(text(1) + end(*missing))
            await one.task
            assert one.items[1:] == [*gaps, Complete()]
        # of one that has not ended, or never began, nothing is known
        async with reading(init, ended=None) as one:
            (await one.end(2)).send(end(*missing))
            await one.task
            assert one.items == []
        never = dataclasses.replace(ENDED, started_us=0)
        async with reading(init, of=never, ended=None) as one:
            (await one.end(3)).send(end(*missing))
            await one.task
            assert one.items == [Complete()]

    run(main)


def test_the_reader_hears_of_the_jobs_end(init: Init) -> None:
    over = asyncio.Event()

    async def ended() -> Job:
        await over.wait()
        return ENDED

    async def main() -> None:
        async with reading(init, ended=ended) as one:
            sock = await one.end()
            sock.setblocking(False)
            sock.send(text(1))
            await until(lambda: one.items)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            over.set()
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
            sock.send(text(2) + end())
            await one.task
            assert len(one.items) == 3

    run(main)


def test_it_goes_on_behind_its_cursor_when_init_mode_is_restarted(init: Init) -> None:
    async def main() -> None:
        async with reading(init, Wanted(stream=1)) as one:
            sock = await one.end()
            sock.send(text(1) + text(2)[:-1])  # cut short
            await until(lambda: one.items)
            sock.close()
            again = await one.end(2)
            assert one.asked(2)["cursor"] == "i=1"
            assert one.asked(2)["began_us"] == 0
            again.send(text(2) + end())
            await one.task
            assert one.items[1:] == [Text(b"x\n", 1, 2, "i=2"), Complete()]

    run(main)


def test_where_a_part_begins_is_kept_over_a_break(init: Init) -> None:
    async def main() -> None:
        for cursor in ("i=4", ""):
            count = len(init.readers)
            async with reading(init, Wanted(tail=2)) as one:
                sock = await one.end(count + 1)
                assert one.asked(count + 1)["began_us"] == 0
                sock.send(link.frame({"begin": True, "cursor": cursor}))
                await until(lambda: one.items)
                sock.close()
                again = await one.end(count + 2)
                asked = one.asked(count + 2)
                assert (asked["cursor"], asked["tail"]) == (cursor, -1)
                again.send(text(5) + end())
                await one.task
                assert one.items == [Begin(cursor), Text(b"x\n", 1, 5, "i=5"), Complete()]

    run(main)


def test_what_is_later_than_asked_for_ends_it(init: Init) -> None:
    """Also while the job runs."""

    async def never() -> Job:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        wanted = Wanted(until_us=5, stream=2, single=True)
        async with reading(init, wanted, ended=never) as one:
            sock = await one.end()
            asked = one.asked()
            assert (asked["until_us"], asked["stream"], asked["single"]) == (5, 2, 1)
            sock.send(text(1) + link.frame({"end": True, "past": True, "missing": []}))
            await one.task
            assert one.items == [Text(b"x\n", 1, 1, "i=1"), Complete()]

    run(main)


def test_readers_that_say_nothing_are_not_tried_for_ever(init: Init) -> None:
    async def main() -> None:
        async with reading(init) as one:
            for number in range(1, 4):
                (await one.end(number)).close()
            with pytest.raises(Unavailable, match="ended without a word"):
                await one.task

    run(main)


def test_what_the_reader_refuses(init: Init) -> None:
    async def main() -> None:
        async with reading(init, Wanted(cursor="i=9")) as one:
            error = InvalidArgument("read the journal", "i=9 is no cursor")
            (await one.end()).send(link.frame({"error": link.error_message(error)}))
            with pytest.raises(InvalidArgument, match="is no cursor"):
                await one.task
        for nonsense in (b"\xff" * 100, link.frame([])):  # type: ignore[arg-type]
            async with reading(init) as one:
                (await one.end(len(init.readers) + 1)).send(nonsense)
                with pytest.raises(InvalidArgument, match="frame"):
                    await one.task

    run(main)


# -- secrets ---------------------------------------------------------------------------------------


def covered(secret: str, *pieces: bytes) -> list[bytes]:
    cover = Cover([secret])
    return [cover.covered(Text(data, 1, 0, "")).data for data in pieces]


def test_secrets_are_covered() -> None:
    assert covered("hunter2", b"my hunter2\n", b"hunter\n2\n") == [b"my *******\n", b"hunter\n2\n"]
    assert covered("hunter2", b"no\n") == [b"no\n"]
    assert covered("", b"no\n") == [b"no\n"]


def test_a_secret_that_a_cut_goes_through() -> None:
    """A line that journald has split: what may become a secret is covered, whatever it becomes."""
    assert covered("hunter2", b"my hun", b"ter2\n") == [b"my ***", b"****\n"]
    assert covered("hunter2", b"my hun", b"dred\n") == [b"my ***", b"dred\n"]


def test_a_secret_of_several_lines() -> None:
    assert covered("first line\n\nsecond", b"first line\nsecond\n") == [b"**********\n******\n"]


def test_streams_do_not_mix() -> None:
    cover = Cover(["hunter2"])
    assert cover.covered(Text(b"hun", 1, 0, "")).data == b"***"
    assert cover.covered(Text(b"ter2\n", 2, 0, "")).data == b"ter2\n"
    assert cover.covered(Text(b"ter2\n", 1, 0, "")).data == b"****\n"
