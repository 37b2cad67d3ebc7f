# SPDX-License-Identifier: MIT
"""Secret values of a job, covered with asterisks wherever its output is read. Pure.

A log's files hold what the job said; only its readers see asterisks, one for each byte, so that
offsets hold. A value is found wherever reads and chunks cut it, within one stream; encoded or
wrapped by the job it is not. Values of fewer than MIN_BYTES bytes are not covered: `1` or `no`
would cover the output, and are found by trying.

Must not import anything of joblet.
"""

from collections.abc import Iterable, Iterator
from typing import Final

MIN_BYTES: Final = 4


class Mask:
    """At least one value. `reach`: so many bytes on each side of a piece decide what it shows."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self._values = tuple(values)
        self.reach = max(map(len, self._values)) - 1

    def covered(self, before: bytes, data: bytes, after: bytes) -> bytes:
        """`data`, which stands between the other two, with every value in it covered."""
        window = before + data + after
        shown: bytearray | None = None
        for value in self._values:
            for at in _occurrences(window, value):
                begin = max(0, at - len(before))
                end = min(len(data), at + len(value) - len(before))
                if begin < end:
                    shown = bytearray(data) if shown is None else shown
                    shown[begin:end] = stars(end - begin)
        return data if shown is None else bytes(shown)

    def open_tail(self, window: bytes) -> int:
        """How many bytes at the end of it may be the beginning of a value."""
        return max(_begun(window[-(len(value) - 1) :], value) for value in self._values)


def of(values: Iterable[str]) -> Mask | None:
    """None when there is nothing to be covered."""
    encoded = {value.encode(errors="surrogateescape") for value in values}
    known = sorted(value for value in encoded if len(value) >= MIN_BYTES)
    return Mask(known) if known else None


def stars(count: int) -> bytes:
    return b"*" * count


def _occurrences(window: bytes, value: bytes) -> Iterator[int]:
    """Where it begins; occurrences may overlap."""
    at = window.find(value)
    while at >= 0:
        yield at
        at = window.find(value, at + 1)


def _begun(tail: bytes, value: bytes) -> int:
    """The length of the longest end of `tail` that `value` begins with."""
    at = tail.find(value[:1])
    while at >= 0:
        if value.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(value[:1], at + 1)
    return 0
