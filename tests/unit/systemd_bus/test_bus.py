# SPDX-License-Identifier: MIT
"""Calls: answers, errors, deadlines, bounds; and the connection that comes back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message

from joblet.errors import Internal, Unavailable
from joblet.systemd import bus as bus_module
from joblet.systemd.bus import NAME_HAS_NO_OWNER, SERVICE_UNKNOWN, Bus, BusError, Lost
from joblet.systemd.properties import Variant
from joblet.systemd.signals import DRIVER, DRIVER_PATH, Match, Signal
from tests.unit.systemd_bus.daemon import Daemon, connected, fails, peer, returns, until

NAME = "org.example.Peer"
PATH = "/org/example/Peer"
INTERFACE = "org.example.Peer"
NEVER = lambda message: None  # noqa: E731


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_plain_values_go_in_and_come_out(daemon: Daemon) -> None:
    body = [
        "text",
        [("MemoryMax", Variant("t", 2**64 - 1)), ("AllowedCPUs", Variant("ay", b"\x03"))],
        {"a": Variant("a(st)", [("/dev/x", 7)]), "b": Variant("v", Variant("b", True))},
    ]

    async def main() -> None:
        async with peer(daemon.address, NAME) as other, connected(daemon.address) as bus:
            other.answers["Echo"] = lambda m: [Message.new_method_return(m, m.signature, m.body)]
            answer = await bus.call(NAME, PATH, INTERFACE, "Echo", "sa(sv)a{sv}", body)
            assert answer == [
                "text",
                [["MemoryMax", 2**64 - 1], ["AllowedCPUs", b"\x03"]],
                {"a": [["/dev/x", 7]], "b": True},
            ]

    asyncio.run(main())


def test_an_error_keeps_its_name(daemon: Daemon) -> None:
    async def main() -> None:
        async with peer(daemon.address, NAME) as other, connected(daemon.address) as bus:
            other.answers["Fail"] = fails("org.example.Error.Tired", "not today")
            with pytest.raises(BusError) as caught:
                await bus.call(NAME, PATH, INTERFACE, "Fail")
            assert caught.value.name == "org.example.Error.Tired"
            assert str(caught.value) == f"cannot call Fail of {NAME}: not today"
            with pytest.raises(BusError) as caught:
                await bus.call("org.example.Nobody", PATH, INTERFACE, "Hello")
            assert caught.value.name in (NAME_HAS_NO_OWNER, SERVICE_UNKNOWN)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "signature", "body"),
    [
        ("no path", "", []),
        (PATH, "s", [7]),
        (PATH, "u", [-1]),
        (PATH, "z", [1]),
        (PATH, "ss", ["x"]),
    ],
)
def test_a_wrong_call_is_a_bug_and_not_sent(
    daemon: Daemon, path: str, signature: str, body: list[Any]
) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus:
            with pytest.raises(Internal):
                await bus.call(NAME, path, INTERFACE, "Echo", signature, body)
            await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId")

    asyncio.run(main())


def test_a_call_without_an_answer_ends_at_its_deadline(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            peer(daemon.address, NAME) as other,
            connected(daemon.address, in_flight=1) as bus,
        ):
            other.answers |= {"Never": NEVER, "Echo": returns("s", "here")}
            with pytest.raises(Lost, match="no answer within"):
                await bus.call(NAME, PATH, INTERFACE, "Never", timeout=0.05)
            # its turn is free again, and an answer that comes late hurts nobody
            assert await bus.call(NAME, PATH, INTERFACE, "Echo") == ["here"]
            other.connection.send(Message.new_method_return(other.calls[0]))
            assert await bus.call(NAME, PATH, INTERFACE, "Echo") == ["here"]

    asyncio.run(main())


def test_no_turn_is_not_lost(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            peer(daemon.address, NAME) as other,
            connected(daemon.address, in_flight=1) as bus,
        ):
            other.answers |= {"Never": NEVER}
            first = asyncio.create_task(bus.call(NAME, PATH, INTERFACE, "Never", timeout=5))
            await until(lambda: len(other.calls) == 1)
            with pytest.raises(Unavailable, match="no turn") as caught:
                await bus.call(NAME, PATH, INTERFACE, "Never", timeout=0.05)
            assert not isinstance(caught.value, Lost)
            assert len(other.calls) == 1
            first.cancel()

    asyncio.run(main())


def test_a_thousand_calls_at_once_stay_within_the_bound(daemon: Daemon) -> None:
    """The daemon would refuse the 129th unanswered call of one connection."""
    waiting = most = 0

    async def main() -> None:
        nonlocal waiting, most

        async def answer_later(message: Message) -> None:
            nonlocal waiting
            await asyncio.sleep(0)
            waiting -= 1
            other.connection.send(Message.new_method_return(message, "u", message.body))

        def later(message: Message) -> None:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            tasks.append(asyncio.create_task(answer_later(message)))

        tasks: list[asyncio.Task[None]] = []
        async with peer(daemon.address, NAME) as other, connected(daemon.address) as bus:
            other.answers["Echo"] = later
            answers = await asyncio.gather(
                *(bus.call(NAME, PATH, INTERFACE, "Echo", "u", [n]) for n in range(1000))
            )
            assert answers == [[n] for n in range(1000)]
            assert 1 < most <= bus_module.IN_FLIGHT

    asyncio.run(main())


def test_a_full_socket_buffer_is_waited_for(daemon: Daemon) -> None:
    """Far more than the kernel takes while the daemon stands still; dbus-next would give up."""

    text = "x" * 8000

    async def main() -> None:
        async with peer(daemon.address, NAME) as other, connected(daemon.address) as bus:
            other.answers["Echo"] = returns()
            with daemon.frozen():
                calls = [
                    asyncio.create_task(bus.call(NAME, PATH, INTERFACE, "Echo", "s", [text]))
                    for _ in range(300)
                ]
                for _ in range(50):
                    await asyncio.sleep(0)
                assert not any(call.done() for call in calls)
            assert await asyncio.gather(*calls) == [[]] * 300

    asyncio.run(main())


def test_a_daemon_that_stands_still_costs_deadlines_and_not_the_connection(
    daemon: Daemon,
) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus:
            resyncs: list[None] = []
            bus.on_resync(lambda: resyncs.append(None))
            with daemon.frozen():
                results = await asyncio.gather(
                    *(
                        bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId", timeout=0.1)
                        for _ in range(200)
                    ),
                    return_exceptions=True,
                )
                assert all(isinstance(result, Unavailable) for result in results)
            await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId")
            assert resyncs == []

    asyncio.run(main())


def test_the_connection_comes_back_with_its_matches(daemon: Daemon) -> None:
    heard: list[Signal] = []
    resyncs: list[None] = []

    async def main() -> None:
        async with connected(daemon.address) as bus:
            async with peer(daemon.address, NAME) as other:
                await bus.add_match(Match(NAME, INTERFACE), heard.append)
                bus.on_resync(lambda: resyncs.append(None))
                other.answers["Never"] = NEVER
                sent = asyncio.create_task(bus.call(NAME, PATH, INTERFACE, "Never"))
                await until(lambda: len(other.calls) == 1)
                daemon.kill()
                with pytest.raises(Lost, match=r"closed the connection|reset"):
                    await sent
            assert not bus.connected
            waits = asyncio.create_task(bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId"))
            with pytest.raises(Unavailable, match=r"No such file|refused"):
                await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId", timeout=0.1)
            daemon.start()
            await waits
            await until(lambda: bool(resyncs))
            async with peer(daemon.address, NAME) as other:
                await other.signal(PATH, INTERFACE, "Here", "u", [1])
                await until(lambda: bool(heard))
        assert [signal.member for signal in heard] == ["Here"]
        assert len(resyncs) == 1

    asyncio.run(main())


def test_calls_do_not_wait_for_a_bus_that_stays_away(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all of them; who comes later hears at once, until it is back."""
    monkeypatch.setattr("joblet.systemd.bus.PATIENCE_SECONDS", 0.3)

    async def main() -> None:
        async with connected(daemon.address) as bus:
            daemon.kill()
            await until(lambda: not bus.connected)
            for _ in range(3):
                with pytest.raises(Unavailable, match=r"D-Bus at .* is away: ") as caught:
                    await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId", timeout=100)
                assert "systemctl status dbus.service" in caught.value.hint
            # the time is over, so this one does not wait: not even for what is ready
            call = asyncio.create_task(bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId"))
            _, pending = await asyncio.wait([call], timeout=0.2)
            assert not pending
            assert isinstance(call.exception(), Unavailable)
            daemon.start()
            await until(lambda: bus.connected)
            await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId")

    asyncio.run(main())


def test_a_bus_that_comes_and_goes_leaves_no_descriptor(daemon: Daemon) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus:
            resyncs: list[None] = []
            bus.on_resync(lambda: resyncs.append(None))
            before = descriptors()
            for _ in range(10):
                resyncs.clear()
                daemon.kill()
                daemon.start()
                await until(lambda: bool(resyncs))
                await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId")
            assert descriptors() <= before

    asyncio.run(main())


def test_close_ends_what_waits(daemon: Daemon) -> None:
    async def main() -> None:
        async with peer(daemon.address, NAME) as other:
            other.answers["Never"] = NEVER
            async with connected(daemon.address, in_flight=1) as bus:
                calls = [
                    asyncio.create_task(bus.call(NAME, PATH, INTERFACE, "Never")) for _ in range(3)
                ]
                await until(lambda: len(other.calls) == 1)
            for call in calls:
                with pytest.raises(Unavailable, match="connection was closed"):
                    await call
            await bus.close()
            with pytest.raises(Unavailable, match="connection was closed"):
                await bus.call(NAME, PATH, INTERFACE, "Never")

    asyncio.run(main())


def test_close_while_the_bus_is_away(daemon: Daemon) -> None:
    async def main() -> None:
        async with connected(daemon.address) as bus:
            daemon.kill()
            await until(lambda: not bus.connected)
            call = asyncio.create_task(bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId"))
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await call

    asyncio.run(main())


def test_nobody_is_served(daemon: Daemon) -> None:
    async def main() -> None:
        async with peer(daemon.address) as other, connected(daemon.address) as bus:
            [names] = await bus.call(DRIVER, DRIVER_PATH, DRIVER, "ListNames")
            strangers = [
                name
                for name in names
                if name.startswith(":") and name != other.connection.unique_name
            ]
            for name in strangers:
                reply = await other.call(
                    Message(name, PATH, "org.freedesktop.DBus.Introspectable", "Introspect")
                )
                assert reply.error_name == "org.freedesktop.DBus.Error.UnknownMethod"
            assert strangers

    asyncio.run(main())


def test_no_bus_is_said_with_a_hint(tmp_path: Path) -> None:
    async def main() -> None:
        before = descriptors()
        with pytest.raises(Unavailable, match="No such file") as caught:
            await Bus(f"unix:path={tmp_path}/none").connect()
        assert "systemctl status dbus" in caught.value.text
        assert descriptors() == before

    asyncio.run(main())
