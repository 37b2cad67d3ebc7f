# SPDX-License-Identifier: MIT
"""The journal's copy of a job's lines: whole lines, none too long, and exact about what is
missing."""

import asyncio
import itertools
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.errors import JobletError, Unavailable
from joblet.server import journal
from joblet.server.budgets import Budget, Shared
from joblet.server.journal import (
    BATCH_BYTES,
    ENTRY_BYTES,
    LAST_BYTES,
    LATE_US,
    MAX_LINE,
    READ_BYTES,
    Channel,
    Copier,
    LineSplitter,
    affordable,
    cost,
)
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


def test_what_is_passed_over_takes_both_halves_of_its_lines_along() -> None:
    splitter = LineSplitter()
    assert splitter.feed(splitter.resume(b"one\ntw")) == b"one\n"
    assert splitter.pass_over() == 2
    assert splitter.resume(b"within ") == b""
    assert splitter.resume(b"a line\nthe ") == b"the "
    assert splitter.feed(b"the ") == b""
    assert splitter.feed(splitter.resume(b"next\n")) == b"the next\n"


def test_a_line_just_as_long_as_it_may_be_is_not_cut() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"x" * MAX_LINE) == b""
    assert splitter.feed(b"\n") == b"x" * MAX_LINE + b"\n"


# -- what lines cost -------------------------------------------------------------------------------


@given(st.binary(max_size=60), st.integers(0, 40 * ENTRY_BYTES))
def test_what_a_budget_affords_are_whole_lines_and_no_line_more(text: bytes, room: int) -> None:
    text = text.replace(b"0", b"\n")
    count = affordable(text, room)
    assert cost(text[:count]) <= room
    if count < len(text):
        assert text[:count].endswith(b"\n") or count == 0
        behind = text.find(b"\n", count) + 1 or len(text)
        assert cost(text[:behind]) > room


# -- the copier ------------------------------------------------------------------------------------

NOTE = re.compile(rb"joblet: (?:at least )?(\d+) bytes left out here; see `rnx job log 00000001`\n")


class Journal:
    """In place of the channel: what journald was sent. `refuse` says how many lines of a message it
    does not take."""

    def __init__(self, refuse: Callable[[int, bytes], int] = lambda number, data: 0) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self._refuse = refuse
        self._number = itertools.count()

    async def send(self, job: str, stream: int, lines: bytes, *, missing: int = 0) -> int:
        assert job == job_id(1)
        found = NOTE.fullmatch(lines)
        assert missing == (int(found[1]) if found else 0)
        assert 0 < len(lines) <= BATCH_BYTES
        refused = self._refuse(next(self._number), lines)
        split = lines.removesuffix(b"\n").split(b"\n")
        assert refused <= len(split)
        kept = split[: len(split) - refused]
        if kept:
            self.sent.append((stream, b"\n".join(kept) + b"\n"))
        return refused

    @property
    def told(self) -> int:
        """Bytes that are missing, as the notes say."""
        return sum(int(found[1]) for _, data in self.sent if (found := NOTE.fullmatch(data)))

    @property
    def kept(self) -> list[tuple[int, bytes]]:
        return [(stream, data) for stream, data in self.sent if not NOTE.fullmatch(data)]


class Log:
    """A log as `follow` gives it: streams and bytes, None for a gap of 5 bytes."""

    ended = True

    def __init__(self, *items: tuple[int, bytes] | None, time_us: int = 0) -> None:
        self.items: list[Chunk | Gap] = []
        self.size = 0
        self.read_bytes = 0
        self._time_us = time_us
        for item in items:
            self.add(item)

    def add(self, item: tuple[int, bytes] | None) -> None:
        made: Chunk | Gap
        if item is None:
            made = Gap(self.size, GapKind.LOST, 5, 1, 0, self.size + 5)
        else:
            made = Chunk(self.size, item[1], item[0], self._time_us)
        self.items.append(made)
        self.size = made.offset_end

    def follow(self, from_offset: int = 0, *, max_bytes: int) -> "Follower":
        assert from_offset <= self.size
        return Follower(self, from_offset, max_bytes)


