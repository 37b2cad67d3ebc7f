# SPDX-License-Identifier: MIT
"""joblet.systemd against a real systemd and a real dbus-daemon, which also go away and come back.

The bus of the machine is reached from outside; pids are the machine's own numbers, which is what
its systemd understands.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from joblet.errors import AlreadyExists
from joblet.systemd import properties as p
from joblet.systemd.bus import Bus, BusError
from joblet.systemd.units import SCOPE, UNIT, Manager, NoSuchUnit
from joblet.systemd.watch import (
    Event,
    JobNew,
    JobRemoved,
    Snapshot,
    UnitChanged,
    UnitRemoved,
    Watch,
)
from tests.machine.rig import Nspawn

pytestmark = pytest.mark.machine

SOURCES = Path(__file__).resolve().parents[2]
SOCKET = "run/dbus/system_bus_socket"

# What a server does, as anybody: follows and reads, and may not start a thing.
UNPRIVILEGED = """
import asyncio, os
from joblet.systemd import properties as p
from joblet.systemd.bus import Bus, BusError
from joblet.systemd.units import SCOPE, Manager
from joblet.systemd.watch import Snapshot, UnitRemoved

async def main():
    assert os.getuid() != 0
    bus = Bus()
    await bus.connect()
    manager = Manager(bus)
    await manager.start()
    try:
        await manager.start_scope("joblet-mine.scope", [], [os.getpid()])
    except BusError as error:
        print("refused", error.name, flush=True)
    async with await manager.watch("joblet-") as watch:
        async for event in watch:
            if isinstance(event, Snapshot):
                print("sees", [unit.name for unit in event.units], flush=True)
                found = await manager.get_unit_properties("joblet-a.scope", SCOPE, ["Slice"])
                print("reads", found, flush=True)
            if event == UnitRemoved("joblet-a.scope"):
                print("removed", flush=True)
                break
    await manager.close()
    await bus.close()

