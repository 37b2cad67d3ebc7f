# SPDX-License-Identifier: MIT
"""Limits on a kernel that has the controllers: what was asked is what the cgroup says and the
kernel does."""

from __future__ import annotations

import pytest

from tests.machine.client import Rnx, wait_served
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
    assert effective["max_cpu"] == 50
    assert effective["max_memory_bytes"] == 256 * MIB
    assert effective["max_io_bps"] == 8 * MIB
    assert effective["max_tasks"] == 77
    assert effective["cpu_cores"] == "1"
    assert not effective.get("not_enforced")
    assert rnx("stop", job).code == 0


def test_a_memory_hog_ends_with_reason_oom(rnx: Rnx) -> None:
    hog = "x = bytearray()\nwhile True: x += bytes(1 << 20)"
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


def test_cpu_quota_is_enforced(rnx: Rnx, vm: Vm) -> None:
    job = rnx.start("--max-cpu=30", "sh", "-c", "while :; do :; done")
    path = f"/sys/fs/cgroup/joblet.slice/joblet-{job}.scope/cpu.stat"
    read = f"awk '/^usage_usec/{{print $2}}' {path}; cut -d' ' -f1 /proc/uptime"
    first = vm.run(read).check().text.split()
    vm.run(["sleep", "6"])
    last = vm.run(read).check().text.split()
    used = (int(last[0]) - int(first[0])) / 1e6 / (float(last[1]) - float(first[1]))
    rnx("stop", job)
    assert 0.30 * 0.8 <= used <= 0.30 * 1.2


def test_tasks_are_bounded(rnx: Rnx, vm: Vm) -> None:
    job = rnx.start("--max-tasks=16", "sh", "-c", "for i in $(seq 40); do sleep 600 & done; wait")
    current = int(cgroup_file(vm, job, "pids.current"))
    assert current <= 16
    rnx("stop", job)


def test_limits_below_what_a_job_needs_are_refused(rnx: Rnx) -> None:
    for limit, words in (("--max-memory=4M", "16 MiB"), ("--max-cpu=1", "5 %")):
        refused = rnx("run", limit, "true")
        assert refused.code == 1
        assert words in refused.errors