class Follower:
    def __init__(self, log: Log, offset: int, max_bytes: int) -> None:
        self._log, self._offset, self._max_bytes = log, offset, max_bytes

    async def read(self) -> Chunk | Gap | None:
        for item in self._log.items:
            if item.offset_end > self._offset:
                break
        else:
            return None
        if isinstance(item, Gap):
            self._offset = item.offset_end
            return item
        begin = self._offset - item.offset
        data = item.data[begin : begin + self._max_bytes]
        found = Chunk(self._offset, data, item.stream, item.time_us)
        self._offset = found.offset_end
        self._log.read_bytes += len(data)
        return found


def copied(
    made: Journal,
    log: Log,
    *,
    rate: int = 1_000_000,
    burst: int = 8_000_000,
    seconds: float = 0.0,
    wall_us: int = 0,
    ended: bool = True,
    of_all: tuple[float, float] | None = None,
) -> list[tuple[int, bytes]]:
    """`seconds`: that pass between two looks at the clock."""
    ticks = itertools.count()

    async def main() -> None:
        copier = Copier(
            cast(Channel, made),
            rate=rate,
            burst=burst,
            of_all=Shared(Budget(*(of_all or (1e12, 1e12)), lambda: 0.0)),
            clock=lambda: next(ticks) * seconds,
            wall_us=lambda: wall_us,
        )
        event = asyncio.Event()
        if ended:
            event.set()
        await copier.copy(job(), cast(JobLog, log), 0, event)

    run(main)
    return made.sent


def note(count: int) -> bytes:
    return f"joblet: {count} bytes left out here; see `rnx job log 00000001`\n".encode()


def test_lines_of_two_streams() -> None:
    log = Log((1, b"a\nb"), (2, b"x\n"), None, (1, b"c\n"), (2, b"y"))
    assert copied(Journal(), log) == [(1, b"a\n"), (2, b"x\n"), (1, b"bc\n"), (2, b"y\n")]


def test_no_copies() -> None:
    log = Log((1, b"a\n"))
    assert copied(Journal(), log, rate=0) == []
    assert log.read_bytes == 0


def test_long_lines_and_large_chunks() -> None:
    text = b"x" * (BATCH_BYTES * 2) + b"\n" + b"y\n" * BATCH_BYTES
    sent = copied(Journal(), Log((1, text)), burst=cost(text))
    assert b"".join(data for _, data in sent).replace(b"\n", b"") == text.replace(b"\n", b"")
    assert not any(line == b"" for _, data in sent for line in data[:-1].split(b"\n"))


def test_what_is_beyond_the_rate_is_passed_over_unread() -> None:
    """A job of 50 MB is as cheap as one of 1 MB, and its last words are there."""
    lines = b"".join(b"line %07d\n" % number for number in range(100_000))
    log = Log(*((1, lines[at : at + 1_000_000]) for at in range(0, len(lines), 1_000_000)))
    made = Journal()
    burst = 8000 * cost(lines[:13])
    copied(made, log, rate=1024, burst=burst)
    text = b"".join(data for _, data in made.kept)
    assert len(text) + made.told == len(lines)
    assert lines.startswith(text[: 8000 * 13])
    assert text.endswith(b"line 0099999\n")
    assert cost(text) <= burst + LAST_BYTES
    assert log.read_bytes <= len(text) + 2 * READ_BYTES
    assert text.count(b"line ") == text.count(b"\n")  # whole lines
    assert len([data for _, data in made.sent if NOTE.fullmatch(data)]) == 1


