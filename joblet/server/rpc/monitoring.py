# SPDX-License-Identifier: MIT
"""MonitoringService: the host, the jobs and the log engine in numbers.

Published clients read most parts of the answer without asking whether they are there, so all of
them always are; before the first sample they are empty, and `available` is false.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from joblet import __version__
from joblet.metrics import Registry, Summary
from joblet.server.counts import JobCounts
from joblet.server.host import Host, Process, Sample
from joblet.server.host_devices import Disk, Filesystem, Interface
from joblet.server.logs import LogMetrics
from joblet.server.rpc.convert import timestamp
from joblet.server.rpc.guard import Caller, Unary
from joblet_pb import joblet_pb2 as pb

PATH: Final = "/joblet.MonitoringService/"
INT64: Final = 2**63 - 1
LOOPBACK: Final = "lo"

Filled = TypeVar("Filled", bound=Message)


class MonitoringService:
    """clock_us: microseconds since the epoch."""

    def __init__(
        self, host: Host, registry: Registry, *, node_id: str, clock_us: Callable[[], int]
    ) -> None:
        self._host = host
        self._registry = registry
        self._node_id = node_id
        self._clock_us = clock_us

    @property
    def unary(self) -> Mapping[str, Unary]:
        return {f"{PATH}GetSystemStatus": self.status}

    async def status(self, request: pb.EmptyRequest, caller: Caller) -> pb.SystemStatusResponse:
        sample = self._host.latest
        answer = pb.SystemStatusResponse(
            timestamp=timestamp(sample.at_us if sample else self._clock_us()),
            available=sample is not None,
            host=self._host_info(sample),
            cpu=_cpu(sample),
            memory=_memory(sample),
            processes=_processes(sample),
            cloud=pb.CloudInfo(
                provider=self._host.facts.cloud.provider,
                instance_type=self._host.facts.cloud.instance_type,
                hypervisor_type=self._host.facts.cloud.hypervisor,
            ),
            server_version=self._version(),
            logs=_numbers(pb.LogEngine(), self._registry.read(LogMetrics.PREFIX)),
            jobs=_numbers(pb.JobCounts(), self._registry.read(JobCounts.PREFIX)),
        )
        if sample is not None:
            answer.disks.extend(map(_filesystem, sample.filesystems))
            answer.networks.extend(_interface(each, sample) for each in sample.interfaces)
            answer.io.CopyFrom(_io(sample))
            answer.server.memory_bytes = sample.own.memory
            answer.server.cpu_percent = sample.own.cpu
        return answer

    def _host_info(self, sample: Sample | None) -> pb.HostInfo:
        facts = self._host.facts
        info = pb.HostInfo(
            hostname=os.uname().nodename,
            os=facts.system,
            platform=facts.distribution,
            platform_family=facts.family,
            platform_version=facts.version,
            kernel_version=facts.kernel,
            kernel_arch=facts.machine,
            architecture=facts.architecture,
            node_id=self._node_id,
        )
        if sample is not None:
            real = [each for each in sample.interfaces if each.name != LOOPBACK]
            info.cpu_count = sample.cores
            info.total_memory = sample.memory.total
            info.boot_time = timestamp(sample.boot_us)
            info.uptime = int(sample.uptime_s)
            info.server_ips.extend(address for each in real for address in each.addresses)
            info.mac_addresses.extend(each.mac for each in real if each.mac)
        return info

    def _version(self) -> pb.ServerVersionInfo:
        python = ".".join(map(str, sys.version_info[:3]))
        return pb.ServerVersionInfo(
            version=__version__,
            component="joblet",
            go_version=f"python{python}",
            platform=f"linux/{self._host.facts.architecture}",
        )


def _cpu(sample: Sample | None) -> pb.CPUMetrics:
    if sample is None:
        return pb.CPUMetrics(cores=os.cpu_count() or 0, load_average=(0.0, 0.0, 0.0))
    return pb.CPUMetrics(
        cores=sample.cores,
        usage_percent=sample.cpu.busy,
        user_time=sample.cpu.user,
        system_time=sample.cpu.system,
        idle_time=sample.cpu.idle,
        io_wait_time=sample.cpu.io_wait,
        steal_time=sample.cpu.steal,
        load_average=sample.load,
        per_core_usage=sample.per_core,
    )


def _memory(sample: Sample | None) -> pb.MemoryMetrics:
    if sample is None:
        return pb.MemoryMetrics()
    memory = sample.memory
    return pb.MemoryMetrics(
        total_bytes=memory.total,
        used_bytes=memory.used,
        free_bytes=memory.free,
        available_bytes=memory.available,
        usage_percent=_percent(memory.used, memory.total),
        cached_bytes=memory.cached,
        buffered_bytes=memory.buffers,
        swap_total=memory.swap_total,
        swap_used=max(0, memory.swap_total - memory.swap_free),
        swap_free=memory.swap_free,
    )


def _processes(sample: Sample | None) -> pb.ProcessMetrics:
    if sample is None:
        return pb.ProcessMetrics()
    seen = sample.processes

    def count(*states: str) -> int:
        return sum(seen.states.get(state, 0) for state in states)

    def shown(processes: Iterable[Process]) -> list[pb.ProcessInfo]:
        return [_process(process, sample.memory.total) for process in processes]

    return pb.ProcessMetrics(
        total_processes=seen.total,
        running_processes=count("running"),
        sleeping_processes=count("sleeping", "waiting", "idle"),
        stopped_processes=count("stopped", "traced"),
        zombie_processes=count("zombie"),
        total_threads=seen.threads,
        top_by_cpu=shown(seen.by_cpu),
        top_by_memory=shown(seen.by_memory),
    )


def _process(process: Process, total: int) -> pb.ProcessInfo:
    return pb.ProcessInfo(
        pid=process.pid,
        ppid=process.ppid,
        name=process.name,
        command=process.command,
        cpu_percent=process.cpu,
        memory_percent=_percent(process.memory, total),
        memory_bytes=process.memory,
        status=process.state,
        start_time=timestamp(process.started_us),
        user=process.user,
    )


def _filesystem(found: Filesystem) -> pb.DiskMetrics:
    used = found.inodes - found.inodes_free
    return pb.DiskMetrics(
        device=_text(found.mount.device),
        mount_point=_text(found.mount.point),
        filesystem=found.mount.kind,
        total_bytes=_int64(found.total),
        used_bytes=_int64(found.used),
        free_bytes=_int64(found.free),
        usage_percent=_percent(found.used, found.used + found.free),  # as df has it
        inodes_total=_int64(found.inodes),
        inodes_used=_int64(used),
        inodes_free=_int64(found.inodes_free),
        inodes_usage_percent=_percent(used, found.inodes),
    )


def _interface(found: Interface, sample: Sample) -> pb.NetworkMetrics:
    receiving, sending = sample.rates.get(found.name, (0.0, 0.0))
    return pb.NetworkMetrics(
        interface=found.name,
        bytes_received=_int64(found.bytes_in),
        bytes_sent=_int64(found.bytes_out),
        packets_received=_int64(found.packets_in),
        packets_sent=_int64(found.packets_out),
        errors_in=_int64(found.errors_in),
        errors_out=_int64(found.errors_out),
        drops_in=_int64(found.drops_in),
        drops_out=_int64(found.drops_out),
        receive_rate=receiving,
        transmit_rate=sending,
        ip_addresses=found.addresses,
        mac_address=found.mac,
    )


def _io(sample: Sample) -> pb.IOMetrics:
    rates = [sample.rates.get(disk.name, (0.0, 0.0)) for disk in sample.disks]
    return pb.IOMetrics(
        total_reads=_int64(sum(disk.reads for disk in sample.disks)),
        total_writes=_int64(sum(disk.writes for disk in sample.disks)),
        read_bytes=_int64(sum(disk.read_bytes for disk in sample.disks)),
        write_bytes=_int64(sum(disk.write_bytes for disk in sample.disks)),
        read_rate=sum(rate[0] for rate in rates),
        write_rate=sum(rate[1] for rate in rates),
        disk_io=[_disk(disk, sample.busy.get(disk.name, 0.0)) for disk in sample.disks],
    )


def _disk(disk: Disk, busy: float) -> pb.DiskIOMetrics:
    return pb.DiskIOMetrics(
        device=disk.name,
        reads_completed=_int64(disk.reads),
        writes_completed=_int64(disk.writes),
        read_bytes=_int64(disk.read_bytes),
        write_bytes=_int64(disk.write_bytes),
        read_time=_int64(disk.read_ms),
        write_time=_int64(disk.write_ms),
        io_time=_int64(disk.busy_ms),
        utilization=busy,
    )


def _numbers(into: Filled, values: Mapping[str, Any]) -> Filled:
    """Instruments into the fields of their names."""
    for name, value in values.items():
        if isinstance(value, Summary):
            part = pb.Distribution(count=value.count, p50=value.p50, p99=value.p99, most=value.most)
            getattr(into, name).CopyFrom(part)
        elif isinstance(value, dict):
            getattr(into, name).update(value)
        else:
            setattr(into, name, _int64(value))
    return into


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _int64(value: int) -> int:
    return max(0, min(value, INT64))


def _text(name: str) -> str:
    """What protobuf takes: a path may have bytes that are no text."""
    return name.encode(errors="replace").decode()
