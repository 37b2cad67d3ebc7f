# SPDX-License-Identifier: MIT
"""The server goes away, jobs do not notice, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.machine.client import Rnx, wait_served
from tests.machine.rig import Nspawn, eventually

LINES = 100_000
EXPECTED = "".join(f"{n}\n" for n in range(1, LINES + 1)).encode()


@pytest.fixture
def rnx(fresh_machine: Nspawn) -> Rnx:
    wait_served(fresh_machine)
    return Rnx(fresh_machine)


def main_pid(machine: Nspawn) -> str:
    return machine.run(["systemctl", "show", "-p", "MainPID", "--value", "joblet.service"]).text


def kill_server(machine: Nspawn) -> None:
    """kill -9; returns when the next server is ready."""
    before = main_pid(machine)
    machine.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "joblet.service"]).check()
    eventually(lambda: main_pid(machine) not in (before, "0"), what="another server")
    wait_served(machine)


def test_server_killed_while_a_job_prints(rnx: Rnx, fresh_machine: Nspawn) -> None:
    # 100,000 numbered lines, in bursts, so that the kills fall into the middle of them
    script = "for i in $(seq 0 99); do seq $((i*1000+1)) $((i*1000+1000)); sleep 0.02; done; exit 5"
    job = rnx.start("sh", "-c", script)
    for _ in range(5):
        fresh_machine.run(["sleep", "0.3"])
        kill_server(fresh_machine)
    status = rnx.ended(job)
    assert (status["status"], status["exit_code"]) == ("FAILED", 5)
    assert rnx.log(job) == EXPECTED


def test_job_ends_while_the_server_is_away(rnx: Rnx, fresh_machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "seq 1 50000; sleep 2; seq 50001 100000; exit 6")
    eventually(lambda: rnx("log", "--no-follow", job).stdout.endswith(b"\n50000\n"))
    fresh_machine.run(["systemctl", "stop", "joblet.service"]).check()
    scope = f"joblet-{job}.scope"
    # the scope ends with its job, server or no server; what was in the pipe is in the directory
    eventually(
        lambda: fresh_machine.run(["systemctl", "is-active", scope]).text != "active",
        timeout=20,
        what="the scope's end",
    )
    left = fresh_machine.run(["ls", f"/var/lib/joblet/jobs/{job}"]).text.split()
    assert {"exit", "out.rest", "err.rest"} <= set(left)
    fresh_machine.run(["systemctl", "start", "joblet.service"]).check()
    status = rnx.ended(job)
    assert (status["status"], status["exit_code"]) == ("FAILED", 6)
    assert rnx.log(job) == EXPECTED
    eventually(lambda: fresh_machine.run(["ls", "/var/lib/joblet/jobs"]).text == "")


def test_running_jobs_outlive_both_services(rnx: Rnx, fresh_machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "echo before; sleep 5; echo after; exit 4")
    fresh_machine.run(["systemctl", "restart", "joblet-init.service", "joblet.service"]).check()
    wait_served(fresh_machine)
    assert rnx.status(job)["status"] == "RUNNING"
    status = rnx.ended(job)
    assert (status["status"], status["exit_code"]) == ("FAILED", 4)
    assert rnx.log(job) == b"before\nafter\n"


def test_a_follower_resumes_behind_a_killed_server(rnx: Rnx, fresh_machine: Nspawn) -> None:
    command = "for i in $(seq 1 40); do echo line $i; sleep 0.1; done; exit 9"
    with fresh_machine.spawn(["rnx", "run", "--follow", "sh", "-c", command]) as follower:
        follower.wait_for(b"line 10\n")
        kill_server(fresh_machine)
        result = follower.wait(60)
    assert result.code == 9
    assert result.stdout == "".join(f"line {n}\n" for n in range(1, 41)).encode()


def test_killed_pid1_is_told_as_that(rnx: Rnx, fresh_machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "echo said; sleep 300")
    eventually(lambda: rnx("log", "--no-follow", job).stdout == b"said\n")
    fresh_machine.run(["systemctl", "kill", "-s", "KILL", f"joblet-{job}.scope"]).check()
    status = rnx.ended(job)
    assert (status["status"], status["reason"]) == ("FAILED", "signalled")
    assert "unit killed" in status["reasonText"]
    assert rnx.log(job) == b"said\n"


def test_systemctl_stop_is_told_as_that(rnx: Rnx, fresh_machine: Nspawn) -> None:
    job = rnx.start("sleep", "300")
    stop = fresh_machine.run(["systemctl", "stop", f"joblet-{job}.scope"]).check()
    assert stop.seconds < 4
    status = rnx.ended(job)
    assert (status["status"], status["reason"]) == ("STOPPED", "unit-stopped")


def test_systemctl_kill_is_told_as_that(rnx: Rnx, fresh_machine: Nspawn) -> None:
    job = rnx.start("sleep", "300")
    fresh_machine.run(["systemctl", "kill", f"joblet-{job}.scope"]).check()
    status = rnx.ended(job)
    assert (status["status"], status["reason"]) == ("FAILED", "signalled")
    assert "systemctl kill" in status["reasonText"]
