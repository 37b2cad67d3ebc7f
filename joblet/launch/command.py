# SPDX-License-Identifier: MIT
"""The command's process: from PID 1's fork to execve. stdlib alone.

The order is the security of it (each line says why it cannot move). Two descriptors tell PID 1 how
far
it is: `sync`, on which the child asks for its id maps, and `failure`, which execve closes; what
the child writes there before it exits is "step:errno:what to tell people". That sentence is the
first and last line of its stderr as well.
"""

import contextlib
import errno
import functools
import os
import resource
import signal
import socket
from typing import Final

from joblet.launch import syscalls as sys
from joblet.launch.failure import Failed, sentence, why_not_executed
from joblet.launch.plan import RLIMITS, TRUSTED, UID_COUNT, WORK, Plan

# What "root" keeps inside its user namespace: enough for packages and archives, nothing over the
# host
KEPT_CAPABILITIES: Final = (
    sys.CAP_CHOWN,
    sys.CAP_DAC_OVERRIDE,
    sys.CAP_FOWNER,
    sys.CAP_FSETID,
    sys.CAP_KILL,
    sys.CAP_SETGID,
    sys.CAP_SETUID,
    sys.CAP_SETPCAP,
    sys.CAP_NET_BIND_SERVICE,
    sys.CAP_SYS_CHROOT,
    sys.CAP_SETFCAP,
)
NOFILE: Final = (1024, 524288)  # soft, hard: systemd's defaults, not the service's own high ones

NEEDS_MAPS: Final = b"u"
MAPS_WRITTEN: Final = b"m"


class Command:
    """A forked command, until its exec or its end. `pid` is in the job's PID namespace."""

    def __init__(self, plan: Plan, writers: tuple[int, ...], proc_sys: int) -> None:
        """Forks. writers: the stdout and stderr ends (one for both when merged). Raises OSError."""
        self._uid_base = plan.uid_base
        self.sync, child_sync = socket.socketpair()
        self.failure, failure = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
        except OSError:
            self.close()
            child_sync.close()
            os.close(failure)
            raise
        if self.pid == 0:
            _run(plan, writers, proc_sys, child_sync, failure)
        child_sync.close()
        os.close(failure)

    def map_ids(self) -> None:
        """Answer `sync`: the child waits for its maps, or for the errno of what failed, which it
        reports like a failure of its own. A child that is gone needs none."""
        try:
            if self.sync.recv(1) == NEEDS_MAPS:
                self.sync.sendall(self._map_ids())
        except ConnectionError:
            pass

    def _map_ids(self) -> bytes:
        try:
            for name in ("uid_map", "gid_map"):
                # os.write, not open().write(): a failing one prints a traceback from its finaliser
                fd = os.open(f"/proc/{self.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"0 %d %d\n" % (self._uid_base, UID_COUNT))
                finally:
                    os.close(fd)
        except OSError as error:
            return b"%d" % (error.errno or errno.EIO)
        return MAPS_WRITTEN

    def outcome(self) -> Failed | None:
        """When `failure` is readable: None after a successful exec, else what failed."""
        report = os.read(self.failure, 4096).decode(errors="replace")
        step, _, rest = report.partition(":")
        number, _, detail = rest.partition(":")
        return Failed(step, int(number), detail) if step else None

    def close(self) -> None:
        self.sync.close()
        os.close(self.failure)


def _run(
    plan: Plan, writers: tuple[int, ...], proc_sys: int, sync: socket.socket, failure: int
) -> None:
    """In the child; never returns."""
    step = "setsid"
    subject = ""
    try:
        os.setsid()
        step = "descriptors"
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(writers[0], 1)
        os.dup2(writers[-1], 2)
        # before the user namespace: a process that does it later can go back
        step = "oom_score_adj"
        _write("/proc/self/oom_score_adj", b"0")
        sys.close_range_cloexec(3)
        step = "rlimits"
        _limits(plan)
        step = "user namespace"
        sys.unshare(sys.CLONE_NEWUSER)
        sync.sendall(NEEDS_MAPS)
        step = "uid_map"
        answer = sync.recv(16)
        if answer != MAPS_WRITTEN:
            number = int(answer) if answer else errno.ECONNRESET
            raise OSError(number, os.strerror(number))
        step = "uid"
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        step = "session keyring"
        _own_keyring()
        # by path it is masked already; inside the namespace, or it would be the host's own limit
        step = "max_user_namespaces"
        if plan.profile != TRUSTED:
            _write("user/max_user_namespaces", b"0", dir_fd=proc_sys)
        # after the user namespace, which hands out a full set
        step = "capabilities"
        _capabilities()
        step = "no_new_privs"
        sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)
        step, subject = "chdir", plan.cwd
        _enter(plan.cwd)
        # as late as can be: all of the above is to be done once, and what follows is allowed
        step, subject = "seccomp", ""
        for program, flags in plan.filters:
            sys.seccomp_filter(program, flags)
        # ignored signals survive exec
        for number in ignored():
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        step, subject = "exec", plan.path
        # bytes: text would be encoded as the service's locale says
        argv = [argument.encode() for argument in plan.argv]
        env = {name.encode(): value.encode() for name, value in plan.env.items()}
        os.execve(plan.path.encode(), argv, env)  # noqa: S606
    except OSError as error:
        number = error.errno or 0
        why = why_not_executed(subject, number) if step == "exec" else ""
        _report(Failed(step, number, sentence(step, number, subject, why)), writers[-1], failure)
    except BaseException as error:
        why = f"{type(error).__name__}, a bug in Joblet"
        _report(Failed(step, 0, sentence(step, 0, subject, why)), writers[-1], failure)
    finally:
        os._exit(125)


