# SPDX-License-Identifier: MIT
"""A job's limits for people and as JSON: what was asked for, and what the kernel enforces. Pure.

The two may differ: a sysadmin may have changed the job's unit, and a host may not enforce all.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rnx.formats import size
from rnx.quantities import MIB

if TYPE_CHECKING:
    from joblet_pb import joblet_pb2 as pb

USUAL_WEIGHT = 100  # what the kernel gives everybody

RLIMIT_NAMES = {
    "core": "Core Dumps",
    "fsize": "File Size",
    "memlock": "Locked Memory",
    "nofile": "Open Files",
    "stack": "Stack",
}
# A server may name a limit as the answer does, as the request does, or as its options do.
LIMIT_NAMES = {
    "max_memory_bytes": "max_memory",
    "memory_high_bytes": "memory_high",
    "max_swap_bytes": "max_swap",
    "max_io_bps": "max_iobps",
}


def asked(job: "pb.GetJobStatusResponse") -> dict[str, Any]:
    """Label -> text; empty where nothing was asked for."""
    swap = job.HasField("max_swap_bytes")
    return {
        "Max CPU": job.max_cpu and f"{job.max_cpu}%",
        "CPU Weight": job.cpu_weight,
        "Max Memory": job.max_memory and f"{job.max_memory} MB",
        "Memory High": job.memory_high_bytes and size(job.memory_high_bytes),
        "Max Swap": swap and size(job.max_swap_bytes),
        "Max IO BPS": job.max_io_bps,
        "Max Read BPS": job.max_read_bps,
        "Max Write BPS": job.max_write_bps,
        "IO Weight": job.io_weight,
        "CPU Cores": job.cpu_cores,
        "Max Tasks": job.max_tasks,
        # also those that are 0
        **{
            RLIMIT_NAMES.get(name, name): str(value) if name == "nofile" else size(value)
            for name, value in sorted(job.rlimits.items())
        },
        "Timeout": job.timeout,
        "GPUs": job.gpu_count,
    }


def limits_lines(limits: "pb.EffectiveLimits") -> list[str]:
    """What the kernel enforces, where what was asked for is not known."""
    from joblet_pb import joblet_pb2 as pb

    return effective(pb.GetJobStatusResponse(effective=limits))


class _Row(NamedTuple):
    """A limit: its names in not_enforced, what was asked for and what holds, as texts ("": none).
    same: they are, though they may be spelt otherwise."""

    names: tuple[str, ...]
    label: str
    asked: str
    real: str
    same: bool


def effective(job: "pb.GetJobStatusResponse") -> list[str]:
    """What the kernel enforces, and plainly what it does not."""
    if not job.HasField("effective"):
        return []
    missing = {LIMIT_NAMES.get(name, name) for name in job.effective.not_enforced}
    rows = [row for row in _rows(job) if missing.isdisjoint(row.names)]
    known = any(row.real for row in rows)  # of a job that never ran nothing is
    lines = []
    for row in rows:
        if known and row.asked and not row.same:
            lines.append(f"{row.label}: {row.real or 'none'} (asked: {row.asked})")
        elif row.real:
            lines.append(f"{row.label}: {row.real}")
    labels = {name: row.label for row in _rows(job) for name in row.names}
    said = dict.fromkeys(labels.get(name, name) for name in sorted(missing))
    lines += [f"{label}: not enforced on this host" for label in said]
    return lines or ["none"]


def _rows(job: "pb.GetJobStatusResponse") -> Iterator[_Row]:
    real = job.effective

    def number(name: str, label: str, asked: int, value: int, text: Any = str) -> _Row:
        want, have = (text(one) if one else "" for one in (asked, value))
        return _Row((name,), label, want, have, same=want == have)

    yield number("max_cpu", "CPU", job.max_cpu, real.max_cpu, "{}%".format)
    yield _weight("cpu_weight", "CPU Weight", job.cpu_weight, real.cpu_weight)
    same = _cores(job.cpu_cores) == _cores(real.cpu_cores)
    yield _Row(("cpu_cores",), "Cores", job.cpu_cores, real.cpu_cores, same)
    yield number("max_memory", "Memory", job.max_memory * MIB, real.max_memory_bytes, size)
    high = real.memory_high_bytes
    yield number("memory_high", "Memory High", job.memory_high_bytes, high, size)
    want = size(job.max_swap_bytes) if job.HasField("max_swap_bytes") else ""
    have = size(real.max_swap_bytes) if real.HasField("max_swap_bytes") else ""
    yield _Row(("max_swap",), "Swap", want, have, same=want == have)
    yield from _bandwidths(job)
    yield _weight("io_weight", "I/O Weight", job.io_weight, real.io_weight)
    yield number("max_tasks", "Tasks", job.max_tasks, real.max_tasks)


def _weight(name: str, label: str, asked: int, value: int) -> _Row:
    """What everybody has is no limit."""
    real = "" if value in (0, USUAL_WEIGHT) and not asked else str(value or "")
    return _Row((name,), label, str(asked or ""), real, same=asked == value)


def _bandwidths(job: "pb.GetJobStatusResponse") -> Iterator[_Row]:
    """One line where both ways are alike. A server of before knows but one number."""
    real, name = job.effective, "max_iobps"
    asked = [own or job.max_io_bps for own in (job.max_read_bps, job.max_write_bps)]
    found = [real.max_read_bps, real.max_write_bps]
    if not any(found):
        found = [real.max_io_bps, real.max_io_bps]
    ways = [
        _Row((f"max_{way}_bps", name), label, _rate(want), _rate(have), want == have)
        for way, label, want, have in zip(
            ("read", "write"), ("Read", "Write"), asked, found, strict=True
        )
    ]
    if asked[0] == asked[1] and found[0] == found[1]:
        yield ways[0]._replace(names=(name, "max_read_bps", "max_write_bps"), label="I/O")
    else:
        yield from ways


def _rate(value: int) -> str:
    return f"{size(value)}/s" if value else ""


def _cores(text: str) -> frozenset[str]:
    """Enough to compare two lists of the same few processors; others as they are."""
    found: set[str] = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if dash and low.isdigit() and high.isdigit() and 0 <= int(high) - int(low) < 10_000:
            found.update(map(str, range(int(low), int(high) + 1)))
        else:
            found.add(part)
    return frozenset(found)


def asked_json(job: "pb.GetJobStatusResponse") -> dict[str, Any]:
    """Keys only for what was asked for; the published ones keep their spelling and units."""
    swap = {"maxSwapBytes": job.max_swap_bytes} if job.HasField("max_swap_bytes") else {}
    limits = {
        "maxCPU": job.max_cpu,
        "maxMemory": job.max_memory,
        "maxIOBPS": job.max_io_bps,
        "cpuCores": job.cpu_cores,
        "maxTasks": job.max_tasks,
        "cpuWeight": job.cpu_weight,
        "memoryHighBytes": job.memory_high_bytes,
        "maxReadBPS": job.max_read_bps,
        "maxWriteBPS": job.max_write_bps,
        "ioWeight": job.io_weight,
    }
    return {key: value for key, value in limits.items() if value} | swap


def effective_json(job: "pb.GetJobStatusResponse") -> dict[str, Any] | None:
    """maxSwapBytes is null where there is no limit, for 0 is one."""
    return limits_json(job.effective) if job.HasField("effective") else None


def limits_json(limits: "pb.EffectiveLimits") -> dict[str, Any]:
    return {
        "maxCPU": limits.max_cpu,
        "cpuCores": limits.cpu_cores,
        "maxMemoryBytes": limits.max_memory_bytes,
        "maxIOBPS": limits.max_io_bps,
        "maxTasks": limits.max_tasks,
        "cpuWeight": limits.cpu_weight,
        "memoryHighBytes": limits.memory_high_bytes,
        "maxSwapBytes": limits.max_swap_bytes if limits.HasField("max_swap_bytes") else None,
        "maxReadBPS": limits.max_read_bps,
        "maxWriteBPS": limits.max_write_bps,
        "ioWeight": limits.io_weight,
        "notEnforced": list(limits.not_enforced),
    }
