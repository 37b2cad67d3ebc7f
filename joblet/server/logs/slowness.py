# SPDX-License-Identifier: MIT
"""Whether it is the disk that the writers wait for, and not the processors.

To pack staged output costs CPU time: worth it where a slow disk leaves the processors idle, and the
wrong thing where the jobs already take all of them, for then it slows the writer down.

Must not import anything of joblet.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# A writer that had work and slept for half of the time: more than the interpreter's lock costs.
_ASLEEP: Final = 0.5
_LOOK_NS: Final = 50_000_000
_SCHEDSTAT: Final = "/proc/self/task/{}/schedstat"


class Slowness:
    """`threads()`: the kernel's ids of the writers. `clock_ns`: monotonic. Any thread may ask.

    The kernel says of each thread how long it ran and how long it waited for a processor
    (Documentation/scheduler/sched-stats, schedstat of a process); the rest of the time it slept.
    """

    def __init__(
        self,
        threads: Callable[[], Sequence[int]],
        clock_ns: Callable[[], int],
        schedstat: str = _SCHEDSTAT,
    ) -> None:
        self._threads = threads
        self._clock_ns = clock_ns
        self._schedstat = schedstat
        self._lock = threading.Lock()
        self._at = 0
        self._awake = 0
        self._slow = True

    def of_disk(self) -> bool:
        """As it was in the last 50 ms or more. Asked while there is work for the writers; so too if
        the kernel does not tell."""
        with self._lock:
            now = self._clock_ns()
            passed = now - self._at
            if passed < _LOOK_NS:
                return self._slow
            threads = self._threads()
            try:
                awake = sum(self._awake_ns(thread) for thread in threads)
            except (OSError, ValueError, IndexError):
                return True
            slept = 1 - (awake - self._awake) / (passed * max(1, len(threads)))
            first = self._at == 0
            self._at, self._awake = now, awake
            self._slow = first or slept >= _ASLEEP
            return self._slow

    def _awake_ns(self, thread: int) -> int:
        ran, waited, *_ = Path(self._schedstat.format(thread)).read_text().split()
        return int(ran) + int(waited)
