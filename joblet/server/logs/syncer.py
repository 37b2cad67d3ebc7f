# SPDX-License-Identifier: MIT
"""A thread that makes what is stored durable, every so often: all that a machine's death may cost.

Few files are synced one by one; many by one syncfs of the filesystem that the logs are on, because
each fdatasync waits for the disk by itself. Neither readers nor the writers of the store wait for
it. A disk that refuses is told of once, and tried again the next time; what it could not write the
kernel does not keep.

Must not import anything of joblet but joblet.errors and its neighbours core, faults, syscalls,
worker.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from joblet.errors import JobletError
from joblet.server.logs.core import LogCore
from joblet.server.logs.faults import fault
from joblet.server.logs.syscalls import syncfs
from joblet.server.logs.worker import Worker

# A log has five files, and an fdatasync takes some milliseconds.
FEW_FILES: Final = 50

log = logging.getLogger(__name__)


class Syncer(Worker):
    """`dirty()`: the logs that may have something that is not durable. `step` as the store's."""

    hint = ""  # no job waits for it, and what is said is not safe

    def __init__(
        self,
        name: str,
        path: Path,
        interval_s: float,
        dirty: Callable[[], Collection[LogCore]],
        *,
        on_death: Callable[[JobletError], None],
        step: Callable[[str], None],
    ) -> None:
        super().__init__(name, "sync output", on_death)
        self._path = path
        self._interval_s = interval_s
        self._dirty = dirty
        self._step = step
        self._stopping = threading.Event()
        self._told = ""

    def _leave(self) -> None:
        self._stopping.set()

    def _work(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._round([core for core in self._dirty() if core.wants_sync])

    def _round(self, cores: Collection[LogCore]) -> None:
        if not cores:
            return
        try:
            if sum(core.unsynced_files for core in cores) > FEW_FILES:
                with contextlib.ExitStack() as stack:
                    for core in cores:
                        stack.enter_context(core.syncing())
                    self._sync_all()
                self._step("sync:all")
            else:
                self._sync_each(cores)
                self._step("sync:few")
        except OSError as exc:
            error = fault(f"make the output in {self._path} durable", exc)
            if error.why != self._told:
                self._told = error.why
                log.error("%s; should the machine die, what jobs say now may be lost", error.text)
            return
        if self._told:
            self._told = ""
            log.info("what jobs say is made durable again")

    def _sync_each(self, cores: Collection[LogCore]) -> None:
        """One that cannot be does not keep the others from it. Raises OSError, the first one."""
        first: OSError | None = None
        for core in cores:
            try:
                with core.syncing() as unsynced:
                    unsynced.sync()
            except OSError as exc:
                first = first or exc
        if first is not None:
            raise first

    def _sync_all(self) -> None:
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
