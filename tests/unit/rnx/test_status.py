# SPDX-License-Identifier: MIT
"""rnx job status: the published shapes, and ours after them."""

import io
from pathlib import Path
from typing import Any

import pytest

from joblet_pb import joblet_pb2 as pb
from rnx import show_limits
from rnx.commands.status import status_json, status_text
from rnx.output import Environment
from tests.unit.rnx.conftest import NOW

JOB = "0f5e7a52-9b57-4d07-8d5e-6a1f3c2b4d10"


@pytest.fixture
def surroundings() -> Environment:
    return Environment(io.BytesIO(), io.BytesIO(), {}, Path(), Path(), now=NOW.timestamp)


def full() -> pb.GetJobStatusResponse:
    """A job that ended at its memory limit, with everything set."""
    return pb.GetJobStatusResponse(
        uuid=JOB,
        name="hog",
        node_id="node-1",
        command="python3",
        args=["-c", "print('Status: x')"],
        status="FAILED",
        start_time="2025-11-24T15:00:00Z",
        end_time="2025-11-24T15:01:30Z",
        exit_code=-1,
        signal=9,
        max_cpu=50,
        max_memory=64,
        max_io_bps=1000,
        cpu_cores="0-1",
        max_tasks=10,
        timeout="5m",
        overflow_strategy="sample",
        on_full="drop",
        output_trouble="cannot read it: the disk is slow",
        profile="strict",
        rlimits={"nofile": 4096, "core": 0},
        network="bridge",
        work_dir="/work",
        environment={"B": "2", "A": "Status: 1"},
        secret_environment={"S": "***"},
        volumes=["v"],
        uploads=["f.txt"],
        reason="oom",
        reason_text="killed at its memory limit of 64 MiB",
        unit=f"joblet-{JOB}.scope",
        pid=4711,
        cgroup=f"/joblet.slice/joblet-{JOB}.scope",
        cpu_weight=20,
        memory_high_bytes=48 << 20,
        max_swap_bytes=0,
        max_read_bps=2048,
        io_weight=300,
        effective=pb.EffectiveLimits(
            max_cpu=50,
            cpu_cores="0,1",
            max_memory_bytes=96 << 20,
            max_swap_bytes=0,
            max_tasks=10,
            cpu_weight=20,
            io_weight=100,
            not_enforced=["max_io_bps", "max_read_bps"],
        ),
        created_by="admin-client",
        usage=pb.JobUsage(
            cpu_usec=1_234_567,
            memory_peak_bytes=64 << 20,
            io_read_bytes=512,
            io_write_bytes=1536,
            memory_limit_bytes=96 << 20,
        ),
    )


def test_all_sections(surroundings: Environment) -> None:
    assert status_text(full(), surroundings) == (
        f"""\
Job ID: {JOB}
Job Name: hog
Node ID: node-1
Command: python3 -c print('Status : x')
Status: FAILED
Reason: oom: killed at its memory limit of 64 MiB

Timing:
  Created: 2025-11-24 15:00:00 UTC
  Ended: 2025-11-24 15:01:30 UTC
  Duration: 1.5m
  Created By: admin-client

Resource Limits:
  Max CPU: 50%
  CPU Weight: 20
  Max Memory: 64 MB
  Memory High: 48 MB
  Max Swap: 0 bytes
  Max IO BPS: 1000
  Max Read BPS: 2048
  IO Weight: 300
  CPU Cores: 0-1
  Max Tasks: 10
  Core Dumps: 0 bytes
  Open Files: 4096
  Timeout: 5m

Effective Limits:
  CPU: 50%
  CPU Weight: 20
  Cores: 0,1
  Memory: 96 MB (asked: 64 MB)
  Memory High: none (asked: 48 MB)
  Swap: 0 bytes
  I/O Weight: 100 (asked: 300)
  Tasks: 10
  Write: not enforced on this host
  Read: not enforced on this host

Output:
  Overflow: sample
  When Full: drop
  Trouble: cannot read it: the disk is slow

Isolation:
  Profile: strict

Systemd:
  Unit: joblet-{JOB}.scope
  PID: 4711
  Cgroup: /joblet.slice/joblet-{JOB}.scope

Usage:
  CPU Time: 1.235s
  Peak Memory: 64 MB
  Memory Limit: 96 MB
  Read: 512 bytes
  Written: 1.5 KB

Network Configuration:
  Network: bridge

Volumes:
  - v

Working Directory:
  Work Dir: /work

Uploaded Files:
  - f.txt

Environment Variables:
  A=Status : 1
  B=2
  S=*** (secret)

Result:
  Exit Code: -1
  Signal: 9 (SIGKILL)

Available Actions:
  • rnx job log {JOB}      # View job logs
  • rnx job delete {JOB}   # Delete job and logs"""
    )


