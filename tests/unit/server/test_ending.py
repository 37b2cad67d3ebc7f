# SPDX-License-Identifier: MIT
"""How a job ended: every cause, every witness, and that a client's stop always wins."""

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.launch.protocol import ExitRecord
from joblet.model import End, JobState, Reason
from joblet.server.ending import Witness, from_record, without_record
from tests.unit.server.support import job, job_id

CAUSES = ("", "ctl", "signal", "timeout", "oom", "launch", "something of the future")
WITNESSES = (
    Witness(),
    Witness(stopping=True, blind=False),
    Witness(stopping=False, blind=False),
    Witness(stopping=True, blind=True),
)
ENDS = ((0, 0), (3, 0), (0, 9), (0, 15))


def record(ended_by: str, code: int = 0, number: int = 0, **more: object) -> ExitRecord:
    return ExitRecord(job_id(1), ended_by=ended_by, code=code, signal=number, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("witness", WITNESSES)
def test_a_clients_stop_always_wins(cause: str, witness: Witness) -> None:
    for (code, number), own in itertools.product(ENDS, (False, True)):
        end = from_record(
            job(stop_by="me"), record(cause, code, number, oom_own=own, step="execve"), witness
        )
        assert end == End(Reason.STOPPED, code=code, signal=number, by="me")
        assert end.state is JobState.STOPPED


SIGTERM, SIGKILL = signal.SIGTERM, signal.SIGKILL


@pytest.mark.parametrize(
    ("told", "end", "state"),
    [
        (record(""), End(Reason.EXITED), JobState.COMPLETED),
        (record("", 3), End(Reason.EXITED, code=3), JobState.FAILED),
        (record("", 0, 11), End(Reason.SIGNALLED, signal=11), JobState.FAILED),
        (record("ctl", 0, 15), End(Reason.STOPPED, signal=15), JobState.STOPPED),
        (record("ctl", 4), End(Reason.STOPPED, code=4), JobState.STOPPED),
        (record("timeout", 0, 15), End(Reason.TIMEOUT, signal=15), JobState.FAILED),
        (record("timeout", 1), End(Reason.TIMEOUT, code=1), JobState.FAILED),
        (
            record("oom", 0, 9, oom_own=True, usage={"memory_peak": 63 << 20}),
            End(Reason.OOM, signal=SIGKILL, detail="memory peak 63.0 MiB"),
            JobState.FAILED,
        ),
        (
            record(
                "oom",
                0,
                9,
                oom_own=True,
                usage={"memory_peak": (63 << 20) + 800_000, "memory_limit": 64 << 20},
            ),
            End(Reason.OOM, signal=SIGKILL, detail="memory peak 63.8 MiB, limit 64.0 MiB"),
            JobState.FAILED,
        ),
        (record("oom", 0, 9, oom_own=True), End(Reason.OOM, signal=SIGKILL), JobState.FAILED),
        (
            record("launch", step="execve", errno=2, detail="no such file"),
            End(Reason.LAUNCH_FAILED, step="execve", errno=2, detail="no such file"),
            JobState.FAILED,
        ),
    ],
)
def test_whatever_the_witness_says(told: ExitRecord, end: End, state: JobState) -> None:
    for witness in WITNESSES:
        found = from_record(job(), told, witness)
        assert found == end
        assert found.state is state


def test_the_hosts_oom_killer_is_not_the_jobs_limit() -> None:
    end = from_record(job(), record("oom", 0, 9), Witness())
    assert (end.reason, end.signal, end.state) == (Reason.SIGNALLED, 9, JobState.FAILED)
    assert "the host" in end.detail


@pytest.mark.parametrize("witness", WITNESSES)
@pytest.mark.parametrize(("code", "number"), ENDS)
def test_a_sigterm_from_outside(witness: Witness, code: int, number: int) -> None:
    end = from_record(job(), record("signal", code, number), witness)
    if witness.stopping or witness.blind:
        assert end == End(Reason.UNIT_STOPPED, code=code, signal=number)
    else:
        assert (end.reason, end.signal) == (Reason.SIGNALLED, number or SIGTERM)
        assert "systemctl kill" in end.detail


def test_a_cause_that_is_not_known_is_told() -> None:
    end = from_record(job(), record("a cause of another release, much too long to show"), Witness())
    assert end.reason is Reason.LOST
    assert "a cause of another release" in end.detail
    assert len(end.detail) < 100


@pytest.mark.parametrize(
    ("same_boot", "went", "stopping"), list(itertools.product((True, False), repeat=3))
)
def test_without_a_record(same_boot: bool, went: bool, stopping: bool) -> None:
    stopped = without_record(job(stop_by="me"), same_boot=same_boot, went=went, stopping=stopping)
    assert stopped == End(Reason.STOPPED, by="me")
    end = without_record(job(), same_boot=same_boot, went=went, stopping=stopping)
    if not same_boot:
        assert (end.reason, end.state) == (Reason.LOST, JobState.FAILED)
    elif not went:
        assert (end.reason, end.step) == (Reason.LAUNCH_FAILED, "go")
    elif stopping:
        assert (end.reason, end.signal, end.state) == (
            Reason.UNIT_STOPPED, 9, JobState.STOPPED,
        )  # fmt: skip
    else:
        assert (end.reason, end.signal, end.state) == (Reason.SIGNALLED, 9, JobState.FAILED)


@given(
    st.sampled_from(CAUSES), st.integers(0, 255), st.integers(0, 64), st.booleans(),
    st.sampled_from(WITNESSES), st.text(max_size=10),
)  # fmt: skip
def test_every_end_is_final_and_can_be_said(
    cause: str, code: int, number: int, own: bool, witness: Witness, by: str
) -> None:
    end = from_record(job(stop_by=by), record(cause, code, number, oom_own=own), witness)
    assert end.state in {JobState.COMPLETED, JobState.FAILED, JobState.STOPPED}
    assert (end.state is JobState.COMPLETED) == (end.reason is Reason.EXITED and end.code == 0)
    assert end.exit_code == (end.code if end.reason is Reason.EXITED else -1)
    assert str(end).startswith(end.reason)
