# SPDX-License-Identifier: MIT
"""What systemd is asked for a job's scope, at its start and when it changes."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from joblet.config import InitPolicy
from joblet.init.scopes import Scopes
from joblet.launch.plan import Plan
from joblet.systemd.properties import INFINITY, Property
from joblet.systemd.units import Manager

JOB = "01234567-89ab-cdef-0123-456789abcdef"
UNIT = f"joblet-{JOB}.scope"


class Systemd:
    """Takes note of what it is asked, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def _note(self, what: str, given: Sequence[Property]) -> None:
        self.asked.append((what, {item.name: item.value for item in given}))

    async def start_scope(self, name: str, given: Sequence[Property], pids: Sequence[int]) -> None:
        self._note("start", given)

    async def set_unit_properties(self, name: str, given: Sequence[Property]) -> None:
        assert name == UNIT
        self._note("set", given)

    async def get_unit_properties(self, name: str, interface: str, names: Any = ()) -> Any:
        self._note("get", [])


def started(policy: InitPolicy, **properties: Any) -> dict[str, Any]:
    systemd = Systemd()
    plan = Plan(
        job=JOB, path="/bin/true", argv=("true",), env={}, uid_base=1, properties=properties
    )
    asyncio.run(Scopes(cast(Manager, systemd), policy).start(plan, 4711))
    [(_, given)] = systemd.asked
    return given


@pytest.mark.parametrize(
    ("ceilings", "properties", "weight"),
    [
        ({}, {}, 100),
        ({}, {"CPUWeight": 20}, 20),
        ({}, {"MemoryMax": 1 << 26}, 100),
        ({"CPUWeight": 50}, {}, 50),
        ({"CPUWeight": 1000}, {}, 100),
    ],
)
def test_every_job_is_one_to_the_scheduler(
    ceilings: dict[str, int], properties: dict[str, int], weight: int
) -> None:
    """Without a weight that is said, systemd gives it no cgroup of the cpu controller, and each
    process of a job counts as much as one of a service."""
    assert started(InitPolicy(ceilings=ceilings), **properties)["CPUWeight"] == weight


def test_a_change() -> None:
    systemd = Systemd()
    scopes = Scopes(cast(Manager, systemd), InitPolicy(jobs_dir="/jobs"))
    given = {
        "MemoryMax": 5, "TasksMax": None, "CPUWeight": None, "IOWeight": None, "AllowedCPUs": "0,2",
        "IOReadBandwidthMax": 7, "IOWriteBandwidthMax": None,
    }  # fmt: skip
    asyncio.run(scopes.change(UNIT, given))
    assert systemd.asked == [
        (
            "set",
            {
                "MemoryMax": 5,
                "TasksMax": INFINITY,
                "CPUWeight": 100,
                "IOWeight": INFINITY,
                "AllowedCPUs": b"\x05",
                "IOReadBandwidthMax": [("/jobs", 7)],
                "IOWriteBandwidthMax": [],
            },
        ),
        # the cgroup's files are written before its answer
        ("get", {}),
    ]
    asyncio.run(scopes.change(UNIT, {"AllowedCPUs": None}))
    assert systemd.asked[2] == ("set", {"AllowedCPUs": b""})
