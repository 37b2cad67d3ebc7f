# SPDX-License-Identifier: MIT
"""CRC-32 of output: the one of zlib, computed by libdeflate where that is installed.

libdeflate uses what the processor has for it (PCLMULQDQ, the CRC instructions of Arm): 0.08 s for a
GB in place of zlib's 0.24, on the machine of docs/BENCHMARKS.md. The sums are the same.

Must not import anything of joblet.
"""

import ctypes
import zlib
from collections.abc import Callable
from typing import Final

_LIBRARY: Final = "libdeflate.so.0"
# Less is done by zlib before a foreign function is called.
_FEW_BYTES: Final = 4096


def crc32(data: bytes | memoryview, start: int = 0) -> int:
    """The CRC-32 of `data` behind bytes whose sum is `start`. Other threads run meanwhile."""
    if _fast is None or len(data) < _FEW_BYTES:
        return zlib.crc32(data, start)
    if isinstance(data, bytes):
        return _fast(start, data, len(data))
    if data.readonly or not data.c_contiguous or data.itemsize != 1:
        return zlib.crc32(data, start)
    return _fast(start, ctypes.byref(ctypes.c_char.from_buffer(data)), len(data))


def _library(name: str) -> Callable[[int, object, int], int] | None:
    """libdeflate_crc32 of libdeflate.h, None if the library is not there."""
    try:
        function = ctypes.CDLL(name).libdeflate_crc32
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    return function


_fast = _library(_LIBRARY)
