# SPDX-License-Identifier: MIT
"""JobService as clients see it: real gRPC, supervisor, records and logs; a scripted init mode."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from joblet import link
from joblet.errors import NotFound, Unavailable
from joblet.model import JOURNALD, JobState
from joblet.server.journal_log import JournalLogs
from joblet.server.logs import ERR, OUT, GapKind, JobLog, LogMetrics
from joblet.server.logs.directory import LogDirectory
from joblet.server.logs.selection import MAX_ARRIVALS
from joblet.server.rpc.jobs import JobService
from joblet.server.supervisor import Supervisor
from joblet_pb import joblet_pb2 as pb
from tests.unit.logs.support import say
from tests.unit.server.grpc_support import call, channel, failure, serving, stream, unary
from tests.unit.server.pid1 import Pid1
from tests.unit.server.support import (
    World,
    all_jobs,
    decoded,
    job,
    job_id,
    log_metrics,
    run,
    supervisor,
    until,
    world,
)

pytestmark = pytest.mark.usefixtures("patch")

S = grpc.StatusCode
METHODS = ("RunJob", "StopJob", "GetJobStatus", "GetJobLogs", "ListJobs", "DeleteJob")
RUN, STOP, STATUS, LOGS, LIST, DELETE = (f"/joblet.JobService/{name}" for name in METHODS)
DELETE_ALL = "/joblet.JobService/DeleteAllJobs"


def journal_logs(w: World) -> JournalLogs:
    return JournalLogs(w.tools.launcher)


@contextlib.asynccontextmanager
async def served(
    base: Path,
    chunk_bytes: int = 1 << 20,
    metrics: LogMetrics | None = None,
    *,
    stall_s: float = 60,
) -> AsyncIterator[tuple[World, Supervisor, str]]:
    async with world(base / "world") as w:
        w.init.started = Pid1.start
        made = supervisor(w)
        jobs = JobService(
            made,
            journal_logs(w),
            node_id="node-1",
            chunk_bytes=chunk_bytes,
            metrics=metrics or log_metrics(),
        )
        try:
            async with serving(jobs.unary, jobs.streams, stall_s=stall_s) as target:
                yield w, made, target
        finally:
            await made.close()


async def follow(client: grpc.aio.Channel, number: int = 1, **request: Any) -> list[pb.DataChunk]:
    wanted = pb.GetJobLogsRequest(uuid=job_id(number), **request)
    chunks: list[pb.DataChunk] = await call(client, LOGS, wanted)
    return chunks


def test_who_follows_is_counted_and_how_far_behind(tmp_path: Path) -> None:
    async def main() -> None:
        metrics = log_metrics()
        async with served(tmp_path, metrics=metrics) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            w.pid1().say(b"before")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 6)
            following = stream(client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1), from_offset=2))
            assert (await following.read()).payload == b"fore"
            assert metrics.followers.read() == 1
            await until(lambda: metrics.follower_lag_bytes.read() == 0)
            following.cancel()
            await until(lambda: metrics.followers.read() == 0)
            assert metrics.follower_lag_bytes.read() == 0
            with metrics.following(lambda: 7), metrics.following(lambda: 3):
                assert metrics.follower_lag_bytes.read() == 7

    run(main)


def test_a_jobs_life(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            answer = await call(client, RUN, pb.RunJobRequest(command="sh", args=["-c", "true"]))
            assert (answer.job_uuid, answer.status, answer.command) == (job_id(1), "RUNNING", "sh")
            following = asyncio.ensure_future(follow(client))
            w.pid1().say(b"hello\n")
            w.pid1().say(b"oops\n", "err")
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)[:8]))
            assert (status.uuid, status.status, status.node_id) == (job_id(1), "RUNNING", "node-1")
            assert (status.created_by, status.pid) == ("client", 4711)
            w.pid1().end(code=3)
            chunks = await following
            by_stream = {
                number: b"".join(c.payload for c in chunks if c.stream == number)
                for number in (1, 2)
            }
            assert by_stream == {1: b"hello\n", 2: b"oops\n"}
            assert chunks[-1] == pb.DataChunk(offset_end=11, end=True)
            assert not any(chunk.end for chunk in chunks[:-1])
            assert all(chunk.time_us for chunk in chunks[:-1])
            # whoever has seen the log's end is told how it ended
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert (status.status, status.exit_code, status.reason) == ("FAILED", 3, "exited")
            listed = await call(client, LIST)
            assert [(one.uuid, one.status) for one in listed.jobs] == [(job_id(1), "FAILED")]

    run(main)


def test_a_list_is_true_whatever_was_kept_of_the_last_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:

            async def listed() -> list[tuple[str, str]]:
                answer = await call(client, LIST)
                return [(one.uuid, one.status) for one in answer.jobs]

            for number in (1, 2):
                await call(client, RUN, pb.RunJobRequest(command="true"))
                assert (job_id(number), "RUNNING") in await listed()
            w.pid1(1).end(code=0)
            await follow(client, 1)
            first = await call(client, LIST)
            assert first == await call(client, LIST)
            ended, runs = first.jobs
            assert (ended.status, ended.node_id, runs.status) == ("COMPLETED", "node-1", "RUNNING")
            w.pid1(2).end(code=1)
            await follow(client, 2)
            assert await listed() == [(job_id(1), "COMPLETED"), (job_id(2), "FAILED")]

    run(main)


def test_stop(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (_, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            async with channel(target, "viewer") as viewer:
                refused = await failure(viewer, STOP, pb.StopJobRequest(uuid=job_id(1)))
                assert refused[0] is S.PERMISSION_DENIED
                assert (
                    len(
                        await call(
                            viewer, LOGS, pb.GetJobLogsRequest(uuid=job_id(1), no_follow=True)
                        )
                    )
                    == 0
                )
            stopped = await call(client, STOP, pb.StopJobRequest(uuid="00000001"))
            assert (stopped.uuid, stopped.status, stopped.exit_code) == (job_id(1), "STOPPED", -1)
            assert stopped.end_time
            code, details = await failure(client, STOP, pb.StopJobRequest(uuid=job_id(1)))
            assert code is S.FAILED_PRECONDITION
            assert f"job is not running: {job_id(1)} (status: STOPPED)" in details
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert (status.stopped_by, status.reason_text) == ("client", "stopped(by client)")

    run(main)


@pytest.mark.parametrize("path", [STOP, STATUS, LOGS, DELETE])
@pytest.mark.parametrize("uuid", ["", "7", job_id(7), "x" * 10_000, "ä\n"])
def test_a_job_that_is_not_there(tmp_path: Path, path: str, uuid: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            request = {
                STOP: pb.StopJobRequest, STATUS: pb.GetJobStatusRequest, LOGS: pb.GetJobLogsRequest,
                DELETE: pb.DeleteJobRequest,
            }[path](uuid=uuid)  # fmt: skip
            code, details = await failure(client, path, request)
            assert code is S.NOT_FOUND
            assert f"job not found: {uuid[:20]}" in details
            assert await w.logs.list() == []  # and none is made by asking for it

    run(main)


def test_requests_that_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, made, target), channel(target) as client:
            for request, code, text in (
                (pb.RunJobRequest(), S.INVALID_ARGUMENT, "invalid request: command is required"),
                (
                    pb.RunJobRequest(command="no-such-command"),
                    S.INVALID_ARGUMENT,
                    "command not found: no-such-command",
                ),
                (pb.RunJobRequest(command="true", max_cpu=-1), S.INVALID_ARGUMENT, "negative"),
                (pb.RunJobRequest(command="true", timeout="x"), S.INVALID_ARGUMENT, "timeout 'x'"),
                (pb.RunJobRequest(command="true", schedule="1h"), S.UNIMPLEMENTED, "scheduling"),
                (
                    pb.RunJobRequest(command="true", idempotency_key="k" * 129),
                    S.INVALID_ARGUMENT,
                    "idempotency_key is longer than 128",
                ),
                (
                    pb.RunJobRequest(command="true", max_memory=100),
                    S.FAILED_PRECONDITION,
                    "the kernel did not take it",  # there is no such file in this cgroup
                ),
            ):
                found, details = await failure(client, RUN, request)
                assert found is code, details
                assert text in details
            [record] = await all_jobs(made)  # of the last one
            assert record.state is JobState.FAILED
            assert not any(pid1.went for pid1 in w.init.all)

    run(main)


def test_the_same_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            request = pb.RunJobRequest(command="true", idempotency_key="k" * 128)
            answers = await asyncio.gather(*(unary(client, RUN, request) for _ in range(3)))
            assert {answer.job_uuid for answer in answers} == {job_id(1)}
            assert w.init.count("launch") == 1

    run(main)


def test_a_launch_that_failed_is_an_error_of_the_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            w.init.errors["launch"] = [Unavailable("ask init mode", "it is away", hint="wait")]
            code, details = await failure(client, RUN, pb.RunJobRequest(command="true"))
            assert (code, details) == (S.UNAVAILABLE, "cannot ask init mode: it is away; wait")

    run(main)


def test_a_client_that_hangs_up_during_run_job(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, made, target), channel(target) as client:
            w.init.block("go")
            calling = unary(client, RUN, pb.RunJobRequest(command="true"))
            await w.init.reached("go")
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            w.init.unblock("go")
            await until(lambda: w.pid1().held and made.running() == 1)
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert status.status in {"INITIALIZING", "RUNNING"}

    run(main)


# -- logs ------------------------------------------------------------------------------


def test_a_log_is_followed_from_anywhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, chunk_bytes=4) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            w.pid1().say(b"0123456789")
            answers = stream(client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1)))
            first = await answers.read()
            assert (first.payload, first.offset_end, first.stream) == (b"0123", 4, 1)
            answers.cancel()
            resumed = asyncio.ensure_future(follow(client, from_offset=4))
            w.pid1().say(b"abc")
            w.pid1().end(code=0)
            chunks = await resumed
            assert b"".join(chunk.payload for chunk in chunks) == b"456789abc"
            assert all(len(chunk.payload) <= 4 for chunk in chunks)
            assert (chunks[-1].end, chunks[-1].offset_end) == (True, 13)
            # finished: all of it, then the end
            again = await follow(client)
            assert b"".join(chunk.payload for chunk in again) == b"0123456789abc"
            assert again[-1].end
            [end] = await follow(client, from_offset=13)
            assert end == pb.DataChunk(offset_end=13, end=True)
            for offset in (14, -1, 2**62):
                code, details = await failure(
                    client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1), from_offset=offset)
                )
                assert code is S.INVALID_ARGUMENT
                assert f"offset {offset}" in details

    run(main)


def test_what_there_is_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            assert await follow(client, no_follow=True) == []
            w.pid1().say(b"so far")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 6)
            [chunk] = await follow(client, no_follow=True)
            assert (chunk.payload, chunk.end) == (b"so far", False)
            w.pid1().end(code=0)
            await follow(client)
            *_, last = await follow(client, no_follow=True)
            assert last.end

    run(main)


def test_the_end_is_not_claimed_by_who_has_not_read_it(tmp_path: Path) -> None:
    """A log that grows and ends while somebody reads what there was: that one has not all of it."""

    async def main() -> None:
        async with served(tmp_path) as (w, made, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            w.pid1().say(b"before")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 6)

            class Caller:
                name = "me"

            jobs = JobService(
                made,
                journal_logs(w),
                node_id="n",
                chunk_bytes=1024,
                metrics=log_metrics(),
            )
            request = pb.GetJobLogsRequest(uuid=job_id(1), no_follow=True)
            answers = jobs.logs(request, Caller())  # type: ignore[arg-type]
            first = decoded(await anext(answers))
            w.pid1().say(b"behind")
            w.pid1().end(code=0)
            await log.wait_ended()
            rest = [chunk async for chunk in answers]
            assert (first.payload, rest) == (b"before", [])
            *_, last = await follow(client, from_offset=6)
            assert last.end

    run(main)


def test_the_end_waits_for_the_record(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            await w.durable(JobState.RUNNING)
            answers = stream(client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1)))
            w.store.gate = asyncio.Event()
            w.pid1().say(b"bye")
            w.pid1().end(code=5)
            assert (await answers.read()).payload == b"bye"
            await until(lambda: w.store.puts[-1].final)
            last = asyncio.ensure_future(answers.read())
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert status.status == "RUNNING"
            assert not last.done()
            w.store.gate.set()
            assert (await last).end
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert (status.status, status.exit_code) == ("FAILED", 5)

    run(main)


def test_gaps_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await w.records.put(job(7, state=JobState.COMPLETED))
            log = await w.logs.open(job_id(7))
            await log.expect([1, 2])
            await log.append_gap(GapKind.EXPIRED, count=5, stream=2)
            await log.append_gap(GapKind.LOST)
            for number in (1, 2):
                await log.finish(number)
            known, unknown, end = await follow(client, 7)
            assert (known.gap.kind, known.gap.bytes, known.stream) == ("expired", 5, 2)
            assert (known.offset_end, known.payload) == (5, b"")
            assert (unknown.gap.kind, unknown.gap.bytes) == ("lost", -1)
            assert unknown.offset_end == end.offset_end == 1 << 40
            assert end.end

    run(main)


def test_a_server_that_stops_ends_its_streams_with_a_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, made, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            w.pid1().say(b"x")
            answers = stream(client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1)))
            await answers.read()
            await made.close()
            await w.logs.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answers.read()
            assert caught.value.code() is S.UNAVAILABLE
            assert "the server is stopping" in (caught.value.details() or "")

    run(main)


# -- parts of logs -----------------------------------------------------------------------


async def grown(log: JobLog, size: int) -> None:
    await until(lambda: log.size >= size)


def said(chunks: list[pb.DataChunk]) -> bytes:
    return b"".join(chunk.payload for chunk in chunks)


def test_a_part_of_a_log_says_where_it_begins(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            log = await w.logs.open(job_id(1))
            for data, name, size in (
                (b"1\n2\n", "out", 4),
                (b"oops\n", "err", 9),
                (b"3\n", "out", 11),
            ):
                w.pid1().say(data, name)
                await grown(log, size)
            [begin, *chunks] = await follow(client, tail_lines=2, no_follow=True)
            assert begin == pb.DataChunk(offset_end=4, begin=True)
            assert said(chunks) == b"oops\n3\n"
            assert [chunk.stream for chunk in chunks] == [2, 1]
            [begin, *chunks] = await follow(client, tail_lines=2, stream=1, no_follow=True)
            assert (begin.begin, begin.offset_end, said(chunks)) == (True, 2, b"2\n3\n")
            [begin, chunk] = await follow(client, stream=2, no_follow=True)
            assert (begin.offset_end, chunk.payload, chunk.offset_end) == (0, b"oops\n", 9)
            # nothing of what there is, then what comes
            following = asyncio.ensure_future(follow(client, tail_lines=0))
            answers = stream(client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1), tail_lines=0))
            assert await answers.read() == pb.DataChunk(offset_end=11, begin=True)
            w.pid1().say(b"4\n")
            assert (await answers.read()).payload == b"4\n"
            w.pid1().end(code=0)
            assert (await answers.read()).end
            assert (await following)[-1] == pb.DataChunk(offset_end=13, end=True)
            # a stream that ends is complete also for who does not see its last bytes
            assert (await follow(client, stream=2))[-1] == pb.DataChunk(offset_end=13, end=True)

    run(main)


def test_times_of_a_part(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            w.pid1().say(b"early\n")
            log = await w.logs.open(job_id(1))
            await until(lambda: log.size == 6)
            [first] = await follow(client, no_follow=True)
            w.pid1().say(b"late\n")
            await until(lambda: log.size == 11)
            [begin, chunk] = await follow(client, no_follow=True, arrivals=True)
            assert (begin.begin, chunk.payload) == (True, b"early\nlate\n")
            assert list(chunk.arrivals.at) == [0, 6]
            early, late = chunk.arrivals.time_us
            assert early == first.time_us < late
            assert said(await follow(client, no_follow=True, since_us=late)) == b"late\n"
            # what lies before a time that is past is complete, also of a job that goes on
            [*chunks, end] = await follow(client, until_us=late)
            assert (said(chunks), end) == (b"early\n", pb.DataChunk(offset_end=6, end=True))
            # and what comes before a time ends with it
            [*chunks, end] = await follow(client, until_us=next(w.clock) + 20)
            assert (said(chunks), end.end) == (b"early\nlate\n", True)

    run(main)


@pytest.mark.parametrize(
    "wanted", [{"since_us": -1}, {"until_us": -1}, {"tail_lines": -1}, {"stream": 3}]
)
def test_parts_that_no_log_has(tmp_path: Path, wanted: dict[str, Any]) -> None:
    async def main() -> None:
        async with served(tmp_path) as (_, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            request = pb.GetJobLogsRequest(uuid=job_id(1), **wanted)
            code, details = await failure(client, LOGS, request)
            assert code is S.INVALID_ARGUMENT
            assert details.startswith("cannot read the output of job ")

    run(main)


def test_messages_stay_below_what_clients_take(tmp_path: Path) -> None:
    """The default limit of a receiver is 4 MiB, whatever is told beside the bytes."""

    async def main() -> None:
        async with served(tmp_path, chunk_bytes=CHUNK_MAX) as (w, _, target):
            log = await flooded(w, 12 << 20)
            with log.core.pinned():
                for _ in range(MAX_ARRIVALS + 10):
                    say(log.core, ERR, b"tiny\n")
            await log.finish(1)
            await log.finish(2)
            async with channel(target) as client:  # it has the default limit
                for arrivals, most in ((False, 0), (True, MAX_ARRIVALS)):
                    chunks = await follow(client, 7, arrivals=arrivals)
                    assert sum(len(chunk.payload) for chunk in chunks) == log.size
                    assert max(chunk.ByteSize() for chunk in chunks) < 4 << 20
                    assert max(len(chunk.arrivals.at) for chunk in chunks) == most

    run(main)


CHUNK_MAX = (4 << 20) - 65536  # the largest buffers.chunk_size


async def flooded(w: World, size: int) -> JobLog:
    """The log of job 7 with so many bytes, no two MiB of them the same."""
    await w.records.put(job(7, state=JobState.COMPLETED))
    log = await w.logs.open(job_id(7))
    await log.expect([1, 2])
    with log.core.pinned():
        for number in range(size >> 20):
            say(log.core, OUT, b"%07d\n" % number * (1 << 17))
    return log


# -- who does not read -------------------------------------------------------------------


def test_a_follower_that_stalls_goes_on_later_and_no_other_notices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="joblet.server.rpc.guard")

    async def main() -> None:
        async with served(tmp_path, stall_s=2) as (w, _, target):
            log = await flooded(w, 32 << 20)
            await log.finish(1)
            await log.finish(2)
            async with channel(target) as slow, channel(target) as quick:
                answers = stream(slow, LOGS, pb.GetJobLogsRequest(uuid=job_id(7)))
                chunks = [await answers.read()]
                whole = await follow(quick, 7)
                while not caplog.records:  # the server has had enough of the slow one
                    assert await follow(quick, 7) == whole
                assert sum(len(chunk.payload) for chunk in whole) == 32 << 20
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await rest(answers, chunks)
                assert caught.value.code() is S.ABORTED
                assert "nothing was read for 2 s" in (caught.value.details() or "")
                position = chunks[-1].offset_end
                assert 0 < position < 32 << 20
                assert said(chunks) == said(whole)[:position]
                chunks += await follow(slow, 7, from_offset=position)
                assert said(chunks) == said(whole)
                assert chunks[-1].end

    run(main)


async def rest(answers: Any, chunks: list[pb.DataChunk]) -> None:
    """Reads until the end; what came before it failed counts."""
    while chunk := await answers.read():  # what stands for the end is false
        chunks.append(chunk)


# -- deletion ---------------------------------------------------------------------------


def test_a_job_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="joblet.audit")

    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            request = pb.DeleteJobRequest(uuid="00000001")
            code, details = await failure(client, DELETE, request)
            assert code is S.FAILED_PRECONDITION
            assert "it has not ended (status: RUNNING); stop the job first: rnx job stop" in details
            w.pid1().end(code=0)
            await follow(client)
            async with channel(target, "viewer") as viewer:
                code, details = await failure(viewer, DELETE, request)
                assert code is S.PERMISSION_DENIED
                assert "role viewer is not allowed to perform operation stop_job" in details
            answer = await call(client, DELETE, request)
            assert answer == pb.DeleteJobResponse(
                uuid=job_id(1), success=True, message="Job deleted successfully"
            )
            for path, asked in (
                (DELETE, request),
                (STATUS, pb.GetJobStatusRequest(uuid=job_id(1))),
                (LOGS, pb.GetJobLogsRequest(uuid=job_id(1))),
                (STOP, pb.StopJobRequest(uuid=job_id(1))),
            ):
                code, details = await failure(client, path, asked)
                assert (code, "job not found" in details) == (S.NOT_FOUND, True)
            assert list((await call(client, LIST)).jobs) == []
            said = [r for r in caplog.records if "DeleteJob" in r.getMessage()]
            fields: list[dict[str, str]] = [r.fields for r in said]  # type: ignore[attr-defined]
            results = [one["JOBLET_RESULT"] for one in fields]
            assert results[2] == "ok"
            assert said[2].job == job_id(1)  # type: ignore[attr-defined]
            whys = ("it has not ended", "is not allowed", "ok", "job not found")
            assert all(why in result for why, result in zip(whys, results, strict=True))

    run(main)


def test_who_follows_a_log_hears_that_it_is_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, made, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            w.pid1().say(b"0123456789")
            w.pid1().end(code=0)
            await follow(client)

            class Caller:
                name = "me"

            # as slow as a client may be: one chunk taken, the others to come
            jobs = JobService(
                made,
                journal_logs(w),
                node_id="n",
                chunk_bytes=4,
                metrics=log_metrics(),
            )
            answers = jobs.logs(pb.GetJobLogsRequest(uuid=job_id(1)), Caller())  # type: ignore[arg-type]
            assert decoded(await anext(answers)).payload == b"0123"
            await call(client, DELETE, pb.DeleteJobRequest(uuid=job_id(1)))
            with contextlib.suppress(NotFound):  # that one may have been read already
                assert decoded(await anext(answers)).payload == b"4567"
            with pytest.raises((NotFound, StopAsyncIteration)):
                await anext(answers)

    run(main)


def test_all_jobs_are_deleted(
    tmp_path: Path, patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="joblet.audit")

    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true"))
            for number in range(2, 6):
                await w.records.put(job(number, state=JobState.FAILED))
                await w.logs.open(job_id(number))
            async with channel(target, "viewer") as viewer:
                assert (await failure(viewer, DELETE_ALL))[0] is S.PERMISSION_DENIED
            really = LogDirectory.remove

            def remove(self: LogDirectory, job: str) -> None:
                if job == job_id(3):
                    raise OSError(errno.EROFS, "Read-only file system")
                really(self, job)

            with pytest.MonkeyPatch.context() as broken:
                broken.setattr(LogDirectory, "remove", remove)
                answer = await call(client, DELETE_ALL)
            assert (answer.success, answer.deleted_count, answer.skipped_count) == (False, 3, 1)
            assert answer.message.startswith(
                "Successfully deleted 3 jobs, skipped 1 running/scheduled jobs;"
                f" could not delete 1 ({job_id(3)}); cannot remove the log of job {job_id(3)}:"
                " Read-only file system"
            )
            again = await call(client, DELETE_ALL)
            assert again == pb.DeleteAllJobsResponse(
                success=True,
                message="Successfully deleted 1 jobs, skipped 1 running/scheduled jobs",
                deleted_count=1,
                skipped_count=1,
            )
            said = [r for r in caplog.records if "DeleteAllJobs" in r.getMessage()]
            fields: list[dict[str, str]] = [r.fields for r in said]  # type: ignore[attr-defined]
            results = [one["JOBLET_RESULT"] for one in fields]
            assert results[1:] == ["ok", answer.message, "ok", again.message]
            # each job can be asked for
            assert said[1].jobs == [job_id(number) for number in (2, 4, 5)]  # type: ignore[attr-defined]
            assert said[3].jobs == [job_id(3)]  # type: ignore[attr-defined]
            assert "DeleteAllJobs of 3 jobs: ok" in said[1].getMessage()

    run(main)


def test_a_log_in_the_journal(tmp_path: Path) -> None:
    """Cursors instead of offsets, and its end when the record is final."""

    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true", log_driver=JOURNALD))
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert status.log_driver == JOURNALD
            following = asyncio.ensure_future(follow(client, from_cursor="i=7"))
            await until(lambda: w.init.readers)
            sock, asked = w.init.readers[0]
            assert (asked["job"], asked["cursor"]) == (job_id(1), "i=7")
            sock.setblocking(False)
            sock.send(link.frame({"stream": 2, "time_us": 5, "cursor": "i=8"}, b"a\n"))
            gap = {"stream": 0, "time_us": 6, "cursor": "i=9", "gap": "dropped", "lines": 3}
            sock.send(link.frame(gap))
            w.pid1().end(code=0)
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
            sock.send(link.frame({"end": True, "missing": [1]}))
            chunks = await following
            assert [(c.payload, c.cursor, c.stream, c.offset_end, c.end) for c in chunks] == [
                (b"a\n", "i=8", 2, 0, False),
                (b"", "i=9", 0, 0, False),
                (b"", "", 1, 0, False),
                (b"", "", 0, 0, True),
            ]
            assert [(c.gap.kind, c.gap.bytes, c.gap.lines) for c in chunks[1:3]] == [
                ("dropped", -1, 3),
                ("lost", -1, -1),
            ]
            status = await call(client, STATUS, pb.GetJobStatusRequest(uuid=job_id(1)))
            assert status.status == "COMPLETED"

    run(main)


def test_a_part_of_a_log_in_the_journal(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true", log_driver=JOURNALD))
            following = asyncio.ensure_future(
                follow(client, tail_lines=2, until_us=9, stream=2, arrivals=True, no_follow=True)
            )
            await until(lambda: w.init.readers)
            sock, asked = w.init.readers[0]
            assert (asked["tail"], asked["until_us"], asked["stream"]) == (2, 9, 2)
            assert (asked["single"], asked["began_us"]) == (1, 0)
            sock.send(link.frame({"begin": True, "cursor": "i=3"}))
            sock.send(link.frame({"stream": 2, "time_us": 5, "cursor": "i=4"}, b"a\n"))
            sock.send(link.frame({"end": True, "past": True, "missing": []}))
            begin, chunk, end = await following
            assert begin == pb.DataChunk(begin=True, cursor="i=3")
            assert (list(chunk.arrivals.at), list(chunk.arrivals.time_us)) == ([0], [5])
            assert end == pb.DataChunk(end=True)
            # where it begins is known before anybody reads
            following = asyncio.ensure_future(follow(client, stream=1, from_cursor="i=4"))
            await until(lambda: len(w.init.readers) == 2)
            sock, _ = w.init.readers[1]
            sock.send(link.frame({"end": True, "past": True, "missing": []}))
            begin, end = await following
            assert begin == pb.DataChunk(begin=True, cursor="i=4")
            for bad in ({"stream": 3}, {"since_us": -1}, {"until_us": 2**62},
                        {"from_cursor": "i=1", "tail_lines": 1}):  # fmt: skip
                refused = pb.GetJobLogsRequest(uuid=job_id(1), **bad)
                code, _ = await failure(client, LOGS, refused)
                assert code is S.INVALID_ARGUMENT

    run(main)


def test_positions_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (w, _, target), channel(target) as client:
            await call(client, RUN, pb.RunJobRequest(command="true", log_driver=JOURNALD))
            await call(client, RUN, pb.RunJobRequest(command="true"))
            code, details = await failure(
                client, LOGS, pb.GetJobLogsRequest(uuid=job_id(1), from_offset=1)
            )
            assert code is S.INVALID_ARGUMENT
            assert "use --from-cursor" in details
            code, details = await failure(
                client, LOGS, pb.GetJobLogsRequest(uuid=job_id(2), from_cursor="i=1")
            )
            assert code is S.INVALID_ARGUMENT
            assert "use --from-offset" in details
            code, details = await failure(
                client, RUN, pb.RunJobRequest(command="true", log_driver="syslog")
            )
            assert code is S.INVALID_ARGUMENT
            assert "there is no log driver 'syslog'" in details
            assert w.init.readers == []

    run(main)
