# SPDX-License-Identifier: MIT
"""GetSystemStatus as clients see it: real gRPC, a host made of files."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from joblet import __version__
from joblet.metrics import Registry
from joblet.model import End, JobState, Reason
from joblet.server.counts import JobCounts
from joblet.server.host import Host
from joblet.server.logs import GapKind, LogMetrics
from joblet.server.rpc.monitoring import MonitoringService
from joblet_pb import joblet_pb2 as pb
from tests.unit.server.grpc_support import call, channel, failure, serving
from tests.unit.server.host_tree import HostTree
from tests.unit.server.support import job, run

STATUS = "/joblet.MonitoringService/GetSystemStatus"
NOW_US = 1_700_000_200_000_000
# what published clients read without looking whether it is there
ALWAYS = {"host", "cpu", "memory", "processes", "cloud", "server_version"}


class Watched:
    """A service, what it looks at, and what it counts."""

    def __init__(self, base: Path) -> None:
        self.tree = HostTree(base)
        self.registry = Registry(lambda: 0.0)
        self.logs = LogMetrics.of(self.registry)
        self.jobs = JobCounts.of(self.registry)
        self.now = 0.0
        self.host = Host(10, wall_us=lambda: NOW_US, clock=lambda: self.now, root=base)
        self.service = MonitoringService(
            self.host, self.registry, node_id="node-1", clock_us=lambda: NOW_US
        )

    def look(self) -> None:
        self.host.latest = self.host.look()


@contextlib.asynccontextmanager
async def served(
    base: Path, unit: str = "admin"
) -> AsyncIterator[tuple[Watched, grpc.aio.Channel]]:
    base.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test may block
    watched = Watched(base)
    async with serving(watched.service.unary, {}) as target, channel(target, unit) as client:
        yield watched, client


def set_of(message: pb.SystemStatusResponse) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


def test_before_the_first_sample_every_part_is_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (_, client):
            answer = await call(client, STATUS)
            assert not answer.available
            assert set_of(answer) >= ALWAYS
            assert list(answer.cpu.load_average) == [0, 0, 0]
            assert answer.cpu.cores >= 1
            assert answer.server_version.version == __version__
            assert answer.host.node_id == "node-1"
            assert answer.timestamp

    run(main)


def test_the_host_in_numbers(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (watched, client):
            watched.tree.process(9, "a (b\n", ticks=100, pages=1000)
            watched.look()
            watched.tree.later()
            watched.now += 10
            watched.look()
            answer = await call(client, STATUS)
            assert answer.available
            assert set_of(answer) >= ALWAYS | {"disks", "networks", "io", "server"}

            host = answer.host
            assert (host.os, host.platform) == ("Debian GNU/Linux 12 (bookworm)", "debian")
            assert (host.cpu_count, host.total_memory, host.uptime) == (2, 8_192_000_000, 110)
            assert host.hostname
            assert host.boot_time.startswith("2023-11-1")
            assert list(host.server_ips) == ["2001:db8::7"]
            assert list(host.mac_addresses) == ["52:54:00:12:34:56"]

            cpu = answer.cpu
            assert (cpu.usage_percent, cpu.user_time, cpu.idle_time) == (30, 15, 70)
            assert list(cpu.load_average) == [0.25, 1.5, 12.0]
            assert list(cpu.per_core_usage) == [70, 0]

            memory = answer.memory
            assert (memory.usage_percent, memory.used_bytes) == (25, 2_048_000_000)
            assert (memory.swap_total, memory.swap_used) == (2_048_000_000, 512_000_000)
            assert memory.swap_free == memory.swap_total - memory.swap_used

            processes = answer.processes
            assert (processes.total_processes, processes.total_threads) == (1, 3)
            assert processes.sleeping_processes == 1
            (one,) = processes.top_by_cpu
            assert (one.pid, one.name, one.command) == (9, "a (b\n", "/bin/sh")
            assert one.status == "sleeping"

            fake0 = answer.networks[1]
            assert (fake0.interface, fake0.bytes_received, fake0.receive_rate) == (
                "fake0",
                6000,
                500,
            )
            assert (answer.io.total_reads, answer.io.read_rate) == (100, 102_400)
            assert answer.io.disk_io[0].utilization == 50
            assert answer.disks[0].mount_point == "/"
            assert answer.disks[0].total_bytes > answer.disks[0].used_bytes > 0
            assert answer.server.memory_bytes == 40_960_000

    run(main)


def test_jobs_and_the_log_engine_in_numbers(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as (watched, client):
            jobs, logs = watched.jobs, watched.logs
            jobs.running.watch(lambda: 3)
            for number, (state, took) in enumerate(
                [(JobState.COMPLETED, 2), (JobState.FAILED, 4), (JobState.STOPPED, 0)]
            ):
                jobs.began()
                started_us = 1_000_000 if took else 0  # the last one was never begun
                ended_us = 1_000_000 * (1 + took)
                end = End(Reason.EXITED)
                jobs.ended(
                    job(number, state=state, started_us=started_us, ended_us=ended_us, end=end)
                )
            logs.bytes_in.add(10**12)
            logs.queue_bytes.watch(lambda: 2**70)  # a number that the wire has no room for
            logs.wrote(100, 5, 1500.0)
            logs.overflow["spill"].add(7)
            logs.gap(GapKind.SAMPLED, 12)
            answer = await call(client, STATUS)
            assert answer.jobs == pb.JobCounts(
                running=3, created=3, completed=1, failed=1, stopped=1, average_duration_ms=3000
            )
            assert answer.logs.bytes_in == 10**12
            assert answer.logs.queue_bytes == 2**63 - 1
            assert answer.logs.write_us == pb.Distribution(count=1, p50=1500, p99=1500, most=1500)
            assert dict(answer.logs.overflow) == {"spill": 7}
            assert (dict(answer.logs.gaps), dict(answer.logs.gap_bytes)) == (
                {"sampled": 1},
                {"sampled": 12},
            )

    run(main)


def test_instruments_and_fields_have_the_same_names() -> None:
    registry = Registry(lambda: 0.0)
    LogMetrics.of(registry), JobCounts.of(registry)
    for message, prefix in ((pb.LogEngine, LogMetrics.PREFIX), (pb.JobCounts, JobCounts.PREFIX)):
        assert set(registry.read(prefix)) == {field.name for field in message.DESCRIPTOR.fields}
    assert all(name.startswith(("log_", "job_")) for name in registry.read())


@pytest.mark.parametrize("unit", ["viewer", "admin"])
def test_who_may_look(tmp_path: Path, unit: str) -> None:
    async def main() -> None:
        async with served(tmp_path, unit) as (watched, client):
            watched.look()
            assert (await call(client, STATUS)).available

    run(main)


def test_who_may_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, "guest") as (_, client):
            code, why = await failure(client, STATUS)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "OU=guest" in why

    run(main)
