# SPDX-License-Identifier: MIT
"""The process `rnx`: begins and ends as fast as it can. A library user wants rnx.cli.main.

Measured for `rnx job list`, of about 140 ms: collecting garbage while modules are loaded costs 6,
tearing down an interpreter that has loaded grpc 20.
"""

import contextlib
import gc
import os
import sys
from typing import NoReturn

# Modules make objects that stay; what a long follow leaves in cycles is still collected.
OBJECTS_BETWEEN_COLLECTIONS = 100_000


def main() -> NoReturn:
    """Ends the process with rnx's exit code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    from rnx.cli import main as run

    code = run()
    # Everything was written through to the descriptors, but what click printed as help.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)
