# SPDX-License-Identifier: MIT
"""What the server asks systemd about its jobs' units, and what it makes of the answers."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from joblet.errors import NotFound, Unavailable
from joblet.model import unit_name
from joblet.server.ending import Witness
from joblet.server.units import JobUnits
from joblet.systemd.units import Manager
from joblet.systemd.watch import JobNew, Snapshot, UnitChanged, UnitRemoved, UnitStatus
from tests.unit.server.support import job_id, run

UNIT = unit_name(job_id(1))


class Systemd:
    """A Manager that answers what a test says."""

    def __init__(self, answer: Any = None, events: Sequence[object] = ()) -> None:
        self._answer = answer
        self._events = events
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.prefix = self.state = ""

    async def get_unit_properties(
        self, name: str, interface: str, names: tuple[str, ...]
    ) -> dict[str, Any]:
        self.asked.append((name, names))
        if isinstance(self._answer, Exception):
            raise self._answer
        return {"ActiveState": self._answer}

    async def watch(self, prefix: str, *, state: str) -> Any:
        self.prefix, self.state = prefix, state
        events = self._events

        @contextlib.asynccontextmanager
        async def watching() -> AsyncIterator[Any]:
            async def all_events() -> AsyncIterator[object]:
                for event in events:
                    yield event

            yield all_events()

        return watching()


@pytest.mark.parametrize(
    ("answer", "witness"),
    [
        ("active", Witness(stopping=False, blind=False)),
        ("activating", Witness(stopping=False, blind=False)),
        ("deactivating", Witness(stopping=True, blind=False)),
        ("failed", Witness(stopping=True, blind=False)),
        ("inactive", Witness(stopping=True, blind=False)),
        (NotFound("ask systemd", "no such unit"), Witness(blind=True)),
        (Unavailable("ask systemd", "no bus"), Witness(blind=True)),
    ],
)
def test_the_witness(answer: Any, witness: Witness) -> None:
    made = Systemd(answer)

    async def main() -> Witness:
        return await JobUnits(cast(Manager, made)).witness(UNIT)

    assert run(main) == witness
    assert made.asked == [(UNIT, ("ActiveState",))]


def status(name: str, active: str) -> UnitStatus:
    return UnitStatus(name, "loaded", active, "running", 0, "")


def test_units_that_systemd_stops() -> None:
    events = [
        Snapshot((status("joblet-a.scope", "active"), status("joblet-b.scope", "deactivating"))),
        JobNew("joblet-c.scope", 7, "stop"),
        UnitChanged("joblet-c.scope", "deactivating", "stop-sigterm", 7),
        UnitChanged("joblet-c.scope", "inactive", "dead", 0),
        UnitRemoved("joblet-d.scope"),
        UnitChanged("joblet-e.scope", "failed", "failed", 0),
    ]
    made = Systemd(events=events)
    seen: list[str] = []

    async def main() -> None:
        await JobUnits(cast(Manager, made)).follow(seen.append)

    run(main)
    assert seen == ["joblet-b.scope", "joblet-c.scope"]
    assert (made.prefix, made.state) == ("joblet-", "deactivating")
