# SPDX-License-Identifier: MIT
"""The job's root as a list of operations: planned as data, then carried out. stdlib alone.

`root(...)` returns them in the order in which they must run; each says what it is (`step` of a
launch-failed) and does it. All paths are the host's until `Pivot`, the job's afterwards.
"""

import dataclasses
import os
import stat
from typing import Final, Protocol

from joblet.launch import syscalls as sys

MASKED_FILES: Final = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/latency_stats",
)
MASKED_DIRECTORIES: Final = (
    "/proc/acpi",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
    "/sys/fs/bpf",
)
READ_ONLY: Final = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs")

# What of /etc a job sees; resolv.conf, passwd and group are made
ETC: Final = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "protocols",
    "services",
    "ssl",
)
MERGED: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
DEV_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

# Where a job can write besides /work, unless its profile says no
SCRATCH: Final = ("/dev/shm", "/dev/mqueue", "/tmp", "/run", "/var/tmp")  # noqa: S108

PASSWD_FILE: Final = (
    "root:x:0:0:root:/work:/bin/sh\n"  # noqa: S105
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)
GROUP_FILE: Final = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"


class Operation(Protocol):
    @property
    def step(self) -> str: ...
    def execute(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """mount(2); a directory that is missing on the new root is made first."""

    target: str
    fstype: str
    flags: int = sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC
    data: str | None = None

    @property
    def step(self) -> str:
        return f"mount {self.fstype} on {self.target}"

    def execute(self) -> None:
        _directory(self.target)
        sys.mount(self.fstype, self.target, self.fstype, self.flags, self.data)


@dataclasses.dataclass(frozen=True, slots=True)
class Bind:
    """A bind mount with everything beneath it; attributes are set recursively. Missing sources are
    passed over if so said."""

    source: str
    target: str
    attributes: int = sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV
    optional: bool = False

    @property
    def step(self) -> str:
        return f"bind {self.source}"

    def execute(self) -> None:
        try:
            kind = os.stat(self.source).st_mode
        except FileNotFoundError:
            if self.optional:
                return
            raise
        if stat.S_ISDIR(kind):
            _directory(self.target)
        else:
            _file(self.target, b"")
        sys.mount(self.source, self.target, None, sys.MS_BIND | sys.MS_REC)
        sys.mount_setattr(self.target, self.attributes)


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    path: str
    to: str

    @property
    def step(self) -> str:
        return f"link {self.path}"

    def execute(self) -> None:
        os.symlink(self.to, self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    path: str
    content: bytes

    @property
    def step(self) -> str:
        return f"write {self.path}"

    def execute(self) -> None:
        _file(self.path, self.content)


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    path: str
    major: int
    minor: int

    @property
    def step(self) -> str:
        return f"device {self.path}"

    def execute(self) -> None:
        os.mknod(self.path, stat.S_IFCHR | 0o666, os.makedev(self.major, self.minor))


@dataclasses.dataclass(frozen=True, slots=True)
class Mask:
    """Nothing to see: /dev/null over a file, an empty read-only tmpfs over a directory."""

    path: str
    directory: bool = False

    @property
    def step(self) -> str:
        return f"mask {self.path}"

    def execute(self) -> None:
        try:
            if self.directory:
                sys.mount("tmpfs", self.path, "tmpfs", sys.MS_RDONLY, "size=0,nr_inodes=1,mode=0")
            else:
                sys.mount("/dev/null", self.path, None, sys.MS_BIND)
        except FileNotFoundError:
            pass  # this kernel does not have it


@dataclasses.dataclass(frozen=True, slots=True)
class ReadOnly:
    """The same tree, bound over itself, read-only."""

    path: str
    optional: bool = True

    @property
    def step(self) -> str:
        return f"read-only {self.path}"

    def execute(self) -> None:
        try:
            sys.mount(self.path, self.path, None, sys.MS_BIND | sys.MS_REC)
        except FileNotFoundError:
            if not self.optional:
                raise
            return
        sys.mount_setattr(self.path, sys.MOUNT_ATTR_RDONLY)


@dataclasses.dataclass(frozen=True, slots=True)
class Pivot:
    """The new root becomes the root; the old one is gone from this namespace."""

    root: str

    @property
    def step(self) -> str:
        return "pivot_root"

    def execute(self) -> None:
        # "." over "." needs no directory for the old root in the new one (pivot_root(2), NOTES)
        os.chdir(self.root)
        sys.pivot_root(".", ".")
        sys.umount2(".", sys.MNT_DETACH)
        os.chdir("/")


def root(new: str, work: str, *, resolv_conf: bytes, read_only: bool) -> list[Operation]:
    """Operations that make `new` (a directory of the host) the job's root, and pivot into it.

    work: the host's directory that becomes /work. read_only: nothing else can be written to. Later
    ones rely on earlier ones; see the comments.
    """
    ops: list[Operation] = [
        # nodev last: /dev is a filesystem of its own
        Mount(new, "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=755,size=16m,nr_inodes=4096"),
        Bind("/usr", f"{new}/usr"),
    ]
    for name in MERGED:
        path = f"/{name}"
        if os.path.islink(path):
            ops.append(Link(f"{new}{path}", os.readlink(path)))
        else:
            ops.append(Bind(path, f"{new}{path}", optional=True))
    ops += [Bind(f"/etc/{name}", f"{new}/etc/{name}", optional=True) for name in ETC]
    ops += [
        File(f"{new}/etc/passwd", PASSWD_FILE.encode()),
        File(f"{new}/etc/group", GROUP_FILE.encode()),
        File(f"{new}/etc/resolv.conf", resolv_conf),
        Mount(f"{new}/proc", "proc"),
        Mount(f"{new}/sys", "sysfs", sys.MS_RDONLY | sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC),
        Mount(
            f"{new}/dev", "tmpfs", sys.MS_NOSUID | sys.MS_NOEXEC, "mode=755,size=64k,nr_inodes=64"
        ),
    ]
    ops += [Device(f"{new}/dev/{name}", *numbers) for name, numbers in DEVICES.items()]
    ops += [Link(f"{new}/dev/{name}", to) for name, to in DEV_LINKS.items()]
    ops += [
        Mount(
            f"{new}/dev/pts",
            "devpts",
            sys.MS_NOSUID | sys.MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=620",
        ),
        Mount(f"{new}/dev/shm", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=1777"),  # noqa: S108
        Mount(f"{new}/dev/mqueue", "mqueue"),
        Mount(f"{new}/tmp", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=1777"),  # noqa: S108
        Mount(f"{new}/run", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=1777"),
        Mount(f"{new}/var/tmp", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=1777"),  # noqa: S108
        Bind(work, f"{new}/work", sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV),
        Pivot(new),
        ReadOnlyMount("/"),
        ReadOnlyMount("/dev"),
    ]
    if read_only:
        ops += [ReadOnlyMount(path) for path in SCRATCH]
    return ops


def masks() -> list[Operation]:
    """What is hidden of /proc and /sys; after this /proc/sys can be written only through an older
    descriptor."""
    ops: list[Operation] = [ReadOnly(path) for path in READ_ONLY]
    ops += [Mask(path) for path in MASKED_FILES]
    ops += [Mask(path, directory=True) for path in MASKED_DIRECTORIES]
    return ops


@dataclasses.dataclass(frozen=True, slots=True)
class ReadOnlyMount:
    """This mount alone becomes read-only; what is mounted beneath stays as it is."""

    path: str

    @property
    def step(self) -> str:
        return f"read-only {self.path}"

    def execute(self) -> None:
        sys.mount_setattr(self.path, sys.MOUNT_ATTR_RDONLY, recursive=False)


def _directory(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _directory(os.path.dirname(path))
        os.mkdir(path, 0o755)


def _file(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o644)
    except FileNotFoundError:
        _directory(os.path.dirname(path))
        fd = os.open(path, flags, 0o644)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)
