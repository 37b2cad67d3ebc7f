# SPDX-License-Identifier: MIT
"""The monitor of an emulator: QMP, JSON lines over a connected socket. No call without deadline."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from .errors import RigError

if TYPE_CHECKING:
    import socket

CALL_S = 60.0


class Qmp:
    """One caller at a time. Events between replies are kept for wait_event()."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pending = b""
        self._events: list[dict[str, Any]] = []
        self._lock = threading.RLock()

    def close(self) -> None:
        self._socket.close()

    def greet(self, timeout: float = CALL_S) -> None:
        """Takes the greeting and leaves negotiation mode."""
        self._message(time.monotonic() + timeout, "start")
        self.call("qmp_capabilities")

    def call(self, execute: str, **arguments: Any) -> Any:
        """The command's return value; RigError with the emulator's words if it refuses."""
        what = f"let the emulator {execute}"
        with self._lock:
            end = time.monotonic() + CALL_S
            request = {"execute": execute, "arguments": arguments}
            try:
                self._socket.settimeout(CALL_S)
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                raise RigError(what, str(error)) from None
            while True:
                reply = self._message(end, execute)
                if "return" in reply:
                    return reply["return"]
                if "error" in reply:
                    raise RigError(what, reply["error"]["desc"])
                self._events.append(reply)

    def migrated(self, timeout: float) -> None:
        """Waits for the end of a migration, in or out; needs the migration capability `events`."""
        end = time.monotonic() + timeout
        with self._lock:
            while True:
                while self._events:
                    event = self._events.pop(0)
                    status = event.get("data", {}).get("status")
                    if event.get("event") == "MIGRATION" and status == "failed":
                        raise RigError("let the emulator migrate", "it failed")
                    if event.get("event") == "MIGRATION" and status == "completed":
                        return
                self._events.append(self._message(end, "migrate"))

    def monitor(self, line: str) -> str:
        """A command of the human monitor, for what QMP has no command for; its output."""
        return str(self.call("human-monitor-command", **{"command-line": line}))

    def _message(self, end: float, what: str) -> dict[str, Any]:
        while b"\n" not in self._pending:
            try:
                self._socket.settimeout(max(end - time.monotonic(), 0.001))
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise RigError(f"let the emulator {what}", "no answer in time") from None
            except OSError as error:
                raise RigError(f"let the emulator {what}", str(error)) from None
            if not data:
                raise RigError(f"let the emulator {what}", "it has ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))
