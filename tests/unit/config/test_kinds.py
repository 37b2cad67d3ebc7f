# SPDX-License-Identifier: MIT
"""What settings may be, and Go's durations."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.config import kinds

UNITS = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def refused(kind: Callable[[object], object], value: object) -> bool:
    try:
        kind(value)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("1h", 3_600_000_000),
        ("100ms", 100_000),
        ("1m30s", 90_000_000),
        ("1.5s", 1_500_000),
        ("2h45m0.5s", 9_900_500_000),
        ("250us", 250),
        ("250µs", 250),
        ("1ns", 1),  # never 0
        ("1001ns", 2),
        ("1.s", 1_000_000),
    ],
)
def test_durations_of_go(text: str, microseconds: int) -> None:
    assert kinds.duration_us(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "5", "1", "s", "-1s", "+1s", "1 s", "1d", "1h-1m", "1e3s", "١s"]
)
def test_what_is_no_duration(text: str) -> None:
    assert refused(lambda value: kinds.duration_us(str(value)), text)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1, max_size=6
    )
)
def test_a_duration_is_the_sum_of_its_parts_rounded_up(parts: list[tuple[int, str]]) -> None:
    nanoseconds = sum(number * UNITS[unit] for number, unit in parts)
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert kinds.duration_us(text) == -(-nanoseconds // 1000)


@given(st.decimals(0, 1000, places=6))
def test_fractions_of_a_unit(number: object) -> None:
    assert kinds.duration_us(f"{number}s") == Fraction(str(number)) * 10**6


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("1KB", 1024),
        ("1 MiB", 1 << 20),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        ("9B", 9),
    ],
)
def test_sizes_have_the_factor_1024(value: object, size: int) -> None:
    assert kinds.Size(1, 1 << 50)(value) == size


@pytest.mark.parametrize("value", ["", "MB", "5XB", "-1", "1 0", -1, 0, True, 1.5, [], None])
def test_what_is_no_size(value: object) -> None:
    assert refused(kinds.Size(1, 1 << 50), value)


def test_zero_may_have_a_meaning_of_its_own() -> None:
    kind = kinds.Whole(16, 32, "none")
    assert kind(0) == 0
    assert kind.allowed == "a number from 16 to 32, or 0 for none"
    for value in (1, 15, 33, True, "16", 16.0):
        assert refused(kind, value)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("[::1]", "::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("localhost", "localhost"),
        ("node-1.example.org", "node-1.example.org"),
    ],
)
def test_addresses(value: str, address: str) -> None:
    assert kinds.Address()(value) == address


@pytest.mark.parametrize(
    "value",
    ["", "300.1.1.1", "10.0.0.1:50051", "a b", "-a", "a..b", "[host]", "a" * 254, "é.fr", 5, None],
)
def test_what_is_no_address(value: object) -> None:
    assert refused(kinds.Address(), value)


def test_there_are_4094_ranges_of_ids() -> None:
    assert kinds.MAX_JOBS == 4094
    assert (kinds.UID_LAST + 1 - kinds.UID_FIRST) % kinds.UIDS_PER_JOB == 0
