# SPDX-License-Identifier: MIT
"""Servers that come and go, disks that are full, an init mode that is away: jobs do not mind."""

import asyncio
from pathlib import Path

import pytest

from joblet.errors import (
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from joblet.launch import protocol
from joblet.model import JobState, Reason
from joblet.server.logs import Chunk, Gap
from tests.unit.server.pid1 import Init
from tests.unit.server.support import (
    BOOT,
    OTHER_BOOT,
    Disk,
    ends_stopped,
    job,
    job_id,
    jobs_of,
    run,
    started,
    until,
    world,
)

pytestmark = pytest.mark.usefixtures("no_leaks", "patch")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "world"


# -- taking back, and jobs that ended meanwhile ----------------------------------------------------


def test_a_job_is_taken_back(base: Path) -> None:
    async def main(init: Init) -> None:
        async with world(base, init=init) as w:
            init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            pid1.say(b"1")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 1)
            await w.let_go()
            assert (log.attached, pid1.alive) == (frozenset(), True)
            await until(lambda: not pid1.held)
            pid1.say(b"2")
        async with world(base, init=init) as w:
            [record] = await w.records.load_unfinished()
            task = w.taken_back(record)
            running = await task.settled
            assert running.state is JobState.RUNNING
            pid1.say(b"3")
            pid1.end(code=0)
            await w.over()
            assert await w.text() == b"123"
            assert task.job.state is JobState.COMPLETED
            # copied to the journal from where this server began to read
            assert w.copies == [(job_id(1), 1)]

    with jobs_of(base) as init:
        run(lambda: main(init))


