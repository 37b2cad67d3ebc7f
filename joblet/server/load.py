# SPDX-License-Identifier: MIT
"""What the server is doing, in a line: how many jobs run, how fast they print."""

from collections.abc import Callable
from typing import Final

from joblet.systemd.statusline import count, rate

SHORTEST_S: Final = 0.5  # a rate over less than this says nothing


class Load:
    """running: how many jobs have not ended. moved: bytes of output read since the server's start.
    clock: seconds."""

    def __init__(
        self, running: Callable[[], int], moved: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._running = running
        self._moved = moved
        self._clock = clock
        self._at, self._bytes = clock(), moved()

    def line(self) -> str:
        """The rate is that since the last call."""
        running, now, moved = self._running(), self._clock(), self._moved()
        passed, read = now - self._at, moved - self._bytes
        self._at, self._bytes = now, moved
        jobs = f"{count(running, 'job')} running"
        speed = rate(read / passed) if running and passed >= SHORTEST_S else ""
        return f"{jobs}, {speed} of output" if speed else jobs

    def moving(self) -> bool:
        return self._running() > 0
