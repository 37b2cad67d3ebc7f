# SPDX-License-Identifier: MIT
"""The transition table: which moves there are, and that nothing leaves a final state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.errors import FailedPrecondition, Internal
from joblet.model import FINAL, TRANSITIONS, End, JobState, Reason, move
from tests.unit.server.support import job

S = JobState


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {S.COMPLETED, S.FAILED, S.STOPPED, S.CANCELED} == FINAL
    for state, onward in TRANSITIONS.items():
        assert state not in onward


@given(st.sampled_from(JobState), st.sampled_from(JobState))
def test_a_move_is_in_the_table_or_an_error_that_names_it(before: JobState, to: JobState) -> None:
    record = job(state=before)
    if to in TRANSITIONS[before]:
        after = move(record, to, started_us=5)
        assert (after.state, after.started_us, after.id) == (to, 5, record.id)
    elif before in FINAL:
        with pytest.raises(FailedPrecondition, match=rf"not running: .*\(status: {before}\)"):
            move(record, to)
    else:
        with pytest.raises(Internal, match=f"it is {before}"):
            move(record, to)
    assert record.state is before  # frozen


@given(st.lists(st.sampled_from(JobState), max_size=12))
def test_a_final_state_is_never_left(wanted: list[JobState]) -> None:
    record = job(state=S.PENDING)
    ended: JobState | None = None
    for to in wanted:
        try:
            record = move(record, to)
        except (FailedPrecondition, Internal):
            continue
        assert ended is None
        if record.final:
            ended = record.state
    assert ended in (None, record.state)


def test_every_state_can_come_to_an_end() -> None:
    reached = set(FINAL)
    for _ in TRANSITIONS:
        reached |= {state for state, onward in TRANSITIONS.items() if onward & reached}
    assert reached == set(JobState)


@pytest.mark.parametrize("reason", list(Reason))
def test_ends_move_running_jobs(reason: Reason) -> None:
    """Whatever ended a job, each state it may be in then lets it."""
    for before in (S.INITIALIZING, S.RUNNING, S.STOPPING):
        for code in (0, 1):
            end = End(reason, code=code)
            assert move(job(state=before), end.state, end=end).final


@pytest.mark.parametrize(
    ("end", "hint"),
    [
        (End(Reason.EXITED), "it has ended already, with exit code 0"),
        (End(Reason.EXITED, code=3), "it has ended already, with exit code 3"),
        (End(Reason.STOPPED, by="ann"), "it has ended already: stopped(by ann)"),
    ],
)
def test_a_stop_that_comes_too_late(end: End, hint: str) -> None:
    record = job(state=end.state, end=end)
    with pytest.raises(FailedPrecondition) as caught:
        move(record, S.STOPPING)
    error = caught.value
    assert str(error) == (
        f"cannot stop job {record.id}: job is not running: {record.id} (status: {end.state})"
    )
    assert error.hint == hint


@pytest.mark.parametrize(
    ("end", "text", "code"),
    [
        (End(Reason.LAUNCH_FAILED, step="exec", errno=13, detail="cannot start it: no"),
         "launch-failed(exec): cannot start it: no", 1),
        (End(Reason.LAUNCH_FAILED, step="chdir", errno=2, detail="cannot enter it: no"),
         "launch-failed(chdir): cannot enter it: no", 1),
        # of a record that an earlier version wrote
        (End(Reason.LAUNCH_FAILED, step="bind /usr", errno=13),
         "launch-failed(bind /usr): Permission denied", -1),
        (End(Reason.LAUNCH_FAILED, step="go", detail="withdrawn"),
         "launch-failed(go): withdrawn", -1),
        (End(Reason.LAUNCH_FAILED, step="launch"), "launch-failed(launch)", -1),
        (End(Reason.EXITED, code=7), "exited(7)", 7),
        (End(Reason.SIGNALLED, signal=9), "signalled(9)", -1),
        (End(Reason.STOPPED, code=3), "stopped", -1),
    ],
)  # fmt: skip
def test_an_end_in_words_and_on_the_wire(end: End, text: str, code: int) -> None:
    assert str(end) == text
    assert end.exit_code == code
