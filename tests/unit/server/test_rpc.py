# SPDX-License-Identifier: MIT
"""Who gets in, who may do what, and what becomes of an error: over real TLS connections."""

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import tempfile
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import grpc
import pytest

from joblet import errors
from joblet.errors import Code, JobletError, PermissionDenied
from joblet.server import access, audit
from joblet.server.access import OPERATIONS, Role
from joblet.server.rpc import guard, listener, runtimes, status
from joblet.server.rpc.guard import Caller
from joblet.systemd import messages
from joblet_pb import joblet_pb2 as pb
from tests.unit.server.grpc_support import (
    METHODS,
    OURS,
    authority,
    call,
    channel,
    client_pair,
    config,
    failure,
    serving,
    stream,
    unary,
)
from tests.unit.server.support import run, until

S = grpc.StatusCode
RUN, STOP, STATUS, LOGS, LIST, UPDATE = (
    f"/joblet.JobService/{name}"
    for name in ("RunJob", "StopJob", "GetJobStatus", "GetJobLogs", "ListJobs", "UpdateJob")
)


STREAM = "/joblet.JobService/StreamJobMetrics"
NO_BOUND = [("grpc.max_receive_message_length", -1)]


@contextlib.asynccontextmanager
async def channel_to(
    served: "contextlib.AbstractAsyncContextManager[str]",
) -> AsyncGenerator[tuple[contextlib.AsyncExitStack, grpc.aio.Channel], None]:
    """A server, to be stopped by its stack, and a client of it."""
    async with contextlib.AsyncExitStack() as server:
        target = await server.enter_async_context(served)
        async with channel(target, options=NO_BOUND) as client:
            yield server, client


