# SPDX-License-Identifier: MIT
"""All jobs of a server: keys, bounds, prefixes, what clients see, and the start after another."""

import asyncio
import re
from pathlib import Path

import pytest

from joblet.config import UID_FIRST, UIDS_PER_JOB
from joblet.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from joblet.launch.protocol import ExitRecord
from joblet.model import Job, JobSpec, JobState, Limits, Reason, unit_name
from joblet.server import admission
from joblet.server.limits import Enforcement
from joblet.server.supervisor import Supervisor
from tests.unit.server.pid1 import Init, Pid1
from tests.unit.server.support import (
    GRACE_US,
    World,
    job,
    job_id,
    jobs_of,
    plan_of,
    run,
    supervisor,
    until,
    world,
)

pytestmark = pytest.mark.usefixtures("no_leaks", "patch")

TRUE = JobSpec("true")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "world"


async def over(made: Supervisor, w: World) -> None:
    """All jobs have ended and are cleaned up."""
    await until(lambda: not made._tasks and not w.init.jobs)


def begin(w: World) -> None:
    w.init.started = Pid1.start


# -- starting jobs ---------------------------------------------------------------------------------


def test_a_job_is_what_was_asked_for(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w, defaults=Limits())
            spec = JobSpec("sh", args=("-c", "true"), name="a name", environment={"A": "1"})
            running = await made.run(spec, by="alice")
            assert running.id == job_id(1)
            assert (running.spec, running.created_by) == (spec, "alice")
            assert (running.state, running.unit) == (JobState.RUNNING, unit_name(job_id(1)))
            assert running.uid_base == UID_FIRST
            plan = w.pid1().plan
            assert plan.path in {"/usr/bin/sh", "/bin/sh"}
            assert plan.argv == ("sh", "-c", "true")
            assert plan.env["A"] == "1"
            assert (plan.grace_us, plan.timeout_us, plan.unit) == (GRACE_US, 0, running.unit)
            assert made.running() == 1
            w.pid1().end(code=0)
            await made.wait_ended(job_id(1))
            assert (await made.get(job_id(1))).state is JobState.COMPLETED
            await over(made, w)
            assert made.running() == 0
            assert (await made.get(job_id(1))).state is JobState.COMPLETED
            await made.close()

    run(main)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (JobSpec(""), InvalidArgument),
        (JobSpec("no-such-command-anywhere"), InvalidArgument),
        (JobSpec("true", limits=Limits(max_cpu=-1)), InvalidArgument),
        (JobSpec("true", limits=Limits(cpu_cores="x")), InvalidArgument),
        (JobSpec("true", network="made-up"), InvalidArgument),
    ],
)
def test_what_is_wrong_starts_nothing(base: Path, spec: JobSpec, error: type[Exception]) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            with pytest.raises(error):
                await made.run(spec, by="alice", key="k")
            assert (w.init.calls, await made.list_jobs(), made.running()) == ([], [], 0)
            # the key still stands for nothing
            begin(w)
            assert (await made.run(TRUE, by="alice", key="k")).state is JobState.RUNNING
            await made.close()

    run(main)


def test_defaults_and_what_this_host_cannot_do(base: Path) -> None:
    async def main() -> None:
        enforcement = Enforcement(base / "cgroup", refuse=True)
        async with world(base, enforcement=enforcement) as w:
            begin(w)
            (base / "cgroup" / "cgroup.controllers").write_text("pids\n")
            made = supervisor(w, defaults=Limits(max_cpu=50, max_tasks=100))
            (w.cgroup() / "pids.max").write_text("100\n")
            running = await made.run(TRUE, by="alice")
            assert running.spec.limits == Limits(max_cpu=50, max_tasks=100)
            assert running.effective == Limits(max_tasks=100)
            assert running.not_enforced == ("max_cpu",)
            assert w.pid1().plan.properties == {"TasksMax": 100}
            with pytest.raises(FailedPrecondition, match="no cpu controller"):
                await made.run(JobSpec("true", limits=Limits(max_cpu=20)), by="alice")
            assert len(w.init.all) == 1
            await made.close()

    run(main)


