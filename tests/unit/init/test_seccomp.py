# SPDX-License-Identifier: MIT
"""What the filters answer, call by call, by a reading of their programs; that the kernel obeys them
is shown in tests/machine/test_sandbox.py."""

import errno
import itertools
import platform
import struct

import pytest
import seccomp as libseccomp

from joblet.config import PROFILES
from joblet.errors import FailedPrecondition
from joblet.init import seccomp
from joblet.launch.syscalls import SECCOMP_FILTER_FLAG_LOG

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
# linux/audit.h
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
NATIVE = ARCHES[platform.machine()]
I386 = 0x40000003
X32_BIT = 0x40000000
BIG = 1 << 32  # a bit that the kernel cuts off from an int
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK, AF_ALG, AF_PACKET = 1, 2, 10, 16, 40, 38, 17

FILTERS = seccomp.make(PROFILES)


def run(program: bytes, number: int, args: tuple[int, ...], arch: int) -> int:
    """What one filter returns (bpf(4), seccomp(2))."""
    padded = (*args, *[0] * (6 - len(args)))
    data = struct.pack("=iIQ6Q", number, arch, 0, *padded)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    a = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        match op:
            case 0x20:  # ld [k]
                a = int.from_bytes(data[k : k + 4], "little")
            case 0x54:  # and #k
                a &= k
            case 0x05:  # ja
                at += k
            case 0x15:  # jeq
                at += yes if a == k else no
            case 0x25:  # jgt
                at += yes if a > k else no
            case 0x35:  # jge
                at += yes if a >= k else no
            case 0x45:  # jset
                at += yes if a & k else no
            case 0x06:  # ret
                return int(k)
            case _:
                raise AssertionError(f"opcode {op:#x}")


def answer(
    profile: str, call: str | int, *args: int, arch: int = NATIVE
) -> tuple[int | None, bool]:
    """(errno or None if it is let through, whether the kernel logs it)."""
    number = call if isinstance(call, int) else libseccomp.resolve_syscall(libseccomp.Arch(), call)
    # the last one loaded is asked first, and of two equal answers the first counts
    for program, flags in reversed(FILTERS[profile]):
        found = run(program, number, args, arch)
        if found != ALLOW:
            assert found & ~0xFFFF == ERRNO
            return found & 0xFFFF, bool(flags & SECCOMP_FILTER_FLAG_LOG)
    return None, False


DENIED = (errno.EPERM, True)
LET = (None, False)


def known(names: tuple[str, ...]) -> list[str]:
    """Those that this machine has."""
    return [n for n in names if int(libseccomp.resolve_syscall(libseccomp.Arch(), n)) >= 0]


def test_everybody_is_denied_what_is_over_the_machine() -> None:
    assert {"bpf", "init_module", "kexec_load", "reboot", "settimeofday"} <= set(
        known(seccomp.EVERY)
    )
    for profile, name in itertools.product(PROFILES, known(seccomp.EVERY)):
        assert answer(profile, name) == DENIED, (profile, name)


def test_what_only_trusted_may() -> None:
    names = known(seccomp.NOT_TRUSTED)
    assert {"mount", "keyctl", "setns", "io_uring_setup"} <= set(names)
    for name in names:
        assert answer("default", name) == answer("strict", name) == DENIED, name
        assert answer("trusted", name) == LET, name


def test_what_strict_alone_is_denied() -> None:
    names = known(seccomp.STRICT_TOO)
    assert {"ptrace", "chroot", "process_vm_readv"} <= set(names)
    for name in names:
        assert answer("strict", name) == DENIED, name
        assert answer("default", name) == answer("trusted", name) == LET, name


def test_no_name_stands_twice() -> None:
    names = [*seccomp.EVERY, *seccomp.NOT_TRUSTED, *seccomp.STRICT_TOO]
    assert len(names) == len(set(names))


ORDINARY = ["read", "openat", "execve", "exit_group", "futex", "mmap", "kill", "setuid", "chmod",
            "pidfd_open", "epoll_wait", "prctl", "seccomp", "capset", "setrlimit", "inotify_init1",
            "memfd_create", "mknodat", "sched_setaffinity", "close_range"]  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ORDINARY)
def test_what_programs_do_is_let_through(profile: str, name: str) -> None:
    assert answer(profile, name) == LET
    assert answer(profile, name, *[2**64 - 1] * 6) == LET


