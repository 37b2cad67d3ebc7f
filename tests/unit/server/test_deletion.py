# SPDX-License-Identifier: MIT
"""Deleted jobs are gone, whole, whenever the server dies; the others are what they were."""

import asyncio
import contextlib
import errno
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from joblet.errors import (
    FailedPrecondition,
    Internal,
    JobletError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from joblet.model import Job, JobSpec, JobState
from joblet.server import deletion
from joblet.server import supervisor as supervising
from joblet.server.deletion import Deleted
from joblet.server.logs import Chunk, JobLog, LogStore
from joblet.server.logs.directory import LogDirectory
from joblet.server.records import Records
from joblet.server.supervisor import Supervisor
from joblet.systemd import messages
from tests.unit.server.deletion_driver import SAID
from tests.unit.server.pid1 import Init, Pid1
from tests.unit.server.support import (
    BOOT,
    World,
    all_jobs,
    job,
    job_id,
    jobs_of,
    run,
    supervisor,
    until,
    world,
)

pytestmark = pytest.mark.usefixtures("no_leaks", "patch")

DRIVER = Path(__file__).with_name("deletion_driver.py")
STEPS = ("begun", "staged", "aside", "removed", "synced", "forgotten")
TRUE = JobSpec("true")


def untold(_: Sequence[str]) -> None:
    """Nobody asks which ones they were."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "world"


@contextlib.asynccontextmanager
async def serving(base: Path, init: Init | None = None) -> AsyncIterator[tuple[World, Supervisor]]:
    async with world(base, init=init) as w:
        w.init.started = Pid1.start
        made = supervisor(w)
        try:
            yield w, made
        finally:
            await made.close()


async def ended(w: World, made: Supervisor, says: bytes = b"hello") -> Job:
    """A job that has run and is cleaned up."""
    begun = await made.run(TRUE, by="tester")
    pid1 = w.init.jobs[begun.id]
    pid1.say(says)
    pid1.end(code=0)
    await until(lambda: made.living(begun.id) is None)
    return await made.get(begun.id)


async def finished(w: World, *numbers: int) -> None:
    """Jobs that ended long ago, with logs."""
    for number in numbers:
        await w.records.put(job(number, state=JobState.COMPLETED))
        log = await w.logs.open(job_id(number))
        await log.expect([1])
        await log.finish(1)


def directories(base: Path) -> set[str]:
    """What there is of logs."""
    return {path.name for path in (base / "logs").iterdir() if path.is_dir()}


# -- one job ---------------------------------------------------------------------------------------


def test_a_deleted_job_is_gone(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            one, two = await ended(w, made), await ended(w, made)
            assert await made.delete(one.id) == one
            assert await all_jobs(made) == [two]
            assert directories(base) == {two.id}
            assert await w.records.ids() == {two.id}
            for text in (one.id, one.id[:8]):
                for call in (made.get, made.open_log, made.delete):
                    with pytest.raises(NotFound, match="job not found"):
                        await call(text)
                with pytest.raises(NotFound):
                    await made.stop(text, by="me")
            assert await made.delete(two.id[:8]) == two
            assert directories(base) == set()

    run(main)


def test_a_job_that_has_not_ended_is_kept(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            runs = await made.run(TRUE, by="tester")
            with pytest.raises(FailedPrecondition) as caught:
                await made.delete(runs.id[:8])
            assert caught.value.text == (
                f"cannot delete job {runs.id}: it has not ended (status: RUNNING);"
                f" stop the job first: rnx job stop {runs.id}"
            )
            with pytest.raises(FailedPrecondition):
                await made.expire(runs.id)
            assert await made.delete_ended(untold) == Deleted(skipped=1)
            w.pid1().say(b"still here")
            w.pid1().end(code=0)
            await until(lambda: made.living(runs.id) is None)
            assert await w.text() == b"still here"

    run(main)


def test_a_job_without_a_log_is_deleted_as_well(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            await w.records.put(job(1, state=JobState.FAILED))
            await made.delete(job_id(1))
            assert await w.records.ids() == frozenset()

    run(main)


def test_two_delete_the_same_job(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1)
            calls = (made.delete(job_id(1)) for _ in range(5))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sorted(type(result).__name__ for result in results) == ["Job"] + ["NotFound"] * 4
            assert directories(base) == set()

    run(main)


def test_who_follows_the_log_hears_of_it(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            one = await ended(w, made, b"0123456789")
            log = await made.open_log(one.id)
            follower = log.follow(max_bytes=4)
            chunk = await follower.read()
            assert isinstance(chunk, Chunk)
            assert chunk.data == b"0123"
            await made.delete(one.id)
            with pytest.raises(NotFound, match="it was removed"):
                await follower.read()

    run(main)


def test_a_job_that_has_just_ended_may_finish_first(base: Path) -> None:
    """Its PID 1 goes and the journal's copy is whole before the log is."""

    async def main() -> None:
        async with serving(base) as (w, made):
            await made.run(TRUE, by="tester")
            w.init.block("clean-up")
            w.pid1().end(code=0)
            await w.init.reached("clean-up")
            deleting = asyncio.ensure_future(made.delete(job_id(1)))
            await until(lambda: made._deletion._running)
            while True:  # nobody finds it, although it is there
                with contextlib.suppress(NotFound):
                    await made.get(job_id(1))
                    continue
                break
            assert directories(base) == {job_id(1)}
            assert not deleting.done()
            w.init.unblock("clean-up")
            await deleting
            assert directories(base) == set()

    run(main)


def test_without_init_mode_a_job_is_deleted_all_the_same(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        patch.setattr(supervising, "QUIET_S", 0)
        async with serving(base) as (w, made):
            await made.run(TRUE, by="tester")
            w.init.block("clean-up")
            w.pid1().end(code=0)
            await w.init.reached("clean-up")
            await made.delete(job_id(1))
            assert made.living(job_id(1)) is not None
            for call in (made.get, made.open_log, made.delete):
                with pytest.raises(NotFound):
                    await call(job_id(1))
            assert await made.delete_ended(untold) == Deleted()
            w.init.unblock("clean-up")
            await until(lambda: made.living(job_id(1)) is None)
            assert directories(base) == set()
            assert await w.records.ids() == frozenset()

    run(main)


def test_a_log_that_is_opened_meanwhile_leaves_nothing(base: Path) -> None:
    """Between the look for a job and the opening of its log the whole deletion has room."""

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1)
            really = w.logs.open

            async def open_log(job: str, **_: Any) -> JobLog:
                await made.delete(job)
                return await really(job)  # as if it had looked before

            w.logs.open = open_log  # type: ignore[assignment, method-assign]
            with pytest.raises(NotFound, match="job not found"):
                await made.open_log(job_id(1))
            assert directories(base) == set()

    run(main)


# -- the key of a job that is gone -----------------------------------------------------------------


def test_what_was_deleted_is_not_run_again_by_a_retry(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            await made.run(TRUE, by="alice", key="k")
            w.pid1().end(code=0)
            await until(lambda: made.living(job_id(1)) is None)
            await made.delete(job_id(1))
            for _ in range(2):
                with pytest.raises(FailedPrecondition) as caught:
                    await made.run(TRUE, by="alice", key="k")
                assert f"stands for job {job_id(1)}, which has been deleted" in caught.value.why
                assert "take another key" in caught.value.hint
            assert w.init.count("launch") == 1
            other = await made.run(TRUE, by="bob", key="k")
            assert other.state is JobState.RUNNING

    run(main)


# -- a disk that refuses ---------------------------------------------------------------------------


def refuse(patch: pytest.MonkeyPatch, *jobs: str) -> list[str]:
    """The logs of these jobs cannot be removed, as long as they are in the list."""
    refused = list(jobs)
    really = LogDirectory.remove

    def remove(self: LogDirectory, job: str) -> None:
        if job in refused:
            raise OSError(errno.EROFS, "Read-only file system")
        really(self, job)

    patch.setattr(LogDirectory, "remove", remove)
    return refused


def test_a_log_that_cannot_be_removed_keeps_the_whole_job(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            one = await ended(w, made)
            refused = refuse(patch, one.id)
            with pytest.raises(Internal, match="Read-only file system"):
                await made.delete(one.id)
            assert await made.get(one.id) == one
            log = await made.open_log(one.id)
            [chunk] = [item async for item in log.follow()]
            assert isinstance(chunk, Chunk)
            assert chunk.data == b"hello"
            refused.clear()
            await made.delete(one.id)
            assert directories(base) == set()

    run(main)


def test_a_log_that_was_put_aside_and_stays_does_not_keep_the_job(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    """Nobody can read it any more, and the store removes it at its start."""

    async def main(*, again: bool = False) -> None:
        async with serving(base) as (w, made):
            if again:
                assert directories(base) == set()
                return
            await finished(w, 1)

            def rmtree(*_: Any, **more: Any) -> None:
                if not more:
                    raise OSError(errno.EIO, "Input/output error")

            with pytest.MonkeyPatch.context() as broken:
                broken.setattr("joblet.server.logs.directory.shutil.rmtree", rmtree)
                await made.delete(job_id(1))
            assert directories(base) == {f".removed-{job_id(1)}"}
            assert await w.records.ids() == frozenset()

    run(main)
    run(lambda: main(again=True))


def test_a_log_that_somebody_is_just_opening_is_waited_for(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    busy = [FailedPrecondition("remove the log", "it is being opened")] * 2
    really = LogStore.remove

    async def remove(self: LogStore, job: str) -> None:
        if busy:
            raise busy.pop()
        await really(self, job)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1)
            patch.setattr(LogStore, "remove", remove)
            await made.delete(job_id(1))
            assert directories(base) == set()

    run(main)


@pytest.mark.parametrize("where", ["sync_removed", "forget"])
def test_what_cannot_be_made_durable_is_seen_through_later(
    base: Path, patch: pytest.MonkeyPatch, where: str
) -> None:
    full = ResourceExhausted("write", "the disk is full")

    async def refused(*_: Any) -> None:
        raise full

    async def main() -> None:
        with jobs_of(base) as init:
            async with serving(base, init) as (w, made):
                await finished(w, 1, 2)
                with pytest.MonkeyPatch.context() as broken:
                    broken.setattr(LogStore if where == "sync_removed" else Records, where, refused)
                    with pytest.raises(ResourceExhausted):
                        await made.delete(job_id(1))
                assert [one.id for one in await all_jobs(made)][-1] == job_id(2)
                if where == "sync_removed":  # it is there as before, and can be deleted again
                    await made.delete(job_id(1))
            async with serving(base, init) as (w, made):
                await made.recover(BOOT)
                assert await w.records.ids() == {job_id(2)}
                assert directories(base) == {job_id(2)}

    run(main)


# -- all jobs --------------------------------------------------------------------------------------


def test_all_that_have_ended(base: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion, "BATCH", 3)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, *range(11, 18))
            await made.run(TRUE, by="tester")
            await w.records.put(job(30, state=JobState.SCHEDULED))
            await finished(w, 31)
            assert await made.delete_ended(untold) == Deleted(deleted=8, skipped=2)
            assert await w.records.ids() == {job_id(1), job_id(30)}
            assert directories(base) == {job_id(1)}
            assert await made.delete_ended(untold) == Deleted(skipped=2)

    run(main)


def test_one_that_cannot_be_deleted_does_not_keep_the_others(
    base: Path, patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patch.setattr(deletion, "BATCH", 3)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, *range(1, 8))
            refuse(patch, job_id(2), job_id(6))
            done = await made.delete_ended(untold)
            assert (done.deleted, done.skipped) == (5, 0)
            assert done.failed == (job_id(2), job_id(6))
            assert done.why is not None
            assert "Read-only file system" in done.why.text
            assert await w.records.ids() == {job_id(2), job_id(6)}
            assert [one.id for one in await all_jobs(made)] == [job_id(2), job_id(6)]
            said = [record.job for record in caplog.records if "cannot delete" in record.message]  # type: ignore[attr-defined]
            assert said == [job_id(2), job_id(6)]

    run(main)


def test_a_disk_that_refuses_all_of_it_is_not_asked_for_ever(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(deletion, "BATCH", 3)
    patch.setattr(deletion, "MAX_FAILED", 4)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, *range(1, 11))
            refuse(patch, *map(job_id, range(1, 11)))
            done = await made.delete_ended(untold)
            assert (done.deleted, len(done.failed)) == (0, 6)
            assert len(await all_jobs(made)) == 10

    run(main)


def test_records_that_fail_in_the_middle(base: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion, "BATCH", 3)
    really = Records.begin_deletions
    full: list[JobletError] = []

    async def begin(self: Records, cursor: int, *more: int, **named: int) -> Any:
        if cursor or full:
            raise ResourceExhausted("delete jobs", "the disk is full")
        return await really(self, cursor, *more, **named)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, *range(1, 8))
            patch.setattr(Records, "begin_deletions", begin)
            done = await made.delete_ended(untold)
            assert (done.deleted, done.failed) == (3, ())
            assert isinstance(done.why, ResourceExhausted)
            full.append(done.why)
            with pytest.raises(ResourceExhausted):  # nothing was done
                await made.delete_ended(untold)

    run(main)


def test_jobs_that_come_meanwhile_stay(base: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion, "BATCH", 2)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1, 2, 3)
            really = made._deletion._quiet

            async def quiet(ids: Collection[str]) -> None:
                await really(ids)
                await finished(w, 4)

            made._deletion._quiet = quiet
            assert (await made.delete_ended(untold)).deleted == 3
            assert await w.records.ids() == {job_id(4)}

    run(main)


def test_a_client_that_hangs_up_leaves_no_job_half_deleted(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(deletion, "BATCH", 2)

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, *range(1, 8))
            gate, there = asyncio.Event(), asyncio.Event()
            really = w.logs.remove

            async def remove(job: str) -> None:
                there.set()
                await gate.wait()
                await really(job)

            w.logs.remove = remove  # type: ignore[assignment, method-assign]
            told: list[str] = []
            calling = asyncio.ensure_future(made.delete_ended(told.extend))
            await there.wait()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            gate.set()
            await until(lambda: not made._deletion._running)
            left = {job_id(number) for number in range(3, 8)}
            assert await w.records.ids() == left == directories(base)
            assert len(await all_jobs(made)) == 5
            assert told == [job_id(1), job_id(2)]

    run(main)


def test_a_server_that_stops_sees_through_what_has_begun(base: Path) -> None:
    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1, 2)
            gate, there = asyncio.Event(), asyncio.Event()
            really = w.logs.remove

            async def remove(job: str) -> None:
                there.set()
                await gate.wait()
                await really(job)

            w.logs.remove = remove  # type: ignore[assignment, method-assign]
            deleting = asyncio.ensure_future(made.delete(job_id(1)))
            await there.wait()
            closing = asyncio.ensure_future(made.close())
            await asyncio.sleep(0)
            for call in (made.delete(job_id(2)), made.delete_ended(untold)):
                with pytest.raises(Unavailable, match="stopping"):
                    await call
            gate.set()
            await closing
            await deleting
            assert directories(base) == {job_id(2)}

    run(main)


