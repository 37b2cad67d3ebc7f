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


def size(count: float) -> str:
    """Of so many bytes: 512 B, 2.1 MB."""
    for unit in ("B", "kB", "MB"):
        digits = 0 if unit == "B" or count > 99.9 else 1
        if count < 999.5:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def rate(bytes_per_s: float) -> str:
    """2.1 MB/s; "" for less than a byte a second."""
    return "" if bytes_per_s < 1 else f"{size(bytes_per_s)}/s"
