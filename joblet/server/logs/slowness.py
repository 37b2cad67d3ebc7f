# SPDX-License-Identifier: MIT
"""Whether it is the disk that the writers wait for, and not the processors.

To pack staged output costs CPU time: worth it where a slow disk leaves it to us, and the wrong
thing where the jobs already take all of it, for then it slows the writer down.

Must not import anything of joblet.
"""

import collections
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# Looks that count, each so long after the last one at least.
_LOOKS: Final = 8
_LOOK_NS: Final = 10_000_000
_STALE_NS: Final = 1_000_000_000
_SHARE: Final = 0.5
_STAT: Final = "/proc/self/task/{}/stat"


class Slowness:
    """`threads()`: the kernel's ids of the writers. `clock_ns`: monotonic. Any thread may ask.

    A thread that waits for a disk, or for the kernel to have written back what is dirty
    (balance_dirty_pages), is in state D, proc_pid_stat(5). One that waits for a processor is in R,
    and one that waits for another thread, or the interpreter's lock, in S.
    """

    def __init__(
        self,
        threads: Callable[[], Sequence[int]],
        clock_ns: Callable[[], int],
        stat: str = _STAT,
    ) -> None:
        self._threads = threads
        self._clock_ns = clock_ns
        self._stat = stat
        self._lock = threading.Lock()
        self._at = -_STALE_NS
        self._waits: collections.deque[float] = collections.deque(maxlen=_LOOKS)

    def of_disk(self) -> bool:
        """As it was at the last looks: half of the writers, or more, waited for it. Asked while
        there is work for them; so too if the kernel does not tell."""
        with self._lock:
            now = self._clock_ns()
            if now - self._at >= _STALE_NS:
                self._waits.clear()
            if not self._waits or now - self._at >= _LOOK_NS:
                self._at = now
                self._waits.append(self._waiting())
            return sum(self._waits) >= _SHARE * len(self._waits)

    def _waiting(self) -> float:
        """Which share of the writers waits for the disk now."""
        threads = self._threads()
        try:
            states = [self._state(thread) for thread in threads]
        except (OSError, IndexError):
            return 1.0
        return states.count("D") / max(1, len(states))

    def _state(self, thread: int) -> str:
        # behind the name, in which anything may stand
        return Path(self._stat.format(thread)).read_text().rpartition(")")[2].split()[0]
