# SPDX-License-Identifier: MIT
"""Types of libseccomp's binding (python3-seccomp 2.5), as far as Joblet uses it."""

from typing import Any, BinaryIO, Final

ALLOW: Final[int]
NE: Final[int]
EQ: Final[int]
GT: Final[int]
MASKED_EQ: Final[int]

def ERRNO(errno: int) -> int: ...

class Attr:
    ACT_BADARCH: Final[int]
    CTL_NNP: Final[int]
    CTL_OPTIMIZE: Final[int]

class Arch:
    NATIVE: Final[int]
    X86: Final[int]
    X86_64: Final[int]
    ARM: Final[int]
    AARCH64: Final[int]
    def __init__(self, arch: int | str = ...) -> None: ...
    def __int__(self) -> int: ...

class Arg:
    def __init__(self, arg: int, op: int, datum_a: int, datum_b: int = ...) -> None: ...

class SyscallFilter:
    def __init__(self, defaction: int) -> None: ...
    def add_arch(self, arch: int | Arch) -> None: ...
    def set_attr(self, attr: int, value: int) -> None: ...
    def add_rule(self, action: int, syscall: int | str, *args: Arg) -> None: ...
    def export_bpf(self, file: BinaryIO) -> None: ...

def resolve_syscall(arch: int | Arch, syscall: Any) -> Any: ...
