# SPDX-License-Identifier: MIT
"""Init mode's part behind its socket, with a real zygote and real jobs; only systemd is played.

async with Init(host) as init, init.connect() as server:
    await server.launch(job := init.plan(["true"]))
    holder = await server.go(job)
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from joblet import link
from joblet.config import InitPolicy
from joblet.errors import JobletError
from joblet.init import journal_copy, journal_process, seccomp
from joblet.init import policy as permits
from joblet.init.journal_process import JournalProcess
from joblet.init.journal_sync import JournalSync
from joblet.init.launches import Launches
from joblet.init.requests import Connection
from joblet.init.scopes import Scopes
from joblet.launch.plan import Plan
from joblet.link import Link, Message
from joblet.systemd.journal import Journal
from tests.unit.launch.support import ENV, Holder, Host

WAIT_S = 20.0


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await work

    asyncio.run(bounded())


async def eventually(probe: Callable[[], Any]) -> Any:
    while not (value := probe()):  # noqa: ASYNC110 - of other processes there is no event
        await asyncio.sleep(0.005)
    return value


def sealed(data: bytes) -> int:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, permits.SEALS)
    return fd


class PlayedScopes(Scopes):
    """A scope is a cgroup, and systemd does what the test says."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.started: list[int] = []  # PID 1 of each
        self.asked: list[tuple[str, str]] = []
        self.gate = asyncio.Event()  # cleared: systemd takes its time
        self.gate.set()
        self.error: JobletError | None = None
        self.on_start: Callable[[int], None] = lambda pid: None

    def path(self, plan: Plan) -> Path:
        return self.host.cgroup / plan.unit

    async def start(self, plan: Plan, pid: int) -> None:
        self.started.append(pid)
        self.on_start(pid)
        await self.gate.wait()
        if self.error:
            raise self.error
        self.path(plan).mkdir()
        (self.path(plan) / "cgroup.procs").write_text(str(pid))

    async def stop(self, unit: str) -> None:
        self.asked.append(("stop", unit))

    async def kill(self, unit: str, signal: int) -> None:
        self.asked.append((f"kill {signal}", unit))

    async def change(self, unit: str, given: Mapping[str, Any]) -> None:
        self.asked.append((f"change {dict(given)}", unit))

    async def forget(self, unit: str) -> None:
        self.asked.append(("forget", unit))


class Peer:
    """The server's end, which may say anything."""

    def __init__(self, sock: socket.socket) -> None:
        self.link = Link(sock)
        self._number = 0
        self._answers: dict[int, tuple[Message, list[int]]] = {}

    async def hello(self) -> None:
        received = await self.link.recv()
        assert received is not None
        assert received[0]["hello"] == link.VERSION
        await self.link.send(link.hello())

    async def send(self, verb: str, fds: Sequence[int] = (), **fields: Any) -> int:
        """The request's id."""
        self._number += 1
        await self.link.send({"id": self._number, "verb": verb, **fields}, fds)
        return self._number

    async def answer(self, number: int) -> tuple[Message, list[int]]:
        """This request's, in whatever order they come. Raises what it tells."""
        while number not in self._answers:
            received = await self.link.recv()
            assert received is not None, "init mode has hung up"
            self._answers[received[0]["id"]] = received
        message, fds = self._answers.pop(number)
        if "error" in message:
            assert not fds
            raise link.error_from(message["error"])
        return message["ok"], fds

    async def ask(
        self, verb: str, fds: Sequence[int] = (), **fields: Any
    ) -> tuple[Message, list[int]]:
        return await self.answer(await self.send(verb, fds, **fields))

    async def send_launch(self, plan: Plan) -> int:
        fd = sealed(plan.to_bytes())
        try:
            return await self.send("launch", [fd], job=plan.job)
        finally:
            os.close(fd)

    async def launch(self, plan: Plan) -> Message:
        ok, fds = await self.answer(await self.send_launch(plan))
        assert not fds
        return ok

    async def go(self, plan: Plan) -> Holder:
        _, fds = await self.ask("go", job=plan.job)
        assert len(fds) == 1
        assert not os.get_inheritable(fds[0])
        return Holder(socket.socket(fileno=fds[0]))

    async def hung_up(self) -> bool:
        """Whether init mode says no more."""
        with contextlib.suppress(JobletError):
            return await self.link.recv() is None
        return False


class PlayedJournal(JournalProcess):
    """Copies in a thread of this process; what is to be read is noted."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[dict[str, object]] = []
        self.error: OSError | None = None
        self.threads: list[threading.Thread] = []

    def begin(self, what: str, fields: Mapping[str, object], end: socket.socket) -> None:
        if self.error:
            raise self.error
        if what != journal_process.COPY:
            self.asked.append(dict(fields))
            return
        thread = threading.Thread(target=self._copy, args=(end.dup(),))
        self.threads.append(thread)
        thread.start()

    def _copy(self, end: socket.socket) -> None:
        journal = Journal(self.path)
        with end, contextlib.closing(journal), contextlib.suppress(JobletError):
            journal_copy.serve(end, journal)

    def close(self) -> None:
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


class Init:
    def __init__(self, host: Host, journal: Path) -> None:
        self.host = host
        self.policy = InitPolicy()
        self.scopes = PlayedScopes(host)
        filters = seccomp.make(self.policy.profiles)
        self.launches = Launches(self.policy, host.directories, host.zygote, self.scopes, filters)
        self.journal = PlayedJournal(str(journal))
        self.sync = JournalSync(f"{journal}.varlink")
        self.plans: list[Plan] = []
        self.connections: set[asyncio.Task[None]] = set()

    def plan(self, argv: Sequence[str], **fields: Any) -> Plan:
        """A plan that may pass, with uids of its own."""
        taken = set(self.host.directories.uids.values()) | {plan.uid_base for plan in self.plans}
        base = next(base for base in self.policy.uid_bases() if base not in taken)
        made = {"path": f"/usr/bin/{argv[0]}", "env": ENV, "uid_base": base, **fields}
        plan = Plan(job=str(uuid.uuid4()), argv=tuple(argv), **made)
        self.plans.append(plan)
        return plan

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Peer]:
        """A connection, its hellos said. At the block's end it hangs up, and is waited for."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection = Connection(
            theirs,
            policy=self.policy,
            directories=self.host.directories,
            launches=self.launches,
            scopes=self.scopes,
            journal=self.journal,
            sync=self.sync,
        )
        task = asyncio.create_task(connection.serve())
        self.connections.add(task)
        peer = Peer(ours)
        try:
            await peer.hello()
            yield peer
        finally:
            peer.link.close()
            await task
            self.connections.discard(task)

    def processes(self, plan: Plan) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            text = (self.scopes.path(plan) / "cgroup.procs").read_text()
            return [int(pid) for pid in text.split()]
        return []

    def _empty(self, plan: Plan) -> bool:
        return not self.processes(plan)

    def alive(self) -> list[int]:
        """Every PID 1 that is still there, in a scope or not."""
        return [pid for pid in self.scopes.started if Path(f"/proc/{pid}").exists()]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not self.alive())
        for plan in self.plans:
            await eventually(functools.partial(self._empty, plan))
            with contextlib.suppress(FileNotFoundError):
                self.scopes.path(plan).rmdir()
            self.host.directories.remove(plan.job)
        self.journal.close()
