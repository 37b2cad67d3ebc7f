# SPDX-License-Identifier: MIT
"""Lines of a log with the time of arrival before each. Pure.

A line belongs to one stream, and the two come in pieces, cut anywhere: so one is shown when it is
whole, with the time at which its first byte arrived. What never becomes whole is shown when the
log ends, or is interrupted; of a line longer than LONGEST what there is. It goes on, without
another time, when more of it comes, on a line of its own if something else came between.
"""

import functools

from rnx.follow import Piece
from rnx.formats import rfc3339_us

LONGEST = 64 << 10  # bytes of a line that are held back


class Stamps:
    """Both streams into one output: of `add` and `close` what is to be written now."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._open: _Line | None = None  # whose beginning was the last that was written

    def add(self, piece: Piece) -> bytes:
        line = self._lines.setdefault(piece.stream, _Line())
        marks = piece.arrivals or ((0, piece.time_us),)
        ends = [at for at, _ in marks[1:]] + [len(piece.data)]
        shown = bytearray()
        for (at, time_us), end in zip(marks, ends, strict=True):
            while at < end:
                behind = piece.data.find(b"\n", at, end) + 1
                line.take(piece.data[at : behind or end], time_us)
                if behind:
                    self._show(line, shown)
                    self._open = None
                    line.reset()
                elif len(line.held) > LONGEST:
                    self._show(line, shown)
                at = behind or end
        return bytes(shown)

    def close(self, stream: int = 0) -> bytes:
        """What is held back of a stream, of both if it is 0: it does not go on."""
        shown = bytearray()
        for number, line in self._lines.items():
            if stream in (0, number):
                if line.held:
                    self._show(line, shown)
                line.reset()
        return bytes(shown)

    def _show(self, line: "_Line", shown: bytearray) -> None:
        if self._open is not None and (self._open is not line or not line.begun):
            shown += b"\n"
        if not line.begun:
            shown += _stamp(line.time_us)
        shown += line.held
        line.held.clear()
        line.begun = True
        self._open = line


class _Line:
    """A stream's last line, as far as it is there."""

    def __init__(self) -> None:
        self.held = bytearray()
        self.time_us = 0
        self.begun = False  # something of it was shown

    def take(self, data: bytes, time_us: int) -> None:
        if not self.held and not self.begun:
            self.time_us = time_us
        self.held += data

    def reset(self) -> None:
        self.held.clear()
        self.begun = False


@functools.lru_cache(maxsize=16)
def _stamp(time_us: int) -> bytes:
    return f"{rfc3339_us(time_us)} ".encode()
