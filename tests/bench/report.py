# SPDX-License-Identifier: MIT
"""Tables for people: a line a row, and how many times the peer's figure is ours."""

from collections.abc import Mapping, Sequence
from typing import Any

NAME_WIDTH = 42


def text(table: Mapping[str, Any]) -> str:
    """One table. `ours/peer` is Joblet's median divided by the row's."""
    rows: Sequence[Mapping[str, Any]] = table["rows"]
    unit = next((row["unit"] for row in rows if "unit" in row), "")
    ours = next((row["median"] for row in rows if row.get("ours")), None)
    head = f"{'':{NAME_WIDTH}} {'median':>8} {'p10':>8} {'p90':>8} {'n':>5}  ours/peer"
    lines = [f"{table['title']}, {unit}" if unit else table["title"], head]
    lines += [_line(row, ours) for row in rows]
    return "\n".join(lines)


def _line(row: Mapping[str, Any], ours: float | None) -> str:
    name = f"  {row['name']:{NAME_WIDTH - 2}}"
    if "error" in row:
        return f"{name} not measured: {' '.join(str(row['error']).split())}"
    figures = " ".join(f"{short(row[key]):>8}" for key in ("median", "p10", "p90"))
    line = f"{name} {figures} {row['n']:5}{ratio(row, ours):>10}"
    return f"{line}  {row.get('note', '')}".rstrip()


def ratio(row: Mapping[str, Any], ours: float | None) -> str:
    """How many times a peer's figure ours is; "" where that says nothing."""
    return f"{ours / row['median']:.2f}" if ours and row["median"] and not row["ours"] else ""


def short(value: float) -> str:
    """Three digits or so."""
    if value >= 1000:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
