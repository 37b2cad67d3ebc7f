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

from tests.bench.guest import elf
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


def program(machine: str) -> bytes:
    """The executable for a processor as uname(2) calls it."""
    if machine != elf.MACHINE:
        return DATE
    return elf.executable(CODE)


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
