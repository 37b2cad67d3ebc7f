# SPDX-License-Identifier: MIT
"""A log's state and files, for the threads that fill them. Everything here may block.

Invariants: of stream S, `written[S]` bytes have come, put into the stage by the stream's one writer
(its reader thread, or an import while no pipe is attached); `state.held[S]` of them are entered,
and nobody reads the others; `stored[S]` of these are in its segments. A record is counted in only
after it was written whole, under `lock`, into the stage's index; the first `stored_records` are in
that on the disk. Both counts grow before what they count is freed in the stage: a view, which has
looked there without the lock, looks at them again.

Must not import anything of joblet but joblet.errors and its neighbours blocks, files, format,
frames, overflow, recovery, segments, stage.
"""

import asyncio
import collections
import contextlib
import dataclasses
import errno
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final

from joblet.errors import FailedPrecondition, JobletError
from joblet.server.logs import format as fmt
from joblet.server.logs.blocks import BLOCK_BYTES
from joblet.server.logs.files import INDEX_NAME, LogFiles, sync_directory, write_all
from joblet.server.logs.format import GapKind, IndexState, Kind, Record
from joblet.server.logs.frames import BLOCK_BYTES as STAGE_BLOCK_BYTES
from joblet.server.logs.overflow import Policy
from joblet.server.logs.recovery import append, unknown_gap
from joblet.server.logs.segments import Segments
from joblet.server.logs.stage import Room, Shelf, StagedLog

log = logging.getLogger(__name__)

# The stage's room is given back after so many bytes were stored.
_FREE_BYTES: Final = 1 << 20
# Records that are copied to the disk at once.
_COPIED_RECORDS: Final = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class Unsynced:
    """Files of a log that are stored and not durable: their names, in the order in which to sync
    them, and whether names in the log's directory, and its own, are so."""

    files: LogFiles
    names: list[str]
    new_names: bool
    known: bool  # the log's directory is durable

    def sync(self) -> None:
        """Make them durable, one by one. Raises OSError."""
        path = self.files.path
        for name in self.names:
            # one that is not there was removed, or sealed, which syncs what takes its place
            with contextlib.suppress(FileNotFoundError), self.files.reading(name) as fd:
                os.fdatasync(fd)
        try:
            if self.new_names:
                sync_directory(path)
            if not self.known:
                sync_directory(path.parent)
        except FileNotFoundError:
            if not self.files.dropped:
                raise


