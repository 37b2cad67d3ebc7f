# SPDX-License-Identifier: MIT
"""The plan of a launch: what is written is read, and nothing else is."""

import dataclasses
import json
import string
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joblet import config
from joblet.launch.plan import (
    MAX_STRING,
    MAX_STRINGS,
    MAX_US,
    PROFILES,
    RLIMITS,
    VERSION,
    Plan,
    PlanError,
)

unhurried = settings(max_examples=60, deadline=None)

JOB = "01234567-89ab-cdef-0123-456789abcdef"

# what execve can take: text that UTF-8 can hold, without NUL
texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=50)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
times = st.integers(0, MAX_US)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=4
)
plans = st.builds(
    Plan,
    job=st.uuids().map(str),
    path=texts.filter(bool),
    argv=st.lists(texts, min_size=1, max_size=8).map(tuple),
    env=st.dictionaries(names, texts, max_size=8),
    uid_base=times,
    cwd=texts.map(lambda text: f"/{text}"),
    hostname=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    description=texts,
    merge=st.booleans(),
    timeout_us=times,
    grace_us=times,
    stop_us=times,
    profile=texts,
    rlimits=st.dictionaries(st.sampled_from(RLIMITS), st.integers(), max_size=3),
    properties=st.dictionaries(texts, values, max_size=4),
)


SAMPLE = Plan(
    job=JOB,
    path="/usr/bin/env",
    argv=("env", "", "a b", "ü\n"),
    env={"A": "b=c", "EMPTY": "", "_1": "\t☃"},
    uid_base=0x70000000,
    cwd="/work/in",
    hostname="job-1",
    description="rnx job: env",
    merge=True,
    timeout_us=1,
    grace_us=2,
    stop_us=3,
    properties={"MemoryMax": 1 << 30, "AllowedCPUs": "0-3,7"},
    rlimits={"nofile": 4096, "core": 0},
)


def fields(**changes: Any) -> dict[str, Any]:
    plan = Plan(job=JOB, path="/bin/true", argv=("true",), env={"A": "b"}, uid_base=7)
    made = dataclasses.asdict(plan)
    del made["filters"]
    return {**made, **changes}


def refusal(**changes: Any) -> str:
    with pytest.raises(PlanError) as info:
        Plan.from_bytes(json.dumps(fields(**changes)).encode())
    return str(info.value)


def read(data: bytes, *, again: bool = True) -> Plan | None:
    """Never another exception; and what is read is written and read again as the same."""
    try:
        plan = Plan.from_bytes(data)
    except PlanError as error:
        why = str(error)
    else:
        assert not again or Plan.from_bytes(plan.to_bytes()) == plan
        return plan
    assert 0 < len(why) < 400  # it goes into an answer and a log
    return None


@unhurried
@given(plans)
def test_round_trip(plan: Plan) -> None:
    assert Plan.from_bytes(plan.to_bytes()) == plan


def test_what_may_be_left_out() -> None:
    least = {"job": JOB, "path": "/a", "argv": ["a"], "env": {}, "uid_base": 0, "version": VERSION}
    plan = Plan.from_bytes(json.dumps(least).encode())
    assert plan == Plan(job=JOB, path="/a", argv=("a",), env={}, uid_base=0)
    assert plan.cwd == "/work"
    assert plan.unit == f"joblet-{JOB}.scope"
    assert plan.streams == ("out", "err")
    assert dataclasses.replace(plan, merge=True).streams == ("out",)
    for name in least:
        rest = {key: value for key, value in least.items() if key != name}
        with pytest.raises(PlanError, match=f"{name} is missing"):
            Plan.from_bytes(json.dumps(rest).encode())