def _report(failed: Failed, stderr: int, failure: int) -> None:
    """To the job's log, and to PID 1 for the record."""
    failed.log(stderr)
    os.write(failure, f"{failed.step}:{failed.errno}:{failed.detail}".encode(errors="replace"))


@functools.cache
def ignored() -> tuple[int, ...]:
    """The signals that this process ignores: Python ignores two, and who knows what started init
    mode. The zygote asks first, since the answer takes long and its children inherit it."""
    return tuple(
        number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN
    )


def _write(path: str, data: bytes, *, dir_fd: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _limits(plan: Plan) -> None:
    """Before the user namespace: inside, no limit can be raised."""
    os.umask(0o022)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, NOFILE[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(NOFILE[0], hard), hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    for name, value in plan.rlimits.items():
        try:
            resource.setrlimit(_RLIMITS[name], (value, value))
        except ValueError:  # what Python makes of EPERM and EINVAL
            raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from None


_RLIMITS: Final = {name: getattr(resource, f"RLIMIT_{name.upper()}") for name in RLIMITS}


def _capabilities() -> None:
    last = 40  # CAP_CHECKPOINT_RESTORE; newer kernels may have more
    while True:
        try:
            sys.prctl(23, last + 1)  # PR_CAPBSET_READ
        except OSError:
            break
        last += 1
    for number in range(last + 1):
        if number not in KEPT_CAPABILITIES:
            sys.prctl(sys.PR_CAPBSET_DROP, number)
    sys.capset(sum(1 << number for number in KEPT_CAPABILITIES))


def _own_keyring() -> None:
    """Or all jobs would share the service's, and find each other's keys there."""
    try:
        sys.join_session_keyring()
    except OSError as error:
        # without keyrings, or behind a filter that a job cannot pass either
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def _enter(cwd: str) -> None:
    path = cwd.encode()
    try:
        os.chdir(path)
    except FileNotFoundError:
        if not f"{os.path.normpath(cwd)}/".startswith(f"{WORK}/"):
            raise
        # beneath /work a directory that is missing is made; as the job's own "root", inside
        with contextlib.suppress(FileExistsError):
            os.makedirs(path, 0o755)
        os.chdir(path)
