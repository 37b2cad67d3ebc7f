# SPDX-License-Identifier: MIT
"""The process beside one nspawn machine: mounts its disk, starts it, ends it, cleans up.

Run as a script of its own (`python3 -I -S supervisor.py`), single-threaded and standard library
alone. One supervisor lives as long as its machine, over any number of boots.

Why a process: the overlay and a fresh cgroup2 are mounted in a mount namespace of its own, so
nothing shows on the host and nothing is left to unmount; and when the test process is gone, however
it went, its end of the control socket closes and everything that belongs to the machine goes.

The only argument is the descriptor of the run directory's lock, held until the end.
Standard input is the control socket, a stream of JSON lines. The first line is the plan:
    name      the machine's name, also of its cgroup
    dir       its run directory; `upper`, `work`, `root`, `console.log` are made in it
    lowers    overlay layers, lowest first: directories, or .tar files of upper directories
    tmpfs     whether the upper directory must be on tmpfs (the cache lies on overlayfs)
    files     path -> text, written into the upper directory before the first boot
    scope     whether this process is already in a delegated scope of the host's systemd
    arguments further arguments of systemd-nspawn
    init      further words for the command line of the machine's systemd
Commands: boot, crash, poweroff, unmount, quit. Events:
    mounted | leader(pid) | ready | exit(code, signal) | unmounted | error(text) | down
A machine that reboots (nspawn's exit code 133 under --keep-unit) is started again by itself.
"""

from __future__ import annotations

# Mounts and cgroups, by the names that the kernel gives its calls.
# ruff: noqa: PTH100, PTH102, PTH103, PTH106, PTH112, PTH120, PTH123, PTH211
import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TypedDict

CLONE_NEWNS = 0x00020000
MS_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
MS_REMOUNT_BIND = 0x20 | 0x1000
MS_REC_PRIVATE = 0x4000 | 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
REBOOT = 133
EMPTY_CGROUP_S = 10.0
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

libc = ctypes.CDLL(None, use_errno=True)


