# SPDX-License-Identifier: MIT
"""The part that measures how fast output is kept: many jobs, lines of 100 bytes, full speed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.bench.guest.burst import Burst, burst
from tests.bench.guest.keepers import (
    CatKeeper,
    CatNull,
    JobletKeeper,
    JournalKeeper,
    PodmanKeeper,
)
from tests.bench.guest.load import LINE_BYTES, Load, loads
from tests.bench.guest.measure import Row, Table, broken, in_turn, row
from tests.bench.guest.peers import Joblet
from tests.bench.guest.server import Watch, restart, rss_anon_mib
from tests.bench.guest.setting import Setting

SHARES: Final = {1: 0.5, 200: 0.5, 1000: 1.0}
"""How many jobs, and how much of the bytes of a run they print: each more than its pipe holds."""
JOURNAL_SHARE: Final = 0.01
"""journald takes a hundredth of what the others do, and keeps it for the whole machine."""
PODMAN_SHARE: Final = 0.2
PODMAN_MOST: Final = 200
"""More containers than these take minutes to start."""
UNIT: Final = "GB/s"


def output(setting: Setting) -> list[Table]:
    """Every byte into files, beside who else does that."""
    tables = []
    for count in SHARES:
        tables += _output(setting, count)
    return tables


def _output(setting: Setting, count: int) -> list[Table]:
    restart()
    joblet = Joblet()
    memory: list[tuple[float, Watch]] = []

    def work(share: float) -> list[Load]:
        return loads(count, setting.total(share * SHARES[count]))

    def ours() -> Burst:
        before, watch = rss_anon_mib(), Watch()
        done = burst(JobletKeeper(joblet), work(1.0), during=watch)
        memory.append((before, watch))
        return done

    ways: dict[str, Callable[[], Burst]] = {
        "joblet": ours,
        CatKeeper.name: lambda: burst(CatKeeper(), work(1.0)),
        CatNull.name: lambda: burst(CatNull(), work(1.0)),
        JournalKeeper.name: lambda: burst(JournalKeeper(), work(JOURNAL_SHARE)),
    }
    left_out: list[Row] = []
    if setting.podman is None:
        left_out.append(broken(PodmanKeeper.name, setting.no_podman))
    elif count > PODMAN_MOST:
        why = f"{count} containers take minutes to start"
        left_out.append(broken(PodmanKeeper.name, why, known=True))
    else:
        podman = setting.podman
        ways[PodmanKeeper.name] = lambda: burst(PodmanKeeper(podman), work(PODMAN_SHARE))
    once = dict.fromkeys((JournalKeeper.name, PodmanKeeper.name), 1) if count > 1 else {}
    results, errors = in_turn(ways, setting.rounds, first_counts=True, fewer=once)
    left_out += [broken(name, error) for name, error in errors.items()]
    return [*_tables(count, results, left_out), *_memory(count, memory)]


def _tables(count: int, results: Mapping[str, list[Burst]], left_out: list[Row]) -> list[Table]:
    jobs = jobs_of(count)
    rows: list[Row] = []
    ended: list[Row] = []
    for name, runs in results.items():
        ours = name == "joblet"
        rates = [run.kept_rate for run in runs]
        rows.append(row(name, rates, unit=UNIT, ours=ours, note=note_of(runs)))
        if ours:
            rates = [run.ended_rate for run in runs]
            ended.append(row("joblet: the jobs' end included", rates, unit=UNIT, ours=True))
    rows += [*ended, *left_out]
    title = f"{jobs} printing lines of {LINE_BYTES} bytes at full speed, until all is in files"
    tables: list[Table] = [{"title": title, "rows": rows}]
    if ours_runs := results.get("joblet"):
        tables.append({"title": f"{jobs}: CPU where, for each GB", "rows": _cpu(ours_runs)})
    return tables


def _cpu(runs: list[Burst]) -> list[Row]:
    """A job's cgroup holds its producer, which says itself what it used, and its PID 1."""
    spent: dict[str, list[float]] = {}
    for run in runs:
        cpu: dict[str, float] = dict(run.cpu_us)
        jobs = cpu.pop("PID 1 in its scope, the command", 0.0)
        cpu["PID 1s"] = max(0.0, jobs - run.producers_us)
        cpu["the commands"] = run.producers_us
        for place, us in cpu.items():
            spent.setdefault(place, []).append(us / 1e6 / (run.total / 1e9))
    return [row(place, values, unit="s/GB", ours=True) for place, values in spent.items()]


def _memory(count: int, memory: list[tuple[float, Watch]]) -> list[Table]:
    if not memory:
        return []
    rows = [
        row(name, values, unit="MiB", ours=True)
        for name, values in (
            ("before they start", [before for before, _ in memory]),
            ("when all wait to print", [watch.start for _, watch in memory]),
            ("most, while they print", [watch.most for _, watch in memory]),
            ("when all is in files", [watch.end for _, watch in memory]),
        )
    ]
    return [{"title": f"{jobs_of(count)}: the server's RssAnon", "rows": rows}]


def note_of(runs: Sequence[Burst]) -> str:
    return f"{runs[0].total / 1e6:.0f} MB" + (f", {runs[-1].note}" if runs[-1].note else "")


def jobs_of(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
