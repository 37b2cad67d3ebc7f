# SPDX-License-Identifier: MIT
"""A part of a log: of one stream, from a time to a time, its last lines; read as a follower reads.

Where it begins is decided once, and from there on it is the log, read in order, with what was not
asked for left out. So it can be broken anywhere: who asks again for the same streams and the same
end, from the offset where they stood, gets the rest and nothing twice.

    lines    of the bytes as they are shown, both streams in one, as `tail` counts them: the last
             one need not have ended
    times    of records: when the server entered their bytes. `since` is the first place at which
             the log passes that time, found by halving. Where the host's clock was set back while
             the job ran, the log passes a time more than once, and which of these places it is
             depends on the log's length; what was shown is still one piece of it.
    gaps     stand where they are, those of a stream that was left out excepted. One that was
             entered later than what follows it, as what retention removed, counts with that.

Must not import anything of joblet but joblet.errors and its neighbours.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from typing import Final, Self, TypeVar

from joblet.errors import InvalidArgument
from joblet.server.logs import format as fmt
from joblet.server.logs.faults import fault
from joblet.server.logs.follower import Follower
from joblet.server.logs.format import GapKind
from joblet.server.logs.view import HELD, Chunk, Gap, LogView, Place, Span

# A reader from whom everything is kept is told now and then where it stands.
TELL_EVERY_BYTES: Final = 16 << 20
# So many arrivals a chunk: beside its bytes they must fit into a message of 4 MiB.
MAX_ARRIVALS: Final = 1 << 15
_ARRIVALS_BYTES: Final = 2 << 20
_SPANS: Final = 2048  # records of the index in one go
_BATCHES: Final = 64  # such goes without a break
_TAIL_BYTES: Final = 1 << 20  # of the log in one go, backwards
_LONGEST_NAP_S: Final = 60.0  # until the wall clock is looked at again: it may have been set

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for; the defaults are the whole log."""

    from_offset: int = 0
    since_us: int = 0  # leave out what arrived before
    until_us: int = 0  # end where something arrived then or later; 0: no such end
    tail_lines: int | None = None  # of what there is, the last lines; what comes then follows
    stream: int = fmt.ALL_STREAMS  # one of them alone
    arrivals: bool = False  # say of every byte when it arrived
    follow: bool = True  # wait for more

    @property
    def narrow(self) -> bool:
        """Whether more was asked for than an offset to begin at."""
        wanted = self.since_us or self.until_us or self.stream or self.arrivals
        return bool(wanted) or self.tail_lines is not None

    def check(self, job_id: str) -> None:
        """Raises InvalidArgument for what cannot be meant."""
        what = f"read the output of job {job_id}"
        for name, value in (
            ("since_us", self.since_us),
            ("until_us", self.until_us),
            ("tail_lines", self.tail_lines or 0),
        ):
            if value < 0:
                raise InvalidArgument(what, f"{name} is {value}, less than 0")
        if self.stream not in (fmt.ALL_STREAMS, *fmt.STREAMS):
            raise InvalidArgument(what, f"there is no stream {self.stream}, only 1 and 2")

    def shows(self, item: Chunk | Gap | Span) -> bool:
        return self.stream == fmt.ALL_STREAMS or item.stream in (self.stream, fmt.ALL_STREAMS)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """The next of a selection, up to `offset_end`; without an item, what lies before it was left
    out. `arrivals`: (index, µs) of each byte that arrived later than the one before it; of a
    chunk, if they were asked for."""

    item: Chunk | Gap | None
    offset_end: int
    arrivals: tuple[tuple[int, int], ...] = ()


