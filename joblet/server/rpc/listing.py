# SPDX-License-Identifier: MIT
"""ListJobs: the newest jobs that fit into a message, or page by page all of them.

A page is in order of creation, whichever way the pages go. A token names the last job of a page by
its number, which no other job ever gets: jobs that come and go between two pages neither move a
page nor double a job.

Most of a long list is as it was in the list before, because the job has ended, or just goes on. So
it is kept as it was encoded, and neither read nor encoded again; what is made anew is made in
slices, with other work between them. The answer is put together from its parts: a message is its
parts one behind the other.
"""

import asyncio
import base64
import binascii
import contextlib
import struct
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple

from joblet.errors import InvalidArgument
from joblet.model import Job
from joblet.server.records import LAST
from joblet.server.rpc import convert
from joblet.server.supervisor import Supervisor
from joblet_pb import joblet_pb2 as pb

MAX_BYTES: Final = 3_500_000  # a client's default limit is 4 MiB
HEADS: Final = 2000  # jobs whose numbers are read at once, some ms
SLICE: Final = 50  # jobs that are encoded in a row, about 2 ms
LOAD: Final = 250  # jobs that are read at once
WHAT: Final = "list jobs"

# A token: direction, number of a job, CRC-32 of both; base64 for URLs. Clients only hand it back.
_TOKEN: Final = struct.Struct(">BQ")
_CHECK: Final = struct.Struct(">I")
_PAD: Final = "=="
_TOKEN_LENGTH: Final = 18
_NEWEST_FIRST: Final = 1
_OLDEST_FIRST: Final = 2


class Part(NamedTuple):
    """A job as it is in the answer, encoded; and what it was made of, None if it has ended."""

    encoded: bytes
    job: Job | None


class Listing:
    """For one server, whose node id stands in every job."""

    def __init__(self, supervisor: Supervisor, *, node_id: str) -> None:
        self._supervisor = supervisor
        self._node_id = node_id
        # By the jobs' ids, as in the last first page of either order.
        self._kept: dict[bool, dict[str, Part]] = {}

    async def page(self, request: pb.EmptyRequest) -> bytes:
        """pb.Jobs, encoded. Raises InvalidArgument for a size or a token that is none."""
        newest_first = not request.oldest_first
        cursor = number_of(request.page_token, newest_first=newest_first)
        if request.page_size < 0:
            raise InvalidArgument(WHAT, f"page_size is negative: {request.page_size}")
        most = request.page_size or LAST
        parts: list[bytes] = []
        kept: dict[str, Part] = {}
        size, more = 0, False
        jobs = self._encoded(cursor, most, newest_first=newest_first)
        async with contextlib.aclosing(jobs):
            async for number, job_id, part in jobs:
                # (a page without any job would be the last one)
                length = len(part.encoded)
                more = len(parts) == most or (size + length > MAX_BYTES and bool(parts))
                if more:
                    break
                size += length
                parts.append(part.encoded)
                cursor = number
                kept[job_id] = part
        if not request.page_token and not request.page_size:
            self._kept[newest_first] = kept
        if newest_first:
            parts.reverse()
        if more:
            following = pb.Jobs(next_page_token=token(cursor, newest_first=newest_first))
            parts.append(following.SerializeToString())
        return b"".join(parts)

    async def _encoded(
        self, cursor: int, most: int, *, newest_first: bool
    ) -> AsyncGenerator[tuple[int, str, Part], None]:
        """Number, id, and part of the answer, of up to one job more than `most`."""
        left = most + 1
        while left > 0:
            wanted = min(HEADS, left)
            heads = await self._supervisor.heads(cursor, wanted, newest_first=newest_first)
            for begin in range(0, len(heads), LOAD):
                some = heads[begin : begin + LOAD]  # if the page is full, the rest is not even read
                parts = await self._parts([job_id for _, job_id in some])
                for number, job_id in some:
                    if job_id in parts:  # else it was deleted meanwhile
                        yield number, job_id, parts[job_id]
            if len(heads) < wanted:
                return
            cursor = heads[-1][0]
            left -= wanted

    async def _parts(self, ids: Sequence[str]) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        jobs: list[Job] = []
        unknown: list[str] = []
        for job_id in ids:
            living = self._supervisor.living(job_id)
            part = next((kept[job_id] for kept in self._kept.values() if job_id in kept), None)
            # a job that changes is another object
            if part is not None and (part.job is None or part.job is living):
                parts[job_id] = part
            elif living is not None:
                jobs.append(living)
            else:
                unknown.append(job_id)
        if unknown:
            jobs += (await self._supervisor.load(unknown)).values()
        for made, job in enumerate(jobs, 1):
            one = pb.Jobs(jobs=[convert.listed(job, self._node_id)])
            parts[job.id] = Part(one.SerializeToString(), None if job.final else job)
            if made % SLICE == 0:
                await asyncio.sleep(0)
        return parts


def token(number: int, *, newest_first: bool) -> str:
    """For the jobs behind (or, newest first, before) this one."""
    body = _TOKEN.pack(_NEWEST_FIRST if newest_first else _OLDEST_FIRST, number)
    return base64.urlsafe_b64encode(body + _CHECK.pack(zlib.crc32(body))).decode().rstrip("=")


def number_of(text: str, *, newest_first: bool) -> int:
    """The job's number in a token; 0 for none. Raises InvalidArgument."""
    if not text:
        return 0
    try:
        data = base64.urlsafe_b64decode(text + _PAD if len(text) == _TOKEN_LENGTH else "")
        direction, number = _TOKEN.unpack(data[: _TOKEN.size])
    except (binascii.Error, ValueError, struct.error):
        raise _no_token("it is not one that this server made") from None
    # whatever base64 reads as the same is not the same text
    if not 0 < number <= LAST or token(number, newest_first=direction == _NEWEST_FIRST) != text:
        raise _no_token("it is not one that this server made")
    if (direction == _NEWEST_FIRST) != newest_first:
        raise _no_token("it belongs to a list in the other order")
    return int(number)


def _no_token(why: str) -> InvalidArgument:
    hint = "hand back next_page_token of the page before, or none for the first page"
    return InvalidArgument(WHAT, f"page_token cannot be used: {why}", hint=hint)
