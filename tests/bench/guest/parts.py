# SPDX-License-Identifier: MIT
"""The parts of the bench: each gives its tables, in the order in which they are read."""

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.bench.guest import stamp
from tests.bench.guest.errors import Broken
from tests.bench.guest.followers import followers
from tests.bench.guest.measure import Table, Together, broken, in_turn, row, together
from tests.bench.guest.output import output
from tests.bench.guest.peers import RNX, SCOPE, SERVICE, Joblet, Peer, said
from tests.bench.guest.screen import screen
from tests.bench.guest.setting import Setting
from tests.bench.guest.slow import slow
from tests.bench.guest.storm import storm
from tests.bench.guest.writes import writes

AT_A_TIME: Final = 16
BLOCKS: Final = 3
JOBS_PER_BLOCK: Final = 96
CONTAINERS_PER_BLOCK: Final = 16
SLEEPERS: Final = 50
CONTAINERS: Final = 5
RECORDS: Final = 1000
LISTINGS: Final = 11
GAP_S: Final = 0.1
OURS: Final = "joblet"


def launch(setting: Setting) -> list[Table]:
    """From the request to the command's first instruction."""
    peers = setting.peers(SCOPE, SERVICE)
    answers: list[float] = []

    def first(peer: Peer) -> Callable[[], float]:
        def once() -> float:
            run = peer.run(stamp.PATH.name)
            if run.answered_ns:
                answers.append((run.answered_ns - run.begin_ns) / 1e6)
            return (stamp.read(run.output) - run.begin_ns) / 1e6

        return once

    tables = []
    for title, gap_s in (("back to back", 0.0), (f"{GAP_S * 1000:.0f} ms between", GAP_S)):
        answers.clear()
        ways = {peer.name: first(peer) for peer in peers}
        results, errors = in_turn(ways, setting.runs, gap_s=gap_s)
        table = _table(f"request to the command's first instruction, {title}", results, errors)
        rows = setting.rows(table["rows"])
        if len(answers) > 1:
            rows.append(row("joblet: until RunJob has answered", answers[1:], ours=True))
        tables.append({**table, "rows": rows})
    return tables


def whole(setting: Setting) -> list[Table]:
    """From the request to the known end of `true`."""

    def all_of(peer: Peer) -> Callable[[], float]:
        def once() -> float:
            run = peer.run("true")
            return (run.end_ns - run.begin_ns) / 1e6

        return once

    peers = setting.peers(SCOPE, SERVICE)
    results, errors = in_turn({peer.name: all_of(peer) for peer in peers}, setting.runs)
    table = _table("a whole `true`: request to its known end", results, errors)
    rnx = _table("", *in_turn({RNX.name: all_of(RNX)}, setting.scaled(LISTINGS)))
    return [{**table, "rows": [*setting.rows(table["rows"]), *rnx["rows"]]}]


def rate(setting: Setting) -> list[Table]:
    """Whole jobs of `true`, many at a time, and where their CPU goes."""
    done: dict[str, list[Together]] = {}
    errors: dict[str, str] = {}
    peers = setting.peers(SCOPE, SERVICE)
    for number in range(BLOCKS + 1):
        for peer in peers:
            if peer.name in errors:
                continue
            container = setting.podman is not None and peer.name == setting.podman.peer.name
            count = setting.scaled(CONTAINERS_PER_BLOCK if container else JOBS_PER_BLOCK)
            try:
                block = together(functools.partial(peer.run, "true"), count, AT_A_TIME)
            except Broken as error:
                errors[peer.name] = str(error)
                done.pop(peer.name, None)
                continue
            if number:  # the first only warms up
                done.setdefault(peer.name, []).append(block)
    title = f"whole jobs of `true`, {AT_A_TIME} at a time"
    rates = {name: [block.per_second for block in blocks] for name, blocks in done.items()}
    costs = {name: [block.cpu_ms["all"] for block in blocks] for name, blocks in done.items()}
    per_second = _table(title, rates, errors, unit="1/s")
    tables = [
        {**per_second, "rows": setting.rows(per_second["rows"])},
        _table(f"{title}: CPU of each, all processes of the machine", costs, {}),
    ]
    if ours := done.get(Joblet.name):
        rows = [
            row(place, [block.cpu_ms.get(place, 0.0) for block in ours], ours=True)
            for place in ours[0].cpu_ms
            if place != "all"
        ]
        tables.append({"title": f"{title}: where Joblet's is spent", "rows": rows})
    return tables


