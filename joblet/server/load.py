# SPDX-License-Identifier: MIT
"""What the server is doing, in a line: how many jobs run, how fast they print, and what of that is
not as it should be."""

from collections.abc import Callable
from typing import Final

from joblet.server.logs import GapKind, LogMetrics
from joblet.systemd.statusline import count, rate, size

SHORTEST_S: Final = 0.5  # a rate over less than this says nothing
# Output that waits for the disk is worth a word from here on, and from this part of the room for
# it: less is what every burst leaves.
MUCH_BYTES: Final = 32_000_000
MUCH_OF_ROOM: Final = 4

# What is missing because something went wrong; what retention removed is not.
WRONG: Final = (GapKind.LOST, GapKind.SAMPLED, GapKind.DROPPED)


class Load:
    """running: how many jobs have not ended. clock: seconds."""

    def __init__(
        self, running: Callable[[], int], logs: LogMetrics, clock: Callable[[], float]
    ) -> None:
        self._running = running
        self._logs = logs
        self._clock = clock
        self._at, self._bytes = clock(), logs.bytes_in.read()
        self._overflow = logs.overflow.read()
        self._pauses = logs.pauses.read()
        self._passing = False  # the last line says something that will not stay so

    def line(self) -> str:
        """The rate, and what is happening, is that since the last call."""
        running, now, moved = self._running(), self._clock(), self._logs.bytes_in.read()
        passed, read = now - self._at, moved - self._bytes
        self._at, self._bytes = now, moved
        jobs = f"{count(running, 'job')} running"
        speed = rate(read / passed) if running and passed >= SHORTEST_S else ""
        happening = self._happening()
        self._passing = bool(happening)
        parts = [jobs, f"{speed} of output" if speed else "", *happening, self._missing()]
        return ", ".join(part for part in parts if part)

    def moving(self) -> bool:
        return self._running() > 0 or self._passing

    def _happening(self) -> list[str]:
        said = []
        waiting = self._logs.queue_bytes.read()
        if waiting >= max(MUCH_BYTES, self._logs.queue_limit_bytes.read() // MUCH_OF_ROOM):
            said.append(f"{size(waiting)} waiting for the disk")
        overflow, before = self._logs.overflow.read(), self._overflow
        self._overflow = overflow
        used = [name for name, chunks in overflow.items() if chunks > before.get(name, 0)]
        if used:
            said.append(f"overflow: {' '.join(used)}")
        pauses, paused = self._logs.pauses.read(), self._pauses
        self._pauses = pauses
        if pauses > paused:
            said.append("the disk refuses output")
        return said

    def _missing(self) -> str:
        """Since the server's start: it does not get better."""
        gaps, missing = self._logs.gaps.read(), self._logs.gap_bytes.read()
        number = sum(gaps.get(kind, 0) for kind in WRONG)
        known = sum(missing.get(kind, 0) for kind in WRONG)
        if not number:
            return ""
        return f"{count(number, 'gap')} in logs" + (f" ({size(known)})" if known else "")
