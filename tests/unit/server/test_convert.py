# SPDX-License-Identifier: MIT
"""proto <-> model: what is asked for, what is answered, and that no number breaks an answer."""

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.config import duration_us
from joblet.errors import InvalidArgument, Unimplemented
from joblet.model import JOURNALD, End, Job, JobSpec, JobState, Limits, Reason
from joblet.server.change import MAX_TIMEOUT_US
from joblet.server.logs import Chunk, Piece
from joblet.server.rpc import convert
from joblet.server.rpc.convert import INT32, INT64, MIB, SECRET, duration, timestamp
from joblet_pb import joblet_pb2 as pb
from tests.unit.server.support import decoded, job, job_id

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kolkata", "Pacific/Kiritimati")

NOVEMBER = 1_764_000_000_000_000  # 2025-11-24T16:00:00Z
JULY = 1_752_000_000_000_000  # 2025-07-08T18:40:00Z


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def change(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


# -- requests --------------------------------------------------------------------------------------


def test_a_request() -> None:
    request = pb.RunJobRequest(
        name="net", command="python3", args=["a", "b"], max_cpu=50, cpu_cores="0-1", max_memory=64,
        max_io_bps=1000, network="host", work_dir="sub", environment={"A": "1"},
        secret_environment={"B": "2"}, timeout="1m30s", max_tasks=20, merge=True,
        log_driver="journald",
        overflow_strategy="spill", on_full="drop", profile="strict", rlimits={"core": 0},
        cpu_weight=30, memory_high_bytes=40, max_swap_bytes=0, max_read_bps=50, max_write_bps=60,
        io_weight=70,
    )  # fmt: skip
    assert convert.spec(request) == JobSpec(
        command="python3",
        args=("a", "b"),
        name="net",
        environment={"A": "1"},
        secret_environment={"B": "2"},
        work_dir="sub",
        network="host",
        limits=Limits(50, "0-1", 64 * MIB, 1000, 20, 30, 40, 0, 50, 60, 70),
        timeout_us=90_000_000,
        merge=True,
        log_driver="journald",
        overflow_strategy="spill",
        on_full="drop",
        profile="strict",
        rlimits={"core": 0},
    )
    assert convert.spec(pb.RunJobRequest()) == JobSpec("")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.RunJobRequest(uploads=[pb.FileUpload(path="x")]), "uploads"),
        (pb.RunJobRequest(schedule="tomorrow"), "schedule"),
        (pb.RunJobRequest(volumes=["v"]), "volumes"),
        (pb.RunJobRequest(runtime="python"), "runtime"),
        (pb.RunJobRequest(gpu_count=1), "gpu_count"),
        (pb.RunJobRequest(gpu_count=-1), "gpu_count"),
        (pb.RunJobRequest(gpu_memory_mb=1), "gpu_memory_mb"),
    ],
)
def test_what_is_not_served_is_not_ignored(request_: pb.RunJobRequest, field: str) -> None:
    with pytest.raises(Unimplemented, match=field):
        convert.spec(request_)


@pytest.mark.parametrize(
    ("text", "us"),
    [("", 0), ("0", 0), ("0s", 0), ("30s", 30_000_000), ("1h30m", 5_400_000_000), ("1ns", 1)],
)
def test_timeouts(text: str, us: int) -> None:
    assert convert.spec(pb.RunJobRequest(timeout=text)).timeout_us == us


@pytest.mark.parametrize(
    "text", ["x", "5", "-5s", "1h 30m", "9000h", "999999999999h", "1" * 5000 + "s", "١s", "1e3s"]
)
def test_timeouts_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a duration") as caught:
        convert.spec(pb.RunJobRequest(timeout=text))
    assert len(str(caught.value)) < 200
    assert caught.value.hint


INT32S = st.integers(-(2**31), INT32)


@given(INT32S, INT32S, INT32S, INT32S)
def test_the_limits_of_any_request_come_back(cpu: int, memory: int, io: int, tasks: int) -> None:
    request = pb.RunJobRequest(max_cpu=cpu, max_memory=memory, max_io_bps=io, max_tasks=tasks)
    made = dataclasses.replace(job(), spec=convert.spec(request))
    status = convert.job_status(made, "node")
    assert (status.max_cpu, status.max_memory, status.max_io_bps, status.max_tasks) == (
        cpu, memory, io, tasks,
    )  # fmt: skip
    listed, answer = convert.listed(made, "node"), convert.run_response(made)
    for message in (listed, answer):
        assert (message.max_cpu, message.max_memory, message.max_io_bps) == (cpu, memory, io)


