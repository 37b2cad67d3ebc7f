# SPDX-License-Identifier: MIT
"""Lines with their times: one before each, wherever pieces cut them and streams meet."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnx import stamps
from rnx.follow import Piece
from rnx.formats import rfc3339_us
from rnx.stamps import Stamps

DATA = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"d\ne", b"\n\n"]), min_size=1, max_size=4)
ONE = st.tuples(st.sampled_from([1, 2]), DATA.map(b"".join), st.integers(1, 3))
SAID = st.lists(ONE, max_size=12)


def stamped(time_us: int, line: bytes) -> bytes:
    return f"{rfc3339_us(time_us)} ".encode() + line


def shown(said: Iterable[tuple[int, bytes, int]]) -> bytes:
    made = Stamps()
    parts = [made.add(Piece(data, 0, stream, time_us)) for stream, data, time_us in said]
    return b"".join(parts) + made.close()


def naively(said: Iterable[tuple[int, bytes, int]]) -> bytes:
    """Byte by byte: a line when it is whole, then what is left of each stream."""
    lines: list[bytes] = []
    held: dict[int, tuple[int, bytes]] = {}
    for stream, data, time_us in said:
        for byte in data:
            began, line = held.pop(stream, (time_us, b""))
            line += bytes([byte])
            if byte == ord("\n"):
                lines.append(stamped(began, line))
            else:
                held[stream] = (began, line)
    streams = dict.fromkeys(stream for stream, _, _ in said)
    left = [stamped(*held[stream]) for stream in streams if stream in held]
    return b"".join(lines) + b"\n".join(left)


@given(SAID)
def test_every_line_has_one_time(said: list[tuple[int, bytes, int]]) -> None:
    assert shown(said) == naively(said)


@given(SAID, st.integers(1, 3))
def test_wherever_it_is_cut(said: list[tuple[int, bytes, int]], size: int) -> None:
    cut = [
        (stream, data[at : at + size], time_us)
        for stream, data, time_us in said
        for at in range(0, len(data), size)
    ]
    assert shown(cut) == shown(said)


def test_a_piece_with_several_arrivals() -> None:
    made = Stamps()
    piece = Piece(b"a\nb\nc\n", 6, 1, 5, arrivals=((0, 5), (1, 6), (4, 7)))
    assert made.add(piece) == stamped(5, b"a\n") + stamped(6, b"b\n") + stamped(7, b"c\n")


def test_a_line_that_is_too_long_to_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "LONGEST", 3)
    alone = [(1, b"abcd", 1), (1, b"efgh", 2), (1, b"i\nj\n", 3)]
    assert shown(alone) == stamped(1, b"abcdefghi\n") + stamped(3, b"j\n")
    met = [(1, b"abcd", 1), (2, b"x\n", 2), (1, b"e\nf", 3)]
    assert shown(met) == (stamped(1, b"abcd\n") + stamped(2, b"x\n") + b"e\n" + stamped(3, b"f"))
    both = [(1, b"abcd", 1), (2, b"efgh", 2), (1, b"i\n", 3), (2, b"j\n", 4)]
    assert shown(both) == stamped(1, b"abcd\n") + stamped(2, b"efgh\n") + b"i\nj\n"


def test_what_is_held_back_is_shown_before_a_gap() -> None:
    made = Stamps()
    assert made.add(Piece(b"half", 4, 1, 1)) == b""
    assert made.add(Piece(b"other", 9, 2, 2)) == b""
    assert made.close(1) == stamped(1, b"half")
    # it does not go on: what comes is another line
    assert made.add(Piece(b"x\n", 20, 1, 3)) == b"\n" + stamped(3, b"x\n")
    assert made.close() == stamped(2, b"other")
    assert made.close() == b""