class Plan(TypedDict):
    """The first line of the control socket; see the module's docstring."""

    name: str
    dir: str
    lowers: list[str]
    tmpfs: bool
    files: dict[str, str]
    scope: bool
    arguments: list[str]
    init: list[str]


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = [text.encode() if text else None for text in (source, target, kind)]
    checked(libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def run(*argv: str) -> None:
    code = os.spawnvpe(os.P_WAIT, argv[0], argv, {**os.environ, **ENVIRONMENT})
    if code != 0:
        raise OSError(0, f"{' '.join(argv)} exited with {code}")


class Cgroup:
    """The machine's part of the cgroup2 tree.

    BASE/supervisor holds this process, BASE/machine holds nspawn, which makes `payload` and
    `supervisor` beneath it: a group that passes controllers on must hold no process itself.
    """

    MOUNT = "/sys/fs/cgroup"

    def __init__(self, name: str, *, scope: bool) -> None:
        # A fresh mount, seen by us and the machine alone: on a host with cgroup v1 beside it this
        # makes the layout that systemd knows, and in a container whose cgroups are mounted
        # read-only it is writable.
        try:
            mount("cgroup2", self.MOUNT, "cgroup2", MS_NOSUID_NODEV_NOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # the same tree is mounted there already; in a container perhaps read-only
            mount(None, self.MOUNT, None, MS_REMOUNT_BIND | MS_NOSUID_NODEV_NOEXEC)
        own = next(
            line[3:] for line in read("/proc/self/cgroup").splitlines() if line.startswith("0::")
        )
        self.base = self.MOUNT + own if scope else f"{self.MOUNT}/{name}"
        self.scope = scope
        self.machine = self.base + "/machine"
        self._enter(self.base + "/supervisor")
        above = [] if scope else [self.MOUNT]
        for group in [*above, self.base]:
            for controller in read(group + "/cgroup.controllers").split():
                # held by a v1 hierarchy, or refused for processes in the group (a container)
                with contextlib.suppress(OSError):
                    write(group + "/cgroup.subtree_control", "+" + controller)

    def _enter(self, group: str) -> None:
        for _ in range(5):
            try:
                os.makedirs(group, exist_ok=True)
                write(group + "/cgroup.procs", str(os.getpid()))
                return
            except FileNotFoundError:
                continue  # a sweep on this host took the empty group away
        raise OSError(0, f"the cgroup {group} vanishes again and again")

    def enter_machine(self) -> None:
        os.makedirs(self.machine, exist_ok=True)
        write(self.machine + "/cgroup.procs", str(os.getpid()))

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # before Linux 5.14, or already gone
            write(self.machine + "/cgroup.kill", "1")

    def clear(self) -> None:
        """Removes the machine's groups; the kernel may need a moment to empty them."""
        end = time.monotonic() + EMPTY_CGROUP_S
        while os.path.isdir(self.machine):
            collect()
            for group, _, _ in os.walk(self.machine, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(group)
            if time.monotonic() > end:
                raise OSError(0, f"{self.machine} is not empty after {EMPTY_CGROUP_S:.0f} s")
            if os.path.isdir(self.machine):
                time.sleep(0.005)

    def leave(self) -> None:
        """Out of our own group, so that it can be removed; a scope goes by itself."""
        if self.scope:
            return
        write(self.MOUNT + "/cgroup.procs", str(os.getpid()))
        for group in (self.base + "/supervisor", self.base):
            with contextlib.suppress(OSError):
                os.rmdir(group)


class Disk:
    """The machine's root: an overlay whose upper directory outlives boots."""

    def __init__(self, plan: Plan) -> None:
        os.chdir(plan["dir"])
        # Short relative names: no ':' or ',' of a path gets into the mount's options.
        self.store = "store"
        for name in ("root", self.store):
            os.makedirs(name, exist_ok=True)
        if plan["tmpfs"]:
            mount("tmpfs", self.store, "tmpfs", 0, "mode=0755")
        for name in ("upper", "work"):
            os.mkdir(f"{self.store}/{name}")
        lowers: list[str] = []
        for number, source in enumerate(plan["lowers"]):
            lower = f"{self.store}/l{number}"
            if source.endswith(".tar"):
                os.mkdir(lower)
                run("tar", "-C", lower, "--xattrs", "--xattrs-include=*", "-xf", source)
            else:
                os.symlink(source, lower)
            lowers.insert(0, lower)
        for path, text in plan["files"].items():
            target = f"{self.store}/upper{path}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "w") as file:
                file.write(text)
        lower = ":".join(lowers)
        options = f"lowerdir={lower},upperdir={self.store}/upper,workdir={self.store}/work"
        mount("overlay", "root", "overlay", 0, options)
        self.path = os.path.abspath("root")

    def unmount(self) -> None:
        checked(libc.umount2(b"root", MNT_DETACH), "unmount the disk")


class Machine:
    """One nspawn machine and its control socket."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.pending = b""
        self.child: tuple[int, int] | None = None  # pid and pidfd of nspawn
        self.leader: int | None = None
        self.dying = False
        self.log = os.open("/dev/null", os.O_WRONLY)
        line = self._line()
        if line is None:
            raise SystemExit(0)
        self.plan: Plan = json.loads(line)
        # A killed machine's PID 1 becomes our child and is collected at once, not whenever the
        # host's PID 1 gets to it.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.name = self.plan["name"]
        checked(libc.unshare(CLONE_NEWNS), "unshare the mount namespace")
        mount(None, "/", None, MS_REC_PRIVATE)
        self.disk = Disk(self.plan)
        self.log = os.open("console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.cgroup = Cgroup(self.name, scope=self.plan["scope"])
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(f"\0{self.name}-notify")
        self.send("mounted")

    def send(self, event: str, **fields: int) -> None:
        with contextlib.suppress(OSError):  # the test process is gone: the next read says so
            self.control.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")

    def _line(self) -> bytes | None:
        while b"\n" not in self.pending:
            data = self.control.recv(65536)
            if not data:
                return None
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        return line

    def boot(self) -> None:
        argv = ["systemd-nspawn", "--directory=" + self.disk.path, "--machine=" + self.name]
        argv += ["--settings=no", "--register=no", "--keep-unit", "--notify-ready=yes"]
        argv += ["--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        # All capabilities and system calls: what a machine refuses is then Joblet's own doing.
        argv += ["--console=read-only", "--system-call-filter=@known", "--capability=all"]
        # But for the clock, which is the host's, too.
        argv += ["--drop-capability=CAP_SYS_TIME"]
        argv += [*self.plan["arguments"], "--boot", *self.plan["init"]]
        environment = {
            **ENVIRONMENT,
            "NOTIFY_SOCKET": f"@{self.name}-notify",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            # nobody else can reach the directory, and a killed nspawn would leave the lock's file
            "SYSTEMD_NSPAWN_LOCK": "0",
        }
        self.leader = None
        pid = os.fork()
        if pid == 0:
            try:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                self.cgroup.enter_machine()
                null = os.open("/dev/null", os.O_RDONLY)
                for source, target in ((null, 0), (self.log, 1), (self.log, 2)):
                    os.dup2(source, target)
                os.execvpe(argv[0], argv, environment)
            except OSError as error:
                os.write(2, f"cannot start systemd-nspawn: {error}\n".encode())
            finally:
                os._exit(127)
        self.child = (pid, os.pidfd_open(pid))

    def notified(self) -> None:
        for line in self.notify.recv(65536).decode(errors="replace").splitlines():
            if line.startswith("X_NSPAWN_LEADER_PID="):
                self.leader = int(line.partition("=")[2])
                self.send("leader", pid=self.leader)
            elif line == "READY=1" and self.leader:
                self.send("ready")

    def reap(self) -> None:
        """nspawn has exited: collect it, clear its cgroups, start again if that was a reboot."""
        assert self.child
        pid, pidfd = self.child
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self.child = self.leader = None
        self.cgroup.clear()
        for place in ("propagate", "unix-export"):
            # a killed systemd-nspawn leaves them, the second one mounted, and would not start again
            path = f"/run/systemd/nspawn/{place}/{self.name}"
            libc.umount2(path.encode(), MNT_DETACH)
            with contextlib.suppress(OSError):
                os.rmdir(path)
        code = os.waitstatus_to_exitcode(status)
        self.send("exit", code=max(code, 0), signal=max(-code, 0))
        if code == REBOOT and not self.dying:
            self.boot()

    def crash(self) -> None:
        self.dying = True
        if self.child:
            if self.leader:
                signal_quietly(self.leader, signal.SIGKILL)
            signal_quietly(self.child[0], signal.SIGKILL)
            self.cgroup.kill()
            self.reap()

    def command(self, name: str) -> None:
        if name == "boot":
            self.dying = False
            self.boot()
        elif name == "crash":
            self.crash()
        elif name == "poweroff":
            self.dying = True
            if self.child:
                signal_quietly(self.child[0], signal.SIGTERM)
        elif name == "unmount":
            self.disk.unmount()
            self.send("unmounted")
        else:
            raise OSError(0, f"unknown command {name!r}")

    def serve(self) -> None:
        """Until "quit" or the end of the test process."""
        while True:
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            poll.register(self.notify, select.POLLIN)
            if self.child:
                poll.register(self.child[1], select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self.notify.fileno() in ready:
                self.notified()
            if self.child and self.child[1] in ready:
                self.reap()
            if self.control.fileno() in ready:
                line = self._line()
                if line is None or json.loads(line)["command"] == "quit":
                    return
                self.command(json.loads(line)["command"])

    def close(self) -> None:
        self.crash()
        self.cgroup.leave()
        self.send("down")


def collect() -> None:
    """Reaps whatever has been left to us."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def signal_quietly(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    os.set_inheritable(int(sys.argv[1]), False)
    control = socket.socket(fileno=os.dup(0))
    machine = None
    try:
        machine = Machine(control)
        machine.serve()
    except OSError as error:
        text = json.dumps({"event": "error", "text": str(error)})
        with contextlib.suppress(OSError):
            control.sendall(text.encode() + b"\n")
    finally:
        if machine:
            machine.close()
    if machine:
        # Unmounting an overlay writes back all of the file system that holds its upper directory:
        # it may take seconds when others write a lot, so nobody is waiting for it any more.
        control.close()
        machine.control.close()
        # The last act, as another program: no memory and no lock of ours outlives the directory.
        libc.umount2(b"root", MNT_DETACH)
        os.chdir("/")
        os.execvp("rm", ["rm", "-rf", "--", machine.plan["dir"]])


if __name__ == "__main__":
    main()
