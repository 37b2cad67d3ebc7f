# SPDX-License-Identifier: MIT
"""Launches on their way: from a checked plan to the go. Each belongs to the connection that asked
for it.

    directory and FIFOs -> PID 1 from the zygote -> scope (beside it PID 1 builds its root)
    go: the scope stands, `ctl` is connected, PID 1 is told, the socket goes to the server

Whatever fails before the go leaves nothing behind: the gate is closed, PID 1 ends, its directory
goes.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joblet import link
from joblet.config import InitPolicy
from joblet.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    JobletError,
    NotFound,
    Unavailable,
)
from joblet.init import policy as permits
from joblet.init.directories import Directories
from joblet.init.scopes import Scopes
from joblet.launch import pid1
from joblet.launch.plan import Filters, Plan
from joblet.launch.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Callable

READY_S: Final = 30.0  # from the fork to `ctl`; about 1 ms, but a host can be busy
IN_FLIGHT: Final = 32  # launches between fork and scope; more wait their turn


class Launch:
    """One launch: the gate, and what will be known when the scope stands."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.gate: socket.socket | None = None
        self.pid = 0
        self.pidfd = -1
        self.cgroup = ""
        self.scope_asked_for = False
        self.withdrawn = False
        self.scope: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # a failed launch is told by the answer to `launch`; nobody need wait for this as well
        self.scope.add_done_callback(lambda future: future.cancelled() or future.exception())

    def close(self) -> None:
        if self.gate is not None:
            self.gate.close()
            self.gate = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Launches:
    def __init__(
        self,
        policy: InitPolicy,
        directories: Directories,
        zygote: Zygote,
        scopes: Scopes,
        filters: Mapping[str, Filters],
    ) -> None:
        """filters: by profile, for each that the policy permits."""
        self._policy = policy
        self._directories = directories
        self._zygote = zygote
        self._scopes = scopes
        self._filters = filters
        self._launches: dict[str, Launch] = {}  # on their way to the scope, or waiting for the go
        self._under_way: set[str] = set()  # these, and those which are being undone or let go
        self._forking = asyncio.Lock()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self.zygote_gone = asyncio.Event()
        self.launched = self.failed = 0  # since the start
        self.on_change: Callable[[], None] = lambda: None  # one of these has changed

    async def launch(self, job: str, plan_fd: int) -> Launch:
        """Everything up to the gate. Raises JobletError; then nothing is left of it."""
        plan = permits.read_plan(plan_fd, self._policy)
        if plan.job != job:
            raise InvalidArgument(f"launch job {job}", f"the plan is job {plan.job}'s")
        permits.check(plan, self._policy)
        if plan.job in self._launches or plan.job in self._directories.uids:
            raise AlreadyExists(f"launch job {plan.job}", "it has been launched")
        if plan.uid_base in self._directories.uids.values():
            raise AlreadyExists(f"launch job {plan.job}", f"uid {plan.uid_base} is another job's")
        self._directories.uids[plan.job] = plan.uid_base
        self._under_way.add(plan.job)
        launch = self._launches[plan.job] = Launch(plan)
        try:
            async with self._slots:
                await self._fork(launch)
                if not launch.withdrawn:
                    launch.scope_asked_for = True
                    await self._scopes.start(plan, launch.pid)
            if launch.withdrawn:
                raise Unavailable(f"launch job {plan.job}", "it was withdrawn")
            launch.cgroup = _cgroup(launch.pid)
        except BaseException as error:
            self.failed += not launch.withdrawn
            self.on_change()
            await self._undo(launch, error)
            raise
        launch.scope.set_result(launch.pid)
        return launch

    async def _fork(self, launch: Launch) -> None:
        plan = launch.plan
        # PID 1 has its own; a copy of ours would keep the pipes from ending
        with contextlib.ExitStack() as ours:
            # what has been checked, not what came
            plan_fd = _memfd(plan.to_checked(self._filters[plan.profile]))
            ours.callback(os.close, plan_fd)
            directory, ends = await self._create(plan)
            ours.callback(link.close_all, [directory, *ends])
            launch.gate, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.callback(theirs.close)
            launch.gate.settimeout(0)
            await self._ask_zygote(launch, [plan_fd, directory, theirs.fileno(), *ends])

    async def _create(self, plan: Plan) -> tuple[int, list[int]]:
        create = self._directories.create
        creating = asyncio.ensure_future(
            asyncio.to_thread(create, plan.job, plan.uid_base, plan.streams)
        )
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            # a thread cannot be cancelled: what it makes is there a moment later
            with contextlib.suppress(JobletError):
                directory, ends = await creating
                link.close_all([directory, *ends])
            raise

    async def _ask_zygote(self, launch: Launch, fds: list[int]) -> None:
        """Sets the launch's pid and pidfd, also when it is cancelled."""
        path = self._directories.path(launch.plan.job)
        loop = asyncio.get_running_loop()
        async with self._forking:
            answered = loop.create_future()
            try:
                self._zygote.request(path, fds)
                loop.add_reader(self._zygote.socket, link.wake, answered)
                try:
                    await asyncio.shield(answered)
                except asyncio.CancelledError:
                    await answered  # about 2 ms: an answer left unread would be the next one's
                    launch.pid, launch.pidfd = self._zygote.answer()
                    raise
                finally:
                    loop.remove_reader(self._zygote.socket)
                launch.pid, launch.pidfd = self._zygote.answer()
            except OSError as error:
                if isinstance(error, ConnectionError):
                    self.zygote_gone.set()
                raise Internal("fork the job's PID 1", str(error)) from None

    async def _undo(self, launch: Launch, error: BaseException) -> None:
        job = launch.plan.job
        self._launches.pop(job, None)
        if not launch.scope.done():
            known = isinstance(error, JobletError)
            launch.scope.set_exception(
                error if known else Unavailable(f"launch job {job}", "withdrawn")
            )
        if launch.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(launch.pidfd, signal.SIGKILL)
            await _ended(launch.pidfd)
        launch.close()
        if launch.scope_asked_for:
            # a PID 1 that dies while systemd starts its scope leaves it failed, or empty
            with contextlib.suppress(JobletError):
                await self._scopes.stop(launch.plan.unit)
                await self._scopes.forget(launch.plan.unit)
        with contextlib.suppress(JobletError):  # what stays, the server finds in the list
            await asyncio.to_thread(self._directories.remove, job)
        self._under_way.discard(job)

    async def go(self, job: str) -> socket.socket:
        """The connected `ctl`; the command starts. Raises NotFound, or why the launch failed."""
        launch = self._launches.get(job)
        if launch is None:
            raise NotFound(f"let job {job} go", "no such launch is waiting")
        await asyncio.shield(launch.scope)
        # from here on it is too late for a cancel, which would close the gate under our feet
        gate = launch.gate
        if self._launches.get(job) is not launch or gate is None:
            raise Unavailable(f"let job {job} go", "it was withdrawn")
        del self._launches[job]
        try:
            async with asyncio.timeout(READY_S):
                await link.readable(gate.fileno())
            if gate.recv(64) != pid1.READY:
                raise Internal(f"let job {job} go", "its PID 1 is gone")
            # before the go: PID 1 serves from then on, and whoever is connected first holds the
            # pipes
            state, ctl = self._directories.connect(job)
            if ctl is None:
                raise Internal(f"let job {job} go", f"its ctl is {state}")
            try:
                gate.send(pid1.GO)
            except OSError as error:
                ctl.close()
                raise Internal(f"let job {job} go", str(error)) from None
        except (OSError, TimeoutError) as error:
            raise Internal(f"let job {job} go", str(error) or "its PID 1 does not answer") from None
        finally:
            launch.close()
            self._under_way.discard(job)
        self.launched += 1
        self.on_change()
        return ctl

    def cancel(self, job: str) -> None:
        """Closes the gate. Raises NotFound after the go.

        A launch still on its way to the scope undoes itself; behind it PID 1 records the end and
        goes,
        and its directory waits for the server's clean-up.
        """
        launch = self._launches.pop(job, None)
        if launch is None:
            raise NotFound(f"withdraw job {job}", "no such launch is waiting")
        launch.withdrawn = True
        if launch.scope.done():
            self._under_way.discard(job)
            if launch.gate is not None:
                with contextlib.suppress(OSError):
                    launch.gate.send(pid1.WITHDRAWN)
            launch.close()

    def waits(self, job: str) -> bool:
        """On its way to the scope, or behind it without its go."""
        return job in self._launches

    def check_over(self, job: str) -> None:
        """Raises FailedPrecondition for a launch before its go. That has no `ctl` for a moment, and
        would look as if nobody needed its directory and its uids any more."""
        if job in self._under_way:
            raise FailedPrecondition(f"clean up job {job}", "it is being launched")


def _memfd(data: bytes) -> int:
    """A file in memory. Raises Internal."""
    try:
        fd = os.memfd_create("joblet-plan", os.MFD_CLOEXEC)
    except OSError as error:
        raise Internal("hand PID 1 its plan", str(error)) from None
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        os.close(fd)
        raise Internal("hand PID 1 its plan", str(error)) from None
    return fd


def _cgroup(pid: int) -> str:
    """The cgroup of a process, as this one sees it; where the scope stands, systemd alone
    decides."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


async def _ended(pidfd: int) -> None:
    """A pidfd is readable when its process has ended; after SIGKILL that is soon."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_S):
            await link.readable(pidfd)
