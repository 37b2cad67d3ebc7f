# SPDX-License-Identifier: MIT
"""The jobs' units as systemd sees them: who stops them when it is not us. Needs no privilege."""

import logging
from collections.abc import Callable
from typing import Final

from joblet.errors import JobletError
from joblet.server.ending import Witness
from joblet.systemd.units import UNIT, Manager
from joblet.systemd.watch import Snapshot, UnitChanged

log = logging.getLogger(__name__)

PREFIX: Final = "joblet-"
STOPPING: Final = frozenset({"deactivating", "inactive", "failed"})


class JobUnits:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def witness(self, unit: str) -> Witness:
        """Whether systemd is stopping the unit, asked while its PID 1 still waits."""
        try:
            state = await self._manager.get_unit_properties(unit, UNIT, ("ActiveState",))
        except JobletError as error:
            log.debug("%s", error)
            return Witness(blind=True)
        return Witness(stopping=state.get("ActiveState") in STOPPING, blind=False)

    async def follow(self, stopping: Callable[[str], None]) -> None:
        """Calls `stopping` with a unit's name when systemd begins to stop it. Ends by
        cancellation."""
        async with await self._manager.watch(PREFIX, state="deactivating") as watch:
            async for event in watch:
                match event:
                    case UnitChanged(name, "deactivating", _, _):
                        stopping(name)
                    case Snapshot(units):
                        for unit in units:
                            if unit.active_state == "deactivating":
                                stopping(unit.name)
                    case _:
                        pass
