# SPDX-License-Identifier: MIT
"""What a hostile job tries: one probe after the other, each in a process of its own.

    python3 -I probe.py run [--as UID] [--context JSON] [NAME ...]
    python3 -I probe.py list
    python3 -I probe.py stand joblet-probe-mark
    python3 -I probe.py give-away SOCKET
    python3 -I probe.py take SOCKET

run prints one JSON object: name -> "ok" if it could be done, else the name of the errno, or a fact.
The same runs outside, as root of the machine, where it must be possible: a probe that fails there
too proves nothing. So each does no harm where it succeeds. --as: attempts are made as this user id.
--context: what is outside to be reached (see CONTEXT); probes that need more of it are left out.

stand makes some of that, says so in JSON, and waits for the end of its standard input. give-away
hands its own output to whoever listens on an abstract socket, and ends; take listens, and
prints whether it can still write there. Standard library alone, nothing of joblet: it runs in jobs.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# What the probes are told of the machine, by name
CONTEXT: dict[str, Any] = {
    "pid": 0,  # of a process outside of every job, that has MARK in its command line
    "job": "",  # another job, with a file `secret` in its work directory
    "job_pid": 0,  # that job's command, with MARK in its environment
    "suid": "",  # an `id`, owned by root, mode 4755
    "shm_key": 0,  # of System V shared memory
    "shm": "",  # a name in /dev/shm
    "mqueue": "",  # a POSIX message queue: /name
    "key": "",  # the description of a key in root's user keyring
}
MARK = b"joblet-probe-mark"
OUTSIDE = Path("/etc/joblet")  # what only the machine has
WRITABLE = "/work" if os.path.isdir("/work") else "/var/lib"  # in jobs of every profile; outside

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWCGROUP, CLONE_NEWTIME = 0x2000000, 0x80
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 0x20, 0x1000, 0x4000, 0x40000
PTRACE_SEIZE, PR_SET_DUMPABLE = 0x4206, 4
X86 = platform.machine() == "x86_64"
NR_FSOPEN, NR_OPEN_TREE = 430, 428
NR_PIVOT_ROOT = 155 if X86 else 41
NR_NAME_TO_HANDLE_AT, NR_OPEN_BY_HANDLE_AT = (303, 304) if X86 else (264, 265)
NR_ADD_KEY, NR_KEYCTL = (248, 250) if X86 else (217, 219)
NR_INIT_MODULE = 175 if X86 else 105
NR_USERFAULTFD = 323 if X86 else 282
NR_IO_URING_SETUP, NR_CLONE3 = 425, 435
KEY_SPEC_PROCESS_KEYRING, KEY_SPEC_USER_KEYRING, KEYCTL_SEARCH = -2, -4, 10
USER_MODE_ONLY = 1  # of userfaultfd: what every user may have

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
librt = ctypes.CDLL("librt.so.1", use_errno=True)
libc.mount.argtypes = (ctypes.c_char_p,) * 3 + (ctypes.c_ulong, ctypes.c_char_p)

Probe = Callable[[], Any]
PROBES: dict[str, Probe] = {}
FACTS: dict[str, Probe] = {}
NEEDS: dict[str, str] = {}  # of CONTEXT
INHERITED: list[str] = []


def probe(function: Probe) -> Probe:
    """Something that must be possible outside and not in a job."""
    PROBES[function.__name__] = function
    return function


def needs(name: str) -> Callable[[Probe], Probe]:
    """A probe of something outside, by its name in CONTEXT."""

    def register(function: Probe) -> Probe:
        NEEDS[function.__name__] = name
        return probe(function)

    return register


def fact(function: Probe) -> Probe:
    """Something that is one way outside and another in a job."""
    FACTS[function.__name__] = function
    return function


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    check(libc.unshare(flags))


def mount(source: str, target: str, fstype: str | None, flags: int = 0) -> None:
    check(libc.mount(source.encode(), target.encode(), fstype and fstype.encode(), flags, None))


@contextlib.contextmanager
def reached(*numbers: int) -> Iterator[None]:
    """These errnos say that it was allowed, and would have failed for what was asked."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def aside() -> None:
    """Outside: a mount namespace, so that the machine keeps its mounts. In a job that fails, and
    what follows is tried all the same."""
    with contextlib.suppress(OSError):
        unshare(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)


