# SPDX-License-Identifier: MIT
"""The host's end of the rig's agent in a VM; guest.py is the other end and has the protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal as signals
import socket
import threading
import time
from typing import TYPE_CHECKING

from .errors import RigError
from .guest import CHUNK, HEADER
from .process import Collected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .machine import Result

PING_S = 0.5


class Agent:
    """Starts commands in the guest. Any number at once, from any number of threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._numbers = itertools.count(time.monotonic_ns() & 0x3FFFFFFF)
        self._commands: dict[int, GuestProcess] = {}
        self._pongs: set[int] = set()
        self._heard = threading.Condition()
        self._gone = False
        threading.Thread(target=self._listen, name="agent", daemon=True).start()

    def close(self) -> None:
        """Ends the connection; commands still running are broken. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def ready(self, timeout: float) -> None:
        """Waits until the guest answers."""
        end = time.monotonic() + timeout
        while True:
            number = next(self._numbers)
            self.send(b"P", number)
            left = end - time.monotonic()
            with self._heard:
                self._heard.wait_for(
                    lambda: self._pongs or self._gone, max(min(PING_S, left), 0.01)
                )
                if self._pongs:
                    return
                if self._gone:
                    raise RigError("reach the guest", "the emulator has ended")
            if left <= 0:
                raise RigError("reach the guest", f"silent for {timeout:g} s")

    def send(self, kind: bytes, number: int, payload: bytes = b"") -> None:
        try:
            with self._lock:
                self._socket.sendall(HEADER.pack(kind, number, len(payload)) + payload)
        except OSError as error:
            raise RigError("reach the guest", str(error)) from None

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> GuestProcess:
        process = GuestProcess(self, next(self._numbers), argv)
        with self._heard:
            if self._gone:
                raise RigError("reach the guest", "the emulator has ended")
            self._commands[process.number] = process
        request = {"argv": list(argv), "stdin": stdin, "user": user, "env": dict(env or {})}
        self.send(b"S", process.number, json.dumps({**request, "cwd": cwd}).encode())
        return process

    def run(self, argv: Sequence[str], timeout: float, stdin: bytes | None = None) -> Result:
        """A command from its start to its end."""
        process = self.start(argv, stdin=bool(stdin))
        if stdin:
            process.write(stdin)
            process.close_stdin()
        return process.wait(timeout)

    def _listen(self) -> None:
        pending = bytearray()
        with self._socket:
            while True:
                try:
                    data = self._socket.recv(CHUNK)
                except OSError:
                    data = b""
                if not data:
                    break
                pending += data
                while len(pending) >= HEADER.size:
                    kind, number, length = HEADER.unpack_from(pending)
                    if len(pending) < HEADER.size + length:
                        break
                    payload = bytes(pending[HEADER.size : HEADER.size + length])
                    del pending[: HEADER.size + length]
                    self._take(kind, number, payload)
        with self._heard:
            self._gone = True
            self._heard.notify_all()
            left = list(self._commands.values())
            self._commands.clear()
        for process in left:
            why = "the machine went down meanwhile"
            process.broke(RigError(f"run {' '.join(process.argv)}", why))

    def _take(self, kind: bytes, number: int, payload: bytes) -> None:
        if kind == b"P":
            with self._heard:
                self._pongs.add(number)
                self._heard.notify_all()
            return
        process = self._commands.get(number)
        if process is None:
            return
        if kind == b"X":
            del self._commands[number]
            process.ended(int(json.loads(payload)["code"]))
        else:
            process.printed("stdout" if kind == b"O" else "stderr", payload)


class GuestProcess(Collected):
    """A command in the guest."""

    def __init__(self, agent: Agent, number: int, argv: Sequence[str]) -> None:
        super().__init__(argv)
        self.number = number
        self._agent = agent

    def _signal(self, name: str, *, group: bool) -> None:
        number = signals.Signals[f"SIG{name}"].value
        request = {"signal": number, "group": group}
        self._agent.send(b"K", self.number, json.dumps(request).encode())

    def kill(self, signal: str = "KILL") -> None:
        self._signal(signal, group=False)

    def end(self) -> None:
        self._signal("KILL", group=True)

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            self._agent.send(b"I", self.number, data[start : start + CHUNK])

    def close_stdin(self) -> None:
        self._agent.send(b"C", self.number)
