# SPDX-License-Identifier: MIT
"""What jobs say: kept, in order of arrival, readable by offset, past and future in one.

The rest of the server uses the names below; the modules behind them are this package's own.
"""

from joblet.server.logs.follower import Follower
from joblet.server.logs.format import ERR, OUT, GapKind
from joblet.server.logs.joblog import JobLog
from joblet.server.logs.keeper import Keeping, Swept
from joblet.server.logs.metrics import LogMetrics
from joblet.server.logs.reader import Settings
from joblet.server.logs.selection import Piece, SelectedLog, Selection
from joblet.server.logs.stage import Bounds
from joblet.server.logs.store import LogStore
from joblet.server.logs.view import Chunk, Gap
from joblet.server.logs.writer import Batching

__all__ = [
    "ERR",
    "OUT",
    "Batching",
    "Bounds",
    "Chunk",
    "Follower",
    "Gap",
    "GapKind",
    "JobLog",
    "Keeping",
    "LogMetrics",
    "LogStore",
    "Piece",
    "SelectedLog",
    "Selection",
    "Settings",
    "Swept",
]
