# SPDX-License-Identifier: MIT
"""The deletion of jobs that have ended: their log, their record, in steps that a crash may part.

    1. begun       the record is marked, durably: nobody finds the job any more
    2. removed     the log has been put aside and removed, and that it was is on the disk
    3. forgotten   the record is gone; only its idempotency key stays known

A server killed before the mark has left the whole job; behind it the next one goes on at step 2,
which may be done twice. A log that cannot be removed takes the mark back: the job is there as
before, and who asked hears why. What cannot be recorded (a full disk) stays
hidden until the next start, which goes on with it.

What has begun is seen through, whether or not anybody waits for it. It works in batches, so that a
hundred thousand jobs hold up nobody: a batch is one transaction for each step and one sync.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, Final, TypeVar

from joblet.errors import JobletError, NotFound, Unavailable
from joblet.server import patience
from joblet.server.logs import LogStore
from joblet.server.records import Records

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH: Final = 100
# Logs that are removed at once: the threads for that are those that sync the logs of running jobs.
AT_ONCE: Final = 2
TRIES: Final = 4  # of a log that somebody is just opening, or that the disk refuses to remove
MAX_FAILED: Final = 100  # jobs that cannot be deleted, before the rest is not tried
CLOSE_S: Final = 3.0  # that batches under way have at a clean stop


@dataclasses.dataclass(frozen=True, slots=True)
class Deleted:
    """deleted: how many. skipped: how many had not ended. failed: those that could not be deleted.
    why: the reason of the first of them, or why the rest was not tried; None if all went well."""

    deleted: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()
    why: JobletError | None = None


class Deletion:
    """`quiet(ids)`: returns when nobody works on these jobs any more, which have ended; bounded.
    `step(name)`: called behind every step that a kill could part from the next."""

    def __init__(
        self,
        records: Records,
        logs: LogStore,
        *,
        quiet: Callable[[Collection[str]], Awaitable[None]],
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._records = records
        self._logs = logs
        self._quiet = quiet
        self._step = step
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def delete(self, job_id: str) -> None:
        """Raises NotFound, FailedPrecondition for a job that has not ended, and why its log cannot
        be removed."""
        await self._seen_through(self._delete(job_id))

    async def delete_ended(self, tell: Callable[[Sequence[str]], None]) -> Deleted:
        """Every job that has ended by the time that it is looked at, but for those that are created
        meanwhile. One that cannot be deleted does not keep the others. `tell` gets the ids of those
        that are gone, batch by batch, whether or not anybody still waits.

        Cancelled, it ends behind the batch that is under way. Raises what the records raise as long
        as nothing has been deleted.
        """
        total = Deleted()
        until = await self._records.last()
        cursor: int | None = 0
        while cursor is not None:
            try:
                batch, cursor = await self._seen_through(self._batch(cursor, until, tell))
            except JobletError as error:
                if not total.deleted:
                    raise
                return dataclasses.replace(total, why=total.why or error)
            total = Deleted(
                total.deleted + batch.deleted,
                total.skipped + batch.skipped,
                total.failed + batch.failed,
                total.why or batch.why,
            )
            if len(total.failed) >= MAX_FAILED:
                break
        return total

    async def finish(self) -> None:
        """At the start: see through what an earlier server had begun. What cannot be is logged, and
        tried again at the next start."""
        ids = await self._records.deletions()
        for begin in range(0, len(ids), BATCH):
            try:
                await self._carry_out(ids[begin : begin + BATCH], keep=False)
            except JobletError as error:  # a full disk, say: no reason not to start
                log.warning("%s", error)

    async def close(self) -> None:
        """Wait for what has begun, for a while; the rest is the next server's."""
        self._closing = True
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_S)

    async def _delete(self, job_id: str) -> None:
        await self._records.begin_deletion(job_id)
        self._step("begun")
        await self._quiet([job_id])
        failed = await self._carry_out([job_id], keep=True)
        if failed:
            raise failed[job_id]

    async def _batch(
        self, cursor: int, until: int, tell: Callable[[Sequence[str]], None]
    ) -> tuple[Deleted, int | None]:
        begun = await self._records.begin_deletions(cursor, until, limit=BATCH)
        self._step("begun")
        failed: dict[str, JobletError] = {}
        if begun.ids:
            await self._quiet(begun.ids)
            failed = await self._carry_out(begun.ids, keep=True)
        why = next(iter(failed.values()), None)
        gone = [job_id for job_id in begun.ids if job_id not in failed]
        if gone:
            tell(gone)
        return Deleted(len(gone), begun.skipped, tuple(failed), why), begun.cursor

    async def _carry_out(self, ids: Sequence[str], *, keep: bool) -> dict[str, JobletError]:
        """Steps 2 and 3, and of those whose log stays (returned, with the reason) the way back if
        it is to be kept."""
        reasons = await asyncio.gather(*(self._remove_log(job_id) for job_id in ids))
        failed = {job_id: why for job_id, why in zip(ids, reasons, strict=True) if why is not None}
        gone = [job_id for job_id in ids if job_id not in failed]
        self._step("removed")
        if gone:
            try:
                await self._logs.sync_removed()
            except JobletError as error:  # the names may come back with the machine: not yet gone
                failed |= dict.fromkeys(gone, error)
                gone = []
        self._step("synced")
        for job_id, why in failed.items():
            log.warning("cannot delete job %s: %s", job_id, why, extra={"job": job_id})
        try:
            if gone:
                await self._records.forget(gone)
        finally:
            self._step("forgotten")
            if failed and keep:
                await self._records.keep(failed)
            self._step("kept")
        return failed

    async def _remove_log(self, job_id: str) -> JobletError | None:
        """Why it is still there. Nothing there is as good as removed, also by a try before this one
        that failed behind the log's having been put aside: the store removes that at its start."""
        pauses = patience.pauses()
        why: JobletError | None = None
        for _ in range(TRIES):
            try:
                async with self._places:
                    await self._logs.remove(job_id)
            except NotFound:
                return None
            except JobletError as error:
                why = error
                if isinstance(error, Unavailable):  # the store is closed
                    break
                await asyncio.sleep(next(pauses))
            else:
                return None
        return why

    async def _seen_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Await it; cancelled, leave it to finish by itself."""
        if self._closing:
            work.close()
            raise Unavailable("delete jobs", "the server is stopping", hint="try again")
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, in case its caller is gone
