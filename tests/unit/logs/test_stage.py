# SPDX-License-Identifier: MIT
"""What is staged, killed anywhere between the steps of storing and of repairing: nothing is lost,
doubled or changed, and nothing is left in the stage."""

import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.server.logs import ERR, OUT, Bounds, Chunk, Gap, GapKind
from joblet.server.logs import format as fmt
from joblet.server.logs.blocks import BLOCK_BYTES
from joblet.server.logs.core import LogCore
from joblet.server.logs.stage import Room
from tests.unit.logs.support import by_offset, opened, read_all, records, say, stage_of, stream_of

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(fmt.STREAMS), st.integers(1, 9000)),
        st.tuples(st.just("splice"), st.sampled_from(fmt.STREAMS), st.integers(1, 9000)),
        st.tuples(st.just("discard"), st.sampled_from(fmt.STREAMS), st.integers(1, 9000)),
        st.tuples(st.just("store"), st.just(0), st.integers(0, 12)),
        st.tuples(st.just("store-and-discard"), st.sampled_from(fmt.STREAMS), st.integers(1, 9000)),
        st.tuples(st.just("kill"), st.just(0), st.integers(0, 12)),
    ),
    max_size=20,
)


class Killed(Exception):
    """Stands for a kill between two steps: what was written stays."""


def _bytes(stream: int, position: int, length: int) -> bytes:
    return bytes((stream * 31 + p * 7) % 251 for p in range(position, position + length))


def _after(number: int) -> Callable[[str], None]:
    left = iter(range(number))

    def step(_: str) -> None:
        if next(left, None) is None:
            raise Killed

    return step


def _nothing(_: str) -> None:
    """Nobody kills it."""


def _splice(core: LogCore, stream: int, length: int) -> None:
    """Bytes that are in the stage, and not entered."""
    data = _bytes(stream, core.written[stream], length)
    os.pwrite(core.staged.stream(stream), data, core.written[stream])
    core.written[stream] += length


class Model:
    """What each server knew: bytes that were entered keep their offset for ever."""

    def __init__(self) -> None:
        self.said = dict.fromkeys(fmt.STREAMS, 0)
        self.left_out: dict[int, list[tuple[int, int]]] = {stream: [] for stream in fmt.STREAMS}
        self.seen: dict[int, tuple[int, int]] = {}

    def discard(self, core: LogCore, stream: int, length: int) -> None:
        _splice(core, stream, length)
        self.said[stream] += length
        begin = core.state.held[stream]
        core.discard(stream, GapKind.SAMPLED)
        self.left_out[stream].append((begin, core.state.held[stream]))

    def look(self, core: LogCore) -> None:
        found = by_offset(read_all(core))
        assert all(found.get(offset) == byte for offset, byte in self.seen.items())
        self.seen = found

    def check(self, core: LogCore) -> None:
        self.look(core)
        items = read_all(core)
        assert all(item.kind is GapKind.SAMPLED for item in items if isinstance(item, Gap))
        for stream in fmt.STREAMS:
            expected = bytearray(_bytes(stream, 0, self.said[stream]))
            for begin, end in reversed(self.left_out[stream]):
                del expected[begin:end]
            assert stream_of(items, stream) == expected
            missing = sum(
                item.bytes or 0 for item in items if isinstance(item, Gap) and item.stream == stream
            )
            assert missing == sum(end - begin for begin, end in self.left_out[stream])


@given(OPERATIONS)
def test_killed_anywhere(operations: list[tuple[str, int, int]]) -> None:
    model = Model()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log"
        left = [*operations]
        kill: int | None = None
        while True:
            step = _nothing if kill is None else _after(kill)
            kill = None
            try:
                with opened(path, step=step, kept=False) as core:
                    core.step = _nothing
                    model.check(core)
                    while left:
                        name, stream, number = left.pop(0)
                        if name == "kill":
                            kill = number
                            raise Killed
                        if name == "store":
                            core.step = _after(number)
                            core.store()
                            core.step = _nothing
                            continue
                        if name == "store-and-discard":

                            def discarding(
                                at: str,
                                core: LogCore = core,
                                stream: int = stream,
                                number: int = number,
                            ) -> None:
                                if at.startswith("store:"):
                                    model.discard(core, stream, number)

                            core.step = discarding
                            core.store()
                            core.step = _nothing
                            continue
                        if name == "discard":
                            model.discard(core, stream, number)
                            continue
                        _splice(core, stream, number)
                        model.said[stream] += number
                        if name == "say":
                            core.enter(stream)
                    break
            except Killed:
                continue
        with opened(path) as core:
            model.check(core)
        assert not stage_of(path).exists()
        records(path)


