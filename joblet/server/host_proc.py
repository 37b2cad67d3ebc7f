# SPDX-License-Identifier: MIT
"""What /proc says of the host, read. Pure: bytes of a file in, a value out.

Times are clock ticks (os.sysconf("SC_CLK_TCK")), sizes bytes, usages percent, unless a name says
otherwise. See proc(5).
"""

import dataclasses
from collections.abc import Mapping
from typing import Final

ALL_CORES: Final = "cpu"
KIB: Final = 1024

# proc_pid_stat(5), counted from the state on, the first field behind the name
_STATE, _PPID, _USER, _SYSTEM, _THREADS, _STARTED, _RESIDENT = 0, 1, 11, 12, 17, 19, 21


@dataclasses.dataclass(frozen=True, slots=True)
class CpuTimes:
    """Of one core, or of all together, since the boot."""

    user: int = 0
    system: int = 0  # interrupts too
    idle: int = 0
    io_wait: int = 0
    steal: int = 0

    @property
    def total(self) -> int:
        return self.user + self.system + self.idle + self.io_wait + self.steal


@dataclasses.dataclass(frozen=True, slots=True)
class CpuShares:
    """What became of a time: percent of it."""

    user: float = 0.0
    system: float = 0.0
    idle: float = 0.0
    io_wait: float = 0.0
    steal: float = 0.0

    @property
    def busy(self) -> float:
        return self.user + self.system + self.steal


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    total: int
    free: int
    available: int
    buffers: int
    cached: int
    swap_total: int
    swap_free: int

    @property
    def used(self) -> int:
        return max(0, self.total - self.available)


@dataclasses.dataclass(frozen=True, slots=True)
class Stat:
    """A process. `state` is the kernel's letter, `started` ticks since the boot."""

    pid: int
    name: str
    state: str
    ppid: int
    ticks: int
    threads: int
    started: int
    resident_pages: int


def cpu_times(stat: bytes) -> dict[str, CpuTimes]:
    """/proc/stat by core ("cpu3"), all together as ALL_CORES."""
    found = {}
    for line in stat.splitlines():
        if not line.startswith(b"cpu"):
            continue
        name, *words = line.split()
        user, nice, system, idle, wait, irq, soft, steal = [*map(int, words), *[0] * 8][:8]
        # what guests used is in `user` already
        found[name.decode()] = CpuTimes(user + nice, system + irq + soft, idle, wait, steal)
    return found


def boot_time_s(stat: bytes) -> int:
    """Of /proc/stat: when the host was booted, seconds since the epoch; 0 if it does not say."""
    for line in stat.splitlines():
        if line.startswith(b"btime "):
            return int(line.split()[1])
    return 0


def shares(before: CpuTimes, now: CpuTimes) -> CpuShares:
    """What became of the time between two readings. A counter may go back a little: that is 0."""
    spent = [
        max(0, after - earlier)
        for after, earlier in (
            (now.user, before.user),
            (now.system, before.system),
            (now.idle, before.idle),
            (now.io_wait, before.io_wait),
            (now.steal, before.steal),
        )
    ]
    whole = sum(spent)
    return CpuShares(*(100 * part / whole for part in spent)) if whole else CpuShares(idle=100.0)


def per_core(before: Mapping[str, CpuTimes], now: Mapping[str, CpuTimes]) -> tuple[float, ...]:
    """How busy each core was; one that was off before counts from the boot on."""
    return tuple(
        shares(before.get(name, CpuTimes()), times).busy
        for name, times in now.items()
        if name != ALL_CORES
    )


def load_average(loadavg: bytes) -> tuple[float, float, float]:
    """/proc/loadavg: over 1, 5 and 15 minutes."""
    one, five, fifteen = loadavg.split()[:3]
    return float(one), float(five), float(fifteen)


def uptime_s(uptime: bytes) -> float:
    """/proc/uptime"""
    return float(uptime.split()[0])


def memory(meminfo: bytes) -> Memory:
    """/proc/meminfo"""
    values: dict[bytes, int] = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(b":")
        words = rest.split()
        if words:
            values[name] = int(words[0]) * KIB
    free = values.get(b"MemFree", 0)
    return Memory(
        total=values.get(b"MemTotal", 0),
        free=free,
        available=values.get(b"MemAvailable", free),
        buffers=values.get(b"Buffers", 0),
        cached=values.get(b"Cached", 0) + values.get(b"SReclaimable", 0),
        swap_total=values.get(b"SwapTotal", 0),
        swap_free=values.get(b"SwapFree", 0),
    )


def anonymous_bytes(status: bytes) -> int:
    """Of /proc/PID/status: the memory that is the process's own."""
    for line in status.splitlines():
        if line.startswith(b"RssAnon:"):
            return int(line.split()[1]) * KIB
    return 0


def stat(raw: bytes) -> Stat:
    """/proc/PID/stat. A name may have anything in it, brackets, spaces and line ends too: it ends
    with the last bracket. Raises ValueError or IndexError for what is none."""
    begin, end = raw.index(b"("), raw.rindex(b")")
    fields = raw[end + 1 :].split()
    return Stat(
        pid=int(raw[:begin]),
        name=raw[begin + 1 : end].decode(errors="replace"),
        state=fields[_STATE].decode(errors="replace"),
        ppid=int(fields[_PPID]),
        ticks=int(fields[_USER]) + int(fields[_SYSTEM]),
        threads=int(fields[_THREADS]),
        started=int(fields[_STARTED]),
        resident_pages=int(fields[_RESIDENT]),
    )


def program(cmdline: bytes) -> str:
    """/proc/PID/cmdline: the first word alone, "" for a thread of the kernel. What stands behind it
    may be a secret, and whoever asks us need not be a user of this host."""
    return cmdline.partition(b"\0")[0].decode(errors="replace")


def users(passwd: bytes) -> dict[int, str]:
    """/etc/passwd: names by user id, the first one of each."""
    found: dict[int, str] = {}
    for line in passwd.splitlines():
        fields = line.split(b":")
        if len(fields) > 2 and fields[2].isdigit():
            found.setdefault(int(fields[2]), fields[0].decode(errors="replace"))
    return found
