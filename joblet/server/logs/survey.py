# SPDX-License-Identifier: MIT
"""What lies in the log directory: how much of each log, how old, and what could be compressed.

It looks at names, sizes and times alone, and opens no log: a hundred thousand are looked at in
seconds, with rests between, so that whoever needs the processor has it. The age of a log is that of
its index, which is written last.

Blocking. Must not import anything of joblet but its neighbour files.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from joblet.server.logs.files import INDEX_NAME

# So many logs between two rests.
BATCH: Final = 50
_PLAIN: Final = re.compile(r"(?:out|err)\.[0-9]{15,}", re.ASCII)


class Facts(NamedTuple):
    """Of one log. time_us: of its last record. plain: how many segments are worth compressing."""

    job_id: str
    bytes: int
    time_us: int
    plain: int


def survey(
    directory: Path, job_ids: Sequence[str], *, least_bytes: int, rest: Callable[[], None]
) -> Iterator[Facts]:
    """The facts of these logs; one that is gone, or without an index, is left out.

    `least_bytes`: smaller segments are not worth compressing. `rest` is called between batches;
    what it raises ends this. Raises OSError if the disk refuses.
    """
    for number, job_id in enumerate(job_ids, 1):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if (facts := _look(directory / job_id, job_id, least_bytes)) is not None:
                yield facts
        if number % BATCH == 0:
            rest()


def _look(path: Path, job_id: str, least_bytes: int) -> Facts | None:
    total = plain = 0
    time_us: int | None = None
    with os.scandir(path) as entries:
        for entry in entries:
            stat = entry.stat(follow_symlinks=False)
            total += min(stat.st_size, stat.st_blocks * 512)  # what overflow left out is a hole
            if entry.name == INDEX_NAME:
                time_us = stat.st_mtime_ns // 1000
            elif stat.st_size >= least_bytes and _PLAIN.fullmatch(entry.name):
                plain += 1
    return None if time_us is None else Facts(job_id, total, time_us, plain)
