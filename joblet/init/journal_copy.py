# SPDX-License-Identifier: MIT
"""The journal's copy of what jobs print, sent as root so that it counts as their units' own.

What journald does not take in a moment is left out and counted, and the server says so in a line.

One message of the channel is an object, a newline, and whole lines:

    {"job", "stream", "missing"}\\n LINES  ->  {"left_out": N}

missing: the lines are the server's note of so many bytes that are not there. left_out: how many
lines, always the last ones, journald did not take.
"""

import json
import socket
from typing import Any, Final

from joblet.errors import InvalidArgument
from joblet.launch.plan import JOB_ID
from joblet.launch.protocol import STREAMS
from joblet.link import MAX_MESSAGE, number, text
from joblet.model import unit_name
from joblet.systemd import messages
from joblet.systemd.journal import NO_FIELDS, Journal

NAMES: Final = dict(zip(STREAMS, ("stdout", "stderr"), strict=True))
MAX_MISSING: Final = 2**53


class JournalCopy:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def copy(self, job: str, stream: int, data: bytes, *, missing: int = 0) -> int:
        """Lines of one stream (1, 2); how many journald did not take. missing: they are the
        server's note of so many bytes that are not there."""
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

    def answer(self, message: bytes) -> bytes:
        """One message of the channel. Raises InvalidArgument for what is none."""
        head, newline, data = message.partition(b"\n")
        try:
            fields: Any = json.loads(head)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict) or not newline or not data:
            raise InvalidArgument("copy output", "it is no message of the channel")
        job = text(fields, "job", JOB_ID)
        stream = number(fields, "stream", 1, len(STREAMS))
        missing = number(fields, "missing", 0, MAX_MISSING)
        left_out = self.copy(job, stream, data, missing=missing)
        return json.dumps({"left_out": left_out}).encode()


def serve(channel: socket.socket, journal: Journal) -> None:
    """Until the server hangs up, or says what is no message. Blocking. Raises OSError."""
    copier = JournalCopy(journal)
    while data := channel.recv(MAX_MESSAGE):
        channel.send(copier.answer(data))
