# SPDX-License-Identifier: MIT
"""The last lines of a log, kept on the way: for servers that cannot tell where they begin. Pure."""

import collections
import dataclasses

from rnx.errors import RnxError
from rnx.follow import Piece

MOST_BYTES = 64 << 20


class LastLines:
    """Takes all pieces of a log and holds back those that the last lines may begin in."""

    def __init__(self, lines: int, *, most_bytes: int = MOST_BYTES) -> None:
        self._lines = lines
        self._most_bytes = most_bytes
        self._kept: collections.deque[Piece] = collections.deque()
        self._ends = 0  # line ends in what is kept
        self._bytes = 0

    def take(self, piece: Piece) -> None:
        """Raises RnxError if it would be too much to hold."""
        self._kept.append(piece)
        self._ends += piece.data.count(b"\n")
        self._bytes += len(piece.data)
        # The last line may have ended: one more than is wanted is needed behind what is let go.
        while self._kept:
            first = self._kept[0].data
            ends = first.count(b"\n")
            if self._ends - ends <= self._lines:
                break
            self._ends -= ends
            self._bytes -= len(first)
            self._kept.popleft()
        if self._bytes > self._most_bytes:
            raise RnxError(
                f"cannot show the last {self._lines} lines: the server does not know --tail, and "
                f"rnx holds at most {self._most_bytes >> 20} MiB of them; leave it out"
            )

    def pieces(self) -> list[Piece]:
        """The last lines."""
        found: list[Piece] = []
        left, last = self._lines, True
        while self._kept and left:
            piece = self._kept.pop()
            end = len(piece.data)
            if last and end:
                last = False
                end -= piece.data.endswith(b"\n")
            count = piece.data.count(b"\n", 0, end)
            if count >= left:
                for _ in range(left):
                    end = piece.data.rfind(b"\n", 0, end)
                piece = dataclasses.replace(piece, data=piece.data[end + 1 :])
                left = 0
            else:
                left -= count
            if piece.data or piece.gap:
                found.append(piece)
        return found[::-1]
