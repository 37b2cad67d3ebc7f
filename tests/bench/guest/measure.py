# SPDX-License-Identifier: MIT
"""Figures out of runs: peers take turns, so that whatever disturbs the machine disturbs them all.

A table is {"title", "rows", "note"}; a row is {"name", "unit", "ours", "n", "median", "p10",
"p90", "note"}, or {"name", "error"} where there is no figure.
"""

import contextlib
import dataclasses
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

CGROUPS: Final = Path("/sys/fs/cgroup")
PLACES: Final = {
    "all": "",
    "server": "system.slice/joblet.service",
    "init mode, PID 1 before its scope": "system.slice/joblet-init.service",
    "PID 1 in its scope, the command": "joblet.slice",
    "systemd": "init.scope",
    "dbus": "system.slice/dbus.service",
    "journald": "system.slice/systemd-journald.service",
}
SETTLE_S: Final = 0.3
"""After many jobs: what their ends still cost belongs to them, not to the next."""


def row(
    name: str, values: Sequence[float], *, unit: str = "ms", ours: bool = False, note: str = ""
) -> Row:
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "n": len(values),
        "median": statistics.median(values),
        "p10": deciles[0],
        "p90": deciles[-1],
        "note": note,
    }


def percentile(values: Sequence[float], part: int) -> float:
    """The value that `part` in a hundred do not exceed. Raises Broken without any."""
    if not values:
        raise Broken("nothing was measured")
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]


def broken(name: str, error: str, *, known: bool = False) -> Row:
    """`known`: it was not tried, and that is no failure."""
    return {"name": name, "error": error, "known": known}


def in_turn(
    ways: Mapping[str, Callable[[], T]],
    runs: int,
    *,
    gap_s: float = 0.0,
    first_counts: bool = False,
    fewer: Mapping[str, int] = {},
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """`runs` results of each way, and what was wrong with those that broke.

    A B C, B C A, C A B, …: nobody always comes after the same one. A first round does not count,
    unless `first_counts`. A way has fewer results if `fewer` says so; one that breaks is left out
    from then on, and has none.
    """
    results: dict[str, list[T]] = {name: [] for name in ways}
    errors: dict[str, str] = {}
    names = list(ways)
    warm_up = 0 if first_counts else 1
    for number in range(warm_up + runs):
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            if name in errors or len(results[name]) >= fewer.get(name, runs):
                continue
            time.sleep(gap_s)
            try:
                result = ways[name]()
            except Broken as error:
                errors[name] = str(error)
                del results[name]
                continue
            if number >= warm_up:
                results[name].append(result)
    return results, errors


@dataclasses.dataclass(frozen=True, slots=True)
class Together:
    """Many calls, some at a time. cpu_ms: place -> CPU of each call there, "all" for the machine.

    Unlike the rate, the CPU is hardly disturbed by what else a host does.
    """

    per_second: float
    cpu_ms: dict[str, float]


def together(work: Callable[[], object], count: int, threads: int) -> Together:
    """`count` calls, `threads` of them at a time, and the CPU until what they left is done.

    Raises what a call raises, when all have ended.
    """
    before = cpu_us()
    begin = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()
    took = time.monotonic() - begin
    time.sleep(SETTLE_S)
    after = cpu_us()
    spent = {place: (after[place] - before.get(place, 0)) / 1000 / count for place in after}
    return Together(count / took, spent)


def cpu_us() -> dict[str, int]:
    """CPU time so far of each place that is there, µs (cgroup-v2: cpu.stat, of each cgroup)."""
    found = {}
    for place, path in {**PLACES, "client": _own_cgroup()}.items():
        with contextlib.suppress(FileNotFoundError):
            for line in (CGROUPS / path / "cpu.stat").read_text().splitlines():
                name, value = line.split()
                if name == "usage_usec":
                    found[place] = int(value)
    if "all" not in found:
        raise Broken(f"{CGROUPS}/cpu.stat has no usage_usec")
    return found


def _own_cgroup() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "nowhere")
