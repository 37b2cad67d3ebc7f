# SPDX-License-Identifier: MIT
"""Figures out of runs: peers take turns, so that whatever disturbs the machine disturbs them all.

A table is {"title", "rows", "note"}; a row is {"name", "unit", "ours", "n", "median", "p10",
"p90"}, or {"name", "error"} where there is no figure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.bench.guest.errors import Broken

T = TypeVar("T")
Row = dict[str, Any]
Table = dict[str, Any]

CPU_STAT: Final = Path("/sys/fs/cgroup/cpu.stat")
SETTLE_S: Final = 0.3
"""After many jobs: what their ends still cost belongs to them, not to the next."""


def row(name: str, values: Sequence[float], *, unit: str = "ms", ours: bool = False) -> Row:
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "n": len(values),
        "median": statistics.median(values),
        "p10": deciles[0],
        "p90": deciles[-1],
    }


def broken(name: str, error: str) -> Row:
    return {"name": name, "error": error}


def in_turn(
    ways: Mapping[str, Callable[[], T]], runs: int, *, gap_s: float = 0.0
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """`runs` results of each way, and what was wrong with those that broke.

    A B C, B C A, C A B, …: nobody always comes after the same one. A first round does not count.
    A way that breaks is left out from then on, and has no results.
    """
    results: dict[str, list[T]] = {name: [] for name in ways}
    errors: dict[str, str] = {}
    names = list(ways)
    for number in range(runs + 1):
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            if name in errors:
                continue
            time.sleep(gap_s)
            try:
                result = ways[name]()
            except Broken as error:
                errors[name] = str(error)
                del results[name]
                continue
            if number:
                results[name].append(result)
    return results, errors


def together(work: Callable[[], object], count: int, threads: int) -> tuple[float, float]:
    """(per second, ms of CPU each) of `count` calls, `threads` of them at a time.

    The CPU time is that of all processes of the machine, until what the calls left is done: unlike
    the rate it is hardly disturbed by what else a host does. Raises what a call raises.
    """
    cpu = _cpu_us()
    begin = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()
    took = time.monotonic() - begin
    time.sleep(SETTLE_S)
    return count / took, (_cpu_us() - cpu) / 1000 / count


def _cpu_us() -> int:
    """CPU time of the machine so far, µs (cgroup-v2: cpu.stat of the root as we see it)."""
    for line in CPU_STAT.read_text().splitlines():
        name, value = line.split()
        if name == "usage_usec":
            return int(value)
    raise Broken(f"{CPU_STAT} has no usage_usec")
