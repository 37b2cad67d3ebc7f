# SPDX-License-Identifier: MIT
"""A dbus-daemon of the test's own, with the limits of a system bus, and peers to put on it."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

from joblet.systemd.bus import Bus

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"""


class Daemon:
    """A private bus; can be killed, started again at the same address, stopped and continued."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "bus"
        self.address = f"unix:path={self.socket}"
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(socket=self.socket))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    "dbus-daemon",
                    f"--config-file={self._config}",
                    "--nofork",
                    "--nopidfile",
                    f"--print-address={write}",
                ],
                pass_fds=[write],
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(write)
        with os.fdopen(read, "rb") as ready:
            assert ready.readline(), "dbus-daemon did not start"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The daemon reads and answers nothing meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def connected(address: str, *, in_flight: int = 64) -> AsyncIterator[Bus]:
    """The bus under test. Afterwards no task of it may be left."""
    before = asyncio.all_tasks()
    bus = Bus(address, in_flight=in_flight)
    await bus.connect()
    try:
        yield bus
    finally:
        await bus.close()
        left = [task for task in asyncio.all_tasks() - before if "bus" in task.get_name()]
        assert not left


Answer = Callable[[Message], Sequence[Message] | None]


class Peer:
    """Somebody else on the bus, on dbus-next's own connection.

    `answers` maps a member to what is sent, in this order, when it is called; None answers
    nothing. Members that are not in it get UnknownMethod from dbus-next.
    """

    def __init__(self, connection: MessageBus) -> None:
        self.connection = connection
        self.answers: dict[str, Answer] = {}
        self.calls: list[Message] = []
        connection.add_message_handler(self._handle)

    def _handle(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        answer = self.answers.get(message.member)
        if answer is None:
            return False
        self.calls.append(message)
        for reply in answer(message) or ():
            self.connection.send(reply)
        return True

    async def call(self, message: Message) -> Message:
        reply = await self.connection.call(message)
        assert reply is not None
        return reply

    async def signal(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        to: str | None = None,
    ) -> None:
        message = Message.new_signal(path, interface, member, signature, list(body))
        if to is not None:
            message.destination = to
        await self.connection.send(message)


@contextlib.asynccontextmanager
async def peer(address: str, name: str | None = None) -> AsyncIterator[Peer]:
    connection = await MessageBus(address).connect()
    try:
        if name is not None:
            await connection.request_name(name)
        yield Peer(connection)
    finally:
        connection.disconnect()
        with contextlib.suppress(Exception):  # EOFError and friends: the daemon may be dead
            await connection.wait_for_disconnect()
        connection._stream.close()  # dbus-next leaves its descriptor to the collector
        connection._sock.close()


def returns(signature: str = "", *body: Any) -> Answer:
    """An answer with this body."""
    return lambda message: [Message.new_method_return(message, signature, list(body))]


def fails(name: str, text: str) -> Answer:
    """An answer that is this error."""
    return lambda message: [Message.new_error(message, name, text)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the bus brings about; the test's time-out is the deadline."""
    while not condition():  # noqa: ASYNC110  there is nothing to be told by
        await asyncio.sleep(0.002)