# --- mounts ---------------------------------------------------------------------------------------


@probe
def mount_tmpfs() -> None:
    aside()
    mount("tmpfs", "/tmp", "tmpfs")


@probe
def mount_proc() -> None:
    aside()
    mount("proc", "/tmp", "proc")


@probe
def bind_mount() -> None:
    aside()
    mount("/usr", "/tmp", None, MS_BIND)


@probe
def remount_usr_writable() -> None:
    aside()
    mount("/usr", "/usr", None, MS_BIND)
    mount("none", "/usr", None, MS_BIND | MS_REMOUNT)


@probe
def umount_proc() -> None:
    aside()
    check(libc.umount2(b"/proc", 2))


@probe
def umount_a_mask() -> None:
    aside()
    masked = "/proc/timer_list" if os.path.exists("/proc/timer_list") else "/proc/kmsg"
    with contextlib.suppress(OSError):  # outside there is none: make one
        mount("/dev/null", masked, None, MS_BIND)
    check(libc.umount2(masked.encode(), 2))


@probe
def new_mount_api() -> None:
    aside()
    check(libc.syscall(NR_FSOPEN, b"tmpfs", 0))


@probe
def clone_a_mount() -> None:
    aside()
    check(libc.syscall(NR_OPEN_TREE, -100, b"/usr", 1))


@probe
def pivot_root() -> None:
    aside()
    with contextlib.suppress(OSError):
        mount("tmpfs", "/tmp", "tmpfs")
    os.chdir("/tmp")
    check(libc.syscall(NR_PIVOT_ROOT, b".", b"."))


# --- namespaces and names -------------------------------------------------------------------------


def unshares(flags: int) -> Probe:
    return lambda: unshare(flags)


for _name, _flags in {
    "unshare_mount": CLONE_NEWNS,
    "unshare_uts": CLONE_NEWUTS,
    "unshare_ipc": CLONE_NEWIPC,
    "unshare_pid": CLONE_NEWPID,
    "unshare_network": CLONE_NEWNET,
    "unshare_cgroup": CLONE_NEWCGROUP,
    "unshare_time": CLONE_NEWTIME,
    "unshare_user": CLONE_NEWUSER,
    "unshare_user_and_mount": CLONE_NEWUSER | CLONE_NEWNS,
    "unshare_user_and_network": CLONE_NEWUSER | CLONE_NEWNET,
}.items():
    PROBES[_name] = unshares(_flags)


@probe
def enter_pid1s_mounts() -> None:
    fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    check(libc.setns(fd, CLONE_NEWNS))


@probe
def set_hostname() -> None:
    with contextlib.suppress(OSError):
        unshare(CLONE_NEWUTS)
    socket.sethostname("joblet-probe")


# --- PID 1 ----------------------------------------------------------------------------------------


@probe
def signal_pid1() -> None:
    os.kill(1, 0)


@probe
def seize_pid1() -> None:
    check(libc.ptrace(PTRACE_SEIZE, 1, None, None))  # does not stop it; ends with this process


@probe
def list_pid1s_descriptors() -> None:
    assert os.listdir("/proc/1/fd")


@probe
def open_pid1s_memory() -> None:
    os.close(os.open("/proc/1/mem", os.O_RDONLY))


@probe
def read_pid1s_environment() -> None:
    Path("/proc/1/environ").read_bytes()


@probe
def list_pid1s_root() -> None:
    assert os.listdir("/proc/1/root/")


@probe
def read_pid1s_maps() -> None:
    assert Path("/proc/1/maps").read_bytes()


@probe
def follow_pid1s_directory() -> None:
    os.readlink("/proc/1/cwd")


