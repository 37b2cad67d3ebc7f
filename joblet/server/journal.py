# SPDX-License-Identifier: MIT
"""A plain copy of a job's output for the journal: whole lines, sent through init mode,
rate-limited.

The log store is the truth. Lines beyond the rate are left out and counted, and a line says so; the
copy reads the log like any follower and can neither delay the job nor its launch.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from joblet.errors import Unavailable
from joblet.launch import protocol
from joblet.model import Job
from joblet.server.launcher import Launcher
from joblet.server.logs import Chunk, JobLog

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 49_152  # of one message to init mode
MAX_LINE: Final = BATCH_BYTES - 1  # a longer line is cut, as journald itself cuts at 48 KiB
RATE: Final = 1_000_000  # bytes/s of one job, in the long run
BURST: Final = 8_000_000  # bytes that a quiet job may send at once


class LineSplitter:
    """Whole lines out of chunks; what has no newline yet waits, up to MAX_LINE. None is longer."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The whole lines there are now, newlines included."""
        text = self._rest + data
        head, newline, self._rest = text.rpartition(b"\n")
        lines = head + newline
        if len(text) > MAX_LINE:  # only then can one line be too long
            lines = b"\n".join(map(_cut, lines.split(b"\n")))
            *full, self._rest = _cut(self._rest).split(b"\n")
            lines += b"".join(piece + b"\n" for piece in full)
        return lines

    def end(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest + b"\n" if rest else b""


def _cut(line: bytes) -> bytes:
    """A line, without its newline, as lines that are not too long."""
    return b"\n".join(line[at : at + MAX_LINE] for at in range(0, len(line), MAX_LINE))


class Budget:
    """A token bucket in bytes; `clock` in seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()

    def take(self, size: int) -> bool:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < size:
            return False
        self._left -= size
        return True


class Copier:
    def __init__(self, launcher: Launcher, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._launcher = launcher
        self._clock = clock

    async def copy(self, job: Job, job_log: JobLog, from_offset: int) -> None:
        """From an offset to the log's end. Raises JobletError when the log does.

        While init mode is away, which restarts when it likes, lines are left out.
        """
        budget = Budget(RATE, BURST, self._clock)
        splitters = {number: LineSplitter() for number in range(1, len(protocol.STREAMS) + 1)}
        left_out = 0
        async for item in job_log.follow(from_offset, max_bytes=BATCH_BYTES // 2):
            if not isinstance(item, Chunk):
                continue
            lines = splitters[item.stream].feed(item.data)
            if not lines:
                continue
            if not budget.take(len(lines)):
                left_out += lines.count(b"\n")
                continue
            left_out = await self._note(job, item.stream, left_out)
            left_out += await self._send(job, item.stream, lines)
        for number, splitter in splitters.items():
            if rest := splitter.end():
                left_out += await self._send(job, number, rest)
        await self._note(job, 1, left_out)

    async def _note(self, job: Job, stream: int, left_out: int) -> int:
        """Say that lines are missing; how many are still to be told of, if the note is, too."""
        if not left_out:
            return 0
        note = f"joblet: {left_out} lines left out here; see `rnx job log {job.id[:8]}`\n"
        lost = await self._hand_over(job, stream, note.encode(), missing=left_out)
        return left_out if lost else 0

    async def _send(self, job: Job, stream: int, lines: bytes) -> int:
        left_out = 0
        while lines:
            part = lines[:BATCH_BYTES]
            if len(lines) > BATCH_BYTES:
                part = part[: part.rfind(b"\n") + 1] or part
            left_out += await self._hand_over(job, stream, part)
            lines = lines[len(part) :]
        return left_out

    async def _hand_over(self, job: Job, stream: int, lines: bytes, *, missing: int = 0) -> int:
        """How many lines were left out."""
        try:
            return await self._launcher.journal(job.id, stream, lines, missing=missing)
        except Unavailable as error:
            log.debug("%s", error, extra={"job": job.id})
            return lines.count(b"\n")
