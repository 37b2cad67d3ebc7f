# SPDX-License-Identifier: MIT
"""Init mode and the PID 1s of its jobs, scripted, in this process.

What the server sees of them is real: connected SEQPACKET sockets that speak launch.protocol, FIFO
read ends in the hello, files with exit records and rests. What a test wants to happen it calls.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from joblet import link
from joblet.errors import AlreadyExists, FailedPrecondition, JobletError, NotFound, Unavailable
from joblet.launch import protocol
from joblet.launch.plan import Plan
from joblet.launch.protocol import ExitRecord
from joblet.server.admission import Permits

AWAY = Unavailable("ask init mode", "it is away")


class Pid1:
    """The PID 1 of one job, and its directory."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        directory.mkdir()
        self.pipes: dict[str, tuple[int, int]] = {name: os.pipe() for name in plan.streams}
        self.alive = True
        self.bound = True  # `ctl` is there
        self.went = False
        self.started_us = 0
        self.told: Mapping[str, int] = {}  # what else it says of its start
        self.record: ExitRecord | None = None
        self.written = True  # False: there was no room for `exit`
        self.stops: list[int] = []
        self.time_outs: list[int] = []
        self.acknowledged = False
        self.said_hello = 0
        # what it does when it is told to stop; None: nothing at all
        self.obey: Callable[[Pid1], None] | None = Pid1.stopped
        # instead of a hello
        self.hello: bytes | None = None
        # instead of what it has to say behind its hello
        self.garbage: bytes | None = None
        self._holder: socket.socket | None = None
        self._backlog: list[socket.socket] = []

    # -- what init mode does ---------------------------------------------------------------------

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        theirs.setblocking(False)
        self._backlog.append(theirs)
        self._serve()
        return ours

    def go(self) -> None:
        self.went = True
        self._serve()

    def withdraw(self) -> None:
        """The gate closes without a go."""
        if self.alive and not self.went:
            self._leave(
                ExitRecord(self.plan.job, ended_by="launch", step="go", detail="withdrawn"),
            )

    # -- what the job does -----------------------------------------------------------------------

    def start(self, at_us: int = 1_000, **told: int) -> None:
        self.started_us = at_us
        self.told = told
        self._tell_state()

    def say(self, data: bytes, stream: str = "out") -> None:
        assert os.write(self.pipes[stream][1], data) == len(data)

    def hang_up_streams(self) -> None:
        """The command closes its stdout and stderr."""
        for name, (reader, writer) in list(self.pipes.items()):
            if writer >= 0:
                os.close(writer)
                self.pipes[name] = (reader, -1)

    def end(self, **record: Any) -> None:
        """The job has ended; told, and kept until it is acknowledged."""
        self.hang_up_streams()
        fields = {"started_us": self.started_us, "ended_us": 9_000, **record}
        self.record = ExitRecord(self.plan.job, **fields)
        self._write()
        if self.record.ended_by == "launch":
            self._send(
                protocol.LAUNCH_FAILED, step=self.record.step, errno=self.record.errno, detail=""
            )
        self._send(protocol.EXIT, record=self.record.to_json())
        self._serve()

    def stopped(self) -> None:
        """As it should be: TERM, the command dies of it."""
        if self.record is None:
            self.end(ended_by="ctl", signal=15 if self.started_us else 0)

    def terminated(self) -> None:
        """SIGTERM from outside; when nobody holds it then, or nobody acknowledges, it leaves."""
        if self.alive and self.record is None:
            self.end(ended_by="signal", signal=15)
        if self.alive:
            self._leave(self.record)

    def kill(self) -> None:
        """SIGKILL: nothing is written, and nothing said."""
        self._leave(None)

    def hang_up(self) -> None:
        """Drop the holder, and live on."""
        if self._holder is not None:
            self._drop()
            self._serve()

    def send_raw(self, data: bytes) -> None:
        assert self._holder
        self._holder.send(data)

    @property
    def held(self) -> bool:
        return self._holder is not None

    # -- its own affairs -------------------------------------------------------------------------

    def _serve(self) -> None:
        while self.went and self.alive and self._holder is None:
            if not self._backlog:
                self._without_holder()
                return
            self._holder = holder = self._backlog.pop(0)
            fds = [reader for reader, _ in self.pipes.values()]
            hello = self.hello or protocol.encode(
                protocol.HELLO, version=protocol.VERSION, streams=list(self.pipes)
            )
            try:
                if hello == b"hang-up":
                    raise OSError
                socket.send_fds(holder, [hello], fds)
                self.said_hello += 1
            except OSError:
                holder.close()
                self._holder = None
                continue
            asyncio.get_running_loop().add_reader(holder.fileno(), self._read)
            self._tell_state()
            if self.record is not None:
                self._send(protocol.EXIT, record=self.record.to_json())

    def _without_holder(self) -> None:
        if self.record is None or not self.written:
            return
        counts = {}
        for name, (reader, _) in self.pipes.items():
            (count,) = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))
            rest = os.read(reader, count) if count else b""
            (self.directory / f"{name}.rest").write_bytes(rest)
            counts[name] = len(rest)
        fields = self.record.to_json()
        self._leave(ExitRecord.from_json({**fields, "rest": counts}))

    def _tell_state(self) -> None:
        if self.started_us:
            self._send(protocol.STARTED, pid=2, at_us=self.started_us, **self.told)

    def _send(self, kind: str, **fields: Any) -> None:
        if self._holder is not None:
            with contextlib.suppress(OSError):
                self._holder.send(self.garbage or protocol.encode(kind, **fields))

    def _write(self) -> None:
        if self.record is not None and self.written:
            (self.directory / "exit").write_bytes(self.record.to_bytes())

    def _read(self) -> None:
        assert self._holder
        try:
            data = self._holder.recv(protocol.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            self._serve()
            return
        kind, fields = protocol.decode(data)
        if kind == protocol.STOP:
            self.stops.append(fields["grace_us"])
            if self.obey is not None:
                self.obey(self)
        elif kind == protocol.TIME_OUT:
            self.time_outs.append(fields["after_us"])
        elif kind == protocol.ACKNOWLEDGE and self.record is not None:
            self.acknowledged = True
            self._leave(self.record)

    def _drop(self) -> None:
        if self._holder is not None:
            asyncio.get_running_loop().remove_reader(self._holder.fileno())
            self._holder.close()
            self._holder = None

    def _leave(self, record: ExitRecord | None) -> None:
        if not self.alive:
            return
        self.alive = False
        if record is not None:
            self.record = record
            self._write()
        self._drop()
        for waiting in self._backlog:
            waiting.close()
        self._backlog.clear()
        self.hang_up_streams()
        for reader, _ in self.pipes.values():
            os.close(reader)
        self.pipes.clear()


class Init:
    """What the server's Launcher offers. A test may make it slow, broken or absent."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.jobs: dict[str, Pid1] = {}
        self.all: list[Pid1] = []  # also those whose directory is gone
        self.calls: list[tuple[str, str]] = []
        self._away = False
        # by verb: raised once each, before anything is done; behind the deed ("go-lost": said,
        # and the answer does not arrive)
        self.errors: dict[str, list[JobletError]] = {}
        # by verb: the call waits here; `reached` says that it does
        self.gates: dict[str, asyncio.Event] = {}
        self._reached: dict[str, asyncio.Event] = {}
        self.withdrawn: set[str] = set()
        self._launching: dict[str, asyncio.Event] = {}  # set when the launch is over
        self.copied: list[tuple[str, int, bytes]] = []
        self.readers: list[tuple[socket.socket, dict[str, Any]]] = []
        self.forgotten: list[str] = []  # jobs whose unit may have failed
        self.started: Callable[[Pid1], None] | None = None  # called at each go
        self.permits = Permits()
        self.changes: list[dict[str, Any]] = []
        # what systemd does with a change of a unit's properties
        self.on_change: Callable[[Mapping[str, Any]], None] = lambda properties: None

    @property
    def away(self) -> bool:
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        self._away = away
        if away:  # launches before their go end with the link
            for pid1 in self.jobs.values():
                pid1.withdraw()

    @property
    def linked(self) -> bool:
        return not self._away

    def block(self, verb: str) -> None:
        self.gates[verb] = asyncio.Event()
        self._reached[verb] = asyncio.Event()

    async def reached(self, verb: str) -> None:
        await self._reached[verb].wait()

    def unblock(self, verb: str) -> None:
        self.gates.pop(verb).set()

    async def _enter(self, verb: str, job: str) -> None:
        self.calls.append((verb, job))
        if verb in self.gates:
            gate = self.gates[verb]
            self._reached[verb].set()
            await gate.wait()
        else:
            await asyncio.sleep(0)
        if self.away:
            raise AWAY
        if self.errors.get(verb):
            raise self.errors[verb].pop(0)

    def count(self, verb: str) -> int:
        return sum(1 for called, _ in self.calls if called == verb)

    # -- the launcher's verbs --------------------------------------------------------------------

    async def launch(self, plan: Plan) -> tuple[int, str]:
        over = self._launching[plan.job] = asyncio.Event()
        try:
            made = await self._launch(plan)
            if self.errors.get("launch-lost"):
                raise self.errors["launch-lost"].pop(0)
            return made
        finally:
            over.set()

    async def _launch(self, plan: Plan) -> tuple[int, str]:
        try:
            await self._enter("launch", plan.job)
        except asyncio.CancelledError:
            self.withdrawn.add(plan.job)
            raise
        if plan.job in self.withdrawn:
            raise Unavailable(f"launch job {plan.job}", "it was withdrawn")
        if plan.job in self.jobs:
            raise AlreadyExists(f"launch job {plan.job}", "it has been launched")
        pid1 = self.jobs[plan.job] = Pid1(plan, self.base / plan.job)
        self.all.append(pid1)
        return 4711, f"/joblet.slice/{plan.unit}"

    async def go(self, job: str) -> socket.socket:
        await self._enter("go", job)
        await self._launching[job].wait()
        pid1 = self.jobs.get(job)
        if pid1 is None or not pid1.alive or pid1.went:
            raise NotFound(f"let job {job} go", "no such launch is waiting")
        connection = pid1.connect()
        pid1.go()
        if self.started is not None:
            self.started(pid1)
        if self.errors.get("go-lost"):
            connection.close()
            raise self.errors["go-lost"].pop(0)
        return connection

    async def cancel(self, job: str) -> None:
        await self._enter("cancel", job)
        pid1 = self.jobs.get(job)
        if pid1 is None:
            self.withdrawn.add(job)
        elif pid1.went or not pid1.alive:
            raise NotFound(f"withdraw job {job}", "no such launch is waiting")
        else:
            pid1.withdraw()

    async def connect(self, job: str) -> tuple[str, socket.socket | None]:
        await self._enter("connect", job)
        pid1 = self._directory(job)
        if not pid1.alive:
            return link.GONE, None
        if not pid1.bound:
            return link.NEVER, None
        return link.CONNECTED, pid1.connect()

    async def list_jobs(self) -> dict[str, tuple[str, int]]:
        await self._enter("list", "")
        found = {}
        for job, pid1 in self.jobs.items():
            state = link.LIVE if pid1.alive else link.GONE
            found[job] = (state if pid1.bound else link.NEVER, pid1.plan.uid_base)
        return found

    async def results(self, job: str) -> dict[str, int]:
        await self._enter("results", job)
        pid1 = self._directory(job)
        if pid1.alive:
            raise FailedPrecondition(f"read the results of job {job}", "its PID 1 is still there")
        names = ("exit", "out.rest", "err.rest")
        return {
            name: os.open(pid1.directory / name, os.O_RDONLY | os.O_CLOEXEC)
            for name in names
            if (pid1.directory / name).exists()
        }

    async def stop(self, job: str) -> None:
        await self._enter("stop", job)
        if job in self.jobs:
            self.jobs[job].terminated()

    async def change(self, job: str, properties: Mapping[str, Any]) -> None:
        await self._enter("change", job)
        self.changes.append(dict(properties))
        self.on_change(properties)

    async def clean_up(self, job: str, *, failed: bool = True) -> None:
        await self._enter("clean-up", job)
        if failed:
            self.forgotten.append(job)
        pid1 = self.jobs.get(job)
        if pid1 is None:
            return
        if pid1.alive:
            raise FailedPrecondition(f"clean up job {job}", "its PID 1 is still there")
        for entry in pid1.directory.iterdir():
            entry.unlink()
        pid1.directory.rmdir()
        del self.jobs[job]

    async def send(self, job: str, stream: int, lines: bytes, *, missing: int = 0) -> int:
        """In place of the channel for copies."""
        await self._enter("journal", job)
        self.copied.append((job, stream, lines))
        return 0

    async def sync_journal(self) -> None:
        await self._enter("sync", "")

    async def read_journal(self, job: str, **wanted: Any) -> socket.socket:
        """The other ends are in `readers`, with what was asked."""
        await self._enter("read", job)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.readers.append((ours, {"job": job, **wanted}))
        theirs.setblocking(False)
        return theirs

    def _directory(self, job: str) -> Pid1:
        if job not in self.jobs:
            raise NotFound(f"open the directory of job {job}", "there is none")
        return self.jobs[job]

    def leave(self) -> None:
        """The end of a test: whatever still lives goes away."""
        for pid1 in self.all:
            pid1.kill()
        for reader, _ in self.readers:
            reader.close()

    def holders(self) -> Mapping[str, bool]:
        return {job: pid1.held for job, pid1 in self.jobs.items()}
