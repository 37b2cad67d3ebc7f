# SPDX-License-Identifier: MIT
"""`ctl`'s messages and the exit record: what is written is read, and nothing else is."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joblet.launch import protocol
from joblet.launch.protocol import ExitRecord, ProtocolError

unhurried = settings(max_examples=60, deadline=None)

whole_numbers = st.integers(-(2**63), 2**63)
texts = st.text(max_size=40)
counts = st.dictionaries(texts, whole_numbers, max_size=4)
records = st.builds(
    ExitRecord,
    job=texts,
    ended_by=texts,
    code=whole_numbers,
    signal=whole_numbers,
    step=texts,
    errno=whole_numbers,
    detail=texts,
    started_us=whole_numbers,
    ended_us=whole_numbers,
    oom_own=st.booleans(),
    usage=counts,
    rest=st.none() | counts,
    version=whole_numbers,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=4,
)
messages = st.dictionaries(texts.filter(lambda name: name != "t"), values, max_size=4)
depths = pytest.mark.parametrize("depth", [50, 900, 970, 1000, 5000, protocol.MAX_MESSAGE])
FIELDS = sorted(ExitRecord(job="j", rest={}).to_json())


def read(data: bytes) -> ExitRecord | None:
    try:
        record = ExitRecord.from_bytes(data)
    except ProtocolError as error:
        why = str(error)
    else:
        assert ExitRecord.from_bytes(record.to_bytes()) == record
        return record
    assert 0 < len(why) < 400
    return None


@unhurried
@given(records)
def test_an_exit_record_comes_back(record: ExitRecord) -> None:
    assert ExitRecord.from_bytes(record.to_bytes()) == record
    assert ExitRecord.from_json(record.to_json()) == record
    assert ("rest" in record.to_json()) == (record.rest is not None)
    # one line, as `cat` and a reader of lines want it
    assert record.to_bytes().count(b"\n") == 1


@unhurried
@given(records, st.data())
def test_an_exit_record_cut_short(record: ExitRecord, data: st.DataObject) -> None:
    whole = record.to_bytes().rstrip()
    assert read(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@unhurried
@given(records, st.data())
def test_a_damaged_exit_record(record: ExitRecord, data: st.DataObject) -> None:
    whole = bytearray(record.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(whole))


@unhurried
@given(st.binary(max_size=100))
@example(b"")
@example(b"[]")
@example(b'{"job": 1}')
@example(b"1" * 5000)
def test_garbage_is_no_exit_record(data: bytes) -> None:
    assert read(data) is None


@unhurried
@given(st.sampled_from(FIELDS), values)
def test_any_value_in_any_field(name: str, value: Any) -> None:
    read(json.dumps({"job": "j", name: value}).encode())


@pytest.mark.parametrize("name", [*FIELDS, "unknown"])
@depths
def test_nesting_in_any_field(name: str, depth: int) -> None:
    read(f'{{"job":"j","{name}":{"[" * depth}{"]" * depth}}}'.encode())
    read(f'{{"job":"j","{name}":{"[" * depth}'.encode())


@pytest.mark.parametrize(
    "record",
    [
        [],
        None,
        "job",
        {},
        {"job": 1},
        {"job": "j", "code": "0"},
        {"job": "j", "code": True},
        {"job": "j", "code": 0.0},
        {"job": "j", "oom_own": 1},
        {"job": "j", "usage": []},
        {"job": "j", "usage": {"cpu_usec": True}},
        {"job": "j", "rest": None},
        {"job": "j", "rest": {"out": "1"}},
        {"job": "j", "version": "1"},
    ],
)
def test_no_exit_record(record: Any) -> None:
    with pytest.raises(ProtocolError):
        ExitRecord.from_json(record)


def test_an_older_and_a_newer_program() -> None:
    """Fields that are missing have their defaults; fields that are unknown are ignored."""
    assert ExitRecord.from_json({"job": "j"}) == ExitRecord(job="j")
    newer = {"job": "j", "version": 2, "code": 3, "invented": [1]}
    assert ExitRecord.from_json(newer) == ExitRecord(job="j", code=3, version=2)
    assert protocol.OLDEST <= protocol.VERSION


@unhurried
@given(texts, messages)
def test_a_message_comes_back(kind: str, fields: dict[str, Any]) -> None:
    # as the programs call it, where the fields are keywords
    assert protocol.decode(protocol.encode(kind)) == (kind, {})
    data = json.dumps({"t": kind, **fields}).encode()
    assert protocol.decode(data) == (kind, fields)


@unhurried
@given(st.binary(max_size=100))
@example(b'{"t":1}')
@example(b'{"t":["hello"]}')
@example(b"{}")
@example(b'"hello"')
@example(b"1" * 5000)
def test_garbage_is_no_message(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(data)


@depths
def test_a_nested_message_is_refused_or_read(depth: int) -> None:
    """PID 1 decodes what its holder says: nothing may make it fall."""
    for data in (b"[" * depth, b'{"t":"stop","grace_us":' + b"[" * depth + b"]" * depth + b"}"):
        try:
            _, fields = protocol.decode(data)
        except ProtocolError:
            continue
        with pytest.raises(ProtocolError) as info:
            protocol.number(fields, "grace_us")
        assert len(str(info.value)) < 400


def test_a_message_that_the_other_end_has_no_room_for() -> None:
    assert len(protocol.encode("t", x="a" * (protocol.MAX_MESSAGE - 16))) == protocol.MAX_MESSAGE
    with pytest.raises(ProtocolError, match="more than"):
        protocol.encode("t", x="a" * (protocol.MAX_MESSAGE - 15))


@pytest.mark.parametrize("value", [-1, True, None, "1", 1.0, [1]])
def test_no_number(value: Any) -> None:
    with pytest.raises(ProtocolError, match="grace_us is"):
        protocol.number({"grace_us": value}, "grace_us")


def test_numbers() -> None:
    assert protocol.number({"grace_us": 0}, "grace_us") == 0
    assert protocol.number({"grace_us": 2**70}, "grace_us") == 2**70
    with pytest.raises(ProtocolError):
        protocol.number({}, "grace_us")
