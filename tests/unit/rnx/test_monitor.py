# SPDX-License-Identifier: MIT
"""rnx monitor status, against servers of ours and others."""

import grpc
import pytest

from joblet_pb import joblet_pb2 as pb
from tests.unit.rnx.conftest import Rnx
from tests.unit.rnx.scripted import Script

pytestmark = pytest.mark.usefixtures("config_file")

GIB = 1 << 30


def published() -> pb.SystemStatusResponse:
    """What a server answers that has no fields of ours."""
    return pb.SystemStatusResponse(
        timestamp="2025-11-24T15:04:05Z",
        available=True,
        host=pb.HostInfo(
            hostname="build-1",
            os="Debian GNU/Linux 12 (bookworm)",
            architecture="amd64",
            kernel_version="6.1.0-1-amd64",
            uptime=90_000,
            boot_time="2025-11-23T14:04:05Z",
        ),
        cpu=pb.CPUMetrics(
            cores=2,
            usage_percent=37.5,
            user_time=30,
            system_time=7.5,
            idle_time=62.5,
            load_average=[0.25, 1.5, 12],
            per_core_usage=[75, 0],
        ),
        memory=pb.MemoryMetrics(
            total_bytes=8 * GIB,
            used_bytes=2 * GIB,
            free_bytes=GIB,
            available_bytes=6 * GIB,
            usage_percent=25,
            cached_bytes=3 * GIB,
            buffered_bytes=GIB // 2,
            swap_total=4 * GIB,
            swap_used=GIB,
        ),
        disks=[
            pb.DiskMetrics(
                device="/dev/vda1",
                mount_point="/",
                filesystem="ext4",
                total_bytes=100 * GIB,
                used_bytes=40 * GIB,
                free_bytes=60 * GIB,
                usage_percent=40,
                inodes_total=1000,
                inodes_used=10,
            ),
            pb.DiskMetrics(device="/dev/vdb", mount_point="/srv", total_bytes=10 * GIB),
            pb.DiskMetrics(device="/dev/vdb", mount_point="/srv/x", total_bytes=10 * GIB),
        ],
        networks=[
            pb.NetworkMetrics(interface="lo", bytes_received=1, bytes_sent=1),
            pb.NetworkMetrics(
                interface="ens3",
                bytes_received=2048,
                bytes_sent=1024,
                packets_received=7,
                errors_in=1,
                receive_rate=512.7,
                ip_addresses=["192.0.2.7"],
                mac_address="52:54:00:12:34:56",
            ),
            pb.NetworkMetrics(interface="wlan0", bytes_received=4),
            pb.NetworkMetrics(interface="unused"),
        ],
        processes=pb.ProcessMetrics(
            total_processes=120,
            running_processes=2,
            sleeping_processes=117,
            zombie_processes=1,
            total_threads=300,
            top_by_cpu=[
                pb.ProcessInfo(
                    pid=pid,
                    name="make",
                    command="make -j",
                    cpu_percent=99.5,
                    memory_percent=1.5,
                    memory_bytes=GIB,
                    status="running",
                    start_time="2025-11-24T15:00:00Z",
                )
                for pid in range(1, 13)
            ],
        ),
        cloud=pb.CloudInfo(provider="aws", region="eu-west-1", instance_type="m5.large"),
    )


def ours() -> pb.SystemStatusResponse:
    answer = published()
    answer.host.node_id = "node-1"
    answer.host.server_ips.append("192.0.2.7")
    answer.host.mac_addresses.append("52:54:00:12:34:56")
    answer.server.memory_bytes = 45 << 20
    answer.server.cpu_percent = 2.125
    answer.jobs.running = 3
    answer.jobs.created = 10
    answer.jobs.completed = 6
    answer.jobs.failed = 1
    answer.jobs.average_duration_ms = 90_000
    logs = answer.logs
    logs.bytes_in, logs.chunks_in = 3 * GIB, 70_000
    logs.queue_bytes, logs.queue_chunks, logs.queue_limit_bytes = 200 << 20, 5000, GIB
    logs.bytes_out, logs.chunks_out, logs.batches = 2 * GIB, 60_000, 600
    logs.batch_size.CopyFrom(pb.Distribution(count=600, p50=100, p99=100, most=100))
    logs.write_us.CopyFrom(pb.Distribution(count=600, p50=1250, p99=8400, most=21_000))
    logs.overflow.update({"spill": 3, "compress": 12})
    logs.gaps.update({"sampled": 2, "lost": 1})
    logs.gap_bytes["sampled"] = 1536
    logs.followers, logs.follower_lag_bytes, logs.followers_removed = 3, 12 << 10, 1
    logs.pauses, logs.logs_open = 4, 9
    return answer


