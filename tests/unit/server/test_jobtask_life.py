# SPDX-License-Identifier: MIT
"""A job from its launch to its final record: what a client is told, what is left behind."""

import asyncio
from pathlib import Path

import pytest

from joblet.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from joblet.launch import protocol
from joblet.model import JOURNALD, JobSpec, JobState, Limits, Reason
from joblet.server import jobtask
from joblet.server.limits import Asked
from tests.unit.server.pid1 import Pid1
from tests.unit.server.support import (
    job,
    job_id,
    jobs_of,
    plan_of,
    run,
    started,
    until,
    world,
)

pytestmark = pytest.mark.usefixtures("no_leaks", "patch")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "world"


# -- a job's ordinary life -------------------------------------------------------------------------


def test_a_job_from_launch_to_end(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            running = await task.settled
            assert running.state is JobState.RUNNING
            assert (running.started_us, running.pid) == (1000, 4711)
            assert running.cgroup.endswith(running.unit)
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            pid1 = w.pid1()
            pid1.say(b"one\n")
            pid1.say(b"two\n", "err")
            pid1.end(code=3, usage={"cpu_usec": 7})
            await w.over()
            final = await w.recorded()
            assert final == task.job
            assert (final.state, final.end.code if final.end else None) == (JobState.FAILED, 3)
            assert (final.started_us, final.ended_us, final.pid) == (1000, 9000, 0)
            assert final.usage == {"cpu_usec": 7}
            assert task.ended.is_set()
            assert pid1.acknowledged
            assert w.init.jobs == {}
            assert (await w.text(), await w.text(stream=2)) == (b"one\n", b"two\n")
            assert (await w.logs.open(job_id(1))).ended
            assert w.copies == [(job_id(1), 0)]
            assert w.init.forgotten == []  # its scope went with it

    run(main)


def test_the_intent_is_durable_before_the_go(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.store.gate = asyncio.Event()
            task = w.new(job())
            await until(lambda: w.init.jobs)
            for _ in range(20):
                await asyncio.sleep(0)
            assert w.init.count("go") == 0
            w.store.gate.set()
            await until(lambda: w.init.count("go"))
            assert (await w.recorded()).state is JobState.INITIALIZING
            w.pid1().end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED

    run(main)


def test_everything_is_stored_before_pid1_may_go(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            await until(lambda: w.store.puts[-1].state is JobState.RUNNING)
            w.store.gate = asyncio.Event()
            pid1 = w.pid1()
            pid1.say(b"last words")
            pid1.end(code=0)
            await until(lambda: w.store.puts[-1].final)
            assert not pid1.acknowledged
            assert not task.ended.is_set()
            assert await w.text() == b"last words"
            w.store.gate.set()
            await w.over()
            assert pid1.acknowledged

    run(main)


JOURNAL = JobSpec("true", log_driver=JOURNALD)


def test_a_job_whose_output_goes_to_the_journal(base: Path) -> None:
    """The store keeps nothing; the journal has everything before anybody hears of the end."""
    synced = asyncio.Event()

    async def sync() -> None:
        await synced.wait()

    async def main() -> None:
        async with world(base, sync=sync) as w:
            w.init.started = started
            task = w.new(job(spec=JOURNAL))
            await task.settled
            pid1 = w.pid1()
            assert pid1.plan.journal
            assert pid1.pipes == {}
            log = await w.logs.open(job_id(1))
            assert log.expected == frozenset()
            pid1.end(code=3)
            for _ in range(50):
                await asyncio.sleep(0)
            assert not task.ended.is_set()
            assert not w.store.puts[-1].final
            synced.set()
            await w.over()
            assert (await w.recorded()).state is JobState.FAILED
            assert pid1.acknowledged
            assert log.ended
            assert await w.said() == []
            assert w.copies == []

    run(main)


@pytest.mark.parametrize("stuck", [True, False])
def test_a_journal_that_does_not_answer_holds_up_no_end(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stuck: bool
) -> None:
    monkeypatch.setattr(jobtask, "SYNC_S", 0.01)

    async def sync() -> None:
        if stuck:
            await asyncio.Event().wait()
        raise Unavailable("synchronise the journal", "it is away")

    async def main() -> None:
        async with world(base, sync=sync) as w:
            w.init.started = started
            task = w.new(job(spec=JOURNAL))
            await task.settled
            w.pid1().end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert "the journal may lack the end" in caplog.text

    run(main)


def test_a_job_in_the_journal_survives_its_server(base: Path) -> None:
    async def main() -> None:
        with jobs_of(base) as init:
            init.started = started
            async with world(base, init=init) as w:
                task = w.new(job(spec=JOURNAL))
                await task.settled
                running = await w.durable(JobState.RUNNING)
            async with world(base, init=init) as w:
                task = w.taken_back(running)
                await task.heard.wait()
                w.pid1().end(code=0)
                await w.over()
                assert task.job.state is JobState.COMPLETED
                assert w.syncs == 1
                assert await w.said() == []
            # one that ends without a server
            async with world(base, init=init) as w:
                task = w.new(job(2, spec=JOURNAL))
                await task.settled
                running = await w.durable(JobState.RUNNING, 2)
            init.jobs[job_id(2)].end(code=4)
            async with world(base, init=init) as w:
                task = w.results(running)
                await w.over()
                assert task.job.end is not None
                assert (task.job.state, task.job.end.code) == (JobState.FAILED, 4)
                assert await w.said(2) == []
                assert w.syncs == 1

    run(main)


def test_a_merged_job_has_one_stream(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.new(job(spec=JobSpec("true", merge=True)))
            await until(lambda: w.init.jobs and w.pid1().held)
            w.pid1().say(b"both")
            w.pid1().end(code=0)
            await w.over()
            log = await w.logs.open(job_id(1))
            assert (log.expected, log.ended) == (frozenset({1}), True)
            assert await w.text() == b"both"

    run(main)


def test_a_stranger_with_the_pipe_does_not_keep_the_job_from_ending(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            pid1 = w.pid1()
            with open(pid1.pipes["out"][1], "wb", closefd=False, buffering=0) as own:  # noqa: ASYNC230
                stranger = open(f"/proc/self/fd/{own.fileno()}", "wb", buffering=0)  # noqa: SIM115, ASYNC230, PTH123
            pid1.say(b"mine")
            pid1.end(code=0)
            await task.ended.wait()
            await w.over()
            with pytest.raises(BrokenPipeError):
                stranger.write(b"a stranger's")
            stranger.close()
            assert await w.text() == b"mine"

    run(main)


def test_streams_closed_long_before_the_end(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            task = w.new(job())
            await task.settled
            w.pid1().say(b"bye")
            w.pid1().hang_up_streams()
            log = await w.logs.open(job_id(1))
            await log.wait_ended()
            assert not task.job.final
            w.pid1().end(code=1)
            await w.over()
            assert task.job.state is JobState.FAILED

    run(main)


def test_a_command_that_never_began(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = lambda pid1: pid1.end(
                ended_by="launch", step="execve", errno=2, started_us=0
            )
            task = w.new(job())
            failed = await task.settled
            await w.over()
            assert failed.end is not None
            assert (failed.end.reason, failed.end.errno) == (Reason.LAUNCH_FAILED, 2)
            assert failed.state is JobState.FAILED
            assert (await w.logs.open(job_id(1))).ended

    run(main)


# -- launches that fail ----------------------------------------------------------------------------


def test_a_refused_launch_is_the_clients_answer_and_a_record(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.errors["launch"] = [InvalidArgument("read the plan", "it is too long")]
            task = w.new(job(), key="once")
            with pytest.raises(InvalidArgument, match="too long"):
                await task.settled
            # what the client is told has been recorded
            final = await w.recorded()
            assert final.state is JobState.FAILED
            assert final.end is not None
            assert final.end.reason is Reason.LAUNCH_FAILED
            assert final.end.detail == "read the plan: it is too long"
            await w.over()
            assert await w.records.idempotent("tester", "once") == job_id(1)
            assert (await w.logs.open(job_id(1))).ended

    run(main)


def test_a_launch_that_is_not_recorded_leaves_no_trace(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.store.errors = [ResourceExhausted("record job", "the disk is full")]
            task = w.new(job(), key="once")
            with pytest.raises(ResourceExhausted, match="the disk is full"):
                await task.settled
            await w.over()
            assert w.init.jobs == {}
            assert all(not pid1.went for pid1 in w.init.all)
            assert await w.records.list() == []
            assert await w.records.idempotent("tester", "once") is None
            assert await w.logs.list() == []
            assert task.ended.is_set()

    run(main)


def test_a_limit_that_the_kernel_did_not_take(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            (w.cgroup() / "memory.max").write_text("max\n")
            wanted = Limits(max_memory=1 << 26)
            task = jobtask.JobTask(job(), w.tools)
            w.own(task.run_new(plan_of(task.job), Asked(wanted, frozenset({"max_memory"})), wanted))
            with pytest.raises(FailedPrecondition, match="--max-memory"):
                await task.settled
            await w.over()
            assert w.init.all[0].went is False
            assert (await w.recorded()).state is JobState.FAILED
            assert w.init.jobs == {}

    run(main)


def test_what_the_kernel_says_is_recorded(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            (w.cgroup() / "memory.max").write_text("67108864\n")
            wanted = Limits(max_memory=1 << 26, max_tasks=20)  # the second is a default of ours
            w.init.started = started
            task = jobtask.JobTask(job(not_enforced=("max_cpu",)), w.tools)
            w.own(task.run_new(plan_of(task.job), Asked(wanted, frozenset({"max_memory"})), wanted))
            running = await task.settled
            assert running.effective == Limits(max_memory=1 << 26)
            # a sysadmin changes the unit
            (w.cgroup() / "memory.max").write_text("max\n")
            (w.cgroup() / "pids.max").write_text("7\n")
            assert w.tools.enforcement.now(task.job).effective == Limits(max_tasks=7)
            assert running.not_enforced == ("max_cpu", "max_tasks")
            w.pid1().end(code=0)
            await w.over()
            assert (await w.recorded()).effective == running.effective
            assert w.tools.enforcement.now(task.job) == task.job  # it has ended

    run(main)


def test_a_go_that_is_refused(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.errors["go"] = [Internal("let the job go", "its PID 1 is gone")]
            task = w.new(job())
            with pytest.raises(Internal, match="PID 1 is gone"):
                await task.settled
            await w.over()
            assert (await w.recorded()).state is JobState.FAILED
            assert w.init.jobs == {}

    run(main)


@pytest.mark.parametrize("code", [0, 3])
def test_a_go_whose_answer_is_lost_and_the_job_runs(base: Path, code: int) -> None:
    """Init mode was restarted between saying go and answering: the job is there, and is ours."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = started
            w.init.errors["go-lost"] = [Unavailable("ask init mode", "init mode hung up")]
            task = w.new(job())
            running = await task.settled
            assert running.state is JobState.RUNNING
            w.pid1().say(b"here")
            w.pid1().end(code=code)
            await w.over()
            assert task.job.end is not None
            assert (task.job.end.reason, task.job.end.code) == (Reason.EXITED, code)
            assert await w.text() == b"here"
            assert w.init.jobs == {}

    run(main)


@pytest.mark.parametrize("withdrawn", [True, False])
def test_a_go_whose_answer_is_lost_and_it_was_never_said(base: Path, withdrawn: bool) -> None:
    """The client is told why, and may try again; what still waits for a go is withdrawn."""

    async def main() -> None:
        async with world(base) as w:
            w.init.block("go")
            task = w.new(job())
            await w.init.reached("go")
            if withdrawn:
                w.pid1().withdraw()  # the link's end closed the gate
            w.init.errors["go"] = [Unavailable("ask init mode", "init mode hung up")]
            w.init.unblock("go")
            with pytest.raises(Unavailable, match="init mode hung up"):
                await task.settled
            await w.over()
            final = await w.recorded()
            assert final.end is not None
            assert (final.state, final.end.reason) == (JobState.FAILED, Reason.LAUNCH_FAILED)
            assert w.init.jobs == {}

    run(main)


@pytest.mark.parametrize("went", [True, False])
def test_both_answers_are_lost(base: Path, went: bool) -> None:
    """The go is on its way before launch is answered, so the job may run all the same."""

    async def main() -> None:
        async with world(base) as w:
            lost = Unavailable("ask init mode", "init mode hung up")
            w.init.errors["launch-lost"] = [lost]
            w.init.errors["go-lost" if went else "go"] = [lost]
            w.init.started = started
            w.init.block("launch")
            task = w.new(job())
            await until(lambda: w.init.count("go"))
            w.init.unblock("launch")
            if went:
                assert (await task.settled).state is JobState.RUNNING
                w.pid1().end(code=0)
            else:
                with pytest.raises(Unavailable, match="hung up"):
                    await task.settled
            await w.over()
            assert task.job.state is (JobState.COMPLETED if went else JobState.FAILED)
            assert w.init.jobs == {}

    run(main)


def test_a_launch_that_fails_behind_its_go(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.block("launch")
            w.init.errors["launch"] = [Internal("start the scope", "systemd said no")]
            w.init.errors["go"] = [Internal("start the scope", "systemd said no")]
            task = w.new(job())
            await until(lambda: w.init.count("go"))
            w.init.unblock("launch")
            with pytest.raises(Internal, match="systemd said no"):
                await task.settled
            await w.over()
            assert task.job.end is not None
            assert task.job.end.reason is Reason.LAUNCH_FAILED

    run(main)


def test_what_a_client_asked_for_is_read_back_before_the_go(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.block("launch")
            limits = Limits(max_tasks=64)
            asked = Asked(limits, frozenset({"max_tasks"}))
            task = jobtask.JobTask(job(), w.tools)
            w.own(task.run_new(plan_of(task.job), asked, limits))
            await w.init.reached("launch")
            await until(lambda: w.store.puts)
            for _ in range(50):
                await asyncio.sleep(0)
            assert w.init.count("go") == 0
            w.init.unblock("launch")
            with pytest.raises(FailedPrecondition):  # this cgroup has no such file
                await task.settled
            await w.over()
            assert w.init.count("go") == 0

    run(main)


def test_dead_on_arrival_is_launched_again_once(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            dead = {
                "ended_by": "launch",
                "step": "scope",
                "detail": "PID 1 is in /",
                "started_us": 0,
            }

            def arrive(pid1: Pid1) -> None:
                if len(w.init.all) == 1:
                    pid1.end(**dead)
                else:
                    pid1.start()

            w.init.started = arrive
            task = w.new(job())
            assert (await task.settled).state is JobState.RUNNING
            assert w.init.count("launch") == 2
            assert w.init.all[0].acknowledged
            w.pid1().say(b"alive")
            w.pid1().end(code=0)
            await w.over()
            assert task.job.state is JobState.COMPLETED
            assert await w.text() == b"alive"

    run(main)


def test_dead_on_arrival_twice_is_a_failed_launch(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.started = lambda pid1: pid1.end(ended_by="launch", step="scope", started_us=0)
            task = w.new(job())
            failed = await task.settled
            await w.over()
            assert w.init.count("launch") == 2
            assert failed.end is not None
            assert (failed.end.reason, failed.end.step) == (Reason.LAUNCH_FAILED, "scope")
            assert (await w.recorded()).state is JobState.FAILED

    run(main)


def test_dead_on_arrival_seen_by_the_next_server(base: Path) -> None:
    """It has no plan to launch again; what it must not do is to leave the record open."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = lambda pid1: None
            w.new(job())
            await until(lambda: w.init.jobs and w.pid1().held)
            await w.let_go()
            w.pid1().record = protocol.ExitRecord(
                job_id(1), ended_by="launch", step="scope", detail="PID 1 is in /"
            )
            task = w.taken_back(await w.recorded())
            await w.over()
            assert task.job.end is not None
            assert task.job.end.reason is Reason.LAUNCH_FAILED
            assert (await w.recorded()).state is JobState.FAILED
            assert w.init.jobs == {}

    run(main)
