# SPDX-License-Identifier: MIT
"""A log by offset, as those see it who read it. Everything here may block.

Invariants: nothing is read but what is entered, as the records say that were counted in when the
read began. What is entered moves meanwhile, from the stage to the store: what was looked for in the
stage counts only if it is still not stored when that is done, for the counts grow before anything
is freed (see core). No read changes the log.

Must not import anything of joblet but joblet.errors and its neighbours blocks, core, format, mask.
"""

import contextlib
import dataclasses
import enum
import itertools
import os
from collections.abc import Iterator
from typing import Final

from joblet.errors import Internal
from joblet.server.logs import format as fmt
from joblet.server.logs.blocks import Missing
from joblet.server.logs.core import LogCore
from joblet.server.logs.format import GapKind, Kind, Record
from joblet.server.logs.mask import Mask, stars

# Records read at once: few at first, because a follower at the end wants one or two.
_FIRST_RECORDS: Final = 32
_MORE_RECORDS: Final = 2048
# What expired is one gap, of at most so many records: a reader that meets it waits for that.
_EXPIRED_RECORDS: Final = 8192


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one stream; `data[0]` has the log offset `offset`."""

    offset: int
    data: bytes
    stream: int
    time_us: int  # when the first of them was entered

    @property
    def offset_end(self) -> int:
        return self.offset + len(self.data)


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """Log offsets without bytes: `bytes` of them are missing, None if nobody knows how many."""

    offset: int
    kind: GapKind
    bytes: int | None
    stream: int  # 0 if it concerns the whole log
    time_us: int
    offset_end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A log offset and the number of a record at or before it, from which to look for it."""

    offset: int
    record: int = 0  # 0: it is looked for


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """The log offsets of one record, from `place` on: bytes of a stream, or a gap."""

    place: Place
    offset_end: int
    stream: int
    time_us: int  # when it was entered
    gap: bool


class Held(enum.Enum):
    """Instead of what stands at an offset: not to be read yet."""

    HELD = enum.auto()


HELD: Final = Held.HELD