class LogCore:
    """One log, opened and repaired. Made by the store, shared by all who use the log."""

    def __init__(
        self,
        job_id: str,
        files: LogFiles,
        state: IndexState,
        *,
        segments: dict[int, Segments],
        staged: StagedLog,
        room: Room,
        clock_us: Callable[[], int],
        wake: Callable[["LogCore"], None],
        on_staged: Callable[["LogCore"], None],
        on_stored: Callable[["LogCore"], None],
        on_dirty: Callable[["LogCore"], None],
        on_clean: Callable[["LogCore"], None],
        step: Callable[[str], None],
        policy: Policy,
        on_rotated: Callable[["LogCore"], None] = lambda _: None,
    ) -> None:
        self.job_id = job_id
        self.files = files
        self.staged = staged
        self.segments = segments  # for the keeper
        self.state = state
        self.written = list(state.held)
        self.stored = list(state.held)
        self.stored_records = state.records
        self.lock = threading.RLock()
        self.step = step
        self.pending = False  # the writer knows that something is to be stored
        self.waiting: frozenset[int] = frozenset()  # streams left unread for want of room
        self.policy: Policy = policy  # what to do when the stage is nearly full
        # These five belong to the event loop.
        self.closed: JobletError | None = None  # why nobody can use the log any more
        self.given_up: JobletError | None = None  # why nobody attends to the job any more
        self.trouble: JobletError | None = None  # why reading rests
        self.waiters: set[asyncio.Future[None]] = set()
        self.owner: object = None  # the JobLog: it is there as long as anybody uses this
        self._room = room
        self._clock_us = clock_us
        self._wake = wake
        self._on_staged = on_staged
        self._on_stored = on_stored
        self._on_dirty = on_dirty
        self._on_clean = on_clean
        self._dirty = False  # something was entered that is not durable, or may not be
        self._on_rotated = on_rotated
        self._begun = 0  # segments, as far as that was told
        self._synced_records = 0
        self._parent_synced = False
        self._storing = threading.Lock()
        self._syncing = threading.Lock()
        self._packing = threading.Lock()
        # What was left out: begin, end, and how much of the stage's room that gave back at once.
        self._skips: dict[int, collections.deque[tuple[int, int, int]]] = {
            stream: collections.deque() for stream in fmt.STREAMS
        }
        self._given_back = [0, 0, 0]  # of what the writer has passed and not freed yet

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """The log's files stay open."""
        with self.files.pinned(), self.staged.files.pinned():
            yield

    def pin(self) -> None:
        self.files.pin()
        self.staged.files.pin()

    def unpin(self) -> None:
        self.staged.files.unpin()
        self.files.unpin()

    @property
    def size(self) -> int:
        """The log offset behind the last byte."""
        return self.state.size

    @property
    def ended(self) -> bool:
        return self.state.all_ended

    def enter(self, stream: int) -> None:
        """Enter what was written of a stream. Raises OSError; the rest can be entered later."""
        state = self.state
        if self.written[stream] == state.held[stream]:
            return
        with self.lock:
            self._touch()
            while (left := self.written[stream] - state.held[stream]) > 0:
                part = min(left, fmt.MAX_DATA_BYTES)
                self._append(Kind.DATA, stream, part, state.held[stream])
        self._grew()

    def discard(self, stream: int, kind: GapKind) -> None:
        """Enter what was written of a stream and not entered as a gap: nobody will read it.

        Raises OSError; then all or part of it can still be entered or discarded.
        """
        state = self.state
        with self.lock:
            begin = state.held[stream]
            count = self.written[stream] - begin
            if count == 0:
                return
            self._touch()
            self.staged.will_hollow(stream, begin, begin + count)
            self._append(Kind.GAP, stream, fmt.gap_length(kind, unknown=False), count)
            # Under the lock, and behind the record: the writer looks for it when it knows of that.
            # What follows another one is one with it: of little ones there may be millions.
            skips = self._skips[stream]
            since, given = begin, 0
            if skips and skips[-1][1] == begin:
                since, _, given = skips.pop()
            skips.append((since, begin + count, given))
            self.step("overflow:left-out")
            room = self.staged.hollow(stream, begin, begin + count)
            skips[-1] = since, begin + count, given + room
        self._room.free(room, 0)
        self._grew()

    def end(self, stream: int) -> None:
        """Enter the end of a stream, once. Raises OSError."""
        self.enter(stream)
        with self.lock:
            if stream not in self.state.ended:
                self._touch()
                self._append(Kind.END, stream, 0, self.state.held[stream])
        self._grew()

    def expect(self, streams: frozenset[int]) -> None:
        """Enter which streams the log has. Raises OSError, FailedPrecondition if they change."""
        with self.lock:
            known = self.state.expected
            if known is not None and known != streams:
                raise FailedPrecondition(
                    f"change the streams of job {self.job_id}", f"its log has {sorted(known)}"
                )
            if known is None:
                self._touch()
                self._append(Kind.EXPECT, 0, fmt.stream_mask(streams), 0)
        self._grew()

    def gap(self, kind: GapKind, stream: int, count: int | None) -> None:
        """Enter a gap of `count` offsets; None: nobody knows, up to the next multiple of 2^40.

        For what never came here; see `discard`. One of unknown count is synced before anything
        can follow: an offset is given out once. Raises OSError, FailedPrecondition if the log has
        ended.
        """
        try:
            if count is not None:
                with self.lock:
                    self._may_gap()
                    self._append(Kind.GAP, stream, fmt.gap_length(kind, unknown=False), count)
                return
            self.store()  # most of it, while others go on
            with self._storing, self.pinned(), self.lock:
                self._may_gap()
                self._take_in(unknown_gap(self.state, kind, stream, self._clock_us()))
                self._store(self.state.records, self.state.held)
                os.fdatasync(self.files.index())
        finally:
            self._grew()

    def _may_gap(self) -> None:
        if self.state.all_ended:
            what = f"enter a gap in the log of job {self.job_id}"
            raise FailedPrecondition(what, "the log has ended")
        self._touch()

    def tail_is_lost(self, stream: int) -> bool:
        """Whether the log ends with a gap that hides what was lost of the stream's end."""
        return self.state.tail_lost in (fmt.ALL_STREAMS, stream)

    def lose_tail(self, streams: Collection[int]) -> None:
        """Enter, once, that what these streams said last is lost. Raises OSError."""
        left = [s for s in streams if s not in self.state.ended and not self.tail_is_lost(s)]
        if len(left) > 1 and frozenset(left) == self.state.expected:
            left = [fmt.ALL_STREAMS]
        for stream in left:
            self.gap(GapKind.LOST, stream, None)
        if not left:
            self.sync()  # a gap that is there may be one that the disk refused to take

    def mark_rest(self, stream: int) -> int:
        """How many bytes of a stream's rest the log holds; marks where the rest begins, once.

        The mark is synced before this returns, and what lies before it. Raises OSError.
        """
        self.enter(stream)
        held = self.state.held[stream]
        begins = self.state.marks.get(stream)
        # A log that holds less than at the mark lost bytes of the time before the rest.
        if begins is None or begins > held:
            self.sync()
            self.step("rest:staged")
            with self.lock:
                self._touch()
                self._append(Kind.MARK, stream, 0, held)
            begins = held
        self.sync()
        self.step("rest:marked")
        return held - begins

    def store(self) -> bool:
        """Move what is entered now from the stage to the store; whether anything was.

        Raises OSError; then part of it was, and it may be repeated.
        """
        with self._storing, self.pinned():
            if self.files.dropped:
                return False  # it was removed, and what it took of the stage's room given back
            self.pending = False  # before: what comes from now on is told again
            with self.lock:
                records = self.state.records
                held = list(self.state.held)
            something = records != self.stored_records
            if something:
                self._store(records, held)
            with self.lock:
                if self.state.records == self.stored_records:
                    self._on_stored(self)
        return something

    def _store(self, records: int, held: list[int]) -> None:
        """The first `records` records and the bytes that they are about."""
        for stream in fmt.STREAMS:
            if self.stored[stream] < held[stream]:
                self._store_stream(stream, held[stream])
        first = number = self.stored_records
        while number < records:
            raw = self.staged.read_index(number, min(_COPIED_RECORDS, records - number))
            if not raw:
                raise OSError(errno.EIO, f"record {number} is not in the stage")
            write_all(self.files.index(), raw, number * fmt.RECORD_BYTES)
            number += len(raw) // fmt.RECORD_BYTES
        self.step("store:index")
        self.stored_records = records
        self._room.free(0, records - first)
        self.staged.free_index(first, records)
        if self.state.all_ended and self.state.records == records:
            self.staged.remove()
        self.step("store:freed")
        begun = sum(segments.begun for segments in self.segments.values())
        if begun > self._begun:
            self._begun = begun
            self._on_rotated(self)

    def _store_stream(self, stream: int, held: int) -> None:
        """The bytes of a stream up to the position `held`."""
        freed = self.stored[stream]
        buffer = memoryview(bytearray(min(BLOCK_BYTES, held - freed)))
        try:
            while (position := self.stored[stream]) < held:
                self.stored[stream] = self._store_block(stream, position, held, buffer)
                self.step("store:copied")
                if self.stored[stream] - freed >= _FREE_BYTES:
                    freed = self._free(stream, freed)
        finally:
            self._free(stream, freed)

    def _store_block(self, stream: int, position: int, held: int, buffer: memoryview) -> int:
        """One block; the position behind it."""
        segments, skips = self.segments[stream], self._skips[stream]
        with self.lock:
            skip = skips[0] if skips else None
        if skip is not None and skip[0] == position:
            end = min(held, skip[1])
            segments.skip(end)
            with self.lock:
                _, behind, room = skips.popleft()
                part = room if behind == end else min(room, end - position)
                if behind > end:  # more was left out meanwhile
                    skips.appendleft((end, behind, room - part))
            self._given_back[stream] += part
            return end
        end = held if skip is None else min(held, skip[0])
        count = self.staged.read_into(stream, position, buffer[: end - position])
        if count == 0:
            # Somebody else has removed it, or memory is broken. To wait for it would stop all jobs
            # when the stage is full: whoever reads there is shown a gap.
            end = min(end, position - position % STAGE_BLOCK_BYTES + STAGE_BLOCK_BYTES)
            what = "%d bytes of the output of job %s are not in the stage any more: they are lost"
            log.error(what, end - position, self.job_id, extra={"job": self.job_id})
            segments.skip(end)
            return end
        segments.append(position, buffer[:count])
        return position + count

    def _free(self, stream: int, begin: int) -> int:
        end = self.stored[stream]
        if end > begin:
            room = self.staged.free(stream, begin, end) - self._given_back[stream]
            self._given_back[stream] = 0
            self._room.free(room, 0)
        return end

    def abandon(self) -> None:
        """The log is removed: what is staged of it takes no room any more."""
        with self._storing, self.lock:
            for stream in fmt.STREAMS:
                held, stored = self.state.held[stream], self.stored[stream]
                room = self.staged.room(stream, stored, held) if held > stored else 0
                left_out = sum(room for _, _, room in self._skips[stream])
                self._room.free(room - left_out - self._given_back[stream], 0)
            self._room.free(0, self.state.records - self.stored_records)

    def pack(self, shelf: Shelf, most: int) -> tuple[int, int]:
        """Pack up to `most` staged blocks of each stream, the oldest ones but for those that the
        writer is at. How many were tried, and how much of the stage's room that gave back.

        One thread at a time: another one waits, for a job's policy may change while one is at it.
        Raises OSError.
        """
        tried = given = 0
        with self._packing, self.pinned():
            for stream in fmt.STREAMS:
                for _ in range(most):
                    begin = self.stored[stream] + BLOCK_BYTES
                    block = self.staged.next_block(stream, begin, self.state.held[stream])
                    if block is None or self.files.dropped:
                        break
                    tried += 1
                    room = self.staged.pack(stream, block, shelf, self.step)
                    self._room.free(room, 0)
                    given += room
        return tried, given

    def sync(self) -> None:
        """Store what is entered now, and make it durable.

        Raises OSError; then nothing is known to be durable.
        """
        with self.pinned():
            self.store()
            with self.syncing() as unsynced:
                unsynced.sync()

    @property
    def wants_sync(self) -> bool:
        """Whether anything is stored and not durable."""
        return self._synced_records < self.stored_records or any(
            segments.unsynced > 0 or segments.new_names for segments in self.segments.values()
        )

    @property
    def unsynced_files(self) -> int:
        """How many files are stored and not durable."""
        return 1 + sum(segments.unsynced for segments in self.segments.values())

    @contextlib.contextmanager
    def syncing(self) -> Iterator[Unsynced]:
        """What is stored now: the block makes it durable, or raises OSError.

        The log is clean then if all that it was told is stored. One block at a time; nobody but
        who wants to sync waits for it.
        """
        with self._syncing, self.pinned():
            with self.lock:  # before: what is entered meanwhile makes it dirty again
                records = self.stored_records
                if records == self.state.records and self.written == self.state.held:
                    self._dirty = False
                    self._on_clean(self)
            names = [n for each in self.segments.values() for n in each.take_unsynced()]
            new_names = any(each.new_names for each in self.segments.values())
            for each in self.segments.values():
                each.new_names = False
            new_names = new_names or not self._parent_synced
            try:
                # The bytes go first: an index that says too little only costs a second look.
                yield Unsynced(self.files, [*names, INDEX_NAME], new_names, self._parent_synced)
            except BaseException:
                for each in self.segments.values():
                    each.give_back(names)
                    each.new_names = each.new_names or new_names
                with self.lock:
                    self._touch()
                raise
            self._synced_records = max(records, self._synced_records)
            self._parent_synced = True

    def mark_dirty(self) -> None:
        """Recovery has stored something that is not durable."""
        with self.lock:
            self._touch()

    def expire(self, max_bytes: int) -> int:
        """Remove the oldest segments of both streams until they take at most `max_bytes` on the
        disk, but for the last one of each; bytes of output that this removed. Raises OSError."""
        with self._storing, self.pinned():
            found = {stream: each.stored() for stream, each in self.segments.items()}
            left = sum(each.size for stored in found.values() for each in stored)
            ages = sorted(
                (each.time_ns, stream, number)
                for stream, stored in found.items()
                for number, each in enumerate(stored[:-1])
            )
            behind: dict[int, int] = {}
            for _, stream, number in ages:
                if left <= max_bytes:
                    break
                left -= found[stream][number].size
                following = found[stream][number + 1].start
                behind[stream] = max(following, behind.get(stream, 0))
            removed = 0
            for stream, position in behind.items():
                removed += self.segments[stream].expire(position, self._clock_us(), self.step)
            return removed

    def publish(self, stream: int, start: int) -> None:
        """The compressed form of a segment is complete: it takes its place. Raises OSError."""
        with self._storing, self.pinned():
            self.segments[stream].publish(start, self.step)

    def now_us(self) -> int:
        """The clock that records are dated by."""
        return self._clock_us()

    def _append(self, kind: Kind, stream: int, length: int, arg: int) -> None:
        self._take_in(Record(kind, stream, length, self._clock_us(), self.state.size, arg))

    def _take_in(self, record: Record) -> None:
        state = self.state
        records, held = state.records, sum(state.held)
        append(self.staged.index(), state, record)
        self._room.take(sum(state.held) - held, state.records - records)

    def _grew(self) -> None:
        if not self.pending:
            self.pending = True
            self._on_staged(self)
        self._wake(self)

    def _touch(self) -> None:
        # One that is removed has nothing to be made durable, and would be kept for ever: who
        # removes it waits for the lock, which is held here, before it forgets it.
        if not self._dirty and not self.files.dropped:
            self._dirty = True
            self._on_dirty(self)

    def release_waiters(self) -> None:
        """Let all who wait for growth look again. On the event loop."""
        waiters, self.waiters = self.waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, still: Callable[[], bool]) -> None:
        """Wait on the event loop while `still()` holds, at most until the next change."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.add(waiter)
        # Looked at after the waiter is there: a thread that changes the log between the two
        # finds it, and one that did before has made `still` false.
        try:
            if still():
                await waiter
        finally:
            self.waiters.discard(waiter)
