# SPDX-License-Identifier: MIT
"""Trying again until it succeeds: a full disk, or an init mode that is away, is waited out.

A job's PID 1 keeps its record as long as we do not acknowledge it, so waiting costs time and loses
nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from joblet.errors import JobletError
from joblet.server.launcher import Launcher

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CLEAN_UP_TRIES: Final = len(RETRY_S) + 10


def pauses() -> Iterator[float]:
    """Between tries that go on until they succeed."""
    yield from RETRY_S
    while True:
        yield RETRY_S[-1]


async def insist(job_id: str, do: Callable[..., Awaitable[T]], *args: Any, **named: Any) -> T:
    """Do it until no JobletError is raised; each new one is logged once."""
    waits = pauses()
    said = ""
    while True:
        try:
            return await do(*args, **named)
        except JobletError as error:
            level = logging.DEBUG if str(error) == said else logging.ERROR
            log.log(level, "%s; trying again", error, extra={"job": job_id})
            said = str(error)
        await asyncio.sleep(next(waits))


async def clean_up(job_id: str, launcher: Launcher, *, failed: bool = True) -> bool:
    """The directory goes last. What stays (False) is found and removed at the next start."""
    for number, pause in enumerate(pauses()):
        try:
            await launcher.clean_up(job_id, failed=failed)
        except JobletError as error:
            if number > CLEAN_UP_TRIES:
                log.warning("%s", error, extra={"job": job_id})
                return False
            await asyncio.sleep(pause)
        else:
            return True
    return False
