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
            for first, behind in _covering(window, value):
                begin = max(0, first - len(before))
                end = min(len(data), behind - len(before))
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


def _covering(window: bytes, value: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of each stretch that occurrences make up, one overlapping or touching the next.

    What repeats itself is one step: a job that prints zeros and has a secret of zeros would cost
    a step for every byte.
    """
    size = len(value)
    begin = window.find(value)
    while begin >= 0:
        last = begin
        while (further := window.find(value, last + 1, last + 2 * size)) >= 0:
            period = further - last
            same = _repeated(window, further, period)
            last = further + (same - size) // period * period
        yield begin, last + size
        begin = window.find(value, last + size)


def _repeated(window: bytes, at: int, period: int) -> int:
    """How many bytes from `at` on are as those `period` before them."""
    count, step, growing = 0, 64, True
    while step:
        here = window[at + count : at + count + step]
        if len(here) == step and window.startswith(here, at + count - period):
            count += step
            step *= 1 + growing
        else:
            growing = False
            step //= 2
    return count


def _begun(tail: bytes, value: bytes) -> int:
    """The length of the longest end of `tail` that `value` begins with."""
    at = tail.find(value[:1])
    while at >= 0:
        if value.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(value[:1], at + 1)
    return 0