@probe
def pidfd_of_pid1_and_its_descriptors() -> None:
    fd = os.pidfd_open(1)
    check(libc.syscall(438, fd, 0, 0))  # pidfd_getfd


@probe
def spare_pid1() -> None:
    fd = os.open("/proc/1/oom_score_adj", os.O_WRONLY)
    os.close(fd)


# --- files ----------------------------------------------------------------------------------------


def creates(path: str) -> Probe:
    def create() -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    return create


for _name, _path in {
    "write_root": "/joblet-probe",
    "write_etc": "/etc/joblet-probe",
    "write_usr": "/usr/joblet-probe",
    "write_usr_bin": "/usr/bin/joblet-probe",
    "write_dev": "/dev/joblet-probe",
}.items():
    PROBES[_name] = creates(_path)


@probe
def write_passwd() -> None:
    os.close(os.open("/etc/passwd", os.O_WRONLY | os.O_APPEND))


@probe
def change_a_program() -> None:
    mode = stat.S_IMODE(os.stat("/usr/bin/env").st_mode)
    os.chmod("/usr/bin/env", mode)


@probe
def write_proc_sys() -> None:
    path = Path("/proc/sys/net/ipv4/ip_forward")  # the machine's own network, also in a container
    path.write_text(path.read_text())


@probe
def make_a_cgroup() -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir("/sys/fs/cgroup/joblet-probe")
    os.rmdir("/sys/fs/cgroup/joblet-probe")


@probe
def leave_the_cgroup() -> None:
    path = Path("/sys/fs/cgroup/cgroup.procs")
    os.close(os.open(path, os.O_WRONLY))


@probe
def make_a_device() -> None:
    path = f"{tempfile.mkdtemp(dir=WRITABLE)}/null"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.unlink(path)