def test_a_refused_launch_is_told_and_recorded(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.errors["launch"] = [Unavailable("ask init mode", "it is away")]
            made = supervisor(w)
            with pytest.raises(Unavailable, match="away"):
                await made.run(TRUE, by="alice")
            [record] = await made.list_jobs()
            assert record.state is JobState.FAILED
            await made.close()

    run(main)


def test_a_bug_in_a_jobs_task_is_told(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            w.store.errors = [ZeroDivisionError("a bug")]
            with pytest.raises(Internal, match="a fault of the server"):
                await made.run(TRUE, by="alice")
            assert "ZeroDivisionError" in caplog.text
            assert made.running() == 1  # it may well run: nothing is given to others
            assert list(made._uids) == [job_id(1)]
            await made.close()

    run(main)


def test_a_client_that_hangs_up_does_not_take_its_job_along(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            w.init.block("go")
            calling = asyncio.ensure_future(made.run(TRUE, by="alice"))
            await w.init.reached("go")
            calling.cancel()
            await asyncio.wait([calling])
            w.init.unblock("go")
            await until(lambda: made._tasks[job_id(1)].job.state is JobState.RUNNING)
            await made.close()

    run(main)


# -- keys ------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_job(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice", key="k")
            again = await made.run(JobSpec("false"), by="alice", key="k")
            assert (again.id, again.spec) == (first.id, first.spec)
            other = await made.run(TRUE, by="bob", key="k")
            third = await made.run(TRUE, by="alice", key="l")
            without = [(await made.run(TRUE, by="alice")).id for _ in range(2)]
            assert len({first.id, other.id, third.id, *without}) == 5
            w.pid1().end(code=3)
            await made.wait_ended(first.id)
            ended = await made.run(TRUE, by="alice", key="k")
            assert (ended.id, ended.state) == (first.id, JobState.FAILED)
            await made.close()

    run(main)


def test_the_same_key_at_the_same_time_is_one_launch(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            calls = [made.run(TRUE, by="alice", key="k") for _ in range(5)]
            found = await asyncio.gather(*calls)
            assert {one.id for one in found} == {job_id(1)}
            assert w.init.count("launch") == 1
            await made.close()

    run(main)


def test_one_of_two_with_the_same_key_hangs_up(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            w.init.block("launch")
            made = supervisor(w)
            first = asyncio.ensure_future(made.run(TRUE, by="alice", key="k"))
            await w.init.reached("launch")
            second = asyncio.ensure_future(made.run(TRUE, by="alice", key="k"))
            await asyncio.sleep(0)
            first.cancel()
            w.init.unblock("launch")
            assert (await second).state is JobState.RUNNING
            assert first.cancelled()
            await made.close()

    run(main)


def test_the_same_key_after_a_restart(base: Path) -> None:
    async def main(init: Init) -> None:
        async with world(base, init=init) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice", key="k")
            await made.close()
        async with world(base, init=init) as w:
            made = supervisor(w)
            await made.recover(same_boot=True)
            again = await made.run(TRUE, by="alice", key="k")
            assert again.id == first.id
            assert init.count("launch") == 1
            await made.close()

    with jobs_of(base) as init:
        run(lambda: main(init))


def test_a_key_of_a_launch_without_a_trace_is_free(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            w.store.errors = [ResourceExhausted("record job", "the disk is full")]
            calls = [made.run(TRUE, by="alice", key="k") for _ in range(2)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [ResourceExhausted] * 2
            assert (await made.run(TRUE, by="alice", key="k")).state is JobState.RUNNING
            await made.close()

    run(main)


# -- bounds ----------------------------------------------------------------------------------------


def test_as_many_jobs_as_are_allowed(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w, max_jobs=2)
            await made.run(TRUE, by="alice")
            await made.run(TRUE, by="alice")
            with pytest.raises(ResourceExhausted, match="2 jobs are running"):
                await made.run(TRUE, by="alice")
            # it has ended and is being cleaned up: its place is free, its ids are not
            w.init.block("clean-up")
            w.pid1().end(code=0)
            await made.wait_ended(job_id(1))
            third = await made.run(TRUE, by="alice")
            assert third.uid_base == UID_FIRST + 2 * UIDS_PER_JOB
            w.init.unblock("clean-up")
            await until(lambda: job_id(1) not in made._tasks)
            await made.close()

    run(main)


def test_many_at_once_do_not_slip_through(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w, max_jobs=3)
            calls = [made.run(TRUE, by="alice") for _ in range(6)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(result, Job) for result in results) == 3
            assert len({one.uid_base for one in results if isinstance(one, Job)}) == 3
            await made.close()

    run(main)


def test_ids_are_free_again_when_nothing_is_left(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice")
            w.pid1().end(code=0)
            await over(made, w)
            second = await made.run(TRUE, by="alice")
            assert second.uid_base == first.uid_base
            await made.close()

    run(main)


def test_ids_of_a_job_that_cannot_be_cleaned_up_are_not_free(base: Path) -> None:
    """Init mode refuses ids that a directory has: given out again, every launch would fail."""

    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice")
            w.init.away = True
            w.pid1().end(code=0)
            await until(lambda: not made._tasks)
            w.init.away = False
            second = await made.run(TRUE, by="alice")
            assert second.uid_base != first.uid_base
            await made.close()

    run(main)


# -- what clients see ------------------------------------------------------------------------------


def test_list_is_in_order_of_creation_and_live(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            for number in (300, 100, 200):
                await w.records.put(job(number, state=JobState.COMPLETED))
            begin(w)
            await made.run(TRUE, by="alice")
            listed = await made.list_jobs()
            assert [one.id for one in listed] == [*map(job_id, (300, 100, 200)), job_id(1)]
            assert listed[-1].state is JobState.RUNNING  # whatever the disk says by now
            await made.close()

    run(main)


def test_prefixes_of_live_and_recorded_jobs(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            await w.records.put(job(2, state=JobState.COMPLETED))
            await w.records.put(job(0x10, state=JobState.FAILED))
            running = await made.run(TRUE, by="alice")
            assert (await made.get("00000001-")).state is JobState.RUNNING
            assert (await made.get(running.id)).state is JobState.RUNNING
            assert (await made.get("00000002")).id == job_id(2)
            assert (await made.get("0000001")).id == job_id(0x10)
            # (NotFound shows as much of a text as a person would read)
            for text in (
                "",
                "0",
                "00000",
                "nothing",
                job_id(7),
                running.id + "0",
                "%",
                "00000001_",
            ):
                with pytest.raises(NotFound, match=re.escape(f"job not found: {text}")):
                    await made.get(text)
            stopped = await made.stop("00000001", by="bob")
            assert (stopped.id, stopped.stop_by) == (running.id, "bob")
            await made.close()

    run(main)


def test_stop_of_what_does_not_run(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            await w.records.put(job(2, state=JobState.COMPLETED))
            with pytest.raises(FailedPrecondition) as caught:
                await made.stop("00000002", by="bob")
            assert f"job is not running: {job_id(2)} (status: COMPLETED)" in str(caught.value)
            with pytest.raises(NotFound):
                await made.stop("7", by="bob")
            await made.close()

    run(main)


def test_the_log_of_a_job_by_its_id(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            await made.run(TRUE, by="alice")
            log = await made.open_log("00000001")
            w.pid1().say(b"hello")
            w.pid1().end(code=0)
            await log.wait_ended()
            assert log.size == 5
            with pytest.raises(NotFound):
                await made.open_log(job_id(9))
            await made.close()

    run(main)


def test_systemd_stopping_a_unit_is_noticed(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            running = await made.run(TRUE, by="alice")
            made.unit_stopping("joblet-somebody-elses.scope")
            made.unit_stopping("joblet.service")
            made.unit_stopping(running.unit)
            w.pid1().kill()
            await made.wait_ended(running.id)
            ended = await made.get(running.id)
            assert ended.end is not None
            assert ended.end.reason is Reason.UNIT_STOPPED
            await made.close()

    run(main)


# -- the end of a server, and the start of the next ------------------------------------------------


def test_a_closed_server_starts_nothing(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            await made.close()
            with pytest.raises(Unavailable, match="the server is stopping"):
                await made.run(TRUE, by="alice")
            assert w.init.calls == []

    run(main)


def test_a_server_that_is_closed_while_a_command_is_looked_for(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            loop = asyncio.get_running_loop()
            found = admission.find_command

            def slow(command: str, env: dict[str, str], cwd: str) -> str:
                asyncio.run_coroutine_threadsafe(made.close(), loop).result(10)
                return found(command, env, cwd)

            patch.setattr(admission, "find_command", slow)
            with pytest.raises(Unavailable, match="the server is stopping"):
                await made.run(TRUE, by="alice")
            assert w.init.calls == []

    run(main)


def test_closing_gives_everything_back(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            for _ in range(3):
                await made.run(TRUE, by="alice")
            await made.close()
            await until(lambda: not any(w.init.holders().values()))
            assert all(pid1.alive for pid1 in w.init.all)

    run(main)


def leftover(w: World, number: int, *, went: bool = True) -> Pid1:
    """A job of an earlier server, as init mode knows it."""
    plan = plan_of(job(number))
    pid1 = w.init.jobs[plan.job] = Pid1(plan, w.base / "jobs" / plan.job)
    w.init.all.append(pid1)
    if went:
        pid1.go()
        pid1.start()
    return pid1


def test_every_record_is_true_again(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            running = leftover(w, 1)
            gone = leftover(w, 2)
            gone.say(b"rest")
            gone.end(code=4)
            never = leftover(w, 3, went=False)
            never.bound = False
            never.kill()
            for number in (1, 2):
                await w.records.put(job(number, state=JobState.RUNNING, started_us=1000))
            await w.records.put(job(3))
            await w.records.put(job(4, state=JobState.RUNNING))  # without a directory
            finished = leftover(w, 5)
            finished.record = ExitRecord(job_id(5), code=0)
            await w.records.put(job(5, state=JobState.COMPLETED))
            cleaned = leftover(w, 6)
            cleaned.kill()
            await w.records.put(job(6, state=JobState.COMPLETED))
            unknown = leftover(w, 7)
            left = leftover(w, 8)
            left.kill()

            made = supervisor(w)
            await made.recover(same_boot=True)
            await until(lambda: set(w.init.jobs) == {job_id(1)} and len(made._tasks) == 1)
            states = {one.id: one for one in await made.list_jobs()}
            assert states[job_id(1)].state is JobState.RUNNING
            await until(lambda: running.held)
            second, third, fourth = (states[job_id(n)].end for n in (2, 3, 4))
            assert second is not None
            assert third is not None
            assert fourth is not None
            assert (second.reason, second.code) == (Reason.EXITED, 4)
            assert await w.text(2) == b"rest"
            assert third.reason is Reason.LAUNCH_FAILED
            assert fourth.reason is Reason.SIGNALLED
            assert finished.acknowledged
            assert not unknown.alive
            assert set(states) == {job_id(number) for number in range(1, 7)}
            # only what runs has ids
            assert list(made._uids) == [job_id(1)]
            await made.close()

            # once more: there is nothing to be done but to hold what runs
            calls = len(w.init.calls)
            again = supervisor(w)
            await again.recover(same_boot=True)
            await until(lambda: running.said_hello == 2)
            assert [verb for verb, _ in w.init.calls[calls:]] == ["list", "connect"]
            assert {one.id: one.end for one in await again.list_jobs()} == {
                one.id: one.end for one in states.values()
            }
            await again.close()

    run(main)


def test_ids_of_jobs_that_were_there_are_taken(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            taken = {leftover(w, number).plan.uid_base for number in (1, 2, 3)}
            for number in (1, 2, 3):
                await w.records.put(job(number, state=JobState.RUNNING))
            made = supervisor(w)
            await made.recover(same_boot=True)
            bases = {(await made.run(TRUE, by="alice")).uid_base for _ in range(5)}
            assert len(bases) == 5
            assert not bases & taken
            await made.close()

    run(main)


def test_another_boot(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            await w.records.put(job(1, state=JobState.RUNNING, started_us=7))
            ended = leftover(w, 2)
            ended.end(code=6)
            await w.records.put(job(2, state=JobState.RUNNING, started_us=7))
            made = supervisor(w)
            await made.recover(same_boot=False)
            await until(lambda: not made._tasks)
            lost, known = [one.end for one in await made.list_jobs()]
            assert lost is not None
            assert known is not None
            assert lost.reason is Reason.LOST
            assert (known.reason, known.code) == (Reason.EXITED, 6)
            await made.close()

    run(main)


def test_a_finished_job_whose_pid1_takes_its_time(base: Path) -> None:
    """Its end is seen before its directory is free: that is waited for, not left for ever."""

    async def main() -> None:
        async with world(base) as w:
            finished = leftover(w, 5)
            finished.record = ExitRecord(job_id(5), code=0)
            await w.records.put(job(5, state=JobState.COMPLETED))
            still = FailedPrecondition("clean up", "its PID 1 is still there")
            w.init.errors["clean-up"] = [still, still]
            made = supervisor(w)
            await made.recover(same_boot=True)
            await until(lambda: not w.init.jobs)
            await until(lambda: not made._uids)
            await made.close()

    run(main)


def test_a_job_nobody_heard_of_is_ended_when_init_mode_is_there_again(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            leftover(w, 7)
            away = Unavailable("ask init mode", "it is away")
            w.init.errors["stop"] = [away, away, away]
            made = supervisor(w)
            await made.recover(same_boot=True)
            await until(lambda: not w.init.jobs)
            await made.close()

    run(main)


def test_without_init_mode_there_is_no_start(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.away = True
            made = supervisor(w)
            with pytest.raises(Unavailable):
                await made.recover(same_boot=True)
            await made.close()

    run(main)
