# SPDX-License-Identifier: MIT
"""A plain copy of a job's output for the journal: whole lines, sent through init mode, limited.

The log store is the truth. What is beyond the limit is left out, and a line in its place says how
much. The copy reads the log like any follower, and delays neither the job, nor a launch, nor
another follower; what it leaves out it passes over without reading it.

Each job has a burst and then a rate (a token bucket), and so have all jobs together. What a line
costs is what it takes in the journal: its bytes, and those of its entry. One that is over its limit
rests until there is something to spend again, jobs that had little before those that had much, and
goes on with the newest output that it can afford: so the last words of a loud job are always there,
and a quiet one is not drowned by a thousand loud ones. The same happens to a copy that falls
behind, because journald is slow or the jobs are many.
"""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from joblet.errors import JobletError, Unavailable
from joblet.launch import protocol
from joblet.model import Job
from joblet.server.budgets import Budget, Shared
from joblet.server.launcher import Launcher
from joblet.server.logs import Chunk, JobLog

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 49_152  # of one message to init mode
MAX_LINE: Final = BATCH_BYTES - 1  # a longer line is cut, as journald itself cuts at 48 KiB
READ_BYTES: Final = BATCH_BYTES // 2
PAUSE_S: Final = 1.0  # of a copy that is over its limit, before it looks again
PART_BYTES: Final = 32_768  # that it waits for then, or as much as there is to copy
LINE_BYTES: Final = 100  # how long a line is taken to be, before any was seen
LATE_US: Final = 2_000_000  # output that is older is passed over
# Charged for a line on top of its bytes: what its entry takes in the journal's file. Measured with
# systemd 252 and 257: 494 bytes a line of 6, 590 a line of 103 (the entry 160, its place in the
# lists of entries with the same fields 125, the headers of two data objects and a time of its own
# 200). journald takes some 20 microseconds for it, and for the bytes of a line hardly any.
ENTRY_BYTES: Final = 500
# Of a job that has ended so much is copied whatever its limit says: 40 lines of 100 bytes.
LAST_BYTES: Final = 24_000
END_S: Final = 1.0  # that a copy may take to catch up with a job that has ended
AWAY_S: Final = 1.0  # how long init mode is not asked again
# A loss of unknown size sends offsets further than any output can be.
UNKNOWN_BYTES: Final = 1 << 39


class LineSplitter:
    """Whole lines out of chunks; what has no newline yet waits, up to MAX_LINE. None is longer."""

    def __init__(self) -> None:
        self._rest = b""
        self._within = False  # a line whose beginning was not seen

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

    def pass_over(self) -> int:
        """Something is left out before what comes next, and with it both halves of the lines at its
        edges; how many bytes that are so far."""
        rest, self._rest = self._rest, b""
        self._within = True
        return len(rest)

    def resume(self, data: bytes) -> bytes:
        """`data` from the first beginning of a line on."""
        if not self._within:
            return data
        _, newline, behind = data.partition(b"\n")
        self._within = not newline
        return behind


def _cut(line: bytes) -> bytes:
    """A line, without its newline, as lines that are not too long."""
    return b"\n".join(line[at : at + MAX_LINE] for at in range(0, len(line), MAX_LINE))


def cost(lines: bytes) -> int:
    """What lines are charged."""
    return len(lines) + ENTRY_BYTES * lines.count(b"\n")


def affordable(lines: bytes, room: int) -> int:
    """How many of the first bytes cost at most `room`: all, or whole lines."""
    if cost(lines) <= room:
        return len(lines)
    count = 0
    while (behind := lines.find(b"\n", count) + 1) > 0:
        room -= behind - count + ENTRY_BYTES
        if room < 0:
            break
        count = behind
    return count


