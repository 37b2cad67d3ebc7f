# SPDX-License-Identifier: MIT
"""What a follower of the bench does with what it gets."""

import pytest

from tests.bench.guest.errors import Broken
from tests.bench.guest.load import Compare, Load, pieces

JOB = Load(3, 7_000_000)
OUTPUT = b"".join(pieces(JOB, 0, JOB.total))


@pytest.mark.parametrize("size", [1, 999, 1 << 20, 5_000_000])
def test_chunks_of_any_size_are_compared(size: int) -> None:
    compare = Compare(JOB)
    count = 2000 if size == 1 else JOB.total
    for at in range(0, count, size):
        compare.update(OUTPUT[at : at + size])
    assert compare.length == count


def test_a_byte_that_differs_is_found() -> None:
    compare = Compare(JOB)
    compare.update(OUTPUT[:1000])
    with pytest.raises(Broken, match="from 1000 on"):
        compare.update(OUTPUT[1000:5000] + b"x" + OUTPUT[5001:6000])


def test_behind_a_gap_the_rest_is_compared() -> None:
    compare = Compare(JOB)
    compare.update(OUTPUT[:1000])
    compare.skip(4_000_000)
    compare.update(OUTPUT[4_001_000:])
    assert compare.length == JOB.total


def test_a_chunk_left_out_is_found() -> None:
    compare = Compare(JOB)
    compare.update(OUTPUT[:1000])
    with pytest.raises(Broken):
        compare.update(OUTPUT[1100:2000])