SIGCHLD = 17
CLONE_THREAD_FLAGS = 0x3D0F00  # of glibc's pthread_create
CLONE_VFORK_FLAGS = 0x4100 | SIGCHLD  # of posix_spawn


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_threads_and_processes_but_no_namespaces(profile: str) -> None:
    for flags in (SIGCHLD, CLONE_THREAD_FLAGS, CLONE_VFORK_FLAGS, 0x80 | SIGCHLD):
        assert answer(profile, "clone", flags) == LET
        for namespace in seccomp.NAMESPACES.values():
            assert answer(profile, "clone", flags | namespace) == DENIED
    for flags in (0, 0x200, 0x400, 0x40000):  # CLONE_FS, CLONE_FILES, CLONE_SYSVSEM
        assert answer(profile, "unshare", flags) == LET
        for namespace in (*seccomp.NAMESPACES.values(), seccomp.CLONE_NEWTIME):
            assert answer(profile, "unshare", flags | namespace) == DENIED
            assert answer(profile, "unshare", flags | namespace | BIG) == DENIED


def test_trusted_may_make_namespaces() -> None:
    for namespace in seccomp.NAMESPACES.values():
        assert answer("trusted", "clone", namespace | SIGCHLD) == LET
        assert answer("trusted", "unshare", namespace) == LET
    assert answer("trusted", "clone3") == LET


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_clone3_is_not_there_and_nobody_hears_of_it(profile: str) -> None:
    assert answer(profile, "clone3") == (errno.ENOSYS, False)


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_kinds_of_sockets(profile: str, call: str) -> None:
    let = {family for family in range(100) if answer(profile, call, family, 1, 0) == LET}
    assert let == {0, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK}
    for family in (AF_VSOCK, AF_ALG, AF_PACKET, 3, 15):
        assert answer(profile, call, family, 1) == answer(profile, call, family | BIG) == DENIED
    assert answer("trusted", call, AF_VSOCK, 1, 0) == LET


def test_of_netlink_strict_has_routes_alone() -> None:
    assert answer("strict", "socket", AF_NETLINK, 3, 0) == LET
    for protocol in (9, 12, 15, 16, BIG | 9):
        assert answer("strict", "socket", AF_NETLINK, 3, protocol) == DENIED
        assert answer("default", "socket", AF_NETLINK, 3, protocol) == LET


def test_personality() -> None:
    assert answer("strict", "personality", 0xFFFFFFFF) == LET
    assert answer("strict", "personality", 0x0040000) == DENIED
    assert answer("default", "personality", 0x0040000) == LET


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other doors than these")
def test_other_doors_are_shut() -> None:
    """32-bit calls have other numbers: 20 is getpid there, and writev here."""
    for profile in ("default", "strict"):
        assert answer(profile, 20, arch=I386) == (errno.ENOSYS, True)
        assert answer(profile, "getpid", arch=ARCHES["aarch64"]) == (errno.ENOSYS, True)
        assert answer(profile, X32_BIT | 39) == (errno.ENOSYS, True)
    assert answer("trusted", 20, arch=I386) == LET
    assert answer("trusted", 88, arch=I386) == DENIED  # reboot
    assert answer("trusted", X32_BIT | 39) == LET
    assert answer("trusted", X32_BIT | 169) == DENIED


def test_a_host_that_does_not_want_to_hear_of_it() -> None:
    silent = seccomp.make(PROFILES, logged=False)
    assert {flags for filters in silent.values() for _, flags in filters} == {0}
    programs = {profile: [program for program, _ in filters] for profile, filters in silent.items()}
    assert programs == {p: [program for program, _ in filters] for p, filters in FILTERS.items()}


def test_names_that_nobody_knows_are_passed_over() -> None:
    made = libseccomp.SyscallFilter(libseccomp.ALLOW)
    seccomp._deny(made, "no_such_call")
    assert len(seccomp._exported(made)) <= 8 * 8


def test_a_profile_that_there_is_not_has_no_filter() -> None:
    assert set(seccomp.make(("default",))) == {"default"}


def test_a_libseccomp_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Library error (errno = -12)")

    monkeypatch.setattr(seccomp, "_exported", fail)
    with pytest.raises(FailedPrecondition, match="libseccomp says: Library error"):
        seccomp.make(("default",))