@probe
def open_by_handle() -> None:
    """By a file's number instead of its name, past every mount (CAP_DAC_READ_SEARCH)."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    at = ctypes.c_int()
    shm = os.open("/dev/shm", os.O_RDONLY)  # a tmpfs everywhere, which has such numbers
    check(libc.syscall(NR_NAME_TO_HANDLE_AT, -100, b"/dev/shm", handle, ctypes.byref(at), 0))
    check(libc.syscall(NR_OPEN_BY_HANDLE_AT, shm, handle, os.O_RDONLY))


@probe
def reach_the_machines_files() -> None:
    assert os.listdir(OUTSIDE)


@probe
def follow_a_symlink_out() -> None:
    link = f"{tempfile.mkdtemp(dir=WRITABLE)}/out"
    os.symlink(OUTSIDE, link)
    try:
        assert os.listdir(link)
    finally:
        os.unlink(link)
        os.rmdir(os.path.dirname(link))


@probe
def go_out_by_the_root_of_its_process() -> None:
    assert os.listdir(f"/proc/self/root{OUTSIDE}")


@needs("job")
def reach_another_jobs_files() -> None:
    Path(f"/var/lib/joblet/jobs/{CONTEXT['job']}/work/secret").read_bytes()


@needs("job")
def reach_another_jobs_log() -> None:
    assert os.listdir(f"/var/lib/joblet/logs/{CONTEXT['job']}")


@needs("job")
def reach_another_jobs_pipes() -> None:
    os.close(os.open(f"/var/lib/joblet/jobs/{CONTEXT['job']}/out", os.O_RDONLY | os.O_NONBLOCK))


@needs("job_pid")
def read_another_jobs_environment() -> None:
    if MARK not in Path(f"/proc/{CONTEXT['job_pid']}/environ").read_bytes():
        raise ProcessLookupError(errno.ESRCH, "it is another process")


@needs("pid")
def see_a_process_outside() -> None:
    if MARK not in Path(f"/proc/{CONTEXT['pid']}/cmdline").read_bytes():
        raise ProcessLookupError(errno.ESRCH, "it is another process")


@needs("pid")
def signal_a_process_outside() -> None:
    os.kill(CONTEXT["pid"], 0)


@probe
def read_its_own_output() -> None:
    """The pipe that it prints to; outside there is one, too."""
    os.close(os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK))


@probe
def write_to_pid1s_program() -> None:
    with reached(errno.ETXTBSY):
        os.close(os.open("/proc/1/exe", os.O_WRONLY))


@probe
def write_to_its_own_program() -> None:
    with reached(errno.ETXTBSY):
        os.close(os.open("/proc/self/exe", os.O_WRONLY))


@probe
def write_temporary_files() -> None:
    """Private ones, which all but strict jobs may."""
    for directory in ("/tmp", "/var/tmp", "/dev/shm"):
        handle, path = tempfile.mkstemp(dir=directory)
        os.close(handle)
        os.unlink(path)


# --- IPC and keys ---------------------------------------------------------------------------------


@needs("shm_key")
def find_shared_memory() -> None:
    check(libc.shmget(CONTEXT["shm_key"], 0, 0))


@needs("shm")
def open_shared_memory() -> None:
    os.close(os.open(f"/dev/shm/{CONTEXT['shm']}", os.O_RDONLY))


@needs("mqueue")
def open_a_message_queue() -> None:
    os.close(check(librt.mq_open(CONTEXT["mqueue"].encode(), os.O_RDONLY)))


@needs("key")
def find_the_machines_key() -> None:
    key = CONTEXT["key"].encode()
    check(libc.syscall(NR_KEYCTL, KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, b"user", key, 0))


@probe
def add_a_key() -> None:
    """To a keyring that ends with this process."""
    key = b"joblet-probe"
    check(libc.syscall(NR_ADD_KEY, b"user", key, b"x", 1, KEY_SPEC_PROCESS_KEYRING))


@probe
def read_the_keys() -> None:
    """Every process has at least one to see; of a masked file nothing is read."""
    if not Path("/proc/keys").read_bytes():
        raise FileNotFoundError(errno.ENOENT, "there is nothing in it")


@probe
def list_the_firmware() -> None:
    if not os.listdir("/sys/firmware"):
        raise FileNotFoundError(errno.ENOENT, "there is nothing in it")


# --- cgroups --------------------------------------------------------------------------------------


def own_cgroup() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::")).removeprefix("0::")


@probe
def raise_its_limit_of_tasks() -> None:
    path = Path(f"/sys/fs/cgroup{own_cgroup().rstrip('/')}/pids.max")
    path.write_text(path.read_text())  # the same again


@probe
def see_other_cgroups() -> None:
    os.stat("/sys/fs/cgroup/system.slice")


@probe
def reach_init_mode() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect("/run/joblet-init.sock")


@probe
def reach_systemd() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/systemd/private")


@probe
def reach_dbus() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/dbus/system_bus_socket")


@probe
def break_out_of_a_chroot() -> None:
    """It is broken out of everywhere; what is found then is the root of the mount namespace."""
    jail = tempfile.mkdtemp(dir=WRITABLE)
    root = os.open("/", os.O_RDONLY)
    os.chroot(jail)
    os.fchdir(root)
    for _ in range(50):
        os.chdir("..")
    os.chroot(".")
    assert os.listdir(OUTSIDE)


# --- privileges -----------------------------------------------------------------------------------


@needs("suid")
def become_root_by_a_setuid_program() -> None:
    """The machine's own, run as an ordinary user."""
    run_as_1000(CONTEXT["suid"])


@probe
def become_root_by_a_setuid_program_of_ones_own() -> None:
    # where outside neither nosuid nor a directory's mode is in the way
    with tempfile.TemporaryDirectory(dir=WRITABLE) as directory:
        Path(directory).chmod(0o755)
        program = Path(directory) / "id"
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        run_as_1000(program)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.prctl(PR_SET_DUMPABLE, 1)  # as after an exec: else it could not even trace its own


