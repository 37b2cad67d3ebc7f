# SPDX-License-Identifier: MIT
"""The log of a job whose log driver is journald: read back from the journal, through init mode.

A position in it is a cursor of the journal. What is read is text in lines, as far as the journal
has it: journald drops lines of a job that is too loud, and says so; a job's PID 1 ends each stream
with a line of its own, so that a loss at the end is seen as well. Both are gaps here.
"""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Final

from joblet import link
from joblet.errors import Unavailable
from joblet.link import Message
from joblet.model import Job
from joblet.server.launcher import Launcher
from joblet.server.logs import GapKind
from joblet.server.logs.mask import Mask, of, stars
from joblet.server.patience import pauses

SILENT_TRIES: Final = 3  # readers that end without a word before the client hears of it


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What of a log: behind a cursor, or since a time, or the last lines (-1: all); before a time;
    one stream or both (0). Times in µs since the epoch, 0: none. single: each line by itself, with
    its time."""

    cursor: str = ""
    since_us: int = 0
    until_us: int = 0
    tail: int = -1
    stream: int = 0
    single: bool = False

    @property
    def begins(self) -> bool:
        """Whether it is known where it begins, before anybody reads."""
        return not self.since_us and self.tail < 0


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Lines of one stream; read on behind `cursor`."""

    data: bytes
    stream: int
    time_us: int
    cursor: str


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """Lines that the journal does not have; `lines` -1: nobody knows how many. stream 0: both, or
    not known. `cursor` is "" where nothing is known to stand behind it."""

    kind: str
    lines: int
    stream: int
    time_us: int = 0
    cursor: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Begin:
    """Where a part begins that `since_us` or `tail` asked for: behind `cursor`, "": the start."""

    cursor: str


@dataclasses.dataclass(frozen=True, slots=True)
class Complete:
    """The last item of a reading behind which nothing of what was asked for will ever come."""


Item = Begin | Text | Missing | Complete


class JournalLogs:
    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def read(
        self, job: Job, wanted: Wanted, ended: Callable[[], Awaitable[Job]] | None
    ) -> AsyncGenerator[Item, None]:
        """What there is, and with `ended` what comes until then: it returns the job with its final
        record. Restarts of init mode are bridged.

        Raises InvalidArgument for what is no cursor, Unavailable when the journal cannot be read.
        """
        cover = Cover(job.spec.secret_environment.values())
        silent = 0
        waiting = pauses()
        while True:
            end = await self._launcher.read_journal(job.id, **_request(job, wanted))
            try:
                async with contextlib.aclosing(_frames(end, job, ended)) as items:
                    async for item in items:
                        silent = 0
                        if isinstance(item, Begin):
                            wanted = dataclasses.replace(wanted, since_us=0, tail=-1)
                        if not isinstance(item, Complete) and item.cursor:
                            wanted = dataclasses.replace(wanted, cursor=item.cursor)
                        yield cover.covered(item) if isinstance(item, Text) else item
            except _Broken:
                silent += 1
                if silent >= SILENT_TRIES:
                    raise Unavailable(
                        f"read the output of job {job.id}",
                        "who reads the journal ended without a word",
                        hint="see `journalctl -u joblet-init.service` and `journalctl --verify`",
                    ) from None
                await asyncio.sleep(next(waiting))
            else:
                return


class _Broken(Exception):
    """The reader is gone before the end: init mode was restarted, or something is wrong."""


async def _frames(
    end: socket.socket, job: Job, ended: Callable[[], Awaitable[Job]] | None
) -> AsyncGenerator[Item, None]:
    """Raises _Broken, and what the reader says."""
    reader, writer = await asyncio.open_connection(sock=end)
    finishing = asyncio.ensure_future(_finish(writer, job, ended))
    try:
        while True:
            try:
                fields, data = await link.read_frame(reader)
            except Unavailable:
                raise _Broken from None
            if "error" in fields:
                raise link.error_from(fields["error"])
            if "end" in fields:
                now = job if fields.get("past") else await finishing
                for item in _tail(now, fields):
                    yield item
                if now.final or fields.get("past"):
                    yield Complete()
                return
            if "begin" in fields:
                yield Begin(str(fields.get("cursor", "")))
            else:
                yield _item(fields, data)
    finally:
        finishing.cancel()
        writer.close()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await finishing


async def _finish(
    writer: asyncio.StreamWriter, job: Job, ended: Callable[[], Awaitable[Job]] | None
) -> Job:
    """Tell the reader, when it is so, that nothing comes any more. The job as it is then."""
    try:
        return await ended() if ended is not None else job
    finally:
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


def _request(job: Job, wanted: Wanted) -> dict[str, Any]:
    began = job.started_us if wanted.begins and not wanted.cursor else 0
    streams = 1 if job.spec.merge else 2
    asked = {**dataclasses.asdict(wanted), "single": int(wanted.single)}
    return {"began_us": began, "streams": streams, **asked}


def _item(fields: Message, data: bytes) -> Text | Missing:
    stream, time_us = int(fields.get("stream", 0)), int(fields.get("time_us", 0))
    cursor = str(fields.get("cursor", ""))
    if "gap" in fields:
        lines = int(fields.get("lines", -1))
        return Missing(str(fields["gap"]), lines, stream, time_us, cursor)
    return Text(data, stream, time_us, cursor)


def _tail(job: Job, fields: Message) -> Iterable[Missing]:
    """What is not known of the end of a job that has ended: a stream without its last line has lost
    that line at least."""
    missing = [int(stream) for stream in fields.get("missing", ())]
    if not job.final or not job.started_us or not missing:
        return
    for stream in [0] if len(missing) > 1 else missing:
        yield Missing(GapKind.LOST, -1, stream, job.ended_us)


class Cover:
    """Secrets covered in what is read, as the store's readers see it; in the journal itself they
    stand. A line is looked at with what came before it in its stream."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # journald has made lines of a value with newlines, and thrown empty ones away
        self._mask: Mask | None = of(line for secret in secrets for line in secret.splitlines())
        self._before: dict[int, bytes] = {}

    def covered(self, text: Text) -> Text:
        mask = self._mask
        if mask is None:
            return text
        before = self._before.get(text.stream, b"")
        shown = mask.covered(before, text.data, b"")
        window = before + text.data
        if not text.data.endswith((b"\n", b"\0")):  # what goes on may become one
            undecided = min(len(shown), mask.open_tail(window))
            shown = shown[: len(shown) - undecided] + stars(undecided)
        self._before[text.stream] = window[-mask.reach :] if mask.reach else b""
        return dataclasses.replace(text, data=shown)
