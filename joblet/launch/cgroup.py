# SPDX-License-Identifier: MIT
"""The job's own cgroup, as its PID 1 reads it: through descriptors opened before the cgroup
namespace.

stdlib alone. Files of controllers that the host does not have are simply not there; what they would
have said is left out, never guessed. (Documentation/admin-guide/cgroup-v2.rst)
"""

import os
from collections.abc import Mapping
from typing import Final

FILES: Final = ("memory.events", "memory.max", "memory.peak", "cpu.stat", "io.stat")


def own_path() -> str:
    """The caller's cgroup in the unified hierarchy, as its cgroup namespace shows it,
    "/a/b.scope"."""
    fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(fd, 65536)
    finally:
        os.close(fd)
    for line in lines.split(b"\n"):
        if line.startswith(b"0::"):
            return os.fsdecode(line[3:])
    return ""


class Cgroup:
    """Descriptors of one cgroup's files; they work until the cgroup is removed."""

    def __init__(self, root_fd: int, path: str) -> None:
        self._fds: dict[str, int] = {}
        for name in FILES:
            try:
                flags = os.O_RDONLY | os.O_CLOEXEC
                self._fds[name] = os.open(f"{path.lstrip('/')}/{name}", flags, dir_fd=root_fd)
            except OSError:
                continue

    @property
    def events_fd(self) -> int:
        """memory.events, for poll(POLLPRI); -1 without the memory controller."""
        return self._fds.get("memory.events", -1)

    def _read(self, name: str) -> bytes:
        try:
            return os.pread(self._fds[name], 65536, 0)
        except (KeyError, OSError):
            return b""

    def _pairs(self, name: str) -> dict[bytes, int]:
        pairs = (line.split(b" ", 1) for line in self._read(name).splitlines() if b" " in line)
        return {key: int(value) for key, value in pairs}

    def oom(self) -> tuple[bool, bool]:
        """(a process of the job was OOM-killed, the job's own limit was reached)."""
        events = self._pairs("memory.events")
        return bool(events.get(b"oom_kill")), bool(events.get(b"oom") or events.get(b"max"))

    def usage(self) -> Mapping[str, int]:
        """What the kernel accounted: cpu_usec, memory_peak, io_read, io_write (bytes), as far as
        it did; and memory_limit, if there is one."""
        usage: dict[str, int] = {}
        if (cpu := self._pairs("cpu.stat").get(b"usage_usec")) is not None:
            usage["cpu_usec"] = cpu
        if peak := self._read("memory.peak").strip():  # since Linux 5.19
            usage["memory_peak"] = int(peak)
        if (limit := self._read("memory.max").strip()).isdigit():
            usage["memory_limit"] = int(limit)
        if "io.stat" in self._fds:
            usage["io_read"] = usage["io_write"] = 0
            for line in self._read("io.stat").splitlines():
                for key, _, value in (item.partition(b"=") for item in line.split()[1:]):
                    if key in (b"rbytes", b"wbytes"):
                        usage["io_read" if key == b"rbytes" else "io_write"] += int(value)
        return usage