class Channel:
    """To who sends for us: one for all jobs, opened when it is needed. A message at a time, each
    answered; whoever waits for their turn falls behind, and passes over what is late."""

    def __init__(self, launcher: Launcher, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._launcher = launcher
        self._clock = clock
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._away_until = 0.0

    async def send(self, job: str, stream: int, lines: bytes, *, missing: int = 0) -> int:
        """Whole lines; how many of them, always the last ones, journald did not take. missing: they
        are our note of so many bytes that are not there. Raises JobletError."""
        head = json.dumps({"job": job, "stream": stream, "missing": missing}).encode()
        async with self._turn:
            try:
                answer = json.loads(await self._exchange(head + b"\n" + lines))
                return int(answer["left_out"])
            except BaseException as error:
                self.close()  # an answer that nobody waited for would be the next one's
                self._away_until = self._clock() + AWAY_S
                if isinstance(error, OSError | ValueError | KeyError | TypeError):
                    raise Unavailable("copy lines to the journal", f"{error}") from None
                raise

    async def _exchange(self, message: bytes) -> bytes:
        if self._socket is None:
            if self._clock() < self._away_until:
                raise Unavailable("copy lines to the journal", "init mode was away just now")
            self._socket = await self._launcher.copy_journal()
            self._socket.settimeout(0)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, message)
        if answer := await loop.sock_recv(self._socket, 1024):
            return answer
        raise Unavailable("copy lines to the journal", "init mode hung up")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Copier:
    """rate, burst: of each job, in bytes a second and bytes. A rate of 0: no copies. of_all: what
    all jobs have together."""

    def __init__(
        self,
        channel: Channel,
        *,
        rate: int,
        burst: int,
        of_all: Shared,
        clock: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int],
    ) -> None:
        self._channel = channel
        self._rate, self._burst = rate, burst
        self._of_all = of_all
        self._clock = clock
        self._wall_us = wall_us

    async def copy(self, job: Job, job_log: JobLog, from_offset: int, ended: asyncio.Event) -> None:
        """From an offset to the log's end; behind `ended` it makes haste. Raises JobletError when
        the log does.

        While init mode is away, which restarts when it likes, lines are left out.
        """
        if self._rate:
            own = Budget(self._rate, self._burst, self._clock)
            purse = _Purse(own, self._of_all)
            copy = _Copy(job, job_log, self._channel, purse, self._clock, self._wall_us)
            await copy.run(from_offset, ended)


