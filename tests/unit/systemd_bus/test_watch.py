# SPDX-License-Identifier: MIT
"""The stream of events: order, snapshots, what is dropped and what is said about it."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from joblet.errors import Unavailable
from joblet.systemd import watch as module
from joblet.systemd.watch import (
    JobNew,
    JobRemoved,
    Snapshot,
    UnitChanged,
    UnitRemoved,
    UnitStatus,
    Watch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

A = "joblet-a.scope"
B = "joblet-b.scope"


def status(name: str) -> UnitStatus:
    return UnitStatus(name, "loaded", "active", "running", 0, "")


class World:
    """What systemd would answer."""

    def __init__(self) -> None:
        self.units: list[UnitStatus] = []
        self.listings = 0
        self.on_list: Callable[[], None] = lambda: None
        self.types: dict[str, asyncio.Future[str]] = {}
        self.closed: list[Watch] = []

    async def list_units(self) -> list[UnitStatus]:
        self.listings += 1
        self.on_list()
        await asyncio.sleep(0)
        return list(self.units)

    async def job_type(self, path: str) -> str:
        return await self.types[path]

    def watch(self) -> Watch:
        return Watch(
            "joblet-",
            list_units=self.list_units,
            job_type=self.job_type,
            on_close=self.closed.append,
        )


def test_the_first_event_is_the_state_and_later_ones_wait_behind_it() -> None:
    async def main() -> None:
        world = World()
        world.units = [status(A), status("other.scope")]
        async with world.watch() as watch:
            # while the listing is on its way, and after
            world.on_list = lambda: watch.unit_removed(A)
            assert await anext(watch) == Snapshot((status(A),))
            watch.unit_changed(B, "active", "running", 3)
            watch.job_removed(B, 3, "done")
            assert await anext(watch) == UnitRemoved(A)
            assert await anext(watch) == UnitChanged(B, "active", "running", 3)
            assert await anext(watch) == JobRemoved(B, 3, "done")
            assert world.listings == 1

    asyncio.run(main())


def test_other_units_are_none_of_its_business() -> None:
    async def main() -> None:
        world = World()
        async with world.watch() as watch:
            await anext(watch)
            for name in ("joblet.slice", "xjoblet-a.scope"):
                watch.unit_new(name)
                watch.unit_removed(name)
                watch.unit_changed(name, "active", "running", 0)
                watch.job_new(name, 1, "/1")
                watch.job_removed(name, 1, "done")
            watch.unit_removed(A)
            assert await anext(watch) == UnitRemoved(A)

    asyncio.run(main())


def test_types_of_jobs() -> None:
    async def main() -> None:
        world = World()
        loop = asyncio.get_running_loop()
        world.types = {"/2": loop.create_future(), "/3": loop.create_future()}
        async with world.watch() as watch:
            await anext(watch)
            watch.unit_new(A)
            watch.job_new(A, 1, "/1")  # the first one of a new unit: nobody needs to ask
            watch.job_new(A, 2, "/2")
            watch.job_removed(A, 2, "done")
            watch.job_new(A, 3, "/3")
            assert await anext(watch) == JobNew(A, 1, "start")
            following = asyncio.create_task(anext(watch))
            await asyncio.sleep(0)
            assert not following.done()
            world.types["/3"].set_exception(Unavailable("ask", "it is over"))
            world.types["/2"].set_result("stop")
            assert await following == JobNew(A, 2, "stop")
            assert await anext(watch) == JobRemoved(A, 2, "done")
            assert await anext(watch) == JobNew(A, 3, "")
            world.types["/4"] = loop.create_future()
            watch.job_new(A, 4, "/4")
            watch.unit_changed(A, "deactivating", "stop-sigterm", 4)
            world.types["/4"].set_exception(Unavailable("ask", "it is over"))
            assert await anext(watch) == JobNew(A, 4, "stop")

    asyncio.run(main())


def test_a_missed_signal_is_made_up_for_in_its_place() -> None:
    async def main() -> None:
        world = World()
        async with world.watch() as watch:
            await anext(watch)
            watch.job_removed(A, 1, "done")
            watch.resync()
            watch.resync()
            watch.unit_removed(A)
            assert await anext(watch) == JobRemoved(A, 1, "done")
            assert await anext(watch) == Snapshot(())
            assert await anext(watch) == UnitRemoved(A)
            assert world.listings == 2

    asyncio.run(main())


def test_a_resync_during_a_listing_makes_another_one() -> None:
    async def main() -> None:
        world = World()
        async with world.watch() as watch:
            world.on_list = lambda: watch.resync() if world.listings == 1 else None
            assert await anext(watch) == Snapshot(())
            assert await anext(watch) == Snapshot(())

    asyncio.run(main())


def test_a_slow_consumer_gets_the_state_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_MAX", 10)

    async def main() -> None:
        world = World()
        world.types = {"/1": asyncio.get_running_loop().create_future()}
        async with world.watch() as watch:
            await anext(watch)
            watch.job_new(A, 1, "/1")
            await asyncio.sleep(0)  # the question is out
            for _ in range(10):
                watch.unit_changed(A, "active", "running", 0)
            watch.unit_removed(B)
            assert watch.overflows == 1
            world.units = [status(A)]
            assert await anext(watch) == Snapshot((status(A),))
            assert await anext(watch) == UnitChanged(A, "active", "running", 0)
            assert await anext(watch) == UnitRemoved(B)
            assert world.types["/1"].cancelled()

    asyncio.run(main())


def test_a_listing_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0)

    async def main() -> None:
        world = World()

        def fail_twice() -> None:
            if world.listings <= 2:
                raise Unavailable("list units", "systemd is not on the bus")

        world.on_list = fail_twice
        async with world.watch() as watch:
            assert await anext(watch) == Snapshot(())
            assert world.listings == 3

    asyncio.run(main())


def test_a_cancelled_wait_loses_nothing() -> None:
    async def main() -> None:
        world = World()
        async with world.watch() as watch:
            for _ in range(2):
                waiting = asyncio.create_task(anext(watch))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
            assert await anext(watch) == Snapshot(())
            waiting = asyncio.create_task(anext(watch))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            watch.unit_removed(A)
            assert await anext(watch) == UnitRemoved(A)

    asyncio.run(main())


def test_close_ends_the_stream_and_its_questions() -> None:
    async def main() -> None:
        world = World()
        world.types = {"/1": asyncio.get_running_loop().create_future()}
        watch = world.watch()
        await anext(watch)

        async def consume() -> list[object]:
            return [event async for event in watch]

        consumer = asyncio.create_task(consume())
        watch.job_new(A, 1, "/1")
        await asyncio.sleep(0)
        watch.close()
        assert await consumer == []
        watch.unit_removed(A)
        watch.close()
        assert world.closed[0] is watch
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_one_state_and_nothing_else_is_told() -> None:
    world = World()

    async def main() -> None:
        watch = Watch(
            "joblet-",
            state="deactivating",
            list_units=world.list_units,
            job_type=world.job_type,
            on_close=world.closed.append,
        )
        assert await anext(watch) == Snapshot(())
        watch.unit_new(A)
        watch.job_new(A, 7, "/job/7")
        watch.unit_changed(A, "active", "running", 0)
        watch.job_removed(A, 7, "done")
        watch.unit_changed(A, "deactivating", "stop-sigterm", 8)
        watch.unit_changed(A, "inactive", "dead", 0)
        watch.unit_removed(A)
        assert await anext(watch) == UnitChanged(A, "deactivating", "stop-sigterm", 8)
        watch.close()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    asyncio.run(main())
