# SPDX-License-Identifier: MIT
"""The threads of a store: which there are, and which of them is told what.

Must not import anything of joblet but joblet.errors and its neighbours core, overflow, packer,
reader, slowness, syncer, worker, writer.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path

from joblet.errors import JobletError, Unavailable
from joblet.server.logs.core import LogCore
from joblet.server.logs.overflow import Overflow
from joblet.server.logs.packer import Packer
from joblet.server.logs.reader import Reader, Settings
from joblet.server.logs.slowness import Slowness
from joblet.server.logs.syncer import Syncer
from joblet.server.logs.worker import Worker
from joblet.server.logs.writer import Batching, Writer


class Workers:
    """Readers, writers, a packer for each strategy that packs, and a syncer; none before `start`.

    `path`: the directory of the logs; `dirty()`: as Syncer's; all else as LogStore's.
    """

    def __init__(
        self,
        overflow: Overflow,
        path: Path,
        *,
        readers: int,
        writers: int,
        settings: Settings,
        batching: Batching,
        sync_s: float,
        dirty: Callable[[], Collection[LogCore]],
        disk_is_slow: Callable[[], bool] | None,
        on_wrote: Callable[[int, int, float], None],
        step: Callable[[str], None],
    ) -> None:
        self.readers: list[Reader] = []
        self.writers: list[Writer] = []
        self._packers: list[Packer] = []
        self._started: list[Worker] = []
        self._overflow = overflow
        self._path = path
        self._reader_count = readers
        self._writer_count = writers
        self._settings = settings
        self._batching = batching
        self._sync_s = sync_s
        self._dirty = dirty
        slowness = Slowness(self._writer_threads, time.monotonic_ns)
        self._disk_is_slow = disk_is_slow or slowness.of_disk
        self._on_wrote = on_wrote
        self._step = step
        overflow.room.on_room = self._tell_room
        overflow.room.on_pressed = self._tell_pressed
        overflow.room.on_batch = self._tell_batch

    def start(
        self,
        *,
        on_trouble: Callable[[LogCore, JobletError | None], None],
        on_death: Callable[[JobletError], None],
    ) -> None:
        """Raises OSError, RuntimeError if the system has no thread to give; those that it gave
        run until `stop`."""
        for number in range(self._reader_count):
            reader = Reader(
                f"log-reader-{number}",
                self._settings,
                self._overflow,
                on_trouble=on_trouble,
                on_death=on_death,
                step=self._step,
            )
            self._start(reader)
            self.readers.append(reader)
        for number in range(self._writer_count):
            writer = Writer(
                f"log-writer-{number}",
                self._overflow.room,
                self._batching,
                on_trouble=on_trouble,
                on_death=on_death,
                on_wrote=self._on_wrote,
            )
            self._start(writer)
            self.writers.append(writer)
        syncer = Syncer(
            "log-syncer",
            self._path,
            self._sync_s,
            self._dirty,
            on_death=on_death,
            step=self._step,
        )
        self._start(syncer)
        for packing in self._overflow.packing.values():
            packer = Packer(
                packing, self._overflow, disk_is_slow=self._disk_is_slow, on_death=on_death
            )
            self._start(packer)
            self._packers.append(packer)

    def _start(self, worker: Worker) -> None:
        worker.start()
        self._started.append(worker)

    async def stop(self) -> None:
        """Returns when none of them runs. They are known until `forget`: logs may still tell them
        something."""
        async with asyncio.TaskGroup() as group:
            for worker in self._started:
                group.create_task(asyncio.to_thread(worker.stop))

    def forget(self) -> None:
        self.readers.clear()
        self.writers.clear()
        self._packers.clear()
        self._started.clear()

    def pick_reader(self) -> Reader:
        """The one that has the least to read. Raises Unavailable if all are dead."""
        alive = [reader for reader in self.readers if reader.alive]
        if not alive:
            raise Unavailable(
                "read output", "no reader thread is left", hint="restart joblet.service"
            )
        return min(alive, key=lambda reader: reader.load)

    def staged(self, core: LogCore) -> None:
        """Something of this log is staged, and nothing was before. Any thread."""
        self._overflow.logs.add(core)
        self.writers[hash(core) % len(self.writers)].staged(core)

    def _writer_threads(self) -> tuple[int, ...]:
        return tuple(writer.thread_id for writer in self.writers)

    def _tell_room(self) -> None:
        for reader in self.readers:
            reader.look()

    def _tell_pressed(self, pressed: bool) -> None:  # noqa: FBT001 - a callback of Room
        if pressed:
            for packer in self._packers:
                packer.pressed()
        else:
            self._overflow.relieved()

    def _tell_batch(self) -> None:
        for writer in self.writers:
            writer.hurry()
