# SPDX-License-Identifier: MIT
"""Processes of the bench's own beside it: what clients do must not share its interpreter.

A helper is this program once more, with a role. It says `ready` on a line, then a line of JSON.
"""

import contextlib
import json
import subprocess
import sys
from typing import Any, Final

from tests.bench.guest.errors import Broken

READY: Final = "ready"


class Helper:
    """One process. `start`, then `wait_ready`, then `result`; `close` whatever has happened."""

    def __init__(self, role: str, options: object) -> None:
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], role, json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        """Raises Broken if it ends instead."""
        self._line(READY)

    def result(self) -> Any:
        """What it says in the end. Raises Broken if it ends without."""
        return json.loads(self._line())

    def _line(self, expected: str = "") -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().rstrip("\n")
        if not line or (expected and line != expected):
            raise Broken(f"a {self.role} failed")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def say(word: object = READY) -> None:
    """A helper's own line."""
    with contextlib.suppress(BrokenPipeError):
        print(word if isinstance(word, str) else json.dumps(word), flush=True)
