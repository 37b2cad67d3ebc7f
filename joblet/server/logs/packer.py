# SPDX-License-Identifier: MIT
"""A thread that packs staged blocks while the stage is under pressure because a disk is slow: it
compresses them where they lie, or moves them to another disk.

Each log gets a turn, its oldest blocks first. What does not become smaller is not tried again. If
the spill directory is full or fails, the thread rests, and its jobs wait, or drop, as if it were
not there.

Must not import anything of joblet but joblet.errors and its neighbours core, overflow, stage.
"""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from joblet.errors import Internal, JobletError
from joblet.server.logs.overflow import Overflow, Packing, spare_or_none
from joblet.server.logs.stage import Shelf

if TYPE_CHECKING:
    from joblet.server.logs.core import LogCore

# Blocks of one stream in a turn.
_TURN_BLOCKS: Final = 8
# New blocks are looked for so often, when all that there were are packed.
_LOOK_S: Final = 0.02
_RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class Packer:
    """One thread, for one strategy."""

    def __init__(
        self,
        packing: Packing,
        overflow: Overflow,
        *,
        disk_is_slow: Callable[[], bool],
        on_death: Callable[[JobletError], None],
    ) -> None:
        self._packing = packing
        self._disk_is_slow = disk_is_slow
        self._overflow = overflow
        self._room = overflow.room
        self._on_death = on_death
        self._changed = threading.Condition()
        self._stopping = False
        self._idle = False  # there was nothing to do, or it could not be done
        name = f"log-{packing.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Raises RuntimeError if the system has no thread to give."""
        self._thread.start()

    def pressed(self) -> None:
        """The stage came under pressure. Any thread."""
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """End the thread and wait for it. Blocking."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    # Below: the thread.

    def _run(self) -> None:
        try:
            while self._wait():
                self._pack()
        except BaseException as exc:  # whatever it was: a thread must not die unseen
            self._packing.failing = True
            failure = Internal(
                f"{self._packing.name} output",
                f"the thread ended: {exc!r}",
                hint="restart joblet.service: jobs wait meanwhile, nothing they say is lost",
            )
            failure.__cause__ = exc
            self._on_death(failure)

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