class LogView:
    """One log as its readers see it: any number of them, from any thread."""

    def __init__(self, core: LogCore) -> None:
        self.core = core
        self.mask: Mask | None = None  # secrets that nobody reads; set before anybody reads

    def read(self, place: Place, max_bytes: int) -> tuple[Chunk | Gap, Place] | Held | None:
        """What stands at an offset, up to `max_bytes` of one stream, and the place behind it.

        None at the end of the log; HELD where a secret may have begun that the job goes on to
        say: the next record decides. Raises OSError, and Internal if bytes are not there.
        """
        core = self.core
        total = core.state.records
        offset = place.offset
        with core.pinned():
            number = place.record or self._find(offset, total)
            first: Record | None = None
            gap: tuple[Gap, Place] | None = None
            taken = 0
            for record in self._records(number, total):
                end = record.offset + record.span
                if end > offset + taken:
                    if first is None and record.kind is Kind.GAP:
                        joined = _joined(gap[0] if gap else None, _gap(record, offset))
                        if joined is None:
                            break
                        offset = end
                        number += 1
                        gap = joined, Place(offset, number)
                        continue
                    if gap is not None:
                        break
                    if first is None:
                        first = record
                    elif record.stream != first.stream or record.kind is not Kind.DATA:
                        break
                    taken = min(end - offset, max_bytes)
                    if end - offset > max_bytes:
                        break  # the next read begins within this record
                number += 1
                if taken == max_bytes:
                    break
            if gap is not None:
                return gap
            if first is None:
                return None
            position = first.arg + offset - first.offset
            try:
                data = self._bytes(first.stream, position, taken)
            except Missing as missing:
                if missing.expired:
                    return self._expired(offset, total)
                end = offset + missing.count
                lost = Gap(offset, GapKind.LOST, missing.count, first.stream, first.time_us, end)
                return lost, Place(end)
            if self.mask is not None:
                shown = self._shown(self.mask, first.stream, position, offset, data)
                if not shown:
                    return HELD
                number = number if len(shown) == len(data) else 0
                data = shown
        behind = Place(offset + len(data), number if len(data) == taken else 0)
        return Chunk(offset, data, first.stream, first.time_us), behind

    def spans(self, offset: int, end: int, most: int) -> list[Span]:
        """The records that hold the offsets up to `end`, in order, at most `most`; raises as
        `read` does."""
        total = self.core.state.records
        with self.core.pinned():
            found = self._spans(self._find(offset, total), total)
            held = itertools.takewhile(lambda span: span.place.offset < end, found)
            return list(itertools.islice((s for s in held if s.offset_end > offset), most))

    def spans_before(self, offset: int, most: int) -> list[Span]:
        """The last records that begin before `offset`, in order: some of them, at most `most`;
        none only if there is none."""
        found: list[Span] = []
        total = self.core.state.records
        with self.core.pinned():
            behind = min(total, self._find(offset, total) + 1)
            while not found and behind > 1:
                number = max(1, behind - most)
                found = [span for span in self._spans(number, behind) if span.place.offset < offset]
                behind = number
        return found

    def _spans(self, number: int, behind: int) -> Iterator[Span]:
        """Of the records from `number` on those that cover offsets."""
        for at, record in enumerate(self._records(number, behind), number):
            if record.span:
                place = Place(record.offset, at)
                end = record.offset + record.span
                yield Span(place, end, record.stream, record.time_us, record.kind is Kind.GAP)

    def _expired(self, offset: int, total: int) -> tuple[Gap, Place]:
        """The gap of what retention has removed from `offset` on. Another one may follow: so much
        is looked at and not more."""
        end, time_us = offset, 0
        streams: set[int] = set()
        number = self._find(offset, total)
        for record in itertools.islice(self._records(number, total), _EXPIRED_RECORDS):
            if record.offset + record.span <= end:
                continue
            kept = record.offset + record.length
            if record.kind is Kind.DATA:
                kept = record.offset + self.core.segments[record.stream].expired - record.arg
            if record.kind is not Kind.DATA or kept <= end:
                break
            time_us = time_us or record.time_us
            streams.add(record.stream)
            end = min(kept, record.offset + record.length)
            if kept < record.offset + record.length:
                break
        stream = streams.pop() if len(streams) == 1 else fmt.ALL_STREAMS
        return Gap(offset, GapKind.EXPIRED, end - offset, stream, time_us, end), Place(end)

    def _shown(self, mask: Mask, stream: int, position: int, offset: int, data: bytes) -> bytes:
        """What a reader sees of bytes of a stream; less of them where a secret may have begun.

        What may be the beginning of one is held back as long as the stream can go on and nothing
        stands behind it. Where something does, readers must get past it: it is covered, even if
        it turns out to be none.
        """
        state = self.core.state
        with self.core.lock:
            ended = stream in state.ended
            held = state.held[stream]
            size = state.size
        end = position + len(data)
        first = max(0, position - mask.reach)
        before = self._before(stream, first, position)
        after = self._behind(stream, end, min(held, end + mask.reach))
        shown = mask.covered(before, data, after)
        if ended or end + len(after) < held:
            return shown
        undecided = min(len(data), mask.open_tail(before + data + after) - len(after))
        if undecided <= 0:
            return shown
        kept = shown[: len(data) - undecided]
        if size - (offset + len(data)) == held - end:
            return kept
        return kept + stars(undecided)

    def _bytes(self, stream: int, position: int, count: int) -> bytes:
        """At least one byte of a stream, wherever they lie. Raises Missing, OSError."""
        core = self.core
        while True:
            stored = core.stored[stream]
            if position < stored:
                return core.segments[stream].read(position, min(count, stored - position))
            try:
                data = core.staged.read(stream, position, count)
            except FileNotFoundError:
                data = b""
            # what has been stored meanwhile may have been freed before it was read
            if core.stored[stream] <= position:
                if not data:
                    raise Missing(count, "they are not in the stage")
                return data

    def _before(self, stream: int, begin: int, end: int) -> bytes:
        """The bytes up to `end`, from `begin` on or from behind what cannot be read."""
        found = bytearray()
        while begin < end:
            try:
                found += (data := self._bytes(stream, begin, end - begin))
                begin += len(data)
            except Missing as missing:
                found.clear()
                begin += missing.count
        return bytes(found)

    def _behind(self, stream: int, begin: int, end: int) -> bytes:
        """The bytes from `begin` on, up to `end` or to what cannot be read."""
        found = bytearray()
        with contextlib.suppress(Missing):
            while begin < end:
                found += (data := self._bytes(stream, begin, end - begin))
                begin += len(data)
        return bytes(found)

    def _find(self, offset: int, total: int) -> int:
        """The number of a record that covers `offset`, or of one shortly before it."""
        low, high = 1, total  # record 0 is the header
        while low < high:
            middle = (low + high) // 2
            raw = self._raw_records(middle, 1)
            record = fmt.decode_trusted(raw) if len(raw) == fmt.RECORD_BYTES else None
            if record is None:
                raise self._damaged(middle)
            if record.offset < offset:
                low = middle + 1
            else:
                high = middle
        return max(1, low - 1)

    def _records(self, number: int, total: int) -> Iterator[Record]:
        batch = _FIRST_RECORDS
        while number < total:
            count = min(batch, total - number)
            raw = self._raw_records(number, count)
            for at in range(0, len(raw) - fmt.RECORD_BYTES + 1, fmt.RECORD_BYTES):
                record = fmt.decode_trusted(raw, at)
                if record is None:
                    raise self._damaged(number)
                yield record
                number += 1
            if len(raw) < fmt.RECORD_BYTES:
                raise self._damaged(number)
            batch = _MORE_RECORDS

    def _raw_records(self, number: int, count: int) -> bytes:
        """Records from `number` on, at most `count`, wherever they lie. Raises OSError."""
        core = self.core
        while True:
            stored = core.stored_records
            if number < stored:
                size = min(count, stored - number) * fmt.RECORD_BYTES
                return os.pread(core.files.index(), size, number * fmt.RECORD_BYTES)
            try:
                raw = core.staged.read_index(number, count)
            except FileNotFoundError:
                raw = b""
            if core.stored_records <= number:
                return raw

    def _damaged(self, number: int) -> Internal:
        return Internal(
            f"read the output of job {self.core.job_id}",
            f"record {number} of its index is not there",
            hint="something else changed the log's files; restart joblet.service to repair it",
        )


def _joined(gap: Gap | None, following: Gap) -> Gap | None:
    """Two losses in a row as one (each death of the machine enters its own), None: they are two."""
    if gap is None:
        return following
    streams = {gap.stream, following.stream}
    if gap.kind is not GapKind.LOST or following.kind is not GapKind.LOST:
        return None
    if len(streams) > 1 and fmt.ALL_STREAMS not in streams:
        return None
    known = gap.bytes is not None and following.bytes is not None
    end = following.offset_end
    count = end - gap.offset if known else None
    return Gap(gap.offset, gap.kind, count, min(streams), gap.time_us, end)


def _gap(record: Record, offset: int) -> Gap:
    end = record.offset + record.arg
    kind = fmt.gap_kind(record) or GapKind.LOST
    count = None if fmt.gap_unknown(record) else end - offset
    return Gap(offset, kind, count, record.stream, record.time_us, end)