def test_many_little_gaps_take_little_memory(tmp_path: Path) -> None:
    """What a job prints byte by byte while nothing can be kept: millions of gaps, each with a
    record in the stage, and told as what they are."""
    gaps = 20_000
    with opened(tmp_path / "log") as core:
        say(core, OUT, b"before")
        tracemalloc.start()
        try:
            for _ in range(gaps):
                _splice(core, OUT, 1)
                core.discard(OUT, GapKind.DROPPED)
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert used < gaps  # bytes; a tuple with two numbers of its own takes over a hundred
        say(core, OUT, b"behind")
        for _ in range(2):  # from the stage, and from the store
            items = read_all(core)
            assert stream_of(items, OUT) == b"beforebehind"
            told = [item for item in items if isinstance(item, Gap)]
            assert sum(gap.bytes or 0 for gap in told) == gaps
            assert {gap.kind for gap in told} == {GapKind.DROPPED}
            core.store()


def test_what_is_left_out_while_it_is_stored_takes_no_room_in_the_end(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as core:
        room = core._room
        model = Model()

        def more(at: str) -> None:
            if at == "store:copied":
                model.discard(core, OUT, 3_000)

        model.discard(core, OUT, 10_000)
        _splice(core, OUT, 6_000)
        model.said[OUT] += 6_000
        core.enter(OUT)
        model.discard(core, OUT, 10_000)
        core.step = more
        core.store()
        core.step = _nothing
        model.check(core)
        core.store()
        model.check(core)
        assert (room.bytes, room.chunks) == (0, 0)


def test_a_block_that_is_not_as_it_was_written_is_a_gap(tmp_path: Path) -> None:
    size = 3 * BLOCK_BYTES
    with opened(tmp_path / "log") as core:
        for begin in range(0, size, BLOCK_BYTES):
            say(core, OUT, bytes([begin // BLOCK_BYTES]) * BLOCK_BYTES)
    segment = tmp_path / "log" / "out.000000000000000"
    with segment.open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"?")
    with opened(tmp_path / "log") as core:
        first, lost, last = read_all(core, max_bytes=BLOCK_BYTES)
        assert isinstance(first, Chunk)
        assert isinstance(last, Chunk)
        assert isinstance(lost, Gap)
        assert (lost.offset, lost.bytes, lost.kind) == (BLOCK_BYTES, BLOCK_BYTES, GapKind.LOST)
        assert (first.data[:1], last.data[:1]) == (b"\0", b"\2")
        # from its middle on, too
        assert read_all(core, BLOCK_BYTES + 7)[0].offset_end == 2 * BLOCK_BYTES


def test_segments_rotate_and_are_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from joblet.server.logs import segments

    monkeypatch.setattr(segments, "BLOCK_BYTES", 100)
    with opened(tmp_path / "log", rotation=250) as core:
        for _ in range(10):
            say(core, OUT, _bytes(OUT, core.written[OUT], 130))
            core.store()
        assert stream_of(read_all(core), OUT) == _bytes(OUT, 0, 1300)
    names = sorted(p.name for p in (tmp_path / "log").glob("out.*[0-9]"))
    assert len(names) > 3
    with opened(tmp_path / "log", rotation=250) as core:
        assert stream_of(read_all(core), OUT) == _bytes(OUT, 0, 1300)
        say(core, ERR, b"x")


def test_room_is_full_until_an_eighth_is_free() -> None:
    room = Room(Bounds(limit_bytes=800, limit_chunks=80, batch_bytes=100, batch_chunks=10))
    told: list[str] = []
    room.on_room = lambda: told.append("room")
    room.on_batch = lambda: told.append("batch")
    room.take(99, 9)
    assert told == []
    room.take(1, 0)
    assert told == ["batch"]
    room.take(700, 0)
    assert room.is_full()
    room.free(99, 0)
    assert room.is_full()
    assert "room" not in told
    room.free(1, 0)
    assert not room.is_full()
    assert told.count("room") == 1
    room.take(0, 71)
    assert room.is_full()
    room.free(0, 9)
    assert room.is_full()
    room.free(0, 1)
    assert not room.is_full()
