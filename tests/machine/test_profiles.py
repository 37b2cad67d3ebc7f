# SPDX-License-Identifier: MIT
"""What init.yml permits of jobs, as their clients meet it: profiles, and a range of user ids."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from tests.machine.client import Rnx, wait_served

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn


@pytest.fixture
def rnx(fresh_machine: Nspawn) -> Rnx:
    wait_served(fresh_machine)
    return Rnx(fresh_machine)


def permit(rnx: Rnx, policy: str, *then: str) -> None:
    """Returns when the server has heard of it, in init mode's next hello: `then` is what a job that
    was refused before is run with."""
    rnx.machine.write("/etc/joblet/init.yml", f"{policy}\n".encode(), mode=0o600)
    assert rnx("run", *then).code == 1
    rnx.machine.run(["systemctl", "restart", "joblet-init.service"]).check()
    rnx.machine.wait_for(["rnx", "run", "--follow", *then])


def test_a_profile_is_named_and_refused_where_it_is_not_permitted(rnx: Rnx) -> None:
    permit(rnx, "profiles: [default, trusted]", "--profile=trusted", "true")
    job = rnx.start("--profile=trusted", "true")
    assert rnx.ended(job)["profile"] == "trusted"
    assert "Profile: trusted" in rnx("status", job).text
    audit = ["journalctl", "-o", "cat", "JOBLET_WHAT=RunJob", "JOBLET_PROFILE=trusted"]
    rnx.machine.wait_for(
        ["sh", "-c", f"{shlex.join(audit)} | grep -q '{job[:8]} (profile trusted): ok'"]
    )
    permit(rnx, "profiles: [strict]", "--profile=strict", "true")
    for words in (["--profile=trusted", "true"], ["true"]):
        refused = rnx("run", *words)
        assert refused.code == 1
        assert "is not permitted on this host" in refused.errors
        assert "profiles in /etc/joblet/init.yml" in refused.errors


def test_user_ids_of_a_narrow_range(rnx: Rnx) -> None:
    """Each job has one range of them; when none is left, that is what is said."""
    machine = rnx.machine
    first = 0x7000_0000 + 100 * 65536
    policy = f"uid_first: {first}\nuid_last: {first + 2 * 65536 - 1}\n"
    machine.write("/etc/joblet/init.yml", policy.encode(), mode=0o600)
    machine.run(["systemctl", "restart", "joblet-init.service"]).check()
    machine.wait_for(["rnx", "run", "--follow", "true"])
    jobs = [rnx.start("sleep", "600") for _ in range(2)]
    owners = [
        int(machine.run(["stat", "-c", "%u", f"/var/lib/joblet/jobs/{job}/work"]).check().text)
        for job in jobs
    ]
    assert owners == [first, first + 65536]
    refused = rnx("run", "true")
    assert refused.code == 1
    assert "all 2 ranges of user ids are in use, one for each job" in refused.errors
    assert "uid_first and uid_last in /etc/joblet/init.yml" in refused.errors
    for job in jobs:
        rnx("stop", job).check()
    machine.wait_for(["rnx", "run", "--follow", "true"])
