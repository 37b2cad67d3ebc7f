# SPDX-License-Identifier: MIT
"""The command that prints lines, as fast as whoever reads them lets it.

    joblet-bench-lines REPORTS GATE DATA NUMBER BEGIN TOTAL BLOCK EXIT

It prints TOTAL bytes of the file DATA, from its byte BEGIN on and round and round, in writes of
BLOCK bytes (fewer at the end of DATA). To the FIFO REPORTS it writes a Report when it is ready and
one when it is done; between the two it waits at the FIFO GATE until somebody opens that, and at the
end at the FIFO EXIT.

Machine code, because what is measured is who reads: a thousand of them stand there in a few pages
each, and between two writes there are twenty instructions. Where that cannot be (another
processor), a Python program does the same.
"""

import dataclasses
import platform
import struct
from pathlib import Path
from typing import Final, Self

from tests.bench.guest import elf
from tests.bench.guest.errors import Broken

NAME: Final = "joblet-bench-lines"

CODE: Final = bytes.fromhex(
    "4889e5"  # mov rbp, rsp
    "4883ec40"  # sub rsp, 64
    # argv[1], the reports: open(2), for writing
    "488b7d10"  # mov rdi, [rbp+16]
    "be01000000"  # mov esi, 1
    "b802000000"  # mov eax, 2
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "0f8838010000"  # js fail
    "4189c4"  # mov r12d, eax
    # argv[3], the data: open(2)
    "488b7d20"  # mov rdi, [rbp+32]
    "31f6"  # xor esi, esi
    "b802000000"  # mov eax, 2
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "0f8820010000"  # js fail
    "4189c0"  # mov r8d, eax
    # its size: lseek(2), to the end
    "89c7"  # mov edi, eax
    "31f6"  # xor esi, esi
    "ba02000000"  # mov edx, 2
    "b808000000"  # mov eax, 8
    "0f05"  # syscall
    "4989c5"  # mov r13, rax
    # the data in memory, read now: mmap(2), MAP_SHARED | MAP_POPULATE
    "31ff"  # xor edi, edi
    "4889c6"  # mov rsi, rax
    "ba01000000"  # mov edx, 1
    "41ba01800000"  # mov r10d, 0x8001
    "4531c9"  # xor r9d, r9d
    "b809000000"  # mov eax, 9
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "0f88e7000000"  # js fail
    "4889c3"  # mov rbx, rax
    # argv[4]: the number
    "488b7528"  # mov rsi, [rbp+40]
    "e817010000"  # call number
    "48890424"  # mov [rsp], rax
    # argv[5]: where in the data it begins
    "488b7530"  # mov rsi, [rbp+48]
    "e80a010000"  # call number
    "4989c6"  # mov r14, rax
    # argv[6]: bytes in all
    "488b7538"  # mov rsi, [rbp+56]
    "e8fe000000"  # call number
    "4989c7"  # mov r15, rax
    "4889442420"  # mov [rsp+32], rax
    # argv[7]: bytes in each write
    "488b7540"  # mov rsi, [rbp+64]
    "e8ed000000"  # call number
    "4889442428"  # mov [rsp+40], rax
    # no times yet: ready
    "31c0"  # xor eax, eax
    "4889442408"  # mov [rsp+8], rax
    "4889442410"  # mov [rsp+16], rax
    "4889442418"  # mov [rsp+24], rax
    "e8a2000000"  # call report
    # argv[2], the gate: open(2) waits until somebody opens it for writing
    "488b7d18"  # mov rdi, [rbp+24]
    "31f6"  # xor esi, esi
    "b802000000"  # mov eax, 2
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "0f8881000000"  # js fail
    # CLOCK_MONOTONIC
    "bf01000000"  # mov edi, 1
    "e898000000"  # call clock
    "4889442408"  # mov [rsp+8], rax
    # loop: to the end of the data at most, a block at most, what is left at most
    "4c89ea"  # mov rdx, r13
    "4c29f2"  # sub rdx, r14
    "483b542428"  # cmp rdx, [rsp+40]
    "480f47542428"  # cmova rdx, [rsp+40]
    "4c39fa"  # cmp rdx, r15
    "490f47d7"  # cmova rdx, r15
    # write(2), to standard output
    "4a8d3433"  # lea rsi, [rbx+r14]
    "bf01000000"  # mov edi, 1
    "b801000000"  # mov eax, 1
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "7845"  # js fail
    # behind the end of the data comes its beginning
    "31d2"  # xor edx, edx
    "4901c6"  # add r14, rax
    "4d39ee"  # cmp r14, r13
    "4c0f44f2"  # cmove r14, rdx
    "4929c7"  # sub r15, rax
    "75c2"  # jne loop
    # CLOCK_MONOTONIC
    "bf01000000"  # mov edi, 1
    "e84b000000"  # call clock
    "4889442410"  # mov [rsp+16], rax
    # CLOCK_PROCESS_CPUTIME_ID
    "bf02000000"  # mov edi, 2
    "e83c000000"  # call clock
    "4889442418"  # mov [rsp+24], rax
    "e81d000000"  # call report
    # argv[8], the gate behind: the same
    "488b7d48"  # mov rdi, [rbp+72]
    "31f6"  # xor esi, esi
    "b802000000"  # mov eax, 2
    "0f05"  # syscall
    "31ff"  # xor edi, edi
    "eb05"  # jmp exit
    # fail:
    "bf01000000"  # mov edi, 1
    # exit: exit_group(2)
    "b8e7000000"  # mov eax, 231
    "0f05"  # syscall
    # report: the 40 bytes, in one write(2)
    "4489e7"  # mov edi, r12d
    "488d742408"  # lea rsi, [rsp+8]
    "ba28000000"  # mov edx, 40
    "b801000000"  # mov eax, 1
    "0f05"  # syscall
    "c3"  # ret
    # clock: of edi, in nanoseconds, by clock_gettime(2)
    "488d742438"  # lea rsi, [rsp+56]
    "b8e4000000"  # mov eax, 228
    "0f05"  # syscall
    "486944243800ca9a3b"  # imul rax, [rsp+56], 1000000000
    "4803442440"  # add rax, [rsp+64]
    "c3"  # ret
    # number: the decimal digits at rsi
    "31c0"  # xor eax, eax
    # digit:
    "0fb60e"  # movzx ecx, [rsi]
    "83e930"  # sub ecx, 48
    "780c"  # js done
    "486bc00a"  # imul rax, rax, 10
    "4801c8"  # add rax, rcx
    "48ffc6"  # inc rsi
    "ebec"  # jmp digit
    # done:
    "c3"  # ret
)