def test_results_with_record_and_rests(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.let_go()
            pid1 = w.pid1()
            pid1.say(b"out")
            pid1.say(b"err", "err")
            pid1.end(code=5)
            assert not pid1.alive
            task = w.results(await w.recorded())
            await w.over()
            assert task.job.end is not None
            assert (task.job.end.code, task.job.ended_us) == (5, 9000)
            assert (await w.text(), await w.text(stream=2)) == (b"out", b"err")
            assert w.init.jobs == {}

    run(main)


def test_results_with_rests_and_no_counts(base: Path) -> None:
    """PID 1 was killed while it put them aside: taken as far as they go, and a gap behind."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.let_go()
            pid1 = w.pid1()
            (pid1.directory / "out.rest").write_bytes(b"as far as")
            pid1._leave(protocol.ExitRecord(job_id(1), code=1, started_us=1, ended_us=2))
            task = w.results(await w.recorded())
            await w.over()
            assert task.job.end is not None
            assert task.job.end.code == 1
            assert await w.text() == b"as far as"
            gaps = [item for item in await w.said() if isinstance(item, Gap)]
            assert {(gap.stream, gap.bytes) for gap in gaps} == {(1, None), (2, None)}

    run(main)


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_results_without_anything(base: Path, boot: str) -> None:
    async def main(init: Init) -> None:
        async with world(base, init=init) as w:
            init.started = started
            task = w.new(job())
            await task.settled
            await w.durable(JobState.RUNNING)
            w.pid1().say(b"seen")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 4)
        init.leave()
        async with world(base, init=init, boot=boot) as w:
            [record] = await w.records.load_unfinished()
            task = w.results(record, same_boot=boot == BOOT)
            await w.over()
            final = await w.recorded()
            assert final == task.job
            assert final.end is not None
            assert final.end.reason is (Reason.SIGNALLED if boot == BOOT else Reason.LOST)
            assert (final.state, final.started_us) == (JobState.FAILED, 1000)
            # a lost tail: nobody knows what was in its pipes
            items = await w.said()
            assert isinstance(items[0], Chunk)
            assert items[0].data == b"seen"
            [gap] = items[1:]  # one, although the log's own recovery may have entered one already
            assert isinstance(gap, Gap)
            assert (gap.stream, gap.bytes) == (0, None)
            assert (await w.logs.open(job_id(1))).ended

    with jobs_of(base) as init:
        run(lambda: main(init))


def test_results_of_a_launch_that_was_cut_short(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            await w.records.put(job())
            task = w.results(job())  # no directory at all
            await w.over()
            assert task.job.end is not None
            assert task.job.end.reason is Reason.LAUNCH_FAILED
            assert (await w.recorded()).state is JobState.FAILED
            assert [item for item in await w.said() if isinstance(item, Gap)] == []

    run(main)


def test_results_of_a_job_that_was_to_be_stopped(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            record = job(state=JobState.STOPPING, stop_by="me")
            await w.records.put(record)
            task = w.results(record, same_boot=False)
            await w.over()
            ends_stopped(w, task)

    run(main)


def test_results_that_cannot_be_read_for_a_while(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.errors["results"] = [
                Unavailable("ask init mode", "it is away"),
                Internal("read exit", "Too many open files"),
                FailedPrecondition("read the results", "its PID 1 is still there"),
            ]
            await w.records.put(job(state=JobState.RUNNING))
            task = w.results(job(state=JobState.RUNNING))
            await w.over()
            assert w.init.count("results") == 4
            assert task.job.final

    run(main)


# -- a full disk -----------------------------------------------------------------------------------


def test_a_full_disk_during_the_job(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        disk = Disk(patch)
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            disk.full = True
            w.pid1().say(b"waits")
            await until(lambda: disk.refused)
            w.pid1().end(code=0)
            await until(lambda: disk.refused > 3)
            assert not task.ended.is_set()
            assert w.pid1().alive
            disk.full = False
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert await w.text() == b"waits"

    run(main)


def test_a_full_disk_at_the_launch(base: Path, patch: pytest.MonkeyPatch) -> None:
    """The client is told; the record, which it knows of, becomes true when there is room."""

    async def main() -> None:
        disk = Disk(patch)
        async with world(base) as w:
            disk.full = True
            task = w.new(job())
            with pytest.raises(ResourceExhausted, match="No space left"):
                await task.settled
            assert not task.ended.is_set()
            refused = disk.refused
            await until(lambda: disk.refused > refused)
            disk.full = False
            await w.over()
            assert (await w.recorded()).state is JobState.FAILED
            assert (await w.logs.open(job_id(1))).ended
            assert w.init.jobs == {}
            assert w.init.count("go") == 0

    run(main)


@pytest.mark.parametrize("alive", [True, False])
def test_a_full_disk_at_the_start_of_the_server(
    base: Path, patch: pytest.MonkeyPatch, alive: bool
) -> None:
    async def main() -> None:
        disk = Disk(patch)
        async with world(base) as w:
            w.init.started = started
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.let_go()
            pid1 = w.pid1()
            pid1.say(b"held back")
            if not alive:
                pid1.end(code=2)
            record = await w.recorded()
            disk.full = True
            task = w.taken_back(record) if alive else w.results(record)
            await until(lambda: disk.refused > 3)
            if alive:
                pid1.end(code=2)
            disk.full = False
            await w.over()
            assert task.job.end is not None
            assert task.job.end.code == 2
            assert await w.text() == b"held back"
            assert w.init.jobs == {}

    run(main)


def test_records_that_refuse_the_end_for_a_while(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            full = ResourceExhausted("record job", "the disk is full")
            w.store.errors = [full, full, full]
            w.pid1().end(code=0)
            await w.over()
            assert task.job == await w.recorded()
            assert task.job.state is JobState.COMPLETED

    run(main)


# -- init mode is away -----------------------------------------------------------------------------


def test_init_mode_away_at_the_launch(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.away = True
            task = w.new(job())
            with pytest.raises(Unavailable, match="away"):
                await task.settled
            await w.over()
            assert (await w.recorded()).state is JobState.FAILED

    run(main)


@pytest.mark.parametrize("killed", [True, False])
def test_init_mode_away_when_pid1_hangs_up(base: Path, killed: bool) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            w.init.away = True
            if killed:
                pid1.kill()
            else:
                pid1.hang_up()
            await until(lambda: w.init.count("connect") > 3)
            assert not task.job.final
            w.init.away = False
            if not killed:
                await until(lambda: pid1.held)
                pid1.end(code=0)
            await w.over()
            assert task.job.state is (JobState.FAILED if killed else JobState.COMPLETED)
            assert w.init.jobs == {}

    run(main)


def test_init_mode_away_at_the_clean_up(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.init.away = True
            w.pid1().end(code=0)
            await task.ended.wait()
            await until(lambda: w.init.count("clean-up") > 2)
            w.init.away = False
            await w.over()
            assert w.init.jobs == {}
            assert task.cleaned

    run(main)


def test_a_clean_up_that_does_not_succeed_is_given_up(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.init.away = True
            w.pid1().end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert list(w.init.jobs) == [job_id(1)]
            assert not task.cleaned  # its range of ids is not free

    run(main)


# -- a clean stop of the server --------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["launch", "go"])
def test_the_server_stops_during_a_launch(base: Path, verb: str) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.block(verb)
            task = w.new(job())
            await w.init.reached(verb)
            record = await w.durable(JobState.INITIALIZING)
            await w.let_go()
            assert task.settled.cancelled()
            assert not any(pid1.went for pid1 in w.init.all)
            w.init.gates.clear()
            after = w.results(record)
            await w.over()
            assert after.job.end is not None
            assert after.job.end.reason is Reason.LAUNCH_FAILED
            assert w.init.jobs == {}

    run(main)


def test_the_server_stops_between_go_and_started(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.let_go()
            assert (w.pid1().alive, w.pid1().held) == (True, False)
            task = w.taken_back(await w.recorded())
            await until(lambda: w.pid1().held)
            w.pid1().start()
            assert (await task.settled).state is JobState.RUNNING
            w.pid1().end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED

    run(main)


def test_the_server_stops_right_when_a_job_has_started(base: Path) -> None:
    """Before its record says so: helpers that have not begun yet are not left behind."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await w.let_go()
            assert w.pid1().alive
            log = await w.logs.open(job_id(1))
            assert log.attached == frozenset()

    run(main)


def test_the_server_stops_while_a_job_is_being_stopped(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().obey = None
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: w.pid1().stops)
            await w.let_go()
            stopping.cancel()
            assert w.pid1().alive
            assert not task.ended.is_set()

    run(main)


def test_the_server_stops_during_the_end(base: Path) -> None:
    """Not acknowledged: PID 1 keeps record and pipes, and the next server ends the job."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            w.store.gate = asyncio.Event()
            w.pid1().say(b"the end")
            w.pid1().end(code=0)
            await until(lambda: w.store.puts[-1].final)
            await w.let_go()
            assert not w.init.all[0].acknowledged
            w.store.gate = None
            record = await w.recorded()
            assert not record.final
            await until(lambda: not w.pid1().alive)  # nobody held it, so it left
            after = w.results(record)
            await w.over()
            assert after.job.state is JobState.COMPLETED
            assert await w.text() == b"the end"

    run(main)


def test_the_server_stops_while_it_looks_for_pid1(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.init.away = True
            w.pid1().hang_up()
            await until(lambda: w.init.count("connect") > 1)
            await w.let_go()
            assert w.pid1().alive

    run(main)


def test_the_server_stops_during_the_clean_up(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.init.block("clean-up")
            w.pid1().end(code=0)
            await w.init.reached("clean-up")
            assert task.job == await w.recorded()
            await w.let_go()
            assert list(w.init.jobs) == [job_id(1)]

    run(main)


def test_a_stop_that_comes_when_the_server_has_let_go(base: Path) -> None:
    """Somebody may try again with the next server; this one has nothing to stop it with."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await w.let_go()
            with pytest.raises(Unavailable, match="the server is stopping"):
                await task.stop("me")
            assert w.pid1().alive

    run(main)
