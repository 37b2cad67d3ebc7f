# SPDX-License-Identifier: MIT
"""PID 1 of a job's PID namespace: one process that ends, times and records the job. stdlib alone.

Its way, one phase after the other, never back:

    WAITING    builds the root; waits for "go" on the gate (end of file there: the launch is
    withdrawn)
    LAUNCHING  the command is forked, not yet executed
    RUNNING    waits for the command's end, a stop, the time-out, an OOM kill
    ENDING     the command has ended: what it left behind is killed and reaped
    ENDED      the record is written and sent; waits for its acknowledgement, however long
    then it leaves; without a holder it first puts what is still in the pipes aside

`cause` is what ended the job, and the first one counts. All signals are blocked and read from a
signalfd; a SIGTERM can only come from outside (nobody in the job may signal real root), which is
systemd's or an admin's. All of its waiting is one poll.
"""

import contextlib
import enum
import os
import select
import signal
import socket
import sys as python
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from joblet.launch import journal, ops, protocol, remains
from joblet.launch import syscalls as sys
from joblet.launch.cgroup import Cgroup, own_path
from joblet.launch.command import Command
from joblet.launch.failure import Failed, sentence
from joblet.launch.holder import Ctl
from joblet.launch.plan import STRICT, Plan
from joblet.launch.protocol import ExitRecord

# on the gate, a SEQPACKET socket to init mode
READY: Final = b"ready"  # `ctl` can be connected
GO: Final = b"go"
WITHDRAWN: Final = b"withdrawn"

MARGIN_US: Final = 1_500_000  # how long before TimeoutStopSec PID 1 leaves, whatever it waits for
REAP_US: Final = 20_000  # between two SIGKILLs of what forks faster than it dies
RETRY_US: Final = 1_000_000  # between two tries to write on a full disk
NEVER: Final = 2**62
LONGEST_WAIT_MS: Final = 3_600_000  # poll(2) takes an int: 24 days at most, and jobs run longer
PLAN_BYTES: Final = 16 << 20  # init mode has checked the plan's size already


class Phase(enum.IntEnum):
    WAITING = 1
    LAUNCHING = 2
    RUNNING = 3
    ENDING = 4
    ENDED = 5


def main(directory: str, fds: list[int]) -> NoReturn:
    """What the zygote's child runs. fds: plan, directory, gate, then read and write end of each
    stream."""
    status = 1
    try:
        plan_fd, directory_fd, gate_fd, *pipes = fds
        plan = Plan.from_checked(os.pread(plan_fd, PLAN_BYTES, 0))
        os.close(plan_fd)
        os.fchdir(directory_fd)
        gate = socket.socket(fileno=gate_fd)
        readers, writers = pipes[::2], pipes[1::2]
        Pid1(
            plan, directory, directory_fd, gate, readers, writers, wall=_wall_us, clock=_clock_us
        ).run()
        status = 0
    except BaseException:
        python.excepthook(*python.exc_info())
    finally:
        os._exit(status)


def _wall_us() -> int:
    return time.time_ns() // 1000


def _clock_us() -> int:
    return time.monotonic_ns() // 1000


