# SPDX-License-Identifier: MIT
"""Following a log over any number of breaks: every byte once, in order, and loss is told."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet_pb import joblet_pb2 as pb
from rnx.errors import BrokenOff, RnxError, ServerError, Unreachable
from rnx.follow import GIVE_UP_AFTER_S, LONGEST_PAUSE_S, Log, Patience, Piece, wait_for_end
from rnx.last_lines import LastLines
from rnx.selection import Selection

Play = Callable[[int], Iterator[pb.DataChunk]]  # the offset asked for -> chunks, or an error


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


class Jobs:
    """Plays one play a call, the last one for ever; jobs end after `running` answers."""

    def __init__(self, *plays: Play, running: int = 0) -> None:
        self.plays = list(plays)
        self.wanted: list[Selection] = []
        self.running = running

    @property
    def asked(self) -> list[int]:
        return [selection.from_offset for selection in self.wanted]

    @property
    def cursors(self) -> list[str]:
        return [selection.from_cursor for selection in self.wanted]

    def job_logs(self, uuid: str, selection: Selection) -> Generator[pb.DataChunk, None, None]:
        self.wanted.append(selection)
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        yield from play(selection.from_offset)

    def job_status(self, uuid: str) -> pb.GetJobStatusResponse:
        self.running -= 1
        return pb.GetJobStatusResponse(status="RUNNING" if self.running >= 0 else "COMPLETED")


def follow(jobs: Jobs, **wanted: Any) -> tuple[list[Piece], Log]:
    clock = Clock()
    patience = Patience(lambda _: None, monotonic=clock.monotonic, sleep=clock.sleep)
    log = Log(jobs, "j", patience, Selection(**wanted))
    return list(log.pieces()), log


def numbered(data: bytes, size: int, *, first: int = 0, end: bool = True) -> Play:
    """A server of ours. `first`: it may begin earlier than asked, by up to that many bytes."""

    def play(asked: int) -> Iterator[pb.DataChunk]:
        begin = max(0, asked - first)
        for at in range(begin, len(data), size):
            piece = data[at : at + size]
            yield pb.DataChunk(payload=piece, offset_end=at + len(piece))
        if end:
            yield pb.DataChunk(offset_end=len(data), end=True)

    return play


def unnumbered(data: bytes, size: int) -> Play:
    """A published server: from the start, whatever was asked."""

    def play(_: int) -> Iterator[pb.DataChunk]:
        for at in range(0, len(data), size):
            yield pb.DataChunk(payload=data[at : at + size])

    return play


def breaking(play: Play, count: int) -> Play:
    def broken(asked: int) -> Iterator[pb.DataChunk]:
        for _, chunk in zip(range(count), play(asked), strict=False):
            yield chunk
        raise Unreachable("gone")

    return broken


@given(
    data=st.binary(max_size=200),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    counts=st.lists(st.integers(0, 5), max_size=5),
    overlap=st.integers(0, 30),
    begin=st.integers(0, 200),
    ours=st.booleans(),
)
def test_every_byte_comes_once(
    data: bytes, sizes: list[int], counts: list[int], overlap: int, begin: int, *, ours: bool
) -> None:
    """Whatever the chunks are, wherever it breaks, and if the server sends too much again."""

    def make(size: int) -> Play:
        return numbered(data, size, first=overlap) if ours else unnumbered(data, size)

    plays = [breaking(make(sizes[at % len(sizes)]), count) for at, count in enumerate(counts)]
    pieces, log = follow(Jobs(*plays, make(sizes[-1])), from_offset=begin)
    assert b"".join(piece.data for piece in pieces) == data[begin:]
    assert not [piece for piece in pieces if piece.gap or not piece.data]
    if len(data) > begin:
        assert log.position == pieces[-1].end == len(data)


def test_gaps_are_pieces() -> None:
    def play(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(offset_end=10, gap=pb.Gap(kind="expired", bytes=10))
        yield pb.DataChunk(payload=b"ab", offset_end=12, stream=2, time_us=5)
        yield pb.DataChunk(offset_end=20, gap=pb.Gap(bytes=8))
        yield pb.DataChunk(offset_end=20, end=True)

    pieces, log = follow(Jobs(play))
    assert pieces == [
        Piece(b"", 10, gap="expired", missing=10),
        Piece(b"ab", 12, stream=2, time_us=5),
        Piece(b"", 20, gap="unknown", missing=8),
    ]
    assert log.position == 20


def test_a_gap_is_told_once_when_it_comes_again() -> None:
    def play(asked: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(offset_end=10, gap=pb.Gap(kind="lost", bytes=10))
        yield pb.DataChunk(payload=b"ab", offset_end=12)
        yield pb.DataChunk(offset_end=12, end=True)

    pieces, _ = follow(Jobs(breaking(play, 1), play))
    assert [(piece.gap, piece.data) for piece in pieces] == [("lost", b""), ("", b"ab")]


def test_bytes_that_are_skipped_without_a_word_are_told_too() -> None:
    def play(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(payload=b"a", offset_end=1)
        yield pb.DataChunk(payload=b"d", offset_end=4)
        yield pb.DataChunk(offset_end=4, end=True)

    pieces, _ = follow(Jobs(play))
    assert pieces == [Piece(b"a", 1), Piece(b"", 3, gap="unknown", missing=2), Piece(b"d", 4)]


def test_a_stream_of_ours_that_just_ends_is_taken_up_again() -> None:
    """As by a server that is stopped cleanly."""
    whole = numbered(b"0123456789", 2)

    def short(asked: int) -> Iterator[pb.DataChunk]:
        for _, chunk in zip(range(2), whole(asked), strict=False):
            yield chunk

    jobs = Jobs(short, short, whole, running=100)
    pieces, _ = follow(jobs)
    assert b"".join(piece.data for piece in pieces) == b"0123456789"
    assert jobs.asked == [0, 4, 8]


def test_a_log_without_the_word_that_it_ended_ends_with_its_job() -> None:
    jobs = Jobs(numbered(b"0123", 2, end=False))
    pieces, _ = follow(jobs)
    assert b"".join(piece.data for piece in pieces) == b"0123"
    assert jobs.asked == [0, 4]


def test_no_follow_takes_what_there_is() -> None:
    jobs = Jobs(numbered(b"0123", 2, end=False), running=100)
    pieces, _ = follow(jobs, no_follow=True)
    assert b"".join(piece.data for piece in pieces) == b"0123"
    assert jobs.asked == [0]


def test_a_refusal_is_not_tried_again() -> None:
    def play(_: int) -> Iterator[pb.DataChunk]:
        yield from ()
        raise ServerError("RESOURCE_EXHAUSTED", "cannot follow: too slow")

    jobs = Jobs(play)
    with pytest.raises(ServerError):
        follow(jobs)
    assert len(jobs.asked) == 1


def test_a_server_that_had_enough_of_waiting_is_asked_again_at_once() -> None:
    """And nothing is said: nobody is interested in how rnx's reader was waited for."""

    def play(asked: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(payload=b"x", offset_end=asked + 1)
        raise BrokenOff("cannot go on: nothing was read for 60 s")

    def over(asked: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(offset_end=asked, end=True)

    clock, said = Clock(), list[str]()
    patience = Patience(said.append, monotonic=clock.monotonic, sleep=clock.sleep)
    jobs = Jobs(play, play, play, over)
    pieces = list(Log(jobs, "j", patience).pieces())
    assert b"".join(piece.data for piece in pieces) == b"xxx"
    assert (jobs.asked, clock.sleeps, said) == ([0, 1, 2, 3], [], [])


def test_a_server_that_breaks_off_whoever_asks_is_no_loop() -> None:
    def play(_: int) -> Iterator[pb.DataChunk]:
        yield from ()
        raise BrokenOff("cannot go on")

    with pytest.raises(BrokenOff):
        follow(Jobs(play))


# ------------------------------------------------------------------------------ parts of a log


def chunks(*made: pb.DataChunk) -> Play:
    return lambda _: iter(made)


BEGIN = pb.DataChunk(offset_end=5, begin=True)


def test_where_a_part_begins_is_decided_once() -> None:
    """Also if the connection breaks before the first byte."""
    first = breaking(chunks(BEGIN), 1)
    second = breaking(chunks(BEGIN, pb.DataChunk(payload=b"abc", offset_end=8)), 2)
    last = chunks(
        pb.DataChunk(offset_end=8, begin=True),
        pb.DataChunk(payload=b"d", offset_end=9),
        pb.DataChunk(offset_end=9, end=True),
    )
    kept: dict[str, Any] = {"until_us": 9, "stream": 1, "arrivals": True}
    wanted = {**kept, "since_us": 3, "tail_lines": 2}
    jobs = Jobs(first, second, last)
    pieces, log = follow(jobs, **wanted)
    assert b"".join(piece.data for piece in pieces) == b"abcd"
    assert jobs.wanted == [
        Selection(**wanted),
        Selection(**kept, from_offset=5),
        Selection(**kept, from_offset=8),
    ]
    assert log.position == 9


def test_a_part_may_begin_at_the_first_byte() -> None:
    jobs = Jobs(breaking(chunks(pb.DataChunk(begin=True)), 1), numbered(b"0123", 2))
    pieces, _ = follow(jobs, tail_lines=0)
    assert b"".join(piece.data for piece in pieces) == b"0123"
    assert jobs.wanted[1] == Selection()


def test_what_was_left_out_is_no_gap() -> None:
    jobs = Jobs(
        breaking(
            chunks(
                pb.DataChunk(begin=True),
                pb.DataChunk(payload=b"a", offset_end=4, stream=2),
                pb.DataChunk(offset_end=60),  # where it stands, and nothing to show
            ),
            3,
        ),
        chunks(
            pb.DataChunk(offset_end=60, begin=True),
            pb.DataChunk(payload=b"b", offset_end=70, stream=2),
            pb.DataChunk(offset_end=90, gap=pb.Gap(kind="lost", bytes=9)),
            pb.DataChunk(offset_end=90, end=True),
        ),
    )
    pieces, log = follow(jobs, stream=2)
    assert [(piece.data, piece.gap) for piece in pieces] == [(b"a", ""), (b"b", ""), (b"", "lost")]
    assert (jobs.asked, log.position) == ([0, 60], 90)


def test_arrivals_are_cut_as_their_bytes() -> None:
    told = pb.Arrivals(at=[0, 2, 4], time_us=[10, 20, 30])
    whole = pb.DataChunk(payload=b"abcdef", offset_end=6, arrivals=told)
    end = pb.DataChunk(offset_end=6, end=True)
    begin = pb.DataChunk(begin=True)
    for seen, expected in (
        (0, ((0, 10), (2, 20), (4, 30))),
        (1, ((0, 10), (1, 20), (3, 30))),
        (2, ((0, 20), (2, 30))),
        (5, ((0, 30),)),
    ):
        pieces, _ = follow(Jobs(chunks(begin, whole, end)), arrivals=True, from_offset=seen)
        [piece] = pieces
        assert (piece.data, piece.arrivals) == (b"abcdef"[seen:], expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("data", [b"1\n2\n3\n", b"1\n2\n3", b"\n\n", b"", b"x"])
def test_the_last_lines_of_a_server_that_knows_no_lines(data: bytes, count: int) -> None:
    """They are kept here, over a break too."""
    expected = b"".join(data.splitlines(keepends=True)[-count:]) if count else b""
    for size in (1, 2, 100):
        play = unnumbered(data, size)
        pieces, _ = follow(Jobs(breaking(play, 2), play), tail_lines=count)
        assert b"".join(piece.data for piece in pieces) == expected


def test_what_such_a_server_cannot_do_is_said() -> None:
    alive = chunks(pb.DataChunk())  # a sign of life is all there is of a quiet job
    for wanted, word in (
        ({"since_us": 1}, "--since"),
        ({"until_us": 1}, "--until"),
        ({"stream": 1}, "--stdout"),
        ({"stream": 2, "tail_lines": 1}, "--stderr"),
        ({"arrivals": True}, "--timestamps"),
    ):
        with pytest.raises(RnxError, match=f"with {word}: the server does not know how"):
            follow(Jobs(alive), **wanted)
    with pytest.raises(RnxError, match=r"--tail.*the job has not ended"):
        follow(Jobs(alive, running=1), tail_lines=1)
    with pytest.raises(RnxError, match=r"--no-follow.*the job has not ended"):
        follow(Jobs(unnumbered(b"ab", 1), running=1), no_follow=True)
    pieces, _ = follow(Jobs(unnumbered(b"ab", 1)), no_follow=True)
    assert b"".join(piece.data for piece in pieces) == b"ab"


def test_lines_that_are_too_much_to_hold() -> None:
    kept = LastLines(2, most_bytes=10)
    for at in range(20):
        kept.take(Piece(b"%d\n" % at, at))
    assert b"".join(piece.data for piece in kept.pieces()) == b"18\n19\n"
    kept = LastLines(2, most_bytes=10)
    with pytest.raises(RnxError, match="the last 2 lines"):
        kept.take(Piece(b"x" * 11, 99))


# ------------------------------------------------------------------------------------ patience


def test_a_server_that_stays_away_is_given_up() -> None:
    clock, said = Clock(), list[str]()
    patience = Patience(said.append, monotonic=clock.monotonic, sleep=clock.sleep)
    jobs = Jobs(breaking(numbered(b"", 1), 0))
    with pytest.raises(Unreachable, match="gone"):
        list(Log(jobs, "j", patience).pieces())
    assert GIVE_UP_AFTER_S <= clock.now <= GIVE_UP_AFTER_S + LONGEST_PAUSE_S
    assert clock.sleeps[:3] == [0.1, 0.2, 0.4]
    assert max(clock.sleeps) == LONGEST_PAUSE_S
    assert said == ["gone"]


def test_patience_begins_anew_with_each_sign_of_life() -> None:
    clock, said = Clock(), list[str]()
    patience = Patience(said.append, monotonic=clock.monotonic, sleep=clock.sleep)
    jobs = Jobs(*[breaking(lambda _: iter([pb.DataChunk()]), at % 2) for at in range(201)])
    with pytest.raises(Unreachable):
        list(Log(jobs, "j", patience).pieces())
    assert len(said) == 101  # the first break, and one behind each sign of life
    assert len(jobs.asked) > 200


def test_waiting_asks_at_once_and_then_slower() -> None:
    clock = Clock()
    patience = Patience(lambda _: None, monotonic=clock.monotonic, sleep=clock.sleep)
    assert wait_for_end(Jobs(running=12), "j", patience).status == "COMPLETED"
    assert len(clock.sleeps) == 12
    assert clock.sleeps == sorted(clock.sleeps)
    assert (clock.sleeps[0], clock.sleeps[-1]) == (0.05, 1.0)


def test_a_log_in_the_journal_goes_on_behind_its_cursor() -> None:
    def first(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(gap=pb.Gap(kind="expired", bytes=-1, lines=-1))
        yield pb.DataChunk(payload=b"a\n", stream=1, cursor="s=1;i=1", time_us=5)
        yield pb.DataChunk(payload=b"b\n", stream=2, cursor="s=1;i=2")
        raise Unreachable("gone")

    def second(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(cursor="s=1;i=3", gap=pb.Gap(kind="dropped", bytes=-1, lines=7))
        yield pb.DataChunk(payload=b"c\n", stream=1, cursor="s=1;i=4")
        # it ends without a word; so there may be more

    def third(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(stream=1, gap=pb.Gap(kind="lost", bytes=-1, lines=-1))
        yield pb.DataChunk(end=True)

    jobs = Jobs(first, second, third)
    pieces, log = follow(jobs)
    assert [(piece.data, piece.gap, piece.lines) for piece in pieces] == [
        (b"", "expired", -1),
        (b"a\n", "", 0),
        (b"b\n", "", 0),
        (b"", "dropped", 7),
        (b"c\n", "", 0),
        (b"", "lost", -1),
    ]
    assert (pieces[1].stream, pieces[1].time_us, pieces[1].cursor) == (1, 5, "s=1;i=1")
    assert jobs.cursors == ["", "s=1;i=2", "s=1;i=4"]
    assert jobs.asked == [0, 0, 0]
    assert (log.position, log.cursor) == (0, "s=1;i=4")


def test_a_part_of_a_log_in_the_journal_begins_where_it_began() -> None:
    def first(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(begin=True, cursor="i=3")
        raise Unreachable("gone")

    def second(_: int) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(payload=b"a\n", stream=1, cursor="i=4")
        yield pb.DataChunk(end=True)

    jobs = Jobs(first, second)
    clock = Clock()
    patience = Patience(lambda _: None, monotonic=clock.monotonic, sleep=clock.sleep)
    log = Log(jobs, "j", patience, Selection(tail_lines=0))
    assert [piece.data for piece in log.pieces()] == [b"a\n"]
    assert jobs.wanted == [
        Selection(tail_lines=0),
        Selection(from_cursor="i=3"),
    ]


def test_waiting_bears_a_lost_server() -> None:
    class Flaky(Jobs):
        failures = 3

        def job_status(self, uuid: str) -> pb.GetJobStatusResponse:
            if self.failures:
                self.failures -= 1
                raise Unreachable("gone")
            return super().job_status(uuid)

    clock = Clock()
    patience = Patience(lambda _: None, monotonic=clock.monotonic, sleep=clock.sleep)
    assert wait_for_end(Flaky(), "j", patience).status == "COMPLETED"
    assert len(clock.sleeps) == 3
