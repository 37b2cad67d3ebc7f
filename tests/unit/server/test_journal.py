# SPDX-License-Identifier: MIT
"""The journal's copy of a job's lines: whole lines, none too long, and exact about what is
missing."""

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.errors import JobletError, Unavailable
from joblet.server import journal
from joblet.server.journal import BATCH_BYTES, MAX_LINE, Budget, Copier, LineSplitter
from joblet.server.launcher import Launcher
from joblet.server.logs import Chunk, Gap, GapKind, JobLog
from tests.unit.server.support import job, job_id, run, until, world

# -- lines -----------------------------------------------------------------------------------------

SMALL = st.binary(max_size=20) | st.sampled_from([b"\n", b"\n\n", b"a\nb", b"\r", b"\r\n", b""])


def fed(splitter: LineSplitter, chunks: list[bytes]) -> list[bytes]:
    return [*(splitter.feed(chunk) for chunk in chunks), splitter.end()]


@given(st.lists(SMALL, max_size=20))
def test_the_lines_are_the_text(chunks: list[bytes]) -> None:
    text = b"".join(chunks)
    made = fed(LineSplitter(), chunks)
    ended = b"\n" if text and not text.endswith(b"\n") else b""
    assert b"".join(made) == text + ended
    assert all(piece == b"" or piece.endswith(b"\n") for piece in made)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [0, 1, 100, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 3 * MAX_LINE + 5]
            ),
            st.sampled_from([b"", b"\n", b"\r", b"\nxy", b"\n\n"]),
        ),
        max_size=8,
    )
)
def test_no_line_is_too_long_and_nothing_is_lost(parts: list[tuple[int, bytes]]) -> None:
    chunks = [b"x" * size + behind for size, behind in parts]
    made = b"".join(fed(LineSplitter(), chunks))
    assert all(len(line) <= MAX_LINE for line in made.split(b"\n"))
    text = b"".join(chunks)
    # cut, and otherwise the same
    assert made.replace(b"\n", b"") == text.replace(b"\n", b"")
    expected = sum(max(1, -(-len(line) // MAX_LINE)) for line in text.split(b"\n"))
    if not text or text.endswith(b"\n"):
        expected -= 1  # behind the last newline is no line
    assert made.count(b"\n") == expected


def test_a_line_waits_for_its_end() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"half ") == b""
    assert splitter.feed(b"a line\nand ") == b"half a line\n"
    assert splitter.feed(b"the next\n") == b"and the next\n"
    assert (splitter.end(), splitter.end()) == (b"", b"")


def test_a_line_just_as_long_as_it_may_be_is_not_cut() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"x" * MAX_LINE) == b""
    assert splitter.feed(b"\n") == b"x" * MAX_LINE + b"\n"


# -- the budget ------------------------------------------------------------------------------------


def test_a_budget() -> None:
    now = [0.0]
    budget = Budget(10, 100, lambda: now[0])
    assert budget.take(100)
    assert not budget.take(1)
    now[0] = 1.0
    assert not budget.take(11)  # and takes nothing of what is there
    assert budget.take(10)
    assert not budget.take(1)
    now[0] = 1000.0
    assert not budget.take(101)  # never more than the burst
    assert budget.take(100)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 200)), max_size=30))
def test_a_budget_is_never_exceeded(steps: list[tuple[float, int]]) -> None:
    now = 0.0
    budget = Budget(10, 100, lambda: now)
    taken = 0
    for pause, size in steps:
        now += pause
        if budget.take(size):
            taken += size
        assert taken <= 100 + 10 * now + 1e-6


# -- the copier ------------------------------------------------------------------------------------


class Journal:
    """Init mode's end: what it was sent. `refuse` says how many lines of a message it does not
    take."""

    def __init__(self, refuse: Callable[[int, bytes], int] = lambda number, data: 0) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self._refuse = refuse
        self._number = itertools.count()

    async def journal(self, job: str, stream: int, data: bytes, *, missing: int = 0) -> int:
        assert job == job_id(1)
        if missing:
            assert data.startswith(b"joblet: %d lines left out here; " % missing)
        assert 0 < len(data) <= BATCH_BYTES
        refused = self._refuse(next(self._number), data)
        lines = data.removesuffix(b"\n").split(b"\n")
        assert refused <= len(lines)
        kept = lines[: len(lines) - refused]
        if kept:
            self.sent.append((stream, b"\n".join(kept) + b"\n"))
        return refused


class Log:
    """A log as `follow` gives it."""

    def __init__(self, *items: tuple[int, bytes] | None) -> None:
        self._items = items

    async def follow(self, from_offset: int = 0, *, max_bytes: int) -> AsyncIterator[Chunk | Gap]:
        offset = from_offset
        for item in self._items:
            if item is None:
                yield Gap(offset, GapKind.LOST, 5, 1, 0, offset + 5)
                continue
            stream, data = item
            for at in range(0, len(data), max_bytes):
                part = data[at : at + max_bytes]
                yield Chunk(offset, part, stream, 0)
                offset += len(part)


