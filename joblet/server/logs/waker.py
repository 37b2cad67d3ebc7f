# SPDX-License-Identifier: MIT
"""Tell the event loop, from any thread, which logs have changed.

However many changes of however many logs come before the loop gets to it: one wake-up. A log
that nobody waits for costs a look at an empty set.

Must not import anything of joblet but its neighbour core.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from joblet.server.logs.core import LogCore


class Waker:
    """Carries changes and calls from threads to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._changed: set[LogCore] = set()

    def wake(self, core: LogCore) -> None:
        """Let those who wait for `core` look again, soon."""
        if not core.waiters:
            return
        with self._lock:
            scheduled = bool(self._changed)
            self._changed.add(core)
        if not scheduled:
            self.call(self._release)

    def call(self, function: Callable[..., None], *args: object) -> None:
        """Call something on the loop, soon; not at all once the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def _release(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, set()
        for core in changed:
            core.release_waiters()
