# SPDX-License-Identifier: MIT
"""Selections: any part of any log, cut anywhere and resumed, is that part of the whole."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.errors import InvalidArgument
from joblet.server.logs import (
    ERR,
    OUT,
    Chunk,
    Gap,
    GapKind,
    Piece,
    Selection,
    mask,
    selection,
)
from joblet.server.logs.core import LogCore
from joblet.server.logs.view import LogView
from tests.unit.logs.naive import (
    LOG,
    T0,
    Clock,
    Said,
    arrivals,
    enter,
    filled,
    naively,
    placed,
    select,
    selections,
    shown,
    taken,
)
from tests.unit.logs.support import run, running, say


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    said=LOG,
    max_bytes=st.integers(1, 12),
    breaks=st.lists(st.integers(0, 6), max_size=4),
    back=st.integers(1, 20),
    stored=st.integers(0, 30),
)
def test_any_selection_cut_and_broken_anywhere_is_that_of_the_whole(
    data: st.DataObject, said: list[Said], max_bytes: int, breaks: list[int], back: int, stored: int
) -> None:
    wanted = data.draw(selections(said))

    async def main(core: LogCore) -> None:
        parts = placed(said)
        low, high, expected = naively(parts, wanted)
        ask, pieces, position = wanted, list[Piece](), None
        for most in [*breaks, 1 << 30]:
            selected = select(core, ask, max_bytes)
            begin = await selected.open()
            if position is None:
                position = begin
                assert begin == low
            part = await taken(selected, most)
            pieces += part
            position = part[-1].offset_end if part else position
            # as a client resumes: it knows the offset behind what it has, and no more
            ask = dataclasses.replace(wanted, from_offset=position, since_us=0, tail_lines=None)
        assert shown(pieces) == expected
        assert ask.from_offset <= high
        assert not wanted.arrivals or arrivals(pieces) == {
            offset: part.time_us
            for part in parts
            for offset in range(part.offset, part.end)
            if offset in expected[0]
        }
        whole = select(core, wanted)
        await whole.open()
        assert shown(await taken(whole)) == expected

    with pytest.MonkeyPatch.context() as patch, filled(said, stored=stored) as (core, _):
        patch.setattr(selection, "_TAIL_BYTES", back)
        patch.setattr(selection, "_SPANS", 3)
        patch.setattr(selection, "TELL_EVERY_BYTES", 7)
        run(lambda: main(core))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), said=LOG, more=LOG, max_bytes=st.integers(1, 12))
def test_what_comes_follows(
    data: st.DataObject, said: list[Said], more: list[Said], max_bytes: int
) -> None:
    """From the past into the future, across the time at which it ends."""
    wanted = dataclasses.replace(
        data.draw(selections(said)),
        until_us=data.draw(st.just(0) | st.integers(T0, T0 + 400)),
        follow=True,
    )

    async def main(core: LogCore, clock: Clock) -> None:
        began = clock.us
        over = 0 < wanted.until_us <= began
        low, high, (found, gaps) = naively(placed(said), wanted)
        selected = select(core, wanted, max_bytes)
        opening = asyncio.create_task(selected.open())
        while clock.us < wanted.since_us:
            await asyncio.sleep(0)
            clock.us += 1
            core.release_waiters()
        begin = await opening
        if wanted.since_us <= began:
            assert begin == low
        reading = asyncio.create_task(taken(selected))
        everything = list(said)
        waited = clock.us - (placed(said)[-1].time_us if said else T0)
        for one in more:
            await asyncio.sleep(0)
            enter(core, clock, one)
            everything.append(dataclasses.replace(one, after_us=one.after_us + waited))
            waited = 0
        for stream in (OUT, ERR):
            core.end(stream)
        clock.us += 1000
        core.release_waiters()
        pieces = await reading
        parts = placed(everything)
        rest = dataclasses.replace(wanted, from_offset=begin, since_us=0, tail_lines=None)
        _, end, expected = naively(parts, rest)
        if over:
            assert (end, expected) == (high, (found, gaps))
        assert shown(pieces) == expected
        assert selected.offset == end
        assert selected.complete or end == core.size

    with filled(said) as (core, clock):
        run(lambda: main(core, clock))


# ------------------------------------------------------------------------------ one by one


async def of(core: LogCore | LogView, wanted: Selection, max_bytes: int = 1 << 20) -> list[Piece]:
    selected = select(core, wanted, max_bytes)
    await selected.open()
    return await taken(selected)


def data_of(pieces: list[Piece]) -> bytes:
    return b"".join(piece.item.data for piece in pieces if isinstance(piece.item, Chunk))


NOW = Selection(follow=False)


def now(**wanted: Any) -> Selection:
    return dataclasses.replace(NOW, **wanted)


def test_the_last_lines_of_a_large_log_cost_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of stdout, with a flood of stderr behind its last line and gaps too wide to be walked."""
    read: list[int] = []
    looked: list[int] = []
    really, spans_really = LogView.read, LogView.spans_before

    def reading(self: LogView, place: Any, max_bytes: int) -> Any:
        found = really(self, place, max_bytes)
        if isinstance(found, tuple) and isinstance(found[0], Chunk):
            read.append(len(found[0].data))
        return found

    def looking(self: LogView, offset: int, most: int) -> Any:
        looked.append(offset)
        return spans_really(self, offset, most)

    async def main(core: LogCore) -> None:
        for lines in (1, 3, 6):
            read.clear()
            looked.clear()
            selected = select(core, now(tail_lines=lines, stream=OUT))
            await selected.open()
            assert sum(read) < 3 << 20
            assert len(looked) < 10
            assert data_of(await taken(selected)).count(b"\n") == lines

    flood = b"e" * 1_000_000
    with filled([Said(OUT, b"0\n1\n2\n", 1)]) as (core, _):
        core.gap(GapKind.LOST, 0, None)
        for _ in range(5):
            say(core, ERR, flood)
        for number in range(3):
            say(core, OUT, b"x" * 300_000 + b"%d\n" % number)
            say(core, ERR, flood)
        core.gap(GapKind.LOST, 0, None)
        for _ in range(5):
            say(core, ERR, flood)
        monkeypatch.setattr(LogView, "read", reading)
        monkeypatch.setattr(LogView, "spans_before", looking)
        run(lambda: main(core))


