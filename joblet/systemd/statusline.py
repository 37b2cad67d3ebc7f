# SPDX-License-Identifier: MIT
"""The line of a service that `systemctl status` shows: what it is doing, while it is doing it.

Told when it has changed, and at most every few seconds. While nothing happens nothing is done: who
changes what the line says calls `touch`, and only a line that moves by itself is looked at again.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from joblet.systemd.notify import Notifier

PAUSE_S: Final = 5.0  # between two lines


class StatusLine:
    """text: the line as it should be now. moving: whether it can change without a `touch`."""

    def __init__(
        self,
        notifier: Notifier,
        text: Callable[[], str],
        *,
        moving: Callable[[], bool] = lambda: False,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._notifier = notifier
        self._text = text
        self._moving = moving
        self._pause_s = pause_s
        self._touched = asyncio.Event()

    def touch(self) -> None:
        """Something has changed. Costs next to nothing; any number of them are one line."""
        self._touched.set()

    async def run(self) -> None:
        """Ends by cancellation."""
        said = ""
        while True:
            self._touched.clear()
            text = self._text()
            if text != said and self._notifier.status(text):
                said = text
            await asyncio.sleep(self._pause_s)
            if not self._moving():
                await self._touched.wait()


def count(number: int, noun: str) -> str:
    """1 job, 2 jobs"""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def rate(bytes_per_s: float) -> str:
    """2.1 MB/s; "" for less than a byte a second."""
    if bytes_per_s < 1:
        return ""
    for unit in ("B/s", "kB/s", "MB/s"):
        digits = 0 if unit == "B/s" or bytes_per_s > 99.9 else 1
        if bytes_per_s < 999.5:
            return f"{bytes_per_s:.{digits}f} {unit}"
        bytes_per_s /= 1000
    return f"{bytes_per_s:.1f} GB/s"
