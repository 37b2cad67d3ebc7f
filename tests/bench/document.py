# SPDX-License-Identifier: MIT
"""docs/BENCHMARKS.md: people write the text, runs of the bench write the figures into it.

What a run writes stands between two comments with the run's name, and replaces what stood there.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.report import ratio, short

HEAD = "| | median | p10 to p90 | n | ours/peer | |\n|---|--:|--:|--:|--:|---|"


def put(document: str, name: str, figures: str) -> str:
    """The document with these figures. Raises ValueError if it has no place for them."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = document.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the document has no lines {begin.strip()} and {end.strip()}")
    return before + begin + figures + end + after


def figures(outcome: Mapping[str, Any], day: datetime.date) -> str:
    """One table with what a run found, below a paragraph on when and where."""
    lines = [f"{day.isoformat()}, `{outcome['command']}`: {outcome['where']}", "", HEAD]
    for table in outcome["tables"]:
        lines += _rows(table)
    return "\n".join([*lines, ""])


def _rows(table: Mapping[str, Any]) -> list[str]:
    rows: Sequence[Mapping[str, Any]] = table["rows"]
    unit = next((row["unit"] for row in rows if "unit" in row), "")
    ours = next((row["median"] for row in rows if row.get("ours")), None)
    title = f"{table['title']}, {unit}" if unit else table["title"]
    return [f"| **{_cell(title)}** | | | | | |", *(_row(row, ours) for row in rows)]


def _row(row: Mapping[str, Any], ours: float | None) -> str:
    if "error" in row:
        return f"| {_cell(row['name'])} | | | | | not measured: {_cell(row['error'])} |"
    spread = f"{short(row['p10'])} to {short(row['p90'])}" if row["n"] > 1 else ""
    cells = [
        _cell(row["name"]),
        short(row["median"]),
        spread,
        str(row["n"]),
        ratio(row, ours),
        _cell(row.get("note", "")),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace(">", "&gt;")
