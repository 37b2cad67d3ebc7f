# SPDX-License-Identifier: MIT
"""Joblet's log store, seen from outside: how much of a job's output is in its files.

The server is not asked: that would be work of its own in the time that is measured.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rnx.client import Client
from rnx.errors import RnxError

LOGS: Final = Path("/var/lib/joblet/logs")
OUTPUT: Final = re.compile(r"(out|err)(\.[0-9]+)?")
"""Files of a job that hold its output and nothing else."""


def holds(job: str, total: int) -> bool:
    """Whether `total` bytes of a job's output are in files: on the disk, or in the page cache
    above it."""
    return sum(path.stat().st_size for path in _files(job)) >= total


def remove(client: Client, jobs: Iterable[str]) -> None:
    """The jobs that have ended, so that the next run finds the disk as this one did."""
    try:
        client.delete_all_jobs()
        return
    except RnxError:
        pass  # too many at once: the bytes alone, then
    for job in jobs:
        for path in _files(job):
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, 0)


def _files(job: str) -> list[Path]:
    try:
        return [path for path in (LOGS / job).iterdir() if OUTPUT.fullmatch(path.name)]
    except FileNotFoundError:
        return []
