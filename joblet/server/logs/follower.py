# SPDX-License-Identifier: MIT
"""Read a log by offset, from any point of its past into its future.

A follower is a cursor: it holds no bytes between two reads, and the log does not know how many
there are. It waits for growth without polling; files are read in a bounded pool of threads.

Must not import anything of joblet but joblet.errors and its neighbours faults, view.
"""

import asyncio
import concurrent.futures
import functools
from typing import Final, Self

from joblet.errors import InvalidArgument
from joblet.server.logs.faults import fault
from joblet.server.logs.view import HELD, Chunk, Gap, Held, LogView, Place

DEFAULT_CHUNK_BYTES: Final = 1 << 20
MAX_CHUNK_BYTES: Final = 16 << 20


class Follower:
    """Iterates over a log's chunks and gaps in order of their offsets. One task at a time.

    Neighbouring records of one stream come as one chunk of at most `max_bytes`. It ends at the
    offset `until`, which is in the log; without one behind the end of all expected streams, or
    with `follow=False` where the log ended when it was made. A gap may reach beyond `until`.
    Raises InvalidArgument for an offset beyond the log's end.
    """

    def __init__(
        self,
        view: LogView,
        pool: concurrent.futures.Executor,
        *,
        from_offset: int,
        follow: bool,
        max_bytes: int,
        until: int | None = None,
    ) -> None:
        check_range(view, from_offset, max_bytes)
        self._view = view
        self._core = core = view.core
        self._pool = pool
        self._place = Place(from_offset)
        self._until = until if follow or until is not None else core.size
        self._waits = follow
        self._max_bytes = max_bytes

    @property
    def offset(self) -> int:
        """The log offset of the next byte; where to resume."""
        return self._place.offset

    def seek(self, offset: int) -> None:
        """Go on at an offset that is in the log."""
        self._place = Place(offset)

    async def read(self) -> Chunk | Gap | None:
        """The next chunk or gap, None at the end. Cancelled, it leaves the cursor where it is.

        Raises NotFound if the log was removed, Unavailable if the store stops, Internal if the
        disk fails, and at the end of what there is why nobody attends to the job any more.
        """
        core = self._core
        while True:
            if core.closed is not None:
                raise core.closed
            ended = core.ended  # first: nothing grows behind the end
            size, records = core.size, core.state.records
            if self._until is not None and self.offset >= self._until:
                return None
            if self.offset < size:
                found = await self._look()
                if found is None:
                    return None
                if found is not HELD:
                    item, self._place = found
                    return item
                if not self._waits:
                    return None  # whoever reads on from here will see what it becomes
            elif ended:
                return None
            if core.given_up is not None:
                raise core.given_up
            await core.changed(functools.partial(self._nothing_new, records))

    async def _look(self) -> tuple[Chunk | Gap, Place] | Held | None:
        core = self._core
        room = self._max_bytes
        if self._until is not None:
            room = min(room, self._until - self.offset)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._view.read, self._place, room)
        except OSError as exc:
            raise core.closed or fault(f"read the output of job {core.job_id}", exc) from exc

    def _nothing_new(self, records: int) -> bool:
        core = self._core
        return core.state.records == records and core.closed is None and core.given_up is None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk | Gap:
        item = await self.read()
        if item is None:
            raise StopAsyncIteration
        return item


def check_range(view: LogView, offset: int, max_bytes: int) -> None:
    """Raises InvalidArgument for an offset or a size that cannot be read."""
    core = view.core
    what = f"read the output of job {core.job_id}"
    if not 0 <= offset <= core.size:
        raise InvalidArgument(what, f"offset {offset} is not in the log, which ends at {core.size}")
    if not 0 < max_bytes <= MAX_CHUNK_BYTES:
        raise InvalidArgument(what, f"chunks of {max_bytes} bytes, 1 to {MAX_CHUNK_BYTES} allowed")
