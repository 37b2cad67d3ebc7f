# SPDX-License-Identifier: MIT
"""A thread that packs staged blocks while the stage is under pressure because a disk is slow: it
compresses them where they lie, or moves them to another disk.

Each log gets a turn, its oldest blocks first. What does not become smaller is not tried again. If
the spill directory is full or fails, the thread rests, and its jobs wait, or drop, as if it were
not there.

Must not import anything of joblet but joblet.errors and its neighbours core, overflow, stage,
worker.
"""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from joblet.errors import JobletError
from joblet.server.logs.overflow import Overflow, Packing, spare_or_none
from joblet.server.logs.stage import Shelf
from joblet.server.logs.worker import Worker

if TYPE_CHECKING:
    from joblet.server.logs.core import LogCore

# Blocks of one stream in a turn.
_TURN_BLOCKS: Final = 8
# New blocks are looked for so often, when all that there were are packed.
_LOOK_S: Final = 0.02
_RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class Packer(Worker):
    """One thread, for one strategy."""

    def __init__(
        self,
        packing: Packing,
        overflow: Overflow,
        *,
        disk_is_slow: Callable[[], bool],
        on_death: Callable[[JobletError], None],
    ) -> None:
        super().__init__(f"log-{packing.name}", f"{packing.name} output", on_death)
        self._packing = packing
        self._disk_is_slow = disk_is_slow
        self._overflow = overflow
        self._room = overflow.room
        self._changed = threading.Condition()
        self._stopping = False
        self._idle = False  # there was nothing to do, or it could not be done

    def pressed(self) -> None:
        """The stage came under pressure. Any thread."""
        with self._changed:
            self._changed.notify()

    def _leave(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    # Below: the thread.

    def _work(self) -> None:
        while self._wait():
            self._pack()

    def _died(self, failure: JobletError) -> None:
        self._packing.failing = True
        super()._died(failure)

    def _wait(self) -> bool:
        """Until there may be something to pack; False at the end."""
        with self._changed:
            if self._room.pressed and self._idle and not self._stopping:
                self._changed.wait(_RETRY_S if self._packing.failing else _LOOK_S)
            while not self._room.pressed and not self._stopping:
                self._packing.empty = self._packing.failing = False
                self._changed.wait()
            return not self._stopping

    def _pack(self) -> None:
        """A turn for each log, as long as there is pressure."""
        strategy = self._packing
        tried = 0
        full = self._room.is_full()
        for core in list(self._overflow.logs):
            if self._stopping or not self._room.pressed:
                return
            if not self._disk_is_slow():
                self._idle = True
                return
            if core.policy.strategy is strategy:
                if (count := self._turn(core)) is None:
                    break
                tried += count
        else:
            strategy.failing = False
        self._idle = tried == 0
        before, strategy.empty = strategy.empty, full and tried == 0
        if strategy.empty and not before and self._room.is_full():
            self._room.on_room()  # who would drop need wait no longer

    def _turn(self, core: "LogCore") -> int | None:
        """How many blocks were tried; None: there is nowhere to put them."""
        strategy = self._packing
        spill = self._overflow.spill
        if strategy.shelf is Shelf.SPILL and (spill is None or spare_or_none(spill) <= 0):
            self._fail(f"{spill or 'the spill directory'} has no room")
            return None
        try:
            tried, given = core.pack(strategy.shelf, _TURN_BLOCKS)
        except OSError as exc:
            self._fail(str(exc))
            return None
        if given:
            self._overflow.count(strategy.name, tried)
        return tried

    def _fail(self, why: str) -> None:
        if not self._packing.failing:
            log.warning("cannot %s output: %s; jobs wait for the disk", self._packing.name, why)
        self._packing.failing = True
