# SPDX-License-Identifier: MIT
"""A real gRPC server with mutual TLS in this process, whose answers a test writes.

It can be stopped and started again on its port, as a server that is upgraded.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, Self

import grpc

from joblet_pb import joblet_pb2 as pb
from joblet_pb import joblet_pb2_grpc as services
from tests.unit.rnx.certs import Authority, Pair

JOB = "0f5e7a52-9b57-4d07-8d5e-6a1f3c2b4d10"

Play = Callable[[pb.GetJobLogsRequest, grpc.ServicerContext], Iterator[pb.DataChunk]]


class Script:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.statuses: list[pb.GetJobStatusResponse] = []  # one an answer, the last one for ever
        self.jobs: list[pb.Job] = []
        self.runtimes: list[pb.RuntimeInfo] = []
        self.plays: list[Play] = []  # one a call of GetJobLogs, the last one for ever
        self.run = pb.RunJobResponse(
            job_uuid=JOB, status="RUNNING", command="sh", start_time="2025-11-24T15:04:05Z"
        )
        self.stop = pb.StopJobResponse(
            uuid=JOB, status="STOPPED", end_time="2025-11-24T15:04:09Z", exit_code=-1
        )
        self.update = pb.UpdateJobResponse(
            uuid=JOB, effective=pb.EffectiveLimits(max_cpu=200), timeout="1h30m"
        )
        self.page = 0  # jobs in a page; 0: all in one message
        self.delete = pb.DeleteJobResponse(
            uuid=JOB, success=True, message="Job deleted successfully"
        )
        self.delete_all = pb.DeleteAllJobsResponse(
            success=True,
            message="Successfully deleted 2 jobs, skipped 1 running/scheduled jobs",
            deleted_count=2,
            skipped_count=1,
        )
        self.version = "1.2.3"
        self.system = pb.SystemStatusResponse()  # beside the version
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.before: Callable[[], None] = lambda: None  # runs before each unary answer

    def of(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]


class _Jobs(services.JobServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script
        self._lock = threading.Lock()

    def _begin(self, request: Any, context: grpc.ServicerContext) -> None:
        self._script.requests.append(request)
        self._script.before()
        if self._script.refuse is not None:
            context.abort(*self._script.refuse)

    def RunJob(self, request: pb.RunJobRequest, context: Any) -> pb.RunJobResponse:
        self._begin(request, context)
        return self._script.run

    def ListJobs(self, request: pb.EmptyRequest, context: Any) -> pb.Jobs:
        self._begin(request, context)
        jobs, most = self._script.jobs, self._script.page
        if not most:  # a server that knows no pages
            return pb.Jobs(jobs=jobs)
        most = min(most, request.page_size or most)
        at = int(request.page_token or 0)
        following = str(at + most) if at + most < len(jobs) else ""
        if request.oldest_first:
            return pb.Jobs(jobs=jobs[at : at + most], next_page_token=following)
        end = len(jobs) - at
        return pb.Jobs(jobs=jobs[max(0, end - most) : end], next_page_token=following)

    def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> pb.DeleteJobResponse:
        self._begin(request, context)
        return self._script.delete

    def DeleteAllJobs(
        self, request: pb.DeleteAllJobsRequest, context: Any
    ) -> pb.DeleteAllJobsResponse:
        self._begin(request, context)
        return self._script.delete_all

    def UpdateJob(self, request: pb.UpdateJobRequest, context: Any) -> pb.UpdateJobResponse:
        self._begin(request, context)
        return self._script.update

    def StopJob(self, request: pb.StopJobRequest, context: Any) -> pb.StopJobResponse:
        self._begin(request, context)
        return self._script.stop

    def GetJobStatus(
        self, request: pb.GetJobStatusRequest, context: Any
    ) -> pb.GetJobStatusResponse:
        self._begin(request, context)
        status: pb.GetJobStatusResponse = self._take(self._script.statuses)
        return status

    def GetJobLogs(self, request: pb.GetJobLogsRequest, context: Any) -> Iterator[pb.DataChunk]:
        self._script.requests.append(request)
        yield from self._take(self._script.plays)(request, context)

    def _take(self, answers: list[Any]) -> Any:
        with self._lock:
            return answers.pop(0) if len(answers) > 1 else answers[0]


class _Runtimes(services.RuntimeServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def ListRuntimes(self, request: pb.EmptyRequest, context: Any) -> pb.ListRuntimesResponse:
        return pb.ListRuntimesResponse(runtimes=self._script.runtimes)


class _Monitoring(services.MonitoringServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def GetSystemStatus(self, request: pb.EmptyRequest, context: Any) -> pb.SystemStatusResponse:
        if self._script.refuse is not None:
            context.abort(*self._script.refuse)
        version = pb.ServerVersionInfo(version=self._script.version)
        answer = pb.SystemStatusResponse(available=True, server_version=version)
        answer.MergeFrom(self._script.system)
        return answer


class Server:
    """Listens on 127.0.0.1 while the context lasts; `port` stays the same over restarts."""

    def __init__(self, script: Script, authority: Authority, pair: Pair) -> None:
        self.script = script
        self.port = 0
        self._credentials = grpc.ssl_server_credentials(
            [(pair.key.encode(), pair.cert.encode())], authority.cert.encode(), True
        )
        self._server: grpc.Server | None = None

    def start(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(8))
        services.add_JobServiceServicer_to_server(_Jobs(self.script), server)
        services.add_RuntimeServiceServicer_to_server(_Runtimes(self.script), server)
        services.add_MonitoringServiceServicer_to_server(_Monitoring(self.script), server)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", self._credentials)
        server.start()
        self._server = server

    def stop(self) -> None:
        """Every connection breaks, as by kill -9."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def plain(data: bytes, size: int = 7) -> Play:
    """The log of a server of ours: from the offset that was asked for, and an explicit end."""

    def play(
        request: pb.GetJobLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DataChunk]:
        for begin in range(request.from_offset, len(data), size):
            piece = data[begin : begin + size]
            yield pb.DataChunk(payload=piece, offset_end=begin + len(piece), stream=1)
        yield pb.DataChunk(offset_end=len(data), end=True)

    return play


def broken_at(play: Play, count: int) -> Play:
    """The first `count` chunks, then the connection is gone."""

    def broken(
        request: pb.GetJobLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DataChunk]:
        for _, chunk in zip(range(count), play(request, context), strict=False):
            yield chunk
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return broken