class SelectedLog:
    """Iterates over the pieces of a selection, in order. One task at a time; `open` first.

    Holds no bytes between two reads, and looks for lines in pieces of _TAIL_BYTES. Raises as
    Follower.read does; cancelled, it is of no use any more.
    """

    def __init__(
        self,
        view: LogView,
        pool: concurrent.futures.Executor,
        selection: Selection,
        *,
        max_bytes: int,
    ) -> None:
        self._view = view
        self._core = view.core
        selection.check(self._core.job_id)
        self._pool = pool
        self._selection = selection
        self._max_bytes = min(max_bytes, _ARRIVALS_BYTES) if selection.arrivals else max_bytes
        self._follower = self._follow(selection.from_offset, None)
        self._told = 0  # the offset that the reader knows of
        self._end: int | None = None  # the offset at which it ends, once that is known
        self._until_us = 0  # the time at which it ends, while that is still to come
        self._over = False  # that time is past

    @property
    def offset(self) -> int:
        """Where to resume."""
        reached = self._follower.offset
        return reached if self._end is None else min(reached, self._end)

    @property
    def complete(self) -> bool:
        """Whether it reached the time at which it was to end."""
        return self._over and self.offset == self._end

    async def open(self) -> int:
        """Find where the selection begins; that offset."""
        core, wanted = self._core, self._selection
        if wanted.follow:
            await self._reach(wanted.since_us)
        self._over = 0 < wanted.until_us <= core.now_us()
        low = wanted.from_offset
        high = core.size
        if wanted.until_us:
            size = await self._run(self._settled)
            high = await self._run(first_since, self._view, wanted.until_us, low, size)
        if wanted.since_us:
            low = await self._run(first_since, self._view, wanted.since_us, low, high)
        if wanted.tail_lines is not None:
            low = await self._last_lines(low, high, wanted.tail_lines)
        if self._over or not wanted.follow:
            self._end = high
        else:
            self._until_us = wanted.until_us
        self._follower = self._follow(low, self._end)
        self._told = low
        return low

    async def read(self) -> Piece | None:
        """The next piece, None at the end."""
        while True:
            item = await self._next()
            if item is None:
                return None
            if self._selection.shows(item) and (piece := await self._piece(item)) is not None:
                self._told = piece.offset_end
                return piece
            if isinstance(item, Chunk) and len(item.data) == self._max_bytes:
                # Probably not the last of its kind: the index knows where it ends.
                behind = await self._run(self._shown_from, item.offset_end)
                self._follower.seek(behind)
            if self.offset - self._told >= TELL_EVERY_BYTES:
                self._told = self.offset
                return Piece(None, self.offset)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        piece = await self.read()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _follow(self, offset: int, end: int | None) -> Follower:
        return Follower(
            self._view,
            self._pool,
            from_offset=offset,
            follow=self._selection.follow,
            max_bytes=self._max_bytes,
            until=end,
        )

    async def _next(self) -> Chunk | Gap | None:
        """What stands next in the log, whatever stream it is of, none of it behind the end."""
        while self._until_us:
            begin = self.offset
            left_us = self._until_us - self._core.now_us()
            if left_us > 0:
                try:
                    async with asyncio.timeout(min(left_us / 1e6, _LONGEST_NAP_S)):
                        item = await self._follower.read()
                except TimeoutError:
                    continue
                if self._core.now_us() < self._until_us:
                    return item  # whatever was entered by now is from before
            # The time has come while something was read: some of it may be later.
            size = await self._run(self._settled)
            self._end = await self._run(first_since, self._view, self._until_us, begin, size)
            self._follower = self._follow(begin, self._end)
            self._until_us = 0
            self._over = True
        return await self._follower.read()

    async def _piece(self, item: Chunk | Gap) -> Piece | None:
        """What is shown of it; None if it turns out to be nothing."""
        if isinstance(item, Gap):
            end = item.offset_end if self._end is None else min(item.offset_end, self._end)
            shown = end - item.offset
            if self._selection.stream:
                end, shown = await self._run(self._gap, item, end)
                self._follower.seek(end)
            count = None if item.bytes is None else shown
            item = dataclasses.replace(item, offset_end=end, bytes=count)
            return Piece(item, end) if shown else None
        if not self._selection.arrivals:
            return Piece(item, item.offset_end)
        end, arrivals = await self._run(self._arrivals, item)
        if end < item.offset_end:
            item = dataclasses.replace(item, data=item.data[: end - item.offset])
            self._follower.seek(end)
        return Piece(item, end, arrivals)

    async def _reach(self, time_us: int) -> None:
        """Return when it is that time, or when the log will not grow any more."""
        core = self._core

        def grows() -> bool:
            return not core.ended and core.closed is None and core.given_up is None

        while (left_us := time_us - core.now_us()) > 0 and grows():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_us / 1e6, _LONGEST_NAP_S)):
                    await core.changed(grows)

    async def _last_lines(self, low: int, high: int, lines: int) -> int:
        """Where the last lines before `high` begin; `low` if there are not so many behind it."""
        lookback = _Lookback(lines)
        while low < high and lines:
            high, found = await self._run(self._back, low, high, lookback)
            if found is not None:
                return found
        return high if not lines else low

    async def _run(self, function: Callable[..., _Result], *args: object) -> _Result:
        """What may block, in the pool."""
        core = self._core
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, function, *args)
        except OSError as exc:
            raise core.closed or fault(f"read the output of job {core.job_id}", exc) from exc

    # Below: in the pool.

    def _settled(self) -> int:
        """The log's size; what is entered behind it is dated later than now."""
        with self._core.lock:
            return self._core.size

    def _shown_from(self, offset: int) -> int:
        """An offset at or behind this one up to which there is nothing to show."""
        size = self._core.size if self._end is None else self._end
        for _ in range(_BATCHES):
            spans = self._view.spans(offset, size, _SPANS)
            for span in spans:
                if self._selection.shows(span):
                    return max(offset, span.place.offset)
            if not spans:
                break
            offset = min(size, spans[-1].offset_end)
        return offset

    def _gap(self, gap: Gap, limit: int) -> tuple[int, int]:
        """How far a gap goes before one that is shown, if it is not, or the other way round, and
        how many bytes of what is shown are missing there: what was lost of one stream, and then of
        the whole log, is read as one. What expired of both streams stays one gap, or there would be
        one for each time that they spoke in turn."""
        spans = self._view.spans(gap.offset, limit, _SPANS)
        shows = self._selection.shows
        if gap.kind is GapKind.EXPIRED:
            end = min(limit, spans[-1].offset_end)
            shown = (span for span in spans if shows(span))
            parts = (min(s.offset_end, end) - max(s.place.offset, gap.offset) for s in shown)
            return end, sum(parts)
        first = shows(spans[0])
        same = itertools.takewhile(lambda span: shows(span) == first, spans)
        end = min(limit, max(span.offset_end for span in same))
        return end, end - gap.offset if first else 0

    def _arrivals(self, chunk: Chunk) -> tuple[int, tuple[tuple[int, int], ...]]:
        """How far the arrivals of a chunk's bytes are told, and these."""
        spans = self._view.spans(chunk.offset, chunk.offset_end, MAX_ARRIVALS)
        told: list[tuple[int, int]] = []
        for span in spans:
            if not told or told[-1][1] != span.time_us:
                told.append((max(0, span.place.offset - chunk.offset), span.time_us))
        return min(chunk.offset_end, spans[-1].offset_end), tuple(told)

    def _back(self, low: int, high: int, lookback: "_Lookback") -> tuple[int, int | None]:
        """A step back from `high`: where it ended, and where the lines begin if that was in it."""
        view = self._view
        begin = end = high
        first: Span | None = None
        for span in reversed(view.spans_before(high, _SPANS)):
            if span.gap or not self._selection.shows(span):
                if first is not None:
                    break
                begin = end = max(low, span.place.offset)
            else:
                first = span
                begin = max(low, span.place.offset, end - _TAIL_BYTES)
            if begin == low or end - begin >= _TAIL_BYTES:
                break
        if first is None:
            return begin, None
        place = Place(begin, first.place.record)
        chunks: list[Chunk] = []
        while place.offset < end:
            found = view.read(place, end - place.offset)
            if found is None or found is HELD:
                break  # nobody sees it yet, so nobody counts it
            item, place = found
            if isinstance(item, Chunk):
                chunks.append(item)
        for chunk in reversed(chunks):
            if (index := lookback.find(chunk.data)) is not None:
                return begin, chunk.offset + index
        return begin, None


