# SPDX-License-Identifier: MIT
"""Figures on their way to people: tables for a terminal, and one for a document."""

import datetime
import functools

import pytest

from tests.bench import document, report
from tests.bench.guest.errors import Broken
from tests.bench.guest.measure import broken, in_turn, percentile, row

OURS = row("joblet", [1.0, 2.0, 3.0], unit="GB/s", ours=True, note="every byte")
PEER = row("cat > file", [4.0], unit="GB/s")
TABLE = {"title": "1 job", "rows": [OURS, PEER, broken("podman", "not\n there")]}
DOCUMENT = """# Benchmarks
<!-- figures: begin -->
old
<!-- figures: end -->
the end
"""


def test_a_peer_is_shown_with_how_many_times_ours_is_its_figure() -> None:
    title, _, ours, peer, missing = report.text(TABLE).splitlines()
    assert title == "1 job, GB/s"
    assert ours.split() == ["joblet", "2.00", "1.20", "2.80", "3", "every", "byte"]
    assert peer.split() == ["cat", ">", "file", "4.00", "4.00", "4.00", "1", "0.50"]
    assert missing.strip() == "podman" + " " * 35 + "not measured: not there"


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12346"), (123.456, "123.5"), (1.2345, "1.23"), (0.01234, "0.0123")],
)
def test_a_figure_has_about_three_digits(value: float, text: str) -> None:
    assert report.short(value) == text


def test_a_figure_of_nothing_has_no_ratio() -> None:
    assert report.ratio(row("idle", [0.0]), 2.0) == ""
    assert report.ratio(PEER, None) == ""


def test_a_run_replaces_its_own_figures_in_the_document() -> None:
    outcome = {"command": "make bench", "where": "2 cores", "tables": [TABLE]}
    text = document.figures(outcome, datetime.date(2024, 5, 6))
    assert document.put(DOCUMENT, "figures", text).splitlines() == [
        "# Benchmarks",
        "<!-- figures: begin -->",
        "2024-05-06, `make bench`: 2 cores",
        "",
        "| | median | p10 to p90 | n | ours/peer | |",
        "|---|--:|--:|--:|--:|---|",
        "| **1 job, GB/s** | | | | | |",
        "| joblet | 2.00 | 1.20 to 2.80 | 3 |  | every byte |",
        "| cat &gt; file | 4.00 |  | 1 | 0.50 |  |",
        "| podman | | | | | not measured: not there |",
        "<!-- figures: end -->",
        "the end",
    ]


def test_a_document_without_a_place_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match="slow: begin"):
        document.put(DOCUMENT, "slow", "")


def test_nobody_always_comes_after_the_same_one() -> None:
    seen: list[str] = []

    def way(name: str) -> float:
        seen.append(name)
        return 1.0

    results, errors = in_turn({name: functools.partial(way, name) for name in "abc"}, 2)
    assert "".join(seen) == "abcbcacab"
    assert results == {name: [1.0, 1.0] for name in "abc"}
    assert errors == {}
    seen.clear()
    ways = {name: functools.partial(way, name) for name in "abc"}
    results, errors = in_turn(ways, 3, first_counts=True, fewer={"b": 1})
    assert "".join(seen) == "abccaca"
    assert results == {"a": [1.0] * 3, "b": [1.0], "c": [1.0] * 3}
    assert errors == {}


def test_who_breaks_is_left_out_from_then_on() -> None:
    calls = 0

    def breaks() -> float:
        nonlocal calls
        calls += 1
        raise Broken("no")

    results, errors = in_turn({"good": lambda: 1.0, "bad": breaks}, 3)
    assert results == {"good": [1.0, 1.0, 1.0]}
    assert errors == {"bad": "no"}
    assert calls == 1


def test_percentiles() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(Broken):
        percentile([], 50)
