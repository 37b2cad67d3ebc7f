# SPDX-License-Identifier: MIT
"""The process `rnx`: begins and ends as fast as it can. A library user wants rnx.cli.main.

Measured for `rnx job list`, of about 140 ms: collecting garbage while modules are loaded costs 6,
tearing down an interpreter that has loaded grpc 20.
"""

import contextlib
import gc
import io
import os
import sys
from pathlib import Path
from typing import NoReturn

# Modules make objects that stay; what a long follow leaves in cycles is still collected.
OBJECTS_BETWEEN_COLLECTIONS = 100_000


def main() -> NoReturn:
    """Ends the process with rnx's exit code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    _open_streams()
    from rnx.cli import main as run

    code = run()
    # Everything was written through to the descriptors, but what click printed as help.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)


def _open_streams() -> None:
    """Puts /dev/null in place of standard streams that are closed: the next file or connection
    would get their descriptors, and click prints help without asking whether there is a stdout.

    In the order of the descriptors, because a new one gets the lowest that is free.

    What click prints becomes the same bytes as what rnx prints itself: UTF-8, on Windows too, where
    the code page has no sign for some of help's characters.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
