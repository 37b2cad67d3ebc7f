# SPDX-License-Identifier: MIT
"""The part that measures jobs that write each line by itself: one write(2) of 100 bytes a line.

Their own rate is what counts, against readers that keep nothing: what a log engine takes from a
job that prints so. A burst is what fits the stage; what comes after it is the sustained rate.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.guest.burst import Burst, burst
from tests.bench.guest.errors import Broken
from tests.bench.guest.keepers import CatNull, JobletKeeper, SpliceNull
from tests.bench.guest.load import LINE_BYTES, loads
from tests.bench.guest.measure import Row, Table, broken, in_turn, row
from tests.bench.guest.output import jobs_of, note_of
from tests.bench.guest.peers import Joblet
from tests.bench.guest.server import restart
from tests.bench.guest.setting import Setting

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS: Final = (1, 8)
BURST_SHARE: Final = 0.25
STAGE_PART: Final = 0.8
UNIT: Final = "million lines/s"


def writes(setting: Setting) -> list[Table]:
    """The producers' rate in a burst, and what they may keep up."""
    tables = []
    for count in COUNTS:
        tables += _writes(setting, count)
    return tables


def _writes(setting: Setting, count: int) -> list[Table]:
    restart()
    joblet = Joblet()
    total = min(setting.total(BURST_SHARE), int(STAGE_PART * stage_bytes()))
    work = loads(count, total, LINE_BYTES)
    ways: dict[str, Callable[[], Burst]] = {
        "joblet": lambda: burst(JobletKeeper(joblet), work),
        SpliceNull.name: lambda: burst(SpliceNull(), work),
        CatNull.name: lambda: burst(CatNull(), work),
    }
    results, errors = in_turn(ways, setting.rounds, first_counts=True)
    rows: list[Row] = []
    for name, runs in results.items():
        rates = [_lines(run.printed_rate) for run in runs]
        rows.append(row(name, rates, unit=UNIT, ours=name == "joblet", note=note_of(runs)))
    rows += [broken(name, error) for name, error in errors.items()]
    late: list[Row] = []
    if ours := results.get("joblet"):
        rates = [_lines(run.kept_rate) for run in ours]
        rows.append(row("joblet: until all is in files", rates, unit=UNIT, ours=True))
        behind = [(run.kept_ns - run.printed_ns) / 1e6 for run in ours]
        late.append(row("joblet: to catch up after the burst", behind, ours=True))
        try:
            long = burst(JobletKeeper(joblet), loads(count, setting.total(), LINE_BYTES))
        except Broken as error:
            rows.append(broken("joblet: sustained", str(error)))
        else:
            note = f"{long.total / 1e6:.0f} MB, {long.note}"
            rate = [_lines(long.kept_rate)]
            rows.append(row("joblet: sustained", rate, unit=UNIT, ours=True, note=note))
            behind = [(long.kept_ns - long.printed_ns) / 1e6]
            late.append(row("joblet: to catch up after the long run", behind, ours=True))
    who = jobs_of(count)
    title = f"{who} writing each line of {LINE_BYTES} bytes by itself: how fast the jobs print"
    return [
        {"title": title, "rows": rows},
        {"title": f"{who} writing each line by itself: time to catch up", "rows": late},
    ]


def _lines(gigabytes: float) -> float:
    return gigabytes * 1000 / LINE_BYTES


def stage_bytes() -> int:
    """What may wait for the disk, unless it is configured: a tenth of the RAM, at most 1 GiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return min(1 << 30, int(line.split()[1]) * 1024 // 10)
    raise Broken("/proc/meminfo has no MemTotal")
