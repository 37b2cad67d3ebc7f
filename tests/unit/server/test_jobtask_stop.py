# SPDX-License-Identifier: MIT
"""Jobs that are ended: by a client, by their time-out, by systemd, by whoever kills their PID 1."""

import asyncio
from pathlib import Path

import pytest

from joblet.errors import (
    FailedPrecondition,
    ResourceExhausted,
)
from joblet.launch import protocol
from joblet.model import JobSpec, JobState, Reason
from joblet.server.ending import Witness
from joblet.server.logs import Chunk, Gap
from tests.unit.server.pid1 import Pid1
from tests.unit.server.support import (
    Disk,
    ends_stopped,
    job,
    job_id,
    run,
    started,
    until,
    world,
)

pytestmark = pytest.mark.usefixtures("no_leaks", "patch")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "world"


# -- stop ------------------------------------------------------------------------------------------


def test_stop_before_the_launch_is_through(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.block("launch")
            task = w.new(job())
            await w.init.reached("launch")
            await until(lambda: w.store.puts)
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: w.init.count("cancel"))
            w.init.unblock("launch")
            assert (await stopping).state is JobState.STOPPED
            # it was asked for, was started and was stopped: no error that a client would try again
            assert (await task.settled).state is JobState.STOPPED
            await w.over()
            ends_stopped(w, task)
            assert (await w.recorded()).end == task.job.end
            assert w.init.count("go") == 0

    run(main)


def test_stop_before_the_go(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.store.gate = asyncio.Event()
            task = w.new(job())
            await until(lambda: w.init.jobs)
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: w.init.count("cancel"))
            w.store.gate.set()
            await stopping
            await w.over()
            ends_stopped(w, task)
            assert w.init.count("go") == 0

    run(main)


def test_stop_during_the_go(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.block("go")
            task = w.new(job())
            await w.init.reached("go")
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: len(w.store.puts) == 2)
            w.init.unblock("go")
            await stopping
            await w.over()
            ends_stopped(w, task)
            assert w.init.all[0].stops

    run(main)


