# SPDX-License-Identifier: MIT
"""The server's process, seen from outside: its start, its anonymous memory."""

import contextlib
import threading
from pathlib import Path
from typing import Final, Self

from tests.bench.guest.errors import Broken
from tests.bench.guest.peers import said

UNIT: Final = "joblet.service"
INTERVAL_S: Final = 0.02
MIB: Final = 1024


def restart() -> None:
    """A server that has not grown with what was measured before. Raises Broken."""
    said(["systemctl", "restart", UNIT])


def rss_anon_mib() -> float:
    """RssAnon of the server: what it holds besides files and shared memory (proc_pid_status(5))."""
    return _rss_anon_mib(_pid())


def _pid() -> int:
    pid = int(said(["systemctl", "show", "--property=MainPID", "--value", UNIT]))
    if pid == 0:
        raise Broken(f"{UNIT} is not running")
    return pid


def _rss_anon_mib(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / MIB
    except OSError as error:
        raise Broken(f"process {pid}: {error.strerror}") from None
    raise Broken(f"process {pid} has no RssAnon")


class Watch:
    """RssAnon while the block runs: `start`, `most` and `end`, MiB."""

    def __init__(self) -> None:
        self.start = self.most = self.end = 0.0
        self._pid = _pid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory")

    def __enter__(self) -> Self:
        self.start = self.most = _rss_anon_mib(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(Broken):
            self.end = _rss_anon_mib(self._pid)
            self.most = max(self.most, self.end)

    def _look(self) -> None:
        while not self._over.wait(INTERVAL_S):
            with contextlib.suppress(Broken):
                self.most = max(self.most, _rss_anon_mib(self._pid))
