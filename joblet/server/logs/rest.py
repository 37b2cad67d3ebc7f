# SPDX-License-Identifier: MIT
"""Take the rest of a stream that its job's PID 1 kept in a file while no server was there.

Blocking. The import may be killed anywhere and repeated: a mark in the index says at how many
bytes of the stream the rest begins, so what the log holds beyond it is what was imported.

Must not import anything of joblet but its neighbours core, files, format.
"""

import os
from typing import Final

from joblet.server.logs.core import LogCore
from joblet.server.logs.files import write_all
from joblet.server.logs.format import GapKind

_BLOCK_BYTES: Final = 1 << 20


def import_rest(core: LogCore, stream: int, fd: int, count: int | None) -> int:
    """Append what the log does not hold yet of the rest in `fd`; how many bytes that were.

    `fd` stays the caller's and is read with pread. `count` is how many bytes the rest has; what
    is missing becomes a gap. None: the rest may be cut off, it is taken as far as it goes and a
    gap of unknown count follows, unless one that hides it stands there already. Synced when this
    returns. The log's files must be pinned and no pipe attached to the stream. Raises OSError; then
    it may be repeated.
    """
    if stream in core.state.ended or count == 0:
        return 0
    there = os.fstat(fd).st_size
    if count is not None:
        there = min(there, count)
    position = core.mark_rest(stream)
    imported = 0
    while position < there:
        block = os.pread(fd, min(_BLOCK_BYTES, there - position), position)
        if not block:
            break
        write_all(core.staged.stream(stream), block, core.written[stream])
        core.step("rest:copied")
        core.written[stream] += len(block)
        core.enter(stream)
        core.step("rest:entered")
        position += len(block)
        imported += len(block)
    missing = None if count is None else max(0, count - position)
    known = stream in core.state.rest_lost or core.tail_is_lost(stream)
    if missing != 0 and not known:
        core.gap(GapKind.LOST, stream, missing)
    core.step("rest:gap")
    core.sync()
    core.step("rest:synced")
    return imported
