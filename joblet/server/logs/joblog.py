# SPDX-License-Identifier: MIT
"""The log of one job, as the server's tasks use it. Used on the store's event loop only.

Whatever may block runs in the store's pools. A call that is cancelled has happened or will
happen; nothing is left half done.

Must not import anything of joblet but joblet.errors and its neighbours.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import stat
from collections.abc import Callable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from joblet.errors import (
    FailedPrecondition,
    InvalidArgument,
    JobletError,
    NotFound,
    ResourceExhausted,
)
from joblet.server.logs import format as fmt
from joblet.server.logs import mask
from joblet.server.logs.core import LogCore
from joblet.server.logs.faults import fault
from joblet.server.logs.follower import DEFAULT_CHUNK_BYTES, Follower, check_range
from joblet.server.logs.format import GapKind
from joblet.server.logs.overflow import Overflow
from joblet.server.logs.reader import Pipe, Reader
from joblet.server.logs.rest import import_rest
from joblet.server.logs.selection import SelectedLog, Selection
from joblet.server.logs.view import HELD, Chunk, Gap, LogView, Place

_Result = TypeVar("_Result")


class Shared:
    """What the logs of a store share: its threads, and the owner of what outlives a caller."""

    def __init__(self, pick_reader: Callable[[], Reader], io_threads: int) -> None:
        self.pick_reader = pick_reader
        pool = concurrent.futures.ThreadPoolExecutor
        # Apart, so that a slow disk's fdatasync does not delay who reads from the page cache.
        self.read_pool = pool(io_threads, thread_name_prefix="log-read")
        self.write_pool = pool(io_threads, thread_name_prefix="log-write")
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, _Result] | asyncio.Future[_Result]) -> _Result:
        """Await `work`; cancelled, leave it to finish by itself."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what runs, then end the pools."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self.read_pool.shutdown)
        await asyncio.to_thread(self.write_pool.shutdown)

    def _forget(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, in case its caller is gone


class JobLog:
    """The log of a job: what it said, in order of arrival, by offset. Made by LogStore.open.

    A stream's life: `expect` says that it will be there; `attach` gives its pipe to a reader;
    it ends by itself at the pipe's end of file, or by `finish`; `import_rest` takes what was
    kept elsewhere while no reader was there. An ended stream takes nothing more.
    """

    def __init__(
        self,
        core: LogCore,
        *,
        shared: Shared,
        overflow: Overflow,
    ) -> None:
        self._overflow = overflow
        self.core = core  # for the store
        core.owner = self
        self._view = LogView(core)
        self._shared = shared
        self._reader: Reader | None = None  # one for both streams
        self._pipes: dict[int, Pipe] = {}
        self._importing: set[int] = set()
        self._serial = asyncio.Lock()  # one writer besides the reader

    @property
    def job_id(self) -> str:
        return self.core.job_id

    @property
    def size(self) -> int:
        """The log offset behind the last byte entered."""
        return self.core.size

    @property
    def expected(self) -> frozenset[int] | None:
        """The streams that the log has; None until that is known."""
        return self.core.state.expected

    @property
    def ended_streams(self) -> frozenset[int]:
        return self.core.state.ended

    @property
    def ended(self) -> bool:
        """Whether every expected stream has ended: nothing is added any more."""
        return self.core.ended

    @property
    def attached(self) -> frozenset[int]:
        """The streams whose pipes are being read."""
        return frozenset(stream for stream, pipe in self._pipes.items() if not pipe.closed)

    @property
    def trouble(self) -> JobletError | None:
        """Why reading rests at the moment (the disk is full, or slow, …); None if it does not."""
        if self.core.trouble is None and self.core.waiting:
            return ResourceExhausted(
                f"read the output of job {self.job_id}",
                "the disk is slower than the jobs, and log_persistence.memory_limit is used up",
                hint="the job waits when it prints; nothing is lost",
            )
        return self.core.trouble

    def stream_bytes(self, stream: int) -> int:
        """Bytes of a stream that are entered."""
        return self.core.state.held[stream]

    async def expect(self, streams: Iterable[int]) -> None:
        """Enter which streams the log will have (none, for a job whose output goes elsewhere).

        Raises FailedPrecondition if that changes.
        """
        wanted = frozenset(streams)
        if not wanted <= set(fmt.STREAMS):
            raise InvalidArgument(f"keep streams {sorted(wanted)}", "there are only 1 and 2")
        await self._write(f"keep the output of job {self.job_id}", self.core.expect, wanted)

    def attach(self, stream: int, fd: int) -> bool:
        """Read a stream from the read end of its FIFO; takes `fd`, also when it raises.

        False, and the FIFO is closed unread, if the stream has ended. Raises InvalidArgument,
        FailedPrecondition if the stream is attached already, and what a stopped store raises.
        """
        try:
            self._check_attach(stream, fd)
            if stream in self.ended_streams:
                os.close(fd)
                return False
            os.set_blocking(fd, False)
            if self._reader is None or not self._reader.alive:
                self._reader = self._shared.pick_reader()
            pipe = Pipe(self.core, stream, fd)
            self._reader.attach(pipe)
        except JobletError:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        self._pipes[stream] = pipe
        return True

    async def finish(self, stream: int) -> None:
        """End a stream behind what its pipe holds now, whoever still has the pipe open.

        Returns when the end is entered; waits while the disk refuses. Does nothing if it has
        ended. Raises Unavailable if the pipe is detached meanwhile.
        """
        self._check_stream(stream)
        pipe = self._pipes.get(stream)
        if pipe is not None and not pipe.closed and self._reader is not None:
            await self._shared.run(asyncio.wrap_future(self._reader.finish(pipe)))
            return
        if stream not in self.ended_streams:
            await self._write(f"end the output of job {self.job_id}", self.core.end, stream)

    async def detach(self) -> None:
        """Close the pipes, unread from here on and without an end; for a later server."""
        reader = self._reader
        if reader is not None:
            pipes = [pipe for pipe in self._pipes.values() if not pipe.closed]
            done = [asyncio.wrap_future(reader.detach(pipe)) for pipe in pipes]
            await self._shared.run(asyncio.gather(*done))
        self._pipes.clear()

    async def import_rest(self, stream: int, source: int | Path, count: int | None) -> int:
        """Append the rest of a stream that its PID 1 kept in a file; how many bytes were new.

        `source`: a descriptor, which stays the caller's, or a path. `count`: the rest's bytes as
        the exit record says; None if it does not, then the rest is taken as far as it goes and a
        gap of unknown count follows. May be repeated, also after a crash; durable when it
        returns. A stream that has ended takes nothing. Does not end the stream.
        Raises FailedPrecondition while the stream is attached, NotFound for a missing file.
        """
        self._check_stream(stream)
        if count is not None and count < 0:
            raise InvalidArgument(f"import output of job {self.job_id}", f"{count} bytes")
        if stream in self.ended_streams or count == 0:
            return 0
        if stream in self.attached | self._importing:
            raise FailedPrecondition(
                f"import output of job {self.job_id}", f"stream {stream} is still being read"
            )

        def blocking() -> int:
            if isinstance(source, int):
                return import_rest(self.core, stream, source, count)
            fd = _open_rest(self.job_id, source)
            try:
                return import_rest(self.core, stream, fd, count)
            finally:
                os.close(fd)

        async def exclusive() -> int:
            self._importing.add(stream)
            try:
                return await self._write(f"import output of job {self.job_id}", blocking)
            finally:
                self._importing.discard(stream)

        return await self._shared.run(exclusive())

    async def lose_tail(self, streams: Collection[int]) -> None:
        """Enter that what these streams said last is lost, nobody knows how much: one gap for the
        whole log if it is all of them, none where the log says so already."""
        for stream in streams:
            self._check_stream(stream)
        what = f"enter a gap in the log of job {self.job_id}"
        await self._write(what, self.core.lose_tail, streams)

    async def append_gap(
        self, kind: GapKind, *, count: int | None = None, stream: int = fmt.ALL_STREAMS
    ) -> None:
        """Enter that `count` bytes are missing here; None: nobody knows how many.

        Raises FailedPrecondition if the log has ended.
        """
        if stream != fmt.ALL_STREAMS:
            self._check_stream(stream)
        if count is not None and not 0 < count < fmt.UNKNOWN_GAP_ALIGN:
            raise InvalidArgument(f"enter a gap in the log of job {self.job_id}", f"{count} bytes")
        await self._write(
            f"enter a gap in the log of job {self.job_id}", self.core.gap, kind, stream, count
        )

    async def sync(self) -> None:
        """Make all that is entered now durable.

        Raises ResourceExhausted or Internal if the disk refuses; then some of it may be lost with
        the machine even if a repetition succeeds, for the kernel does not keep what it could not
        write.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._shared.write_pool, self.core.sync)
        except OSError as exc:
            what = f"store the output of job {self.job_id}"
            raise self.core.closed or fault(what, exc) from exc

    def follow(
        self,
        from_offset: int = 0,
        *,
        follow: bool = True,
        max_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> Follower:
        """Read from an offset on, past and future in one; see Follower."""
        return Follower(
            self._view,
            self._shared.read_pool,
            from_offset=from_offset,
            follow=follow,
            max_bytes=max_bytes,
        )

    def select(self, selection: Selection, *, max_bytes: int = DEFAULT_CHUNK_BYTES) -> SelectedLog:
        """Read a part of the log; raises InvalidArgument for one that it cannot have."""
        return SelectedLog(self._view, self._shared.read_pool, selection, max_bytes=max_bytes)

    def read_at(self, offset: int, max_bytes: int = DEFAULT_CHUNK_BYTES) -> Chunk | Gap | None:
        """What stands at an offset; None at the end. Blocking: not for the event loop."""
        check_range(self._view, offset, max_bytes)
        try:
            found = self._view.read(Place(offset), max_bytes)
        except OSError as exc:
            raise fault(f"read the output of job {self.job_id}", exc) from exc
        return None if found is None or found is HELD else found[0]

    async def wait_ended(self) -> None:
        """Return once every expected stream has ended. Raises as Follower.read does."""
        core = self.core
        while not core.ended:
            if (why := core.closed or core.given_up) is not None:
                raise why
            await core.changed(
                lambda: not core.ended and core.closed is None and core.given_up is None
            )

    def give_up(self, reason: JobletError) -> None:
        """Nobody attends to the job any more: who waits for more gets `reason`, what is there can
        be read."""
        self.core.given_up = reason
        self.core.release_waiters()

    def attended(self) -> None:
        """Takes `give_up` back."""
        self.core.given_up = None

    def hide(self, secrets: Iterable[str]) -> None:
        """Nobody reads these values from now on; see mask. The same ones every time."""
        if self._view.mask is None:
            self._view.mask = mask.of(secrets)

    def handle_overflow(self, strategy: str = "", on_full: str = "") -> None:
        """What is done with this job's output when the stage is nearly full: the name of a strategy
        and "block" or "drop" (see overflow); "": as is configured. Raises KeyError."""
        self.core.policy = self._overflow.policy(strategy, on_full)

    def shut(self, reason: JobletError) -> None:
        """Let nobody use the log any more, and tell who waits. For the store."""
        self.core.closed = reason
        self.core.release_waiters()

    async def quiet(self) -> None:
        """Return when no thread writes to a log that was shut. For the store."""
        async with self._serial:
            pass

    async def _write(self, what: str, function: Callable[..., _Result], *args: object) -> _Result:
        """Run something that writes to the log in a thread, one at a time."""

        def pinned() -> _Result:
            with self.core.pinned():
                return function(*args)

        async def in_turn() -> _Result:
            async with self._serial:
                self._check_open()
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._shared.write_pool, pinned)

        try:
            # A caller that gives up must not let the next one in while the thread still writes.
            return await self._shared.run(in_turn())
        except OSError as exc:
            raise self.core.closed or fault(what, exc) from exc

    def _check_open(self) -> None:
        if self.core.closed is not None:
            raise self.core.closed

    def _check_stream(self, stream: int) -> None:
        expected = self.expected
        if stream not in fmt.STREAMS or (expected is not None and stream not in expected):
            names = sorted(expected if expected is not None else fmt.STREAMS)
            raise InvalidArgument(
                f"use stream {stream} of job {self.job_id}", f"its log has {names}"
            )

    def _check_attach(self, stream: int, fd: int) -> None:
        self._check_stream(stream)
        what = f"attach stream {stream} of job {self.job_id}"
        try:
            mode = os.fstat(fd).st_mode
        except OSError as exc:
            raise InvalidArgument(what, f"descriptor {fd} is not open") from exc
        if not stat.S_ISFIFO(mode):
            raise InvalidArgument(what, f"descriptor {fd} is not a pipe")
        self._check_open()
        if stream in self.attached | self._importing:
            raise FailedPrecondition(what, "it is in use", hint="detach it first")


def _open_rest(job_id: str, path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as exc:
        raise NotFound(f"import output of job {job_id}", f"{path} does not exist") from exc
