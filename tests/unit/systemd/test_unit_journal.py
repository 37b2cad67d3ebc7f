# SPDX-License-Identifier: MIT
"""Entries of the journal made into pieces of output. (What a real journal gives, the machine tests
see.)"""

from typing import Any

from joblet.systemd.unit_journal import BOTH, ERR, OUT, PIECE_BYTES, Piece, Pieces

END = "the end"


def entry(text: bytes, number: int = 1, **more: Any) -> dict[str, Any]:
    """As python3-systemd gives it."""
    return {
        "_TRANSPORT": "stdout",
        "PRIORITY": 6,
        "_UID": 1879048192,
        "MESSAGE": text,
        "__REALTIME_TIMESTAMP": 1000 + number,
        "__CURSOR": f"i={number}",
        **more,
    }


def made(*entries: dict[str, Any]) -> list[Piece]:
    pieces = Pieces(END, 6)
    return [*(piece for one in entries for piece in pieces.feed(one)), *pieces.flush()]


def test_lines_of_one_stream_are_joined() -> None:
    assert made() == []
    assert made(entry(b"a"), entry(b"\xff\x1b", 2), entry(b"c", 3)) == [
        Piece(b"a\n\xff\x1b\nc\n", OUT, 1001, "i=3")
    ]


def test_a_stream_is_known_by_its_priority() -> None:
    assert made(entry(b"a"), entry(b"b", 2, PRIORITY=4), entry(b"c", 3, PRIORITY=4)) == [
        Piece(b"a\n", OUT, 1001, "i=1"),
        Piece(b"b\nc\n", ERR, 1002, "i=3"),
    ]


def test_lines_end_as_they_did() -> None:
    breaks = ["line-max", "pid-change", "nul", "eof"]
    entries = [entry(b"x", n, _LINE_BREAK=how) for n, how in enumerate(breaks, 1)]
    assert made(*entries) == [Piece(b"xxx\0x", OUT, 1001, "i=4")]


def test_lines_by_themselves() -> None:
    pieces = Pieces(END, 6, joined=False)
    entries = (entry(b"a"), entry(b"b", 2))
    found = [*(piece for one in entries for piece in pieces.feed(one)), *pieces.flush()]
    assert found == [Piece(b"a\n", OUT, 1001, "i=1"), Piece(b"b\n", OUT, 1002, "i=2")]


def test_pieces_are_bounded() -> None:
    line = b"x" * 20_000
    sizes = [len(piece.data) for piece in made(*(entry(line, n) for n in range(4)))]
    assert sizes == [20_001] * 4
    assert 20_001 < PIECE_BYTES < 40_002
    # one line is never cut
    assert len(made(entry(b"x" * 100_000))[0].data) == 100_001


def test_what_journald_dropped_is_a_gap() -> None:
    dropped = {"_TRANSPORT": "driver", "N_DROPPED": 17, "MESSAGE": b"Suppressed 17 messages"}
    unknown = {"_TRANSPORT": "driver", "N_DROPPED": b"\xff"}
    assert made(
        entry(b"a"), entry(b"", 2, **dropped), entry(b"b", 3), entry(b"", 4, **unknown)
    ) == [
        Piece(b"a\n", OUT, 1001, "i=1"),
        Piece(b"", BOTH, 1002, "i=2", "dropped", 17),
        Piece(b"b\n", OUT, 1003, "i=3"),
        Piece(b"", BOTH, 1004, "i=4", "dropped", -1),
    ]


def test_a_loss_stands_before_the_lines_of_its_moment() -> None:
    """Whichever of two files sd-journal looks into first. What is shown last leads behind all."""
    now = {"__REALTIME_TIMESTAMP": 2000}
    loss = {**entry(b"", 4), **now, "_TRANSPORT": "driver", "N_DROPPED": 17}
    later, last = entry(b"later", 2, **now), entry(b"last", 3, **now)
    apart = Pieces(END, 6, joined=False)
    for order in ([later, last, loss], [later, loss, last]):
        made_now = [*(piece for one in order for piece in apart.feed(one)), *apart.flush()]
        assert [(piece.data, piece.gap) for piece in made_now] == [
            (b"", "dropped"),
            (b"later\n", ""),
            (b"last\n", ""),
        ]
        assert made_now[1].cursor == "i=2"
        assert made_now[2].cursor == order[-1]["__CURSOR"]
    before, gap, lines = made(entry(b"a"), later, loss, entry(b"b", 5))
    assert (before.data, before.cursor) == (b"a\n", "i=1")
    assert (gap.lines, gap.cursor) == (17, "i=1")
    assert (lines.data, lines.cursor) == (b"later\nb\n", "i=5")


def test_only_roots_line_is_the_end() -> None:
    """A job can print the same."""
    end = END.encode()
    assert made(entry(end), entry(end, 2, _UID=0), entry(b"a", 3, _UID=0)) == [
        Piece(b"the end\na\n", OUT, 1001, "i=3")
    ]


def test_fields_that_are_there_twice_or_not_at_all() -> None:
    none = entry(b"")
    del none["MESSAGE"], none["PRIORITY"]
    assert made(entry(b"", MESSAGE=[b"one", b"two"]), none) == [
        Piece(b"one\n", OUT, 1001, "i=1"),
        Piece(b"\n", ERR, 1001, "i=1"),
    ]
