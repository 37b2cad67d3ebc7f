# SPDX-License-Identifier: MIT
"""A thread that moves what is staged to the disk, in batches.

A log that has something staged is stored when the oldest of it has waited for `flush_s`, or as soon
as there is enough for a batch: while it is still in the processor's caches. One that the disk
refuses is tried again, with back-off, and the others go on; meanwhile the stage fills.

Must not import anything of joblet but joblet.errors and its neighbours core, faults, stage,
worker.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Final

from joblet.errors import JobletError
from joblet.server.logs.core import LogCore
from joblet.server.logs.faults import fault
from joblet.server.logs.stage import Room
from joblet.server.logs.worker import Worker

# Of its time a writer that is not in a hurry uses at most so much: many logs that say little
# would otherwise be stored one by one, all the time.
_SHARE: Final = 0.2
_LONGEST_REST_S: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Batching:
    """When staged output is stored."""

    flush_s: float = 0.1
    retry_first_s: float = 0.05
    retry_last_s: float = 5.0


class Writer(Worker):
    """What is staged stays there when it stops. `staged` and `hurry` may be called from any thread.

    `on_trouble(core, error)`: storing a log rests because of `error`, None: it goes on again.
    `on_wrote(chunks, bytes, us)`: so much of a log was stored, and how long it took.
    """

    def __init__(
        self,
        name: str,
        room: Room,
        batching: Batching,
        *,
        on_trouble: Callable[[LogCore, JobletError | None], None],
        on_death: Callable[[JobletError], None],
        on_wrote: Callable[[int, int, float], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, "store output", on_death)
        self._room = room
        self._batching = batching
        self._on_trouble = on_trouble
        self._on_wrote = on_wrote
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._logs: collections.deque[LogCore] = collections.deque()
        self._since = 0.0  # when the first of them came
        self._not_before = 0.0
        self._resting: dict[LogCore, tuple[float, float]] = {}  # until when, and the delay
        self._stopping = False
        self._idle = True
        self.pauses = 0  # how often a log had to rest because the disk refused

    @property
    def thread_id(self) -> int:
        """The kernel's, 0 before it runs."""
        return self._thread.native_id or 0

    def staged(self, core: LogCore) -> None:
        """Something of this log is staged, and nothing was before."""
        with self._changed:
            if not self._logs:
                self._since = self._monotonic()
                self._changed.notify()
            self._logs.append(core)

    def hurry(self) -> None:
        """Enough is staged for a batch."""
        if self._idle:
            with self._changed:
                self._changed.notify()

    def _leave(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    # Below: the thread.

    def _work(self) -> None:
        while (logs := self._wait()) is not None:
            begun = self._monotonic()
            while logs:  # none of them is kept here longer than it takes
                self._store(logs.pop())
            spent = self._monotonic() - begun
            self._not_before = begun + min(_LONGEST_REST_S, spent / _SHARE)

    def _wait(self) -> list[LogCore] | None:
        """The logs to be stored now, the first one last, when it is time; None at the end."""
        with self._changed:
            while not self._stopping:
                now = self._monotonic()
                due = [core for core, (until, _) in self._resting.items() if until <= now]
                at = 0.0
                if self._logs:
                    at = max(self._since + self._batching.flush_s, self._not_before)
                    if now >= at or self._room.has_batch:
                        due += [core for core in self._logs if core not in self._resting]
                        self._logs.clear()
                if due:
                    return due[::-1]
                times = [until for until, _ in self._resting.values()]
                if self._logs:
                    times.append(at)
                self._idle = True
                self._changed.wait(max(0.0, min(times) - now) if times else None)
                self._idle = False
        return None

    def _store(self, core: LogCore) -> None:
        if core.files.dropped:
            self._resting.pop(core, None)
            return
        try:
            self._store_timed(core)
        except OSError as exc:
            self._rest(core, fault(f"store the output of job {core.job_id}", exc))
            return
        if self._resting.pop(core, None) is not None:
            self._on_trouble(core, None)

    def _store_timed(self, core: LogCore) -> None:
        records, stored, begun = core.stored_records, sum(core.stored), self._monotonic()
        if core.store():
            took_us = (self._monotonic() - begun) * 1e6
            self._on_wrote(core.stored_records - records, sum(core.stored) - stored, took_us)

    def _rest(self, core: LogCore, error: JobletError) -> None:
        batching = self._batching
        _, delay = self._resting.get(core, (0.0, 0.0))
        delay = min(batching.retry_last_s, delay * 2 or batching.retry_first_s)
        if core not in self._resting:
            self._on_trouble(core, error)
        self.pauses += 1
        self._resting[core] = (self._monotonic() + delay, delay)