def copied(made: Journal, *items: tuple[int, bytes] | None, seconds: float = 0.0) -> list[Any]:
    """`seconds`: that pass between two looks at the clock."""
    ticks = itertools.count()

    async def main() -> None:
        copier = Copier(cast(Launcher, made), clock=lambda: next(ticks) * seconds)
        await copier.copy(job(), cast(JobLog, Log(*items)), 0)

    run(main)
    return made.sent


def note(count: int) -> bytes:
    return f"joblet: {count} lines left out here; see `rnx job log 00000001`\n".encode()


def test_lines_of_two_streams() -> None:
    sent = copied(Journal(), (1, b"a\nb"), (2, b"x\n"), None, (1, b"c\n"), (2, b"y"))
    assert sent == [(1, b"a\n"), (2, b"x\n"), (1, b"bc\n"), (2, b"y\n")]


def test_long_lines_and_large_chunks() -> None:
    text = b"x" * (BATCH_BYTES * 2) + b"\n" + b"y\n" * BATCH_BYTES
    sent = copied(Journal(), (1, text))
    assert b"".join(data for _, data in sent).replace(b"\n", b"") == text.replace(b"\n", b"")
    assert not any(line == b"" for _, data in sent for line in data[:-1].split(b"\n"))


def test_what_is_beyond_the_rate_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BURST", 10)
    monkeypatch.setattr(journal, "RATE", 1)
    sent = copied(
        Journal(), (1, b"12345678\n"), (1, b"a\nb\nc\n"), (2, b"d\n"), (1, b"e\n"), seconds=0.25
    )
    # 1 byte is left behind the first; "d" comes a second later than that, "e" a quarter after it
    assert sent == [(1, b"12345678\n"), (1, note(5))]
    sent = copied(Journal(), (1, b"12345678\n"), (1, b"a\nb\nc\n"), (2, b"d\n"), seconds=2)
    assert sent == [(1, b"12345678\n"), (2, note(3)), (2, b"d\n")]


def test_what_the_journal_does_not_take_is_counted() -> None:
    """Even if the note itself is not taken."""
    refuse = {0: 2, 1: 1}  # two of the first three lines, then the note
    sent = copied(
        Journal(lambda number, data: refuse.get(number, 0)),
        (1, b"a\nb\nc\n"),
        (1, b"d\n"),
        (1, b"e\n"),
    )
    assert sent == [(1, b"a\n"), (1, b"d\n"), (1, note(2)), (1, b"e\n")]


def test_the_last_line_may_be_left_out_too() -> None:
    sent = copied(Journal(lambda number, data: int(number == 0)), (2, b"no newline"))
    assert sent == [(1, note(1))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2), st.binary(min_size=1, max_size=30)), max_size=12),
    st.lists(st.integers(0, 3), max_size=20),
    st.sampled_from([0.0, 0.5, 4.0]),
)
def test_every_line_is_sent_or_counted(
    items: list[tuple[int, bytes]], refusals: list[int], seconds: float
) -> None:
    def refuse(number: int, data: bytes) -> int:
        if number >= len(refusals) or data.startswith(b"joblet: "):
            return 0
        return min(refusals[number], data.removesuffix(b"\n").count(b"\n") + 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "BURST", 40)
        patch.setattr(journal, "RATE", 4)
        sent = copied(Journal(refuse), *items, seconds=seconds)
    lines = 0
    for stream in (1, 2):
        text = b"".join(data for number, data in items if number == stream)
        lines += text.count(b"\n") + bool(text and not text.endswith(b"\n"))
    told = kept = 0
    for _, data in sent:
        found = re.fullmatch(rb"joblet: (\d+) lines left out here; .*\n", data)
        told += int(found[1]) if found else 0
        kept += 0 if found else data.count(b"\n")
    assert told + kept == lines


@pytest.mark.usefixtures("no_leaks", "patch")
def test_a_real_log_and_a_link_that_breaks(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "w") as w:
            log = await w.logs.open(job_id(1))
            await log.expect([1])
            read, write = os.pipe()
            log.attach(1, read)
            os.write(write, b"unseen\nseen\n")
            await until(lambda: log.size == 12)
            os.write(write, b"the last")
            os.close(write)
            await log.wait_ended()
            copier = Copier(cast(Launcher, w.init))
            await copier.copy(job(), log, 7)
            assert b"".join(data for _, _, data in w.init.copied) == b"seen\nthe last\n"
            # init mode restarts when it likes, and must not end the copy of a job that runs on
            w.init.copied.clear()
            w.init.errors["journal"] = [Unavailable("ask init mode", "it is away")] * 2
            await copier.copy(job(), log, 0)
            assert b"".join(data for _, _, data in w.init.copied) == note(3)
            w.init.copied.clear()
            w.init.errors["journal"] = [Unavailable("ask init mode", "it is away")]
            await copier.copy(job(), log, 0)
            assert b"".join(data for _, _, data in w.init.copied) == b"the last\n" + note(2)
            await w.logs.remove(job_id(1))
            with pytest.raises(JobletError):
                await copier.copy(job(), log, 0)

    run(main)
