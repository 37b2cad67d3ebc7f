# SPDX-License-Identifier: MIT
"""A job's scope: systemd's accountant and backstop. Which properties it gets, how it is asked for.

The slice, the kill settings and the OOM policy are ours; the rest is what the plan says and the
policy
has passed. Where each comes from: systemd.scope(5), systemd.kill(5), systemd.resource-control(5).
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from joblet.config import InitPolicy
from joblet.init import policy as permits
from joblet.launch.plan import Plan
from joblet.systemd import properties
from joblet.systemd.properties import Property
from joblet.systemd.units import UNIT, Manager, NoSuchUnit

DOCUMENTATION: Final = ("man:rnx(1)", "man:joblet(8)")
USUAL_WEIGHT: Final = 100  # the kernel's, of whoever has no other
STOP_S: Final = 630.0  # the longest TimeoutStopSec that the policy can permit, and a little


class Scopes:
    def __init__(self, manager: Manager, policy: InitPolicy) -> None:
        self._manager = manager
        self._policy = policy

    async def start(self, plan: Plan, pid: int) -> None:
        """Returns when systemd's job is done. Raises JobletError: refused, failed, no bus."""
        await self._manager.start_scope(plan.unit, self._properties(plan), [pid])

    async def stop(self, unit: str) -> None:
        """SIGTERM, TimeoutStopSec, SIGKILL, by systemd; returns when it is over. A unit that is
        gone is stopped."""
        with contextlib.suppress(NoSuchUnit):
            await self._manager.stop_unit(unit, timeout=STOP_S)

    async def kill(self, unit: str, signal: int) -> None:
        """A signal to every process of the scope. Raises NoSuchUnit when it is gone."""
        await self._manager.kill_unit(unit, "all", signal)

    async def change(self, unit: str, given: Mapping[str, Any]) -> None:
        """Limits of a running scope, until it ends; None lifts one. Returns when its cgroup has
        them. Raises NoSuchUnit when it is gone."""
        await self._manager.set_unit_properties(unit, self._limits(given))
        # systemd answers before it writes the cgroup's files, and writes them before it reads its
        # next message
        await self._manager.get_unit_properties(unit, UNIT, ["ActiveState"])

    async def forget(self, unit: str) -> None:
        """A failed scope stays loaded until somebody has seen it; now somebody has."""
        await self._manager.reset_failed(unit)

    def _properties(self, plan: Plan) -> list[Property]:
        made = [
            properties.description(permits.description(plan)),
            properties.documentation(DOCUMENTATION),
            properties.slice_(self._policy.slice),
            # a failed scope stays until the record is safe; any other may go at once
            properties.collect_mode("inactive"),
            # the default would end PID 1 along with the process that the kernel chose
            properties.oom_policy("continue"),
            properties.timeout_stop(plan.stop_us),
        ]
        if "CPUWeight" not in plan.properties:
            # what it has anyway, but said: only then it is a group for the scheduler, and one job
            # with many processes is to all others, and to the server, as one with few
            ceiling = self._policy.ceilings.get("CPUWeight", USUAL_WEIGHT)
            made.append(properties.cpu_weight(min(USUAL_WEIGHT, ceiling)))
        return made + self._limits(plan.properties)

    def _limits(self, given: Mapping[str, Any]) -> list[Property]:
        """None lifts a limit."""
        made = []
        for name, value in given.items():
            match name:
                case "IOReadBandwidthMax" | "IOWriteBandwidthMax":
                    # systemd finds the disk behind a directory; /work lies there
                    where = self._policy.jobs_dir
                    made.append(Property(name, [] if value is None else [(where, value)]))
                case "AllowedCPUs":
                    cpus = () if value is None else properties.cpu_list(value)
                    made.append(properties.allowed_cpus(cpus))
                case "CPUWeight" if value is None:
                    made.append(properties.cpu_weight(USUAL_WEIGHT))
                case _:
                    made.append(Property(name, properties.INFINITY if value is None else value))
        return made
