# SPDX-License-Identifier: MIT
"""What the journal hears of jobs, and the server's status line."""

import dataclasses
import logging
from typing import Any

import pytest

from joblet.model import End, Job, JobSpec, JobState, Reason
from joblet.server import events
from joblet.server.load import Load
from joblet.server.logs import GapKind, Swept
from joblet.systemd import messages
from joblet.systemd.journal import FIELDS
from tests.unit.server.support import job, job_id, log_metrics


def ended(end: End) -> Job:
    return dataclasses.replace(job(1), state=end.state, end=end)


def only(caplog: pytest.LogCaptureFixture) -> tuple[str, int, dict[str, Any]]:
    """The one record: its text, level, fields."""
    [record] = caplog.records
    fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]
    assert set(fields) - {"MESSAGE_ID"} <= set(FIELDS)
    return record.getMessage(), record.levelno, fields


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_a_start_says_who_and_what_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    spec = JobSpec(
        "sh",
        args=("-c", "echo hunter2\x1b[2J"),
        name="net",
        secret_environment={"T": "hunter2"},
        profile="trusted",
    )
    events.started(dataclasses.replace(job(1), spec=spec, created_by="alice"))
    text, level, fields = only(caplog)
    assert text == "job 00000001 (net) started for alice: sh -c echo ***?[2J"
    assert level == logging.INFO
    assert fields["MESSAGE_ID"] == messages.JOB_STARTED
    assert (fields["JOBLET_WHO"], fields["JOBLET_PROFILE"]) == ("alice", "trusted")
    assert caplog.records[0].job == job_id(1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("end", "text", "fields"),
    [
        (End(Reason.EXITED, code=3), "exited(3)", {"JOBLET_EXIT_CODE": "3"}),
        (End(Reason.EXITED), "exited(0)", {"JOBLET_EXIT_CODE": "0"}),
        (End(Reason.SIGNALLED, signal=9), "signalled(9)", {"JOBLET_SIGNAL": "9"}),
        (End(Reason.STOPPED, by="bob"), "stopped(by bob)", {}),
        (End(Reason.LOST, detail="gone"), "lost: gone", {}),
    ],
)
def test_an_end_says_why(
    end: End, text: str, fields: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    events.ended(ended(end))
    said, level, found = only(caplog)
    assert said == f"job 00000001 ended: {text}"
    assert level == (logging.WARNING if end.reason is Reason.LOST else logging.INFO)
    assert found["MESSAGE_ID"] == messages.JOB_ENDED
    common = {"JOBLET_REASON": str(end.reason), "JOBLET_STATE": str(end.state)}
    assert {k: v for k, v in found.items() if k not in ("MESSAGE_ID", "JOBLET_UNIT")} == {
        **common,
        **fields,
    }


def test_a_failed_launch_is_a_warning_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    events.ended(ended(End(Reason.LAUNCH_FAILED, step="exec", errno=2)))
    text, level, fields = only(caplog)
    assert (
        text == "job 00000001 could not be launched: launch-failed(exec): No such file or directory"
    )
    assert (level, fields["MESSAGE_ID"]) == (logging.WARNING, messages.JOB_LAUNCH_FAILED)


def test_what_could_not_be_started_is_named_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = JobSpec("/work/hunter2", secret_environment={"T": "hunter2", "N": "e"})
    detail = "cannot start the command: /work/hunter2: Permission denied"
    end = End(Reason.LAUNCH_FAILED, step="exec", errno=13, detail=detail)
    events.ended(dataclasses.replace(ended(end), spec=spec))
    text, _, _ = only(caplog)
    assert "hunter2" not in text
    assert text.startswith("job 00000001 could not be launched: launch-failed(exec): ")


def test_a_job_that_has_not_ended_is_not_said_to(caplog: pytest.LogCaptureFixture) -> None:
    events.ended(dataclasses.replace(job(1), state=JobState.RUNNING, end=None))
    assert caplog.records == []


def test_only_what_the_client_asked_for_is_told_with_its_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lacking = dataclasses.replace(job(1), not_enforced=("max_iobps", "max_memory"))
    events.not_enforced(lacking, ())
    assert caplog.records == []
    events.not_enforced(lacking, {"max_memory", "max_cpu"})
    text, _, fields = only(caplog)
    assert "max_memory" in text
    assert "max_iobps" not in text
    assert fields["JOBLET_LIMITS"] == "max_memory"


@pytest.mark.parametrize(("refused", "then"), [(True, "are refused"), (False, "run without it")])
def test_what_the_host_lacks(
    refused: bool,
    then: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    events.host_enforces_not([], refused=refused)
    assert caplog.records == []
    events.host_enforces_not(["max_iobps"], refused=refused)
    text, level, _ = only(caplog)
    assert text.startswith("this host does not enforce max_iobps: ")
    assert text.endswith(then)
    assert level == logging.WARNING


def test_taking_back(caplog: pytest.LogCaptureFixture) -> None:
    events.taken_back(0, 0)
    assert caplog.records == []
    events.taken_back(2, 1)
    text, _, fields = only(caplog)
    assert text == "took back 2 running jobs of an earlier server, and 1 job that ended meanwhile"
    assert fields == {"MESSAGE_ID": messages.JOBS_TAKEN_BACK, "JOBLET_JOBS": "2"}


def test_what_retention_removed(caplog: pytest.LogCaptureFixture) -> None:
    events.output_expired(Swept(logs=2, log_bytes=3_000_000, shortened=1, shortened_bytes=64_000))
    text, level, fields = only(caplog)
    assert text == (
        "retention: removed 2 jobs with 3.0 MB of logs; removed the oldest 64.0 kB of the output of"
        " 1 job"
    )
    assert level == logging.INFO
    assert fields == {
        "MESSAGE_ID": messages.OUTPUT_EXPIRED,
        "JOBLET_LOGS": "2",
        "JOBLET_BYTES": "3064000",
    }
    caplog.clear()
    events.output_expired(Swept(failed=3))
    text, level, _ = only(caplog)
    assert (text, level) == ("retention: could not remove 3 logs", logging.WARNING)


def test_a_pid_1_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    events.not_answering(job(1))
    text, level, fields = only(caplog)
    assert text.startswith("job 00000001 does not end: ")
    assert (level, fields["MESSAGE_ID"]) == (logging.WARNING, messages.JOB_NOT_ANSWERING)


def test_the_status_line() -> None:
    now, jobs, read = 0.0, 0, 0
    metrics = log_metrics()
    metrics.bytes_in.watch(lambda: read)
    load = Load(lambda: jobs, metrics, lambda: now)
    assert load.line() == "0 jobs running"
    assert not load.moving()
    jobs, now = 1, 5.0
    assert load.line() == "1 job running"
    assert load.moving()
    jobs, now, read = 3, 10.0, 10_500_000
    assert load.line() == "3 jobs running, 2.1 MB/s of output"
    now, read = 10.1, 20_000_000  # too soon for a rate
    assert load.line() == "3 jobs running"
    now, jobs, read = 20.0, 0, 30_000_000
    assert load.line() == "0 jobs running"


def test_the_status_line_says_what_is_not_as_it_should_be() -> None:
    now, jobs, waiting = 0.0, 1, 31_000_000
    metrics = log_metrics()
    metrics.queue_bytes.watch(lambda: waiting)
    metrics.overflow["spill"].add(7)  # before
    load = Load(lambda: jobs, metrics, lambda: now)
    assert load.line() == "1 job running"
    metrics.queue_limit_bytes.watch(lambda: 400_000_000)
    waiting = 99_000_000
    assert load.line() == "1 job running"
    waiting = 212_000_000
    metrics.overflow["spill"].add(3)
    metrics.overflow["alert"].add(1)
    metrics.pauses.add()
    assert load.line() == (
        "1 job running, 212 MB waiting for the disk, overflow: spill alert, the disk refuses output"
    )
    jobs = 0
    assert load.moving()  # it is looked at again until it is over
    waiting = 0
    metrics.gap(GapKind.EXPIRED, 1 << 30)
    assert load.line() == "0 jobs running"
    assert not load.moving()
    metrics.gap(GapKind.LOST, None)
    assert load.line() == "0 jobs running, 1 gap in logs"
    metrics.gap(GapKind.DROPPED, 1_300_000)
    metrics.gap(GapKind.SAMPLED, 100_000)
    assert load.line() == "0 jobs running, 3 gaps in logs (1.4 MB)"
    assert not load.moving()
