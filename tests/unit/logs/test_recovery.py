# SPDX-License-Identifier: MIT
"""Whatever happened to the files: the longest valid prefix stays, and no offset is reused."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.errors import FailedPrecondition
from joblet.server.logs import ERR, OUT, Chunk, Gap, GapKind, blocks
from joblet.server.logs import format as fmt
from joblet.server.logs.core import LogCore
from tests.unit.logs.support import (
    BOOT,
    OTHER_BOOT,
    by_offset,
    opened,
    read_all,
    records,
    say,
    stream_of,
)

OUT_FILE, ERR_FILE = "out.000000000000000", "err.000000000000000"
NAMES = {OUT: OUT_FILE, ERR: ERR_FILE}


@pytest.fixture(autouse=True, scope="module")
def _frequent_checks() -> Iterator[None]:
    """A pair of CHECK records every few records, so that short logs have some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fmt, "CHECK_EVERY", 5)
        yield


def _bytes(stream: int, position: int, length: int) -> bytes:
    """What the streams of these tests say: other bytes at other positions, as far as 251 goes."""
    return bytes((stream * 31 + p * 7) % 251 for p in range(position, position + length))


# What may happen to a log, in any order; what is out of turn is skipped.
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(fmt.STREAMS), st.integers(1, 40)),
        st.tuples(st.just("gap"), st.sampled_from((0, OUT, ERR)), st.integers(1, 9)),
        st.tuples(st.just("unknown"), st.just(0), st.just(0)),
        st.tuples(st.just("mark"), st.sampled_from(fmt.STREAMS), st.just(0)),
        st.tuples(st.just("end"), st.sampled_from(fmt.STREAMS), st.just(0)),
    ),
    max_size=25,
)


def _perform(core: LogCore, operations: list[tuple[str, int, int]]) -> int:
    """How many bytes of the index are durable then: no crash takes them away."""
    durable = 0
    for name, stream, number in operations:
        if core.ended or stream in core.state.ended:
            continue
        if name == "say":
            say(core, stream, _bytes(stream, core.written[stream], number))
        elif name == "gap":
            core.gap(GapKind.LOST, stream, number)
        elif name == "unknown":
            core.gap(GapKind.LOST, stream, None)
            durable = core.state.records * fmt.RECORD_BYTES
        elif name == "mark":
            core.mark_rest(stream)
            durable = core.state.records * fmt.RECORD_BYTES
        else:
            core.end(stream)
    return durable