# -- answers ---------------------------------------------------------------------------------------


def finished(**more: Any) -> Job:
    spec = JobSpec(
        "python3", args=("a",), name="net", environment={"A": "1"},
        secret_environment={"B": "hunter2"}, work_dir="sub", timeout_us=90_000_000, merge=True,
        log_driver=JOURNALD,
        limits=Limits(50, "0-1", 64 * MIB, 1000, 20, 30, 40, 0, 50, 60, 70),
        profile="strict", rlimits={"core": 0},
    )  # fmt: skip
    values: dict[str, Any] = {
        "spec": spec,
        "state": JobState.FAILED,
        "started_us": NOVEMBER + 1,
        "ended_us": NOVEMBER + 5_000_000,
        "end": End(Reason.EXITED, code=3),
        "effective": Limits(50, "0-1", 64 * MIB, 1000, 20, 31, 41, 4096, 51, 61, 71),
        "not_enforced": ("max_iobps",),
        "usage": {
            "cpu_usec": 7,
            "memory_peak": 8,
            "memory_limit": 11,
            "io_read": 9,
            "io_write": 10,
        },
    }
    return dataclasses.replace(job(**{**values, **more}), created_us=NOVEMBER)


def test_status(zone: Callable[[str], None]) -> None:
    zone("UTC")
    made = finished()
    status = convert.job_status(made, "node-1")
    assert status == pb.GetJobStatusResponse(
        uuid=job_id(1), name="net", command="python3", args=["a"], max_cpu=50, cpu_cores="0-1",
        max_memory=64, max_io_bps=1000, status="FAILED", start_time="2025-11-24T16:00:00Z",
        end_time="2025-11-24T16:00:05Z", exit_code=3, environment={"A": "1"},
        secret_environment={"B": SECRET}, network="host", work_dir="sub", node_id="node-1",
        timeout="1m30s", reason="exited", reason_text="exited(3)", unit=made.unit,
        effective=pb.EffectiveLimits(
            max_cpu=50, cpu_cores="0-1", max_memory_bytes=64 * MIB, max_io_bps=1000, max_tasks=20,
            not_enforced=["max_iobps"], cpu_weight=31, memory_high_bytes=41, max_swap_bytes=4096,
            max_read_bps=51, max_write_bps=61, io_weight=71,
        ),
        created_by="tester",
        usage=pb.JobUsage(
            cpu_usec=7, memory_peak_bytes=8, io_read_bytes=9, io_write_bytes=10,
            memory_limit_bytes=11,
        ),
        max_tasks=20, merge=True, log_driver="journald", profile="strict", rlimits={"core": 0},
        cpu_weight=30, memory_high_bytes=40, max_swap_bytes=0, max_read_bps=50, max_write_bps=60,
        io_weight=70,
    )  # fmt: skip
    assert "hunter2" not in str(status)


def test_a_limit_of_no_swap_is_not_no_limit() -> None:
    none = convert.job_status(job(effective=Limits(max_swap=0)), "n")
    assert none.effective.HasField("max_swap_bytes")
    assert not none.HasField("max_swap_bytes")
    assert not convert.job_status(job(), "n").effective.HasField("max_swap_bytes")


def test_listed_says_the_same() -> None:
    made = finished(
        state=JobState.STOPPED, end=End(Reason.STOPPED, signal=9, by="me"), stop_by="me"
    )
    status, listed = convert.job_status(made, "n"), convert.listed(made, "n")
    for field in listed.DESCRIPTOR.fields:
        there = {other.name for other in status.DESCRIPTOR.fields}
        assert field.name in there
        assert getattr(listed, field.name) == getattr(status, field.name), field.name
    assert (listed.status, listed.exit_code, listed.signal) == ("STOPPED", -1, 9)
    assert (listed.reason, listed.reason_text) == ("stopped", "stopped(by me)")
    assert "hunter2" not in str(listed)


def test_a_job_that_has_not_ended(zone: Callable[[str], None]) -> None:
    zone("UTC")
    made = dataclasses.replace(job(state=JobState.RUNNING, pid=42), created_us=NOVEMBER)
    status = convert.job_status(made, "n")
    assert (status.end_time, status.exit_code, status.reason, status.pid) == ("", 0, "", 42)
    answer = convert.run_response(made)
    assert (answer.job_uuid, answer.status) == (job_id(1), "RUNNING")
    assert (answer.start_time, answer.end_time) == ("2025-11-24T16:00:00Z", "")


