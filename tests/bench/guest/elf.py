# SPDX-License-Identifier: MIT
"""A program of machine code alone: no loader, no library, nothing before its first instruction.

For x86_64. Made here because a machine that is measured has no compiler, and none is wanted there.
"""

import struct
from typing import Final

MACHINE: Final = "x86_64"
"""As uname(2) calls the processor."""
LOAD_ADDRESS: Final = 0x400000
HEADERS_SIZE: Final = 64 + 56  # of the file, of its one segment (elf(5))


def executable(code: bytes) -> bytes:
    """The file: two headers, then the code, which is entered at its first byte."""
    size = HEADERS_SIZE + len(code)
    entry = LOAD_ADDRESS + HEADERS_SIZE
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    # ET_EXEC, EM_X86_64; program headers behind this one; no sections
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # PT_LOAD, readable and executable, the whole file
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096)
    return ident + header + segment + code
