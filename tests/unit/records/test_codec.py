# SPDX-License-Identifier: MIT
"""Jobs as text and back."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.model import Job, JobState
from joblet.server import records_codec as codec
from tests.unit.records.jobs import jobs, make


@given(jobs())
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    back = codec.decode(codec.FORMAT, codec.encode(job))
    assert back == job
    assert type(back.state) is JobState
    assert type(back.spec.args) is tuple
    assert type(back.not_enforced) is tuple


def test_the_text_is_what_the_docstring_says() -> None:
    """Whoever changes this needs a new format number: older servers have written it."""
    job = make("a", name="n", state=JobState.RUNNING)
    assert json.loads(codec.encode(job)) | {"spec": {}} == {
        "id": "a",
        "spec": {},
        "state": "RUNNING",
        "created_us": 1,
        "created_by": "",
        "started_us": 0,
        "ended_us": 0,
        "end": None,
        "stop_by": "",
        "unit": "",
        "pid": 0,
        "cgroup": "",
        "uid_base": 0,
        "effective": {
            "max_cpu": 0,
            "cpu_cores": "",
            "max_memory": 0,
            "max_iobps": 0,
            "max_tasks": 0,
            "cpu_weight": 0,
            "memory_high": 0,
            "max_swap": None,
            "max_read_bps": 0,
            "max_write_bps": 0,
            "io_weight": 0,
        },
        "not_enforced": [],
        "usage": {},
    }


def test_fields_that_came_later_have_their_defaults() -> None:
    job = codec.decode(1, '{"id":"a","spec":{"command":"sh"},"state":"RUNNING","created_us":1}')
    assert job == make("a", state=JobState.RUNNING)


def test_a_field_that_is_not_known_is_left_out() -> None:
    text = codec.encode(make("a"))
    assert codec.decode(1, text[:-1] + ',"colour":"red"}') == make("a")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": 7}, "id: 7 is not of type str"),
        ({"created_us": "1"}, "created_us: '1' is not of type int"),
        ({"created_us": True}, "created_us: True is not of type int"),
        ({"created_us": 1.5}, "created_us: 1.5"),
        ({"state": "ASLEEP"}, "state: 'ASLEEP' is not a valid JobState"),
        ({"spec": {}}, "missing .* 'command'"),
        ({"spec": {"command": "sh", "args": "abc"}}, "spec: args: 'abc' is not of type list"),
        ({"spec": {"command": "sh", "environment": {"A": 1}}}, "spec: environment: 1 is not"),
        ({"spec": {"command": "sh", "merge": 1}}, "spec: merge: 1 is not of type bool"),
        ({"end": {"reason": "bored"}}, "end: reason: 'bored'"),
        ({"end": []}, r"end: \[\] is not of type dict"),
        ({"usage": {"cpu": "much"}}, "usage: 'much'"),
        ({"id": "x" * 1000, "pid": "y" * 1000}, "pid: 'y{39}"),
    ],
)
def test_what_is_no_job_is_refused(change: dict[str, Any], why: str) -> None:
    value = json.loads(codec.encode(make("a"))) | change
    with pytest.raises(ValueError, match=why):
        codec.decode(1, json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|not of type|missing|nested"):
        codec.decode(1, text)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2, and this server knows 1"):
        codec.decode(2, codec.encode(make("a")))


@given(st.text(), st.integers(0, 30))
def test_damaged_text_is_refused_or_a_job(junk: str, at: int) -> None:
    text = codec.encode(make("a"))
    try:
        job = codec.decode(1, text[:at] + junk + text[at:])
    except ValueError:
        return
    assert dataclasses.is_dataclass(job)
