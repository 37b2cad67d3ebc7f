# SPDX-License-Identifier: MIT
"""The last words of a service that cannot start, or go on: why, where a sysadmin looks for it.

On stderr and not through the journal's own socket: journald asks the kernel which unit a sender
belongs to, and one that has ended by then belongs to none, so that `systemctl status` would not
show its last message. The stream says its unit when it is connected.
"""

import sys
from collections.abc import Mapping
from typing import Final, TextIO

from joblet.systemd import notify
from joblet.systemd.journal import is_journal

ERROR: Final = "<3>"  # sd-daemon(3): the line's priority, which systemd takes off


def tell(text: str, environ: Mapping[str, str], stream: TextIO | None = None) -> None:
    """A line on stderr, in red in the journal, and as the unit's status line."""
    stream = sys.stderr if stream is None else stream
    line = " ".join(text.split())
    prefix = ERROR if is_journal(stream, environ) else "joblet: "
    print(f"{prefix}{line}", file=stream, flush=True)
    notify.from_environment(environ).status(line)
