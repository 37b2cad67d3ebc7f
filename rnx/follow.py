# SPDX-License-Identifier: MIT
"""Follows a job through lost connections: its log byte by byte, and its end. Imports no grpc.

A server of ours says with every chunk where in the log it ends, so that after a break the stream
goes on where it stood and no byte comes twice. A published server does not: it sends the whole
log again, and what was seen is left out here.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from rnx.errors import Unreachable
from rnx.exits import UNENDED

if TYPE_CHECKING:
    from joblet_pb.joblet_pb2 import DataChunk, GetJobStatusResponse

# A restart of the server is over in seconds, an upgrade within the minute.
GIVE_UP_AFTER_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

# Asking for the end: at once, then slower; a job that just ended is seen within 50 ms.
FIRST_POLL_S = 0.05
LONGEST_POLL_S = 1.0


class Jobs(Protocol):
    """What of rnx.client.Client is needed here."""

    def job_logs(
        self, uuid: str, *, from_offset: int, no_follow: bool
    ) -> "Generator[DataChunk, None, None]": ...

    def job_status(self, uuid: str) -> "GetJobStatusResponse": ...


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a log, or a gap in it: then `data` is empty, `gap` says why, and `missing` how many
    bytes (-1: not known). `end` is the log offset behind it."""

    data: bytes
    end: int
    stream: int = 0
    time_us: int = 0
    gap: str = ""
    missing: int = 0


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
    """A job's log from an offset on. `position` is the offset up to which pieces were given out."""

    def __init__(self, jobs: Jobs, uuid: str, patience: Patience, *, from_offset: int = 0) -> None:
        self._jobs = jobs
        self._uuid = uuid
        self._patience = patience
        self.position = from_offset
        self._numbered = False
        self._uncounted = 0  # bytes seen in this stream of a server that does not number them

    def pieces(self, *, no_follow: bool = False) -> Iterator[Piece]:
        """Until the log's end, or with `no_follow` until the end of what there is now.

        Raises Unreachable when the server stays away, ServerError for what it refuses.
        """
        while True:
            self._uncounted = 0
            begin = self.position
            chunks = self._jobs.job_logs(self._uuid, from_offset=begin, no_follow=no_follow)
            try:
                with contextlib.closing(chunks):
                    for chunk in chunks:
                        self._patience.progress()
                        yield from self._cut(chunk)
                        if chunk.end:
                            return
                if no_follow or not self._numbered or self._is_over(begin):
                    return
                broken = Unreachable(f"the stream of job {self._uuid} ended before its log did")
            except Unreachable as error:
                broken = error
            self._patience.bear(broken)

    def _is_over(self, begin: int) -> bool:
        """For a stream that ended in order, without the word that the log has: over is a job that
        has ended, and whose log gave nothing new when asked once more."""
        return self.position == begin and self._jobs.job_status(self._uuid).status not in UNENDED

    def _cut(self, chunk: "DataChunk") -> Iterator[Piece]:
        """The chunk's part that was not given out yet, after a gap if there is one before it."""
        data = chunk.payload
        if chunk.offset_end:
            self._numbered = True
            end = chunk.offset_end
        elif data:
            self._uncounted += len(data)
            end = self._uncounted
        else:
            return  # a sign of life, or the end
        if end <= self.position:
            return
        if chunk.HasField("gap"):
            gap = chunk.gap
            self.position = end
            yield Piece(b"", end, chunk.stream, chunk.time_us, gap.kind or "unknown", gap.bytes)
            return
        if not data:
            return
        begin = end - len(data)
        if begin > self.position:
            yield Piece(b"", begin, gap="unknown", missing=begin - self.position)
            self.position = begin
        new = data[self.position - begin :]
        self.position = end
        yield Piece(new, end, chunk.stream, chunk.time_us)


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
