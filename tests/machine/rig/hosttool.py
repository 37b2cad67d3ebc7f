# SPDX-License-Identifier: MIT
"""A program of the host that makes something for machines."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def run(
    what: str,
    argv: Sequence[str],
    *,
    called: str,
    timeout: float,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs it to its end. what: "build the root"; called: its name in messages.

    Raises RigError, with the end of its output, when it is not installed, not done in time, or
    fails.
    """
    try:
        done = subprocess.run(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        why = f"{argv[0]} is not installed"
        raise RigError(what, why, "tools/host-setup.sh installs what is missing") from None
    except subprocess.TimeoutExpired as late:
        why = f"{called} was not done after {timeout:g} s"
        raise RigError(what, why, late.stdout or b"") from None
    if done.returncode != 0:
        raise RigError(what, f"{called} exited with {done.returncode}", done.stdout)