class _Purse:
    """What a copy may spend: as much as its own budget and that of all jobs have."""

    def __init__(self, own: Budget, of_all: Shared) -> None:
        self._own = own
        self._of_all = of_all
        self._most = min(PART_BYTES, int(own.burst), int(of_all.burst))
        self._credit = 0  # taken from that of all
        self._had = 0

    @property
    def room(self) -> int:
        return min(self._own.left, self._credit + self._of_all.left)

    def pay(self, size: int) -> None:
        """Nothing if it is not there."""
        self._own.take(size)
        from_credit = min(size, self._credit)
        self._credit -= from_credit
        self._of_all.take(size - from_credit)
        self._had += size

    async def fill(self, want: int, ended: asyncio.Event) -> None:
        """Until there is room for so much, or for a part of it, or `ended`."""
        part = min(want, self._most)
        filling = asyncio.ensure_future(self._fill(part))
        ending = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait({filling, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (filling, ending):
                task.cancel()
            await asyncio.gather(filling, ending, return_exceptions=True)

    async def _fill(self, part: int) -> None:
        while rest := self._own.seconds_until(part):  # noqa: ASYNC110 - it is time that passes
            await asyncio.sleep(min(PAUSE_S, rest))
        if self._credit < part:
            await self._of_all.wait(part - self._credit, self._had)
            self._credit = part


class _Copy:
    """Of one job."""

    def __init__(
        self,
        job: Job,
        job_log: JobLog,
        channel: Channel,
        purse: _Purse,
        clock: Callable[[], float],
        wall_us: Callable[[], int],
    ) -> None:
        self._job = job
        self._log = job_log
        self._channel = channel
        self._purse = purse
        self._clock = clock
        self._wall_us = wall_us
        self._splitters = {n: LineSplitter() for n in range(1, len(protocol.STREAMS) + 1)}
        self._left_out = 0  # bytes that no note has told of yet
        self._at_least = False
        self._line = LINE_BYTES  # how long they are, as far as was seen
        self._hurry_at: float | None = None

    async def run(self, offset: int, ended: asyncio.Event) -> None:
        follower = self._log.follow(offset, max_bytes=READ_BYTES)
        while True:
            if offset < self._log.size and self._purse.room <= ENTRY_BYTES:
                await self._fill(offset, ended)  # what cannot be copied is not read
            if (item := await follower.read()) is None:
                break
            offset = item.offset_end
            if not isinstance(item, Chunk):
                continue
            if not self._late(item, ended):
                if not (item := await self._copy_affordable(item, ended)).data:
                    continue
                await self._fill(item.offset, ended)
            target = self._target(item, ended)
            if target - item.offset >= UNKNOWN_BYTES:
                # the log ends with a loss, and nobody knows where its last bytes are
                self._at_least = True
                self._pass_over(len(item.data))
                if self._log.ended:
                    break
                follower = self._log.follow(target, max_bytes=READ_BYTES)
                continue
            if target > item.offset:
                self._pass_over(target - item.offset)
            else:
                if not (item := await self._copy_affordable(item, ended)).data:
                    continue
                self._pass_over(len(item.data))
                target = offset
            follower = self._log.follow(target, max_bytes=READ_BYTES)
        for number, splitter in self._splitters.items():
            if rest := splitter.end():
                await self._send(number, rest)
        await self._note(1)

    async def _fill(self, offset: int, ended: asyncio.Event) -> None:
        """Until something of what stands behind an offset can be afforded, or `ended`."""
        if not ended.is_set():
            count = min(PART_BYTES, self._log.size - offset)
            lines = count // self._line + 1
            await self._purse.fill(count + lines * ENTRY_BYTES, ended)

    def _late(self, item: Chunk, ended: asyncio.Event) -> bool:
        """Whether what was just read is too old to be copied before what is newer."""
        behind = self._log.size - item.offset_end
        if behind < BATCH_BYTES:
            return False
        if ended.is_set():
            self._hurry_at = self._hurry_at or self._clock() + END_S
            return self._clock() > self._hurry_at
        return self._wall_us() - item.time_us > LATE_US

    async def _copy_affordable(self, item: Chunk, ended: asyncio.Event) -> Chunk:
        """What is left of a chunk, nothing if all of it was copied."""
        size = len(item.data)
        # what follows is taken to have lines as long as these
        last = (self._log.size - item.offset) * cost(item.data) <= LAST_BYTES * size
        if not (ended.is_set() and last):
            size = affordable(item.data, self._purse.room)
        self._line = max(1, len(item.data) // max(1, item.data.count(b"\n")))
        if size:
            head = dataclasses.replace(item, data=item.data[:size])
            self._purse.pay(cost(head.data))
            await self._copy(head)
        return dataclasses.replace(item, offset=item.offset + size, data=item.data[size:])

    def _target(self, item: Chunk, ended: asyncio.Event) -> int:
        """The newest offset from which the rest can be afforded, if its lines are as long as this
        chunk's; this chunk's if all of it can."""
        room = self._purse.room
        if ended.is_set():
            room = max(room, LAST_BYTES)
        count = self._log.size - item.offset
        if count * cost(item.data) > room * len(item.data):
            # less one line: where it begins, one may be cut
            count = max(0, room - ENTRY_BYTES) * len(item.data) // cost(item.data)
        if self._late(item, ended):
            count = min(count, BATCH_BYTES)
        return max(item.offset, self._log.size - count)

    def _pass_over(self, count: int) -> None:
        self._left_out += count
        for splitter in self._splitters.values():
            self._left_out += splitter.pass_over()

    async def _copy(self, item: Chunk) -> None:
        splitter = self._splitters[item.stream]
        data = splitter.resume(item.data)
        self._left_out += len(item.data) - len(data)
        if lines := splitter.feed(data):
            await self._note(item.stream)
            await self._send(item.stream, lines)

    async def _note(self, stream: int) -> None:
        """Say that something is missing; not said, it is still to be told of."""
        if not self._left_out:
            return
        count = f"{'at least ' if self._at_least else ''}{self._left_out} bytes"
        note = f"joblet: {count} left out here; see `rnx job log {self._job.id[:8]}`\n"
        if not await self._hand_over(stream, note.encode(), missing=self._left_out):
            self._left_out = 0

    async def _send(self, stream: int, lines: bytes) -> None:
        while lines:
            part = lines[:BATCH_BYTES]
            if len(lines) > BATCH_BYTES:
                part = part[: part.rfind(b"\n") + 1] or part
            if refused := await self._hand_over(stream, part):
                last = part.removesuffix(b"\n").split(b"\n")[-refused:]
                self._left_out += sum(map(len, last)) + len(last)
            lines = lines[len(part) :]

    async def _hand_over(self, stream: int, lines: bytes, *, missing: int = 0) -> int:
        """How many lines were left out."""
        try:
            return await self._channel.send(self._job.id, stream, lines, missing=missing)
        except JobletError as error:
            log.debug("%s", error, extra={"job": self._job.id})
            return lines.count(b"\n")