def test_stop_between_go_and_started(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            task = w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await task.stop("me")
            await w.over()
            ends_stopped(w, task)
            assert w.init.all[0].acknowledged

    run(main)


def test_stop_while_running(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().obey = None
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: w.pid1().stops)
            assert task.job.state is JobState.STOPPING
            await until(lambda: w.store.puts[-1].state is JobState.STOPPING)
            w.pid1().say(b"I am going")
            w.pid1().end(ended_by="ctl", code=143)
            ended = await stopping
            await w.over()
            assert ended == task.job == await w.recorded()
            assert ended.end is not None
            assert ended.end.code == 143
            ends_stopped(w, task)
            assert await w.text() == b"I am going"
            assert w.init.forgotten == [ended.id]  # systemd may have had to end it

    run(main)


def test_stop_of_a_job_that_ends_by_itself_at_that_moment(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().obey = None
            w.pid1().end(code=0)  # told, and not read yet
            await task.stop("me")
            await w.over()
            ends_stopped(w, task)

    run(main)


def test_stop_during_the_end(base: Path, patch: pytest.MonkeyPatch) -> None:
    """The exit record is here, its output not yet: the stop is accepted, and so it counts."""

    async def main() -> None:
        disk = Disk(patch)
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            disk.full = True
            w.pid1().end(code=0)
            await until(lambda: disk.refused > 2)
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: w.store.puts[-1].state is JobState.STOPPING)
            disk.full = False
            await stopping
            await w.over()
            ends_stopped(w, task)

    run(main)


def test_stop_when_the_end_is_being_recorded(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            w.store.gate = asyncio.Event()
            w.pid1().end(code=0)
            await until(lambda: w.store.puts[-1].final)
            stopping = asyncio.ensure_future(task.stop("me"))
            await asyncio.sleep(0)
            w.store.gate.set()
            with pytest.raises(FailedPrecondition, match=r"not running: .* \(status: COMPLETED\)"):
                await stopping
            await w.over()
            assert task.job.state is JobState.COMPLETED
            with pytest.raises(FailedPrecondition, match="COMPLETED"):
                await task.stop("me")

    run(main)


def test_two_stops_are_one(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            first, second = await asyncio.gather(task.stop("me"), task.stop("somebody else"))
            assert first == second
            await w.over()
            ends_stopped(w, task)
            assert len(w.init.all[0].stops) == 1

    run(main)


def test_who_stops_may_go_away(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            stopping = asyncio.ensure_future(task.stop("me"))
            await asyncio.sleep(0)
            stopping.cancel()
            await w.over()
            ends_stopped(w, task)

    run(main)


def test_a_stop_that_cannot_be_recorded_stops_all_the_same(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            w.store.errors = [ResourceExhausted("record job", "the disk is full")]
            ended = await task.stop("me")
            await w.over()
            assert ended.state is JobState.STOPPED
            ends_stopped(w, task)
            assert (await w.recorded()).state is JobState.STOPPED

    run(main)


def test_a_pid1_that_does_not_obey_is_ended_by_systemd(base: Path) -> None:
    async def main() -> None:
        async with world(base, grace_us=0) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().obey = None
            await task.stop("me")
            await w.over()
            assert w.init.count("stop") == 1
            ends_stopped(w, task)

    run(main)


def test_systemd_is_asked_until_init_mode_is_there(base: Path) -> None:
    async def main() -> None:
        async with world(base, grace_us=0) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().obey = None
            w.init.away = True
            stopping = asyncio.ensure_future(task.stop("me"))
            await until(lambda: w.init.count("stop") > 1)
            w.init.away = False
            await stopping
            await w.over()
            ends_stopped(w, task)

    run(main)


def test_a_stop_goes_on_with_the_next_server(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().obey = None
            stopping = asyncio.ensure_future(task.stop("me"))
            record = await w.durable(JobState.STOPPING)
            stopping.cancel()
            await w.let_go()
            w.pid1().obey = Pid1.stopped
            after = w.taken_back(record)
            await w.over()
            ends_stopped(w, after)

    run(main)


def test_a_stop_of_a_deaf_pid1_goes_on_with_the_next_server(base: Path) -> None:
    async def main() -> None:
        async with world(base, grace_us=0) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            await w.let_go()
            pid1.obey = None
            record = job(state=JobState.STOPPING, stop_by="me", started_us=1000)
            await w.records.put(record)
            after = w.taken_back(record)
            await w.over()
            assert w.init.count("stop") == 1
            ends_stopped(w, after)

    run(main)


def test_a_stop_while_nobody_holds_it(base: Path) -> None:
    """PID 1 hung up, init mode is away: what is asked meanwhile is told when it is found again."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.init.away = True
            w.pid1().hang_up()
            await until(lambda: w.init.count("connect") > 1)
            stopping = asyncio.ensure_future(task.stop("me"))
            await asyncio.sleep(0)
            w.init.away = False
            await stopping
            await w.over()
            ends_stopped(w, task)
            assert w.init.all[0].said_hello == 2

    run(main)


# -- the time-out ----------------------------------------------------------------------------------


def test_a_timeout_that_pid1_keeps(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job(spec=JobSpec("true", timeout_us=10**9)))
            await task.settled
            w.pid1().end(ended_by="timeout", signal=15)
            await w.over()
            assert task.job.end is not None
            assert (task.job.state, task.job.end.reason) == (JobState.FAILED, Reason.TIMEOUT)
            assert w.init.count("stop") == 0

    run(main)


def test_a_timeout_that_pid1_does_not_keep(base: Path) -> None:
    async def main() -> None:
        async with world(base, grace_us=0) as w:
            w.init.started = started
            # the clock of these tests is far behind the start already
            task = w.new(job(spec=JobSpec("true", timeout_us=1)))
            await w.over()
            assert w.init.count("stop") == 1
            assert task.job.end is not None
            assert (task.job.state, task.job.end.reason) == (JobState.FAILED, Reason.TIMEOUT)

    run(main)


@pytest.mark.parametrize(("ran_us", "stops"), [(0, 0), (10**9, 1)])
def test_a_clock_that_was_set_does_not_end_a_job(base: Path, ran_us: int, stops: int) -> None:
    """A machine that boots with a wrong time, and a server that is restarted behind its
    correction."""

    async def main() -> None:
        async with world(base, grace_us=0, clock_us=lambda: 10**15) as w:
            w.init.started = lambda pid1: pid1.start(ran_us=ran_us)
            w.new(job(spec=JobSpec("true", timeout_us=60_000_000)))
            await until(lambda: w.init.jobs and w.pid1().started_us)
            if not stops:  # else systemd ends it, perhaps before anybody sees it run
                await w.durable(JobState.RUNNING)
                w.pid1().end(code=0)
            await w.over()
            assert w.init.count("stop") == stops

    run(main)


# -- who ended it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("witness", "state", "reason"),
    [
        (Witness(stopping=True, blind=False), JobState.STOPPED, Reason.UNIT_STOPPED),
        (Witness(stopping=False, blind=False), JobState.FAILED, Reason.SIGNALLED),
        (Witness(blind=True), JobState.STOPPED, Reason.UNIT_STOPPED),
    ],
)
def test_a_sigterm_from_outside_is_what_systemd_says(
    base: Path, witness: Witness, state: JobState, reason: Reason
) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.witnessed = witness
            task = w.new(job())
            await task.settled
            w.pid1().end(ended_by="signal", signal=15)
            await w.over()
            assert task.job.end is not None
            assert (task.job.state, task.job.end.reason) == (state, reason)

    run(main)


@pytest.mark.parametrize("stopping", [False, True])
def test_pid1_killed_while_running(base: Path, stopping: bool) -> None:
    """What it had in its pipes is read out: the server holds them."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            task.unit_stopping = stopping
            w.pid1().say(b"all of it")
            w.pid1().kill()
            await w.over()
            assert task.job.end is not None
            reason = Reason.UNIT_STOPPED if stopping else Reason.SIGNALLED
            assert (task.job.end.reason, task.job.end.signal) == (reason, 9)
            assert await w.text() == b"all of it"
            assert [item for item in await w.said() if isinstance(item, Gap)] == []
            assert (await w.logs.open(job_id(1))).ended

    run(main)


def test_pid1_killed_before_it_said_started(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            task = w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            w.pid1().kill()
            await w.over()
            assert task.job.end is not None
            assert (task.job.end.reason, task.job.end.signal) == (Reason.SIGNALLED, 9)

    run(main)


def test_pid1_left_with_a_record_and_rests(base: Path) -> None:
    """systemd's time-out was near: it put everything into its directory and went."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.init.away = True
            pid1 = w.pid1()
            pid1.say(b"before ")
            await until(lambda: task.job.state is JobState.RUNNING)
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 7)
            # it takes us for gone, and it takes what is in the pipes
            await log.detach()
            pid1.hang_up()
            pid1.say(b"behind")
            pid1.end(code=4)
            assert not pid1.alive
            w.init.away = False
            await w.over()
            assert task.job.end is not None
            assert (task.job.end.reason, task.job.end.code) == (Reason.EXITED, 4)
            assert await w.text() == b"before behind"

    run(main)


def test_a_hang_up_and_a_holder_again(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            pid1.say(b"one ")
            pid1.hang_up()
            await until(lambda: pid1.said_hello == 2)
            pid1.say(b"two")
            pid1.end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert await w.text() == b"one two"
            assert len(w.copies) == 1

    run(main)


def test_a_hello_that_does_not_come(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.block("connect")
            w.init.started = lambda pid1: setattr(pid1, "hello", None)

            def go(pid1: Pid1) -> None:
                pid1.start()

            w.init.started = go
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.let_go()
            pid1 = w.pid1()
            pid1.hello = b"hang-up"
            w.init.unblock("connect")
            task = w.taken_back(await w.recorded())
            await until(lambda: w.init.count("connect") > 2)
            pid1.hello = None
            await until(lambda: task.job.state is JobState.RUNNING)
            pid1.end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED

    run(main)


@pytest.mark.parametrize("nonsense", [b"\xff\x00", b"[]", b'{"t": 1}', b'{"t": "exit"}'])
def test_nonsense_is_not_a_hang_up(base: Path, nonsense: bytes) -> None:
    """The pipes are given back before another connection is asked for; the job runs on."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            w.init.block("connect")
            pid1.send_raw(nonsense)
            await w.init.reached("connect")
            log = await w.logs.open(job_id(1))
            assert (log.attached, pid1.alive) == (frozenset(), True)
            await until(lambda: not pid1.held)
            pid1.say(b"kept")
            w.init.unblock("connect")
            await until(lambda: log.size == 4)
            pid1.end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert w.init.count("stop") == 0
            assert await w.text() == b"kept"

    run(main)


@pytest.mark.parametrize("version", [0, protocol.VERSION + 1])
def test_a_job_whose_pid1_is_of_another_version(base: Path, version: int) -> None:
    """Nobody could stop or end it: systemd does, and what PID 1 puts aside is taken."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.durable(JobState.RUNNING)
            await w.let_go()
            pid1 = w.pid1()
            pid1.hello = protocol.encode(
                protocol.HELLO, version=version, streams=["out", "err"], more=True
            )
            pid1.say(b"kept")
            task = w.taken_back(await w.recorded())
            await w.over()
            assert w.init.count("stop") == 1
            assert task.job.end is not None
            assert (task.job.end.reason, task.job.end.signal) == (Reason.SIGNALLED, 15)
            assert "not understood" in task.job.end.detail
            assert [item.data for item in await w.said() if isinstance(item, Chunk)] == [b"kept"]
            assert len(await w.said()) == 1  # nothing is missing
            assert w.init.jobs == {}

    run(main)


@pytest.mark.parametrize("killed", [False, True])
def test_a_job_whose_pid1_talks_nothing_but_nonsense(base: Path, *, killed: bool) -> None:
    """Even if it puts nothing aside: its pipes are read to the end while systemd ends it."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.durable(JobState.RUNNING)
            await w.let_go()
            pid1 = w.pid1()
            pid1.garbage = b"!"
            pid1.say(b"kept")
            w.init.block("stop")
            task = w.taken_back(await w.recorded())
            await w.init.reached("stop")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 4)
            pid1.say(b", and more")
            if killed:
                pid1.kill()
            w.init.unblock("stop")
            await w.over()
            assert task.job.end is not None
            assert task.job.end.reason is Reason.SIGNALLED
            assert task.job.end.signal == (9 if killed else 15)
            assert "not understood" in task.job.end.detail
            assert await w.text() == b"kept, and more"
            assert not [item for item in await w.said() if isinstance(item, Gap)]

    run(main)


def test_a_job_that_ends_by_itself_keeps_its_end_whatever_is_said(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            pid1.garbage = b"!"
            pid1.say(b"kept")
            pid1.end(code=3)
            await w.over()
            assert task.job.end is not None
            assert (task.job.end.reason, task.job.end.code) == (Reason.EXITED, 3)
            assert await w.text() == b"kept"
            assert not [item for item in await w.said() if isinstance(item, Gap)]

    run(main)


def test_an_exit_record_in_the_directory_that_cannot_be_read(base: Path) -> None:
    """How it ended is not known, and nothing is made up."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.durable(JobState.RUNNING)
            await w.let_go()
            pid1 = w.pid1()
            pid1.kill()
            (pid1.directory / "exit").write_bytes(b'{"job": 7}')
            task = w.results(await w.recorded())
            await w.over()
            assert task.job.end is not None
            assert task.job.end.reason is Reason.LOST
            assert "cannot be read" in task.job.end.detail

    run(main)


def test_an_exit_record_that_is_not_understood(base: Path) -> None:
    """The pipes go back before `ctl` is let go, and nothing is made up: PID 1 keeps its record."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            pid1.say(b"kept")
            w.init.block("connect")
            pid1.send_raw(protocol.encode(protocol.EXIT, record={"job": 7}))
            await w.init.reached("connect")
            log = await w.logs.open(job_id(1))
            assert log.attached == frozenset()
            assert not task.ended.is_set()
            w.init.unblock("connect")
            await until(lambda: pid1.said_hello == 2)
            pid1.end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert await w.text() == b"kept"

    run(main)
