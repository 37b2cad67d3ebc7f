# SPDX-License-Identifier: MIT
"""The part that measures how the server answers while a thousand jobs print at full speed."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final, Self

from rnx.errors import RnxError
from tests.bench.guest.burst import burst
from tests.bench.guest.keepers import JobletKeeper
from tests.bench.guest.load import loads
from tests.bench.guest.measure import Table, broken, percentile, row
from tests.bench.guest.peers import Joblet
from tests.bench.guest.server import Watch, restart
from tests.bench.guest.setting import Setting

COUNT: Final = 1000
CALLS: Final = 50
PAUSE_S: Final = 0.01


class Calls:
    """ListJobs, again and again while the block runs: `times` in ms, `error` the first one."""

    def __init__(self, joblet: Joblet) -> None:
        self.times: list[float] = []
        self.error = ""
        self._joblet = joblet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="calls")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def one(self) -> None:
        begin = time.monotonic()
        self._joblet.client.list_jobs()
        self.times.append((time.monotonic() - begin) * 1000)

    def _run(self) -> None:
        try:
            while not self._over.wait(PAUSE_S):
                self.one()
        except RnxError as error:
            self.error = str(error)


def storm(setting: Setting) -> list[Table]:
    """ListJobs, and the server's memory."""
    restart()
    joblet = Joblet()
    other = Joblet()  # a connection of its own
    joblet.client.delete_all_jobs()  # those of other parts: the list is of these jobs
    quiet = Calls(other)
    records = 0
    loud: list[Calls] = []
    watches: list[Watch] = []

    def waiting() -> None:
        nonlocal records
        records = len(joblet.client.list_jobs().jobs)
        for _ in range(CALLS):
            quiet.one()
            time.sleep(PAUSE_S)

    rounds = min(2, setting.rounds)
    for number in range(rounds):
        watches.append(Watch())
        loud.append(Calls(other))
        burst(
            JobletKeeper(joblet),
            loads(COUNT, setting.total()),
            waiting=waiting if number == 0 else lambda: None,
            during=_both(watches[-1], loud[-1]),
        )
    times = [value for calls in loud for value in calls.times]
    note = f"{records} jobs in the answer"
    rows = [
        row("joblet: 1000 jobs, all waiting", quiet.times, ours=True, note=note),
        row("joblet: 1000 jobs, all printing", times, ours=True),
    ]
    rows += [broken("joblet: a call", calls.error) for calls in loud if calls.error]
    last = [
        row("joblet: 1000 jobs, all waiting", [_p99(quiet.times)], ours=True),
        row("joblet: 1000 jobs, all printing", [_p99(calls.times) for calls in loud], ours=True),
    ]
    memory = [
        row(name, values, unit="MiB", ours=True)
        for name, values in (
            ("when all wait to print", [watch.start for watch in watches]),
            ("most, while they print", [watch.most for watch in watches]),
        )
    ]
    return [
        {"title": f"ListJobs with {COUNT} jobs, a call", "rows": rows},
        {"title": f"ListJobs with {COUNT} jobs, a call: p99 of each run", "rows": last},
        {"title": f"the server's RssAnon with {COUNT} jobs, and calls", "rows": memory},
    ]


@contextlib.contextmanager
def _both(watch: Watch, calls: Calls) -> Iterator[None]:
    with watch, calls:
        yield


def _p99(times: list[float]) -> float:
    return percentile(times, 99)
