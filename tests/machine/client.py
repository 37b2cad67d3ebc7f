# SPDX-License-Identifier: MIT
"""rnx in a machine, and what tests ask of it."""

from __future__ import annotations

import json
from typing import Any

from tests.machine.rig import Machine, Result, eventually

FINAL = {"COMPLETED", "FAILED", "STOPPED", "CANCELED"}


class Rnx:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __call__(self, *words: str, timeout: float = 60) -> Result:
        return self.machine.run(["rnx", *words], timeout=timeout)

    def start(self, *words: str) -> str:
        """The id of a job that was started."""
        return str(self.json("run", *words)["job_uuid"])

    def json(self, *words: str) -> Any:
        return json.loads(self("--json", *words).check().stdout)

    def status(self, job: str) -> dict[str, Any]:
        status: dict[str, Any] = self.json("status", job)
        return status

    def ended(self, job: str, *, timeout: float = 30) -> dict[str, Any]:
        """The status once it is final."""

        def final() -> dict[str, Any] | None:
            status = self.status(job)
            return status if status["status"] in FINAL else None

        return eventually(final, timeout=timeout, what=f"the end of job {job}") or {}

    def log(self, job: str, *words: str, timeout: float = 60) -> bytes:
        """All that a job printed."""
        return self("log", *words, job, timeout=timeout).check().stdout


def wait_served(machine: Machine) -> None:
    """Until the server answers; it is restarted at once, and a machine can be busy."""
    eventually(
        # of several units is-active means any
        lambda: (
            machine.run(
                "systemctl is-active joblet.service && systemctl is-active joblet-init.service"
            ).code
            == 0
        ),
        timeout=60,
        what="joblet.service",
    )
