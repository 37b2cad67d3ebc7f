# SPDX-License-Identifier: MIT
"""One node, called over gRPC with mutual TLS. The only module of rnx that imports grpc.

    with Client(config.node("default")) as client:
        client.list_jobs()

Methods return the messages of joblet_pb and raise rnx.errors.Unreachable or ServerError. They
block; each has its deadline, but job_logs, which lasts as long as the job.
The server's certificate must be for the name that is dialled (or the node's serverName).
Importing this costs about 80 ms, which is why commands do it last.
"""

import dataclasses
import functools
import os

# The C library behind grpc reports every failed handshake on stderr; ours is the error text.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from collections.abc import Generator, Iterator
from typing import Any, NoReturn, Self, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from joblet_pb import joblet_pb2 as pb
from rnx.config import Node
from rnx.errors import BrokenOff, RnxError, ServerError, Unreachable
from rnx.selection import WHOLE, Selection

# Deadlines of the published rnx, seconds; `stop` waits out the job's grace period. MANY_S is ours:
# a server removes some hundred logs a second.
QUICK_S = 10.0
SLOW_S = 30.0
MANY_S = 600.0

# A quiet log stream stays open through middleboxes: the published SDK's options, and a server of
# ours permits them. Reconnects begin early, because a server that is upgraded is back in a second.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the time a connection attempt has
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would get the old one's back-off
    ("grpc.max_receive_message_length", 128 * 1024 * 1024),
    ("grpc.max_send_message_length", 128 * 1024 * 1024),
)

# What grpc says when there is no connection -> what it means here, and what to do.
# The texts come from gRPC's C core, from two TLS libraries and from the system, hence the variants;
# Windows says it in the user's language, and what is not known here is shown as it comes.
TROUBLE: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("is not in peer certificate", "Hostname Verification Check failed"),
        "its certificate is for another name than {host}",
        "dial a name that the certificate has, set serverName in the node's configuration, "
        "or renew the server's certificate with this name",
    ),
    (
        ("certificate verify failed", "CERTIFICATE_VERIFY_FAILED"),
        "its certificate is not signed by the node's ca, or is not valid now",
        "take the configuration that belongs to this server, and compare both clocks",
    ),
    (
        ("wrong version number", "WRONG_VERSION_NUMBER", "Cannot check peer"),
        "what answers there does not speak TLS for gRPC",
        "check the port",
    ),
    (
        ("Connection refused", "actively refused it"),
        "connection refused",
        "check the address, and that joblet.service is running there",
    ),
    (
        ("DNS resolution failed", "errors resolving"),
        "the host name is not known",
        "check the node's address",
    ),
    (
        ("empty address list", "lame client", "Failed to create security handshaker"),
        "the node's cert, key or ca cannot be used",
        "check that they are whole PEM texts, and that key and cert belong together",
    ),
    (
        ("UNKNOWN_CA", "unknown ca", "CERTIFICATE_REQUIRED", "certificate required"),
        "it does not accept the client's certificate",
        "take the configuration that belongs to this server",
    ),
    (
        (
            "Socket closed",
            "Connection reset",
            "Broken pipe",
            "Stream removed",
            "GOAWAY",
            "Cancelling all calls",
            "CANCELLED",
        ),
        "the server closed the connection",
        "it may be restarting, or not accept the client's certificate",
    ),
    (
        ("timed out", "Timeout", "timeout", "FD shutdown", "FD Shutdown", "watchdog"),
        "no answer",
        "check the address, the network and firewalls between",
    ),
    (
        ("Network is unreachable", "No route to host", "Host is down"),
        "no way to the host",
        "check the network",
    ),
)

Answer = TypeVar("Answer", bound=Message)