def run_as_1000(program: str | Path) -> None:
    """`program` is an `id`. Raises EPERM unless it is root, ENOEXEC if it does not run at all."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.dup2(writer, 1)
            if os.geteuid() == 0:
                become(1000)
            os.execv(program, ["id", "-u"])
        os._exit(1)
    os.close(writer)
    os.waitpid(pid, 0)
    said = os.read(reader, 100)
    if not said:
        raise OSError(errno.ENOEXEC, "it did not run")
    if int(said) != 0:
        raise PermissionError(errno.EPERM, f"it ran as {int(said)}")


@probe
def be_spared_by_the_oom_killer() -> None:
    Path("/proc/self/oom_score_adj").write_text("-500")


@probe
def raise_a_hard_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard + 1))
    except ValueError:  # what Python makes of EPERM
        raise PermissionError(errno.EPERM, "not allowed") from None


@probe
def be_nice_to_oneself() -> None:
    os.nice(-5)


@probe
def run_before_all_others() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@probe
def raw_packets() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@probe
def raw_ip() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@probe
def change_the_network() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(sock, 0x8913, request)  # SIOCGIFFLAGS
        fcntl.ioctl(sock, 0x8914, answer)  # SIOCSIFFLAGS, the same again


@probe
def become_somebody_else() -> None:
    os.setresuid(70_000, 70_000, 70_000)  # beyond the ids of the job


# --- doors of the kernel that every user has, unless a filter shuts them --------------------------


@probe
def io_uring() -> None:
    os.close(check(libc.syscall(NR_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))))


@probe
def handle_page_faults() -> None:
    os.close(check(libc.syscall(NR_USERFAULTFD, USER_MODE_ONLY)))


@probe
def clone_by_a_struct() -> None:
    with reached(errno.EINVAL):
        check(libc.syscall(NR_CLONE3, None, 0))


@probe
def an_odd_socket() -> None:
    """AF_ALG, for which the kernel would load a module."""
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0).close()


@probe
def trace_a_child() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        check(libc.ptrace(PTRACE_SEIZE, pid, None, None))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@probe
def chroot() -> None:
    os.chroot("/usr")


if X86:

    @probe
    def call_by_the_32_bit_door() -> None:
        """mov $20, %eax (getpid there); int $0x80; ret"""
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        answer = call()
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))


# --- the kernel; a container's root may not do these either ---------------------------------------


@probe
def load_a_module() -> None:
    with reached(errno.ENOEXEC):
        check(libc.syscall(NR_INIT_MODULE, b"", 0, b""))


@probe
def write_core_pattern() -> None:
    path = Path("/proc/sys/kernel/core_pattern")
    path.write_text(path.read_text())


@probe
def read_the_kernels_log() -> None:
    check(libc.klogctl(3, ctypes.create_string_buffer(4096), 4096))


@probe
def set_the_clock() -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns())


@probe
def watch_the_kernel() -> None:
    """perf_event_open of a software clock on processor 0, of all processes."""
    attr = ctypes.create_string_buffer(struct.pack("IIQ", 1, 64, 0), 64)
    check(libc.syscall(298 if X86 else 241, attr, -1, 0, -1, 0))


@probe
def load_a_program_into_the_kernel() -> None:
    """BPF_PROG_LOAD of `r0 = 0; exit` as a kprobe's."""
    code = ctypes.create_string_buffer(
        struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    )
    text = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("IIQQ", 2, 2, ctypes.addressof(code), ctypes.addressof(text)) + bytes(100)
    check(libc.syscall(321 if X86 else 280, 5, ctypes.create_string_buffer(attr), len(attr)))


# --- facts ----------------------------------------------------------------------------------------


@fact
def processes() -> int:
    return sum(1 for name in os.listdir("/proc") if name.isdigit())


@fact
def inherited_descriptors() -> list[str]:
    """What they lead to, besides the three that every program has."""
    return INHERITED


@fact
def pid1() -> str:
    return Path("/proc/1/cmdline").read_bytes().split(b"\0")[0].decode()


@fact
def devices() -> list[str]:
    return sorted(os.listdir("/dev"))


