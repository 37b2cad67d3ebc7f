# SPDX-License-Identifier: MIT
"""What a service tells systemd about itself: sd_notify(3), and what the watchdog wants to hear.

Without NOTIFY_SOCKET everything here does nothing, so that a daemon runs the same without systemd.
Stdlib alone.
"""

import dataclasses
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

# systemd reads its socket all the time. If it does not for this long, something is wrong that a
# notification would not mend, and the event loop must go on.
SEND_TIMEOUT_S: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Notifier:
    """address: of systemd's socket, "" for none; "@" begins an abstract one.
    watchdog_us: systemd ends the service if it hears nothing for so long; 0 if it does not.
    """

    address: str = ""
    watchdog_us: int = 0

    @property
    def interval_us(self) -> int:
        """How often to call `watchdog`: twice in the time that is allowed; 0 for never."""
        return self.watchdog_us // 2

    def ready(self, status: str = "") -> bool:
        return self.send("READY=1", *_status(status))

    def stopping(self, status: str = "") -> bool:
        return self.send("STOPPING=1", *_status(status))

    def reloading(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> bool:
        """Reading the configuration again; `ready` ends it. The time tells systemd which reload."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={clock_ns() // 1000}")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(*_status(text))

    def watchdog(self) -> bool:
        return self.send("WATCHDOG=1")

    def extend_timeout(self, microseconds: int) -> bool:
        """A start or stop needs so long from now on, whatever TimeoutStartSec or -StopSec says."""
        return self.send(f"EXTEND_TIMEOUT_USEC={microseconds}")

    def send(self, *assignments: str) -> bool:
        """One message of one or more assignments. Says whether systemd has it. Raises no OSError
        and waits no longer than SEND_TIMEOUT_S.
        """
        if not self.address or not assignments:
            return False
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto("\n".join(assignments).encode(), name)
        except OSError:
            return False
        return True


def from_environment(environ: Mapping[str, str], *, pid: int | None = None) -> Notifier:
    """What systemd left in the environment of process `pid` (this one unless given)."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or len(address) < 2:
        return Notifier()  # none, or of a kind (vsock:) that only virtual machines have
    mine = environ.get("WATCHDOG_PID", "") in {"", str(os.getpid() if pid is None else pid)}
    timeout = environ.get("WATCHDOG_USEC", "")
    watched = mine and timeout.isascii() and timeout.isdigit()
    return Notifier(address, int(timeout) if watched else 0)


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()
