# SPDX-License-Identifier: MIT
"""What the journal hears when the disk refuses what jobs say, or is slower than they are.

What it refuses stays in pipes, which fill, and jobs wait. A full disk concerns all jobs that print,
and may refuse one write and take the next: so the first job of many is told of, and not more often
than every PAUSE_S.
"""

import logging
from collections.abc import Callable
from typing import Final

from joblet.errors import JobletError
from joblet.systemd import messages
from joblet.systemd.statusline import size

PAUSE_S: Final = 10.0

# What is done about a disk that is slower than the jobs (logs.overflow), as a sentence.
_DONE: Final = {
    "alert": "it is more than memory_limit, and reading goes on as long as the stage has room",
    "block": "jobs that print wait until it is less, and nothing is lost",
    "sample": "of jobs with the overflow strategy sample only a part is kept,"
    " and gaps in their logs say how much is missing",
    "drop": "of jobs with on_full: drop nothing is kept until it is less,"
    " and gaps in their logs say how much is missing",
}

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


class Overflows:
    """staged: how many bytes wait for the disk. clock: seconds.

    Each thing that is done is told of when it begins and when it is over, once an episode, and not
    again within PAUSE_S of the last time.
    """

    def __init__(self, staged: Callable[[], int], clock: Callable[[], float]) -> None:
        self._staged = staged
        self._clock = clock
        self._told: set[str] = set()
        self._not_before: dict[str, float] = {}

    def tell(self, what: str, begun: bool) -> None:  # noqa: FBT001 - a callback of the store
        """The store does `what` from now on, or no longer."""
        fields = {"MESSAGE_ID": messages.OVERFLOW, "JOBLET_OVERFLOW": what}
        if begun and self._clock() >= self._not_before.get(what, 0.0):
            self._told.add(what)
            self._not_before[what] = self._clock() + PAUSE_S
            text = "the disk is slower than the jobs, %s of output wait for it: %s"
            log.warning(text, size(self._staged()), _DONE[what], extra={"fields": fields})
        elif not begun and what in self._told:
            self._told.discard(what)
            fields["MESSAGE_ID"] = messages.OVERFLOW_OVER
            log.info("the disk keeps up with the jobs again", extra={"fields": fields})