class _Lookback:
    """Looks for the beginning of the last lines of something that is given backwards."""

    def __init__(self, lines: int) -> None:
        self._left = lines  # line ends that are still to be found
        self._last = True

    def find(self, data: bytes) -> int | None:
        """`data` stands before what was given so far: the index at which the lines begin in it."""
        end = len(data)
        if self._last:
            self._last = False
            end -= data.endswith(b"\n")  # the last line's own
        count = data.count(b"\n", 0, end)
        if count < self._left:
            self._left -= count
            return None
        for _ in range(self._left):
            end = data.rfind(b"\n", 0, end)
        return end + 1


def first_since(view: LogView, time_us: int, low: int, high: int) -> int:
    """The first offset of those from `low` on at which the log passes a time; `high` if it does
    not before. Blocking."""
    end = high
    while low < high:
        [here] = view.spans((low + high) // 2, end, 1)
        behind = here
        while here.time_us >= time_us and behind.gap and behind.offset_end < end:
            spans = view.spans(behind.offset_end, end, _SPANS)
            behind = next((span for span in spans if not span.gap), spans[-1])
        if here.time_us < time_us:
            low = min(here.offset_end, high)
        elif not behind.gap and behind.time_us < time_us:
            low = min(behind.offset_end, high)
        else:
            high = max(here.place.offset, low)
    return low