class Client:
    """A connection, made with the first call. Close it, or use it as a context manager."""

    def __init__(self, node: Node) -> None:
        self.node = node
        options: list[tuple[str, Any]] = list(OPTIONS)
        if node.server_name:
            options.append(("grpc.ssl_target_name_override", node.server_name))
        credentials = grpc.ssl_channel_credentials(
            root_certificates=node.ca.encode(),
            private_key=node.key.encode(),
            certificate_chain=node.cert.encode(),
        )
        self._open = functools.partial(
            grpc.secure_channel, node.address, credentials, options=options
        )
        self._channel: grpc.Channel = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def run_job(self, request: pb.RunJobRequest) -> pb.RunJobResponse:
        return self._call("JobService/RunJob", request, pb.RunJobResponse, SLOW_S, "run the job")

    def job_status(self, uuid: str) -> pb.GetJobStatusResponse:
        """`uuid` may be a prefix here and below; the server resolves it."""
        request = pb.GetJobStatusRequest(uuid=uuid)
        answer = pb.GetJobStatusResponse
        return self._call("JobService/GetJobStatus", request, answer, QUICK_S, "show the job")

    def list_jobs(self, *, deadline_s: float | None = None) -> pb.Jobs:
        """The newest jobs that fit into a message, in order of creation."""
        return self._list(pb.EmptyRequest(), deadline_s)

    def job_pages(self) -> Iterator[pb.Jobs]:
        """All jobs in order of creation, in as many messages as it takes. A server that knows no
        pages sends one."""
        page = self._list(pb.EmptyRequest(oldest_first=True))
        yield page
        while token := page.next_page_token:
            page = self._list(pb.EmptyRequest(oldest_first=True, page_token=token))
            _check_turned(token, page)
            yield page

    def newest_jobs(self, count: int) -> pb.Jobs:
        """The last `count` jobs (1 or more), in order of creation."""
        page = self._list(pb.EmptyRequest(page_size=count))
        found = list(page.jobs)
        while (token := page.next_page_token) and len(found) < count:
            left = count - len(found)
            page = self._list(pb.EmptyRequest(page_size=left, page_token=token))
            _check_turned(token, page)
            found[:0] = page.jobs
        return pb.Jobs(jobs=found[-count:])

    def _list(self, request: pb.EmptyRequest, deadline_s: float | None = None) -> pb.Jobs:
        deadline_s = deadline_s or QUICK_S
        return self._call("JobService/ListJobs", request, pb.Jobs, deadline_s, "list jobs")

    def stop_job(self, uuid: str) -> pb.StopJobResponse:
        request = pb.StopJobRequest(uuid=uuid)
        return self._call("JobService/StopJob", request, pb.StopJobResponse, SLOW_S, "stop the job")

    def update_job(self, uuid: str, **changes: Any) -> pb.UpdateJobResponse:
        """changes: fields of UpdateJobRequest."""
        request, answer = pb.UpdateJobRequest(uuid=uuid, **changes), pb.UpdateJobResponse
        return self._call("JobService/UpdateJob", request, answer, SLOW_S, "update the job")

    def delete_job(self, uuid: str) -> pb.DeleteJobResponse:
        request, answer = pb.DeleteJobRequest(uuid=uuid), pb.DeleteJobResponse
        return self._call("JobService/DeleteJob", request, answer, SLOW_S, "delete the job")

    def delete_all_jobs(self) -> pb.DeleteAllJobsResponse:
        request, answer = pb.DeleteAllJobsRequest(), pb.DeleteAllJobsResponse
        return self._call("JobService/DeleteAllJobs", request, answer, MANY_S, "delete all jobs")

    def list_runtimes(self) -> pb.ListRuntimesResponse:
        method, answer = "RuntimeService/ListRuntimes", pb.ListRuntimesResponse
        return self._call(method, pb.EmptyRequest(), answer, SLOW_S, "list runtimes")

    def system_status(self, *, deadline_s: float = QUICK_S) -> pb.SystemStatusResponse:
        method, answer = "MonitoringService/GetSystemStatus", pb.SystemStatusResponse
        return self._call(method, pb.EmptyRequest(), answer, deadline_s, "ask the server")

    def job_logs(
        self, uuid: str, selection: Selection = WHOLE
    ) -> Generator[pb.DataChunk, None, None]:
        """Chunks as they come; closing the generator ends the call. rnx.follow makes it survive a
        lost connection."""
        wanted = dataclasses.asdict(selection)  # a field that is None stays unset
        request = pb.GetJobLogsRequest(uuid=uuid, **wanted)
        method = self._channel.unary_stream(
            "/joblet.JobService/GetJobLogs",
            request_serializer=pb.GetJobLogsRequest.SerializeToString,
            response_deserializer=pb.DataChunk.FromString,
        )
        call: Any = method(request)
        try:
            yield from cast(Iterator[pb.DataChunk], call)
        except grpc.RpcError as error:
            self._fail(error, "read the log", None)
        finally:
            call.cancel()

    def _call(
        self, path: str, request: Message, answer: type[Answer], deadline_s: float, what: str
    ) -> Answer:
        method = self._channel.unary_unary(
            f"/joblet.{path}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return cast(Answer, method(request, timeout=deadline_s))
        except grpc.RpcError as error:
            self._fail(error, what, deadline_s)
        except (ValueError, DecodeError) as error:  # a request that protobuf refuses to write
            raise RnxError(f"cannot {what}: {error}") from None

    def _fail(self, error: grpc.RpcError, what: str, deadline_s: float | None) -> NoReturn:
        """Raises what the error means."""
        code, details = error.code().name, error.details() or ""
        node = f"node {self.node.name!r} at {self.node.address}"
        if code == "DEADLINE_EXCEEDED" and deadline_s is not None:
            raise Unreachable(
                f"cannot {what}: {node} did not answer within {deadline_s:g} s; "
                "it may still do what was asked"
            ) from None
        # A server of ours says "cannot …" itself; other UNAVAILABLE, and a call that someone other
        # than us cancelled, is the connection's end.
        if code in ("UNAVAILABLE", "CANCELLED") and not details.startswith("cannot "):
            reason, hint = self._trouble(details)
            self._renew()
            raise Unreachable(f"cannot reach {node}: {reason}; {hint}") from None
        if code == "ABORTED":
            raise BrokenOff(details) from None
        if code == "UNAVAILABLE":
            raise Unreachable(details) from None
        if code == "UNIMPLEMENTED" and not details.startswith("cannot "):
            details = f"cannot {what}: {node} does not serve this"
        raise ServerError(code, _sentence(details, what, code)) from None

    def _renew(self) -> None:
        """Another channel, whose first call waits for its connection.

        One that lost its connection makes the next only while a call waits on it: between calls
        that fail at once its handshakes time out, again and again.
        """
        self._channel.close()
        self._channel = self._open()

    def _trouble(self, details: str) -> tuple[str, str]:
        for needles, reason, hint in TROUBLE:
            if any(needle in details for needle in needles):
                return reason.format(host=self.node.server_name or self.node.host), hint
        last = details.rpartition("last error: ")[2] or "no reason given"
        return last, "check the address, and that joblet.service is running there"


def _check_turned(token: str, page: pb.Jobs) -> None:
    """A server that answers with the same place again would be asked for ever."""
    if page.next_page_token == token:
        raise RnxError("cannot list jobs: the server's pages do not end")


def _sentence(details: str, what: str, code: str) -> str:
    """The server's own text; a published server's is made a sentence."""
    if details.startswith("cannot "):
        return details
    return f"cannot {what}: {details or code}"
