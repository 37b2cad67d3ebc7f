# SPDX-License-Identifier: MIT
"""What the kernel enforces for a cgroup, as its files say.

systemd writes them, also when a sysadmin changes a job (`systemctl set-property`), so they are read
whenever somebody asks. A file that is not there, for want of its controller or of the whole cgroup,
reads as no limit. (Documentation/admin-guide/cgroup-v2.rst)
"""

from pathlib import Path
from typing import Final

from joblet.model import Limits

ROOT: Final = Path("/sys/fs/cgroup")


def read(cgroup: Path) -> Limits:
    """The limits of the cgroup with this directory. Blocking, but for no disk."""
    cpu = 0
    quota, _, period = text(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cpu = int(quota) * 100 // int(period)
    reading, writing = _io(text(cgroup / "io.max"))
    swap = text(cgroup / "memory.swap.max")
    return Limits(
        max_cpu=cpu,
        cpu_cores=text(cgroup / "cpuset.cpus"),
        max_memory=_number(cgroup / "memory.max"),
        max_iobps=max(reading, writing) if reading and writing else 0,
        max_tasks=_number(cgroup / "pids.max"),
        cpu_weight=_number(cgroup / "cpu.weight"),
        memory_high=_number(cgroup / "memory.high"),
        max_swap=int(swap) if swap.isdigit() else None,
        max_read_bps=reading,
        max_write_bps=writing,
        io_weight=_weight(cgroup),
    )


def text(path: Path) -> str:
    """What a file holds; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    found = text(path)
    return int(found) if found.isdigit() else 0


def _weight(cgroup: Path) -> int:
    """For all devices: "default 100" of io.cost, and of BFQ, which is a file of its own."""
    for name in ("io.weight", "io.bfq.weight"):
        for line in text(cgroup / name).splitlines():
            word = line.removeprefix("default ")
            if word.isdigit():
                return int(word)
    return 0


def _io(found: str) -> tuple[int, int]:
    """The largest bandwidth over all devices, reading and writing; 0 where a device is open."""
    most = {"rbps": 0, "wbps": 0}
    opened = set()
    for line in found.splitlines():
        fields = dict(item.partition("=")[::2] for item in line.split()[1:])
        for key in most:
            if fields.get(key, "max").isdigit():
                most[key] = max(most[key], int(fields[key]))
            else:
                opened.add(key)
    reading, writing = (0 if key in opened else value for key, value in most.items())
    return reading, writing


def weighs_io(root: Path, sysfs: Path) -> bool:
    """Whether any disk of this host shares its time by weight: with BFQ as its scheduler, or with
    io.cost. Without either the kernel takes an io.weight and does nothing with it."""
    if any("enable=1" in line.split() for line in text(root / "io.cost.qos").splitlines()):
        return True
    return any("[bfq]" in text(path) for path in sysfs.glob("block/*/queue/scheduler"))
