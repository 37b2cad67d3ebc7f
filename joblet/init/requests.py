# SPDX-License-Identifier: MIT
"""One connection of the server: its hello, its requests, each answered by id.

A request is a task of the connection; when the connection ends they are cancelled, and the launches
that have not got their go are withdrawn with it.
"""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from joblet import link
from joblet.config import InitPolicy
from joblet.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    JobletError,
    Unavailable,
    Unimplemented,
)
from joblet.init import journal_process, journal_read
from joblet.init import policy as permits
from joblet.init.directories import Directories
from joblet.init.journal_process import JournalProcess
from joblet.init.journal_sync import JournalSync
from joblet.init.launches import Launches
from joblet.init.scopes import Scopes
from joblet.launch.plan import JOB_ID
from joblet.link import Link, Message
from joblet.model import unit_name

log = logging.getLogger(__name__)

MAX_REQUESTS: Final = 512  # of one connection at once; more wait unread in its socket
MAX_ID: Final = 2**53
JOBS_PER_MESSAGE: Final = 1000

Reply = tuple[Message, Sequence[int]]


class Connection:
    def __init__(
        self,
        peer: socket.socket,
        *,
        policy: InitPolicy,
        directories: Directories,
        launches: Launches,
        scopes: Scopes,
        journal: JournalProcess,
        sync: JournalSync,
    ) -> None:
        self._link = Link(peer)
        self._policy = policy
        self._directories = directories
        self._launches = launches
        self._scopes = scopes
        self._journal = journal
        self._sync = sync
        self._mine: set[str] = set()  # launches without their go
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._verbs: dict[str, Callable[[Message, list[int]], Awaitable[Reply]]] = {
            "launch": self._launch,
            "go": self._go,
            "cancel": self._cancel,
            "connect": self._connect,
            "list": self._list,
            "results": self._results,
            "stop": self._stop,
            "kill": self._kill,
            "change": self._change,
            "clean-up": self._clean_up,
            "copy-journal": self._copy_journal,
            "read-journal": self._read_journal,
            "sync-journal": self._sync_journal,
        }

    async def serve(self) -> None:
        """Until the peer hangs up, or says what is no request."""
        try:
            await self._link.send(link.hello(permits=permits.of_jobs(self._policy)))
            first = await self._link.recv()
            if first is None:
                return
            link.close_all(first[1])
            link.agree(first[0])
            async with asyncio.TaskGroup() as group:
                tasks: set[asyncio.Task[None]] = set()
                try:
                    await self._receive(group, tasks)
                except JobletError as error:
                    log.warning("dropped the server's connection: %s", error)
                finally:
                    for task in tasks:
                        task.cancel()
        except JobletError as error:
            log.warning("dropped the server's connection: %s", error)
        finally:
            for job in self._mine:
                with contextlib.suppress(JobletError):
                    self._launches.cancel(job)
            self._link.close()

    async def _receive(self, group: asyncio.TaskGroup, tasks: set[asyncio.Task[None]]) -> None:
        while (received := await self._link.recv()) is not None:
            message, fds = received
            try:
                await self._slots.acquire()
                task = group.create_task(self._handle(message, fds))
            except BaseException:
                link.close_all(fds)
                raise
            tasks.add(task)
            task.add_done_callback(functools.partial(self._handled, tasks, fds))

    def _handled(
        self, tasks: set[asyncio.Task[None]], fds: list[int], task: asyncio.Task[None]
    ) -> None:
        """Not in the task itself: one that is cancelled before its first step runs none of it."""
        tasks.discard(task)
        link.close_all(fds)
        self._slots.release()

    def close(self) -> None:
        self._link.shutdown()

    async def _handle(self, message: Message, fds: list[int]) -> None:
        out: Sequence[int] = ()
        try:
            try:
                number = link.number(message, "id", 0, MAX_ID)
                verb = self._verbs.get(str(message.get("verb")))
                if verb is None:
                    raise Unimplemented("do what was asked", f"no verb {message.get('verb')!r:.40}")
                ok, out = await verb(message, fds)
                answer: Message = {"id": number, "ok": ok}
            except JobletError as error:
                answer = {"id": message.get("id"), "error": link.error_message(error)}
            except Exception as error:
                log.exception("request %s failed", message.get("verb"))
                problem = Internal(f"{message.get('verb')}", f"{type(error).__name__}: {error}")
                answer = {"id": message.get("id"), "error": link.error_message(problem)}
            await self._link.send(answer, out)
        except JobletError as error:
            log.debug("no answer: %s", error)
        finally:
            link.close_all(out)

    # -- verbs -----------------------------------------------------------------------------------

    async def _launch(self, message: Message, fds: list[int]) -> Reply:
        job = _job(message)
        if len(fds) != 1:
            raise InvalidArgument(f"launch job {job}", "one descriptor, the plan, must come along")
        if job in self._mine:  # still that launch's, whatever becomes of this one
            raise AlreadyExists(f"launch job {job}", "it has been launched")
        self._mine.add(job)
        try:
            launch = await self._launches.launch(job, fds[0])
        except BaseException:
            self._mine.discard(job)
            raise
        return {"pid": launch.pid, "cgroup": launch.cgroup}, ()

    async def _go(self, message: Message, fds: list[int]) -> Reply:
        job = self._own(message)
        try:
            ctl = await self._launches.go(job)
        finally:
            # one that was cancelled before it took the launch over leaves it to the hang-up
            if not self._launches.waits(job):
                self._mine.discard(job)
        return {}, (ctl.detach(),)

    async def _cancel(self, message: Message, fds: list[int]) -> Reply:
        job = self._own(message)
        self._mine.discard(job)
        self._launches.cancel(job)
        return {}, ()

    async def _connect(self, message: Message, fds: list[int]) -> Reply:
        state, ctl = self._directories.connect(_job(message))
        return {"state": state}, (() if ctl is None else (ctl.detach(),))

    async def _list(self, message: Message, fds: list[int]) -> Reply:
        """Pages of jobs in order of their ids, behind `after`."""
        after = message.get("after", "")
        jobs = sorted(job for job in self._directories.jobs() if job[0] > str(after))
        page = jobs[:JOBS_PER_MESSAGE]
        listed = [{"job": j, "state": self._directories.state(j), "uid": uid} for j, uid in page]
        return {"jobs": listed, "more": len(jobs) > len(page)}, ()

    async def _results(self, message: Message, fds: list[int]) -> Reply:
        job = _job(message)
        self._launches.check_over(job)
        names, out = self._directories.results(job)
        return {"names": names}, out

    async def _stop(self, message: Message, fds: list[int]) -> Reply:
        await self._scopes.stop(unit_name(_job(message)))
        return {}, ()

    async def _kill(self, message: Message, fds: list[int]) -> Reply:
        number = link.number(message, "signal", 1, signal.NSIG - 1)
        await self._scopes.kill(unit_name(_job(message)), number)
        return {}, ()

    async def _change(self, message: Message, fds: list[int]) -> Reply:
        job = _job(message)
        permits.check_change(job, message.get("properties"), self._policy)
        await self._scopes.change(unit_name(job), message["properties"])
        return {}, ()

    async def _clean_up(self, message: Message, fds: list[int]) -> Reply:
        job = _job(message)
        self._launches.check_over(job)
        # (a server of before did not say)
        if message.get("failed", True):
            await self._scopes.forget(unit_name(job))
        await asyncio.to_thread(self._directories.remove, job)
        return {}, ()

    async def _copy_journal(self, message: Message, fds: list[int]) -> Reply:
        return self._journal_end(journal_process.COPY, {}, socket.SOCK_SEQPACKET)

    async def _read_journal(self, message: Message, fds: list[int]) -> Reply:
        """Of a job's unit and no other."""
        wanted = journal_read.wanted(unit_name(_job(message)), message)
        return self._journal_end(journal_process.READ, wanted, socket.SOCK_STREAM)

    def _journal_end(self, what: str, fields: Mapping[str, object], kind: int) -> Reply:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with theirs:
            try:
                self._journal.begin(what, fields, theirs)
            except OSError as error:
                ours.close()
                raise Unavailable(
                    f"{what} the journal",
                    f"the process that does it: {error.strerror or error}",
                    hint="systemctl restart joblet-init.service, which no job notices",
                ) from None
        return {}, (ours.detach(),)

    async def _sync_journal(self, message: Message, fds: list[int]) -> Reply:
        await self._sync.sync()
        return {}, ()

    def _own(self, message: Message) -> str:
        job = _job(message)
        if job not in self._mine:
            raise InvalidArgument(f"let job {job} go", "this connection did not launch it")
        return job


def _job(message: Message) -> str:
    return link.text(message, "job", JOB_ID)
