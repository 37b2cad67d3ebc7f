# SPDX-License-Identifier: MIT
"""A PID 1 that does not answer: systemd ends its scope, and the record says what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.machine.client import Rnx

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    return Rnx(machine)


def freeze_pid1(rnx: Rnx, machine: Nspawn, job: str) -> None:
    machine.run(["kill", "-STOP", str(rnx.status(job)["pid"])]).check()


def test_stop_of_a_job_whose_pid1_hangs(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "echo said; sleep 300")
    freeze_pid1(rnx, machine, job)
    rnx("stop", job, timeout=60).check()
    status = rnx.ended(job)
    assert (status["status"], status["reason"]) == ("STOPPED", "stopped")
    assert rnx.log(job) == b"said\n"


def test_time_out_of_a_job_whose_pid1_hangs(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start("--timeout=1s", "sleep", "300")
    freeze_pid1(rnx, machine, job)
    status = rnx.ended(job, timeout=60)
    assert (status["status"], status["reason"]) == ("FAILED", "timeout")
