# SPDX-License-Identifier: MIT
"""The host as clients ask for it: load, memory, processes, disks, network, now and then.

One thread of its own looks, every `interval_s`, and leaves what it saw; who asks gets that and
waits for nothing. It is a thread because every one of these reads may block, and one of its own
because a disk that hangs must hold up nobody else, nor the end of the server.

What it costs is bounded: a look at all processes takes about 25 µs for each, and the next is not
before fifty times the time that the last one took. With 5,000 processes that is every 10 s still,
and above that there is one less often; the other numbers come on time.

The first sample has no interval behind it, so its usages are those since the boot.
"""

import contextlib
import dataclasses
import heapq
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from joblet.server import host_devices, host_facts, host_proc
from joblet.server.host_devices import Disk, Filesystem, Interface
from joblet.server.host_proc import CpuShares, CpuTimes, Memory, Stat

log = logging.getLogger(__name__)

FIRST_S: Final = 1.0  # from the first sample to the second, which has an interval behind it
SHARE: Final = 50  # a look at all processes is a fiftieth of the time at most
TOP: Final = 10  # processes that are shown by CPU, and by memory
MOST_COMMAND: Final = 200  # characters of a program's name
JOIN_S: Final = 1.0

TICKS_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

STATES: Final[Mapping[str, str]] = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting",  # for a disk, mostly
    "I": "idle",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """cpu: percent of one core. memory: bytes that are in RAM. command: the program alone."""

    pid: int
    ppid: int
    name: str
    command: str
    user: str
    state: str
    cpu: float
    memory: int
    started_us: int