SCRIPT: Final = b"""\
#!/usr/bin/python3 -IS
import os, struct, sys, time

reports, gate, data = sys.argv[1:4]
number, at, left, block = map(int, sys.argv[4:8])
total = left
reports = os.open(reports, os.O_WRONLY)
with open(data, "rb") as file:
    data = memoryview(file.read())
os.write(reports, struct.pack("<qqqqq", number, 0, 0, 0, total))
os.open(gate, os.O_RDONLY)
begin = time.monotonic_ns()
while left:
    written = os.write(1, data[at : at + min(block, left)])
    at = (at + written) % len(data)
    left -= written
end = time.monotonic_ns()
os.write(reports, struct.pack("<qqqqq", number, begin, end, time.process_time_ns(), total))
os.open(sys.argv[8], os.O_RDONLY)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a producer says of itself: times as of time.monotonic_ns(), 0 before it began."""

    number: int
    begin_ns: int
    end_ns: int
    cpu_ns: int
    total: int

    FORMAT = struct.Struct("<qqqqq")

    @classmethod
    def parse(cls, data: bytes) -> list[Self]:
        """Whole reports, in order of arrival. Raises Broken."""
        if len(data) % cls.FORMAT.size:
            raise Broken(f"a producer's report has {len(data)} bytes")
        return [cls(*fields) for fields in cls.FORMAT.iter_unpack(data)]


def program(machine: str) -> bytes:
    """The executable for a processor as uname(2) calls it."""
    return elf.executable(CODE) if machine == elf.MACHINE else SCRIPT


def install(directory: Path) -> Path:
    """Where it is now."""
    path = directory / NAME
    path.write_bytes(program(platform.machine()))
    path.chmod(0o755)
    return path
