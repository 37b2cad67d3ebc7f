# SPDX-License-Identifier: MIT
"""The host, the jobs and the log engine in numbers, as the hardened server sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn

MIB = 1 << 20


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    wait_served(machine)
    return Rnx(machine)


def status(rnx: Rnx) -> dict[str, Any]:
    """The numbers, once the server has looked at its host."""

    def seen() -> dict[str, Any] | None:
        found: dict[str, Any] = rnx.json("monitor", "status")
        return found if found["serverInfo"]["available"] else None

    return eventually(seen, what="the server's first look") or {}


def test_the_numbers_of_the_host_are_its_own(rnx: Rnx, machine: Nspawn) -> None:
    seen = status(rnx)
    told = machine.run(
        "uname -n; uname -r; getconf _NPROCESSORS_ONLN; cut -d. -f1 /proc/uptime;"
        " sed -n 's/^PRETTY_NAME=//p' /etc/os-release;"
        " awk '/^MemTotal/ {print $2}' /proc/meminfo"
    ).check()
    name, kernel, cores, uptime, system, memory = told.text.splitlines()
    host = seen["hostInfo"]
    assert (host["hostname"], host["release"], host["platform"]) == (
        name,
        kernel,
        system.strip('"'),
    )
    assert abs(host["uptime"] - int(uptime)) < 60
    assert host["nodeId"]
    assert seen["cpuInfo"]["cores"] == len(seen["cpuInfo"]["perCoreUsage"]) >= int(cores)
    assert 0 <= seen["cpuInfo"]["usage"] <= 1
    assert len(seen["cpuInfo"]["loadAverage"]) == 3
    assert seen["memoryInfo"]["total"] == int(memory) * 1024
    assert seen["memoryInfo"]["total"] > seen["memoryInfo"]["available"] > 0
    # it is user joblet, shut in, and sees those of others
    count = int(machine.run("ls -d /proc/[0-9]* | wc -l").text)
    assert abs(seen["processesInfo"]["totalProcesses"] - count) < max(20, count // 2)
    largest = seen["processesInfo"]["processes"]
    assert len(largest) >= min(5, count // 2)
    assert {process["pid"] for process in largest} <= set(range(1, 1 << 23))
    assert MIB < seen["serverInfo"]["memoryBytes"] < 300 * MIB

    def interfaces() -> list[str]:
        return [one["name"] for one in status(rnx)["networkInfo"]["interfaces"]]

    eventually(lambda: "lo" in interfaces(), what="a look after our own calls")


def test_a_viewer_sees_them_too_and_text_is_for_people(rnx: Rnx) -> None:
    status(rnx)
    shown = rnx("--node", "viewer", "monitor", "status").check().text
    for line in ("Available: true", "Host Information:", "CPU:", "Memory:", "Processes:"):
        assert line in shown.splitlines()
    assert "Log Engine, since the server's start:" in shown


def test_jobs_and_their_output_are_counted(rnx: Rnx) -> None:
    before = status(rnx)
    assert rnx("run", "--follow", "head", "-c", str(3 * MIB), "/dev/zero").code == 0
    assert rnx("run", "--follow", "false").code == 1
    job = rnx.start("sh", "-c", "echo up; exec sleep 300")
    seen = status(rnx)
    jobs, logs = seen["jobsInfo"], seen["logsInfo"]
    assert jobs["created"] - before["jobsInfo"]["created"] == 3
    assert jobs["completed"] - before["jobsInfo"]["completed"] == 1
    assert jobs["failed"] - before["jobsInfo"]["failed"] == 1
    assert jobs["running"] - before["jobsInfo"]["running"] == 1
    assert logs["bytesIn"] - before["logsInfo"]["bytesIn"] >= 3 * MIB
    assert logs["chunksIn"] > before["logsInfo"]["chunksIn"]
    assert logs["batches"] > before["logsInfo"]["batches"]
    assert 0 <= logs["queueBytes"] < logs["queueLimitBytes"]
    rnx("stop", job).check()
    after = status(rnx)["jobsInfo"]
    assert after["stopped"] - jobs["stopped"] == 1
    assert after["running"] == jobs["running"] - 1
    assert after["averageDurationMs"] > 0


def test_followers_are_counted_while_they_follow(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "echo up; exec sleep 300")
    before = status(rnx)["logsInfo"]["followers"]
    with machine.spawn(["rnx", "log", job]):
        eventually(
            lambda: status(rnx)["logsInfo"]["followers"] == before + 1, what="a follower's count"
        )
    eventually(lambda: status(rnx)["logsInfo"]["followers"] == before, what="the follower's end")
    rnx("stop", job).check()


NAMES = ["a) R 1 (b", "with space", "line\nend", "\x1b[31mred"]

RENAMED = """
import os, sys, time
for name in sys.argv[1:]:
    if os.fork() == 0:
        open("/proc/self/comm", "w", newline="").write(name)
        os.write(1, b"up\\n")
        while True:
            time.sleep(0.002)
time.sleep(300)
"""


def test_jobs_may_call_their_processes_what_they_like(rnx: Rnx) -> None:
    job = rnx.start("python3", "-c", RENAMED, *NAMES)
    eventually(lambda: rnx.log(job, "--no-follow") == b"up\n" * 4, what="the new names")

    def shown() -> bool:
        busiest = status(rnx)["processesInfo"]["processes"]
        return set(NAMES) <= {process["name"] for process in busiest}

    eventually(shown, timeout=60, what="the processes among the busiest")
    text = rnx("monitor", "status").check().text
    assert "\x1b" not in text
    assert text.count("System Status") == 1
    rnx("stop", job).check()


def test_a_new_server_counts_anew_and_looks_at_once(fresh_machine: Nspawn) -> None:
    wait_served(fresh_machine)
    rnx = Rnx(fresh_machine)
    rnx("run", "--follow", "true").check()
    job = rnx.start("sleep", "300")
    assert status(rnx)["jobsInfo"]["created"] == 2
    fresh_machine.run(["systemctl", "restart", "joblet.service"]).check()
    seen = status(rnx)
    assert (seen["jobsInfo"]["created"], seen["jobsInfo"]["running"]) == (0, 1)
    rnx("stop", job).check()
    assert status(rnx)["jobsInfo"]["stopped"] == 1


def test_how_often_it_looks_is_configured(fresh_machine: Nspawn) -> None:
    config = "/etc/joblet/joblet-config.yml"
    more = f"printf 'monitoring:\\n  system_interval: 1s\\n' >> {config}"
    fresh_machine.run(f"{more}\nsystemctl restart joblet.service").check()
    wait_served(fresh_machine)
    rnx = Rnx(fresh_machine)
    first = status(rnx)["serverInfo"]["timestamp"]
    times = {first}

    def looked() -> bool:
        times.add(status(rnx)["serverInfo"]["timestamp"])
        return len(times) == 4

    eventually(looked, timeout=9, what="three looks more")
