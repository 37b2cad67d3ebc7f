# SPDX-License-Identifier: MIT
"""The command whose first instruction is timed: it reads the clock, prints that, and exits.

A program of three system calls: no loader, no library, no shell, so that what stands between a
request and its clock is the launch and nothing else, the same few microseconds for every peer.
Where it cannot be (another processor), `date` does it, which costs everybody its own start.
"""

import platform
import struct
import time
from pathlib import Path
from typing import Final

from tests.bench.guest.errors import Broken

PATH: Final = Path("/usr/local/bin/joblet-bench-stamp")
TIMESPEC: Final = struct.Struct("<qq")

# clock_gettime(CLOCK_MONOTONIC, sp); write(1, sp, 16); exit(0)
CODE: Final = bytes.fromhex(
    "4883ec10"  # sub rsp, 16
    "b8e4000000"  # mov eax, 228    clock_gettime
    "bf01000000"  # mov edi, 1      CLOCK_MONOTONIC
    "4889e6"  # mov rsi, rsp
    "0f05"  # syscall
    "b801000000"  # mov eax, 1      write
    "bf01000000"  # mov edi, 1
    "4889e6"  # mov rsi, rsp
    "ba10000000"  # mov edx, 16
    "0f05"  # syscall
    "b83c000000"  # mov eax, 60     exit
    "31ff"  # xor edi, edi
    "0f05"  # syscall
)
DATE: Final = b"#!/bin/sh\nexec date +%s%N\n"

LOAD_ADDRESS: Final = 0x400000
HEADERS_SIZE: Final = 64 + 56  # of the file, of its one segment (elf(5))


def program(machine: str) -> bytes:
    """The executable for a processor as uname(2) calls it."""
    if machine != "x86_64":
        return DATE
    size = HEADERS_SIZE + len(CODE)
    entry = LOAD_ADDRESS + HEADERS_SIZE
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    # ET_EXEC, EM_X86_64; program headers behind this one; no sections
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # PT_LOAD, readable and executable, the whole file
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096)
    return ident + header + segment + CODE


def install() -> None:
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_bytes(program(platform.machine()))
    PATH.chmod(0o755)


def read(output: bytes) -> int:
    """The time that it printed, as of time.monotonic_ns(). Raises Broken."""
    if len(output) == TIMESPEC.size:
        seconds, nanoseconds = TIMESPEC.unpack(output)
        return int(seconds * 10**9 + nanoseconds)
    text = output.decode(errors="replace").strip()
    if not text.isdigit():
        raise Broken(f"the stamp is {text[:200]!r}")
    return int(text) - time.time_ns() + time.monotonic_ns()
