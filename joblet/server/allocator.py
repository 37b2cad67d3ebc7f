# SPDX-License-Identifier: MIT
"""How the C library gives memory back to the kernel.

Output goes to a follower in pieces of some hundred KiB, each of them memory that is asked for,
copied into, and freed at once. glibc's malloc(3) takes a piece of that size from the kernel and
gives it back, and the kernel clears it, page by page: a third of the time that following takes.

Must not import anything of joblet.
"""

import ctypes
from typing import Final

# mallopt(3); malloc.h
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3

PIECE_BYTES: Final = 8 << 20  # a piece that is larger goes back to the kernel when it is freed
SPARE_BYTES: Final = 8 << 20  # so much that is free is kept
STEP_BYTES: Final = 1 << 20  # so much is asked for at a time


def keep_spare() -> bool:
    """Keep some of what is freed for what is asked for next; False if this C library does not let
    itself be told. Call before threads are started."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    options = (
        (_MMAP_THRESHOLD, PIECE_BYTES),
        (_TRIM_THRESHOLD, SPARE_BYTES),
        (_TOP_PAD, STEP_BYTES),
    )
    return all(mallopt(option, value) == 1 for option, value in options)
