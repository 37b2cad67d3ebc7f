# SPDX-License-Identifier: MIT
"""Keeps the logs in order over time: what has had its time goes, what stays is compressed.

A sweep looks at all logs, at the start and every so often, and then in this order:

    age            a log that nobody adds to any more, older than `retention_us`, goes as a whole
    bytes in all   beyond `max_bytes` the oldest of these logs go; those that are written stay
    bytes per job  beyond `max_bytes_per_job` a log's oldest segments go

A log that is written is looked at whenever it has begun a segment, too: a busy job would be far
beyond its bound until the next sweep. A whole log goes with its job's record, through `expire`;
of segments that went the log itself keeps a record (expired), and readers see a gap.

Segments to which nothing is added any more are compressed one at a time, by a thread that uses a
part of a processor, and none while output comes fast.

Must not import anything of joblet but joblet.errors and its neighbours.
"""

import asyncio
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from joblet.errors import FailedPrecondition, JobletError, NotFound
from joblet.server.logs.core import LogCore
from joblet.server.logs.faults import fault
from joblet.server.logs.joblog import JobLog
from joblet.server.logs.sealing import Damaged
from joblet.server.logs.survey import Facts, survey

DAY_US: Final = 86_400_000_000

# Of its time a thread of the keeper uses so much.
_SHARE: Final = 0.2
# Output comes fast if more than this is staged, or read in a second.
_QUIET_STAGED_BYTES: Final = 1 << 20
_QUIET_BYTES_S: Final = 8e6
_RATE_S: Final = 0.5  # how long a rate is measured, and how long it waits for quiet at once
_LEAST_BYTES: Final = 4096  # of a segment: a smaller one takes one page in any form
_MAX_FAILED: Final = 100  # logs that cannot be removed, before a sweep leaves the rest
_MAX_SEALING: Final = 10_000  # logs to be compressed that a sweep remembers
_MAX_REMEMBERED: Final = 10_000  # segments that are damaged, logs that cannot go
_ASK_AGAIN_US: Final = 6 * 3_600_000_000
_NEVER_US: Final = 1 << 62
_SOONEST_S: Final = 10.0  # between two sweeps that a busy job has asked for

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and how. 0: no limit."""

    retention_us: int = 7 * DAY_US
    max_bytes_per_job: int = 0
    max_bytes: int = 0
    compress: bool = True
    seal_after_us: int = 5 * 60_000_000  # of a log that has ended, since its last record
    sweep_s: float = 300.0


@dataclasses.dataclass(slots=True)
class Swept:
    """What was removed since the last sweep, of how many jobs; bytes of the disk for whole logs, of
    output where its oldest part went."""

    logs: int = 0
    log_bytes: int = 0
    shortened: int = 0
    shortened_bytes: int = 0
    failed: int = 0


class Store(Protocol):
    """What the keeper asks of the log store."""

    @property
    def staged_bytes(self) -> int: ...

    def bytes_moved(self) -> int: ...

    def held(self, job_id: str) -> JobLog | None: ...

    async def list(self) -> list[str]: ...

    async def open(self, job_id: str, *, create: bool) -> JobLog: ...


class _Stopped(Exception):
    """The keeper is stopping."""


class Keeper:
    """On the store's event loop, its work in two threads. Made by LogStore.keeper.

    `expire(job_id)`: remove a job, its record and its log; raises NotFound if there is no record,
    FailedPrecondition if it has not ended.
    `on_swept`: told what a sweep has removed, if it was anything.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        keeping: Keeping,
        *,
        rotation_bytes: int,
        clock_us: Callable[[], int],
        expire: Callable[[str], Awaitable[None]],
        on_swept: Callable[[Swept], None],
        step: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._directory = directory
        self._keeping = keeping
        self._rotation_bytes = rotation_bytes
        self._clock_us = clock_us
        self._expire_job = expire
        self._on_swept = on_swept
        self._step = step
        self._monotonic = monotonic
        self._pool = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="log-keeper")
        self._stopping = threading.Event()
        self._grown: dict[LogCore, None] = {}  # have begun a segment
        self._bytes = 0  # of all logs at the last sweep
        self._begun_bytes = 0  # and what was begun since
        self._counting = threading.Lock()
        self._shortened: dict[str, int] = {}  # bytes that went of jobs since the last sweep
        self._early = asyncio.Event()  # a sweep is wanted before its time
        self._news = asyncio.Event()  # something is in `_grown`
        self._to_seal: Sequence[str] = ()
        self._seal = asyncio.Event()
        self._damaged: set[tuple[str, int, int]] = set()
        self._not_before: dict[str, int] = {}  # when to ask again for the removal of a job
        self._told = ""
        self._measured = monotonic(), 0, 0.0  # when, bytes moved until then, bytes a second

    async def run(self) -> None:
        """Keep the logs until cancelled. Its threads have ended when it returns."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sweep_on())
                group.create_task(self._shorten_on())
                if self._keeping.compress:
                    group.create_task(self._seal_on())
        finally:
            self._stopping.set()
            await asyncio.to_thread(self._pool.shutdown)
            self._report(Swept())

    def begun(self, core: LogCore) -> None:
        """A log has begun a segment. On the event loop."""
        keeping = self._keeping
        if keeping.max_bytes_per_job:
            self._grown[core] = None
            self._news.set()
        self._begun_bytes += self._rotation_bytes
        surplus = self._bytes + self._begun_bytes - keeping.max_bytes
        # not for every segment, if all that is too much is written by jobs that run
        if keeping.max_bytes and surplus > 0 and self._begun_bytes > keeping.max_bytes // 32:
            self._early.set()

    async def sweep(self) -> Swept:
        """One sweep. Raises JobletError if the log directory cannot be looked at."""
        swept = Swept()
        self._begun_bytes = 0
        left = await self._survey()
        left.sort(key=lambda facts: facts.time_us)
        left = await self._remove_old(left, swept)
        left = await self._remove_surplus(left, swept)
        limit = self._keeping.max_bytes_per_job
        for facts in left:
            if limit and facts.bytes > limit:
                await self._shorten(facts.job_id, limit)
        self._bytes = sum(facts.bytes for facts in left)
        wanted = [facts.job_id for facts in left if self._worth_sealing(facts)]
        self._to_seal = wanted[:_MAX_SEALING]
        if wanted:
            self._seal.set()
        self._report(swept)
        return swept

    def _report(self, swept: Swept) -> None:
        """Tell what was removed since the last time."""
        with self._counting:
            shortened, self._shortened = self._shortened, {}
        swept.shortened = len(shortened)
        swept.shortened_bytes = sum(shortened.values())
        if swept != Swept():
            self._on_swept(swept)

    async def _sweep_on(self) -> None:
        while True:
            self._early.clear()
            try:
                await self.sweep()
            except JobletError as error:
                log.error("%s", error.text)
            await asyncio.sleep(min(_SOONEST_S, self._keeping.sweep_s))
            try:
                async with asyncio.timeout(max(0.0, self._keeping.sweep_s - _SOONEST_S)):
                    await self._early.wait()
            except TimeoutError:
                continue

    async def _survey(self) -> list[Facts]:
        job_ids = await self._store.list()

        def look() -> list[Facts]:
            pace = self._pace()
            found = survey(self._directory, job_ids, least_bytes=_LEAST_BYTES, rest=pace)
            return list(found)

        try:
            return await self._in_thread(look)
        except OSError as exc:
            raise fault(f"look at the logs in {self._directory}", exc) from exc

    async def _remove_old(self, found: Sequence[Facts], swept: Swept) -> list[Facts]:
        """Those that are left."""
        if not self._keeping.retention_us:
            return list(found)
        oldest = self._clock_us() - self._keeping.retention_us
        return [
            facts
            for facts in found
            if facts.time_us >= oldest or not await self._remove(facts, swept)
        ]

    async def _remove_surplus(self, found: Sequence[Facts], swept: Swept) -> list[Facts]:
        """Those that are left."""
        limit = self._keeping.max_bytes
        surplus = sum(facts.bytes for facts in found) - limit if limit else 0
        left = []
        for facts in found:
            if surplus > 0 and await self._remove(facts, swept):
                surplus -= facts.bytes
            else:
                left.append(facts)
        return left

    async def _remove(self, facts: Facts, swept: Swept) -> bool:
        """Remove a log and its job's record, unless somebody still adds to it."""
        held = self._store.held(facts.job_id)
        if (held is not None and not held.ended) or swept.failed >= _MAX_FAILED:
            return False
        if self._clock_us() < self._not_before.get(facts.job_id, 0):
            return False
        try:
            await self._expire_job(facts.job_id)
        except (FailedPrecondition, NotFound) as error:
            # A job can close its output long before it ends. A log without a record stays: whoever
            # put back a database may want it. Each time that one is asked for is in the audit.
            rest_us = _ASK_AGAIN_US if isinstance(error, FailedPrecondition) else _NEVER_US
            if len(self._not_before) < _MAX_REMEMBERED:
                self._not_before[facts.job_id] = self._clock_us() + rest_us
            return False
        except JobletError as error:
            swept.failed += 1
            self._tell(error)
            return False
        swept.logs += 1
        swept.log_bytes += facts.bytes
        return True

    async def _shorten_on(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            grown, self._grown = list(self._grown), {}
            for core in grown:
                await self._shorten_core(core, self._keeping.max_bytes_per_job)

    async def _shorten(self, job_id: str, max_bytes: int) -> None:
        try:
            job_log = await self._store.open(job_id, create=False)
        except JobletError as error:
            log.debug("%s", error)
        else:
            await self._shorten_core(job_log.core, max_bytes)

    async def _shorten_core(self, core: LogCore, max_bytes: int) -> None:
        if core.files.dropped:
            return
        try:
            await self._in_thread(self._expire, core, max_bytes)
        except OSError as exc:
            if not core.files.dropped:
                self._tell(fault(f"remove old output of job {core.job_id}", exc))

    def _expire(self, core: LogCore, max_bytes: int) -> None:
        """In a thread, its counting as well: what is removed is told, whoever stops waiting."""
        removed = core.expire(max_bytes)
        if removed:
            with self._counting:
                before = self._shortened.get(core.job_id, 0)
                self._shortened[core.job_id] = before + removed

    # -- compression -----------------------------------------------------------------------------

    def _worth_sealing(self, facts: Facts) -> bool:
        held = self._store.held(facts.job_id)
        if held is not None and not held.ended:
            return facts.plain > 1
        return facts.plain > 0 and facts.time_us < self._clock_us() - self._keeping.seal_after_us

    async def _seal_on(self) -> None:
        while True:
            await self._seal.wait()
            self._seal.clear()
            await self.seal()

    async def seal(self) -> None:
        """Compress what the last sweep has found."""
        job_ids, self._to_seal = self._to_seal, ()
        for job_id in job_ids:
            try:
                job_log = await self._store.open(job_id, create=False)
            except JobletError as error:
                log.debug("%s", error)
                continue
            core = job_log.core
            try:
                await self._in_thread(self._seal_core, core)
            except OSError as exc:
                if not core.files.dropped:
                    self._tell(fault(f"compress the output of job {job_id}", exc))
                    return  # the disk is full, or broken: the next sweep tries again

    def _seal_core(self, core: LogCore) -> None:
        # first: nothing is added behind the end, once it is stored
        ended = core.ended and core.stored_records == core.state.records
        for stream, segments in core.segments.items():
            stored = segments.stored()
            for segment in stored if ended else stored[:-1]:
                key = (core.job_id, stream, segment.start)
                small = segment.size < _LEAST_BYTES
                if segment.sealed or small or key in self._damaged or core.files.dropped:
                    continue
                try:
                    segments.seal(segment.start, pause=self._pace(quietly=True), step=self._step)
                    core.publish(stream, segment.start)
                except FileNotFoundError:
                    continue  # removed meanwhile
                except Damaged as why:
                    if len(self._damaged) < _MAX_REMEMBERED:
                        self._damaged.add(key)
                        what = "output of job %s is damaged and is not compressed: %s, %s"
                        name = segments.name(segment.start)
                        log.error(what, core.job_id, name, why, extra={"job": core.job_id})

    # -- threads ---------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[..., _Result], *args: object) -> _Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, work, *args)
        except _Stopped:
            raise asyncio.CancelledError from None

    def _pace(self, *, quietly: bool = False) -> Callable[[], None]:
        """To be called between pieces of work in a thread: rests in proportion to what was done,
        and as long as it is not quiet. Raises _Stopped."""
        since = self._monotonic()

        def rest() -> None:
            nonlocal since
            pause_s = (self._monotonic() - since) * (1 / _SHARE - 1)
            while True:
                if self._stopping.wait(pause_s):
                    raise _Stopped
                if not quietly or self._quiet():
                    break
                pause_s = _RATE_S
            since = self._monotonic()

        return rest

    def _quiet(self) -> bool:
        now, moved = self._monotonic(), self._store.bytes_moved()
        then, before, rate = self._measured
        if now - then >= _RATE_S:
            rate = (moved - before) / (now - then)
            self._measured = now, moved, rate
        return self._store.staged_bytes < _QUIET_STAGED_BYTES and rate < _QUIET_BYTES_S

    def _tell(self, error: JobletError) -> None:
        """Once, until something else is wrong."""
        if error.why != self._told:
            self._told = error.why
            log.error("%s", error.text)
        else:
            log.debug("%s", error)
