# SPDX-License-Identifier: MIT
"""PID 1's end of `ctl`: one holder at a time, the next waits in the backlog. stdlib alone.

The connection is the right to read the job's pipes: the hello hands over their read ends, a hang-up
gives the right back. A holder that cannot be told something is a holder that hung up.
"""

import os
import socket
from typing import Any, Final

from joblet.launch import protocol

BACKLOG: Final = 8


class Ctl:
    def __init__(self) -> None:
        """Binds `ctl` in the current directory (the job's), whole at once: bind aside, listen,
        rename."""
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._listener.bind("ctl.new")
        self._listener.listen(BACKLOG)
        os.rename("ctl.new", "ctl")
        self._holder: socket.socket | None = None

    @property
    def held(self) -> bool:
        return self._holder is not None

    @property
    def fd(self) -> int:
        """What to poll for POLLIN: the holder's messages and hang-up, or the next holder."""
        return self._holder.fileno() if self._holder else self._listener.fileno()

    def accept(self, hello: bytes, fds: list[int]) -> bool:
        """Take the next holder, if one waits, and give it the read ends."""
        while self._holder is None:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return False
            connection.settimeout(0)
            try:
                socket.send_fds(connection, [hello], fds)
            except OSError:
                connection.close()
                continue
            self._holder = connection
        return True

    def send(self, kind: str, **fields: Any) -> None:
        if self._holder is None:
            return
        try:
            self._holder.send(protocol.encode(kind, **fields))
        except OSError:
            self.hang_up()

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """One message of the holder; None when there is none. Hangs up on its end and on
        nonsense."""
        if self._holder is None:
            return None
        try:
            data = self._holder.recv(protocol.MAX_MESSAGE)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if data:
            try:
                return protocol.decode(data)
            except protocol.ProtocolError:
                pass
        self.hang_up()
        return None

    def hang_up(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None
