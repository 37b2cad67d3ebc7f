# SPDX-License-Identifier: MIT
"""What the journal has of one unit's output: lines and gaps, in order, past and live.

Two kinds of entries count, by fields that journald writes and no client can: what a process of the
unit wrote to its stdout or stderr (_TRANSPORT=stdout, _SYSTEMD_UNIT), and journald's own word that
it dropped lines of the unit (_TRANSPORT=driver). An OBJECT_SYSTEMD_UNIT on anything else is
somebody's claim, and not looked at.

`Pieces` is pure. python3-systemd is imported when a journal is opened.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

DROPPED: Final = "a596d6fe7bfa4994828e72309e95d61e"  # SD_MESSAGE_JOURNAL_DROPPED
MAX_FIELD: Final = 1 << 20  # bytes; sd-journal cuts what is longer
PIECE_BYTES: Final = 32768  # lines of one stream are joined up to here

OUT: Final = 1
ERR: Final = 2
BOTH: Final = 0

Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Text of one stream, or a gap: then `gap` is one word, and `lines` how many are missing (-1:
    nobody knows). `cursor`: the journal's position of its last line; read on behind it."""

    data: bytes
    stream: int
    time_us: int
    cursor: str
    gap: str = ""
    lines: int = 0


class Pieces:
    """Entries made into pieces. end: the text of root's last line of a stream, which is not the
    job's. info: the priority of stdout; every other one is stderr's. joined: several lines may
    make a piece, which then has the time of the first.

    journald says that it dropped lines just before the first that it takes again, at the same
    microsecond. It may keep lines of a job's user in a file of their own (SplitMode=uid,
    journald.conf(5)), and sd-journal orders entries of two files that have the same time by chance:
    so a loss goes in front of the lines of its moment here.
    """

    def __init__(self, end: str, info: int, *, joined: bool = True) -> None:
        self._end = end.encode()
        self._info = info
        self._room = PIECE_BYTES if joined else 0
        self._open: Piece | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._moment: list[Entry] = []  # entries of one time, the last that were fed
        self._cursor = ""  # of the entry before them

    def feed(self, entry: Entry) -> Iterator[Piece]:
        if self._moment and _time(self._moment[0]) != _time(entry):
            yield from self._settle()
        self._moment.append(entry)

    def _settle(self) -> Iterator[Piece]:
        moment, self._moment = self._moment, []
        before, self._cursor = self._cursor, _cursor(moment[-1])
        losses = [entry for entry in moment if _is_loss(entry)]
        lines = [entry for entry in moment if not _is_loss(entry)]
        if losses + lines != moment:
            # whoever goes on behind one of them meets none twice but a loss
            losses = [{**entry, "__CURSOR": before} for entry in losses]
            lines[-1] = {**lines[-1], "__CURSOR": self._cursor}
        for entry in losses + lines:
            yield from self._put(entry)

    def _put(self, entry: Entry) -> Iterator[Piece]:
        if _is_loss(entry):
            yield from self._close()
            yield Piece(b"", BOTH, _time(entry), _cursor(entry), "dropped", _count(entry))
            return
        text = _bytes(entry.get("MESSAGE", b""))
        if entry.get("_UID") == 0 and text == self._end:
            return
        data = text + _line_end(entry)
        stream = OUT if entry.get("PRIORITY") == self._info else ERR
        if self._open is not None and (
            self._open.stream != stream or self._size + len(data) > self._room
        ):
            yield from self._close()
        first = self._open
        time_us = first.time_us if first else _time(entry)
        self._open = Piece(b"", stream, time_us, _cursor(entry))
        self._parts.append(data)
        self._size += len(data)

    def flush(self) -> Iterator[Piece]:
        """What waits to be joined by more."""
        if self._moment:
            yield from self._settle()
        yield from self._close()

    def _close(self) -> Iterator[Piece]:
        if self._open is not None:
            yield dataclasses.replace(self._open, data=b"".join(self._parts))
        self._open, self._parts, self._size = None, [], 0


def _is_loss(entry: Entry) -> bool:
    return entry.get("_TRANSPORT") == "driver"