def test_json_of_a_published_server_has_the_published_keys(rnx: Rnx, script: Script) -> None:
    script.system = published()
    shown = rnx("monitor", "status", "--json").json
    assert shown.pop("hostInfo") == {
        "hostname": "build-1",
        "platform": "Debian GNU/Linux 12 (bookworm)",
        "arch": "amd64",
        "release": "6.1.0-1-amd64",
        "uptime": 90_000,
        "cloudProvider": "aws",
        "instanceType": "m5.large",
        "region": "eu-west-1",
    }
    assert shown.pop("cpuInfo") == {
        "cores": 2,
        "usage": 0.375,
        "loadAverage": [0.25, 1.5, 12],
        "perCoreUsage": [75, 0],
    }
    assert shown.pop("memoryInfo") == {
        "total": 8 * GIB,
        "used": 2 * GIB,
        "available": 6 * GIB,
        "percent": 25,
        "buffers": GIB // 2,
        "cached": 3 * GIB,
        "swap": {"total": 4 * GIB, "used": GIB, "percent": 25},
    }
    assert shown.pop("disksInfo") == {
        "disks": [
            {
                "name": "/dev/vda1",
                "mountpoint": "/",
                "filesystem": "ext4",
                "size": 100 * GIB,
                "used": 40 * GIB,
                "available": 60 * GIB,
                "percent": 40,
            }
        ],
        "totalSpace": 110 * GIB,
        "usedSpace": 40 * GIB,
    }
    network = shown.pop("networkInfo")
    assert (network["totalRxBytes"], network["totalTxBytes"]) == (2053, 1025)
    assert [(one["name"], one["type"], one["status"]) for one in network["interfaces"]] == [
        ("lo", "loopback", "up"),
        ("ens3", "ethernet", "up"),
        ("wlan0", "wireless", "up"),
    ]
    assert network["interfaces"][1] == {
        "name": "ens3",
        "type": "ethernet",
        "status": "up",
        "ipAddresses": ["192.0.2.7"],
        "macAddress": "52:54:00:12:34:56",
        "rxBytes": 2048,
        "txBytes": 1024,
        "rxPackets": 7,
        "txPackets": 0,
        "rxErrors": 1,
        "txErrors": 0,
    }
    assert "macAddress" not in network["interfaces"][0]
    processes = shown.pop("processesInfo")
    assert processes["totalProcesses"] == 120
    assert [process["pid"] for process in processes["processes"]] == list(range(1, 11))
    assert processes["processes"][0] == {
        "pid": 1,
        "name": "make",
        "command": "make -j",
        "cpu": 99.5,
        "memory": 1.5,
        "memoryBytes": GIB,
        "status": "running",
        "startTime": "2025-11-24T15:00:00Z",
    }
    assert shown == {}


def test_json_of_a_server_of_ours_has_more(rnx: Rnx, script: Script) -> None:
    script.system = ours()
    shown = rnx("--json", "monitor", "status").json
    host = shown["hostInfo"]
    assert (host["nodeId"], host["serverIPs"]) == ("node-1", ["192.0.2.7"])
    assert host["macAddresses"] == ["52:54:00:12:34:56"]
    assert shown["serverInfo"] == {
        "timestamp": "2025-11-24T15:04:05Z",
        "available": True,
        "version": "1.2.3",
        "memoryBytes": 45 << 20,
        "cpuPercent": 2.125,
    }
    assert shown["jobsInfo"] == {
        "running": 3,
        "created": 10,
        "completed": 6,
        "failed": 1,
        "stopped": 0,
        "averageDurationMs": 90_000,
    }
    assert shown["logsInfo"] == {
        "queueChunks": 5000,
        "queueBytes": 200 << 20,
        "queueLimitBytes": GIB,
        "bytesIn": 3 * GIB,
        "chunksIn": 70_000,
        "bytesOut": 2 * GIB,
        "chunksOut": 60_000,
        "batches": 600,
        "batchSize": {"count": 600, "p50": 100, "p99": 100, "most": 100},
        "writeUs": {"count": 600, "p50": 1250, "p99": 8400, "most": 21_000},
        "overflow": {"spill": 3, "compress": 12},
        "gaps": {"sampled": 2, "lost": 1},
        "gapBytes": {"sampled": 1536},
        "followers": 3,
        "followerLagBytes": 12 << 10,
        "followersRemoved": 1,
        "pauses": 4,
        "logsOpen": 9,
    }


