# SPDX-License-Identifier: MIT
"""Producers that begin together, and the times of what becomes of their output.

They wait at a gate until all are there, and at another one until all that they printed is kept: no
launch is in the figures, and no end but where that is said.
"""

import contextlib
import dataclasses
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from tests.bench.guest.errors import Broken
from tests.bench.guest.load import EXIT, GATE, REPORTS, Load
from tests.bench.guest.measure import SETTLE_S, cpu_us
from tests.bench.guest.producer import Report

READY_S: Final = 240.0
"""For a thousand jobs to start."""
DONE_S: Final = 240.0
REPORTS_MODE: Final = 0o622
GATE_MODE: Final = 0o644


class Keeper(Protocol):
    """Who takes the output of commands and keeps it. One use each."""

    @property
    def name(self) -> str: ...

    def start(self, loads: Sequence[Load]) -> None:
        """Their producers, until each has been asked for."""

    def wait_kept(self) -> int:
        """When all that they printed was in files, as of time.monotonic_ns(). They have printed
        it all."""

    def wait_ended(self) -> int:
        """When a client knew that all had ended. They may."""

    def check(self) -> str:
        """Whether every byte is there: a word on it for the row. Raises Broken."""

    def clean(self) -> None:
        """Takes away what there is, whatever has happened."""


@dataclasses.dataclass(frozen=True, slots=True)
class Burst:
    """One run. Times as of time.monotonic_ns(); cpu_us: place -> CPU until all was kept."""

    begin_ns: int  # the first producer's
    printed_ns: int  # the last producer's
    kept_ns: int
    end_ns: int  # from when they were let go until the client knew their end
    total: int
    producers_us: float
    cpu_us: dict[str, int]
    note: str

    @property
    def kept_rate(self) -> float:
        """GB/s, until all was kept."""
        return self.total / (self.kept_ns - self.begin_ns)

    @property
    def ended_rate(self) -> float:
        """GB/s, the jobs' end included."""
        return self.total / (self.kept_ns - self.begin_ns + self.end_ns)

    @property
    def printed_rate(self) -> float:
        """GB/s, until all was printed."""
        return self.total / (self.printed_ns - self.begin_ns)


def burst(
    keeper: Keeper,
    loads: Sequence[Load],
    *,
    waiting: Callable[[], object] = lambda: None,
    during: contextlib.AbstractContextManager[object] | None = None,
) -> Burst:
    """`waiting` is called when all stand at the gate; `during` is entered then, and left when all
    is kept. Raises Broken."""
    os.sync()  # nobody pays for the last one's pages
    try:
        with _gate() as gate:
            keeper.start(loads)
            gate.wait(len(loads), READY_S)
            time.sleep(SETTLE_S)
            waiting()
            with during or contextlib.nullcontext():
                before = cpu_us()
                gate.open()
                reports = gate.wait(len(loads), DONE_S)
                kept = keeper.wait_kept()
                after = cpu_us()
            begin_end = time.monotonic_ns()
            gate.let_go()
            ended = keeper.wait_ended()
        note = keeper.check()
        return Burst(
            begin_ns=min(report.begin_ns for report in reports),
            printed_ns=max(report.end_ns for report in reports),
            kept_ns=kept,
            end_ns=ended - begin_end,
            total=sum(load.total for load in loads),
            producers_us=sum(report.cpu_ns for report in reports) / 1000,
            cpu_us={place: after[place] - before.get(place, 0) for place in after},
            note=note,
        )
    finally:
        keeper.clean()


class _Gate:
    def __init__(self, reports: int) -> None:
        self._reports = reports
        self._open: list[int] = []

    def open(self) -> None:
        self._let_through(GATE)

    def let_go(self) -> None:
        self._let_through(EXIT)

    def _let_through(self, path: Path) -> None:
        # for reading as well: to open a FIFO for writing alone would wait for a reader
        self._open.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def wait(self, count: int, limit_s: float) -> list[Report]:
        """A report from each of `count` producers. Raises Broken at the deadline."""
        end = time.monotonic() + limit_s
        data = b""
        while (missing := count * Report.FORMAT.size - len(data)) > 0:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._reports], [], [], left)[0]:
                there = len(data) // Report.FORMAT.size
                raise Broken(f"{there} of {count} producers reported within {limit_s:.0f} s")
            data += os.read(self._reports, missing)
        return Report.parse(data)

    def close(self) -> None:
        for fd in self._open:
            os.close(fd)


@contextlib.contextmanager
def _gate() -> Iterator[_Gate]:
    for path, mode in ((REPORTS, REPORTS_MODE), (GATE, GATE_MODE), (EXIT, GATE_MODE)):
        _fifo(path, mode)
    reports = os.open(REPORTS, os.O_RDWR | os.O_CLOEXEC)
    gate = _Gate(reports)
    try:
        yield gate
    finally:
        gate.close()
        os.close(reports)


def _fifo(path: Path, mode: int) -> None:
    """A new one: in an old one may be what a broken run left."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    path.chmod(mode)
