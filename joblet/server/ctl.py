# SPDX-License-Identifier: MIT
"""The holder's end of a job's `ctl`: what PID 1 says, what it is told. See launch/protocol.py.

While the connection stands, its holder alone reads the job's pipes; closing it gives them back.
"""

import contextlib
import select
import socket
from typing import Any, Final

from joblet import link
from joblet.launch import protocol
from joblet.launch.protocol import ProtocolError

MAX_FDS: Final = 4


class Ctl:
    """Made of a connected socket. One reader; `hello` comes first."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._socket = sock

    async def hello(self) -> dict[str, int] | None:
        """Name -> read end of each stream; the caller's from here on. None: hung up without a
        hello.

        Raises ProtocolError for a PID 1 whose protocol this server does not speak.
        """
        data, fds = await self._recv()
        if not data:
            link.close_all(fds)
            return None
        try:
            kind, fields = protocol.decode(data)
            version = protocol.number(fields, "version")
            streams = fields.get("streams")
            if kind != protocol.HELLO or not protocol.OLDEST <= version <= protocol.VERSION:
                raise ProtocolError(f"{kind} of version {version}")
            if (
                not isinstance(streams, list)
                or len(streams) != len(fds)
                or any(streams.count(name) > 1 or name not in protocol.STREAMS for name in streams)
            ):
                raise ProtocolError("its streams and descriptors do not match")
        except ProtocolError:
            link.close_all(fds)
            raise
        return dict(zip(streams, fds, strict=True))

    async def receive(self) -> tuple[str, dict[str, Any]] | None:
        """The next message; None when PID 1 has hung up.

        Raises ProtocolError for what is no message. That is not a hang-up: PID 1 lives, and reads
        the pipes for the next holder as soon as this connection is closed. So whoever reads them
        must stop first.
        """
        data, fds = await self._recv()
        link.close_all(fds)
        return protocol.decode(data) if data else None

    def has_more(self) -> bool:
        """Whether a message, or the hang-up, is there already."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def stop(self, grace_us: int) -> None:
        self._send(protocol.STOP, grace_us=grace_us)

    def time_out(self, after_us: int) -> None:
        self._send(protocol.TIME_OUT, after_us=after_us)

    def acknowledge(self) -> None:
        self._send(protocol.ACKNOWLEDGE)

    def _send(self, kind: str, **fields: Any) -> None:
        """Three short messages fit into any socket; a PID 1 that is gone is seen by `receive`."""
        with contextlib.suppress(OSError):
            self._socket.send(protocol.encode(kind, **fields))

    async def _recv(self) -> tuple[bytes, list[int]]:
        """b"" for a hang-up."""
        while True:
            try:
                data, fds, _ = link.recv_fds(self._socket, protocol.MAX_MESSAGE, MAX_FDS)
            except BlockingIOError:
                await link.readable(self._socket.fileno())
            except OSError:
                return b"", []
            else:
                return data, fds

    def close(self) -> None:
        self._socket.close()
