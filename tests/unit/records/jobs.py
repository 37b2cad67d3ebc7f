# SPDX-License-Identifier: MIT
"""Jobs for the tests of the records."""

from typing import Any

from hypothesis import strategies as st

from joblet.model import End, Job, JobSpec, JobState, Limits, Reason

SMALL = st.text(max_size=20)
NUMBER = st.integers(0, 2**63 - 1)
LIMITS = st.builds(Limits, NUMBER, SMALL, NUMBER, NUMBER, NUMBER)
STRINGS = st.dictionaries(SMALL, SMALL, max_size=3)


def make(job_id: str, *, name: str = "", state: JobState = JobState.PENDING, **more: Any) -> Job:
    return Job(id=job_id, spec=JobSpec("sh", name=name), state=state, created_us=1, **more)


def numbered(number: int, **more: Any) -> Job:
    """A job with an id like a UUID's, of which no two begin alike."""
    return make(f"{number:08x}-0000-4000-8000-000000000000", **more)


def jobs() -> st.SearchStrategy[Job]:
    return st.builds(
        Job,
        id=SMALL.filter(lambda text: "\0" not in text),
        spec=st.builds(
            JobSpec,
            SMALL,
            st.lists(SMALL, max_size=3).map(tuple),
            SMALL,
            STRINGS,
            STRINGS,
            SMALL,
            SMALL,
            LIMITS,
            NUMBER,
            st.booleans(),
        ),
        state=st.sampled_from(JobState),
        created_us=NUMBER,
        created_by=SMALL,
        started_us=NUMBER,
        ended_us=NUMBER,
        end=st.none()
        | st.builds(End, st.sampled_from(Reason), NUMBER, NUMBER, SMALL, SMALL, NUMBER, SMALL),
        stop_by=SMALL,
        unit=SMALL,
        pid=NUMBER,
        cgroup=SMALL,
        uid_base=NUMBER,
        effective=LIMITS,
        not_enforced=st.lists(SMALL, max_size=3).map(tuple),
        usage=st.dictionaries(SMALL, NUMBER, max_size=3),
    )