DAMAGE = st.one_of(
    st.tuples(st.just("nothing"), st.just(""), st.just(0.0), st.just(0)),
    st.tuples(st.just("flip"), st.just("index"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.just("index"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("append"), st.just("index"), st.floats(0, 1), st.integers(1, 100)),
    st.tuples(st.just("remove"), st.just("index"), st.just(0.0), st.just(0)),
    st.tuples(st.just("cut"), st.sampled_from((OUT_FILE, ERR_FILE)), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("remove"), st.sampled_from((OUT_FILE, ERR_FILE)), st.just(0.0), st.just(0)),
    st.tuples(
        st.just("grow"), st.sampled_from((OUT_FILE, ERR_FILE)), st.just(0.0), st.integers(1, 50)
    ),
)


def _damage(path: Path, damage: tuple[str, str, float, int], durable: int) -> None:
    how, name, where, number = damage
    if name == "index" and how == "remove" and durable:
        return
    file = path / name
    if how == "nothing" or not file.is_file():
        return
    raw = bytearray(file.read_bytes())
    at = max(0, min(int(where * len(raw)), len(raw) - 1))
    if how == "remove":
        file.unlink()
        return
    if how == "cut":
        del raw[max(at, durable if name == "index" else 0) :]
    elif how == "flip" and raw:
        raw[at] ^= number
    elif how == "append":
        raw += bytes((number * 7 + i) % 256 for i in range(number))
    elif how == "grow":
        stream = OUT if name == OUT_FILE else ERR
        raw += _bytes(stream, len(raw), number)
    file.write_bytes(raw)


def _kept(segment: Path, *, killed: bool) -> int:
    """How much of a segment can be told from garbage: the blocks that are there whole, and, if only
    the server was killed, what stands behind the last of them."""
    if not segment.exists():
        return 0
    size = segment.stat().st_size
    raw = segment.with_name(f"{segment.name}.sums").read_bytes()
    number = kept = 0
    while (block := blocks.decode(raw, number * blocks.SUM_BYTES, number)) and block.end <= size:
        number += 1
        kept = block.end
    return size if killed and block is None else kept


class Killed(Exception):
    """Stands for a kill between two steps: what was written stays."""


def _killed_at(number: int) -> Callable[[str], None]:
    left = iter(range(number))

    def step(_: str) -> None:
        if next(left, None) is None:
            raise Killed

    return step


@settings(max_examples=400, deadline=None)
@given(
    OPERATIONS,
    st.lists(DAMAGE, min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 7), max_size=2),
)
def test_any_damage(
    operations: list[tuple[str, int, int]],
    damages: list[tuple[str, str, float, int]],
    rebooted: bool,
    kills: list[int],
) -> None:
    # What is cut off without a trace is what a dead machine had not written: in the same boot,
    # the page cache holds it, and only what leaves a trace can happen.
    traceless = any(how in ("cut", "remove") and name == "index" for how, name, *_ in damages)
    boot = OTHER_BOOT if rebooted or traceless else BOOT
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        with opened(path) as core:
            core.expect(frozenset({OUT, ERR}))
            durable = _perform(core, operations)
            before = by_offset(read_all(core))
            ended = core.ended
        index = (path / "index").read_bytes()
        for damage in damages:
            _damage(path, damage, durable)
        damaged = (path / "index").read_bytes() if (path / "index").exists() else b""
        lengths = {
            stream: _kept(path / NAMES[stream], killed=boot == BOOT) for stream in fmt.STREAMS
        }

        for number in kills:
            step = _killed_at(number)
            with suppress(Killed), opened(path, boot=boot, known=True, step=step):
                pass
        with opened(path, boot=boot, known=True) as core:
            after = read_all(core)
            held = {stream: stream_of(after, stream) for stream in fmt.STREAMS}
            again = core.size
        found = by_offset(after)
        for offset in found.keys() & before.keys():
            assert found[offset] == before[offset]
        for stream in fmt.STREAMS:
            assert held[stream] == _bytes(stream, 0, len(held[stream]))
            expected = lengths[stream]
            if stream in core.state.ended:
                expected = min(expected, core.state.held[stream])
            assert len(held[stream]) == expected

        # The longest valid prefix: records before the first damaged one still hold.
        same = next(
            (at for at, (old, new) in enumerate(zip(index, damaged, strict=False)) if old != new),
            min(len(index), len(damaged)),
        )
        prefix = fmt.IndexState()
        for number in range(same // fmt.RECORD_BYTES):
            raw = index[number * fmt.RECORD_BYTES : (number + 1) * fmt.RECORD_BYTES]
            record = fmt.decode(raw, number)
            assert record is not None
            if record.kind is fmt.Kind.DATA:
                there = min(record.length, max(0, lengths[record.stream] - record.arg))
                for offset in range(record.offset, record.offset + there):
                    assert found[offset] == before[offset]
            prefix.apply(record, raw)
        assert core.size >= prefix.size
        if prefix.all_ended:
            assert ended
            assert core.ended
        records(path)

        # Opening it again changes nothing, and it can be gone on with.
        with opened(path, boot=boot) as core:
            assert core.size == again
            assert read_all(core) == after
            if not core.ended:
                for stream in fmt.STREAMS:
                    if stream not in core.state.ended:
                        say(core, stream, _bytes(stream, core.written[stream], 10))
                new = by_offset(read_all(core))
                for offset in new.keys() & before.keys():
                    assert new[offset] == before[offset]
                assert {o: b for o, b in new.items() if o < again} == found
        records(path)


def test_bytes_moved_but_not_entered_are_entered(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"one")
    with (tmp_path / ERR_FILE).open("wb") as file:
        file.write(b"moved")
    with opened(tmp_path) as core:
        assert [(c.offset, c.stream, c.data) for c in read_all(core) if isinstance(c, Chunk)] == [
            (0, OUT, b"one"),
            (3, ERR, b"moved"),
        ]


def test_a_killed_server_costs_no_gap(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        say(core, OUT, b"x" * 10)
    with opened(tmp_path) as core:
        say(core, OUT, b"y" * 10)
        assert core.size == 20


def test_a_dead_machine_costs_a_gap_to_the_next_boundary(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        say(core, OUT, b"x" * 10)
    with opened(tmp_path, boot=OTHER_BOOT) as core:
        assert core.size == fmt.UNKNOWN_GAP_ALIGN
        say(core, OUT, b"after")
    with opened(tmp_path, boot=OTHER_BOOT) as core:
        chunk, gap, after = read_all(core)
        assert isinstance(gap, Gap)
        assert (gap.offset, gap.kind, gap.bytes) == (10, GapKind.LOST, None)
        assert gap.offset_end == after.offset == fmt.UNKNOWN_GAP_ALIGN
        assert isinstance(after, Chunk)
        assert after.data == b"after"
        assert (read_all(core, 12)[0], chunk.offset) == (
            Gap(12, GapKind.LOST, None, 0, gap.time_us, gap.offset_end),
            0,
        )
    # It dies again, and what was said since the last boot is not on the disk.
    raw = (tmp_path / "index").read_bytes()
    (tmp_path / "index").write_bytes(raw[: -fmt.RECORD_BYTES])
    (tmp_path / OUT_FILE).write_bytes(b"x" * 10)
    with opened(tmp_path, boot=33) as core:
        assert core.size == 2 * fmt.UNKNOWN_GAP_ALIGN


def test_a_clean_stop_before_the_reboot_costs_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        say(core, OUT, b"x" * 10)
    with opened(tmp_path, boot=OTHER_BOOT, clean_boot=BOOT) as core:
        assert core.size == 10
        say(core, OUT, b"y")
    with opened(tmp_path, boot=33, clean_boot=BOOT) as core:
        assert core.size == fmt.UNKNOWN_GAP_ALIGN


def test_an_ended_log_survives_a_reboot_unchanged(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT}))
        say(core, OUT, b"x" * 10)
        core.end(OUT)
    raw = (tmp_path / "index").read_bytes()
    with opened(tmp_path, boot=OTHER_BOOT) as core:
        assert core.ended
        assert core.size == 10
    assert (tmp_path / "index").read_bytes() == raw


def test_bytes_missing_in_the_middle_become_exact_gaps_in_place(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"o" * 10)
        say(core, ERR, b"e" * 10)
        say(core, OUT, b"O" * 10)
        say(core, ERR, b"E" * 10)
        core.store()
        say(core, OUT, b"more")
        say(core, ERR, b"more")
    os.truncate(tmp_path / OUT_FILE, 21)  # within the last block: what is left of it proves nothing
    with opened(tmp_path) as core:
        items = read_all(core)
        found = [(i.offset, i.stream, i.data if isinstance(i, Chunk) else i.bytes) for i in items]
        assert found == [
            (0, OUT, b"o" * 10),
            (10, ERR, b"e" * 10),
            (20, OUT, b"O" * 10),
            (30, ERR, b"E" * 10),
            (40, OUT, 4),
            (44, ERR, b"more"),
        ]
        say(core, OUT, b"new")
        (new,) = read_all(core, 48)
        assert isinstance(new, Chunk)
        assert (new.offset, new.stream, new.data) == (48, OUT, b"new")
        core.end(OUT)
        core.end(ERR)
    assert (tmp_path / OUT_FILE).read_bytes() == b"o" * 10 + b"O" * 10 + b"new"


def test_damage_in_front_of_a_check_is_found(tmp_path: Path) -> None:
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT}))
        for _ in range(50):
            say(core, OUT, b"0123456789")
        core.end(OUT)
    found = records(tmp_path)
    assert [r.kind for r in found[-3:]] == [fmt.Kind.END, fmt.Kind.CHECK, fmt.Kind.CHECK]
    assert sum(record.kind is fmt.Kind.CHECK for record in found) > 10
    raw = bytearray((tmp_path / "index").read_bytes())
    raw[7 * fmt.RECORD_BYTES + 5] ^= 1
    (tmp_path / "index").write_bytes(raw)
    with opened(tmp_path) as core:
        assert not core.ended
        assert core.size > fmt.UNKNOWN_GAP_ALIGN
        assert stream_of(read_all(core), OUT) == b"0123456789" * 50
        assert records(tmp_path)[:7] == found[:7]


