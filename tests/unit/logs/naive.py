# SPDX-License-Identifier: MIT
"""Logs and parts of them, once really and once as anybody would do it."""

import concurrent.futures
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from joblet.server.logs import ERR, OUT, Chunk, Gap, GapKind, Piece, SelectedLog, Selection
from joblet.server.logs.core import LogCore
from joblet.server.logs.view import LogView
from tests.unit.logs.support import opened, say, seen

T0 = 1_000_000_000


class Inline(concurrent.futures.Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as exc:
            done.set_exception(exc)
        return done


class Clock:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


# ------------------------------------------------------------------------- the log, naively


@dataclasses.dataclass(frozen=True)
class Said:
    """One record: bytes of a stream, or a gap of so many; `after_us` what was before."""

    stream: int
    what: bytes | int
    after_us: int


@dataclasses.dataclass(frozen=True)
class Part:
    """A record where it stands in the log."""

    offset: int
    end: int
    said: Said
    time_us: int


def placed(said: list[Said]) -> list[Part]:
    parts, offset, time = [], 0, T0
    for one in said:
        time += one.after_us
        length = one.what if isinstance(one.what, int) else len(one.what)
        parts.append(Part(offset, offset + length, one, time))
        offset += length
    return parts


def passes(parts: list[Part], time_us: int, low: int, high: int) -> int:
    """The first offset of [low, high) that is of that time or later."""
    within = [part for part in parts if part.end > low and part.offset < high]
    for at, part in enumerate(within):
        bytes_behind = [p.time_us for p in within[at:] if isinstance(p.said.what, bytes)]
        if min([part.time_us, *bytes_behind[:1]]) >= time_us:
            return max(low, part.offset)
    return high


Shown = tuple[dict[int, tuple[int, int]], set[int]]  # bytes and gaps by offset


def naively(parts: list[Part], wanted: Selection) -> tuple[int, int, Shown]:
    """Where the selection begins and ends, and what is in it."""
    low, high = wanted.from_offset, parts[-1].end if parts else 0
    if wanted.until_us:
        high = passes(parts, wanted.until_us, low, high)
    if wanted.since_us:
        low = passes(parts, wanted.since_us, low, high)
    found: dict[int, tuple[int, int]] = {}
    gaps: set[int] = set()
    for part in parts:
        if wanted.stream and part.said.stream not in (0, wanted.stream):
            continue
        offsets = range(max(low, part.offset), min(high, part.end))
        if isinstance(part.said.what, int):
            gaps.update(offsets)
        else:
            found |= {o: (part.said.stream, part.said.what[o - part.offset]) for o in offsets}
    if wanted.tail_lines is not None:
        low = last_lines(found, wanted.tail_lines, low, high)
        found = {o: byte for o, byte in found.items() if o >= low}
        gaps = {o for o in gaps if o >= low}
    return low, high, (found, gaps)


def last_lines(found: dict[int, tuple[int, int]], lines: int, low: int, high: int) -> int:
    """Where the last lines of these bytes begin."""
    if lines == 0:
        return high
    *earlier, _ = sorted(found) or [low]
    ends = [offset for offset in earlier if found[offset][1] == ord("\n")]
    return ends[-lines] + 1 if lines <= len(ends) else low


def shown(pieces: list[Piece]) -> Shown:
    """What pieces hold; fails if they hold anything twice, or say something else than it is."""
    found: dict[int, tuple[int, int]] = {}
    gaps: set[int] = set()
    for piece in pieces:
        if isinstance(piece.item, Chunk):
            assert piece.item.data
            assert piece.offset_end == piece.item.offset_end
            for offset, byte in enumerate(piece.item.data, piece.item.offset):
                assert offset not in found
                found[offset] = (piece.item.stream, byte)
        elif isinstance(piece.item, Gap):
            offsets = set(range(piece.item.offset, piece.offset_end))
            assert piece.item.bytes == len(offsets) > 0
            assert not offsets & gaps
            gaps |= offsets
    ends = [piece.offset_end for piece in pieces]
    assert ends == sorted(ends)
    return found, gaps


def arrivals(pieces: list[Piece]) -> dict[int, int]:
    """When each byte arrived, as pieces say."""
    found: dict[int, int] = {}
    for piece in pieces:
        if isinstance(piece.item, Chunk):
            assert piece.arrivals[0] == (0, piece.item.time_us)
            for at, time_us in piece.arrivals:
                offsets = range(piece.item.offset + at, piece.offset_end)
                found |= dict.fromkeys(offsets, time_us)
    return found


# ----------------------------------------------------------------------------- the log, really


def enter(core: LogCore, clock: Clock, one: Said) -> None:
    clock.us += one.after_us
    if isinstance(one.what, int) and one.stream == 0:
        core.gap(GapKind.LOST, one.stream, one.what)
    elif isinstance(one.what, int):
        os.pwrite(core.staged.stream(one.stream), bytes(one.what), core.written[one.stream])
        core.written[one.stream] += one.what
        core.discard(one.stream, GapKind.DROPPED)
    else:
        say(core, one.stream, one.what)
    core.release_waiters()


@contextlib.contextmanager
def filled(said: list[Said], *, stored: int = 0) -> Iterator[tuple[LogCore, Clock]]:
    """A log of which so many records are in the store, and the rest in the stage."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as name, opened(Path(name) / "log", clock_us=clock) as core:
        core.expect(frozenset({OUT, ERR}))
        for number, one in enumerate(said, 1):
            enter(core, clock, one)
            if number == stored:
                core.store()
        clock.us += 1
        yield core, clock


def select(log: LogCore | LogView, wanted: Selection, max_bytes: int = 1 << 20) -> SelectedLog:
    return SelectedLog(seen(log), Inline(), wanted, max_bytes=max_bytes)


async def taken(selected: SelectedLog, most: int = 1 << 30) -> list[Piece]:
    pieces: list[Piece] = []
    while len(pieces) < most and (piece := await selected.read()) is not None:
        pieces.append(piece)
    return pieces


TEXT = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"d\ne"]), min_size=1, max_size=5).map(
    b"".join
)
SAID = st.builds(
    Said,
    stream=st.sampled_from([OUT, OUT, ERR]),
    what=TEXT,
    after_us=st.sampled_from([0, 0, 1, 5]),
) | st.builds(
    Said, stream=st.integers(0, 2), what=st.integers(1, 9), after_us=st.sampled_from([0, 1, 50])
)
LOG = st.lists(SAID, max_size=30)
MOMENT = st.just(0) | st.integers(T0 - 1, T0 + 150)


@st.composite
def selections(draw: st.DrawFn, said: list[Said]) -> Selection:
    parts = placed(said)
    return Selection(
        from_offset=draw(st.just(0) | st.integers(0, parts[-1].end if parts else 0)),
        since_us=draw(MOMENT),
        until_us=draw(MOMENT),
        tail_lines=draw(st.none() | st.integers(0, 12)),
        stream=draw(st.integers(0, 2)),
        arrivals=draw(st.booleans()),
        follow=False,
    )
