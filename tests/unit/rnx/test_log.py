# SPDX-License-Identifier: MIT
"""rnx job log: what it asks for, and how it shows it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from joblet_pb import joblet_pb2 as pb
from rnx.exits import Exit
from rnx.formats import rfc3339_us
from tests.unit.rnx.conftest import NOW, Rnx
from tests.unit.rnx.scripted import JOB, Play, Script, broken_at, plain

pytestmark = pytest.mark.usefixtures("config_file")

NOW_US = round(NOW.timestamp() * 1e6)
MINUTE_US = 60_000_000
T = 1_764_000_000_000_000
STAMP = [f"{rfc3339_us(T + at)} ".encode() for at in range(10)]


def chunks(*made: pb.DataChunk) -> Play:
    return lambda request, context: iter(made)


BEGIN = pb.DataChunk(begin=True)
OUT = pb.DataChunk(payload=b"one\ntw", offset_end=6, stream=1, time_us=T + 1)
ERR = pb.DataChunk(payload=b"oops\n", offset_end=11, stream=2, time_us=T + 2)
MORE = pb.DataChunk(payload=b"o\n", offset_end=13, stream=1, time_us=T + 3)
END = pb.DataChunk(offset_end=13, end=True)


@pytest.fixture
def asked(rnx: Rnx, script: Script) -> Callable[..., pb.GetJobLogsRequest]:
    """What a command line asks for."""

    def run(*words: str) -> pb.GetJobLogsRequest:
        script.requests.clear()
        script.plays = [chunks(BEGIN, pb.DataChunk(end=True))]
        script.statuses = [pb.GetJobStatusResponse(uuid=JOB, status="COMPLETED")]
        result = rnx(*words, JOB)
        assert (result.code, result.out, result.err) == (0, b"", "")
        [request] = script.of(pb.GetJobLogsRequest)
        assert request.uuid == JOB
        request.uuid = ""
        return request  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("command", [("log",), ("job", "log")])
@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ((), {}),
        (("-f",), {}),
        (("--no-follow", "-n", "5"), {"no_follow": True, "tail_lines": 5}),
        (("--tail=0",), {"tail_lines": 0}),
        (("--since", "1m"), {"since_us": NOW_US - MINUTE_US}),
        (("--until", "2025-11-24T15:04:05Z"), {"until_us": NOW_US - MINUTE_US}),
        (("-t",), {"arrivals": True}),
        (("--timestamps", "--stdout"), {"arrivals": True, "stream": 1}),
        (("--stderr", "--from-offset=7"), {"stream": 2, "from_offset": 7}),
        (("--strict", "--split"), {}),
        (("-n", str(2**63)), {"tail_lines": 2**63 - 1}),
    ],
)
def test_what_is_asked_for(
    asked: Callable[..., pb.GetJobLogsRequest],
    command: tuple[str, ...],
    words: tuple[str, ...],
    request_: dict[str, Any],
) -> None:
    assert asked(*command, *words) == pb.GetJobLogsRequest(**request_)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "soon"), "cannot use --since 'soon': write a time as in 2025-11-24T15:04:05Z"),
        (("--until", "2025-02-30"), "cannot use --until '2025-02-30': there is no such time"),
        (("--since", "1m", "--until", "2m"), "cannot use --until '2m': it is before --since '1m'"),
        (("--stdout", "--stderr"), "cannot use --stdout with --stderr"),
        (("-n", "-1"), "--tail"),
        (("-n", "x"), "--tail"),
    ],
)
def test_mistakes_are_told_before_anybody_is_asked(
    rnx: Rnx, script: Script, words: tuple[str, ...], said: str
) -> None:
    result = rnx("log", *words, JOB)
    assert (result.code, result.out) == (1, b"")
    assert said in result.err
    assert "--help`" in result.err.splitlines()[-1]
    assert script.requests == []


def running(script: Script, *plays: Play) -> None:
    script.plays = list(plays)
    script.statuses = [pb.GetJobStatusResponse(uuid=JOB, status="RUNNING")]


def test_each_line_has_its_time(rnx: Rnx, script: Script) -> None:
    running(script, chunks(BEGIN, OUT, ERR, MORE, END))
    assert rnx("log", "-t", JOB).out == (
        STAMP[1] + b"one\n" + STAMP[2] + b"oops\n" + STAMP[1] + b"two\n"
    )
    apart = rnx("log", "-t", "--split", JOB)
    assert apart.out == STAMP[1] + b"one\n" + STAMP[1] + b"two\n"
    assert apart.err.encode() == STAMP[2] + b"oops\n"


def test_a_break_is_not_seen_in_lines_with_times(rnx: Rnx, script: Script) -> None:
    again = pb.DataChunk(offset_end=6, begin=True)
    running(
        script,
        broken_at(chunks(BEGIN, OUT), 2),
        chunks(again, ERR, MORE, END),
    )
    result = rnx("log", "-t", "-n", "9", JOB)
    assert result.out == STAMP[1] + b"one\n" + STAMP[2] + b"oops\n" + STAMP[1] + b"two\n"
    first, second = script.of(pb.GetJobLogsRequest)
    assert first == pb.GetJobLogsRequest(uuid=JOB, tail_lines=9, arrivals=True)
    assert second == pb.GetJobLogsRequest(uuid=JOB, from_offset=6, arrivals=True)


def test_what_came_of_a_line_is_shown_when_the_log_is_lost(rnx: Rnx, script: Script) -> None:
    def refused(request: pb.GetJobLogsRequest, context: Any) -> Any:
        import grpc

        yield BEGIN
        yield OUT
        context.abort(grpc.StatusCode.NOT_FOUND, "cannot read the log: it was removed")

    running(script, refused)
    result = rnx("log", "-t", JOB)
    assert result.code == 1
    assert result.out == STAMP[1] + b"one\n" + STAMP[1] + b"tw"


def test_json_with_times_is_cut_where_they_change(rnx: Rnx, script: Script) -> None:
    told = pb.Arrivals(at=[0, 4], time_us=[T, T + 5])
    made = pb.DataChunk(payload=b"one\ntwo\n", offset_end=8, stream=1, time_us=T, arrivals=told)
    running(script, chunks(BEGIN, made, pb.DataChunk(offset_end=8, end=True)))
    shown = [json.loads(line) for line in rnx("log", "-t", "--json", JOB).out.splitlines()]
    assert shown == [
        {"data": "one\n", "timestamp": rfc3339_us(T), "offset_end": 4, "stream": 1},
        {"data": "two\n", "timestamp": rfc3339_us(T + 5), "offset_end": 8, "stream": 1},
    ]


GAP = pb.DataChunk(offset_end=20, gap=pb.Gap(kind="dropped", bytes=7), stream=1)
BEHIND = pb.DataChunk(payload=b"x\n", offset_end=22, stream=1, time_us=T + 4)
LATER_END = pb.DataChunk(offset_end=22, end=True)


def test_a_gap_stands_where_it_is(rnx: Rnx, script: Script, env: Any) -> None:
    """All that comes before it is out before it is told."""
    running(script, chunks(OUT, ERR, MORE, GAP, BEHIND, LATER_END))
    seen: list[tuple[str, bytes]] = []
    write, write_err = type(env).write, type(env).write_err

    def noted(name: str, really: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
        def writing(env: Any, data: bytes) -> None:
            seen.append((name, data))
            really(env, data)

        return writing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(env), "write", noted("out", write))
        patch.setattr(type(env), "write_err", noted("err", write_err))
        rnx("log", JOB)
        plainly = list(seen)
        seen.clear()
        running(script, chunks(BEGIN, OUT, GAP, BEHIND, LATER_END))
        rnx("log", "-t", JOB)
    note = b"rnx: 7 bytes of the log are missing here (dropped)\n"
    assert plainly == [
        ("out", b"one\ntw"),
        ("out", b"oops\n"),
        ("out", b"o\n"),
        ("err", note),
        ("out", b"x\n"),
    ]
    assert seen == [
        ("out", STAMP[1] + b"one\n"),
        ("out", STAMP[1] + b"tw"),
        ("err", note),
        ("out", b"\n" + STAMP[4] + b"x\n"),
    ]


@pytest.mark.parametrize("words", [(), ("-t",), ("--json",)])
def test_strict_is_a_code_of_its_own(rnx: Rnx, script: Script, words: tuple[str, ...]) -> None:
    begin = [BEGIN] if "-t" in words else []
    running(script, chunks(*begin, OUT, ERR, MORE, GAP, BEHIND, LATER_END))
    assert rnx("log", *words, JOB).code == 0
    strictly = rnx("log", "--strict", *words, JOB)
    assert strictly.code == int(Exit.INCOMPLETE) == 3
    assert b"x" in strictly.out  # all that there is, nevertheless
    running(script, chunks(*begin, OUT, ERR, MORE, END))
    assert rnx("log", "--strict", *words, JOB).code == 0


def published(request: pb.GetJobLogsRequest, context: Any) -> Any:
    for line in (b"one\n", b"two\n", b"three\n"):
        yield pb.DataChunk(payload=line)


def test_a_published_server_is_helped_or_it_is_said(rnx: Rnx, script: Script) -> None:
    script.plays = [published]
    script.statuses = [pb.GetJobStatusResponse(uuid=JOB, status="COMPLETED")]
    assert rnx("log", "-n", "2", JOB).out == b"two\nthree\n"
    assert rnx("log", "--from-offset", "4", "--no-follow", JOB).out == b"two\nthree\n"
    for word in ("--stderr", "--timestamps", "--since=1m", "--until=1m"):
        result = rnx("log", word, JOB)
        assert (result.code, result.out) == (1, b"")
        assert f"with {word.partition('=')[0]}: the server does not know how" in result.err
    result = rnx("log", "--strict", JOB)
    assert (result.code, result.out) == (1, b"")
    assert "cannot be strict: the server does not tell what is missing" in result.err


def test_what_a_published_server_cannot_do_with_a_job_that_runs(rnx: Rnx, script: Script) -> None:
    running(script, published)
    for word in ("--no-follow", "--tail=1"):
        result = rnx("log", word, JOB)
        assert (result.code, result.out) == (1, b"")
        assert "the job has not ended" in result.err


def test_the_whole_log_is_asked_for_as_ever(rnx: Rnx, script: Script) -> None:
    """So that every server understands it."""
    running(script, plain(b"all\n"))
    script.statuses = [pb.GetJobStatusResponse(uuid=JOB, status="COMPLETED", reason="exited")]
    assert rnx("run", "--follow", "x").out == b"all\n"
    assert script.of(pb.GetJobLogsRequest) == [pb.GetJobLogsRequest(uuid=JOB)]
