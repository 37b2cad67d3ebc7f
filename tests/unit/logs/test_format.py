# SPDX-License-Identifier: MIT
"""Records of the index: every one comes back, none is taken for another."""

from hypothesis import given
from hypothesis import strategies as st

from joblet.server.logs import format as fmt
from joblet.server.logs.format import GapKind, IndexState, Kind, Record

U64 = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from(Kind),
    stream=st.integers(0, 15),
    length=st.integers(0, fmt.MAX_DATA_BYTES),
    time_us=U64,
    offset=U64,
    arg=U64,
)
NUMBERS = st.integers(0, 2**32 - 1)


@given(RECORDS, NUMBERS)
def test_a_record_comes_back(record: Record, number: int) -> None:
    raw = fmt.encode(record, number)
    assert len(raw) == fmt.RECORD_BYTES
    assert fmt.decode(raw, number) == record
    assert fmt.decode_trusted(b"x" * 7 + raw, 7) == record


@given(RECORDS, NUMBERS, NUMBERS)
def test_a_record_counts_only_in_its_own_place(record: Record, number: int, other: int) -> None:
    assert number == other or fmt.decode(fmt.encode(record, number), other) is None


@given(RECORDS, NUMBERS, st.integers(0, fmt.RECORD_BYTES * 8 - 1))
def test_no_flipped_bit_goes_unseen(record: Record, number: int, bit: int) -> None:
    raw = bytearray(fmt.encode(record, number))
    raw[bit // 8] ^= 1 << bit % 8
    assert fmt.decode(bytes(raw), number) is None


def test_the_layout_is_what_the_specification_says() -> None:
    record = Record(Kind.DATA, fmt.ERR, 0x030201, 0x1122, 0x3344, 0x5566)
    raw = fmt.encode(record, 0)
    assert raw[:4] == bytes([0x01, 0x02, 0x03, Kind.DATA << 4 | fmt.ERR])
    assert raw[4:28] == b"".join(n.to_bytes(8, "little") for n in (0x1122, 0x3344, 0x5566))
    assert [int(kind) for kind in Kind] == list(range(1, 9))


def test_gap_kinds_and_unknown_counts() -> None:
    for kind in GapKind:
        for unknown in (False, True):
            record = Record(Kind.GAP, 0, fmt.gap_length(kind, unknown=unknown), 0, 0, 1)
            assert (fmt.gap_kind(record), fmt.gap_unknown(record)) == (kind, unknown)


def _state(*records: Record) -> IndexState:
    state = IndexState()
    for record in records:
        assert state.accepts(record)
        state.apply(record, fmt.encode(record, state.records))
    return state


HEADER = Record(Kind.HEADER, 0, fmt.VERSION, 0, fmt.MAGIC, 1)


def test_records_are_accepted_only_in_their_turn() -> None:
    data = Record(Kind.DATA, fmt.OUT, 5, 0, 0, 0)
    assert not IndexState().accepts(data)
    state = _state(HEADER, data)
    assert state.size == 5
    assert not state.accepts(HEADER)
    assert not state.accepts(data)  # its offset and position are taken
    assert state.accepts(data._replace(offset=5, arg=5))
    assert not state.accepts(data._replace(offset=5, arg=5, length=0))
    assert not state.accepts(data._replace(offset=5, arg=0, stream=0))
    assert not state.accepts(data._replace(offset=5, arg=0, stream=3))
    end = Record(Kind.END, fmt.OUT, 0, 0, 5, 5)
    assert not state.accepts(end._replace(arg=4))
    state = _state(HEADER, data, end)
    assert not state.accepts(end)
    assert not state.accepts(data._replace(offset=5, arg=5))
    assert not state.accepts(Record(Kind.MARK, fmt.OUT, 0, 0, 5, 5))


def test_a_log_ends_with_its_last_expected_stream() -> None:
    expect = Record(Kind.EXPECT, 0, fmt.stream_mask(frozenset({fmt.OUT, fmt.ERR})), 0, 0, 0)
    out_end = Record(Kind.END, fmt.OUT, 0, 0, 0, 0)
    gap = Record(Kind.GAP, 0, fmt.gap_length(GapKind.LOST, unknown=False), 0, 0, 3)
    state = _state(HEADER, out_end)
    assert not state.all_ended  # nobody has said which streams there are
    state = _state(HEADER, expect, out_end)
    assert not state.all_ended
    assert state.accepts(gap)
    state = _state(HEADER, expect, out_end, Record(Kind.END, fmt.ERR, 0, 0, 0, 0))
    assert state.all_ended
    assert state.wants_check
    assert not state.accepts(gap)
    assert not state.accepts(expect)
    assert _state(HEADER, expect._replace(length=0)).all_ended
