# SPDX-License-Identifier: MIT
"""Read one item ahead of whoever uses them.

Must not import anything of joblet.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

Item = TypeVar("Item")


async def one_ahead(read: Callable[[], Awaitable[Item | None]]) -> AsyncGenerator[Item, None]:
    """What `read` gives until None, each read while the one before it is used.

    Closed or cancelled, it cancels a read and waits for it. Raises what `read` does, in its place.
    """

    async def next_one() -> Item | None:
        return await read()

    coming = asyncio.ensure_future(next_one())
    try:
        while (item := await coming) is not None:
            coming = asyncio.ensure_future(next_one())
            yield item
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