def test_stop_response(zone: Callable[[str], None]) -> None:
    zone("UTC")
    stopped = finished(state=JobState.STOPPED, end=End(Reason.STOPPED, by="me"))
    assert convert.stop_response(stopped) == pb.StopJobResponse(
        uuid=job_id(1), status="STOPPED", end_time="2025-11-24T16:00:05Z", exit_code=-1
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_the_exit_code_is_the_commands_own_or_minus_one(reason: Reason) -> None:
    made = finished(end=End(reason, code=7))
    assert convert.listed(made, "n").exit_code == (7 if reason is Reason.EXITED else -1)


HUGE = st.integers(0, 2**65)


@settings(max_examples=60)
@given(HUGE, HUGE, HUGE, HUGE, HUGE)
def test_no_number_breaks_an_answer(cpu: int, memory: int, io: int, tasks: int, used: int) -> None:
    """A kernel or a PID 1 that says nonsense costs a number and not the list of jobs."""
    bounds = Limits(min(cpu, INT32), "", memory, io, min(tasks, INT32))
    made = finished(
        spec=JobSpec("true", limits=bounds),
        effective=Limits(cpu, "", memory, io, tasks, cpu, memory, memory, io, io, cpu),
        usage=dict.fromkeys(("cpu_usec", "memory_peak", "io_read", "io_write"), used),
    )
    status = convert.job_status(made, "n")
    assert pb.GetJobStatusResponse.FromString(status.SerializeToString()) == status
    assert status.effective.max_memory_bytes == min(memory, 2**63 - 1)
    assert status.usage.cpu_usec == min(used, 2**63 - 1)
    convert.listed(made, "n").SerializeToString()
    convert.run_response(made).SerializeToString()


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "november", "july"),
    [
        ("UTC", "2025-11-24T16:00:00Z", "2025-07-08T18:40:00Z"),
        ("Europe/Berlin", "2025-11-24T17:00:00+01:00", "2025-07-08T20:40:00+02:00"),
        ("Europe/London", "2025-11-24T16:00:00Z", "2025-07-08T19:40:00+01:00"),
        ("America/St_Johns", "2025-11-24T12:30:00-03:30", "2025-07-08T16:10:00-02:30"),
    ],
)
def test_timestamps(zone: Callable[[str], None], name: str, november: str, july: str) -> None:
    zone(name)
    assert (timestamp(NOVEMBER), timestamp(JULY)) == (november, july)
    assert timestamp(NOVEMBER + 999_999) == november
    assert timestamp(0) == ""


@pytest.mark.parametrize("name", ZONES)
def test_timestamps_name_their_second_in_every_zone(zone: Callable[[str], None], name: str) -> None:
    zone(name)

    @given(st.integers(1, 4_102_444_800_000_000))  # up to the year 2100
    def check(us: int) -> None:
        text = timestamp(us)
        assert datetime.datetime.fromisoformat(text).timestamp() == us // 1_000_000
        assert text.endswith("Z") or text[-6] in "+-"

    check()


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, ""), (1_000_000, "1s"), (90_000_000, "1m30s"), (3_600_000_000, "1h"),
        (3_601_000_000, "1h1s"), (60_000_000, "1m"), (500_000, "0.5s"), (1, "0.000001s"),
        (5_400_000_000, "1h30m"), (86_400_000_000, "24h"), (1_500_000, "1.5s"),
    ],
)  # fmt: skip
def test_durations(us: int, text: str) -> None:
    assert duration(us) == text


@given(st.integers(0, MAX_TIMEOUT_US))
def test_durations_are_read_back(us: int) -> None:
    assert duration_us(duration(us) or "0") == us
    assert convert.spec(pb.RunJobRequest(timeout=duration(us))).timeout_us == us


@given(
    st.one_of(st.binary(min_size=1, max_size=300), st.just(b"x" * 300_000)),
    st.integers(0, INT64),
    st.integers(1, 2),
    st.integers(0, INT64),
    st.lists(st.tuples(st.integers(0, INT32), st.integers(0, INT64)), max_size=3),
)
def test_a_chunk_is_encoded_as_protobuf_does(
    data: bytes, end: int, stream: int, time_us: int, arrivals: list[tuple[int, int]]
) -> None:
    at, times = [at for at, _ in arrivals], [us for _, us in arrivals]
    piece = Piece(Chunk(0, data, stream, time_us), end, tuple(arrivals))
    assert decoded(convert.chunk(piece)) == pb.DataChunk(
        payload=data,
        offset_end=end,
        stream=stream,
        time_us=time_us,
        arrivals=pb.Arrivals(at=at, time_us=times) if arrivals else None,
    )