def memory(setting: Setting) -> list[Table]:
    """What stays in memory for each job, besides the job."""
    joblet = Joblet()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        jobs = list(pool.map(lambda _: joblet.start("sleep", "600"), range(SLEEPERS)))
        sizes = [_memory_kib(joblet.client.job_status(job).pid) for job in jobs]
        list(pool.map(joblet.client.stop_job, jobs))
    private = [row("joblet: a job's PID 1", [a for a, _ in sizes], unit="KiB", ours=True)]
    resident = [row("joblet: a job's PID 1", [b for _, b in sizes], unit="KiB", ours=True)]
    if setting.podman:
        command = setting.podman.command
        try:
            sleep = [*setting.podman.run("--detach"), "sleep", "600"]
            ids = [said(sleep).strip() for _ in range(CONTAINERS)]
            pids = said([*command, "inspect", "--format={{.State.ConmonPid}}", *ids]).split()
            sizes = [_memory_kib(int(pid)) for pid in pids]
            said([*command, "rm", "--force", "--time=0", *ids])
            private.append(row("podman: conmon", [a for a, _ in sizes], unit="KiB"))
            resident.append(row("podman: conmon", [b for _, b in sizes], unit="KiB"))
        except Broken as error:
            private.append(broken("podman: conmon", str(error)))
    return [
        {"title": f"private memory for each of {SLEEPERS} sleeping jobs", "rows": private},
        {"title": "the same, resident: most of it is shared", "rows": resident},
    ]


def listing(setting: Setting) -> list[Table]:
    """`rnx job list`, the whole process, with many records."""
    joblet = Joblet()
    missing = RECORDS - len(joblet.client.list_jobs().jobs)
    if setting.runs >= 60 and missing > 0:
        together(lambda: joblet.run("true"), missing, AT_A_TIME)
    records = len(joblet.client.list_jobs().jobs)
    commands = {
        "joblet: rnx job list": ["rnx", "job", "list"],
        "python3 -c 'import grpc'": ["python3", "-c", "import grpc"],
        "python3 -c pass": ["python3", "-c", "pass"],
    }

    def timed(argv: list[str]) -> Callable[[], float]:
        def once() -> float:
            begin = time.monotonic()
            said(argv)
            return (time.monotonic() - begin) * 1000

        return once

    ways = {name: timed(argv) for name, argv in commands.items()}
    return [_table(f"`rnx job list`, {records} records", *in_turn(ways, setting.scaled(LISTINGS)))]


PARTS: Final[dict[str, Callable[[Setting], list[Table]]]] = {
    "launch": launch,
    "whole": whole,
    "rate": rate,
    "memory": memory,
    "list": listing,
    "output": output,
    "writes": writes,
    "followers": followers,
    "screen": screen,
    "storm": storm,
    "slow": slow,
}


def _table(
    title: str, results: dict[str, list[float]], errors: dict[str, str], *, unit: str = "ms"
) -> Table:
    rows = [
        row(name, values, unit=unit, ours=name.startswith(OURS)) for name, values in results.items()
    ]
    return {"title": title, "rows": [*rows, *(broken(*item) for item in errors.items())]}


def _memory_kib(pid: int) -> tuple[int, int]:
    """(private, resident) of a process, KiB (proc_pid_smaps(5))."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError as error:
        raise Broken(f"process {pid}: {error.strerror}") from None
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"]
