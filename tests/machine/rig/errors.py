# SPDX-License-Identifier: MIT
"""What the rig raises: "cannot X: reason". No I/O.

RigError
├── BootFailed       a machine did not come up; carries the end of its console
├── CommandFailed    a command run with check=True ended with another code than 0
└── CommandTimeout   a command was still running at its deadline and has been killed
"""

from __future__ import annotations

TAIL_BYTES = 8000
"""How much of an output or a console goes into a message: enough for a traceback."""


def tail(data: bytes | str, limit: int = TAIL_BYTES) -> str:
    """The end of `data` as text, with a mark where something was left out."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    text = text.strip("\n")
    return text if len(text) <= limit else "[…]" + text[-limit:]


class RigError(Exception):
    """cannot {what}: {why}; `detail` (console, output) is shown below it."""

    def __init__(self, what: str, why: str, detail: bytes | str = "") -> None:
        self.what = what
        self.why = why
        self.detail = tail(detail)
        super().__init__(f"cannot {what}: {why}" + (f"\n{self.detail}" if self.detail else ""))


class BootFailed(RigError):
    pass


class CommandFailed(RigError):
    pass


class CommandTimeout(RigError):
    pass
