# SPDX-License-Identifier: MIT
"""Limits as people write them."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnx import quantities as q

READERS: tuple[Callable[[str], Any], ...] = (
    q.percent,
    q.tasks,
    q.mebibytes,
    q.bytes_per_second,
    q.cores,
    q.duration,
)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (q.percent, "50", 50),
        (q.percent, "150%", 150),
        (q.tasks, "100", 100),
        (q.mebibytes, "512", 512),
        (q.mebibytes, "512M", 512),
        (q.mebibytes, "512mb", 512),
        (q.mebibytes, "512MiB", 512),
        (q.mebibytes, "2G", 2048),
        (q.mebibytes, "1.5G", 1536),
        (q.mebibytes, "2048K", 2),
        (q.mebibytes, "1T", 1 << 20),
        (q.bytes_per_second, "1000", 1000),
        (q.bytes_per_second, "10M", 10 << 20),
        (q.bytes_per_second, "10MB/s", 10 << 20),
        (q.bytes_per_second, "512B", 512),
        (q.bytes_per_second, "0.5K", 512),
        (q.rate, "10G", 10 << 30),
        (q.mebibytes_or_less, "0", 0),
        (q.mebibytes_or_less, "48", 48 << 20),
        (q.mebibytes_or_less, "64K", 64 << 10),
        (q.weight, "1", 1),
        (q.weight, "10000", 10_000),
        (q.cores, "0-3", "0-3"),
        (q.cores, "1,3,5-7", "1,3,5-7"),
        (q.duration, "30s", "30s"),
        (q.duration, "1h30m", "1h30m"),
        (q.duration, "1.5h", "1.5h"),
        (q.duration, "100ms", "100ms"),
        (q.duration, "90", "90s"),
        (q.duration, "0", "0s"),
    ],
)
def test_read(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (q.percent, "-5", "percent"),
        (q.percent, "1.5", "percent"),
        (q.percent, "٣", "percent"),
        (q.tasks, "", "processes"),
        (q.tasks, "99999999999", "too large"),
        (q.mebibytes, "512K", "whole MiB"),
        (q.mebibytes, "12Q", "'Q' is no unit"),
        (q.mebibytes, "12iB", "no unit"),
        (q.mebibytes, "9999999T", "too large"),
        (q.mebibytes, "-1", "number"),
        (q.mebibytes, "1e9", "no unit|number"),
        (q.bytes_per_second, "2G", "too large"),
        (q.bytes_per_second, "0.3", "whole number"),
        (q.rate, "9999999T", "too large"),
        (q.weight, "0", "1 to 10000"),
        (q.weight, "10001", "1 to 10000"),
        (q.weight, "50%", "1 to 10000"),
        (q.cores, "3-1", "ends before it begins"),
        (q.cores, "0-", "CPU numbers"),
        (q.cores, "all", "CPU numbers"),
        (q.duration, "5 minutes", "30s"),
        (q.duration, "-5s", "30s"),
        (q.duration, "s", "30s"),
        (q.duration, "1d", "30s"),
    ],
)
def test_refuse(read: Callable[[str], Any], text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(text)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in READERS:
        with contextlib.suppress(ValueError):
            value = read(text)
            assert isinstance(value, str) or 0 <= value <= q.INT32_MAX


@given(st.integers(min_value=0, max_value=q.INT32_MAX))
def test_numbers_come_back(value: int) -> None:
    for read in (q.percent, q.tasks, q.mebibytes, q.bytes_per_second):
        assert read(str(value)) == value
