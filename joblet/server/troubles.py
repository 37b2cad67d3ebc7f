# SPDX-License-Identifier: MIT
"""What the journal hears when the disk refuses what jobs say: their pipes fill, and they wait.

A full disk concerns all jobs that print, and may refuse one write and take the next: so the first
job of many is told of, and not more often than every PAUSE_S.
"""

import logging
from collections.abc import Callable
from typing import Final

from joblet.errors import JobletError

PAUSE_S: Final = 10.0

log = logging.getLogger(__name__)


class Troubles:
    """clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: set[str] = set()
        self._told = False  # of what there is now
        self._not_before = clock()

    def tell(self, job_id: str, error: JobletError | None) -> None:
        """Reading a job's output rests because of an error; None: it goes on again."""
        if error is None:
            self._jobs.discard(job_id)
            if self._told and not self._jobs:
                self._told = False
                log.info("what jobs print is kept again")
            return
        self._jobs.add(job_id)
        if self._told or self._clock() < self._not_before:
            log.debug("%s", error, extra={"job": job_id})
            return
        self._told = True
        self._not_before = self._clock() + PAUSE_S
        text = "%s; jobs that print wait until it can, and nothing is lost"
        log.error(text, error.text, extra={"job": job_id})