@pytest.mark.parametrize(
    ("asked", "real", "lines"),
    [
        ({}, {"max_read_bps": 1 << 20, "max_write_bps": 1 << 20}, ["I/O: 1 MB/s"]),
        ({}, {"max_io_bps": 1 << 20}, ["I/O: 1 MB/s"]),  # of a server of before
        (
            {"max_io_bps": 2048},
            {"max_read_bps": 2048, "max_write_bps": 4096},
            ["Read: 2 KB/s", "Write: 4 KB/s (asked: 2 KB/s)"],
        ),
        # of a job that never ran nothing is known
        ({"max_cpu": 50, "max_memory": 64}, {}, ["none"]),
        ({"max_cpu": 50}, {"max_tasks": 9}, ["CPU: none (asked: 50%)", "Tasks: 9"]),
        ({}, {"cpu_weight": 100, "io_weight": 100}, ["none"]),  # as everybody has
        ({"cpu_weight": 100}, {"cpu_weight": 100}, ["CPU Weight: 100"]),
        ({"cpu_cores": "1-3,0"}, {"cpu_cores": "0-3"}, ["Cores: 0-3"]),
        ({"cpu_cores": "1-3"}, {"cpu_cores": "0-3"}, ["Cores: 0-3 (asked: 1-3)"]),
        ({"max_swap_bytes": 1024}, {"max_swap_bytes": 0}, ["Swap: 0 bytes (asked: 1 KB)"]),
    ],
)
def test_effective_limits(asked: dict[str, Any], real: dict[str, Any], lines: list[str]) -> None:
    effective = pb.EffectiveLimits(**real)
    job = pb.GetJobStatusResponse(uuid=JOB, status="RUNNING", effective=effective, **asked)
    assert show_limits.effective(job) == lines


def test_a_script_finds_one_line_with_the_status(surroundings: Environment) -> None:
    lines = status_text(full(), surroundings).splitlines()
    assert [line.split()[1] for line in lines if "Status:" in line] == ["FAILED"]


def test_a_running_job_has_no_result_and_runs_for_a_while(surroundings: Environment) -> None:
    job = pb.GetJobStatusResponse(
        uuid=JOB, status="RUNNING", start_time="2025-11-24T17:05:00+02:00"
    )
    text = status_text(job, surroundings)
    assert "  Created: 2025-11-24 17:05:00 +0200\n  Running For: 5.0s\n" in text
    assert "Result:" not in text
    assert f"rnx job stop {JOB}" in text
    assert "Effective Limits:" not in text


def test_a_scheduled_job_says_when(surroundings: Environment) -> None:
    job = pb.GetJobStatusResponse(
        uuid=JOB, status="SCHEDULED", scheduled_time="2025-11-24T17:06:00Z", start_time="bad time"
    )
    text = status_text(job, surroundings)
    assert "  Scheduled Time: 2025-11-24 17:06:00 UTC\n  Time Until Execution: 2h\n" in text
    assert "  Created: bad time\n" in text
    job.scheduled_time = "2025-11-24T15:00:00Z"
    assert "Due now" in status_text(job, surroundings)


def test_no_limit_at_all_is_said(surroundings: Environment) -> None:
    job = pb.GetJobStatusResponse(uuid=JOB, status="RUNNING", effective=pb.EffectiveLimits())
    assert "Effective Limits:\n  none\n" in status_text(job, surroundings)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"reason": "exited", "reason_text": "exited(3)"}, "Reason: exited(3)"),
        ({"reason": "lost"}, "Reason: lost"),
        ({"reason": "stopped", "stopped_by": "ann"}, "Reason: stopped (by ann)"),
        (
            {"reason": "stopped", "reason_text": "stopped(by ann)", "stopped_by": "ann"},
            "Reason: stopped(by ann)",
        ),
    ],
)
def test_reasons(fields: dict[str, str], line: str, surroundings: Environment) -> None:
    job = pb.GetJobStatusResponse(uuid=JOB, status="STOPPED", **fields)  # type: ignore[arg-type]
    assert line in status_text(job, surroundings).splitlines()


def test_json_keeps_the_published_keys_even_when_empty() -> None:
    shown = status_json(pb.GetJobStatusResponse(uuid=JOB, status="RUNNING"))
    assert list(shown) == sorted(shown)
    published = {
        "args": None,
        "command": "",
        "dependencies": None,
        "endTime": "",
        "environment": None,
        "exitCode": 0,
        "name": "",
        "network": "",
        "nodeId": "",
        "runtime": "",
        "scheduledTime": "",
        "secretEnvironment": None,
        "startTime": "",
        "status": "RUNNING",
        "uploads": None,
        "uuid": JOB,
        "volumes": None,
        "workDir": "",
        "workflowUuid": "",
    }
    assert published.items() <= shown.items()
    assert not {"maxCPU", "maxMemory", "maxIOBPS", "cpuCores", "maxTasks"} & set(shown)


def test_json_has_ours_too() -> None:
    shown = status_json(full())
    ours = {
        "maxCPU": 50,
        "maxMemory": 64,
        "maxIOBPS": 1000,
        "cpuCores": "0-1",
        "maxTasks": 10,
        "cpuWeight": 20,
        "memoryHighBytes": 48 << 20,
        "maxSwapBytes": 0,
        "maxReadBPS": 2048,
        "ioWeight": 300,
        "exit_code": -1,
        "reason": "oom",
        "unit": f"joblet-{JOB}.scope",
        "pid": 4711,
        "signal": 9,
        "secretEnvironment": {"S": "***"},
        "effectiveLimits": {
            "maxCPU": 50,
            "cpuCores": "0,1",
            "maxMemoryBytes": 96 << 20,
            "maxIOBPS": 0,
            "maxTasks": 10,
            "cpuWeight": 20,
            "memoryHighBytes": 0,
            "maxSwapBytes": 0,
            "maxReadBPS": 0,
            "maxWriteBPS": 0,
            "ioWeight": 100,
            "notEnforced": ["max_io_bps", "max_read_bps"],
        },
        "usage": {
            "cpuUsec": 1_234_567,
            "memoryPeakBytes": 64 << 20,
            "memoryLimitBytes": 96 << 20,
            "ioReadBytes": 512,
            "ioWriteBytes": 1536,
        },
    }
    assert ours.items() <= shown.items()
