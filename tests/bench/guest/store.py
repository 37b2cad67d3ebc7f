# SPDX-License-Identifier: MIT
"""Joblet's log store, seen from outside: how much of a job's output is in its files.

The server is not asked: that would be work of its own in the time that is measured.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rnx.client import Client

LOGS: Final = Path("/var/lib/joblet/logs")
INDEX: Final = "index"
"""Files of a job whose name begins so hold no output."""


def holds(job: str, total: int) -> bool:
    """Whether `total` bytes of a job's output are in files: on the disk, or in the page cache
    above it."""
    with contextlib.suppress(FileNotFoundError), os.scandir(LOGS / job) as entries:
        sizes = (entry.stat().st_size for entry in entries if not entry.name.startswith(INDEX))
        return sum(sizes) >= total
    return False


def remove(client: Client, jobs: Iterable[str]) -> None:
    """The output of jobs that have ended, so that the next run finds the disk as this one did."""
    for job in jobs:
        with contextlib.suppress(FileNotFoundError), os.scandir(LOGS / job) as entries:
            for entry in entries:
                if not entry.name.startswith(INDEX):
                    os.truncate(entry.path, 0)
