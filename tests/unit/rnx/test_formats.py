# SPDX-License-Identifier: MIT
"""Times, spans and sizes as the published rnx writes them."""

import pytest

from rnx.commands.list import command_line
from rnx.formats import list_time, rfc3339, size, span, status_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (59.94, "59.9s"),
        (60, "1.0m"),
        (3599, "60.0m"),
        (3600, "1h"),
        (5400, "1h30m"),
        (86400, "1d"),
        (90000, "1d1h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KB"),
        (64 << 20, "64 MB"),
        (1 << 50, "1024 TB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("wire", "listed", "shown"),
    [
        ("2025-11-24T15:04:05Z", "2025-11-24 15:04:05", "2025-11-24 15:04:05 UTC"),
        ("2025-11-24T15:04:05+00:00", "2025-11-24 15:04:05", "2025-11-24 15:04:05 UTC"),
        ("2025-11-24T15:04:05-07:00", "2025-11-24 15:04:05", "2025-11-24 15:04:05 -0700"),
        ("", "N/A", "Not available"),
        ("soon", "soon", "soon"),
    ],
)
def test_times_keep_their_zone(wire: str, listed: str, shown: str) -> None:
    assert (list_time(wire), status_time(wire)) == (listed, shown)


def test_rfc3339() -> None:
    assert rfc3339(1_763_996_645.9) == "2025-11-24T15:04:05Z"


def test_commands_are_one_line_of_at_most_eighty() -> None:
    assert command_line("a", ["b", "c"]) == "a b c"
    assert command_line("a", ["b\nc"]) == "a b..."
    assert command_line("x" * 80, []) == "x" * 80
    assert command_line("x" * 81, []) == "x" * 77 + "..."