@pytest.mark.parametrize("line", [b"\n", b"line 7\n", b"x" * 99 + b"\n"])
def test_short_lines_take_no_more_of_the_journal_than_long_ones(line: bytes) -> None:
    """An entry costs the journal some hundred bytes, whatever the line: of lines of seven bytes
    there are as many as are paid for, the first ones and the last ones."""
    log = Log((1, line * (2_000_000 // len(line))))
    made = Journal()
    copied(made, log, rate=1024, burst=1_000_000)
    text = b"".join(data for _, data in made.kept)
    assert len(text) + made.told == log.size
    assert cost(text) <= 1_000_000 + LAST_BYTES
    assert cost(text) >= 1_000_000 + LAST_BYTES - 4 * cost(line)  # and whole at each end
    assert len(made.sent) - len(made.kept) == 1  # one note


def test_a_line_that_is_shorter_than_those_before_it_is_not_taken_for_cheap() -> None:
    """What a copy goes on with is guessed from the lines that it has seen."""
    log = Log((1, (b"x" * 999 + b"\n") * 3000), (1, b"\n" * 100_000))
    made = Journal()
    copied(made, log, rate=1024, burst=100_000)
    text = b"".join(data for _, data in made.kept)
    assert len(text) + made.told == log.size
    assert cost(text) <= 100_000 + LAST_BYTES
    assert text.endswith(b"\n" * 40)


def test_all_jobs_together_have_a_limit_too() -> None:
    """The first one has taken what there is; of the second there are its last words."""
    lines = b"".join(b"line %07d\n" % number for number in range(10_000))
    log = Log((1, lines))
    made = Journal()
    copied(made, log, rate=1 << 20, burst=1 << 20, of_all=(0.0, 20_000.0))
    text = b"".join(data for _, data in made.kept)
    assert len(text) + made.told == len(lines)
    assert cost(text) <= 20_000 + LAST_BYTES
    assert text.endswith(b"line 0009999\n")


def test_a_job_that_goes_on_is_copied_from_where_it_is_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "PAUSE_S", 0.001)
    log = Log((1, b"a" * 99 + b"\n"), (1, b"b" * 499 + b"\n"), (1, b"c" * 9 + b"\n"))
    made = Journal()
    # a line of 100 is there at once, and about one a look at the clock
    copied(made, log, rate=1024, burst=65_536, seconds=0.0, ended=False)
    assert made.told == 0
    made = Journal()
    paid = 100 + ENTRY_BYTES
    copied(made, log, rate=paid, burst=paid, seconds=0.5, ended=False)
    text = b"".join(data for _, data in made.kept)
    assert text == b"a" * 99 + b"\n" + b"c" * 9 + b"\n"
    assert made.told == 500


def test_a_copy_that_falls_behind_passes_over_what_is_late() -> None:
    chunk = (b"x" * 511 + b"\n") * 32
    log = Log(*[(1, chunk)] * 100)
    made = Journal()
    copied(made, log, wall_us=LATE_US, ended=False)
    assert made.told == 0
    log = Log(*[(1, chunk)] * 100)
    made = Journal()
    copied(made, log, wall_us=LATE_US + 1, ended=False)
    kept = sum(len(data) for _, data in made.kept)
    assert kept + made.told == log.size
    assert kept <= 2 * BATCH_BYTES
    assert log.read_bytes <= 2 * BATCH_BYTES


def test_a_copy_hurries_when_its_job_has_ended() -> None:
    chunk = (b"x" * 511 + b"\n") * 32
    log = Log(*[(1, chunk)] * 100)
    made = Journal()
    copied(made, log, seconds=0.2)
    kept = sum(len(data) for _, data in made.kept)
    assert kept + made.told == log.size
    assert 0 < kept < log.size / 2


def test_a_log_that_ends_with_a_loss_of_unknown_size() -> None:
    log = Log((1, b"a" * 99 + b"\n"))
    log.add((1, b"b" * 99 + b"\n"))
    log.items.append(Gap(log.size, GapKind.LOST, None, 0, 0, 1 << 40))
    log.size = 1 << 40
    made = Journal()
    copied(made, log, rate=1024, burst=100 + ENTRY_BYTES)
    assert made.kept == [(1, b"a" * 99 + b"\n")]
    assert made.sent[1:] == [(1, note(100).replace(b"100 bytes", b"at least 100 bytes"))]


def test_what_the_journal_does_not_take_is_counted() -> None:
    """Even if the note itself is not taken."""
    refuse = {0: 2, 1: 1}  # two of the first three lines, then the note
    sent = copied(
        Journal(lambda number, data: refuse.get(number, 0)),
        Log((1, b"a\nbb\nccc\n"), (1, b"d\n"), (1, b"e\n")),
    )
    assert sent == [(1, b"a\n"), (1, b"d\n"), (1, note(7)), (1, b"e\n")]


def test_the_last_line_may_be_left_out_too() -> None:
    sent = copied(Journal(lambda number, data: int(number == 0)), Log((2, b"no newline")))
    assert sent == [(1, note(11))]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2), st.binary(min_size=1, max_size=30)), max_size=12),
    st.lists(st.integers(0, 3), max_size=20),
    st.sampled_from([0.0, 0.5, 4.0]),
    st.integers(0, 40),
    st.integers(0, 9),
)
def test_every_byte_is_sent_or_counted(
    items: list[tuple[int, bytes]], refusals: list[int], seconds: float, last: int, entry: int
) -> None:
    def refuse(number: int, data: bytes) -> int:
        if number >= len(refusals) or data.startswith(b"joblet: "):
            return 0
        return min(refusals[number], data.removesuffix(b"\n").count(b"\n") + 1)

    made = Journal(refuse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "LAST_BYTES", last)
        patch.setattr(journal, "ENTRY_BYTES", entry)
        patch.setattr(journal, "READ_BYTES", 16)
        copied(made, Log(*items), rate=4, burst=40, seconds=seconds)
    sizes = {1: 0, 2: 0}
    for stream, data in items:
        sizes[stream] += len(data)
    kept = sum(len(data) for _, data in made.kept)
    # a newline behind the last line of a stream may be ours
    assert sum(sizes.values()) <= kept + made.told <= sum(sizes.values()) + 2


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
            ended = asyncio.Event()
            budget = Shared(Budget(1 << 20, 1 << 20, lambda: 0.0))
            copier = Copier(
                cast(Channel, w.init), rate=1 << 20, burst=1 << 20, of_all=budget, wall_us=lambda: 0
            )
            await copier.copy(job(), log, 7, ended)
            assert b"".join(data for _, _, data in w.init.copied) == b"seen\nthe last\n"
            # init mode restarts when it likes, and must not end the copy of a job that runs on
            w.init.copied.clear()
            w.init.errors["journal"] = [Unavailable("ask init mode", "it is away")] * 2
            await copier.copy(job(), log, 0, ended)
            assert b"".join(data for _, _, data in w.init.copied) == note(21)
            w.init.copied.clear()
            w.init.errors["journal"] = [Unavailable("ask init mode", "it is away")]
            await copier.copy(job(), log, 0, ended)
            assert b"".join(data for _, _, data in w.init.copied) == b"the last\n" + note(12)
            await w.logs.remove(job_id(1))
            with pytest.raises(JobletError):
                await copier.copy(job(), log, 0, ended)

    run(main)