class Audit:
    """Audit records as they go to the journal."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="joblet.audit")
        self._caplog = caplog

    @property
    def fields(self) -> list[dict[str, str]]:
        found = [r for r in self._caplog.records if r.name == "joblet.audit"]
        return [{**r.fields, "job": r.job} for r in found]  # type: ignore[attr-defined]


# -- the table of errors ---------------------------------------------------------------


def test_every_code_has_its_status() -> None:
    assert set(status.STATUS) == set(Code)
    assert all(given.name == code.value for code, given in status.STATUS.items())
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, JobletError):
            given, text = status.of(cls("do it", "it is so", hint="do that"))
            assert given is status.STATUS[cls.code]
            assert text == "cannot do it: it is so; do that"


@pytest.mark.parametrize("char", ["x", "ä", "\n", "%", "\U0001f600", " "])
def test_details_fit_into_a_clients_headers(char: str) -> None:
    async def main() -> None:
        async def refuse(request: Any, caller: Caller) -> Any:
            raise errors.NotFound("find it", char * 100_000)

        async with serving({STATUS: refuse}, {}) as target, channel(target) as client:
            code, details = await failure(client, STATUS)
            assert code is S.NOT_FOUND
            assert details.startswith("cannot find it: " + char)
            assert len(details) <= status.MAX_DETAILS

    run(main)


# -- who gets in -----------------------------------------------------------------------


async def greet(request: Any, caller: Caller) -> Any:
    return pb.GetJobStatusResponse(name=f"{caller.name} {caller.identity.role}")


@pytest.mark.parametrize(
    ("unit", "by"), [(None, "Joblet-CA"), ("admin", "Another CA"), ("admin", "Joblet-CA ")]
)
def test_a_client_without_our_certificate_never_gets_in(unit: str | None, by: str) -> None:
    async def main() -> None:
        called: list[Any] = []

        async def handler(request: Any, caller: Caller) -> Any:
            called.append(caller)
            return pb.GetJobStatusResponse()

        async with serving({STATUS: handler}, {}) as target:
            async with channel(target, unit, by=by) as client:
                code, _ = await failure(client, STATUS)
                assert code is S.UNAVAILABLE
            async with grpc.aio.insecure_channel(target) as plain:
                assert (await failure(plain, STATUS))[0] is S.UNAVAILABLE
            assert called == []
            async with channel(target) as client:
                await call(client, STATUS)
            assert len(called) == 1

    run(main)


def test_who_calls_is_known() -> None:
    async def main() -> None:
        seen: list[Caller] = []

        async def handler(request: Any, caller: Caller) -> Any:
            seen.append(caller)
            return await greet(request, caller)

        async with serving({STATUS: handler}, {}) as target:
            for unit, role in (("admin", "admin"), ("Admin", "admin"), ("VIEWER", "viewer")):
                async with channel(target, unit) as client:
                    assert (await call(client, STATUS)).name == f"client {role}"
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+", caller.address) for caller in seen)
        assert seen[0].identity.role is Role.ADMIN

    run(main)


def test_over_ipv6() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def handler(request: Any, caller: Caller) -> Any:
            seen.append(caller.address)
            return await greet(request, caller)

        async with serving({STATUS: handler}, {}, "::1") as target, channel(target) as client:
            await call(client, STATUS)
        assert re.fullmatch(r"\[::1\]:\d+", seen[0])

    run(main)


# -- who may do what -------------------------------------------------------------------


def test_the_table_knows_every_method() -> None:
    assert set(OPERATIONS) == set(METHODS)


@pytest.mark.parametrize("unit", ["admin", "viewer", "", "operator", "admin, viewer"])
def test_roles(unit: str, caplog: pytest.LogCaptureFixture) -> None:
    """Unary and streams alike; what nobody serves says so, but only to whom may call it."""

    async def main() -> None:
        records = Audit(caplog)
        async with serving({}, {}) as target, channel(target, unit) as client:
            for path in METHODS:
                name = path.rpartition("/")[2]
                operation = OPERATIONS[path]
                code, details = await failure(client, path)
                if unit in {str(role) for role in operation.roles}:
                    assert code is S.UNIMPLEMENTED, path
                    assert details == (
                        f"cannot serve {name}: this version of Joblet does not have it yet"
                    )
                elif unit == "viewer":
                    assert code is S.PERMISSION_DENIED, path
                    assert details.startswith(
                        f"cannot call {name}: role viewer is not allowed to perform operation "
                        f"{operation.name}"
                    )
                else:
                    assert code is S.PERMISSION_DENIED, path
                    assert "OU" in details
        refused = [fields["JOBLET_WHAT"] for fields in records.fields]
        changes = [path for path in METHODS if OPERATIONS[path].name in guard.CHANGES]
        if unit == "viewer":
            assert refused == [path.rpartition("/")[2] for path in changes]
            assert all("not allowed" in fields["JOBLET_RESULT"] for fields in records.fields)

    run(main)


def test_a_method_that_is_not_in_the_contract() -> None:
    async def main() -> None:
        async with serving({}, {}) as target, channel(target) as client:
            for path in ("/joblet.JobService/Nonsense", "/other.Service/RunJob", "/x"):
                method = client.unary_unary(path, bytes, bytes)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await method(b"", timeout=20)
                assert caught.value.code() is S.UNIMPLEMENTED

    run(main)


def test_a_method_without_a_row_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        access, "OPERATIONS", {path: o for path, o in OPERATIONS.items() if path != STATUS}
    )

    async def main() -> None:
        async with serving({STATUS: greet}, {}) as target, channel(target) as client:
            code, details = await failure(client, STATUS)
            assert (code, details) == (
                S.PERMISSION_DENIED, f"cannot call {STATUS}: nobody may",
            )  # fmt: skip

    run(main)


def test_a_role_is_looked_at_in_every_call_of_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with serving({STATUS: greet}, {}) as target, channel(target, "viewer") as client:
            await call(client, STATUS)
            nobody = access.Operation("get_job", frozenset())
            monkeypatch.setattr(access, "OPERATIONS", {**OPERATIONS, STATUS: nobody})
            assert (await failure(client, STATUS))[0] is S.PERMISSION_DENIED

    run(main)


# -- errors and bugs -------------------------------------------------------------------


async def logs(request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
    yield pb.DataChunk(payload=b"first")
    raise errors.Unavailable("read the log", "the store is closed", hint="try again")


async def broken_logs(request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
    yield pb.DataChunk(payload=b"first")
    raise ZeroDivisionError("a bug in a stream")


async def broken(request: Any, caller: Caller) -> Any:
    raise ZeroDivisionError("a bug")


async def wrong(request: Any, caller: Caller) -> Any:
    raise errors.FailedPrecondition("stop the job", "it is not running", hint="see its status")


def test_an_error_of_ours() -> None:
    async def main() -> None:
        async with serving({STOP: wrong}, {LOGS: logs}) as target, channel(target) as client:
            assert await failure(client, STOP) == (
                S.FAILED_PRECONDITION,
                "cannot stop the job: it is not running; see its status",
            )
            answers = stream(client, LOGS, pb.GetJobLogsRequest())
            assert (await answers.read()).payload == b"first"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answers.read()
            assert (caught.value.code(), caught.value.details()) == (
                S.UNAVAILABLE,
                "cannot read the log: the store is closed; try again",
            )

    run(main)


def test_a_bug_is_one_sentence_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        handlers: Any = ({STATUS: broken}, {LOGS: broken_logs})
        async with serving(*handlers) as target, channel(target) as client:
            for path, name in ((STATUS, "GetJobStatus"), (LOGS, "GetJobLogs")):
                caplog.clear()
                code, details = await failure(client, path)
                assert code is S.INTERNAL
                assert details == f"cannot serve {name}: a fault of the server; see its journal"
                [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
                assert record.getMessage() == f"{path} failed"
                assert record.exc_info
                assert record.exc_info[0] is ZeroDivisionError

    run(main)


def test_an_answer_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that forgets to answer is a bug like any other."""

    async def main() -> None:
        async def nothing(request: Any, caller: Caller) -> Any:
            return None

        async with serving({STATUS: nothing}, {}) as target, channel(target) as client:
            code, _ = await failure(client, STATUS)
            assert code in (S.INTERNAL, S.UNKNOWN)

    run(main)


