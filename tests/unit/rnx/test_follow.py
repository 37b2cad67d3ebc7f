# SPDX-License-Identifier: MIT
"""Following a log over any number of breaks: every byte once, in order, and loss is told."""

from collections.abc import Callable, Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet_pb import joblet_pb2 as pb
from rnx.errors import ServerError, Unreachable
from rnx.follow import GIVE_UP_AFTER_S, LONGEST_PAUSE_S, Log, Patience, Piece, wait_for_end

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
        self.asked: list[int] = []
        self.running = running

    def job_logs(
        self, uuid: str, *, from_offset: int, no_follow: bool
    ) -> Generator[pb.DataChunk, None, None]:
        self.asked.append(from_offset)
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        yield from play(from_offset)

    def job_status(self, uuid: str) -> pb.GetJobStatusResponse:
        self.running -= 1
        return pb.GetJobStatusResponse(status="RUNNING" if self.running >= 0 else "COMPLETED")


def follow(jobs: Jobs, *, from_offset: int = 0, no_follow: bool = False) -> tuple[list[Piece], Log]:
    clock = Clock()
    patience = Patience(lambda _: None, monotonic=clock.monotonic, sleep=clock.sleep)
    log = Log(jobs, "j", patience, from_offset=from_offset)
    return list(log.pieces(no_follow=no_follow)), log


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
