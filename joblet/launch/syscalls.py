# SPDX-License-Identifier: MIT
"""One thin wrapper per system call that Python 3.11 lacks; kernel names, OSError on failure.

Numbers and layouts are those of the kernel's uapi headers. Only 64-bit Linux: the numbers used here
are the same on x86-64 and on every architecture with the generic table (mount_setattr and later).
"""

import ctypes
import os
import struct
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

MNT_DETACH = 0x2

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

PR_CAPBSET_DROP = 24
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 2

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_NET_BIND_SERVICE = 10
CAP_SYS_CHROOT = 18
CAP_SETFCAP = 31

CLOSE_RANGE_CLOEXEC = 0x4

SFD_NONBLOCK = os.O_NONBLOCK
SFD_CLOEXEC = os.O_CLOEXEC
SIGINFO_SIZE = 128  # struct signalfd_siginfo

FIONREAD = 0x541B
SOCK_FILTER_SIZE = 8

PTRACE_DETACH = 17
KEYCTL_JOIN_SESSION_KEYRING = 1
_NR_MOUNT_SETATTR = 442
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.prctl.argtypes = (
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_libc.close_range.argtypes = (ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def setns(fd: int, nstype: int) -> None:
    _check(_libc.setns(fd, nstype))


def mount(
    source: str, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() if fstype else None,
            flags,
            data.encode() if data else None,
        ),
        target,
    )


def umount2(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    # glibc has no wrapper
    _check(_libc.syscall(_NR_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def mount_setattr(target: str, attr_set: int, *, recursive: bool = True) -> None:
    """Set MOUNT_ATTR_* on a mount and, with recursive, on all beneath it (mount_setattr(2))."""
    attr = struct.pack("QQQQ", attr_set, 0, 0, 0)
    _check(
        _libc.syscall(
            _NR_MOUNT_SETATTR,
            AT_FDCWD,
            os.fsencode(target),
            AT_RECURSIVE if recursive else 0,
            attr,
            len(attr),
        ),
        target,
    )


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    return _check(_libc.prctl(option, arg2, arg3, arg4, arg5))


def set_name(name: bytes) -> None:
    """The comm of this process (PR_SET_NAME), cut to 15 bytes."""
    fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name[:15])
    finally:
        os.close(fd)


def set_cmdline(title: bytes) -> None:
    """Overwrite argv in place, so that ps and `systemctl status` show `title`; cut to the room
    there is."""
    fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # comm may hold spaces and brackets: fields are counted from the last ")" (proc_pid_stat(5))
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)
    start, end = int(fields[45]), int(fields[46])
    if start and end > start:
        room = end - start
        ctypes.memmove(start, title[: room - 1].ljust(room, b"\0"), room)


def capset(caps: int) -> None:
    """Effective = permitted = caps (a bit mask), inheritable = 0."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    low, high = caps & 0xFFFFFFFF, caps >> 32
    data = struct.pack("IIIIII", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data))


def seccomp_filter(program: bytes, flags: int) -> None:
    """Load a filter, an array of struct sock_filter, for this process and all that come of it."""
    start = ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p).value
    fprog = struct.pack("@HP", len(program) // SOCK_FILTER_SIZE, start)
    _check(_libc.syscall(_NR_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, fprog))


def ptrace_detach(pid: int, number: int) -> None:
    """Let a tracee that is stopped go on, with this signal (0: none), no longer traced."""
    _check(_libc.ptrace(PTRACE_DETACH, pid, None, number))


def join_session_keyring() -> None:
    """A new, empty session keyring, instead of the one that was inherited (keyctl(2))."""
    _check(_libc.syscall(_NR_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None))


def close_range_cloexec(first: int) -> None:
    _check(_libc.close_range(first, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC))


def signalfd(signals: set[int]) -> int:
    mask = sum(1 << (number - 1) for number in signals)
    sigset = mask.to_bytes(128, sys.byteorder)  # sigset_t of glibc
    return _check(_libc.signalfd(-1, sigset, SFD_NONBLOCK | SFD_CLOEXEC))


_PIVOT_ROOT_NUMBERS = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "loongarch64": 41}
_NR_PIVOT_ROOT = _PIVOT_ROOT_NUMBERS.get(os.uname().machine, 155)
_NR_KEYCTL = 250 if os.uname().machine == "x86_64" else 219
_NR_SECCOMP = 317 if os.uname().machine == "x86_64" else 277
