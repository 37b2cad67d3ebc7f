# SPDX-License-Identifier: MIT
"""What a job without a holder left in its directory: its exit record, and the rests of its pipes.

Read only when its PID 1 is gone; then the files are final.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Final

from joblet import link
from joblet.errors import JobletError, NotFound
from joblet.launch.protocol import ExitRecord, ProtocolError
from joblet.server.launcher import Launcher
from joblet.server.patience import pauses

log = logging.getLogger(__name__)

EXIT_BYTES: Final = 65536  # more than any exit record


class Results:
    """Valid within `of`, which owns the descriptors."""

    def __init__(self, files: dict[str, int]) -> None:
        self._files = files
        self.record: ExitRecord | None = None
        self.unreadable = False  # there is an exit record, and nobody understands it
        fd = files.get("exit")
        if fd is None:
            return
        try:
            self.record = ExitRecord.from_bytes(os.pread(fd, EXIT_BYTES, 0))
        except (OSError, ProtocolError) as error:
            self.unreadable = True
            log.error("cannot read an exit record: %s", error)

    @property
    def counted(self) -> bool:
        """Whether PID 1 had put aside everything that was in the pipes."""
        return self.record is not None and self.record.rest is not None

    def rest(self, name: str) -> tuple[int, int | None] | None:
        """(descriptor, bytes if they were counted) of a stream's rest; None: there is none."""
        fd = self._files.get(f"{name}.rest")
        if fd is None:
            return None
        counts = self.record.rest if self.record else None
        return fd, (counts or {}).get(name)


@contextlib.contextmanager
def of(files: dict[str, int]) -> Iterator[Results]:
    """Takes the descriptors, and closes them behind the block."""
    try:
        yield Results(files)
    finally:
        link.close_all(list(files.values()))


async def fetch(job_id: str, launcher: Launcher) -> dict[str, int]:
    """The files' descriptors, for `of`; none without a directory. Waits for init mode."""
    for pause in pauses():
        try:
            return await launcher.results(job_id)
        except NotFound:
            return {}
        except JobletError as error:
            log.debug("%s", error, extra={"job": job_id})
        await asyncio.sleep(pause)
    return {}
