# SPDX-License-Identifier: MIT
"""All logs of a server: opens them, owns the threads that fill them, closes everything.

Must not import anything of joblet but joblet.errors and its neighbours.
"""

import asyncio
import dataclasses
import functools
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from joblet.errors import (
    FailedPrecondition,
    JobletError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from joblet.server.logs.core import LogCore
from joblet.server.logs.directory import LogDirectory
from joblet.server.logs.faults import fault
from joblet.server.logs.files import FileCache, LogFiles
from joblet.server.logs.format import STREAMS
from joblet.server.logs.joblog import JobLog, Shared
from joblet.server.logs.keeper import Keeper, Keeping, Swept
from joblet.server.logs.overflow import Overflow, spare_or_none
from joblet.server.logs.reader import ReaderStatistics, Settings
from joblet.server.logs.recovery import recover
from joblet.server.logs.segments import DEFAULT_ROTATION_BYTES, Segments
from joblet.server.logs.stage import Bounds, Room, StagedLog
from joblet.server.logs.waker import Waker
from joblet.server.logs.workers import Workers
from joblet.server.logs.writer import Batching

_Result = TypeVar("_Result")


def _ignore(*_: object) -> None:
    """The default of every callback."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoreStatistics:
    """The store at one moment."""

    logs_open: int
    staged_chunks: int
    pauses: int  # how often the disk refused a log
    readers: tuple[ReaderStatistics, ...]


class LogStore:
    """The logs beneath `directory`. Everything but the constructor runs on one event loop.

    `stage`: a directory on a tmpfs that outlives this process, for what is on its way to the disk.
    `strategy`, `on_full`, `spill`: what is done when that is nearly full, see overflow, for jobs
    that have no wish of their own.
    `clock_us`: wall clock in microseconds since the epoch, called from any thread.
    `boot_id`: identifies this boot of the machine; the kernel's by default.
    `sync_s`: what is stored is durable at most so much later.
    `max_idle_logs`: how many logs that nobody reads or writes keep their (three) files open.
    `on_trouble(job_id, error)`: reading a job rests because of `error`, None: it goes on again.
    `on_death(error)`: a reader thread is gone by a bug; its jobs wait for another server.
    `on_overflow(what, begun)`: see overflow.Overflow; `on_wrote(chunks, bytes, us)`: writer.Writer.
    `spare()`: how many bytes more the stage could hold, by default what its filesystem has left.
    `disk_is_slow()`: whether packing is worth its CPU time, by default what Slowness sees.
    `step(name)`: called between every two steps that a kill could part; from any thread.
    """

    def __init__(
        self,
        directory: str | Path,
        stage: str | Path,
        *,
        clock_us: Callable[[], int],
        readers: int = 2,
        writers: int = 1,
        io_threads: int = 4,
        max_idle_logs: int = 64,
        settings: Settings | None = None,
        bounds: Bounds | None = None,
        batching: Batching | None = None,
        strategy: str = "compress",
        on_full: str = "block",
        spill: str | Path | None = None,
        spare: Callable[[], int] | None = None,
        disk_is_slow: Callable[[], bool] | None = None,
        rotation_bytes: int = DEFAULT_ROTATION_BYTES,
        sync_s: float = 1.0,
        boot_id: str | None = None,
        on_trouble: Callable[[str, JobletError | None], None] = _ignore,
        on_death: Callable[[JobletError], None] = _ignore,
        on_overflow: Callable[[str, bool], None] = _ignore,
        on_wrote: Callable[[int, int, float], None] = _ignore,
        step: Callable[[str], None] = _ignore,
    ) -> None:
        spill = None if spill is None else Path(spill)
        self._directory = LogDirectory(Path(directory), Path(stage), spill, boot_id)
        self._clock_us = clock_us
        self._io_threads = io_threads
        self._room = Room(bounds or Bounds())
        self._overflow = Overflow(
            self._room,
            spare=spare or functools.partial(spare_or_none, Path(stage)),
            strategy=strategy,
            on_full=on_full,
            spill=spill,
            on_episode=self._tell_overflow,
        )
        self._dirty: set[LogCore] = set()  # keeps a log until what was entered is synced
        self._workers = Workers(
            self._overflow,
            self._directory.path,
            readers=readers,
            writers=writers,
            settings=settings or Settings(),
            batching=batching or Batching(),
            sync_s=sync_s,
            dirty=lambda: list(self._dirty),
            disk_is_slow=disk_is_slow,
            on_wrote=on_wrote,
            step=step,
        )
        self._on_overflow = on_overflow
        self._rotation_bytes = rotation_bytes
        self._on_trouble = on_trouble
        self._on_death = on_death
        self._step = step
        self._cache = FileCache(max_idle_logs)
        self._logs: weakref.WeakValueDictionary[str, JobLog] = weakref.WeakValueDictionary()
        self._removing: set[str] = set()
        self._opening: dict[str, asyncio.Future[JobLog]] = {}
        self._keeper: Keeper | None = None
        self._shared: Shared | None = None
        self._waker: Waker | None = None

    async def start(self) -> None:
        """Take the directory and start the readers.

        Raises FailedPrecondition if another process uses the directory or its filesystem cannot
        splice, Internal or ResourceExhausted if the disk refuses.
        """
        if self._shared is not None:
            raise FailedPrecondition("start the log store", "it is running")
        await asyncio.to_thread(self._directory.take)
        self._waker = Waker(asyncio.get_running_loop())
        self._shared = Shared(self._workers.pick_reader, self._io_threads)
        try:
            self._workers.start(
                on_trouble=functools.partial(self._waker.call, self._tell_trouble),
                on_death=functools.partial(self._waker.call, self._on_death),
            )
        except (OSError, RuntimeError) as exc:
            await self.stop()
            raise ResourceExhausted("start the threads that keep output", str(exc)) from exc

    async def stop(self) -> None:
        """Stop reading, close the pipes unread and without ends, sync, let the directory go.

        Followers and whoever waits get Unavailable. Raises Internal or ResourceExhausted if the
        disk refuses to sync; everything is closed then, too. Cancelled, it leaves threads that may
        still write: the directory is nobody else's as long as this process lives.
        """
        shared, self._shared = self._shared, None
        if shared is None:
            return
        stopping = Unavailable(
            "use the output of a job",
            "the server is stopping",
            hint="try again; following resumes at the last offset",
        )
        for log in list(self._logs.values()):
            log.shut(stopping)
        over = False  # no thread of ours writes any more
        try:
            await self._workers.stop()
            await shared.close()
            await asyncio.to_thread(self._sync_all)
            over = True
        except JobletError:  # the disk refuses, and that was the last thing to do
            over = True
            raise
        finally:
            self._workers.forget()
            self._overflow.logs.clear()
            self._dirty.clear()
            self._cache.close()
            if over:
                self._directory.release()

    async def open(
        self, job_id: str, *, from_earlier_boot: bool = False, create: bool = True
    ) -> JobLog:
        """The log of a job, made if it is not there, repaired if it needs it.

        `create=False`: raise NotFound, and make nothing, if it is not there.

        `from_earlier_boot`: the job started before the machine last booted; if nothing is left of
        its log, that is a loss and not a beginning, and is entered as one.
        The same object for everyone as long as anyone uses it. Raises InvalidArgument for an id
        that cannot name a directory, FailedPrecondition for a log of a newer version or one that
        is being removed, ResourceExhausted or Internal if the disk refuses.
        """
        shared = self._running()
        self._directory.log_path(job_id)
        if (log := self._there(job_id)) is not None:
            return log
        opening = self._opening.get(job_id)
        if opening is not None:
            try:
                return await asyncio.shield(opening)
            except NotFound:  # as it may be for who opens it only if it is there
                if not create:
                    raise
            return await self.open(job_id, from_earlier_boot=from_earlier_boot)
        # what ends a finished job's log may be all that was left of it
        earlier = from_earlier_boot or not create
        opening = asyncio.ensure_future(
            shared.run(self._open(shared, job_id, from_earlier_boot=earlier, create=create))
        )
        self._opening[job_id] = opening
        opening.add_done_callback(functools.partial(self._opened, job_id))
        return await asyncio.shield(opening)

    def _there(self, job_id: str) -> JobLog | None:
        """The log if it is open. Raises FailedPrecondition."""
        if job_id in self._removing:
            raise FailedPrecondition(f"open the log of job {job_id}", "it is being removed")
        return self._logs.get(job_id)

    async def settle(self) -> None:
        """Store what an earlier server left in the stage, of logs that nobody has opened since.

        What it cannot is told to `on_trouble`, and left there.
        """
        for job_id in await self._in_pool(self._directory.list_staged):
            if job_id in self._logs:
                continue
            try:
                await self.open(job_id, create=False)
            except JobletError as error:
                self._on_trouble(job_id, error)

    async def exists(self, job_id: str) -> bool:
        """Whether there is a log of this job."""
        return await self._in_pool(self._directory.holds, job_id)

    async def list(self) -> list[str]:
        """The ids of the jobs that have a log, sorted."""
        return await self._in_pool(self._directory.list)

    async def remove(self, job_id: str) -> None:
        """Remove a log and everything in it; who follows it gets NotFound.

        Raises NotFound, and FailedPrecondition while a pipe of the job is attached.
        """
        shared = self._running()
        path = self._directory.log_path(job_id)
        what = f"remove the log of job {job_id}"
        if job_id in self._opening or job_id in self._removing:
            raise FailedPrecondition(what, "it is being opened or removed", hint="try again")
        log = self._logs.get(job_id)
        if log is not None and log.attached:
            raise FailedPrecondition(what, "its output is still being read")
        self._removing.add(job_id)
        try:
            if log is not None:
                del self._logs[job_id]
                log.core.files.dropped = log.core.staged.files.dropped = True
                log.shut(NotFound(f"use the log of job {job_id}", "it was removed"))
                await log.quiet()
                await shared.run(self._in_pool(log.core.abandon))
                self._dirty.discard(log.core)
                self._overflow.logs.discard(log.core)
            await shared.run(self._in_pool(self._directory.remove, job_id))
        except FileNotFoundError as exc:
            raise NotFound(what, "there is none") from exc
        except OSError as exc:
            raise fault(what, exc) from exc
        finally:
            self._cache.drop(path)
            self._cache.drop(self._directory.stage_path(job_id))
            self._removing.discard(job_id)

    async def sync_removed(self) -> None:
        """Make durable that the logs removed so far are gone. Raises as `remove` for the disk."""
        try:
            await self._in_pool(self._directory.sync)
        except OSError as exc:
            raise fault("remove logs for good", exc) from exc

    def held(self, job_id: str) -> JobLog | None:
        """The log of a job, if anybody uses it."""
        return self._logs.get(job_id)

    def keeper(
        self,
        keeping: Keeping,
        *,
        expire: Callable[[str], Awaitable[None]],
        on_swept: Callable[[Swept], None] = _ignore,
    ) -> Keeper:
        """What keeps the logs in order over time, while its `run` does; see Keeper."""
        self._keeper = Keeper(
            self,
            self._directory.path,
            keeping,
            rotation_bytes=self._rotation_bytes,
            clock_us=self._clock_us,
            expire=expire,
            on_swept=on_swept,
            step=self._step,
        )
        return self._keeper

    def trouble(self, job_id: str) -> JobletError | None:
        """Why reading a job's output rests at the moment; None if it does not."""
        log = self._logs.get(job_id)
        return None if log is None else log.trouble

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            logs_open=len(self._logs),
            staged_chunks=self._room.chunks,
            pauses=sum(writer.pauses for writer in self._workers.writers),
            readers=tuple(reader.statistics() for reader in self._workers.readers),
        )

    @property
    def staged_bytes(self) -> int:
        """Bytes of output that wait for the disk."""
        return self._room.bytes

    def overflow(self) -> dict[str, int]:
        """Chunks that each overflow strategy had to take care of since the start; `block`: pipes
        that were left unread."""
        return self._overflow.counts()

    def left_out(self) -> dict[str, int]:
        """What overflow left out since the start: "KIND gaps", "KIND bytes"."""
        return self._overflow.gaps()

    def bytes_moved(self) -> int:
        """Bytes of output read since the start."""
        return sum(reader.statistics().bytes_moved for reader in self._workers.readers)

    def _running(self) -> Shared:
        if self._shared is None:
            raise Unavailable("use the log store", "it is not running")
        return self._shared

    async def _in_pool(self, function: Callable[..., _Result], *args: object) -> _Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._running().write_pool, function, *args)

    async def _open(
        self, shared: Shared, job_id: str, *, from_earlier_boot: bool, create: bool
    ) -> JobLog:
        try:
            blocking = functools.partial(
                self._open_blocking, job_id, from_earlier_boot=from_earlier_boot, create=create
            )
            core = await self._in_pool(blocking)
        except OSError as exc:
            raise fault(f"open the log of job {job_id}", exc) from exc
        log = JobLog(core, shared=shared, overflow=self._overflow)
        self._logs[job_id] = log
        return log

    def _opened(self, job_id: str, opening: asyncio.Future[JobLog]) -> None:
        del self._opening[job_id]
        if not opening.cancelled():
            opening.exception()  # seen, in case its callers are gone

    def _open_blocking(self, job_id: str, *, from_earlier_boot: bool, create: bool) -> LogCore:
        directory = self._directory
        if not create and not directory.has_something(job_id):
            raise NotFound(
                f"read the output of job {job_id}",
                f"its log is not in {directory.path}",
                hint="it was removed there; the job's record is kept",
            )
        # What nobody uses any more may have left files of the log open, as idle ones; from here on
        # other files may have their names, and nobody would look for those again.
        for path in (directory.log_path(job_id), directory.stage_path(job_id)):
            self._cache.drop(path)
        files = LogFiles(directory.make(job_id), self._cache)
        staged = self._staged_log(job_id)
        segments = {stream: Segments(files, stream, self._rotation_bytes) for stream in STREAMS}
        with files.pinned(), staged.files.pinned():
            was_staged = bool(staged.files.names())
            state = recover(
                files,
                segments,
                staged,
                job_id=job_id,
                boot=directory.boot,
                clean_boot=directory.clean_boot,
                now_us=self._clock_us,
                step=self._step,
                from_earlier_boot=from_earlier_boot,
            )
        core = LogCore(
            job_id,
            files,
            state,
            segments=segments,
            staged=self._staged_log(job_id),
            room=self._room,
            clock_us=self._clock_us,
            wake=self._wake,
            on_staged=self._workers.staged,
            on_stored=self._overflow.logs.discard,
            on_dirty=self._dirty.add,
            on_clean=self._dirty.discard,
            step=self._step,
            on_rotated=self._rotated,
            policy=self._overflow.policy(),
        )
        if was_staged or not core.ended:
            core.mark_dirty()
        return core

    def _staged_log(self, job_id: str) -> StagedLog:
        directory = self._directory
        return StagedLog(directory.stage_path(job_id), self._cache, directory.spill_path(job_id))

    def _wake(self, core: LogCore) -> None:
        if self._waker is not None:
            self._waker.wake(core)

    def _rotated(self, core: LogCore) -> None:
        if self._keeper is not None and self._waker is not None:
            self._waker.call(self._keeper.begun, core)

    def _tell_overflow(self, what: str, begun: bool) -> None:  # noqa: FBT001 - of Overflow
        if self._waker is not None:
            self._waker.call(self._on_overflow, what, begun)

    def _tell_trouble(self, core: LogCore, error: JobletError | None) -> None:
        core.trouble = error
        self._on_trouble(core.job_id, error)

    def _sync_all(self) -> None:
        """Everything that is staged, too. The mark of a clean stop is for a stage that is empty:
        what is left there would be lost with the machine, without a gap."""
        first: OSError | None = None
        for core in self._dirty | {log.core for log in self._logs.values()}:
            try:
                if not core.files.dropped:
                    self._finish(core)
            except OSError as exc:
                first = first or exc
        try:
            if first is not None:
                raise first
            if not self._directory.list_staged():
                self._directory.mark_clean()
        except OSError as exc:
            raise fault(f"store the output in {self._directory.path}", exc) from exc

    def _finish(self, core: LogCore) -> None:
        with core.pinned():
            for stream in STREAMS:
                core.enter(stream)  # what the stage refused to enter before, if anything
            if core in self._dirty:
                core.sync()
            if core.state.records == core.stored_records:
                core.staged.remove()