@fact
def what_is_masked() -> dict[str, bool]:
    """File -> whether it is /dev/null. What a kernel does not have is not there."""
    found = {}
    for name in ("kcore", "keys", "kmsg", "sysrq-trigger", "timer_list"):
        with contextlib.suppress(FileNotFoundError):
            found[name] = os.stat(f"/proc/{name}").st_rdev == os.makedev(1, 3)
    return found


@fact
def privileges() -> dict[str, str]:
    wanted = ("CapEff", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Groups")
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: " ".join(found[name].split()) for name in wanted}


@fact
def top() -> list[str]:
    return sorted(os.listdir("/"))


@fact
def etc() -> list[str]:
    return sorted(os.listdir("/etc"))


@fact
def cgroup() -> str:
    return own_cgroup()


@fact
def owners_of_the_machines_files() -> list[int]:
    return [os.stat("/usr").st_uid, os.stat("/").st_uid]


def outcome(function: Probe, uid: int) -> Any:
    """In a process of its own, whatever becomes of that."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                become(uid)
            value = function()
            answer = "ok" if value is None else value
        except OSError as error:
            answer = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    parts = []
    while data := os.read(reader, 65536):
        parts.append(data)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return json.loads(b"".join(parts)) if parts else f"status {status}"


def run(names: Sequence[str], uid: int) -> dict[str, Any]:
    """names: those wanted; none for all."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            if int(name) > 2:
                INHERITED.append(os.readlink(f"/proc/self/fd/{name}"))
    if WRITABLE == "/work":  # the job's own, and its other users' as well
        os.chmod(WRITABLE, 0o1777)
    known = {**PROBES, **FACTS}
    wanted = names or [name for name in known if name not in NEEDS or CONTEXT[NEEDS[name]]]
    return {name: outcome(known[name], uid) for name in wanted}


def stand() -> None:
    """What has to be found outside, and in no job."""
    made = {"pid": os.getpid(), "shm_key": 0x4A6F626C, "shm": MARK.decode(), "key": MARK.decode()}
    made["mqueue"] = f"/{MARK.decode()}"
    check(libc.shmget(made["shm_key"], 4096, 0o1666))  # IPC_CREAT
    Path(f"/dev/shm/{made['shm']}").touch(0o666)
    os.close(check(librt.mq_open(b"/" + MARK, os.O_RDWR | os.O_CREAT, 0o666, None)))
    check(libc.syscall(NR_ADD_KEY, b"user", MARK, b"x", 1, KEY_SPEC_USER_KEYRING))
    print(json.dumps(made), flush=True)
    sys.stdin.read()


# --- an end held open -----------------------------------------------------------------------------


def give_away(name: str) -> None:
    """Abstract sockets belong to the network, which a job shares with the machine."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{name}")
        print("given away", flush=True)
        socket.send_fds(sock, [b"x"], [1])
        sock.recv(1)  # it has been taken


def take(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        print("listening", flush=True)
        peer, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(peer, 1, 1)
        peer.send(b"x")
        peer.recv(1)  # its end: the job's command is gone
        print("the giver is gone", flush=True)
        sys.stdin.readline()  # the word that its job has ended
        try:
            os.set_blocking(fds[0], False)
            os.write(fds[0], b"from beyond\n")
            print("written", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno or 0], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="probe.py", description="What a hostile job tries.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--as", dest="uid", type=int, default=0)
    running.add_argument("--context", type=json.loads, default={})
    running.add_argument("names", nargs="*", choices=[[], *PROBES, *FACTS])
    commands.add_parser("list")
    commands.add_parser("stand").add_argument("mark", choices=[MARK.decode()])
    for command in ("give-away", "take"):
        commands.add_parser(command).add_argument("socket")
    given = parser.parse_args()
    match given.command:
        case "run":
            CONTEXT.update(given.context)
            print(json.dumps(run(given.names, given.uid)), flush=True)
        case "list":
            print("\n".join([*PROBES, *FACTS]))
        case "stand":
            stand()
        case "give-away":
            give_away(given.socket)
        case "take":
            take(given.socket)


if __name__ == "__main__":
    main()
