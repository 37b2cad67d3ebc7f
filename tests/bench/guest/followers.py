# SPDX-License-Identifier: MIT
"""The part that measures followers of one busy job: over gRPC and mutual TLS, as rnx does it.

Each compares what it gets with what the job prints, byte by byte, as it comes (it costs less than a
tenth of what receiving costs). A follower that is late is late in the figures: the rate is the
slowest one's.
"""

import dataclasses
import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from rnx.errors import RnxError
from tests.bench.guest import tls
from tests.bench.guest.burst import Burst, burst
from tests.bench.guest.errors import Broken
from tests.bench.guest.helper import Helper, say
from tests.bench.guest.keepers import JobletKeeper
from tests.bench.guest.load import Compare, Load, loads
from tests.bench.guest.measure import Row, Table, broken, in_turn, row
from tests.bench.guest.peers import Joblet
from tests.bench.guest.server import Watch, restart
from tests.bench.guest.setting import Setting

COUNTS: Final = (1, 10, 100)
SHARES: Final = {1: 0.5, 10: 0.5, 100: 0.05}
"""Of the bytes of a run: the job prints so much, and each follower gets all of that."""
PROCESSES: Final = 10
ROLE: Final = "follower"
UNIT: Final = "GB/s"
CONNECTED_S: Final = 0.5
"""For streams that were asked for to stand."""


class FollowedKeeper(JobletKeeper):
    """One job with followers; kept is what each of them has."""

    def __init__(self, joblet: Joblet, count: int) -> None:
        super().__init__(joblet)
        self._count = count
        self._helpers: list[Helper] = []

    def start(self, loads: Sequence[Load]) -> None:
        super().start(loads)
        ((job, load),) = self.jobs.items()
        processes = min(PROCESSES, self._count)
        options = {
            "job": job,
            "load": dataclasses.asdict(load),
            "count": self._count // processes,
        }
        self._helpers = [Helper(ROLE, options) for _ in range(processes)]
        for helper in self._helpers:
            helper.wait_ready()
        time.sleep(CONNECTED_S)

    def wait_kept(self) -> int:
        return max(int(helper.result()["end_ns"]) for helper in self._helpers)

    def clean(self) -> None:
        for helper in self._helpers:
            helper.close()
        super().clean()


class ShownKeeper(JobletKeeper):
    """One job, shown by the command rnx: its output through a pipe, into a program that
    compares it."""

    def __init__(self, joblet: Joblet) -> None:
        super().__init__(joblet)
        self._shown: subprocess.Popen[bytes] | None = None

    def start(self, loads: Sequence[Load]) -> None:
        super().start(loads)
        (job,) = self.jobs
        argv = ["rnx", "job", "log", "--follow", job]
        self._shown = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        time.sleep(2 * CONNECTED_S)

    def wait_kept(self) -> int:
        ((_, load),) = self.jobs.items()
        assert self._shown is not None
        assert self._shown.stdout is not None
        compare = Compare(load)
        while compare.length < load.total:
            chunk = os.read(self._shown.stdout.fileno(), 1 << 20)
            if not chunk:
                raise Broken(f"rnx job log showed {compare.length} of {load.total} bytes")
            compare.update(chunk)
        return time.monotonic_ns()

    def clean(self) -> None:
        if self._shown is not None:
            self._shown.kill()
            self._shown.communicate()
        super().clean()


def follow(options: dict[str, Any]) -> None:
    """The helper: `count` followers on one connection each. Raises Broken."""
    load = Load(**options["load"])

    def one(joblet: Joblet) -> int:
        compare = Compare(load)
        end = 0
        try:
            for chunk in joblet.client.job_logs(options["job"]):
                if chunk.HasField("gap"):
                    raise Broken(f"a gap: {chunk.gap.kind} {chunk.gap.bytes}")
                compare.update(chunk.payload)
                if not end and compare.length == load.total:
                    end = time.monotonic_ns()
                    break
        except RnxError as error:
            raise Broken(str(error)) from None
        if not end:
            raise Broken(f"{compare.length} of {load.total} bytes came")
        return end

    clients = [Joblet() for _ in range(options["count"])]
    with ThreadPoolExecutor(len(clients)) as pool:
        futures = [pool.submit(one, client) for client in clients]
        say()
        say({"end_ns": max(future.result() for future in futures)})


def followers(setting: Setting) -> list[Table]:
    """How fast output goes out while it comes in."""
    tables: list[Table] = []
    for count in COUNTS:
        tables += _followers(setting, count)
    return tables


def _followers(setting: Setting, count: int) -> list[Table]:
    restart()
    joblet = Joblet()
    total = setting.total(SHARES[count])
    rounds = setting.rounds if count == 1 else 1
    watches: list[Watch] = []

    def ours(keeper: Callable[[], JobletKeeper]) -> Burst:
        watches.append(Watch())
        return burst(keeper(), loads(1, total), during=watches[-1])

    bursts: list[Burst] = []
    ways: dict[str, Callable[[], float]] = {}

    def library() -> float:
        bursts.append(ours(lambda: FollowedKeeper(joblet, count)))
        return bursts[-1].kept_rate

    ways["joblet: rnx's client library"] = library
    if count == 1:
        ways["joblet: rnx job log, a process"] = lambda: ours(lambda: ShownKeeper(joblet)).kept_rate
    ways["raw TLS, nothing else"] = functools.partial(tls.rate, count, min(PROCESSES, count), total)
    rates, errors = in_turn(ways, rounds, first_counts=True)
    who = "1 follower" if count == 1 else f"{count} followers"
    made: list[Row] = []
    every: list[Row] = []
    for name, values in rates.items():
        note = f"{total / 1e6:.0f} MB to each, every byte as printed"
        mine = name.startswith("joblet")
        made.append(row(name, values, unit=UNIT, ours=mine, note=note if mine else ""))
        every.append(row(name, [count * value for value in values], unit=UNIT, ours=mine))
    made += [broken(name, error) for name, error in errors.items()]
    tables: list[Table] = [{"title": f"{who} of one busy job, each", "rows": made}]
    if count > 1:
        tables.append({"title": f"{who} of one busy job, all together", "rows": every})
    if bursts:
        tables.append({"title": f"{who}: CPU where, for each GB sent", "rows": _cpu(bursts, count)})
    if watches:
        tables.append({"title": f"{who}: the server's RssAnon", "rows": _memory(watches)})
    return tables


def _cpu(bursts: Iterable[Burst], count: int) -> list[Row]:
    spent: dict[str, list[float]] = {}
    for run in bursts:
        for place, us in run.cpu_us.items():
            spent.setdefault(place, []).append(us / 1e6 / (count * run.total / 1e9))
    return [row(place, values, unit="s/GB", ours=True) for place, values in spent.items()]


def _memory(watches: Sequence[Watch]) -> list[Row]:
    return [
        row(name, values, unit="MiB", ours=True)
        for name, values in (
            ("before", [watch.start for watch in watches]),
            ("most", [watch.most for watch in watches]),
            ("when all have it", [watch.end for watch in watches]),
        )
    ]
