# SPDX-License-Identifier: MIT
"""The journal's copy of what jobs print, sent as root so that it counts as their units' own.

Non-blocking: what journald does not take is left out and counted, and the server says so in a line.
"""

from joblet.launch.protocol import STREAMS
from joblet.model import unit_name
from joblet.systemd import messages
from joblet.systemd.journal import NO_FIELDS, Journal

NAMES = dict(zip(STREAMS, ("stdout", "stderr"), strict=True))


class JournalCopy:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def copy(self, job: str, stream: int, data: bytes, *, missing: int = 0) -> int:
        """Lines of one stream (1, 2); how many journald did not take. missing: they are the
        server's note of so many lines that are not there."""
        lines = data.removesuffix(b"\n").split(b"\n")
        name = NAMES[STREAMS[stream - 1]]
        note = {"MESSAGE_ID": messages.LINES_LEFT_OUT, "JOBLET_LEFT_OUT": str(missing)}
        return self._journal.send_lines(
            job,
            unit_name(job),
            name,
            lines,
            identifier=job[:8],
            extra=note if missing else NO_FIELDS,
        )