def test_truncated() -> None:
    whole = SAMPLE.to_bytes()
    assert read(whole) == SAMPLE
    assert [read(whole[:size]) for size in range(len(whole))] == [None] * len(whole)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged(changes: list[tuple[int, int]]) -> None:
    """Bytes that change give no plan or another plan, and never anything else."""
    data = bytearray(SAMPLE.to_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte
    read(bytes(data))


@unhurried
@given(st.binary(max_size=200))
@example(b"")
@example(b"null")
@example(b"[]")
@example(b"NaN")
@example(b"\xff\xfe{\x00}\x00")
@example(b'"\\ud800"')
@example(b"1" * 5000)
def test_garbage(data: bytes) -> None:
    assert read(data) is None


@unhurried
@given(st.sampled_from(sorted(fields())), values)
def test_any_value_in_any_field(name: str, value: Any) -> None:
    read(json.dumps(fields(**{name: value})).encode())


@pytest.mark.parametrize("name", sorted(fields()))
@pytest.mark.parametrize("depth", [50, 900, 950, 980, 1000, 5000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_nesting_in_any_field(name: str, depth: int, brackets: str) -> None:
    """As deep as the parser goes and deeper: its limit and repr's are not the same."""
    opening, closing = brackets[:-1], brackets[-1]
    nested = opening * depth + ("1" if ":" in brackets else "") + closing * depth
    text = json.dumps(fields(**{name: "HERE"})).replace('"HERE"', nested)
    read(text.encode(), again=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": VERSION + 1}, f"version {VERSION + 1} is not {VERSION}"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"version": 1.0}, "version 1.0"),
        ({"version": "x" * 1000}, "version"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"y" * 1000: 1}, "unknown field"),
        ({"job": "../../etc"}, "job is"),
        ({"job": JOB.upper()}, "job is"),
        ({"job": f"{JOB}\n"}, "job is"),
        ({"job": JOB.replace("0", "٠")}, "job is"),
        ({"job": 1}, "job is 1"),
        ({"hostname": "a.b"}, "hostname is"),
        ({"hostname": "-a"}, "hostname is"),
        ({"hostname": "a" * 64}, "hostname is"),
        ({"hostname": ""}, "hostname is"),
        ({"path": ""}, "path is empty"),
        ({"path": None}, "path is not a string"),
        ({"path": "a\0b"}, "path has a NUL in it"),
        ({"path": "a" * MAX_STRING}, f"path is longer than {MAX_STRING - 1} bytes"),
        ({"path": "é" * (MAX_STRING // 2)}, "path is longer"),
        ({"path": "\ud800"}, "path is not Unicode text"),
        ({"cwd": "work"}, "cwd is not absolute"),
        ({"cwd": ""}, "cwd is not absolute"),
        ({"cwd": "/\0"}, "cwd has a NUL"),
        ({"description": 3}, "description is not a string"),
        ({"profile": []}, "profile is not a string"),
        ({"argv": []}, "argv is not a list of at least one string"),
        ({"argv": "true"}, "argv is not a list"),
        ({"argv": {"0": "true"}}, "argv is not a list"),
        ({"argv": ["a", 1]}, "argv is not a string"),
        ({"argv": ["a\0"]}, "argv has a NUL"),
        ({"argv": ["a\udcff"]}, "argv is not Unicode text"),
        ({"argv": ["a"] * (MAX_STRINGS + 1)}, "argv is not a list"),
        ({"env": []}, "env is not an object"),
        ({"env": {"": "a"}}, "env: '' is not a name"),
        ({"env": {"A=B": "a"}}, "env: 'A=B' is not a name"),
        ({"env": {"A\n": "a"}}, "is not a name"),
        ({"env": {"1A": "a"}}, "env: '1A' is not a name"),
        ({"env": {"Ä": "a"}}, "is not a name"),
        ({"env": {"A": None}}, "env: A is not a string"),
        ({"env": {"A": "\0"}}, "env: A has a NUL"),
        ({"env": {f"A{n}": "" for n in range(MAX_STRINGS + 1)}}, "env is not an object"),
        ({"uid_base": -1}, "uid_base is not a number"),
        ({"uid_base": True}, "uid_base is not a number"),
        ({"uid_base": 1.5}, "uid_base is not a number"),
        ({"uid_base": "0"}, "uid_base is not a number"),
        ({"timeout_us": MAX_US + 1}, "timeout_us is not a number"),
        ({"grace_us": None}, "grace_us is not a number"),
        ({"stop_us": -1}, "stop_us is not a number"),
        ({"merge": 0}, "merge is not true or false"),
        ({"merge": "yes"}, "merge is not true or false"),
        ({"properties": []}, "properties is not an object"),
        ({"rlimits": []}, "rlimits is not an object"),
        ({"rlimits": {"nproc": 1}}, "rlimits: 'nproc' is 1"),
        ({"rlimits": {"core": "0"}}, "rlimits: 'core' is '0'"),
        ({"rlimits": {"core": True}}, "rlimits: 'core' is True"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


def test_the_longest_strings_pass() -> None:
    longest = "a" * (MAX_STRING - 1)
    changes = {"path": longest, "argv": [longest], "env": {"A": longest}, "cwd": f"/{longest[1:]}"}
    plan = read(json.dumps(fields(**changes)).encode())
    assert plan is not None
    assert plan.argv == (longest,)


def test_a_frozen_plan_is_plain_data() -> None:
    plan = Plan(job=JOB, path="/a", argv=("a",), env={}, uid_base=0, journal=True)
    plan = dataclasses.replace(plan, rlimits={"core": 0})
    names = {f.name for f in dataclasses.fields(Plan)}
    assert set(json.loads(plan.to_bytes())) == names - {"filters"}
    # what is younger than the format is there only if it is used
    stored = dataclasses.replace(plan, journal=False, rlimits={})
    assert not {"journal", "rlimits"} & set(json.loads(stored.to_bytes()))
    assert Plan.from_bytes(stored.to_bytes()) == stored
    assert all(letter in string.printable for letter in plan.to_bytes().decode())


def test_filters_are_init_modes_alone() -> None:
    """A server that was taken over brings none of its own, and takes none away."""
    assert refusal(filters=[]) == "unknown field 'filters'"
    with_own = dataclasses.replace(SAMPLE, filters=((b"12345678", 0),))
    assert b"filters" not in with_own.to_bytes()
    assert Plan.from_checked(with_own.to_checked()).filters == ()


def test_the_profiles_and_limits_that_the_configuration_knows() -> None:
    assert set(PROFILES) == set(config.PROFILES)
    assert set(RLIMITS) == set(config.RLIMITS)


def test_a_checked_plan_reaches_pid1_as_it_is() -> None:
    filters = ((bytes(range(256)), 0), (b"\0" * 8, 2))
    handed = Plan.from_checked(SAMPLE.to_checked(filters))
    assert handed == dataclasses.replace(SAMPLE, properties={}, filters=filters)
    assert (handed.argv, handed.env) == (SAMPLE.argv, SAMPLE.env)