def test_a_client_that_hangs_up_ends_its_stream() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def endless(request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
            try:
                yield pb.DataChunk(payload=b"x")
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serving({}, {LOGS: endless}) as target, channel(target) as client:
            answers = stream(client, LOGS, pb.GetJobLogsRequest())
            await answers.read()
            answers.cancel()
            await asyncio.wait_for(ended.wait(), 10)

    run(main)


# -- a client that does not read -------------------------------------------------------


class Flood:
    """A stream without an end, of messages that a client cannot buffer many of."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.size = size
        self.ended = asyncio.Event()

    async def __call__(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        offset = 0
        try:
            while True:
                offset += self.size
                yield pb.DataChunk(payload=b"x" * self.size, offset_end=offset)
        finally:
            self.ended.set()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What server and grpc have to complain of. (asyncio has it of pollers of grpc's, which wake
    the loops of tests that are over.)"""
    found = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "asyncio"]
    return [record.getMessage() for record in found]


async def rest(answers: Any, offset: int, size: int) -> None:
    """Reads until the end, none of the messages missing."""
    while answer := await answers.read():  # what stands for the end is false
        offset += size
        assert answer.offset_end == offset


# (the second is of messages too large to be buffered by who reads none)
@pytest.mark.parametrize(("size", "first"), [(1 << 20, 1), (32 << 20, 0)])
def test_a_client_that_does_not_read_is_broken_off(
    caplog: pytest.LogCaptureFixture, size: int, first: int
) -> None:
    """Whatever it held is let go at once; what it had been sent and the reason come when it reads
    on."""

    async def main() -> None:
        caplog.set_level(logging.INFO, logger="joblet.server.rpc.guard")
        flood = Flood(size)
        served = serving({}, {LOGS: flood}, stall_s=0.2)
        async with served as target, channel(target, options=NO_BOUND) as client:
            answers = stream(client, LOGS, pb.GetJobLogsRequest())
            for number in range(first):
                assert (await answers.read()).offset_end == (number + 1) * size
            await asyncio.wait_for(flood.ended.wait(), 20)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rest(answers, first * size, size)
            assert caught.value.code() is S.ABORTED
            assert caught.value.details() == (
                "cannot go on with GetJobLogs: nothing was read for 0.2 s (stream.stall_timeout); "
                "ask again, from the offset behind the last byte"
            )
        [record] = [r for r in caplog.records if r.name == guard.__name__]
        assert record.levelno == logging.INFO
        assert "nothing was read for 0.2 s" in record.getMessage()
        assert "(client, 127.0.0.1:" in record.getMessage()

    run(main)


