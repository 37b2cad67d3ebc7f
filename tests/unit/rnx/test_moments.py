# SPDX-License-Identifier: MIT
"""Moments as people write them."""

import datetime

import pytest

from rnx import moments

NOW = 1_764_000_000.5  # 2025-11-24T16:00:00.5Z
PARIS = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [
        ("0s", 0),
        ("90s", 90),
        ("250ms", 0.25),
        ("10m", 600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        (" 1d1s ", 86_401),
    ],
)
def test_how_long_ago(text: str, ago_s: float) -> None:
    assert moments.parse(text, now=NOW) == round((NOW - ago_s) * 1e6)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2025-11-24T16:00:00Z", 1_764_000_000_000_000),
        ("2025-11-24t16:00:00z", 1_764_000_000_000_000),
        ("2025-11-24T17:00:00+01:00", 1_764_000_000_000_000),
        ("2025-11-24 16:00:00.000001Z", 1_764_000_000_000_001),
        ("2025-11-24T16:00:00.123456789Z", 1_764_000_000_123_456),
        ("2025-11-24T17:00:00", 1_764_000_000_000_000),
        ("2025-11-24T17:00", 1_764_000_000_000_000),
        ("2025-11-24", 1_763_938_800_000_000),
    ],
)
def test_times(text: str, us: int) -> None:
    assert moments.parse(text, now=NOW, zone=PARIS) == us


def test_a_time_without_a_zone_is_the_systems() -> None:
    local = datetime.datetime(2025, 11, 24, 16).astimezone()
    assert moments.parse("2025-11-24T16:00", now=NOW) == round(local.timestamp() * 1e6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10",
        "-10m",
        "10m ago",
        "1..5s",
        "1h 30m",
        "yesterday",
        "16:00",
        "2025-11-24T",
        "2025-11-24T16",
        "20251124",
        "2025-W48-1",
        "2025-11-24T16:00:00+1",
        "١m",
    ],
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="write a time as in "):
        moments.parse(text, now=NOW)


@pytest.mark.parametrize(
    "text", ["2025-13-01", "2025-02-30T00:00:00Z", "2025-11-24T24:01Z", "2025-11-24T16:00:61Z"]
)
def test_a_time_that_is_not_there(text: str) -> None:
    with pytest.raises(ValueError, match="there is no such time"):
        moments.parse(text, now=NOW)


@pytest.mark.parametrize("text", ["99999d", "1969-12-31T23:00:00Z", "99999999999999999999d"])
def test_before_all_logs(text: str) -> None:
    with pytest.raises(ValueError, match="before 1970"):
        moments.parse(text, now=NOW)
