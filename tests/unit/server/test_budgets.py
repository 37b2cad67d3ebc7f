# SPDX-License-Identifier: MIT
"""What may be spent, by one and by many."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.server.budgets import Budget, Shared
from tests.unit.server.support import run, until


def test_a_budget() -> None:
    now = [0.0]
    budget = Budget(10, 100, lambda: now[0])
    assert budget.take(100)
    assert not budget.take(1)
    now[0] = 1.0
    assert not budget.take(11)  # and takes nothing of what is there
    assert budget.take(10)
    assert not budget.take(1)
    now[0] = 1000.0
    assert not budget.take(101)  # never more than the burst
    assert budget.take(100)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 200)), max_size=30))
def test_a_budget_is_never_exceeded(steps: list[tuple[float, int]]) -> None:
    now = 0.0
    budget = Budget(10, 100, lambda: now)
    taken = 0
    for pause, size in steps:
        now += pause
        if budget.take(size):
            taken += size
        assert taken <= 100 + 10 * now + 1e-6


def test_how_long_it_takes() -> None:
    now = [0.0]
    budget = Budget(10, 100, lambda: now[0])
    assert budget.seconds_until(100) == 0
    assert budget.take(100)
    assert budget.seconds_until(20) == 2
    now[0] = 1.0
    assert budget.seconds_until(20) == 1
    assert Budget(0, 10, lambda: 0.0).seconds_until(11) == float("inf")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_those_who_had_least_go_first() -> None:
    async def main() -> None:
        clock = Clock()
        shared = Shared(Budget(10, 100, clock), longest_s=0.001)
        assert shared.take(100)
        went: list[str] = []

        async def one(name: str, had: int) -> None:
            await shared.wait(50, had)
            went.append(name)

        async with asyncio.TaskGroup() as group:
            for name, had in (("much", 900), ("little", 5), ("none", 0), ("little too", 5)):
                group.create_task(one(name, had))
            await settled()
            clock.now = 4.0
            await asyncio.sleep(0.01)
            assert went == []
            assert (shared.left, shared.take(1)) == (0, False)  # there is, and it is somebody's
            clock.now = 5.0
            await until(lambda: went)
            assert went == ["none"]
            clock.now = 10.0
            await until(lambda: len(went) == 2)
            clock.now = 100.0
        assert went == ["none", "little", "little too", "much"]
        assert shared.left == 0

    run(main)


@pytest.mark.parametrize("late", [False, True])
def test_who_gives_up_takes_nothing(late: bool) -> None:
    async def main() -> None:
        clock = Clock()
        shared = Shared(Budget(10, 100, clock), longest_s=0.001)
        assert shared.take(80)
        waiting = asyncio.ensure_future(shared.wait(30, 0))
        await settled()
        clock.now = 1.0
        if late:
            shared._serve()  # it has taken, and does not know it yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await shared.wait(30, 0)
        assert shared.left == 0

    run(main)
