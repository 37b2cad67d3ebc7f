# SPDX-License-Identifier: MIT
"""Follows a job through lost connections: its log byte by byte, and its end. Imports no grpc.

A server of ours says with every chunk where in the log it ends, so that after a break the stream
goes on where it stood and no byte comes twice. A published server does not: it sends the whole
log again, and what was seen is left out here. Nor can it select a part of a log: what is not to
be done here instead is refused.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from rnx.errors import BrokenOff, RnxError, Unreachable
from rnx.exits import UNENDED
from rnx.selection import WHOLE, Selection

if TYPE_CHECKING:
    from joblet_pb.joblet_pb2 import DataChunk, GetJobStatusResponse
    from rnx.last_lines import LastLines

# A restart of the server is over in seconds, an upgrade within the minute.
GIVE_UP_AFTER_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

# Asking for the end: at once, then slower; a job that just ended is seen within 50 ms.
FIRST_POLL_S = 0.05
LONGEST_POLL_S = 1.0


class Jobs(Protocol):
    """What of rnx.client.Client is needed here."""

    def job_logs(self, uuid: str, selection: Selection) -> "Generator[DataChunk, None, None]": ...

    def job_status(self, uuid: str) -> "GetJobStatusResponse": ...


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a log, or a gap in it: then `data` is empty, `gap` says why, and `missing` how many
    bytes (-1: not known). `end` is the log offset behind it. `arrivals`, if they were asked for:
    (index, µs) of each byte that arrived later than the one before it. Of a log that is in the
    journal, `cursor` is the position, and `lines` how many of them a gap is."""

    data: bytes
    end: int
    stream: int = 0
    time_us: int = 0
    gap: str = ""
    missing: int = 0
    arrivals: tuple[tuple[int, int], ...] = ()
    lines: int = 0
    cursor: str = ""