# -- retention -------------------------------------------------------------------------------------


def test_a_job_whose_time_is_up(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="joblet.audit")

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1, 2)
            await made.expire(job_id(1))
            assert directories(base) == {job_id(2)}
            with pytest.raises(NotFound):
                await made.expire(job_id(1))
            with pytest.raises(NotFound):
                await made.expire(job_id(2)[:8])  # no prefixes here
            first, *others = [r for r in caplog.records if r.name == "joblet.audit"]
            fields: dict[str, str] = first.fields  # type: ignore[attr-defined]
            assert fields["MESSAGE_ID"] == messages.CHANGE
            names = ("WHO", "FROM", "WHAT", "RESULT")
            said = [fields[f"JOBLET_{name}"] for name in names]
            assert said == ["retention", "this server", "DeleteJob", "ok"]
            assert first.job == job_id(1)  # type: ignore[attr-defined]
            assert all("job not found" in record.getMessage() for record in others)
            assert len(others) == 2

    run(main)


# -- the start after another server ----------------------------------------------------------------


def killed_at(step: str, base: Path, how: str) -> None:
    words = [sys.executable, str(DRIVER), str(base), step, how]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("how", ["one", "all"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_the_whole_job_or_nothing(base: Path, step: str, how: str) -> None:
    killed_at(step, base, how)

    async def main() -> None:
        with jobs_of(base) as init:
            async with serving(base, init) as (w, made):
                await made.recover(BOOT)
                gone = {2} if how == "one" else {1, 2, 3}
                left = {job_id(number) for number in (1, 2, 3)} - {job_id(n) for n in gone}
                # the one that ran was lost with that server, and its log is made to say so
                assert await w.records.ids() == {*left, job_id(4)}
                assert directories(base) == {*left, job_id(4)}
                assert {one.id for one in await all_jobs(made)} == {*left, job_id(4)}
                for kept in left:
                    log = await made.open_log(kept)
                    items = [item async for item in log.follow()]
                    assert b"".join(i.data for i in items if isinstance(i, Chunk)) == SAID
                for number in gone:
                    with pytest.raises(FailedPrecondition, match="has been deleted"):
                        await made.run(TRUE, by="tester", key=f"key-{number}")

    run(main)


def test_before_the_first_step_all_is_there(base: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with jobs_of(base) as init:
            async with serving(base, init) as (w, made):
                await finished(w, 1)

                async def killed(*_: Any) -> None:
                    raise asyncio.CancelledError

                with pytest.MonkeyPatch.context() as broken:
                    broken.setattr(Records, "begin_deletion", killed)
                    with pytest.raises(asyncio.CancelledError):
                        await made.delete(job_id(1))
            async with serving(base, init) as (w, made):
                await made.recover(BOOT)
                assert await w.records.ids() == {job_id(1)} == directories(base)

    run(main)


def test_what_cannot_be_finished_is_tried_at_every_start(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    killed_at("begun", base, "one")

    async def main(found: Sequence[int]) -> None:
        with jobs_of(base) as init:
            async with serving(base, init) as (_, made):
                await made.recover(BOOT)
                with pytest.raises(NotFound):
                    await made.get(job_id(2))
                assert directories(base) == {job_id(number) for number in found}

    with pytest.MonkeyPatch.context() as broken:
        refuse(broken, job_id(2))
        run(lambda: main([1, 2, 3, 4]))
    run(lambda: main([1, 3, 4]))


def test_a_start_does_not_wait_for_a_disk_that_is_full(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed_at("begun", base, "one")

    async def full(*_: Any) -> None:
        raise ResourceExhausted("forget jobs", "the disk is full")

    async def main(left: int) -> None:
        with jobs_of(base) as init:
            async with serving(base, init) as (w, made):
                await made.recover(BOOT)
                assert len(await w.records.ids()) == left
                assert len(await all_jobs(made)) == 3

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(Records, "forget", full)
        run(lambda: main(4))
    assert "cannot forget jobs: the disk is full" in caplog.messages
    run(lambda: main(3))


def test_records_that_cannot_be_forgotten_do_not_hide_those_that_stay(
    base: Path, patch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise ResourceExhausted("forget jobs", "the disk is full")

    async def main() -> None:
        async with serving(base) as (w, made):
            await finished(w, 1, 2, 3)
            refuse(patch, job_id(2))
            patch.setattr(Records, "forget", full)
            with pytest.raises(ResourceExhausted):
                await made.delete_ended(untold)
            assert [one.id for one in await all_jobs(made)] == [job_id(2)]

    run(main)


def test_logs_without_a_record_are_reported_and_kept(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with jobs_of(base) as init:
            async with serving(base, init) as (w, made):
                await finished(w, 1)
                for number in range(2, 7):
                    await w.logs.open(job_id(number))
                await made.recover(BOOT)
                [record] = [r for r in caplog.records if "no record" in r.message]
                assert record.getMessage() == (
                    f"5 logs of jobs that have no record: {job_id(2)}, {job_id(3)}, {job_id(4)}, …;"
                    " kept as they are"
                )
                fields: dict[str, str] = record.fields  # type: ignore[attr-defined]
                assert fields["MESSAGE_ID"] == messages.LOGS_WITHOUT_RECORD
                assert fields["JOBLET_LOGS"] == "5"
                assert directories(base) == {job_id(number) for number in range(1, 7)}

    run(main)
