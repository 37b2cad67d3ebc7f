# SPDX-License-Identifier: MIT
"""One item is read while the one before it is used, and no more."""

import asyncio
import contextlib

import pytest

from joblet.errors import NotFound
from joblet.server.rpc.ahead import one_ahead
from tests.unit.server.support import run, until


class Source:
    def __init__(self, *items: int | Exception | None) -> None:
        self._items = list(items)
        self.given = 0
        self.cancelled = 0

    async def read(self) -> int | None:
        if not self._items:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        self.given += 1
        item = self._items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item


def test_one_and_not_two() -> None:
    async def main() -> None:
        source = Source(1, 2, 3, None)
        items = one_ahead(source.read)
        for number in (1, 2, 3):
            assert await anext(items) == number
            await until(lambda: source.given == number + 1)  # noqa: B023 - used here and now
            await asyncio.sleep(0.001)
            assert source.given == number + 1
        with pytest.raises(StopAsyncIteration):
            await anext(items)

    run(main)


def test_what_goes_wrong_comes_in_its_place() -> None:
    async def main() -> None:
        source = Source(1, NotFound("read", "it was removed"))
        items = one_ahead(source.read)
        assert await anext(items) == 1
        await until(lambda: source.given == 2)
        with pytest.raises(NotFound):
            await anext(items)

    run(main)


@pytest.mark.parametrize("error", [None, NotFound("read", "it was removed")])
def test_who_stops_leaves_nothing_behind(error: Exception | None) -> None:
    async def main() -> None:
        source = Source(1, *([error] if error else []))
        others = asyncio.all_tasks()
        async with contextlib.aclosing(one_ahead(source.read)) as items:
            assert await anext(items) == 1
            await asyncio.sleep(0.001)
        assert source.cancelled == (error is None)
        assert asyncio.all_tasks() == others

    run(main)
