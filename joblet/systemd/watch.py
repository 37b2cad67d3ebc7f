# SPDX-License-Identifier: MIT
"""What happens to the units whose name begins alike: a stream of events for one consumer.

Made by `Manager.watch`. Invariants:
- The first event is a `Snapshot`; another one follows whenever signals may have been missed: the
  bus or systemd came back (daemon-reexec), systemd reloaded, or the consumer was too slow. What a
  snapshot does not list is not loaded. Events that come behind it may be older than it, never the
  other way round, and always end with the truth.
- At most EVENTS_MAX events wait. Beyond that all of them are dropped, counted in `overflows`, and
  a snapshot takes their place.
- Nothing here needs a privilege. Must not import dbus_next.
"""

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self

from joblet.errors import JobletError

EVENTS_MAX: Final = 4096
RETRY_SECONDS: Final = 1.0
# systemd answers at once or, if it stands still, too late: the job's object is gone by then.
ASK_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class UnitStatus:
    """A loaded unit. `job_id` is 0 and `job_type` "" when no job is queued for it."""

    name: str
    load_state: str
    active_state: str
    sub_state: str
    job_id: int
    job_type: str

    @classmethod
    def of(cls, row: list[Any]) -> Self:
        """From a row of ListUnits: name, description, load, active, sub, following, path, job."""
        name, _, load, active, sub, _, _, job_id, job_type, _ = row
        return cls(name, load, active, sub, job_id, job_type)


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """All loaded units with the prefix."""

    units: tuple[UnitStatus, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class UnitChanged:
    """`deactivating` says that systemd is stopping the unit, by a job (`job_id`) or by itself."""

    name: str
    active_state: str
    sub_state: str
    job_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class UnitRemoved:
    """systemd has forgotten the unit: nothing of it is left."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class JobNew:
    """systemd was asked to do something to the unit: `start`, `stop`, …; "" if nobody can tell."""

    name: str
    job_id: int
    job_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class JobRemoved:
    """`result`: done, canceled, timeout, failed, dependency, skipped, …"""

    name: str
    job_id: int
    result: str


Event = Snapshot | UnitChanged | UnitRemoved | JobNew | JobRemoved


@dataclasses.dataclass(frozen=True, slots=True)
class _Resync:
    """In the queue: list the units when this is reached."""


@dataclasses.dataclass(eq=False, slots=True)
class _Asked:
    """In the queue: a JobNew whose type is being read.

    The signal does not say it, and the job's object is gone when the job is done: so the question
    goes out with the signal. A stop of processes that die at once is quicker still, but then the
    unit was seen `deactivating` with this job before the answer comes.
    """

    name: str
    job_id: int
    answer: asyncio.Task[str]
    seen: str = ""


class Watch:
    """`async for event in watch`; ends when it is closed. Close it to free what it holds."""

    def __init__(
        self,
        prefix: str,
        *,
        state: str = "",
        list_units: Callable[[], Awaitable[list[UnitStatus]]],
        job_type: Callable[[str], Awaitable[str]],
        on_close: Callable[["Watch"], None],
    ) -> None:
        """state: only snapshots and changes into this ActiveState are told; "" tells everything."""
        self.prefix = prefix
        self._state = state
        self.overflows = 0
        self._list_units = list_units
        self._job_type = job_type
        self._on_close = on_close
        self._queue: collections.deque[Event | _Resync | _Asked] = collections.deque([_Resync()])
        self._filled = asyncio.Event()
        self._filled.set()
        self._closed = False
        # Units that were announced and have had no job yet: their first one is the start.
        self._fresh: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Cancelled, it loses no event but a snapshot, which then is made again."""
        while True:
            while not self._queue:
                if self._closed:
                    raise StopAsyncIteration
                self._filled.clear()
                await self._filled.wait()
            match self._queue[0]:
                case _Resync() as mark:
                    snapshot = await self._snapshot(mark)
                    if snapshot is not None:
                        return snapshot
                case _Asked() as item:
                    await asyncio.wait([item.answer])
                    if self._drop(item):
                        return JobNew(item.name, item.job_id, item.answer.result() or item.seen)
                case event:
                    self._queue.popleft()
                    return event

    def close(self) -> None:
        """End the stream at once; events that wait are dropped. May be called again."""
        self._closed = True
        self._clear()
        self._filled.set()
        self._on_close(self)

    def resync(self) -> None:
        """Signals may have been missed. A mark that waits its turn will do for this one as well."""
        if len(self._queue) < 2 or not isinstance(self._queue[-1], _Resync):
            self._put(_Resync())

    def _ours(self, name: str, active_state: str = "") -> bool:
        return name.startswith(self.prefix) and self._state in ("", active_state)

    def unit_new(self, name: str) -> None:
        if self._ours(name):
            self._fresh.add(name)

    def unit_removed(self, name: str) -> None:
        if self._ours(name):
            self._fresh.discard(name)
            self._put(UnitRemoved(name))

    def unit_changed(self, name: str, active_state: str, sub_state: str, job_id: int) -> None:
        if self._ours(name, active_state):
            if active_state == "deactivating" and job_id:
                for item in self._queue:
                    if isinstance(item, _Asked) and item.job_id == job_id:
                        item.seen = "stop"
            self._put(UnitChanged(name, active_state, sub_state, job_id))

    def job_new(self, name: str, job_id: int, path: str) -> None:
        if not self._ours(name):
            return
        if name in self._fresh:
            self._fresh.discard(name)
            self._put(JobNew(name, job_id, "start"))
        else:
            self._put(_Asked(name, job_id, asyncio.create_task(self._ask(path))))

    def job_removed(self, name: str, job_id: int, result: str) -> None:
        if self._ours(name):
            self._put(JobRemoved(name, job_id, result))

    async def _ask(self, path: str) -> str:
        """The type of a job; "" if the job is over, or nobody says."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._job_type(path)
        except (JobletError, TimeoutError):
            return ""

    def _put(self, item: Event | _Resync | _Asked) -> None:
        if len(self._queue) >= EVENTS_MAX:
            self.overflows += 1
            log.warning("Dropped %d events of units %s*", len(self._queue), self.prefix)
            self._clear()
            self._queue.append(_Resync())
        if self._closed:
            _cancel(item)
        else:
            self._queue.append(item)
        self._filled.set()

    def _clear(self) -> None:
        for item in self._queue:
            _cancel(item)
        self._queue.clear()

    def _drop(self, item: _Resync | _Asked) -> bool:
        """Take the item off the queue; False if an overflow or close has done so already."""
        if self._queue and self._queue[0] is item:
            self._queue.popleft()
            return True
        return False

    async def _snapshot(self, mark: _Resync) -> Snapshot | None:
        """List the units. What is signalled from here on waits behind the mark."""
        try:
            units = await self._list_units()
        except JobletError as error:
            log.warning("Could not list units %s*: %s", self.prefix, error)
            await asyncio.sleep(RETRY_SECONDS)
            return None
        if not self._drop(mark):
            return None
        return Snapshot(tuple(unit for unit in units if unit.name.startswith(self.prefix)))


def _cancel(item: Event | _Resync | _Asked) -> None:
    if isinstance(item, _Asked):
        item.answer.cancel()
