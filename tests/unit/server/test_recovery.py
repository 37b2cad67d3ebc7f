# SPDX-License-Identifier: MIT
"""What a server does with what it finds: the whole table, and that it comes to rest."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet import link
from joblet.model import FINAL, Job, JobState
from joblet.server.recovery import (
    Abandon,
    Acknowledge,
    Action,
    CleanUp,
    ReadResults,
    TakeBack,
    Vanished,
    actions,
)
from tests.unit.server.support import job, job_id

ID = job_id(1)
UNFINISHED = [state for state in JobState if state not in FINAL]


@pytest.mark.parametrize("state", UNFINISHED)
@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        (link.LIVE, TakeBack),
        (link.GONE, ReadResults),
        (link.NEVER, ReadResults),
        (None, Vanished),
    ],
)
def test_unfinished(
    state: JobState, directory: str | None, kind: type[TakeBack | ReadResults | Vanished]
) -> None:
    record = job(state=state)
    directories = {} if directory is None else {ID: directory}
    assert actions([record], [], directories) == [kind(record)]


@pytest.mark.parametrize(
    ("finished", "directory", "action"),
    [
        ([ID], link.LIVE, Acknowledge(ID)),
        ([ID], link.GONE, CleanUp(ID)),
        ([ID], link.NEVER, CleanUp(ID)),
        ([], link.LIVE, Abandon(ID)),
        ([], link.GONE, CleanUp(ID)),
        ([], link.NEVER, CleanUp(ID)),
    ],
)
def test_finished_or_unknown(finished: list[str], directory: str, action: Action) -> None:
    assert actions([], finished, {ID: directory}) == [action]


def test_nothing_is_nothing() -> None:
    assert actions([], [], {}) == []
    assert actions([], [ID], {}) == []  # finished and gone: as it should be


@dataclasses.dataclass(frozen=True)
class Found:
    """One job as the start of a server finds it."""

    record: JobState | None
    directory: str | None


FOUND = st.dictionaries(
    st.integers(1, 30),
    st.builds(
        Found,
        st.none() | st.sampled_from(JobState),
        st.none() | st.sampled_from([link.LIVE, link.GONE, link.NEVER]),
    ),
    max_size=12,
)


def ask(found: dict[int, Found]) -> list[Action]:
    unfinished = [
        job(number, state=one.record)
        for number, one in found.items()
        if one.record is not None and one.record not in FINAL
    ]
    finished = [job_id(number) for number, one in found.items() if one.record in FINAL]
    directories = {job_id(n): one.directory for n, one in found.items() if one.directory}
    return actions(unfinished, finished, directories)


def carried_out(action: Action, one: Found) -> Found:
    match action:
        case TakeBack():
            return Found(JobState.RUNNING, link.LIVE)
        case ReadResults() | Vanished():
            return Found(JobState.FAILED, None)
        case Acknowledge() | CleanUp() | Abandon():
            return Found(one.record, None)


def job_of(action: Action) -> str:
    match action:
        case TakeBack(record) | ReadResults(record) | Vanished(record):
            return record.id
        case Acknowledge(found) | CleanUp(found) | Abandon(found):
            return found


@given(FOUND)
def test_each_job_at_most_once_and_in_order(found: dict[int, Found]) -> None:
    jobs = [job_of(action) for action in ask(found)]
    assert jobs == sorted(set(jobs))
    # nothing that needs something is passed over
    needy = {
        job_id(n) for n, one in found.items() if one.directory or one.record in set(UNFINISHED)
    }
    assert set(jobs) == needy


@given(FOUND, st.randoms(use_true_random=False))
def test_it_comes_to_rest(found: dict[int, Found], random: "st.DataObject") -> None:
    """Carried out, wholly or in part, the same question has no other answer than before."""
    first = ask(found)
    numbers = {job_id(number): number for number in found}
    partly = dict(found)
    for action in first:
        if random.random() < 0.5:  # type: ignore[attr-defined]
            number = numbers[job_of(action)]
            partly[number] = carried_out(action, found[number])
    again = ask(partly)
    for action in again:
        unchanged = partly[numbers[job_of(action)]] == found[numbers[job_of(action)]]
        assert action in first if unchanged else isinstance(action, TakeBack)
    done = dict(partly)
    for action in again:
        number = numbers[job_of(action)]
        done[number] = carried_out(action, partly[number])
    # all that is left to do is to hold what runs
    assert all(isinstance(action, TakeBack) for action in ask(done))


def test_the_input_is_left_alone() -> None:
    records: list[Job] = [job(2), job(1)]
    assert actions(iter(records), iter(()), {}) == [Vanished(job(1)), Vanished(job(2))]
