# SPDX-License-Identifier: MIT
"""Budgets that fill with time, in bytes: one's own, and one that many share.

Must not import anything of joblet.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable


class Budget:
    """A token bucket in bytes, full at the start; `rate` in bytes a second, `clock` in seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self.burst = burst
        self._rate, self._clock = rate, clock
        self._left, self._at = burst, clock()

    @property
    def left(self) -> int:
        now = self._clock()
        self._left = min(self.burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return int(self._left)

    def take(self, size: int) -> bool:
        if self.left < size:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        self._left += size

    def seconds_until(self, size: int) -> float:
        """How long until so much is left; infinite if that never is."""
        lacking = size - self.left
        if lacking <= 0:
            return 0.0
        return lacking / self._rate if self._rate > 0 else float("inf")


class Shared:
    """A budget that many share. Who waits for a part gets it when their turn has come: those first
    who had least. For one event loop; how many wait is bounded by who uses it."""

    def __init__(self, budget: Budget, *, longest_s: float = 1.0) -> None:
        """longest_s: until the clock is looked at again."""
        self._budget = budget
        self._longest_s = longest_s
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def burst(self) -> float:
        return self._budget.burst

    @property
    def left(self) -> int:
        """What can be taken at once: nothing while somebody waits."""
        return 0 if self._waiting else self._budget.left

    def take(self, size: int) -> bool:
        """False if it is not there."""
        return size <= self.left and self._budget.take(size)

    async def wait(self, size: int, had: int) -> None:
        """Take so much, at most `burst`, when it is there and nobody waits who had less."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (had, next(self._number), size, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._budget.give_back(size)  # it came too late
            raise

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            _, _, size, turn = self._waiting[0]
            if not turn.done():
                if not self._budget.take(size):
                    delay = min(self._longest_s, self._budget.seconds_until(size))
                    self._timer = asyncio.get_running_loop().call_later(delay, self._serve)
                    return
                turn.set_result(None)
            heapq.heappop(self._waiting)