def test_gaps_of_unknown_count_keep_their_place(tmp_path: Path) -> None:
    async def main(core: LogCore) -> None:
        pieces = [piece for piece in await of(core, now(stream=OUT)) if piece.item]
        assert [(type(piece.item), piece.offset_end) for piece in pieces] == [
            (Chunk, 2),
            (Gap, 1 << 40),
            (Chunk, (1 << 40) + 2),
        ]
        [lost] = [piece.item for piece in pieces if isinstance(piece.item, Gap)]
        assert lost.bytes is None
        # what was lost of stderr alone is none of its business, even where it is read as one
        ours = await of(core, now(stream=ERR, from_offset=(1 << 40) + 2))
        [gap] = [piece.item for piece in ours]
        assert isinstance(gap, Gap)
        assert (gap.offset, gap.offset_end) == ((1 << 40) + 2, 2 << 40)
        theirs = await of(core, now(stream=OUT, from_offset=(1 << 40) + 2))
        assert [piece.item for piece in theirs] in ([], [None])

    with filled([Said(OUT, b"a\n", 1)]) as (core, _):
        core.gap(GapKind.LOST, 0, None)
        say(core, OUT, b"b\n")
        core.gap(GapKind.LOST, ERR, None)
        run(lambda: main(core))


def test_what_retention_removed_does_not_hide_what_is_left() -> None:
    """Such a gap is entered long after what follows it arrived."""

    async def main(core: LogCore) -> None:
        for since, shown_from in ((T0, 0), (T0 + 5, 0), (T0 + 6, 102), (T0 + 900, 104)):
            selected = select(core, now(since_us=since))
            assert await selected.open() == shown_from

    with filled([]) as (core, clock):
        clock.us = T0 + 1000
        core.gap(GapKind.EXPIRED, 0, 100)
        clock.us = T0 + 5
        say(core, OUT, b"a\n")
        clock.us = T0 + 6
        say(core, OUT, b"b\n")
        run(lambda: main(core))


def test_a_clock_that_was_set_back() -> None:
    """The log passes such a time more than once; it begins at one of these places, and is whole
    from there on."""

    async def main(core: LogCore) -> None:
        selected = select(core, now(since_us=T0 + 9))
        begin = await selected.open()
        assert begin in (2, 6)
        assert data_of(await taken(selected)) == b"a\nb\nc\ne\n"[begin:]
        selected = select(core, now(until_us=T0 + 9))
        await selected.open()
        assert data_of(await taken(selected)) in (b"a\n", b"a\nb\nc\n")

    with filled([]) as (core, clock):
        for data, when in ((b"a\n", 0), (b"b\n", 10), (b"c\n", 5), (b"e\n", 12)):
            clock.us = T0 + when
            say(core, OUT, data)
        clock.us = T0 + 20
        run(lambda: main(core))


def test_arrivals_are_those_of_the_records() -> None:
    async def main(core: LogCore) -> None:
        [piece] = await of(core, now(arrivals=True))
        assert piece.arrivals == ((0, T0 + 1), (5, T0 + 3))
        [piece] = await of(core, now(arrivals=True, from_offset=2))
        assert piece.arrivals == ((0, T0 + 1), (3, T0 + 3))
        [piece] = await of(core, now(from_offset=2))
        assert piece.arrivals == ()

    with filled([Said(OUT, b"abc", 1), Said(OUT, b"de", 0), Said(OUT, b"f", 2)]) as (core, _):
        run(lambda: main(core))