asyncio.run(main())
"""


def sleepers(machine: Nspawn, count: int, *, before: str = "true") -> list[int]:
    """Processes that sleep until something ends them; their pids in the machine."""
    script = (
        f"for i in $(seq {count}); do"
        f" setsid /bin/sh -c '{before}; exec sleep 1000' </dev/null >/dev/null 2>&1 & echo $!; done"
    )
    return [int(pid) for pid in machine.helper(["/bin/sh", "-c", script]).text.split()]


@contextlib.asynccontextmanager
async def managed(machine: Nspawn) -> AsyncIterator[Manager]:
    bus = Bus(f"unix:path={machine.root}/{SOCKET}")
    await bus.connect()
    manager = Manager(bus)
    try:
        await manager.start()
        yield manager
    finally:
        await manager.close()
        await bus.close()


def run(machine: Nspawn, test: Callable[[Manager], Awaitable[None]]) -> None:
    async def main() -> None:
        async with managed(machine) as manager, asyncio.timeout(50):
            await test(manager)

    asyncio.run(main())


async def inside(machine: Nspawn, *argv: str) -> str:
    done = await asyncio.to_thread(machine.helper, list(argv))
    assert done.code == 0, done.errors
    return done.text


async def until(watch: Watch, *wanted: Event) -> list[Event]:
    """All events up to the last of those that are waited for, which come in this order."""
    seen: list[Event] = []
    for one in wanted:
        async for event in watch:
            seen.append(event)
            if event == one:
                break
    return seen


def test_a_scope_from_start_to_end(bare_machine: Nspawn) -> None:
    name = "joblet-a.scope"
    settings = [
        p.description("what a job is called"),
        p.slice_("joblet.slice"),
        p.collect_mode("inactive-or-failed"),
        p.default_dependencies(on=False),
        p.after(["dbus.service"]),
        p.kill_mode("mixed"),
        p.send_sighup(on=True),
        p.send_sigkill(on=True),
        p.timeout_stop(7_000_000),
        p.cpu_quota(150),
        p.cpu_weight(400),
        p.allowed_cpus([0]),
        p.memory_max(64 << 20),
        p.memory_high(60 << 20),
        p.memory_swap_max(0),
        p.tasks_max(20),
        p.io_weight(50),
        p.io_read_bandwidth_max({"/dev/null": 1_000_000}),
        p.io_write_bandwidth_max({"/dev/null": 2_000_000}),
    ]

    async def test(manager: Manager) -> None:
        [pid] = sleepers(bare_machine, 1)
        async with await manager.watch("joblet-") as watch:
            assert await anext(watch) == Snapshot(())
            await manager.start_scope(name, settings, [pid])
            [unit] = await manager.list_units_by_patterns(["joblet-*.scope"])
            assert (unit.name, unit.load_state, unit.active_state) == (name, "loaded", "active")
            events = await until(watch, UnitChanged(name, "active", "running", 0))
            [new] = [event for event in events if isinstance(event, JobNew)]
            assert (new.name, new.job_type) == (name, "start")
            assert JobRemoved(name, new.job_id, "done") in events

            as_unit = await manager.get_unit_properties(name, UNIT)
            as_scope = await manager.get_unit_properties(name, SCOPE)
            for key, value in settings:
                found: Any = as_unit.get(key, as_scope.get(key))
                if key == "After":
                    assert set(value) <= set(found)
                elif key == "AllowedCPUs":
                    assert p.cpus_of_mask(found) == p.cpus_of_mask(value)
                elif key.endswith("BandwidthMax"):
                    assert found == [list(item) for item in value]
                else:
                    assert found == value, key
            group = as_scope["ControlGroup"]
            assert group == f"/joblet.slice/{name}"
            assert await manager.get_unit_properties(name, SCOPE, ["TasksMax", "Nonsense"]) == {
                "TasksMax": 20
            }

            await manager.set_unit_properties(name, [p.tasks_max(30), p.cpu_quota(None)])
            assert await manager.get_unit_properties(
                name, SCOPE, ["TasksMax", "CPUQuotaPerSecUSec"]
            ) == {"TasksMax": 30, "CPUQuotaPerSecUSec": p.INFINITY}

            await manager.kill_unit(name, "all", 9)
            events = await until(watch, UnitRemoved(name))
            assert not [event for event in events if isinstance(event, JobNew)]
        await manager.reset_failed(name)
        for call in (
            manager.get_unit_properties(name, SCOPE),
            manager.kill_unit(name, "all", 9),
            manager.stop_unit(name),
            manager.set_unit_properties(name, [p.tasks_max(1)]),
        ):
            with pytest.raises(NoSuchUnit):
                await call
        assert await manager.list_units_by_patterns(["joblet-*.scope"]) == []

    run(bare_machine, test)


def test_what_systemd_refuses(bare_machine: Nspawn) -> None:
    async def test(manager: Manager) -> None:
        first, second = sleepers(bare_machine, 2)
        await manager.start_scope("joblet-a.scope", [], [first])
        with pytest.raises(AlreadyExists, match=r"joblet-a\.scope"):
            await manager.start_scope("joblet-a.scope", [], [second])
        wrong = [
            ("joblet-c.scope", [p.cpu_weight(10_001)], [second]),
            ("joblet-d.scope", [p.kill_mode("gently")], [second]),
            ("joblet-e.scope", [], []),
            ("joblet-f.scope", [], [4_000_000]),
            ("joblet g.scope", [], [second]),
        ]
        for name, settings, pids in wrong:
            with pytest.raises(BusError, match=f"cannot start {name}"):
                await manager.start_scope(name, settings, pids)
        # the live change that the design relies on being impossible
        with pytest.raises(BusError):
            await manager.set_unit_properties("joblet-a.scope", [p.timeout_stop(1)])

    run(bare_machine, test)


def test_a_stop_from_outside_is_told_from_a_kill(bare_machine: Nspawn) -> None:
    async def test(manager: Manager) -> None:
        first, second, third = sleepers(bare_machine, 3)
        stop, kill, gone = "joblet-stop.scope", "joblet-kill.scope", "joblet-gone.scope"
        async with await manager.watch("joblet-") as watch:
            for name, pid in ((stop, first), (kill, second), (gone, third)):
                await manager.start_scope(name, [], [pid])
                await until(watch, UnitChanged(name, "active", "running", 0))
            await inside(bare_machine, "systemctl", "stop", stop)
            events = await until(watch, UnitRemoved(stop))
            [new] = [event for event in events if isinstance(event, JobNew)]
            assert (new.name, new.job_type) == (stop, "stop")
            assert JobRemoved(stop, new.job_id, "done") in events
            states = [event.active_state for event in events if isinstance(event, UnitChanged)]
            assert "deactivating" in states

            await inside(bare_machine, "systemctl", "kill", kill)
            events = await until(watch, UnitRemoved(kill))
            assert not [event for event in events if isinstance(event, JobNew)]

            await inside(bare_machine, "kill", str(third))
            events = await until(watch, UnitRemoved(gone))
            assert not [event for event in events if isinstance(event, JobNew)]

    run(bare_machine, test)


def test_stops_that_we_ask_for(bare_machine: Nspawn) -> None:
    async def test(manager: Manager) -> None:
        soft, hard = *sleepers(bare_machine, 1), *sleepers(bare_machine, 1, before='trap "" TERM')
        await manager.start_scope("joblet-soft.scope", [], [soft])
        await manager.start_scope("joblet-hard.scope", [p.timeout_stop(300_000)], [hard])
        results = await asyncio.gather(
            manager.stop_unit("joblet-soft.scope"),
            manager.stop_unit("joblet-hard.scope"),
            manager.stop_unit("joblet-hard.scope"),
        )
        assert set(results) == {"done"}
        for pid in (soft, hard):
            assert not bare_machine.exists(f"/proc/{pid}/exe")

    run(bare_machine, test)


def test_a_hundred_scopes_at_once(bare_machine: Nspawn) -> None:
    async def test(manager: Manager) -> None:
        pids = sleepers(bare_machine, 100)
        names = [f"joblet-{pid}.scope" for pid in pids]
        async with await manager.watch("joblet-") as watch:
            assert await anext(watch) == Snapshot(())
            started = time.monotonic()
            await asyncio.gather(
                *(
                    manager.start_scope(name, [p.slice_("joblet.slice")], [pid])
                    for name, pid in zip(names, pids, strict=True)
                )
            )
            print(f"100 scopes in {time.monotonic() - started:.3f} s")
            units = await manager.list_units_by_patterns(["joblet-*.scope"])
            assert {unit.name for unit in units if unit.active_state == "active"} == set(names)
            await asyncio.gather(*(manager.kill_unit(name, "all", 9) for name in names))
            left = set(names)
            async for event in watch:
                if isinstance(event, UnitRemoved):
                    left.discard(event.name)
                if not left:
                    break
            assert watch.overflows == 0

    run(bare_machine, test)


def test_reload_and_reexec_are_normal(bare_machine: Nspawn) -> None:
    """systemd announces the removal of every unit each time; none of it may be believed."""
    name = "joblet-a.scope"

    async def test(manager: Manager) -> None:
        [pid] = sleepers(bare_machine, 1)
        await manager.start_scope(name, [], [pid])
        async with await manager.watch("joblet-") as watch:
            await anext(watch)
            for verb in ("daemon-reload", "daemon-reexec", "daemon-reload", "daemon-reexec"):
                await inside(bare_machine, "systemctl", verb)
                while not isinstance(event := await anext(watch), Snapshot):
                    assert isinstance(event, UnitChanged)
                    assert event.active_state == "active"
                assert [unit.name for unit in event.units] == [name]
                assert await manager.get_unit_properties(name, UNIT, ["ActiveState"]) == {
                    "ActiveState": "active"
                }
            await inside(bare_machine, "systemctl", "stop", name)
            events = await until(watch, UnitRemoved(name))
            assert [event.job_type for event in events if isinstance(event, JobNew)] == ["stop"]

    run(bare_machine, test)


def test_scopes_start_and_stop_through_reexecs(bare_machine: Nspawn) -> None:
    async def test(manager: Manager) -> None:
        pids = sleepers(bare_machine, 60)
        stubborn = sleepers(bare_machine, 1, before='trap "" TERM')
        await manager.start_scope("joblet-x.scope", [p.timeout_stop(1_500_000)], stubborn)
        stopping = asyncio.create_task(manager.stop_unit("joblet-x.scope"))
        for wave in range(0, len(pids), 20):
            await asyncio.gather(
                inside(bare_machine, "systemctl", "daemon-reexec"),
                *(
                    manager.start_scope(f"joblet-{pid}.scope", [], [pid])
                    for pid in pids[wave : wave + 20]
                ),
            )
        assert await stopping == "done"
        units = await manager.list_units_by_patterns(["joblet-*.scope"])
        assert {unit.name for unit in units if unit.active_state == "active"} == {
            f"joblet-{pid}.scope" for pid in pids
        }

    run(bare_machine, test)


def test_a_dbus_daemon_that_dies_is_survived(bare_machine: Nspawn) -> None:
    name = "joblet-a.scope"

    async def test(manager: Manager) -> None:
        first, second = sleepers(bare_machine, 2)
        await manager.start_scope(name, [], [first])
        async with await manager.watch("joblet-") as watch:
            await anext(watch)
            await inside(bare_machine, "systemctl", "kill", "-s", "KILL", "dbus.service")
            while not isinstance(event := await anext(watch), Snapshot):
                pass
            assert [unit.name for unit in event.units] == [name]
            await manager.start_scope("joblet-b.scope", [], [second])
            await inside(bare_machine, "kill", str(first))
            await until(watch, UnitRemoved(name))

    run(bare_machine, test)


def test_without_a_privilege_it_can_look_and_not_touch(bare_machine: Nspawn) -> None:
    for source in [SOURCES / "joblet/errors.py", *(SOURCES / "joblet/systemd").glob("*.py")]:
        bare_machine.write(f"/opt/test/{source.relative_to(SOURCES)}", source.read_bytes())
    bare_machine.write("/opt/test/joblet/__init__.py", "")
    bare_machine.write("/opt/test/look.py", UNPRIVILEGED)

    async def test(manager: Manager) -> None:
        [pid] = sleepers(bare_machine, 1)
        await manager.start_scope("joblet-a.scope", [p.slice_("joblet.slice")], [pid])
        with bare_machine.spawn(["python3", "/opt/test/look.py"], user="nobody") as looker:
            await asyncio.to_thread(looker.wait_for, b"reads")
            await manager.kill_unit("joblet-a.scope", "all", 9)
            done = await asyncio.to_thread(looker.wait)
            done.check()
            refused, sees, reads, removed = done.text.splitlines()
            assert refused.startswith("refused org.freedesktop.DBus.Error.")
            assert sees == "sees ['joblet-a.scope']"
            assert reads == "reads {'Slice': 'joblet.slice'}"
            assert removed == "removed"

    run(bare_machine, test)