def test_a_client_that_is_broken_off_and_hangs_up(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        flood = Flood()
        served = serving({}, {LOGS: flood, STREAM: logs}, stall_s=0.2)
        async with served as target:
            async with channel(target, options=NO_BOUND) as client:
                answers = stream(client, LOGS, pb.GetJobLogsRequest())
                await answers.read()
                await asyncio.wait_for(flood.ended.wait(), 20)
            async with channel(target) as client:
                code, _ = await failure(client, STREAM)
                assert code is S.UNAVAILABLE
        assert complaints(caplog) == []

    run(main)


@pytest.mark.parametrize("way", ["cancel", "stop"])
def test_hanging_up_in_mid_message_is_no_fault_of_the_server(
    caplog: pytest.LogCaptureFixture, way: str
) -> None:
    async def main() -> None:
        flood = Flood()
        async with channel_to(serving({}, {LOGS: flood}, stall_s=60)) as (server, client):
            answers = stream(client, LOGS, pb.GetJobLogsRequest())
            await answers.read()
            if way == "cancel":
                answers.cancel()
            else:
                await server.aclose()
            await asyncio.wait_for(flood.ended.wait(), 20)
        assert complaints(caplog) == []

    run(main)


# -- the audit -------------------------------------------------------------------------


def test_changes_are_audited(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        records = Audit(caplog)

        async def started(request: Any, caller: Caller) -> Any:
            return pb.RunJobResponse(job_uuid="the-job")

        async def stopped(request: Any, caller: Caller) -> Any:
            return pb.StopJobResponse(uuid="the-whole-id")

        unary_ = {RUN: started, STOP: stopped, STATUS: greet}
        async with serving(unary_, {}) as target, channel(target) as client:
            await call(client, RUN)
            await call(client, STOP, pb.StopJobRequest(uuid="the-wh"))
            await call(client, STATUS)
        first, second = records.fields
        assert first["MESSAGE_ID"] == messages.CHANGE
        said = [first[f"JOBLET_{name}"] for name in ("WHO", "WHAT", "RESULT")]
        assert (said, first["job"]) == (["client", "RunJob", "ok"], "the-job")
        assert first["JOBLET_FROM"].startswith("127.0.0.1:")
        assert (second["JOBLET_WHAT"], second["job"]) == ("StopJob", "the-whole-id")

    run(main)


def test_the_audit_names_a_jobs_profile(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that was refused; what most jobs have is a field and goes without saying."""

    async def main() -> None:
        records = Audit(caplog)

        async def run_job(request: Any, caller: Caller) -> Any:
            if request.profile == "trusted":
                raise PermissionDenied("run the job", "profile trusted is not permitted")
            return pb.RunJobResponse(job_uuid="the-job", profile=request.profile or "default")

        async with serving({RUN: run_job}, {}) as target, channel(target) as client:
            for profile in ("", "strict", "trusted"):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(client, RUN, pb.RunJobRequest(profile=profile))
        named = [fields["JOBLET_PROFILE"] for fields in records.fields]
        assert named == ["default", "strict", "trusted"]
        said = [r.getMessage() for r in caplog.records if r.name == "joblet.audit"]
        assert said[0].endswith(": RunJob the-job: ok")
        assert said[1].endswith(": RunJob the-job (profile strict): ok")
        assert "RunJob (profile trusted): cannot run the job" in said[2]

    run(main)


def test_the_audit_says_what_was_to_change(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        records = Audit(caplog)

        async def update(request: Any, caller: Caller) -> Any:
            if request.max_cpu:
                raise PermissionDenied("update the job", "max_cpu is too much")
            return pb.UpdateJobResponse(uuid="the-job")

        async with serving({UPDATE: update}, {}) as target, channel(target) as client:
            asked = pb.UpdateJobRequest(uuid="the", max_swap_bytes=0, timeout="+30m")
            await call(client, UPDATE, asked)
            await failure(client, UPDATE, pb.UpdateJobRequest(uuid="the", max_cpu=900))
            await failure(client, UPDATE, pb.UpdateJobRequest(max_cpu=1, cpu_cores="1\n" * 900))
        first, second, third = records.fields
        assert first["JOBLET_CHANGE"] == "max_swap_bytes=0 timeout=+30m"
        assert (first["JOBLET_WHAT"], first["job"]) == ("UpdateJob", "the-job")
        assert (second["JOBLET_CHANGE"], second["job"]) == ("max_cpu=900", "the")
        assert "max_cpu is too much" in second["JOBLET_RESULT"]
        assert len(third["JOBLET_CHANGE"]) <= audit.MAX_CHANGE
        said = [r.getMessage() for r in caplog.records if r.name == "joblet.audit"]
        assert said[0].endswith(": UpdateJob the-job (max_swap_bytes=0 timeout=+30m): ok")
        assert "\n" not in said[2]

    run(main)


def test_refused_changes_are_audited_and_not_by_the_megabyte(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        records = Audit(caplog)

        async def unknown(request: Any, caller: Caller) -> Any:
            raise errors.NotFound("find the job", f"job not found: {request.uuid}")

        async with serving({STOP: unknown}, {}) as target, channel(target) as client:
            await failure(client, STOP, pb.StopJobRequest(uuid="x" * 1_000_000))
        [fields] = records.fields
        assert fields["JOBLET_RESULT"].startswith("cannot find the job: job not found: xxx")
        assert len(fields["JOBLET_RESULT"]) <= audit.MAX_RESULT
        assert fields["job"] == "x" * 36

    run(main)


def test_no_client_hides_its_record_of_the_audit(caplog: pytest.LogCaptureFixture) -> None:
    """journalctl shows a message with an escape in it as "blob data"."""
    caplog.set_level(logging.INFO, logger="joblet.audit")
    audit.record("me\n", "[::1]:1", "StopJob", "no job \x1b[2J\n", job="\x1b-id")
    assert caplog.messages == ["me? from [::1]:1: StopJob ?-id: no job ?[2J?"]


def test_a_change_is_audited_whoever_hangs_up_and_whatever_breaks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Or a job could be started, or stopped, unseen: by a client with a deadline of nothing."""

    async def main() -> None:
        records = Audit(caplog)
        there = asyncio.Event()

        async def slow(request: Any, caller: Caller) -> Any:
            there.set()
            await asyncio.Event().wait()

        async def broken(request: Any, caller: Caller) -> Any:
            raise ZeroDivisionError("a bug")

        async with serving({STOP: slow, RUN: broken}, {}) as target, channel(target) as client:
            calling = unary(client, STOP, pb.StopJobRequest(uuid="the-job"))
            await there.wait()
            calling.cancel()
            await until(lambda: records.fields)
            await failure(client, RUN)
        first, second = records.fields
        said = [first[f"JOBLET_{name}"] for name in ("WHO", "WHAT", "RESULT")]
        assert (said, first["job"]) == (["client", "StopJob", guard.NO_ANSWER], "the-job")
        assert second["JOBLET_RESULT"] == "cannot serve RunJob: a fault of the server"

    run(main)


# -- the listener ----------------------------------------------------------------------


def test_options() -> None:
    options = dict(listener.options(config()))
    assert options["grpc.http2.min_recv_ping_interval_without_data_ms"] == 5000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.max_ping_strikes"] == 0
    assert options["grpc.max_receive_message_length"] == 134_217_728
    assert options["grpc.max_send_message_length"] == 134_217_728
    assert options["grpc.keepalive_time_ms"] == 10_000
    assert options["grpc.so_reuseport"] == 0
    # no end of a connection, and so of its streams, unless it is configured
    assert "grpc.max_connection_age_ms" not in options
    assert "grpc.max_connection_age_grace_ms" not in options
    assert options["grpc.max_connection_idle_ms"] == 300_000
    aged = dict(listener.options(config(max_age_us=60_000_000, max_age_grace_us=1_500_000)))
    assert aged["grpc.max_connection_age_ms"] == 60_000
    assert aged["grpc.max_connection_age_grace_ms"] == 1_500
    assert all(type(value) is int for value in options.values())


PING, GOAWAY = 6, 7  # types of HTTP/2 frames
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def ping(target: str, count: int) -> tuple[int, bytes]:
    """(pings that were answered, what the server said with its GOAWAY), without any call."""
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context(cadata=authority(OURS).cert)
    context.set_alpn_protocols(["h2"])
    pair = client_pair("admin", OURS)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pair.cert + pair.key)
        file.flush()
        context.load_cert_chain(file.name)
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as client,
    ):
        client.sendall(PREFACE)
        answered = 0
        reader = client.makefile("rb")
        for number in range(count):
            client.sendall(bytes((0, 0, 8, PING, 0, 0, 0, 0, 0)) + number.to_bytes(8, "big"))
            while True:
                head = reader.read(9)
                body = reader.read(int.from_bytes(head[:3], "big"))
                if head[3] == GOAWAY:
                    return answered, body[8:]
                if head[3] == PING and head[4] & 1 and body == number.to_bytes(8, "big"):
                    answered += 1
                    break
        return answered, b""


def test_pings_do_not_end_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published clients ping more often than grpc's defaults allow, also between two calls."""

    async def pinged() -> tuple[int, bytes]:
        async with serving({}, {}) as target:
            return await asyncio.to_thread(ping, target, 30)

    async def main() -> None:
        assert await pinged() == (30, b"")
        # without what our options say about pings
        other = [item for item in listener.options(config()) if "ping" not in item[0]]
        monkeypatch.setattr(listener, "options", lambda made: other)
        answered, why = await pinged()
        assert answered < 30
        assert why == b"too_many_pings"

    run(main)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken(address: str) -> None:
    async def main() -> None:
        async with serving({}, {}, address) as target:
            port = int(target.rpartition(":")[2])
            with pytest.raises(errors.Unavailable, match="the port is taken") as caught:
                listener.make(config(address, port), {}, {})
            assert str(port) in str(caught.value)
            assert "server.port" in caught.value.hint

    run(main)


def test_an_address_that_is_not_ours() -> None:
    async def main() -> None:
        with pytest.raises(errors.Unavailable, match=r"listen on 192\.0\.2\.1:"):
            listener.make(config("192.0.2.1", 50051), {}, {})

    run(main)


def test_large_answers() -> None:
    async def main() -> None:
        async def large(request: Any, caller: Caller) -> Any:
            return pb.GetJobStatusResponse(name="x" * 3_900_000)

        async with serving({STATUS: large}, {}) as target, channel(target) as client:
            assert len((await unary(client, STATUS, pb.GetJobStatusRequest())).name) == 3_900_000
            # and requests: uploads are larger than grpc's default
            await call(client, STATUS, pb.GetJobStatusRequest(uuid="x" * 5_000_000))

    run(main)


def test_runtimes_are_an_empty_list() -> None:
    async def main() -> None:
        unary_: Mapping[str, Any] = runtimes.UNARY
        async with serving(unary_, {}) as target, channel(target, "viewer") as client:
            answer = await call(client, "/joblet.RuntimeService/ListRuntimes")
            assert list(answer.runtimes) == []

    run(main)