def test_an_opening_of_a_long_log_reads_only_its_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as core:
        core.expect(frozenset({OUT}))
        for _ in range(500):
            say(core, OUT, b"x")
        size = core.state.records
    decoded: list[int] = []
    real = fmt.decode

    def counting(raw: bytes, number: int) -> fmt.Record | None:
        decoded.append(number)
        return real(raw, number)

    monkeypatch.setattr(fmt, "decode", counting)
    with opened(tmp_path) as core:
        assert core.state.records == size
        assert core.size == 500
        assert core.state.held == [0, 500, 0]
    assert len(decoded) < 20


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    header = fmt.Record(fmt.Kind.HEADER, 0, fmt.VERSION + 1, 0, fmt.MAGIC, BOOT)
    raw = fmt.encode(header, 0) + b"?" * 32
    (tmp_path / "index").write_bytes(raw)
    refused = pytest.raises(FailedPrecondition, match="format version 2, this server knows 1")
    with refused, opened(tmp_path):
        pass
    assert (tmp_path / "index").read_bytes() == raw


def test_a_tail_longer_than_a_record_can_say(tmp_path: Path) -> None:
    length = fmt.MAX_DATA_BYTES + 10
    with opened(tmp_path) as core:
        for position in range(0, length, blocks.BLOCK_BYTES):
            data = bytes(min(blocks.BLOCK_BYTES, length - position))
            core.segments[OUT].append(position, data)
    with opened(tmp_path) as core:
        assert core.size == length
        kinds = [record.length for record in records(tmp_path) if record.kind is fmt.Kind.DATA]
        assert kinds == [fmt.MAX_DATA_BYTES, 10]
