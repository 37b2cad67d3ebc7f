# SPDX-License-Identifier: MIT
"""The system calls that a job may not make: made into filters once, when init mode starts.

libseccomp writes them here; the command's process loads them as bytes, right before its exec, where
nothing may be imported. They are lists of what is denied, after what container runtimes deny by
default: calls over the kernel, the machine or its clocks, which a job's "root" could not make
anyway, and calls that every user may make and few programs do, behind which most of the kernel's
known holes were. A denied call gives EPERM, and the kernel logs it, unless the policy says no.

Only calls of the machine's own kind: what comes in by another door (32-bit, x32) gets ENOSYS, or it
would pass by the arguments that are looked at here. `trusted` alone may run 32-bit programs.

Not denied, though some runtimes do: ptrace of one's own processes, personality, memory policies.
`strict` denies those too.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Final

import seccomp

from joblet.errors import FailedPrecondition
from joblet.launch.plan import STRICT, TRUSTED, Filters
from joblet.launch.syscalls import SECCOMP_FILTER_FLAG_LOG

# For everybody: the kernel, the machine, its clocks and disks, and doors that are only for the old
EVERY: Final = (
    "_sysctl",
    "acct",
    "bpf",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "finit_module",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "lookup_dcookie",
    "nfsservctl",
    "open_by_handle_at",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "perf_event_open",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "uselib",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
)
# What nested namespaces need, and what is worth more to an attacker than to a program
NOT_TRUSTED: Final = (
    "add_key",
    "fanotify_init",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "umount",
    "umount2",
    "userfaultfd",
)
STRICT_TOO: Final = (
    "chroot",
    "get_mempolicy",
    "mbind",
    "migrate_pages",
    "modify_ldt",
    "move_pages",
    "name_to_handle_at",
    "pidfd_getfd",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "remap_file_pages",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "vmsplice",
)

NAMESPACES: Final = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
CLONE_NEWTIME: Final = 0x80  # of unshare alone: in clone's flags these bits are a signal
AF_NETLINK: Final = 16
# Kinds of sockets that the first use of would load a module for; AF_UNIX (1), AF_INET (2),
# AF_INET6 (10) and AF_NETLINK are what is left. All above: AF_VSOCK, AF_ALG, AF_PACKET and more.
FAMILIES_BELOW: Final = (3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
QUERY: Final = 0xFFFFFFFF  # personality(QUERY) changes nothing

# The machine's other doors, for `trusted`
COMPAT: Final = {"x86_64": ("X86", "X32"), "aarch64": ("ARM",)}

UNKNOWN: Final = -1  # __NR_SCMP_ERROR; calls of other machines have other negative numbers


def make(profiles: Sequence[str], *, logged: bool = True) -> Mapping[str, Filters]:
    """For each profile the filters that its jobs load, in this order. logged: the kernel tells of
    what they deny.

    Raises FailedPrecondition: libseccomp cannot do it.
    """
    try:
        return {profile: _filters(profile, logged=logged) for profile in profiles}
    except (OSError, RuntimeError, ValueError) as error:
        raise FailedPrecondition(
            "make the filters of system calls",
            f"libseccomp says: {error}",
            hint="reinstall python3-seccomp and libseccomp2",
        ) from None


def _filters(profile: str, *, logged: bool) -> Filters:
    denied = (_denied(profile), SECCOMP_FILTER_FLAG_LOG if logged else 0)
    return (denied,) if profile == TRUSTED else ((_quiet(profile), 0), denied)


def _quiet(profile: str) -> bytes:
    """Not logged: libraries ask for clone3 before every thread, and take clone where there is none.
    Its flags lie where no filter can look."""
    made = _begun(profile)
    _deny(made, "clone3", number=errno.ENOSYS)
    return _exported(made)


def _denied(profile: str) -> bytes:
    made = _begun(profile)
    for name in EVERY:
        _deny(made, name)
    if profile == TRUSTED:
        return _exported(made)
    for name in NOT_TRUSTED:
        _deny(made, name)
    flags_at = 1 if os.uname().machine == "s390x" else 0
    for flag in NAMESPACES.values():
        _deny(made, "clone", seccomp.Arg(flags_at, seccomp.MASKED_EQ, flag, flag))
    for flag in (*NAMESPACES.values(), CLONE_NEWTIME):
        _deny(made, "unshare", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    for name in ("socket", "socketpair"):
        for family in FAMILIES_BELOW:
            _deny(made, name, seccomp.Arg(0, seccomp.EQ, family))
        _deny(made, name, seccomp.Arg(0, seccomp.GT, AF_NETLINK))
    if profile == STRICT:
        for name in STRICT_TOO:
            _deny(made, name)
        _deny(made, "personality", seccomp.Arg(0, seccomp.NE, QUERY))
        # of netlink what addresses and routes are read with (NETLINK_ROUTE, 0)
        _deny(
            made,
            "socket",
            seccomp.Arg(0, seccomp.EQ, AF_NETLINK),
            seccomp.Arg(2, seccomp.NE, 0),
        )
    return _exported(made)


def _begun(profile: str) -> seccomp.SyscallFilter:
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    made.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # a tree and no list: each call walks it
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.ENOSYS))
    if profile == TRUSTED:
        for name in COMPAT.get(os.uname().machine, ()):
            made.add_arch(getattr(seccomp.Arch, name))
    return made


def _deny(
    made: seccomp.SyscallFilter, name: str, *args: seccomp.Arg, number: int = errno.EPERM
) -> None:
    """Passes over what this libseccomp or this machine does not know."""
    if seccomp.resolve_syscall(seccomp.Arch(), name) != UNKNOWN:
        made.add_rule(seccomp.ERRNO(number), name, *args)


def _exported(made: seccomp.SyscallFilter) -> bytes:
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
