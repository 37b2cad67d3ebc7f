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
