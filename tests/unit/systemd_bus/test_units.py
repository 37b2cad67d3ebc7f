# SPDX-License-Identifier: MIT
"""The manager against a scripted systemd on a private bus: orders of events that the real one
shows rarely. tests/machine/test_bus.py has the real one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dbus_next import Message, Variant

from joblet.errors import AlreadyExists, Unavailable
from joblet.systemd import properties as p
from joblet.systemd import units as module
from joblet.systemd.bus import Bus, BusError, Lost
from joblet.systemd.signals import DRIVER, DRIVER_PATH
from joblet.systemd.units import MANAGER, MANAGER_PATH, SYSTEMD, JobFailed, Manager, NoSuchUnit
from joblet.systemd.watch import JobNew, Snapshot, UnitChanged, UnitRemoved
from tests.unit.systemd_bus.daemon import Daemon, Peer, connected, fails, peer, returns, until

A = "joblet-a.scope"
JOB = f"{MANAGER_PATH}/job/7"


def removed(result: str, job_id: int = 7, unit: str = A) -> Message:
    path = f"{MANAGER_PATH}/job/{job_id}"
    return Message.new_signal(
        MANAGER_PATH, MANAGER, "JobRemoved", "uoss", [job_id, path, unit, result]
    )


def reloading(*, on: bool) -> Message:
    return Message.new_signal(MANAGER_PATH, MANAGER, "Reloading", "b", [on])


def row(name: str, active: str, job_id: int = 0) -> list[Any]:
    load = "loaded" if active == "active" or job_id else "not-found"
    path = f"{MANAGER_PATH}/job/{job_id}" if job_id else "/"
    return [name, name, load, active, "", "", p.unit_path(name), job_id, "", path]


def listing(*rows: list[Any]) -> Any:
    return returns("a(ssssssouso)", list(rows))


@contextlib.asynccontextmanager
async def systemd(daemon: Daemon) -> AsyncIterator[Peer]:
    async with peer(daemon.address, SYSTEMD) as one:
        one.answers["Subscribe"] = returns()
        yield one


@contextlib.asynccontextmanager
async def managed(bus: Bus) -> AsyncIterator[Manager]:
    manager = Manager(bus)
    await manager.start()
    try:
        yield manager
    finally:
        await manager.close()


def test_no_systemd_is_said_with_a_hint(daemon: Daemon) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus:
            with pytest.raises(Unavailable, match="systemd is not on the bus") as caught:
                await Manager(bus).start()
            assert "PID 1" in caught.value.text

    asyncio.run(main())


def test_what_a_scope_is_started_with(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            one.answers["StartTransientUnit"] = lambda m: [
                Message.new_method_return(m, "o", [JOB]),
                removed("done"),
            ]
            await manager.start_scope(A, [p.slice_("joblet.slice"), p.tasks_max(9)], [1, 2])
            [call] = [call for call in one.calls if call.member == "StartTransientUnit"]
            name, mode, given, aux = call.body
            assert (name, mode, aux) == (A, "fail", [])
            assert [(key, value.signature, value.value) for key, value in given] == [
                ("Slice", "s", "joblet.slice"),
                ("TasksMax", "t", 9),
                ("PIDs", "au", [1, 2]),
            ]

    asyncio.run(main())


def test_a_job_that_is_over_before_the_answer_names_it(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            one.answers["StartTransientUnit"] = lambda m: [
                removed("failed", job_id=6),  # an older job of the same unit
                removed("done"),
                removed("failed", unit="joblet-b.scope"),
                Message.new_method_return(m, "o", [JOB]),
            ]
            await manager.start_scope(A, [], [1])

    asyncio.run(main())


def test_a_job_that_ends_badly(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            answer = lambda m: [Message.new_method_return(m, "o", [JOB]), removed("canceled")]  # noqa: E731
            one.answers |= {"StartTransientUnit": answer, "StopUnit": answer}
            with pytest.raises(JobFailed, match=r"cannot start .*ended as 'canceled'") as caught:
                await manager.start_scope(A, [], [1])
            assert caught.value.result == "canceled"
            assert await manager.stop_unit(A) == "canceled"

    asyncio.run(main())


def test_a_job_that_does_not_end(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            one.answers["StartTransientUnit"] = returns("o", JOB)
            with pytest.raises(Lost, match="has not ended its job"):
                await manager.start_scope(A, [], [1], timeout=0.05)

    asyncio.run(main())


def test_refusals_in_our_words(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            one.answers["StartTransientUnit"] = fails(f"{SYSTEMD}.UnitExists", "it exists")
            with pytest.raises(AlreadyExists, match=f"cannot start {A}: it exists"):
                await manager.start_scope(A, [], [1])
            one.answers["StartTransientUnit"] = fails(
                "org.freedesktop.DBus.Error.AccessDenied", "no"
            )
            with pytest.raises(BusError, match=f"cannot start {A}: no") as caught:
                await manager.start_scope(A, [], [1])
            assert caught.value.name == "org.freedesktop.DBus.Error.AccessDenied"
            gone = fails(f"{SYSTEMD}.NoSuchUnit", f"Unit {A} not loaded.")
            for member in ("StopUnit", "KillUnit", "ResetFailedUnit", "SetUnitProperties"):
                one.answers[member] = gone
            one.answers |= {"GetUnit": gone, "GetAll": returns("a{sv}", {})}
            with pytest.raises(NoSuchUnit):
                await manager.stop_unit(A)
            with pytest.raises(NoSuchUnit):
                await manager.kill_unit(A, "all", 15)
            with pytest.raises(NoSuchUnit):
                await manager.set_unit_properties(A, [p.tasks_max(1)])
            with pytest.raises(NoSuchUnit):
                await manager.get_unit_properties(A, module.SCOPE)
            await manager.reset_failed(A)

    asyncio.run(main())


def test_subscribed_already_is_no_error(daemon: Daemon) -> None:
    async def main() -> None:
        async with systemd(daemon) as one, connected(daemon.address) as bus:
            one.answers["Subscribe"] = fails(f"{SYSTEMD}.AlreadySubscribed", "already")
            async with managed(bus):
                pass

    asyncio.run(main())


def test_removals_during_a_reload_are_not_believed(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            one.answers["ListUnitsByPatterns"] = listing(row(A, "active"))
            async with await manager.watch("joblet-") as watch:
                assert isinstance(await anext(watch), Snapshot)
                path = p.unit_path(A)
                changed = {"ActiveState": ("s", "active"), "SubState": ("s", "running")}
                for message in (
                    reloading(on=True),
                    Message.new_signal(MANAGER_PATH, MANAGER, "UnitRemoved", "so", [A, path]),
                    Message.new_signal(MANAGER_PATH, MANAGER, "UnitNew", "so", [A, path]),
                    Message.new_signal(MANAGER_PATH, MANAGER, "JobNew", "uos", [7, JOB, A]),
                    removed("done"),
                    reloading(on=False),
                ):
                    await one.connection.send(message)
                assert isinstance(await anext(watch), Snapshot)
                await one.signal(
                    path,
                    "org.freedesktop.DBus.Properties",
                    "PropertiesChanged",
                    "sa{sv}as",
                    [module.UNIT, as_variants(changed | {"Job": ("(uo)", [7, JOB])}), []],
                )
                assert await anext(watch) == UnitChanged(A, "active", "running", 7)
                await one.signal(MANAGER_PATH, MANAGER, "UnitRemoved", "so", [A, path])
                assert await anext(watch) == UnitRemoved(A)

    asyncio.run(main())


def as_variants(values: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {key: Variant(*value) for key, value in values.items()}


def test_types_of_jobs_are_asked_for(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            systemd(daemon) as one,
            connected(daemon.address) as bus,
            managed(bus) as manager,
        ):
            one.answers["ListUnitsByPatterns"] = listing(row(A, "active"))
            one.answers["Get"] = lambda m: [
                Message.new_method_return(m, "v", [as_variants({"v": ("s", "stop")})["v"]])
            ]
            async with await manager.watch("joblet-") as watch:
                await anext(watch)
                await one.signal(MANAGER_PATH, MANAGER, "JobNew", "uos", [7, JOB, A])
                assert await anext(watch) == JobNew(A, 7, "stop")
                [call] = [call for call in one.calls if call.member == "Get"]
                assert (call.path, call.body) == (JOB, [module.JOB, "JobType"])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("then", "result"),
    [(row(A, "inactive"), "done"), (row(A, "failed"), "done"), (row(A, "active"), "canceled")],
)
def test_a_stop_that_outlives_systemd_itself(daemon: Daemon, then: list[Any], result: str) -> None:
    """daemon-reexec: another connection owns the name, and its JobRemoved was never sent."""

    async def main() -> None:
        async with connected(daemon.address) as bus, contextlib.AsyncExitStack() as stack:
            async with systemd(daemon) as old:
                old.answers["StopUnit"] = returns("o", JOB)
                manager = await stack.enter_async_context(managed(bus))
                stopping = asyncio.create_task(manager.stop_unit(A))
                await until(lambda: any(call.member == "StopUnit" for call in old.calls))
                # its answer is with the daemon when this one comes back
                await old.call(Message(DRIVER, DRIVER_PATH, DRIVER, "GetId"))
            async with systemd(daemon) as new:
                listings = iter([listing(row(A, "active", 7)), listing(then)])
                new.answers["ListUnitsByNames"] = lambda m: next(listings)(m)
                # the job still waits: the listing says so, and nothing is concluded
                await until(lambda: [c.member for c in new.calls].count("ListUnitsByNames") == 1)
                await new.connection.send(reloading(on=False))
                assert await stopping == result

    asyncio.run(main())


@pytest.mark.parametrize("heard", ["job", "active", "not"])
def test_a_start_that_systemd_may_or_may_not_have_heard(daemon: Daemon, heard: str) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus, contextlib.AsyncExitStack() as stack:
            async with systemd(daemon) as old:
                old.answers["StartTransientUnit"] = lambda m: None
                manager = await stack.enter_async_context(managed(bus))
                starting = asyncio.create_task(manager.start_scope(A, [], [1]))
                await until(lambda: len(old.calls) == 2)
            async with peer(daemon.address) as new:
                new.answers |= {
                    "Subscribe": returns(),
                    "ListUnitsByNames": listing(
                        row(A, "active" if heard == "active" else "inactive", 7 * (heard == "job"))
                    ),
                    "StartTransientUnit": returns("o", JOB),
                }
                await new.connection.request_name(SYSTEMD)
                if heard != "active":
                    await until(lambda: has(new, "ListUnitsByNames"))
                if heard == "not":
                    await until(lambda: has(new, "StartTransientUnit"))
                if heard != "active":
                    await new.connection.send(removed("done"))
                await starting
                assert has(new, "StartTransientUnit") == (heard == "not")

    def has(one: Peer, member: str) -> bool:
        return any(call.member == member for call in one.calls)

    asyncio.run(main())


def test_calls_wait_for_systemd_to_come_back(daemon: Daemon) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus, contextlib.AsyncExitStack() as stack:
            async with systemd(daemon):
                manager = await stack.enter_async_context(managed(bus))
            listed = asyncio.create_task(manager.list_units_by_patterns(["joblet-*"]))
            await until(lambda: bus.owner(SYSTEMD) == "")
            async with peer(daemon.address) as new:
                new.answers |= {
                    "Subscribe": returns(),
                    "ListUnitsByPatterns": listing(row(A, "active", 7)),
                }
                await new.connection.request_name(SYSTEMD)
                [unit] = await listed
                assert (unit.name, unit.active_state, unit.job_id) == (A, "active", 7)

    asyncio.run(main())


def test_systemd_that_stays_away_costs_the_deadline(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus, contextlib.AsyncExitStack() as stack:
            async with systemd(daemon):
                manager = await stack.enter_async_context(managed(bus))
            monkeypatch.setattr(module, "CALL_SECONDS", 0.1)
            with pytest.raises(Unavailable, match="systemd is not on the bus"):
                await manager.list_units_by_patterns(["joblet-*"])

    asyncio.run(main())


def test_a_bus_that_comes_back_is_subscribed_to_again(daemon: Daemon) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus, contextlib.AsyncExitStack() as stack:
            async with systemd(daemon) as old:
                old.answers["ListUnitsByPatterns"] = listing()
                manager = await stack.enter_async_context(managed(bus))
                watch = await stack.enter_async_context(await manager.watch("joblet-"))
                assert await anext(watch) == Snapshot(())
                daemon.kill()
            daemon.start()
            async with peer(daemon.address) as new:
                new.answers |= {
                    "Subscribe": returns(),
                    "ListUnitsByPatterns": listing(row(A, "active")),
                }
                await new.connection.request_name(SYSTEMD)
                snapshots = [await anext(watch)]
                assert all(isinstance(snapshot, Snapshot) for snapshot in snapshots)
                assert any(call.member == "Subscribe" for call in new.calls)
                await new.signal(MANAGER_PATH, MANAGER, "UnitRemoved", "so", [A, p.unit_path(A)])
                while isinstance(event := await anext(watch), Snapshot):
                    pass
                assert event == UnitRemoved(A)

    asyncio.run(main())
