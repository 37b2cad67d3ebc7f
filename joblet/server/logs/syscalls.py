# SPDX-License-Identifier: MIT
"""Two calls of Linux that Python's os module does not have.

Must not import anything of joblet.
"""

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE: Final = 0x1  # fallocate(2): FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE: Final = 0x2  # fallocate(2): FALLOC_FL_PUNCH_HOLE
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS)

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)


def punch(fd: int, begin: int, end: int) -> None:
    """Give back the room of the bytes [begin, end), which are zeros from now on; fallocate(2).

    A filesystem that cannot keeps them. Raises OSError.
    """
    if _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, begin, end - begin) != 0:
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))


def syncfs(fd: int) -> None:
    """Write back all of the filesystem that `fd` is on, and wait; syncfs(2). Raises OSError."""
    if _syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