def _line_end(entry: Entry) -> bytes:
    """journald splits lines that are too long, and ends one where another process goes on: nothing
    stood there. A NUL byte ends a line as well."""
    match entry.get("_LINE_BREAK"):
        case None:
            return b"\n"
        case "nul":
            return b"\0"
        case _:
            return b""


def _bytes(value: Any) -> bytes:
    """A field's value; the first, if there are several."""
    if isinstance(value, list):
        value = value[0]
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")


def _time(entry: Entry) -> int:
    return int(entry["__REALTIME_TIMESTAMP"])


def _cursor(entry: Entry) -> str:
    return str(entry["__CURSOR"])


def _count(entry: Entry) -> int:
    try:
        return int(entry.get("N_DROPPED", -1))
    except (TypeError, ValueError):
        return -1


class UnitJournal:
    """An open journal of this host, with a position. For one thread."""

    def __init__(self, unit: str, *, priority: int | None = None) -> None:
        """priority: only lines of this one. Raises OSError."""
        from systemd import journal

        self._reader = journal.Reader(
            journal.LOCAL_ONLY,
            converters={
                "MESSAGE": bytes,
                "PRIORITY": int,
                "_UID": int,
                "N_DROPPED": int,
                "__REALTIME_TIMESTAMP": int,
            },
        )
        self._reader.data_threshold = MAX_FIELD
        self._printed = {"_SYSTEMD_UNIT": unit, "_TRANSPORT": "stdout"}
        self._dropped = {
            "_TRANSPORT": "driver",
            "MESSAGE_ID": DROPPED,
            "OBJECT_SYSTEMD_UNIT": unit,
        }
        self._priority = {} if priority is None else {"PRIORITY": str(priority)}
        self._match()
        self.fd: int = self._reader.fileno()  # before the first look, or a change could be missed

    def _match(self) -> None:
        self._reader.add_match(**self._printed, **self._priority)
        self._reader.add_disjunction()
        self._reader.add_match(**self._dropped)

    def close(self) -> None:
        self._reader.close()

    def changed(self) -> None:
        """When `fd` is readable: what has come can be read."""
        self._reader.process()

    def next(self) -> Entry | None:
        """None at the end of what there is."""
        return self._reader.get_next() or None

    def seek_behind(self, cursor: str) -> Entry | None:
        """Go on behind an entry. If it is not there any more: the one after it.

        Raises OSError for what is no cursor.
        """
        self._reader.seek_cursor(cursor)
        entry = self.next()
        if entry is None or self._reader.test_cursor(cursor):
            return None
        return entry

    def seek_time(self, time_us: int) -> str:
        """Before what is from then on. The cursor of the entry before that, "" if there is none."""
        self._reader.seek_realtime(time_us - 1)
        return self._step_back()

    def seek_last(self, lines: int, end: str) -> str:
        """Before the last `lines` lines that are the job's own. Returns as seek_time does."""
        self._reader.seek_tail()
        pieces = Pieces(end, 0)
        while lines > 0 and (entry := self._reader.get_previous()):
            lines -= any(piece.data for piece in [*pieces.feed(entry), *pieces.flush()])
        return self._step_back() if lines <= 0 else self._seek_head()

    def _step_back(self) -> str:
        entry = self._reader.get_previous()
        return _cursor(entry) if entry else self._seek_head()

    def _seek_head(self) -> str:
        self._reader.seek_head()
        return ""

    def oldest_us(self) -> int:
        """The time of the oldest entry of all, 0 if there is none. Loses the position."""
        self._reader.flush_matches()
        entry = self._first()
        return _time(entry) if entry else 0

    def has(self, **fields: str) -> bool:
        """Whether the unit wrote such a line. Loses the position."""
        self._reader.flush_matches()
        self._reader.add_match(**self._printed, **fields)
        return self._first() is not None

    def _first(self) -> Entry | None:
        self._reader.seek_head()
        found = self.next()
        self._reader.flush_matches()
        self._match()
        self._reader.seek_head()
        return found
