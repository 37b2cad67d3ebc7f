# SPDX-License-Identifier: MIT
"""The test process's end of a supervisor: starts it, tells it what to do, takes in its events.

supervisor.py has the protocol. An event may come at any time (a machine that reboots by itself), so
whoever asks for the state first takes in what has been said.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .rundir import RunDir

SUPERVISOR = Path(__file__).with_name("supervisor.py")
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
END_S = 120.0
LOOK_S = 1.0
"""How often a waiting thread lets others look at the events."""

REBOOTED = "code 133"
"""How systemd-nspawn --keep-unit says that the machine wants to start again."""


class Supervision:
    """A supervisor and what it has said.

    leader  the host's pid of the machine's PID 1, from systemd-nspawn's start to its end
    ready   whether the machine's systemd has finished its first jobs
    exits   how systemd-nspawn has ended each time: "code N" or "signal N"
    """

    def __init__(self, directory: RunDir, plan: Mapping[str, object]) -> None:
        self.leader: int | None = None
        self.ready = False
        self.exits: list[str] = []
        self._dir = directory
        self._control, theirs = socket.socketpair()
        self._lock = threading.RLock()
        self._pending = b""
        self._said: set[str] = set()
        self._error = ""
        self._over = False
        scope = _host_has_systemd()
        client = [PYTHON, "-I", "-S", str(SUPERVISOR), str(directory.lock)]
        if scope:
            unit = ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={directory.name}"]
            client = [*unit, "--property=Delegate=yes", "--", *client]
        with (directory.path / "supervisor.log").open("wb") as output, theirs:
            self._process = subprocess.Popen(
                client,
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                pass_fds=[directory.lock],
                start_new_session=True,
            )
        self._send({**plan, "name": directory.name, "dir": str(directory.path), "scope": scope})

    @property
    def directory(self) -> Path:
        """The run directory as the supervisor sees it, with the machine's disk mounted."""
        return Path(f"/proc/{self._process.pid}/root{self._dir.path}")

    @property
    def error(self) -> str:
        """What the supervisor could not do."""
        return self._error

    def _send(self, message: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # gone: what is awaited next says so
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def tell(self, command: str) -> None:
        self._send({"command": command})

    def look(self, timeout: float = 0.0) -> None:
        """Takes in what has been said, waiting up to `timeout` for the first word."""
        with self._lock:
            while not self._over and select.select([self._control], [], [], timeout)[0]:
                timeout = 0.0
                try:
                    data = self._control.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self._over = True
                    self.leader, self.ready = None, False
                self._pending += data
                *lines, self._pending = self._pending.split(b"\n")
                for line in lines:
                    self._take(json.loads(line))

    def _take(self, event: Mapping[str, object]) -> None:
        name = str(event["event"])
        self._said.add(name)
        if name == "leader":
            self.leader = int(str(event["pid"]))
        elif name == "ready":
            self.ready = True
        elif name == "exit":
            self.leader, self.ready = None, False
            number = event["signal"]
            self.exits.append(f"signal {number}" if number else f"code {event['code']}")
        elif name == "error":
            self._error = str(event["text"])

    def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Waits until a condition on the state holds; RigError when it cannot or does not."""
        end = time.monotonic() + timeout
        while True:
            self.look()
            if condition():
                return
            why = self._error or ("its supervisor has gone" if self._over else "")
            if not why and time.monotonic() > end:
                why = f"not in {timeout:g} s"
            if why:
                raise RigError(f"let {self._dir.name} {what}", why, self.output())
            self.look(min(LOOK_S, max(0.0, end - time.monotonic())))

    def wait_said(self, event: str, timeout: float, what: str) -> None:
        """Waits for an event that comes once."""
        self.wait(lambda: event in self._said, timeout, what)

    def output(self) -> str:
        """What the supervisor, systemd-nspawn and the machine's console have printed."""
        texts = []
        for name in ("supervisor.log", "console.log"):
            with contextlib.suppress(OSError):
                texts.append((self._dir.path / name).read_text(errors="replace").strip())
        return "\n".join(text for text in texts if text)

    def close(self) -> None:
        """Ends the machine; returns when all its processes are gone.

        The directory goes afterwards, in the background: to unmount an overlay is to write back all
        of the file system below it, which takes long when others write a lot.
        """
        self.tell("quit")
        with contextlib.suppress(RigError):  # whatever is wrong with it, _bury() ends it
            self.wait_said("down", END_S, "end")
        self._control.close()
        self._over = True
        self.leader, self.ready = None, False
        threading.Thread(target=self._bury, name=f"bury-{self._dir.name}").start()

    def _bury(self) -> None:
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._dir.close()


def _host_has_systemd() -> bool:
    """Whether systemd runs this host's cgroup tree: then a delegated scope of it is our part."""
    try:
        init = Path("/proc/1/comm").read_text().strip()
    except OSError:
        return False
    return init == "systemd" and Path("/run/systemd/private").exists()