class Patience:
    """How long a lost server is waited for. `lost` is told once per break, with the reason."""

    def __init__(
        self,
        lost: Callable[[str], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lost = lost
        self._monotonic = monotonic
        self.sleep = sleep
        self._since: float | None = None
        self._pause = FIRST_PAUSE_S

    def progress(self) -> None:
        """The server is there."""
        self._since = None
        self._pause = FIRST_PAUSE_S

    def bear(self, error: Unreachable) -> None:
        """Waits a little, longer each time; raises `error` when it has been too long."""
        now = self._monotonic()
        if self._since is None:
            self._since = now
            self._lost(error.text)
        elif now - self._since >= GIVE_UP_AFTER_S:
            raise error
        self.sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)


class Log:
    """A part of a job's log. `position` is the offset up to which pieces were given out, or
    `cursor` is the place, if the log is in the journal."""

    def __init__(
        self, jobs: Jobs, uuid: str, patience: Patience, selection: Selection = WHOLE
    ) -> None:
        self._jobs = jobs
        self._uuid = uuid
        self._patience = patience
        self._selection = selection
        self.position = selection.from_offset
        self.cursor = selection.from_cursor
        self.numbered = False  # the server says of each chunk where it ends
        self._begun = not selection.narrow  # where the part begins is known: at `position`
        self._uncounted = 0  # bytes seen in this stream of a server that does not number them
        self._last_lines: LastLines | None = None

    def pieces(self) -> Iterator[Piece]:
        """Until the log's end, or the end of what was asked for.

        Raises Unreachable when the server stays away, ServerError for what it refuses, RnxError
        for what it does not know.
        """
        for piece in self._all():
            if self._last_lines is None:
                yield piece
            else:
                self._last_lines.take(piece)
        if self._last_lines is not None:
            yield from self._last_lines.pieces()

    def _all(self) -> Iterator[Piece]:
        while True:
            self._uncounted = 0
            begin = self.position, self.cursor
            wanted = self._selection.resumed(*begin) if self._begun else self._selection
            chunks = self._jobs.job_logs(self._uuid, wanted)
            try:
                with contextlib.closing(chunks):
                    selected = False
                    for chunk in chunks:
                        self._patience.progress()
                        selected = selected or chunk.begin
                        if wanted.narrow and not selected:
                            wanted = self._unselected()
                        yield from self._cut(chunk)
                        if chunk.end:
                            return
                if wanted.no_follow or not self.numbered or self._is_over(begin):
                    return
                broken = Unreachable(f"the stream of job {self._uuid} ended before its log did")
            except Unreachable as error:
                broken = error
            if not isinstance(broken, BrokenOff) or (self.position, self.cursor) == begin:
                self._patience.bear(broken)

    def _is_over(self, begin: tuple[int, str]) -> bool:
        """For a stream that ended in order, without the word that the log has: over is a job that
        has ended, and whose log gave nothing new when asked once more."""
        return (self.position, self.cursor) == begin and self._has_ended()

    def _has_ended(self) -> bool:
        return self._jobs.job_status(self._uuid).status not in UNENDED

    def _unselected(self) -> Selection:
        """For a server that sends the whole log: what is asked of it instead. Raises RnxError."""
        wanted = self._selection
        if options := wanted.unknown_to_others:
            raise RnxError(
                f"cannot read the log of job {self._uuid} with {', '.join(options)}: the server "
                "does not know how; leave it out"
            )
        if not self._has_ended():
            raise RnxError(
                f"cannot read the log of job {self._uuid} with --tail: the server does not know "
                "how, and the job has not ended; leave it out, or wait for the job's end"
            )
        from rnx.last_lines import LastLines

        self._last_lines = LastLines(wanted.tail_lines or 0)
        self._selection = wanted.resumed(wanted.from_offset)
        self._begun = True
        return self._selection

    def _cut(self, chunk: "DataChunk") -> Iterator[Piece]:
        """The chunk's part that was not given out yet, after a gap if there is one before it."""
        data = chunk.payload
        if chunk.begin:
            self.numbered = self._begun = True
            self.cursor = chunk.cursor or self.cursor
            self.position = max(self.position, chunk.offset_end)
            return
        if chunk.cursor or (chunk.HasField("gap") and not chunk.offset_end):
            yield self._of_journal(chunk)
            return
        if chunk.offset_end:
            self.numbered = True
            end = chunk.offset_end
        elif data:
            self._check_unnumbered()
            self._uncounted += len(data)
            end = self._uncounted
        else:
            return  # a sign of life, or the end
        if end <= self.position:
            return
        begin = end - len(data)
        if chunk.HasField("gap"):
            gap = chunk.gap
            self.position = end
            yield Piece(b"", end, chunk.stream, chunk.time_us, gap.kind or "unknown", gap.bytes)
            return
        # Where one stream was asked for, what lies between is the other's.
        if begin > self.position and not self._selection.stream:
            yield Piece(b"", begin, gap="unknown", missing=begin - self.position)
        seen = max(0, self.position - begin)
        self.position = end
        if new := data[seen:]:
            arrivals = _arrivals(chunk, seen)
            yield Piece(new, end, chunk.stream, chunk.time_us, arrivals=arrivals)

    def _of_journal(self, chunk: "DataChunk") -> Piece:
        """The server sends each line once: it knows where a cursor stands, which we do not."""
        self.numbered = True
        self.cursor = chunk.cursor or self.cursor
        gap = chunk.gap.kind or "unknown" if chunk.HasField("gap") else ""
        return Piece(
            chunk.payload,
            0,
            chunk.stream,
            chunk.time_us,
            gap,
            chunk.gap.bytes,
            arrivals=_arrivals(chunk, 0),
            lines=chunk.gap.lines,
            cursor=chunk.cursor,
        )

    def _check_unnumbered(self) -> None:
        """Raises RnxError for a server that will go on with the job whatever it was asked."""
        if self._selection.no_follow and not self._uncounted and not self._has_ended():
            raise RnxError(
                f"cannot read the log of job {self._uuid} with --no-follow: the server does not "
                "know how, and the job has not ended; leave it out"
            )


def _arrivals(chunk: "DataChunk", begin: int) -> tuple[tuple[int, int], ...]:
    """When the chunk's bytes from index `begin` on arrived, as far as it says."""
    told = list(zip(chunk.arrivals.at, chunk.arrivals.time_us, strict=False))
    first = [(0, time_us) for at, time_us in told if at <= begin][-1:]
    return (*first, *((at - begin, time_us) for at, time_us in told if at > begin))


def wait_for_end(jobs: Jobs, uuid: str, patience: Patience) -> "GetJobStatusResponse":
    """The job's status when it has ended. Raises as Log.pieces does."""
    pause = FIRST_POLL_S
    while True:
        try:
            job = jobs.job_status(uuid)
        except Unreachable as error:
            patience.bear(error)
            continue
        patience.progress()
        if job.status not in UNENDED:
            return job
        patience.sleep(pause)
        pause = min(pause * 1.5, LONGEST_POLL_S)
