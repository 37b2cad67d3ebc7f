# SPDX-License-Identifier: MIT
"""One connection to a D-Bus daemon: its socket, authentication, and whole messages as bytes.

Why it exists: dbus-next 0.2.3 has a connection of its own, and it is not fit for a daemon. Its
constructor connects blockingly; a daemon that closes during authentication sends it into a loop
that never gives the event loop back; its writer takes a full socket buffer (about 290 short
messages, fewer than 100 of 2 KB) for the end of the connection; it never closes its descriptor.

Must not import dbus_next. Every failure is an OSError: whoever sees one drops the connection.
Shape of a message: D-Bus specification, "Message Format". Authentication: "Authentication
Protocol", EXTERNAL with our uid, no descriptor passing.
"""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Final
from urllib.parse import unquote_to_bytes

from joblet.errors import InvalidArgument

# The fixed part: endianness, type, flags, version, body length, serial, length of the fields.
HEADER: Final = {0x6C: struct.Struct("<BBBBIII"), 0x42: struct.Struct(">BBBBIII")}
HEADER_SIZE: Final = 16

# The system bus's own bound on a message (dbus-daemon: max_message_size).
MESSAGE_MAX: Final = 32 << 20

# A full backlog: the kernel says EAGAIN and tells nobody when there is room, so ask again.
CONNECT_AGAIN_SECONDS: Final = 0.02


class Wire:
    """An authenticated connection, for one reader; any task may send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def unsent(self) -> int:
        """Bytes that were taken for sending and that the kernel has not taken yet."""
        size: int = self._writer.transport.get_write_buffer_size()
        return size

    def write(self, message: bytes) -> None:
        """Take a whole message for sending. Never blocks; who sends much awaits `drained`."""
        self._writer.write(message)

    async def drained(self) -> None:
        """Wait while too much is unsent. Cancelling takes nothing back."""
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next whole message."""
        try:
            head = await self._reader.readexactly(HEADER_SIZE)
            rest = _rest_of(head)
            return head + await self._reader.readexactly(rest)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("the bus closed the connection") from None

    async def close(self) -> None:
        """Close at once; what was not sent is not sent. May be called again."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def parse_address(address: str) -> list[bytes]:
    """The socket addresses in a D-Bus address, in order of preference; unix only.

    Raises InvalidArgument.
    """
    what = f"use the D-Bus address {address!r}"
    found = []
    for entry in filter(None, address.split(";")):
        transport, _, text = entry.partition(":")
        pairs = (pair.partition("=") for pair in text.split(",") if pair)
        options = {key: unquote_to_bytes(value) for key, _, value in pairs}
        if transport != "unix" or not options.keys() & {"path", "abstract"}:
            raise InvalidArgument(what, "only unix:path= and unix:abstract= are spoken here")
        found.append(options["path"] if "path" in options else b"\0" + options["abstract"])
    if not found:
        raise InvalidArgument(what, "it names no socket")
    return found


async def open_wire(address: str) -> Wire:
    """Connect and authenticate. The caller sets the deadline; cancelling closes the socket.

    Raises OSError, and InvalidArgument for an address that cannot be used.
    """
    failure = OSError("the address names no socket")
    for place in parse_address(address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await _connect(sock, place)
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except OSError as error:
            sock.close()
            failure = error
            continue
        except BaseException:
            sock.close()
            raise
        try:
            await _authenticate(reader, writer)
        except BaseException:
            writer.transport.abort()
            raise
        return Wire(reader, writer)
    raise failure


async def _connect(sock: socket.socket, place: bytes) -> None:
    """asyncio's sock_connect would take EAGAIN of a unix socket for a connection under way."""
    while True:
        try:
            sock.connect(place)
        except BlockingIOError:
            await asyncio.sleep(CONNECT_AGAIN_SECONDS)
        else:
            return


async def _authenticate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    uid = str(os.geteuid()).encode().hex()
    writer.write(f"\0AUTH EXTERNAL {uid}\r\n".encode())
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.IncompleteReadError:
        raise ConnectionResetError("the bus closed the connection") from None
    except asyncio.LimitOverrunError:
        raise ConnectionRefusedError("the bus does not speak D-Bus") from None
    answer = line.split()
    if answer[:1] != [b"OK"]:
        raise ConnectionRefusedError(
            f"the bus does not accept uid {os.geteuid()}: {line[:200].decode(errors='replace')!r}"
        )
    writer.write(b"BEGIN\r\n")


def _rest_of(head: bytes) -> int:
    """How many bytes of a message follow its fixed part."""
    layout = HEADER.get(head[0])
    if layout is None:
        raise ConnectionAbortedError(f"a message with endianness {head[0]:#04x}")
    _, _, _, version, body, _, fields = layout.unpack(head)
    if version != 1:
        raise ConnectionAbortedError(f"a message of protocol version {version}")
    rest: int = fields + -fields % 8 + body
    if HEADER_SIZE + rest > MESSAGE_MAX:
        raise ConnectionAbortedError(f"a message of {HEADER_SIZE + rest} bytes")
    return rest