@dataclasses.dataclass(frozen=True, slots=True)
class Processes:
    """How many there are in which state, and those that use most, the largest first."""

    total: int = 0
    threads: int = 0
    states: Mapping[str, int] = dataclasses.field(default_factory=dict)
    by_cpu: tuple[Process, ...] = ()
    by_memory: tuple[Process, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Own:
    """The server itself: anonymous memory in bytes, percent of one core."""

    memory: int
    cpu: float


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The host at one moment. `rates` are bytes a second by interface (in, out) and by disk (read,
    written), without those that were not there before; `busy` is percent of the time by disk."""

    at_us: int
    boot_us: int
    uptime_s: float
    cores: int
    cpu: CpuShares
    per_core: tuple[float, ...]
    load: tuple[float, float, float]
    memory: Memory
    processes: Processes
    interfaces: tuple[Interface, ...]
    filesystems: tuple[Filesystem, ...]
    disks: tuple[Disk, ...]
    rates: Mapping[str, tuple[float, float]]
    busy: Mapping[str, float]
    own: Own


class Host:
    """clock: seconds, monotonic. wall_us: microseconds since the epoch. root: where /proc, /sys and
    /etc are."""

    def __init__(
        self,
        interval_s: float,
        *,
        wall_us: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        root: Path = Path("/"),
    ) -> None:
        self._interval_s = interval_s
        self._wall_us = wall_us
        self._clock = clock
        self._root = root
        self._proc, self._sys = root / "proc", root / "sys"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host", daemon=True)
        self._before: Sample | None = None
        self._at = 0.0
        self._times: Mapping[str, CpuTimes] = {}
        self._own_s = 0.0
        self._ticks: dict[int, tuple[int, int]] = {}  # by process: when it started, what it used
        self._looked_at = 0.0  # all processes, when
        self._look_after = 0.0
        self.facts = host_facts.gather(root)
        self.latest: Sample | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for a look that is under way, but not for a disk that hangs."""
        self._stop.set()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        told = False
        pause_s = FIRST_S
        while True:
            try:
                self.latest = self.look()
                told = False
            except Exception as error:  # the host is looked at again; what was seen is kept
                if not told:
                    log.exception("cannot look at the host: %s", error)
                told = True
            if self._stop.wait(min(pause_s, self._interval_s)):
                return
            pause_s = self._interval_s

    def look(self) -> Sample:
        """A sample. Blocking; one thread at a time. Raises OSError, ValueError, IndexError."""
        now = self._clock()
        passed = now - self._at if self._before is not None else 0.0
        raw = self._read("stat")
        times = host_proc.cpu_times(raw)
        boot_s = host_proc.boot_time_s(raw)
        uptime_s = host_proc.uptime_s(self._read("uptime"))
        memory = host_proc.memory(self._read("meminfo"))
        whole = self._times.get(host_proc.ALL_CORES, CpuTimes())
        interfaces = host_devices.interfaces(self._proc, self._sys)
        disks = host_devices.disks(self._proc, self._sys)
        sample = Sample(
            at_us=self._wall_us(),
            boot_us=boot_s * 1_000_000,
            uptime_s=uptime_s,
            cores=len(times) - 1,
            cpu=host_proc.shares(whole, times[host_proc.ALL_CORES]),
            per_core=host_proc.per_core(self._times, times),
            load=host_proc.load_average(self._read("loadavg")),
            memory=memory,
            processes=self._processes(now, uptime_s, boot_s),
            interfaces=interfaces,
            filesystems=host_devices.filesystems(self._proc),
            disks=disks,
            rates=self._rates(interfaces, disks, passed),
            busy=self._busy(disks, passed),
            own=self._own(passed),
        )
        self._before, self._at, self._times = sample, now, times
        return sample

    def _read(self, name: str) -> bytes:
        return (self._proc / name).read_bytes()

    # -- processes -------------------------------------------------------------------------------

    def _processes(self, now: float, uptime_s: float, boot_s: int) -> Processes:
        if self._before is not None and now < self._look_after:
            return self._before.processes
        stats = self._stats()
        passed = now - self._looked_at if self._ticks else uptime_s
        busy = {stat.pid: self._cpu(stat, passed) for stat in stats}
        self._ticks = {stat.pid: (stat.started, stat.ticks) for stat in stats}
        self._looked_at = now
        names = self._users()

        def shown(stat: Stat) -> Process:
            return self._process(stat, busy[stat.pid], names, boot_s)

        by_cpu = heapq.nlargest(TOP, stats, key=lambda stat: (busy[stat.pid], -stat.pid))
        by_memory = heapq.nlargest(TOP, stats, key=lambda stat: (stat.resident_pages, -stat.pid))
        seen = Processes(
            total=len(stats),
            threads=sum(stat.threads for stat in stats),
            states=Counter(STATES.get(stat.state, "other") for stat in stats),
            by_cpu=tuple(map(shown, by_cpu)),
            by_memory=tuple(map(shown, by_memory)),
        )
        self._look_after = now + SHARE * (self._clock() - now)
        return seen

    def _stats(self) -> list[Stat]:
        found = []
        for name in os.listdir(self._proc):  # noqa: PTH208 - a Path each would cost more than the read
            if not name.isdecimal():
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                found.append(host_proc.stat(_contents(f"{self._proc}/{name}/stat")))
        return found

    def _cpu(self, stat: Stat, passed_s: float) -> float:
        """Percent of one core since it was looked at before, or since it began."""
        started, before = self._ticks.get(stat.pid, (0, 0))
        used = stat.ticks - before if started == stat.started else stat.ticks
        return 100 * max(0, used) / TICKS_S / passed_s if passed_s > 0 else 0.0

    def _process(self, stat: Stat, cpu: float, names: Mapping[int, str], boot_s: int) -> Process:
        command, user = "", ""
        with contextlib.suppress(OSError):
            place = f"{self._proc}/{stat.pid}"
            command = host_proc.program(_contents(f"{place}/cmdline"))[:MOST_COMMAND]
            uid = os.stat(place).st_uid  # noqa: PTH116 - as above
            user = names.get(uid, str(uid))
        return Process(
            pid=stat.pid,
            ppid=stat.ppid,
            name=stat.name,
            command=command,
            user=user,
            state=STATES.get(stat.state, "other"),
            cpu=cpu,
            memory=stat.resident_pages * PAGE_BYTES,
            started_us=boot_s * 1_000_000 + stat.started * 1_000_000 // TICKS_S,
        )

    def _users(self) -> dict[int, str]:
        """Of the file alone: a directory in the network may take its time."""
        with contextlib.suppress(OSError):
            return host_proc.users((self._root / "etc/passwd").read_bytes())
        return {}

    # -- what takes the numbers before -----------------------------------------------------------

    def _rates(
        self, interfaces: tuple[Interface, ...], disks: tuple[Disk, ...], passed_s: float
    ) -> dict[str, tuple[float, float]]:
        if self._before is None or passed_s <= 0:
            return {}
        now = {each.name: (each.bytes_in, each.bytes_out) for each in interfaces}
        now |= {each.name: (each.read_bytes, each.write_bytes) for each in disks}
        before = {each.name: (each.bytes_in, each.bytes_out) for each in self._before.interfaces}
        before |= {each.name: (each.read_bytes, each.write_bytes) for each in self._before.disks}
        return {
            name: (
                max(0, now[name][0] - old[0]) / passed_s,
                max(0, now[name][1] - old[1]) / passed_s,
            )
            for name, old in before.items()
            if name in now
        }

    def _busy(self, disks: tuple[Disk, ...], passed_s: float) -> dict[str, float]:
        if self._before is None or passed_s <= 0:
            return {}
        before = {disk.name: disk.busy_ms for disk in self._before.disks}
        return {
            disk.name: min(100.0, max(0, disk.busy_ms - before[disk.name]) / (10 * passed_s))
            for disk in disks
            if disk.name in before
        }

    def _own(self, passed_s: float) -> Own:
        used = time.process_time()
        spent, self._own_s = used - self._own_s, used
        memory = host_proc.anonymous_bytes(self._read("self/status"))
        return Own(memory, 100 * spent / passed_s if passed_s > 0 else 0.0)


def _contents(path: str) -> bytes:
    """The beginning of a small file, which is all of it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
