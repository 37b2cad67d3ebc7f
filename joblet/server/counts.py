# SPDX-License-Identifier: MIT
"""How many jobs this server has begun, how jobs ended, and how long they took.

One that an earlier server began and this one sees end is counted at its end alone.
"""

import dataclasses
from typing import ClassVar, Self

from joblet.metrics import Counter, Gauge, Registry
from joblet.model import Job, JobState


@dataclasses.dataclass(frozen=True, slots=True)
class JobCounts:
    """A field's name, with PREFIX before it, is the instrument's in the registry."""

    PREFIX: ClassVar = "job_"

    running: Gauge  # have not ended
    created: Counter  # since the server's start, like those below
    completed: Counter
    failed: Counter
    stopped: Counter
    average_duration_ms: Gauge  # from start to end, of those that ran and ended
    _ran: Counter
    _took_us: Counter

    @classmethod
    def of(cls, registry: Registry) -> Self:
        ran, took_us = Counter(), Counter()
        made = cls(
            running=registry.gauge(f"{cls.PREFIX}running"),
            created=registry.counter(f"{cls.PREFIX}created"),
            completed=registry.counter(f"{cls.PREFIX}completed"),
            failed=registry.counter(f"{cls.PREFIX}failed"),
            stopped=registry.counter(f"{cls.PREFIX}stopped"),
            average_duration_ms=registry.gauge(f"{cls.PREFIX}average_duration_ms"),
            _ran=ran,
            _took_us=took_us,
        )
        made.average_duration_ms.watch(lambda: took_us.read() // max(1, ran.read()) // 1000)
        return made

    def began(self) -> None:
        self.created.add()

    def ended(self, job: Job) -> None:
        """Its record is final, and safe."""
        match job.state:
            case JobState.COMPLETED:
                self.completed.add()
            case JobState.FAILED:
                self.failed.add()
            case _:
                self.stopped.add()
        if job.started_us:
            self._ran.add()
            self._took_us.add(max(0, job.ended_us - job.started_us))
