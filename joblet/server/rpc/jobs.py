# SPDX-License-Identifier: MIT
"""JobService: what of it is served. Thin: proto in, the supervisor's answer out."""

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final

from joblet.errors import InvalidArgument
from joblet.model import JOURNALD, Job
from joblet.server import audit
from joblet.server.journal_log import JournalLogs
from joblet.server.logs import LogMetrics
from joblet.server.rpc import convert
from joblet.server.rpc.ahead import one_ahead
from joblet.server.rpc.guard import Caller, Stream, Unary
from joblet.server.rpc.listing import Listing
from joblet.server.supervisor import Supervisor
from joblet_pb import joblet_pb2 as pb

MAX_KEY: Final = 128  # characters of an idempotency key
DELETED: Final = "Job deleted successfully"  # as published clients know it
PATH: Final = "/joblet.JobService/"


class JobService:
    def __init__(
        self,
        supervisor: Supervisor,
        journal: JournalLogs,
        *,
        node_id: str,
        chunk_bytes: int,
        metrics: LogMetrics,
    ) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._metrics = metrics
        self._node_id = node_id
        self._chunk_bytes = chunk_bytes
        self._listing = Listing(supervisor, node_id=node_id)

    @property
    def unary(self) -> Mapping[str, Unary]:
        return {
            f"{PATH}RunJob": self.run,
            f"{PATH}GetJobStatus": self.status,
            f"{PATH}ListJobs": self.list_jobs,
            f"{PATH}UpdateJob": self.update,
            f"{PATH}StopJob": self.stop,
            f"{PATH}DeleteJob": self.delete,
            f"{PATH}DeleteAllJobs": self.delete_all,
        }

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {f"{PATH}GetJobLogs": self.logs}

    async def run(self, request: pb.RunJobRequest, caller: Caller) -> pb.RunJobResponse:
        key = request.idempotency_key
        if len(key) > MAX_KEY:
            raise InvalidArgument(
                "run the job", f"idempotency_key is longer than {MAX_KEY} characters"
            )
        job = await self._supervisor.run(convert.spec(request), by=caller.name, key=key)
        return convert.run_response(job)

    async def status(
        self, request: pb.GetJobStatusRequest, caller: Caller
    ) -> pb.GetJobStatusResponse:
        job = await self._supervisor.status(request.uuid)
        return convert.job_status(job, self._node_id, self._supervisor.output_trouble(job.id))

    async def update(self, request: pb.UpdateJobRequest, caller: Caller) -> pb.UpdateJobResponse:
        job = await self._supervisor.change(request.uuid, convert.change(request))
        return convert.update_response(job)

    async def list_jobs(self, request: pb.EmptyRequest, caller: Caller) -> bytes:
        return await self._listing.page(request)

    async def stop(self, request: pb.StopJobRequest, caller: Caller) -> pb.StopJobResponse:
        return convert.stop_response(await self._supervisor.stop(request.uuid, by=caller.name))

    async def delete(self, request: pb.DeleteJobRequest, caller: Caller) -> pb.DeleteJobResponse:
        job = await self._supervisor.delete(request.uuid)
        return pb.DeleteJobResponse(uuid=job.id, success=True, message=DELETED)

    async def delete_all(
        self, request: pb.DeleteAllJobsRequest, caller: Caller
    ) -> pb.DeleteAllJobsResponse:
        def tell(ids: Sequence[str]) -> None:
            audit.record(caller.name, caller.address, "DeleteAllJobs", "ok", jobs=ids)

        return convert.delete_all_response(await self._supervisor.delete_ended(tell))

    async def logs(
        self, request: pb.GetJobLogsRequest, caller: Caller
    ) -> AsyncGenerator[pb.DataChunk | bytes, None]:
        """History and live in one; ends behind the explicit end of the log, when the record is
        final."""
        job = await self._supervisor.get(request.uuid)
        if job.spec.log_driver == JOURNALD:
            async with contextlib.aclosing(self._journal_logs(request, job)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        if request.from_cursor:
            raise InvalidArgument(
                f"read the log of job {job.id} from a cursor",
                "it is in the server's store, where positions are offsets",
                hint="use --from-offset",
            )
        log = await self._supervisor.open_log(job.id)
        wanted = convert.selection(request)
        selected = log.select(wanted, max_bytes=self._chunk_bytes)
        with self._metrics.following(lambda: log.size - selected.offset):
            begin = await selected.open()
            if wanted.narrow:
                yield pb.DataChunk(offset_end=begin, begin=True)
            async with contextlib.aclosing(one_ahead(selected.read)) as pieces:
                async for piece in pieces:
                    yield convert.chunk(piece)
        # (one that was not to follow may have stopped before the end that has come meanwhile)
        if log.ended and selected.offset >= log.size:
            # who asks for the status now must hear how it ended
            await self._supervisor.wait_ended(job.id)
            yield pb.DataChunk(offset_end=selected.offset, end=True)
        elif selected.complete:
            yield pb.DataChunk(offset_end=selected.offset, end=True)

    async def _journal_logs(
        self, request: pb.GetJobLogsRequest, job: Job
    ) -> AsyncGenerator[pb.DataChunk, None]:
        """The same of a job whose log driver is journald."""
        if request.from_offset:
            raise InvalidArgument(
                f"read the log of job {job.id} from an offset",
                "it is in the journal, where positions are cursors",
                hint="use --from-cursor",
            )

        async def ended() -> Job:
            await self._supervisor.wait_ended(job.id)
            return await self._supervisor.get(job.id)

        wanted = convert.journal_selection(request)
        if convert.selection(request).narrow and wanted.begins:
            yield pb.DataChunk(begin=True, cursor=wanted.cursor)
        items = self._journal.read(job, wanted, None if request.no_follow else ended)
        async with contextlib.aclosing(items):
            async for item in items:
                yield convert.journal_chunk(item, arrivals=request.arrivals)
