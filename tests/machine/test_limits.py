# SPDX-License-Identifier: MIT
"""Limits on a kernel that has the controllers: what was asked is what the cgroup says and the
kernel does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.machine.client import Rnx, wait_served

if TYPE_CHECKING:
    from tests.machine.rig import Vm


MIB = 1 << 20


@pytest.fixture(scope="module")
def rnx(vm: Vm) -> Rnx:
    # the snapshot was taken without the project
    vm.run("systemctl daemon-reload; systemctl start joblet-init.socket joblet.service").check()
    wait_served(vm)
    return Rnx(vm)


def cgroup_file(vm: Vm, job: str, name: str) -> str:
    return vm.run(["cat", f"/sys/fs/cgroup/joblet.slice/joblet-{job}.scope/{name}"]).check().text


def test_effective_limits_are_what_was_asked(rnx: Rnx, vm: Vm) -> None:
    job = rnx.start("--max-cpu=50", "--max-memory=256M", "--max-iobps=8M", "--max-tasks=77",
                    "--cpu-cores=1", "sleep", "600")  # fmt: skip
    assert cgroup_file(vm, job, "cpu.max") == "50000 100000"
    assert cgroup_file(vm, job, "memory.max") == str(256 * MIB)
    assert cgroup_file(vm, job, "memory.swap.max") == "0"
    assert cgroup_file(vm, job, "pids.max") == "77"
    assert cgroup_file(vm, job, "cpuset.cpus") == "1"
    io = cgroup_file(vm, job, "io.max")
    assert f"rbps={8 * MIB} wbps={8 * MIB}" in io
    status = rnx.status(job)
    effective = status["effectiveLimits"]
    assert effective["maxCPU"] == 50
    assert effective["maxMemoryBytes"] == 256 * MIB
    assert effective["maxIOBPS"] == 8 * MIB
    assert effective["maxTasks"] == 77
    assert effective["cpuCores"] == "1"
    assert not effective["notEnforced"]
    assert rnx("stop", job).code == 0


def test_limits_of_all_jobs_together_reach_the_kernel(rnx: Rnx, vm: Vm) -> None:
    job = rnx.start("sleep", "600")
    pids_max = "/sys/fs/cgroup/joblet.slice/pids.max"
    before = vm.read(pids_max)
    vm.run(["systemctl", "set-property", "--runtime", "joblet.slice", "TasksMax=777"]).check()
    assert vm.read(pids_max) == b"777\n"
    vm.run(["systemctl", "revert", "joblet.slice"]).check()
    assert vm.read(pids_max) == before
    assert rnx("stop", job).code == 0


def test_a_memory_hog_ends_with_reason_oom(rnx: Rnx) -> None:
    hog = "x = bytearray()\nfor _ in range(128): x += bytes(1 << 20)"
    assert rnx("run", "--follow", "python3", "-c", hog, timeout=120).code == 0  # without a limit
    result = rnx("run", "--follow", "--max-memory=64M", "python3", "-c", hog, timeout=120)
    assert result.code == 137
    job = rnx.json("list")[-1]["id"]
    status = rnx.status(job)
    assert (status["status"], status["reason"]) == ("FAILED", "oom")
    assert 0 < status["usage"]["memoryPeakBytes"] <= 64 * MIB


def test_a_hog_among_others_takes_all_of_its_job_along(rnx: Rnx) -> None:
    """No half-dead jobs: the kernel chose the child, the command would have gone on."""
    script = (
        "python3 -c 'x = bytearray()\nwhile True: x += bytes(1 << 20)'; echo survived; sleep 600"
    )
    result = rnx("run", "--follow", "--max-memory=64M", "sh", "-c", script, timeout=120)
    assert result.code == 137
    assert b"survived" not in result.stdout


def cpu_share(rnx: Rnx, vm: Vm, *limits: str) -> float:
    """Of one CPU, used by a job that wants all of it; measured from outside."""
    job = rnx.start(*limits, "sh", "-c", "while :; do :; done")
    path = f"/sys/fs/cgroup/joblet.slice/joblet-{job}.scope/cpu.stat"
    read = f"awk '/^usage_usec/{{print $2}}' {path}; cut -d' ' -f1 /proc/uptime"
    first = vm.run(read).check().text.split()
    vm.run(["sleep", "5"])
    last = vm.run(read).check().text.split()
    rnx("stop", job).check()
    return (int(last[0]) - int(first[0])) / 1e6 / (float(last[1]) - float(first[1]))


def test_cpu_quota_is_enforced(rnx: Rnx, vm: Vm) -> None:
    limited = cpu_share(rnx, vm, "--max-cpu=30")
    assert 0.24 <= limited <= 0.36
    assert cpu_share(rnx, vm) > 0.5  # without a limit


FORK = """
import os, time
made = 0
while made < 60:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        break
    made += 1
print(made)
"""


def test_tasks_are_bounded(rnx: Rnx) -> None:
    limited = rnx("run", "--follow", "--max-tasks=16", "python3", "-c", FORK, timeout=120)
    assert 0 < int(limited.check().text) < 16  # PID 1 counts too
    free = rnx("run", "--follow", "python3", "-c", FORK, timeout=120)
    assert int(free.check().text) == 60


def test_io_is_bounded(rnx: Rnx) -> None:
    write = "dd if=/dev/zero of=/work/f bs=1M count=16 oflag=direct conv=fsync status=none"
    timed = f"s=$(date +%s%N); {write}; e=$(date +%s%N); echo $(((e - s) / 1000000))"
    limited = int(
        rnx("run", "--follow", "--max-iobps=4M", "sh", "-c", timed, timeout=90).check().text
    )
    free = int(rnx("run", "--follow", "sh", "-c", timed, timeout=90).check().text)
    assert limited > 3300  # 16 MiB at 4 MiB/s
    assert free < limited / 2


def test_limits_below_what_a_job_needs_are_refused(rnx: Rnx) -> None:
    for limit, words in (("--max-memory=4M", "16 MiB"), ("--max-cpu=1", "5 %")):
        refused = rnx("run", limit, "true")
        assert refused.code == 1
        assert words in refused.errors
