# SPDX-License-Identifier: MIT
"""Jobs as real processes, without systemd: a zygote, its PID 1s, and the part of init mode by hand.

    with Host(tmp_path) as host:
        job = host.launch(["sh", "-c", "echo hi"])    # in a scope, `ctl` connected, told to go
        assert job.holder.hello() == ["out", "err"]
        job.holder.expect("started")

Needs root, as the machine tests do. Every wait has a deadline.
"""

import array
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from joblet import link
from joblet.init.directories import Directories
from joblet.launch import pid1, protocol
from joblet.launch.plan import Plan
from joblet.launch.protocol import ExitRecord
from joblet.launch.zygote import Zygote

WAIT_S = 20.0
UID_BASE = 0x70000000
ZYGOTE = Path(__file__).with_name("zygote_main.py")
ENV = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


def eventually(probe: Callable[[], Any], what: str = "") -> Any:
    until = time.monotonic() + WAIT_S
    while not (value := probe()):
        assert time.monotonic() < until, f"waited for {what or probe}"
        time.sleep(0.005)
    return value


def readable(fd: int, seconds: float = WAIT_S) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process lead to."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(path.readlink()))
    return found


class Holder:
    """A connection to a job's `ctl`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(WAIT_S)
        self.streams: dict[str, int] = {}

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """The next message; None when PID 1 has hung up. Descriptors are taken by `hello`."""
        message, fds = self._receive()
        link.close_all(fds)
        return message

    def _receive(self) -> tuple[tuple[str, dict[str, Any]] | None, list[int]]:
        fds = array.array("i")
        data, ancillary, flags, _ = self.socket.recvmsg(
            protocol.MAX_MESSAGE, 256, socket.MSG_CMSG_CLOEXEC
        )
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        for _, _, content in ancillary:
            fds.frombytes(content)
        return (protocol.decode(data) if data else None), list(fds)

    def hello(self) -> list[str] | None:
        """The streams of the hello; their read ends are in `streams`."""
        message, fds = self._receive()
        if message is None:
            return None
        kind, fields = message
        assert kind == protocol.HELLO
        assert fields["version"] == protocol.VERSION
        self.streams = dict(zip(fields["streams"], fds, strict=True))
        return list(self.streams)

    def expect(self, kind: str) -> dict[str, Any]:
        message = self.receive()
        assert message is not None
        assert message[0] == kind, message
        return message[1]

    def end(self) -> ExitRecord:
        """The exit record, whatever comes before it."""
        while (message := self.receive()) is not None:
            if message[0] == protocol.EXIT:
                return ExitRecord.from_json(message[1]["record"])
        raise AssertionError("hung up without an exit record")

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(protocol.encode(kind, **fields))

    def silent(self, seconds: float = 0.1) -> bool:
        return not readable(self.socket.fileno(), seconds)

    def output(self, stream: str = "out") -> bytes:
        """All of a stream, to its end."""
        parts: list[bytes] = []
        fd = self.streams[stream]
        while True:
            assert readable(fd), f"{stream} has no end"
            data = os.read(fd, 1 << 20)
            if not data:
                return b"".join(parts)
            parts.append(data)

    def close(self) -> None:
        link.close_all(list(self.streams.values()))
        self.streams = {}
        self.socket.close()


class Job:
    """One launch. `pid` and `pidfd` are its PID 1's."""

    def __init__(self, host: "Host", plan: Plan, before: Callable[["Job"], None] | None) -> None:
        self.host = host
        self.plan = plan
        self.holder: Holder | None = None
        directory, ends = host.directories.create(plan.job, plan.uid_base, plan.streams)
        if before:
            before(self)
        self.gate, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate.settimeout(WAIT_S)
        memfd = os.memfd_create("plan")
        os.write(memfd, plan.to_checked(plan.filters))
        fds = [memfd, directory, theirs.fileno(), *ends]
        try:
            host.zygote.request(host.directories.path(plan.job), fds)
            assert readable(host.zygote.socket.fileno())
            self.pid, self.pidfd = host.zygote.answer()
        finally:
            theirs.close()
            link.close_all([memfd, directory, *ends])

    @property
    def path(self) -> Path:
        """Its directory, as the zygote sees it."""
        return self.host.seen(f"{self.host.jobs}/{self.plan.job}")

    def enter_scope(self) -> None:
        scope = self.host.cgroup / self.plan.unit
        scope.mkdir(parents=True)
        (scope / "cgroup.procs").write_text(str(self.pid))

    def processes(self) -> list[int]:
        """All that is in the scope, PID 1 too."""
        with contextlib.suppress(FileNotFoundError):
            procs = (self.host.cgroup / self.plan.unit / "cgroup.procs").read_text()
            return [int(pid) for pid in procs.split()]
        return []

    def wait_ready(self) -> None:
        assert self.gate.recv(64) == pid1.READY

    def connect(self) -> Holder:
        state, sock = self.host.directories.connect(self.plan.job)
        assert sock is not None, state
        return Holder(sock)

    def go(self) -> Holder:
        """After `wait_ready`, as init mode does it."""
        self.holder = self.connect()
        self.gate.send(pid1.GO)
        return self.holder

    def record(self) -> ExitRecord:
        """The exit record in the directory."""
        return ExitRecord.from_bytes((self.path / "exit").read_bytes())

    def files(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    @property
    def gone(self) -> bool:
        return readable(self.pidfd, 0)

    def wait_gone(self) -> None:
        assert readable(self.pidfd), f"PID 1 {self.pid} is still there"

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def acknowledge(self) -> None:
        """The end of a holder's duties; PID 1 goes."""
        assert self.holder
        self.holder.say(protocol.ACKNOWLEDGE)
        assert self.holder.receive() is None
        self.wait_gone()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.wait_gone()
        os.close(self.pidfd)
        self.gate.close()
        if self.holder:
            self.holder.close()
        eventually(lambda: not self.processes(), "an empty scope")
        with contextlib.suppress(FileNotFoundError):
            (self.host.cgroup / self.plan.unit).rmdir()
        self.host.directories.remove(self.plan.job)


class Elsewhere(Directories):
    """Directories of another mount namespace, where they have a path of their own."""

    def __init__(self, base: Path, path: str) -> None:
        super().__init__(base)
        self._path = path

    def path(self, job: str) -> str:
        return f"{self._path}/{job}"


class Host:
    """A zygote with a place for jobs. Leaving the block ends every job."""

    def __init__(
        self,
        base: Path,
        *,
        size: str = "64m",
        cgroup: bool = True,
        python: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        extra_fds: Sequence[int] = (),
    ) -> None:
        self.jobs = str(base / "jobs")
        Path(self.jobs).mkdir()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, *python, str(ZYGOTE), str(theirs.fileno()), self.jobs, size]
        self.process = subprocess.Popen(
            [*argv, str(int(cgroup))], pass_fds=[theirs.fileno(), *extra_fds], env=env
        )
        theirs.close()
        ours.settimeout(WAIT_S)
        assert ours.recv(64) == b"mounted"
        ours.settimeout(0)
        # the other end of a zygote that this process has not forked itself
        self.zygote = Zygote.__new__(Zygote)
        self.zygote.socket, self.zygote.pid = ours, self.process.pid
        self.directories = Elsewhere(self.seen(self.jobs), self.jobs)
        self.cgroup = self.seen(f"/sys/fs/cgroup/joblet-test-{self.process.pid}")
        if cgroup:
            self.cgroup.mkdir()
        self._jobs: list[Job] = []

    def seen(self, path: str) -> Path:
        """A path in the zygote's mount namespace, as this process reaches it."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def fork(
        self, argv: Sequence[str], *, before: Callable[[Job], None] | None = None, **fields: Any
    ) -> Job:
        """A PID 1 that builds its root and waits for its go, in no scope.

        before: what to do with the job's directory before that.
        """
        base = {"path": f"/usr/bin/{argv[0]}", "env": ENV, "uid_base": UID_BASE, **fields}
        plan = Plan(job=str(uuid.uuid4()), argv=tuple(argv), **base)
        job = Job(self, plan, before)
        self._jobs.append(job)
        return job

    def launch(self, argv: Sequence[str], **fields: Any) -> Job:
        """A job that has got its go; its `holder` is the first and has read nothing yet."""
        job = self.fork(argv, **fields)
        job.enter_scope()
        job.wait_ready()
        job.go()
        return job

    def run(self, argv: Sequence[str], **fields: Any) -> tuple[ExitRecord, bytes]:
        """A job until its end is acknowledged, and what it printed to stdout. Ends all jobs."""
        job = self.launch(argv, **fields)
        assert job.holder
        job.holder.hello()
        record = job.holder.end()
        output = job.holder.output()
        job.acknowledge()
        assert job.record() == record
        self.end_jobs()
        return record, output

    def end_jobs(self) -> None:
        """Whatever of them is left."""
        while self._jobs:
            self._jobs.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_jobs()
        self.directories.close()
        if self.cgroup.exists():
            self.cgroup.rmdir()
        self.zygote.close()  # its end of file
        assert self.process.wait(WAIT_S) == 0


def python(script: str) -> list[str]:
    """The words of a command that runs a script of Python."""
    return ["python3", "-c", script]
