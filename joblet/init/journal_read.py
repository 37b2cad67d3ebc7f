# SPDX-License-Identifier: MIT
"""A job's output read back from the journal, in frames (link.frame) on a stream socket:

    {"begin": true, "cursor"}                 first, if since_us or tail say where it begins: to
                                              begin there again, read on behind this cursor ("":
                                              from the start)
    {"stream", "time_us", "cursor"} TEXT      lines of one stream; cursor: read on behind it
    {"gap", "lines", "cursor", …}             lines that are not there; -1: nobody knows how many
    {"end": true, "past": false,              everything that was there has been sent; past: what is
     "missing": [STREAM…]}                    there is later than asked for; missing: the streams
                                              whose end is not in the journal
    {"error": …}                              as on the link

It goes on with what comes, until the reader shuts its side down for writing: then what is there by
now is sent, and the end. A reader that does not read waits for nobody but itself.
"""

import contextlib
import re
import select
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from joblet import link
from joblet.errors import InvalidArgument, JobletError, Unavailable
from joblet.launch import journal as streams
from joblet.link import Message
from joblet.systemd.unit_journal import BOTH, ERR, OUT, Entry, Piece, Pieces, UnitJournal

CURSOR: Final = re.compile(r"([a-z]=[0-9a-f]+(;[a-z]=[0-9a-f]+)*)?", re.ASCII)
MAX_CURSOR: Final = 512
MAX_US: Final = 2**53
MAX_TAIL: Final = 2**31
PRIORITIES: Final[Mapping[int, int]] = {OUT: streams.INFO, ERR: streams.WARNING}
WHAT: Final = "read the journal"


def wanted(unit: str, message: Message) -> dict[str, object]:
    """What is asked for, checked. Raises InvalidArgument."""
    cursor = link.text(message, "cursor", CURSOR)
    if len(cursor) > MAX_CURSOR:
        raise InvalidArgument("read a request", f"cursor has {len(cursor)} characters")
    return {
        "unit": unit,
        "cursor": cursor,
        # of the two; 0: both
        "stream": link.number(message, "stream", BOTH, ERR),
        # when the job began: what the journal has must be older, or its beginning may be gone
        "began_us": link.number(message, "began_us", 0, MAX_US),
        "since_us": link.number(message, "since_us", 0, MAX_US),
        "until_us": link.number(message, "until_us", 0, MAX_US),
        # lines from the end; -1: all
        "tail": link.number(message, "tail", -1, MAX_TAIL),
        # whose end is looked for
        "streams": link.number(message, "streams", 0, 2),
        # 1: each line by itself, with its time
        "single": link.number(message, "single", 0, 1),
    }


def serve(sock: socket.socket, request: Mapping[str, Any]) -> None:
    """Until everything is said or the reader hangs up. Blocking. Raises OSError."""
    try:
        stream = request["stream"]
        with contextlib.closing(
            UnitJournal(request["unit"], priority=PRIORITIES.get(stream))
        ) as journal:
            Reading(journal, sock, request).run()
    except JobletError as error:
        sock.sendall(link.frame({"error": link.error_message(error)}))


class Reading:
    def __init__(
        self, journal: UnitJournal, sock: socket.socket, request: Mapping[str, Any]
    ) -> None:
        self._journal = journal
        self._socket = sock
        self._request = request
        self._pieces = Pieces(streams.END, streams.INFO, joined=not request["single"])
        self._finishing = False

    def run(self) -> None:
        """Raises OSError when nobody reads, JobletError for what cannot be read."""
        self._begin()
        while (more := self._read()) and not self._finishing:
            self._wait()
        missing = self._missing() if more else []
        self._send({"end": True, "past": not more, "missing": missing})

    def _begin(self) -> None:
        request, journal = self._request, self._journal
        if cursor := request["cursor"]:
            try:
                entry = journal.seek_behind(cursor)
            except OSError as error:
                raise InvalidArgument(WHAT, f"{cursor:.80} is no cursor: {error}") from None
            if entry is not None:
                self._gap("expired")
                self._say(self._pieces.feed(entry))
        elif request["tail"] >= 0:
            self._send({"begin": True, "cursor": journal.seek_last(request["tail"], streams.END)})
        elif request["since_us"]:
            self._send({"begin": True, "cursor": journal.seek_time(request["since_us"])})
        elif request["began_us"]:
            oldest = journal.oldest_us()
            if not oldest or oldest > request["began_us"]:
                self._gap("expired")

    def _gap(self, kind: str) -> None:
        self._say(iter([Piece(b"", BOTH, 0, "", kind, -1)]))

    def _read(self) -> bool:
        """Everything that is there. False when all that is wanted has been."""
        until = self._request["until_us"]
        while (entry := self._next()) is not None:
            if until and entry["__REALTIME_TIMESTAMP"] >= until:
                self._say(self._pieces.flush())
                return False
            self._say(self._pieces.feed(entry))
        self._say(self._pieces.flush())
        return True

    def _next(self) -> Entry | None:
        try:
            return self._journal.next()
        except OSError as error:  # a file that is damaged, or was removed
            raise Unavailable(WHAT, error.strerror or str(error)) from None

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._journal.fd, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._socket.fileno() in ready:
            self._socket.recv(1)  # nobody sends anything: it is the end
            self._finishing = True
        self._journal.changed()

    def _missing(self) -> list[int]:
        """The streams of the job whose end PID 1 has not told the journal."""
        names = (OUT, ERR)[: self._request["streams"]]
        asked = [s for s in names if self._request["stream"] in (BOTH, s)]
        return [
            stream
            for stream in asked
            if not self._journal.has(
                _UID="0", MESSAGE=streams.END, PRIORITY=str(PRIORITIES[stream])
            )
        ]

    def _say(self, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            fields: dict[str, object] = {
                "stream": piece.stream,
                "time_us": piece.time_us,
                "cursor": piece.cursor,
            }
            if piece.gap:
                fields |= {"gap": piece.gap, "lines": piece.lines}
            self._send(fields, piece.data)

    def _send(self, fields: dict[str, object], data: bytes = b"") -> None:
        self._socket.sendall(link.frame(fields, data))
