# SPDX-License-Identifier: MIT
"""All jobs of a server: keys, bounds, prefixes, what clients see, and the start after another."""

import asyncio
import contextlib
import dataclasses
import functools
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from joblet.config import UID_FIRST, UIDS_PER_JOB
from joblet.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from joblet.launch.protocol import ExitRecord
from joblet.model import Job, JobSpec, JobState, Limits, Reason, unit_name
from joblet.server import admission, events
from joblet.server import supervisor as supervising
from joblet.server.admission import Permits
from joblet.server.jobtask import JobTask
from joblet.server.limits import Enforcement
from joblet.server.logs import Chunk, JobLog
from joblet.server.supervisor import Supervisor
from tests.unit.server.pid1 import Init, Pid1
from tests.unit.server.support import (
    BOOT,
    GRACE_US,
    OTHER_BOOT,
    World,
    all_jobs,
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
            assert running.created_by == "alice"
            assert running.spec == dataclasses.replace(spec, profile="default")
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
            assert (w.init.calls, await all_jobs(made), made.running()) == ([], [], 0)
            # the key still stands for nothing
            begin(w)
            assert (await made.run(TRUE, by="alice", key="k")).state is JobState.RUNNING
            await made.close()

    run(main)


def test_profiles(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w, profile="strict")
            w.init.permits = Permits(profiles=("strict", "trusted"))
            by_default = await made.run(TRUE, by="alice")
            asked = await made.run(JobSpec("true", profile="trusted"), by="alice")
            assert (by_default.spec.profile, asked.spec.profile) == ("strict", "trusted")
            assert [pid1.plan.profile for pid1 in w.init.all] == ["strict", "trusted"]
            with pytest.raises(PermissionDenied, match="profile default is not permitted"):
                await made.run(JobSpec("true", profile="default"), by="alice")
            assert len(w.init.all) == 2  # nothing was recorded or started
            assert len(await all_jobs(made)) == 2
            await made.close()

    run(main)


def test_ids_are_those_that_init_mode_permits(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = UID_FIRST + 7 * UIDS_PER_JOB
            w.init.permits = Permits(uid_first=first, uid_last=first + UIDS_PER_JOB - 1)
            assert (await made.run(TRUE, by="alice")).uid_base == first
            with pytest.raises(ResourceExhausted, match="all 1 ranges of user ids are in use"):
                await made.run(TRUE, by="alice")
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
            [record] = await all_jobs(made)
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
            await over(made, w)
            [record] = await all_jobs(made)
            assert record.end is not None
            assert record.end.reason is Reason.LAUNCH_FAILED
            assert not any(pid1.started_us for pid1 in w.init.all)
            await made.close()

    run(main)


def test_a_bug_does_not_cost_a_job(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is taken back: the same job, no byte lost, no byte twice."""

    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice")
            pid1 = w.pid1()
            log = await made.open_log(first.id)
            for number in range(2):
                pid1.say(b"%d" % number)
                size, hellos = number + 1, pid1.said_hello
                await until(functools.partial(lambda size: log.size == size, size))
                made._tasks[first.id]._help(broken())
                await until(functools.partial(lambda seen: pid1.said_hello > seen, hellos))
            pid1.say(b"2")
            pid1.end(code=7)
            await made.wait_ended(first.id)
            ended = await made.get(first.id)
            assert ended.end is not None
            assert (ended.end.reason, ended.end.code) == (Reason.EXITED, 7)
            assert await w.text() == b"012"
            assert {getattr(record, "job", "") for record in caplog.records if record.exc_info} == {
                first.id
            }
            await made.close()

    run(main)


async def broken() -> None:
    raise ZeroDivisionError("a bug")


@contextlib.asynccontextmanager
async def given_up(
    base: Path, patch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[World, Supervisor]]:
    """A job that said "seen" and runs, and whose task fails however often it is begun again."""
    async with world(base) as w:
        begin(w)
        made = supervisor(w)
        running = await made.run(TRUE, by="alice")
        log = await made.open_log(running.id)
        w.pid1().say(b"seen")
        await until(lambda: log.size == 4)
        await w.durable(JobState.RUNNING)
        task = made._tasks[running.id]
        patch.setattr(JobTask, "_attend", lambda *arguments: broken())
        task._help(broken())
        await until(lambda: task.fault)
        yield w, made
        await made.close()


def test_a_job_given_up_lets_nobody_wait(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            running = await made.run(TRUE, by="alice")
            log = await made.open_log(running.id)
            following, ended = log.follow(), asyncio.ensure_future(made.wait_ended(running.id))
            w.pid1().say(b"seen")
            item = await following.read()
            waiting = asyncio.ensure_future(following.read())
            await asyncio.sleep(0)
            patch.setattr(JobTask, "_attend", lambda *arguments: broken())
            made._tasks[running.id]._help(broken())
            for waiter in (waiting, ended, made.wait_ended(running.id)):
                with pytest.raises(FailedPrecondition, match="lost sight of it") as caught:
                    await waiter
                assert "restart joblet.service" in caught.value.hint
            assert isinstance(item, Chunk)
            # nothing is made up: it runs, for all that is known, and nobody reads its pipes
            assert (await made.get(running.id)).state is JobState.RUNNING
            assert w.pid1().alive
            assert not w.pid1().held
            assert not log.attached  # PID 1 may put aside what is in them
            await made.close()

    run(main)


def test_what_a_job_given_up_has_said_can_be_read(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with given_up(base, patch) as (w, made):
            log = await made.open_log(job_id(1))
            assert [item async for item in log.follow(follow=False)] == await w.said()
            following = log.follow()
            assert isinstance(await following.read(), Chunk)
            with pytest.raises(FailedPrecondition, match="lost sight of it"):
                await following.read()

    run(main)


def test_a_job_given_up_can_be_stopped(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with given_up(base, patch) as (w, made):
            patch.undo()
            w.pid1().say(b", and unread")
            stopped = await made.stop(job_id(1), by="me")
            assert stopped.end is not None
            assert (stopped.end.reason, stopped.end.by) == (Reason.STOPPED, "me")
            assert await w.recorded() == stopped
            assert await w.text() == b"seen, and unread"
            await over(made, w)

    run(main)


def test_a_stop_between_a_bug_and_the_next_beginning(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            patch.setattr(supervising, "AGAIN_S", (0.5,))  # longer than it takes to look
            made = supervisor(w)
            running = await made.run(TRUE, by="alice")
            task = made._tasks[running.id]
            task._help(broken())
            await until(lambda: task._group is None)
            stopped = await made.stop(running.id, by="me")
            assert stopped.end is not None
            assert (stopped.end.reason, stopped.end.by) == (Reason.STOPPED, "me")
            assert await w.recorded() == stopped
            await over(made, w)
            await made.close()

    run(main)


def test_a_bug_behind_the_final_record(base: Path, patch: pytest.MonkeyPatch) -> None:
    """Nobody needs to hear of it: the end is known, and the next server removes what is left."""

    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice")
            patch.setattr(JobTask, "_clean_up", lambda *arguments: broken())
            w.pid1().end(code=0)
            await until(lambda: not made._tasks)
            assert (await made.get(first.id)).state is JobState.COMPLETED
            assert list(made._uids) == [first.id]
            await made.close()

    run(main)


def test_a_bug_right_behind_the_final_record(base: Path, patch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the start or the end hears of it: there is nobody left who would say it."""

    async def main() -> None:
        async with world(base) as w:
            w.init.started = lambda pid1: pid1.end(ended_by="launch", step="exec", errno=13)
            made = supervisor(w)
            patch.setattr(events, "ended", lambda ended: 1 // 0)
            first = await asyncio.wait_for(made.run(TRUE, by="alice"), 20)
            assert first.state is JobState.FAILED
            await made.wait_ended(first.id)
            await over(made, w)
            await made.close()

    run(main)


def test_a_bug_in_the_end_itself(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            first = await made.run(TRUE, by="alice")
            task = made._tasks[first.id]
            w.store.errors = [ZeroDivisionError("a bug")] * 4
            w.pid1().say(b"said")
            w.pid1().end(code=0)
            await until(lambda: task.fault)
            assert not w.store.errors
            # it had ended by itself, but nobody could record that before the stop was asked for
            stopped = await made.stop(first.id, by="me")
            assert stopped.state is JobState.STOPPED
            assert await w.text() == b"said"
            await over(made, w)
            await made.close()

    run(main)


def test_a_bug_in_the_journals_copy_costs_only_the_copy(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def copy(job: Job, log: JobLog, offset: int, ended: asyncio.Event) -> None:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        async with world(base, copy=copy) as w:
            begin(w)
            made = supervisor(w)
            await made.run(TRUE, by="alice")
            await until(lambda: "ZeroDivisionError" in caplog.text)
            assert w.pid1().said_hello == 1
            w.pid1().end(code=0)
            await over(made, w)
            assert (await made.get(job_id(1))).state is JobState.COMPLETED
            await made.close()

    run(main)


def test_the_scope_of_a_job_given_up_ends_whatever_happens(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with given_up(base, patch) as (w, made):
            pid1 = w.pid1()
            with pytest.raises(FailedPrecondition, match="lost sight of it"):
                await made.stop(job_id(1), by="me")
            assert not pid1.alive
            # its end is not known yet; what tells of it is kept for the next server
            assert not (await w.recorded()).final
            assert w.pid1() is pid1

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
            await made.recover(BOOT)
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
            listed = await all_jobs(made)
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


def test_a_log_that_is_gone_is_not_made_again(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            made = supervisor(w)
            for number in (1, 2):
                await made.run(TRUE, by="alice")
                w.pid1(number).say(b"said")
                w.pid1(number).end(code=0)
            await over(made, w)
            await w.logs.remove(job_id(1))
            with pytest.raises(NotFound, match="its log is not in") as caught:
                await made.open_log(job_id(1))
            assert caught.value.hint
            assert not (base / "logs" / job_id(1)).exists()
            await made.close()
        # of the other one, the end is lost
        (base / "logs" / job_id(2) / "index").unlink()
        async with world(base) as w:
            made = supervisor(w)
            log = await made.open_log(job_id(2))
            items = [item async for item in log.follow()]
            assert b"".join(item.data for item in items if isinstance(item, Chunk)) == b"said"
            assert len(items) == 2  # and a gap
            await made.close()

    run(main)


def test_a_log_that_nobody_writes_ends(base: Path) -> None:
    """A record that is not final, and no task: a put that was carried out though it failed."""

    async def main() -> None:
        async with world(base) as w:
            await w.records.put(job(1))
            log = await w.logs.open(job_id(1))
            made = supervisor(w)
            assert await made.open_log(job_id(1)) is log
            with pytest.raises(FailedPrecondition, match="lost sight of it"):
                await log.follow().read()
            await made.close()

    run(main)


def test_secrets_are_covered_for_clients_and_in_the_journal(base: Path) -> None:
    copied: list[bytes] = []

    async def copy(job: Job, log: JobLog, offset: int, ended: asyncio.Event) -> None:
        copied.extend([item.data async for item in log.follow(offset) if isinstance(item, Chunk)])

    async def main() -> None:
        async with world(base, copy=copy) as w:
            begin(w)
            made = supervisor(w)
            spec = JobSpec("true", secret_environment={"TOKEN": "hunter2!", "N": "1"})
            await made.run(spec, by="alice")
            log = await made.open_log(job_id(1))
            following = log.follow()
            w.pid1().say(b"1 is no secret, hunt")
            assert await following.read() == await made_of(log, b"1 is no secret, ")
            w.pid1().say(b"er2! is")
            await until(lambda: log.size == 27)
            w.pid1().end(code=0)
            await over(made, w)
            assert await w.text() == b"1 is no secret, ******** is"
            assert b"".join(copied) == b"1 is no secret, ******** is"
            (segment,) = (base / "logs" / job_id(1)).glob("out.*[0-9]")
            assert segment.read_bytes().endswith(b"hunter2! is")
            await made.close()
        async with world(base) as w:  # as good behind a restart, when nobody else has it open
            made = supervisor(w)
            log = await made.open_log(job_id(1))
            items = [item async for item in log.follow(18)]
            assert [item.data for item in items if isinstance(item, Chunk)] == [b"****** is"]
            await made.close()

    async def made_of(log: JobLog, data: bytes) -> Chunk:
        (first,) = [item async for item in log.follow(follow=False)]
        assert isinstance(first, Chunk)
        assert first.data == data
        return first

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
            await made.recover(BOOT)
            await until(lambda: set(w.init.jobs) == {job_id(1)} and len(made._tasks) == 1)
            states = {one.id: one for one in await all_jobs(made)}
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
            await again.recover(BOOT)
            await until(lambda: running.said_hello == 2)
            assert [verb for verb, _ in w.init.calls[calls:]] == ["list", "connect"]
            assert {one.id: one.end for one in await all_jobs(again)} == {
                one.id: one.end for one in states.values()
            }
            await again.close()

    run(main)


@pytest.mark.parametrize("where", ["directory", "nowhere", "pid1"])
def test_who_ended_meanwhile_is_recorded_before_anybody_reads(
    base: Path, patch: pytest.MonkeyPatch, where: str
) -> None:
    async def main() -> None:
        async with world(base) as w:
            patch.setattr(supervising, "HEARD_S", 30)
            if where != "nowhere":
                pid1 = leftover(w, 1)
                pid1.written = where == "directory"  # else it could not leave: there was no room
                pid1.end(code=4)
                assert pid1.alive is (where == "pid1")
            await w.records.put(job(1, state=JobState.RUNNING, started_us=1000))
            made = supervisor(w)
            await made.recover(BOOT)
            assert (await w.recorded()).state is JobState.FAILED
            await over(made, w)
            await made.close()

    run(main)


def test_jobs_that_cannot_be_recovered_now_keep_nobody_waiting(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(base) as w:
            leftover(w, 1).end(code=4)
            frozen = leftover(w, 2, went=False)  # somebody listens, and says nothing
            for number in (1, 2):
                await w.records.put(job(number, state=JobState.RUNNING, started_us=1000))
            w.init.block("results")
            patch.setattr(supervising, "RECORDED_S", 0.01)
            made = supervisor(w)
            await made.recover(BOOT)
            assert [one.state for one in await all_jobs(made)] == [JobState.RUNNING] * 2
            w.init.unblock("results")
            frozen.go()
            frozen.end(code=0)
            await over(made, w)
            states = [one.state for one in await all_jobs(made)]
            assert states == [JobState.FAILED, JobState.COMPLETED]
            await made.close()

    run(main)


def test_each_job_belongs_to_the_boot_it_was_launched_in(base: Path) -> None:
    """The server died while it recovered from a reboot, and jobs had been launched already."""

    async def main() -> None:
        async with world(base, boot=OTHER_BOOT) as w:
            await w.records.put(job(1, state=JobState.RUNNING, started_us=7))
        async with world(base) as w:
            await w.records.put(job(2, state=JobState.RUNNING, started_us=7))
        async with world(base) as w:
            made = supervisor(w)
            await made.recover(BOOT)
            ends = [one.end for one in await all_jobs(made)]
            assert [end and end.reason for end in ends] == [Reason.LOST, Reason.SIGNALLED]
            await made.close()

    run(main)


def test_a_finished_job_whose_pid1_is_not_understood(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            finished = leftover(w, 5)
            finished.hello = b"to you, too"
            finished.record, finished.written = ExitRecord(job_id(5), code=0), False
            await w.records.put(job(5, state=JobState.COMPLETED))
            made = supervisor(w)
            await made.recover(BOOT)
            await until(lambda: not w.init.jobs)
            await until(lambda: not made._uids)
            await made.close()

    run(main)


def test_ids_of_jobs_that_were_there_are_taken(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            begin(w)
            taken = {leftover(w, number).plan.uid_base for number in (1, 2, 3)}
            for number in (1, 2, 3):
                await w.records.put(job(number, state=JobState.RUNNING))
            made = supervisor(w)
            await made.recover(BOOT)
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
            await made.recover(OTHER_BOOT)
            await until(lambda: not made._tasks)
            lost, known = [one.end for one in await all_jobs(made)]
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
            await made.recover(BOOT)
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
            await made.recover(BOOT)
            await until(lambda: not w.init.jobs)
            await made.close()

    run(main)


def test_without_init_mode_there_is_no_start(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            w.init.away = True
            made = supervisor(w)
            with pytest.raises(Unavailable):
                await made.recover(BOOT)
            await made.close()

    run(main)
