# SPDX-License-Identifier: MIT
"""Who hears which signal, and from whom."""

import asyncio
import functools

import pytest
from dbus_next import Message

from joblet.systemd import unmarshal
from joblet.systemd.signals import DRIVER, DRIVER_PATH, Match, Signal, Subscriptions
from tests.unit.systemd_bus.daemon import Daemon, connected, peer, until

NAME = "org.example.Peer"
PATH = "/org/example/Peer"
INTERFACE = "org.example.Peer"


def test_only_the_owner_of_the_name_is_heard(daemon: Daemon) -> None:
    """A stranger's signal reaches us if it is addressed to us, whatever the match rule says."""
    heard: list[Signal] = []

    async def main() -> None:
        async with (
            peer(daemon.address) as stranger,
            peer(daemon.address, NAME) as owner,
            connected(daemon.address) as bus,
        ):
            await bus.add_match(Match(NAME, INTERFACE), heard.append)
            reply = await stranger.call(Message(DRIVER, DRIVER_PATH, DRIVER, "ListNames"))
            for name in reply.body[0]:
                if name.startswith(":"):
                    await stranger.signal(PATH, INTERFACE, "Forged", to=name)
            await stranger.signal(PATH, INTERFACE, "Forged")
            # the daemon has taken the forged ones before it takes this
            await stranger.call(Message(DRIVER, DRIVER_PATH, DRIVER, "GetId"))
            await owner.signal(PATH, INTERFACE, "True")
            await until(lambda: bool(heard))
        assert [signal.member for signal in heard] == ["True"]

    asyncio.run(main())


def test_the_next_owner_is_heard_and_announced(daemon: Daemon) -> None:
    heard: list[Signal] = []
    owners: list[str] = []

    def last_is(member: str) -> bool:
        return [signal.member for signal in heard[-1:]] == [member]

    async def main() -> None:
        async with connected(daemon.address) as bus:
            await bus.add_match(Match(NAME, INTERFACE), heard.append)
            assert bus.owner(NAME) == ""
            bus.on_owner(NAME, owners.append)
            for member in ("First", "Second"):
                async with peer(daemon.address, NAME) as owner:
                    await owner.signal(PATH, INTERFACE, member)
                    await until(functools.partial(last_is, member))
                    assert bus.owner(NAME) == owner.connection.unique_name
                await until(lambda: owners[-1:] == [""])
        assert len(owners) == 4
        assert owners[1] == owners[3] == ""

    asyncio.run(main())


def test_what_is_not_glimpsed_is_not_even_decoded(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Signal] = []
    everything: list[Signal] = []
    decoded: list[str] = []
    decode = unmarshal.decode

    def counting(message: bytes) -> unmarshal.Incoming:
        found = decode(message)
        decoded.append(found.member)
        return found

    async def main() -> None:
        async with peer(daemon.address, NAME) as owner, connected(daemon.address) as bus:
            match = Match(NAME, INTERFACE, "Changed", glimpse="ending")
            await bus.add_match(match, heard.append)
            monkeypatch.setattr(unmarshal, "decode", counting)
            await owner.signal(PATH, INTERFACE, "Changed", "ss", ["state", "running"])
            await owner.signal(PATH, INTERFACE, "Changed", "ss", ["state", "ending"])
            await until(lambda: bool(heard))
            # from now on everything may be wanted
            await bus.add_match(Match(NAME, INTERFACE), everything.append)
            await owner.signal(PATH, INTERFACE, "Changed", "ss", ["state", "running"])
            await until(lambda: bool(everything))
        assert heard[0].body == ["state", "ending"]
        assert everything[0].body == ["state", "running"]
        assert decoded.count("Changed") == 2

    asyncio.run(main())


def test_what_was_asked_for_and_nothing_else(daemon: Daemon) -> None:
    heard: list[Signal] = []

    async def main() -> None:
        async with peer(daemon.address, NAME) as owner, connected(daemon.address) as bus:
            await bus.add_match(
                Match(NAME, INTERFACE, "Changed", path_namespace="/org/example/unit", arg0="This"),
                heard.append,
            )
            await owner.signal("/org/example/unit/a", INTERFACE, "Changed", "s", ["Other"])
            await owner.signal("/org/example/united", INTERFACE, "Changed", "s", ["This"])
            await owner.signal("/org/example/unit/a", INTERFACE, "Removed", "s", ["This"])
            await owner.signal("/org/example/unit/a", "org.example.X", "Changed", "s", ["This"])
            await owner.signal("/org/example/unit/b", INTERFACE, "Changed", "su", ["This", 7])
            await until(lambda: bool(heard))
        assert heard == [Signal("/org/example/unit/b", INTERFACE, "Changed", ["This", 7])]

    asyncio.run(main())


def test_one_subscription_twice_is_one(daemon: Daemon) -> None:
    heard: list[Signal] = []

    async def main() -> None:
        async with peer(daemon.address, NAME) as owner, connected(daemon.address) as bus:
            match = Match(NAME, INTERFACE)
            await asyncio.gather(*(bus.add_match(match, heard.append) for _ in range(3)))
            await owner.signal(PATH, INTERFACE, "One")
            await owner.signal(PATH, INTERFACE, "Two")
            await until(lambda: len(heard) >= 2)
        assert [signal.member for signal in heard] == ["One", "Two"]

    asyncio.run(main())


def test_a_callback_that_fails_concerns_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def broken(signal: Signal) -> None:
        raise RuntimeError(signal.member)

    some = Subscriptions()
    match = Match(NAME, INTERFACE)
    some.add(match, broken)
    some.add(match, lambda signal: heard.append(signal.member))
    some.learn_owner(NAME, ":1.5")
    some.deliver(":1.5", Signal(PATH, INTERFACE, "Here", []))
    assert heard == ["Here"]
    assert "RuntimeError: Here" in caplog.text


def test_an_answer_does_not_overwrite_what_a_signal_has_said() -> None:
    some = Subscriptions()
    change = Signal(DRIVER_PATH, DRIVER, "NameOwnerChanged", [NAME, ":1.5", ":1.6"])
    some.deliver(DRIVER, change)
    some.learn_owner(NAME, ":1.5")
    assert some.owner(NAME) == ":1.6"


def test_ownership_is_not_taken_from_strangers() -> None:
    some = Subscriptions()
    some.learn_owner(NAME, ":1.5")
    some.deliver(":1.9", Signal(DRIVER_PATH, DRIVER, "NameOwnerChanged", [NAME, ":1.5", ":1.9"]))
    assert some.owner(NAME) == ":1.5"


def test_rules_read_as_the_bus_wants_them() -> None:
    assert Match("a.b", "c.d").rule == "type='signal',sender='a.b',interface='c.d'"
    assert (
        Match("a.b", "c.d", "E", path_namespace="/f", arg0="g").rule
        == "type='signal',sender='a.b',interface='c.d',member='E',path_namespace='/f',arg0='g'"
    )