class Pid1:
    def __init__(
        self,
        plan: Plan,
        directory: str,
        directory_fd: int,
        gate: socket.socket,
        readers: list[int],
        writers: list[int],
        *,
        wall: Callable[[], int],
        clock: Callable[[], int],
    ) -> None:
        self.plan = plan
        self.directory = directory
        self.directory_fd = directory_fd
        self.gate = gate
        self.streams: Mapping[str, int] = dict(zip(plan.streams, readers, strict=True))
        self.writers = writers  # to be closed after the fork; the journal's streams at the end
        self.wall = wall
        self.clock = clock
        self.phase = Phase.WAITING
        self.cause = ""
        self.failure: Failed | None = None
        self.command: Command | None = None
        self.status: int | None = None  # the command's wait status
        self.started_us = 0
        self.started_at = 0  # the same moment on the monotonic clock
        self.kill_at = NEVER
        self.timeout_us = plan.timeout_us
        self.timeout_at = NEVER
        self.leave_at = NEVER
        self.record: ExitRecord | None = None
        self.written = False
        self.acknowledged = False
        self.proc_sys = -1
        self.cgroup_root = -1
        self.journal = -1  # journald's socket, for a job whose output goes there
        self.cgroup: Cgroup | None = None

    # -- the way ---------------------------------------------------------------------------------

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.signals = sys.signalfd({signal.SIGCHLD, signal.SIGTERM})
        os.umask(0)
        title = f"joblet: {self.plan.job[:8]} {os.path.basename(self.plan.argv[0])}"
        sys.set_cmdline(title.encode(errors="replace"))
        sys.set_name(b"joblet-pid1")
        self.ctl = Ctl()
        self._say_ready()
        try:
            self._build_root()
        except Failed as failed:
            self.failure = failed
        if not self._wait_for_go():
            return
        try:
            if self.failure:
                raise self.failure
            if not self.cause:
                self._enter_cgroup()
                self._open_journal()
                self._launch()
        except Failed as failed:
            self.failure = failed
        if self.command is None:
            self._ended()
        self._serve()

    def _say_ready(self) -> None:
        with contextlib.suppress(OSError):  # init mode is gone: the gate's end says so as well
            self.gate.send(READY)

    def _build_root(self) -> None:
        step = "namespaces"
        try:
            sys.unshare(sys.CLONE_NEWNS | sys.CLONE_NEWUTS | sys.CLONE_NEWIPC)
            sys.mount("none", "/", None, sys.MS_REC | sys.MS_PRIVATE)
            step = "cgroup2"
            self.cgroup_root = os.open("/sys/fs/cgroup", os.O_PATH | os.O_CLOEXEC)
            if self.plan.journal:
                step = "journal"
                self.journal = journal.locate()
            step = "resolv.conf"
            resolv_conf = _read("/etc/resolv.conf")
            # the new root is mounted over the job's directory itself: "work" is found through the
            # current directory, which stays the one beneath
            strict = self.plan.profile == STRICT
            made = ops.root(self.directory, "work", resolv_conf=resolv_conf, read_only=strict)
            for operation in made:
                step = operation.step
                operation.execute()
            os.fchdir(self.directory_fd)
            self.proc_sys = os.open("/proc/sys", os.O_PATH | os.O_CLOEXEC)
            for operation in ops.masks():
                step = operation.step
                operation.execute()
            step = "hostname"
            socket.sethostname(self.plan.hostname)
        except OSError as error:
            raise Failed(step, error.errno or 0) from error

    def _wait_for_go(self) -> bool:
        """True after go. Otherwise the launch is withdrawn, recorded, and PID 1 has nothing more
        to do."""
        poll = select.poll()
        poll.register(self.gate, select.POLLIN)
        poll.register(self.signals, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self.signals in ready:
                self._read_signals()
            if self.gate.fileno() in ready:
                word = self._last_word()
                self.gate.close()
                if word == GO:
                    return True
                why = "withdrawn" if word == WITHDRAWN else "init mode gone"
                if not self.cause:
                    self.failure = Failed("go", 0, why)
                remains.write_exit(self._make_record())
                return False

    def _last_word(self) -> bytes:
        # init mode that has closed with our "ready" unread: the kernel says so first (ECONNRESET),
        # and gives what init mode had said only then
        for _ in range(2):
            with contextlib.suppress(OSError):
                return self.gate.recv(64)
        return b""

    def _enter_cgroup(self) -> None:
        path = own_path()
        if not path.endswith(f"/{self.plan.unit}"):
            # a scope can be dead on arrival (systemd 252); the supervisor tries once more
            why = f"its PID 1 is in {path or 'no cgroup'}"
            raise Failed("scope", 0, sentence("scope", 0, why=why))
        self.cgroup = Cgroup(self.cgroup_root, path)
        os.close(self.cgroup_root)
        step = "cgroup namespace"
        try:
            _oom_score_adj(b"-1000")
            sys.unshare(sys.CLONE_NEWCGROUP)
            flags = sys.MS_RDONLY | sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC
            step = "mount cgroup2"
            sys.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags)
        except OSError as error:
            raise Failed(step, error.errno or 0) from error

    def _open_journal(self) -> None:
        """From inside the scope, or the lines would be another unit's."""
        if not self.plan.journal:
            return
        plan = self.plan
        try:
            self.writers = journal.open_streams(self.journal, plan.job, plan.unit, merge=plan.merge)
        except OSError as error:
            raise Failed("journal", error.errno or 0) from error
        os.close(self.journal)

    def _launch(self) -> None:
        try:
            self.command = Command(self.plan, tuple(self.writers), self.proc_sys)
        except OSError as error:
            raise Failed("fork", error.errno or 0) from error
        self.phase = Phase.LAUNCHING

    # -- events ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Everything after go; returns when PID 1 may leave."""
        if not self.plan.journal:
            self._close_writers()
        while not self._may_leave():
            self._wait_for_holder()
            poll = select.poll()
            poll.register(self.signals, select.POLLIN)
            poll.register(self.ctl.fd, select.POLLIN)
            if self.phase is Phase.LAUNCHING and self.command:
                poll.register(self.command.sync, select.POLLIN)
                poll.register(self.command.failure, select.POLLIN)
            if self.phase <= Phase.RUNNING and self.cgroup and self.cgroup.events_fd >= 0:
                poll.register(self.cgroup.events_fd, select.POLLPRI)
            ready = {fd for fd, _ in poll.poll(self._patience_ms())}
            if self.phase is Phase.LAUNCHING and self.command:
                if self.command.sync.fileno() in ready:
                    self.command.map_ids()
                if self.command.failure in ready:
                    self._executed()
            if self.phase is Phase.RUNNING and self.cgroup and self.cgroup.events_fd in ready:
                self._look_for_oom()
            if self.signals in ready:
                self._read_signals()
            if self.ctl.fd in ready:
                self._read_ctl()
            self._act_on_time()

    def _patience_ms(self) -> int | None:
        now = self.clock()
        at = min(self.kill_at, self.timeout_at)
        if self.phase is Phase.ENDING:
            at = min(at, now + REAP_US)
        elif self.phase is Phase.ENDED:
            at = min(at, self.leave_at)
            if not self.written or not self.ctl.held:
                at = min(at, now + RETRY_US)  # there was no room for the record or the rests
        return None if at == NEVER else min(max(0, -((now - at) // 1000)), LONGEST_WAIT_MS)

    def _executed(self) -> None:
        assert self.command  # noqa: S101
        outcome = self.command.outcome()
        self.command.close()
        self.phase = Phase.RUNNING
        if outcome:
            self.failure = outcome
            return  # the child exits by itself; its end is reaped like any other
        # executed, or killed before that: an ended command either way, no error of ours
        self.started_us = self.wall()
        self.started_at = self.clock()
        self._time_out_after(self.timeout_us)
        _drop_privileges()
        self._tell_state()

    def _read_signals(self) -> None:
        try:
            data = os.read(self.signals, sys.SIGINFO_SIZE * 64)
        except BlockingIOError:
            return
        numbers = {
            int.from_bytes(data[at : at + 4], python.byteorder)
            for at in range(0, len(data), sys.SIGINFO_SIZE)
        }
        if signal.SIGTERM in numbers:
            self._terminated()
        if signal.SIGCHLD in numbers:
            self._reap()

    def _terminated(self) -> None:
        """SIGTERM from outside: systemd has signalled every process of the scope, and gives it
        stop_us."""
        now = self.clock()
        self.leave_at = min(self.leave_at, now + max(0, self.plan.stop_us - MARGIN_US))
        if self.phase is Phase.LAUNCHING and self.command:
            self.cause = self.cause or "signal"
            os.kill(self.command.pid, signal.SIGKILL)
        elif self.phase <= Phase.RUNNING:
            self.cause = self.cause or "signal"
            self.kill_at = min(self.kill_at, now + self.plan.grace_us)

    def _read_ctl(self) -> None:
        message = self.ctl.receive()
        if message is None:
            return
        kind, fields = message
        try:
            if kind == protocol.STOP:
                self._stop("ctl", protocol.number(fields, "grace_us"))
            elif kind == protocol.TIME_OUT:
                self._time_out_after(protocol.number(fields, "after_us"))
            elif kind == protocol.ACKNOWLEDGE and self.phase is Phase.ENDED:
                self.acknowledged = True
        except protocol.ProtocolError:
            self.ctl.hang_up()

    def _time_out_after(self, after_us: int) -> None:
        """Counted from the command's start, so before it nothing but the number is known."""
        self.timeout_us = after_us
        if self.phase is Phase.RUNNING:
            self.timeout_at = self.started_at + after_us if after_us else NEVER

    def _stop(self, cause: str, grace_us: int) -> None:
        """TERM to every process of the job now, KILL after the grace."""
        if self.phase is Phase.LAUNCHING and self.command:
            self.cause = self.cause or cause
            os.kill(self.command.pid, signal.SIGKILL)
        elif self.phase is Phase.RUNNING:
            self.cause = self.cause or cause
            self.kill_at = min(self.kill_at, self.clock() + grace_us)
            _kill_all(signal.SIGTERM)
            _kill_all(signal.SIGCONT)  # a stopped process must wake up to be terminated

    def _look_for_oom(self) -> None:
        assert self.cgroup  # noqa: S101
        killed, _ = self.cgroup.oom()
        if killed:
            # no half-dead jobs: the kernel chose one process, the rest follows
            self.cause = self.cause or "oom"
            _kill_all(signal.SIGKILL)

    def _act_on_time(self) -> None:
        now = self.clock()
        if now >= self.timeout_at and self.phase is Phase.RUNNING:
            self.timeout_at = NEVER
            self._stop("timeout", self.plan.grace_us)
        if now >= self.kill_at:
            self.kill_at = NEVER
            if self.phase <= Phase.RUNNING:
                _kill_all(signal.SIGKILL)
        if self.phase is Phase.ENDING:
            _kill_all(signal.SIGKILL)
            self._reap()
        if self.phase is Phase.ENDED and not self.written:
            self._write()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self.phase is Phase.ENDING:
                    self._ended()
                return
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                # its PTRACE_TRACEME has made us its tracer: it has not ended, and must not wait
                stopped_by = os.WSTOPSIG(status)
                with contextlib.suppress(OSError):
                    sys.ptrace_detach(pid, 0 if stopped_by == signal.SIGTRAP else stopped_by)
                continue
            if self.command and pid == self.command.pid:
                self.status = status
                if self.phase is Phase.LAUNCHING:
                    self._executed()  # its report, if it left one, lies in the pipe
                self.phase = Phase.ENDING
                self.kill_at = self.timeout_at = NEVER
                # the end of an OOM kill can be seen before its event
                if os.WIFSIGNALED(status) and self.cgroup and self.cgroup.oom()[0]:
                    self.cause = self.cause or "oom"
                _kill_all(signal.SIGKILL)

    # -- the end ---------------------------------------------------------------------------------

    def _ended(self) -> None:
        self.phase = Phase.ENDED
        # a command that fails says so itself
        if self.failure and self.command is None and self.writers and not self.cause:
            self.failure.log(self.writers[-1])
        if self.plan.journal:  # before anybody hears of the end
            for fd in self.writers:
                journal.end(fd)
        self._close_writers()
        self.record = self._make_record()
        self._write()
        if self.failure:
            self._tell_state()
        self._tell_end()

    def _make_record(self) -> ExitRecord:
        code = sig = 0
        if self.status is not None and self.started_us:
            if os.WIFSIGNALED(self.status):
                sig = os.WTERMSIG(self.status)
            else:
                code = os.waitstatus_to_exitcode(self.status)
        cause, failure = self.cause, self.failure
        if failure and not cause:
            cause = "launch"
        return ExitRecord(
            job=self.plan.job,
            ended_by=cause,
            code=code,
            signal=sig,
            step=failure.step if failure and cause == "launch" else "",
            errno=failure.errno if failure and cause == "launch" else 0,
            detail=failure.detail if failure and cause == "launch" else "",
            started_us=self.started_us,
            ended_us=self.wall(),
            oom_own=bool(self.cgroup and self.cgroup.oom()[1]),
            usage=self.cgroup.usage() if self.cgroup else {},
        )

    def _write(self) -> None:
        assert self.record  # noqa: S101
        try:
            remains.write_exit(self.record)
        except OSError:
            return  # a full disk: a holder takes the record from us, or there is room later
        self.written = True

    def _wait_for_holder(self) -> None:
        """Take the next holder, and say what has happened before it came."""
        if self.ctl.held:
            return
        hello = protocol.encode(
            protocol.HELLO, version=protocol.VERSION, streams=list(self.streams)
        )
        if self.ctl.accept(hello, list(self.streams.values())):
            self._tell_state()
            self._tell_end()

    def _tell_state(self) -> None:
        if self.started_us and self.command:
            ran = self.clock() - self.started_at
            pid, at = self.command.pid, self.started_us
            self.ctl.send(protocol.STARTED, pid=pid, at_us=at, ran_us=ran)
        elif self.failure and self.phase is Phase.ENDED:
            step, errno, detail = self.failure.step, self.failure.errno, self.failure.detail
            self.ctl.send(protocol.LAUNCH_FAILED, step=step, errno=errno, detail=detail)

    def _tell_end(self) -> None:
        if self.record and self.phase is Phase.ENDED:
            self.ctl.send(protocol.EXIT, record=self.record.to_json())

    def _may_leave(self) -> bool:
        if self.phase is not Phase.ENDED:
            return False
        if self.acknowledged:
            return True
        if self.clock() >= self.leave_at:
            return (
                True  # systemd is about to kill the scope; a server that holds the pipes reads on
            )
        self._wait_for_holder()
        if self.ctl.held or not self.written:
            return False
        return self._put_aside()

    def _put_aside(self) -> bool:
        """Without a holder: what is in the pipes goes into the directory. False while there is no
        room."""
        assert self.record  # noqa: S101
        try:
            reserved = remains.reserve(self.streams)
        except OSError:
            return False
        expected = {name: count for name, (_, _, count) in reserved.items()}
        try:
            # before a byte moves: once it has, no holder can be served, and without the counts the
            # job would be told to have lost what it has not
            remains.prepare_exit(_with_rest(self.record, expected))
        except OSError:
            remains.release(reserved)
            return False
        try:
            counts = remains.drain(reserved)
            if counts != expected:
                remains.prepare_exit(_with_rest(self.record, counts))
            remains.publish_exit()
        except OSError:
            pass  # a record without counts: what lies in the rests is imported as far as it goes
        remains.leave(reserved)
        return True

    def _close_writers(self) -> None:
        """Or the pipes would never end."""
        for fd in set(self.writers):
            os.close(fd)
        self.writers = []


def _with_rest(record: ExitRecord, counts: dict[str, int]) -> ExitRecord:
    values: dict[str, Any] = {name: getattr(record, name) for name in record.__slots__}
    return ExitRecord(**{**values, "rest": counts})


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def _oom_score_adj(value: bytes) -> None:
    """PID 1 is the last that the OOM killer should choose; a host without CAP_SYS_RESOURCE refuses
    it."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    except PermissionError:
        pass
    finally:
        os.close(fd)


def _drop_privileges() -> None:
    """From here on PID 1 signals the job's processes and writes root's own files: CAP_KILL is all
    it needs."""
    sys.capset(1 << sys.CAP_KILL)


def _kill_all(number: int) -> None:
    """Every process of the PID namespace but PID 1 itself (kill(2))."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, number)
