# SPDX-License-Identifier: MIT
"""Connecting, authenticating and framing, against servers that do not behave."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from dbus_next import Message, MessageType
from hypothesis import given
from hypothesis import strategies as st

from joblet.errors import InvalidArgument, Unavailable
from joblet.systemd import bus as bus_module
from joblet.systemd.bus import Bus, Lost
from joblet.systemd.signals import DRIVER, DRIVER_PATH
from joblet.systemd.wire import MESSAGE_MAX, Wire, parse_address

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(path: Path, serve: Serve) -> AsyncIterator[None]:
    """A server whose connections are over and closed when it is left."""
    over: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        over.append(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_unix_server(handle, path):
        yield
        await asyncio.wait(over)


async def refused(path: Path, serve: Serve) -> Unavailable:
    """What connecting to such a server says; the event loop must live meanwhile."""
    async with serving(path, serve):
        with pytest.raises(Unavailable) as caught:
            await Bus(f"unix:path={path}").connect()
    return caught.value


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")
    writer.write(b"OK 0123456789abcdef0123456789abcdef\r\n")
    await reader.readuntil(b"BEGIN\r\n")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "closed the connection"),
        (b"OK", "closed the connection"),
        (b"REJECTED EXTERNAL\r\n", "does not accept uid"),
        (b"\xff\xfe\r\n", "does not accept uid"),
        (b"x" * (1 << 17), "does not speak D-Bus"),
    ],
)
def test_a_server_that_does_not_let_us_in(tmp_path: Path, answer: bytes, text: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        writer.write(answer)

    error = asyncio.run(refused(tmp_path / "bus", serve))
    assert text in error.why


def test_a_server_that_hangs_up_instead_of_greeting(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)

    error = asyncio.run(refused(tmp_path / "bus", serve))
    assert "closed the connection" in error.why or "reset" in error.why


@pytest.mark.parametrize(
    "answer",
    [
        b"X" * 16,
        b"l\2\1\2" + bytes(12),
        b"l\2\1\1" + (MESSAGE_MAX).to_bytes(4, "little") + bytes(8),
        b"l\2\1\1" + bytes(4) + b"\1\0\0\0" + b"\1\0\0\0" + b"\xff" * 8,
        b"l\2\1\1" + bytes(12),
    ],
    ids=["endianness", "version", "size", "fields", "no fields"],
)
def test_a_server_that_speaks_nonsense(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        writer.write(answer)
        await reader.read()

    error = asyncio.run(refused(tmp_path / "bus", serve))
    assert "message" in error.why


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "CONNECT_SECONDS", 0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    error = asyncio.run(refused(tmp_path / "bus", serve))
    assert error.why == "it does not answer"


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """The kernel answers EAGAIN to connect; nobody may take that for a connection."""
    place = str(tmp_path / "bus")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(place)
            listener.listen(0)
            first.connect(place)
            bus = Bus(f"unix:path={place}")
            connecting = asyncio.create_task(bus.connect())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not connecting.done()
            listener.accept()[0].close()
            listener.setblocking(False)
            theirs, _ = await asyncio.get_running_loop().sock_accept(listener)
            theirs.close()
            with pytest.raises(Unavailable):
                await connecting

    asyncio.run(main())


def test_a_message_cut_in_the_middle_ends_the_call(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        hello = Message(
            reply_serial=1, message_type=MessageType.METHOD_RETURN, signature="s", body=[":1.1"]
        )
        hello.serial = 1
        writer.write(hello._marshall())
        await reader.readexactly(1)
        await reader.read(1 << 16)
        await reader.read(1 << 16)
        writer.write(hello._marshall()[:20])

    async def main() -> None:
        path = tmp_path / "bus"
        async with serving(path, serve):
            bus = Bus(f"unix:path={path}")
            await bus.connect()
            with pytest.raises(Lost):
                await bus.call(DRIVER, DRIVER_PATH, DRIVER, "GetId")
            await bus.close()

    asyncio.run(main())


@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_messages_come_out_whole_however_they_arrive(bodies: list[bytes], cuts: list[int]) -> None:
    frames = []
    for serial, body in enumerate(bodies, 1):
        message = Message.new_signal("/a", "a.b", "C", "ay", [body])
        message.serial = serial
        frames.append(bytes(message._marshall()))
    stream = b"".join(frames)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        wire = Wire(reader, writer)
        try:
            receiving = asyncio.create_task(receive(wire))
            at = 0
            while at < len(stream):
                size = cuts[at % len(cuts)]
                theirs.send(stream[at : at + size])
                at += size
                await asyncio.sleep(0)
            assert await receiving == frames
            theirs.close()
            with pytest.raises(ConnectionResetError):
                await wire.receive()
        finally:
            theirs.close()
            await wire.close()

    async def receive(wire: Wire) -> list[bytes]:
        return [await wire.receive() for _ in frames]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "places"),
    [
        ("unix:path=/run/dbus/system_bus_socket", [b"/run/dbus/system_bus_socket"]),
        ("unix:path=/a%20b,guid=00;unix:abstract=c", [b"/a b", b"\0c"]),
    ],
)
def test_addresses(address: str, places: list[bytes]) -> None:
    assert parse_address(address) == places


@pytest.mark.parametrize("address", ["", ";", "unix", "unix:dir=/x", "tcp:host=x,port=1", "/run"])
def test_addresses_that_are_of_no_use(address: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_address(address)


def test_the_second_address_serves_when_the_first_does_not(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readuntil(b"\r\n")
        assert line == f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode()
        writer.write(b"REJECTED here too\r\n")

    async def main() -> None:
        path = tmp_path / "bus"
        async with serving(path, serve):
            with pytest.raises(Unavailable, match="here too"):
                await Bus(f"unix:path={tmp_path}/none;unix:path={path}").connect()

    asyncio.run(main())