# -- the channel -----------------------------------------------------------------------------------


class Ends:
    """A launcher whose channels end here."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.error: JobletError | None = None

    async def copy_journal(self) -> socket.socket:
        if self.error:
            raise self.error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends.append(ours)
        theirs.setblocking(False)
        return theirs

    async def answer(self, text: bytes) -> bytes:
        ours = self.ends[-1]
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        asked = await loop.sock_recv(ours, 1 << 17)
        ours.send(text)
        return asked

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.mark.usefixtures("no_leaks")
def test_the_channel() -> None:
    async def main() -> None:
        ends = Ends()
        now = [0.0]
        channel = Channel(cast(Launcher, ends), clock=lambda: now[0])
        sending = asyncio.ensure_future(channel.send(job_id(1), 2, b"a\nb\n", missing=3))
        await until(lambda: ends.ends)
        head, _, lines = (await ends.answer(b'{"left_out": 1}')).partition(b"\n")
        assert json.loads(head) == {"job": job_id(1), "stream": 2, "missing": 3}
        assert (lines, await sending) == (b"a\nb\n", 1)
        # nonsense, a hang-up, an answer that nobody waits for: each time another channel
        for answer in (b"?", b"[]", b"{}", b'{"left_out": "x"}'):
            now[0] += 10
            sending = asyncio.ensure_future(channel.send(job_id(1), 1, b"a\n"))
            await asyncio.sleep(0)
            await until(lambda: ends.ends[-1].fileno() >= 0)
            await ends.answer(answer)
            with pytest.raises(Unavailable):
                await sending
            # not asked again so soon
            with pytest.raises(Unavailable, match="away just now"):
                await channel.send(job_id(1), 1, b"a\n")
            now[0] += 10
            known = len(ends.ends)
            sending = asyncio.ensure_future(channel.send(job_id(1), 1, b"a\n"))
            await until(lambda n=known: len(ends.ends) > n)  # type: ignore[misc]
            await ends.answer(b'{"left_out": 0}')
            assert await sending == 0
        ends.ends[-1].close()
        with pytest.raises(Unavailable):
            await channel.send(job_id(1), 1, b"a\n")
        now[0] += 10
        ends.error = Unavailable("ask init mode", "it is away")
        with pytest.raises(Unavailable, match="it is away"):
            await channel.send(job_id(1), 1, b"a\n")
        channel.close()
        ends.close()

    run(main)