def test_text_of_a_server_of_ours(rnx: Rnx, script: Script) -> None:
    script.system = ours()
    result = rnx("monitor", "status")
    assert (result.code, result.err) == (0, "")
    head, _, rest = result.text.partition("\n\n")
    assert head == "System Status - 2025-11-24T15:04:05Z\nAvailable: true"
    sections = {
        title: [" ".join(line.split()) for line in lines]
        for title, *lines in (section.split("\n") for section in rest.strip().split("\n\n"))
    }
    assert sections["Host Information:"][:2] == [
        "Hostname: build-1",
        "OS: Debian GNU/Linux 12 (bookworm)",
    ]
    assert "Uptime: 1d1h" in sections["Host Information:"]
    assert "Load Average: 0.25, 1.50, 12.00" in sections["CPU:"]
    assert "Used: 2 GB (25.0%)" in sections["Memory:"]
    assert "Swap Used: 1 GB of 4 GB" in sections["Memory:"]
    assert sections["Disk / (/dev/vda1):"][-1] == "Inodes: 10 of 1000"
    assert "Received: 2 KB (7 packets, 1 errors)" in sections["Network ens3:"]
    assert "Network unused:" not in sections
    assert sections["Processes:"][0] == "Total: 120"
    assert sections["Cloud Environment:"] == [
        "Provider: aws",
        "Region: eu-west-1",
        "Instance Type: m5.large",
    ]
    assert sections["Server:"] == ["Version: 1.2.3", "Memory: 45 MB", "CPU: 2.1% of a core"]
    assert sections["Jobs, since the server's start:"] == [
        "Running now: 3",
        "Created: 10",
        "Completed: 6",
        "Failed: 1",
        "Stopped: 0",
        "Took: 1.5m on average",
    ]
    assert sections["Log Engine, since the server's start:"] == [
        "Read: 3 GB in 70000 chunks",
        "Waiting: 200 MB of 1 GB (5000 chunks)",
        "Written: 2 GB in 600 batches",
        "Batch Size: p50 100 chunks, p99 100 chunks, most 100 chunks",
        "Write Latency: p50 1.25 ms, p99 8.40 ms, most 21.00 ms",
        "Overflow: compress 12, spill 3",
        "Gaps: lost 1, sampled 2 (1.5 KB)",
        "Followers: 3, the last one 12 KB behind; 1 removed for having stalled",
        "Disk Refused: 4 times",
        "Open Logs: 9",
    ]


def test_text_of_a_published_server_leaves_ours_out(rnx: Rnx, script: Script) -> None:
    script.system = published()
    text = rnx("monitor", "status").text
    assert "Hostname:" in text
    assert not [title for title in ("Jobs", "Log Engine", "Memory:        0") if title in text]


def test_a_server_that_has_not_looked_yet(rnx: Rnx, script: Script) -> None:
    script.system = pb.SystemStatusResponse(
        host=pb.HostInfo(hostname="build-1"), jobs=pb.JobCounts(), logs=pb.LogEngine()
    )
    text = rnx("monitor", "status").text
    assert "Hostname:      build-1" in text
    assert "Gaps:          none" in text
    assert "Memory" not in text
    shown = rnx("monitor", "status", "--json").json
    assert shown["processesInfo"] == {"processes": [], "totalProcesses": 0}


def test_what_a_server_says_does_not_reach_the_terminal(rnx: Rnx, script: Script) -> None:
    script.system = ours()
    script.system.host.hostname = "\x1b[31mred\nStatus: FAILED"
    script.system.disks[0].mount_point = "/\x1b]0;title\x07"
    script.system.networks[1].interface = "e\nth"
    script.system.processes.top_by_cpu[0].name = "a\nb\x1b[2J"
    script.system.logs.gaps["\x1b[5m"] = 1
    text = rnx("monitor", "status").text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "Status: FAILED" not in text
    assert "Network e\\nth:" in text


def test_a_server_without_monitoring(rnx: Rnx, script: Script) -> None:
    script.refuse = (grpc.StatusCode.UNIMPLEMENTED, "unknown method GetSystemStatus")
    result = rnx("monitor", "status")
    assert (result.code, result.out) == (1, b"")
    assert "does not serve this" in result.err
