# SPDX-License-Identifier: MIT
"""The status line: on a change, not more often than it may, not at all when nothing happens."""

import asyncio
from typing import cast

import pytest

from joblet.systemd.notify import Notifier
from joblet.systemd.statusline import StatusLine, count, rate


class Told:
    """What systemd is told; `deaf` times it does not listen."""

    def __init__(self, deaf: int = 0) -> None:
        self.said: list[str] = []
        self.deaf = deaf
        self.more = asyncio.Event()

    def status(self, text: str) -> bool:
        self.more.set()
        if self.deaf:
            self.deaf -= 1
            return False
        self.said.append(text)
        return True


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_many_changes_are_one_line_and_no_change_is_none() -> None:
    async def main() -> None:
        told, number = Told(), 0
        looks = 0

        def text() -> str:
            nonlocal looks
            looks += 1
            return str(number)

        line = StatusLine(cast(Notifier, told), text, pause_s=0)
        task = asyncio.create_task(line.run())
        await settle()
        assert (told.said, looks) == (["0"], 1)
        await settle()
        assert looks == 1  # idle: it does not even look
        for changed in (1, 2, 3):
            number = changed
            line.touch()
        await settle()
        assert (told.said, looks) == (["0", "3"], 2)
        line.touch()  # without a change
        await settle()
        assert (told.said, looks) == (["0", "3"], 3)
        task.cancel()

    asyncio.run(main())


def test_a_line_that_moves_by_itself_is_looked_at_again() -> None:
    async def main() -> None:
        told, looks = Told(), 0

        def text() -> str:
            nonlocal looks
            looks += 1
            return str(min(looks, 3))

        line = StatusLine(cast(Notifier, told), text, moving=lambda: looks < 5, pause_s=0)
        task = asyncio.create_task(line.run())
        await settle()
        assert (told.said, looks) == (["1", "2", "3"], 5)
        task.cancel()

    asyncio.run(main())


def test_between_two_lines_there_is_a_pause() -> None:
    async def main() -> None:
        told = Told()
        line = StatusLine(cast(Notifier, told), lambda: str(len(told.said)), pause_s=3600)
        task = asyncio.create_task(line.run())
        await settle()
        line.touch()
        await settle()
        assert told.said == ["0"]
        task.cancel()

    asyncio.run(main())


def test_what_systemd_did_not_hear_is_said_again() -> None:
    async def main() -> None:
        told = Told(deaf=1)
        line = StatusLine(cast(Notifier, told), lambda: "text", pause_s=0)
        task = asyncio.create_task(line.run())
        await settle()
        assert told.said == []
        line.touch()
        await settle()
        assert told.said == ["text"]
        task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("bytes_per_s", "text"),
    [
        (0, ""),
        (0.4, ""),
        (12, "12 B/s"),
        (999.4, "999 B/s"),
        (999.6, "1.0 kB/s"),
        (2_100_000, "2.1 MB/s"),
        (99_900, "99.9 kB/s"),
        (99_990, "100 kB/s"),
        (123_456_789, "123 MB/s"),
        (1_260_000_000, "1.3 GB/s"),
        (2_500_000_000_000, "2500.0 GB/s"),
    ],
)
def test_rates(bytes_per_s: float, text: str) -> None:
    assert rate(bytes_per_s) == text


def test_counts() -> None:
    assert [count(n, "job") for n in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