def test_more_arrivals_than_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(core: LogCore) -> None:
        pieces = await of(core, now(arrivals=True))
        assert [piece.offset_end for piece in pieces] == [10, 20, 25]
        assert data_of(pieces) == b"x" * 25
        assert all(len(piece.arrivals) <= 10 for piece in pieces)
        assert pieces[2].arrivals[0] == (0, T0 + 21)

    monkeypatch.setattr(selection, "MAX_ARRIVALS", 10)
    with filled([Said(OUT, b"x", 1)] * 25) as (core, _):
        run(lambda: main(core))


def test_a_reader_of_a_silent_stream_hears_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that it need not begin anew after a break."""

    async def main(core: LogCore) -> None:
        pieces = await of(core, now(stream=OUT), 8)
        places = [piece.offset_end for piece in pieces if piece.item is None]
        assert places == sorted(places)
        assert places[-1] == core.size
        assert data_of(pieces) == b"a"

    monkeypatch.setattr(selection, "TELL_EVERY_BYTES", 100)
    with filled([Said(OUT, b"a", 1), *[Said(ERR, b"e" * 60, 1)] * 20]) as (core, _):
        run(lambda: main(core))


def test_a_secret_that_may_have_begun_waits_also_at_the_end() -> None:
    """What is held back is not lost to who reads up to a time, and not counted as a line."""

    async def main(view: LogView) -> None:
        wanted = Selection(until_us=T0 + 5)
        assert data_of(await of(view, now(tail_lines=1))) == b"b\n"
        snapshot = select(view, dataclasses.replace(wanted, follow=False))
        await snapshot.open()
        assert data_of(await taken(snapshot)) == b"a\nb\n"
        assert not snapshot.complete
        selected = select(view, wanted)
        await selected.open()
        reading = asyncio.create_task(taken(selected))
        await asyncio.sleep(0)
        say(view.core, OUT, b"ly\n")
        view.core.release_waiters()
        assert data_of(await reading) == b"a\nb\nsecret"
        assert selected.complete

    with filled([Said(OUT, b"a\nb\nsecret", 1)]) as (core, clock):
        view = LogView(core)
        view.mask = mask.of(["secret\nlong"])
        clock.us = T0 + 10
        run(lambda: main(view))


def test_a_time_that_is_still_to_come() -> None:
    """As of a client whose clock is ahead: it is waited for, not refused."""

    async def main(core: LogCore, clock: Clock) -> None:
        selected = select(core, Selection(since_us=T0 + 1000))
        opening = asyncio.create_task(selected.open())
        # Nothing tells that it has come to wait.
        while not core.waiters:  # noqa: ASYNC110
            await asyncio.sleep(0)
        enter(core, clock, Said(OUT, b"before", 100))
        await asyncio.sleep(0)
        assert not opening.done()
        clock.us = T0 + 1000
        core.release_waiters()
        assert await opening == 6
        enter(core, clock, Said(OUT, b"then", 0))
        piece = await selected.read()
        assert piece is not None
        assert data_of([piece]) == b"then"
        assert await of(core, now(since_us=T0 + 10**9)) == []
        # a log that ends before is not waited for
        selected = select(core, Selection(since_us=T0 + 10**9))
        opening = asyncio.create_task(selected.open())
        await asyncio.sleep(0)
        for stream in (OUT, ERR):
            core.end(stream)
        core.release_waiters()
        await opening
        assert await taken(selected) == []

    with filled([]) as (core, clock):
        run(lambda: main(core, clock))


def test_nothing_but_what_follows(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            await log.expect({OUT})
            with log.core.pinned():
                say(log.core, OUT, b"old\nhalf a")
                selected = log.select(Selection(tail_lines=0))
                assert await selected.open() == 10
                reading = asyncio.create_task(selected.read())
                say(log.core, OUT, b" line\n")
                piece = await reading
                assert piece is not None
                assert data_of([piece]) == b" line\n"

    run(main)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"since_us": -1}, "since_us is -1"),
        ({"until_us": -1}, "until_us is -1"),
        ({"tail_lines": -1}, "tail_lines is -1"),
        ({"stream": 3}, "no stream 3"),
        ({"stream": -1}, "no stream -1"),
        ({"from_offset": 1}, "offset 1 is not in the log"),
    ],
)
def test_what_cannot_be_meant_is_refused(wanted: dict[str, Any], text: str) -> None:
    with filled([]) as (core, _), pytest.raises(InvalidArgument, match=text):
        select(core, Selection(**wanted))
