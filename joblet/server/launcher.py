# SPDX-License-Identifier: MIT
"""The server's end of the link to init mode: requests by name, answers by id, reconnection.

Init mode may restart at any time: requests under way then fail with Unavailable, running jobs
notice
nothing, and the next request finds the link again. Must not import anything of init mode.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joblet import link
from joblet.config import UID_FIRST, UID_LAST
from joblet.errors import InvalidArgument, JobletError, Unavailable
from joblet.launch.plan import Plan
from joblet.link import Link, Message
from joblet.server.admission import Permits
from joblet.systemd import messages

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
PATIENCE_S: Final = 5.0  # for the first link, while the server starts
# How long after the loss of the link requests wait for it: a restart of init mode takes less than
# a second. Then each has one try made at once and fails with it, so that a client hears of it soon.
LOST_S: Final = 2.5
TRY_S: Final = 0.5
ANSWER_S: Final = 60.0  # init mode answers or fails long before; a hang would be a bug
STOP_S: Final = 660.0  # systemd's stop of a scope takes up to its TimeoutStopSec
HINT: Final = "see `systemctl status joblet-init.service joblet-init.socket`"


class Launcher:
    def __init__(self, path: str) -> None:
        self._path = path
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._next = 0
        self._why = "init mode has not answered yet"
        self._lost_at: float | None = None  # of the event loop's time
        self._wanted = asyncio.Event()  # somebody does not want to wait for the next try
        self._failed = asyncio.Event()  # the try that is next, or under way, has failed
        self.permits = Permits()  # as init mode said last

    async def run(self) -> None:
        """Keeps the link; owned by the daemon, ends by cancellation."""
        tries = 0
        away = False  # and the journal knows
        while True:
            try:
                await self._connect()
                if away:
                    log.info("init mode is there again")
                tries, away = 0, False
                await self._read()
                self._why = "init mode hung up"
            except (JobletError, OSError) as error:
                # a restarted init mode is not told: its socket is there all the time
                self._why = self._reason(error)
                log.log(
                    logging.DEBUG if away else logging.WARNING,
                    "cannot reach init mode: %s; %s",
                    self._why,
                    HINT,
                    extra={"fields": {"MESSAGE_ID": messages.INIT_MODE_AWAY}},
                )
                away = True
            finally:
                self._down()
            self._failed.set()
            self._failed = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)]):
                    await self._wanted.wait()
            self._wanted.clear()
            tries += 1

    def _reason(self, error: JobletError | OSError) -> str:
        if isinstance(error, JobletError):
            return error.why
        if isinstance(error, TimeoutError):
            return "init mode does not answer"
        return f"init mode is not there ({self._path}: {error.strerror or error})"

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sock.settimeout(0)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._path)
        except BaseException:
            sock.close()
            raise
        self._link = Link(sock)
        async with asyncio.timeout(ANSWER_S):
            await self._link.send(link.hello())
            first = await self._link.recv()
        if first is None:
            raise Unavailable("open the link", "init mode hung up before its hello")
        link.close_all(first[1])
        link.agree(first[0])
        self.permits = _permits(first[0])
        log.debug("linked with init mode (%s)", first[0].get("program"))
        self._up.set()

    async def _read(self) -> None:
        assert self._link  # noqa: S101
        while (received := await self._link.recv()) is not None:
            message, fds = received
            waiting = self._waiting.pop(message.get("id", -1), None)
            if waiting is None or waiting.done():
                link.close_all(fds)
            elif "ok" in message and isinstance(message["ok"], dict):
                waiting.set_result((message["ok"], fds))
            else:
                link.close_all(fds)
                waiting.set_exception(link.error_from(message.get("error")))

    def _down(self) -> None:
        if self._up.is_set():
            self._lost_at = asyncio.get_running_loop().time()
        self._up.clear()
        if self._link is not None:
            self._link.close()
            self._link = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._no_link())
        self._waiting.clear()

    @property
    def linked(self) -> bool:
        return self._link is not None and self._up.is_set()

    async def wait_up(self) -> None:
        """Raises Unavailable when there is no link within PATIENCE_S."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._up.wait()
        except TimeoutError:
            raise self._no_link() from None

    def _no_link(self) -> Unavailable:
        return Unavailable("ask init mode", self._why, hint=HINT)

    async def _again(self) -> None:
        """Wait for a link that was lost. Raises Unavailable when that takes too long."""
        try:
            async with asyncio.timeout_at((self._lost_at or 0.0) + LOST_S):
                await self._up.wait()
                return
        except TimeoutError:
            pass
        self._wanted.set()
        ends = [asyncio.ensure_future(event.wait()) for event in (self._up, self._failed)]
        try:
            await asyncio.wait(ends, timeout=TRY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if not self._up.is_set():
            raise self._no_link()

    async def _ask(
        self, verb: str, fds: Sequence[int] = (), *, answer_s: float = ANSWER_S, **fields: Any
    ) -> tuple[Message, list[int]]:
        if not self._up.is_set():
            await (self.wait_up() if self._lost_at is None else self._again())
        if self._link is None:
            raise self._no_link()
        self._next += 1
        number = self._next
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[Message, list[int]]] = loop.create_future()
        self._waiting[number] = answered
        taken = False
        try:
            await self._link.send({"id": number, "verb": verb, **fields}, fds)
            async with asyncio.timeout(answer_s):
                answer = await answered
                taken = True
                return answer
        except TimeoutError:
            raise Unavailable(
                f"ask init mode to {verb}", f"no answer within {answer_s:g} s", hint=HINT
            ) from None
        finally:
            self._waiting.pop(number, None)
            answered.cancel()
            if not taken and not answered.cancelled() and answered.exception() is None:
                # answered in the moment of the cancellation; a `ctl` that nobody closes would keep
                # its job from every other holder
                link.close_all(answered.result()[1])

    # -- verbs -----------------------------------------------------------------------------------

    async def launch(self, plan: Plan) -> tuple[int, str]:
        """(PID 1 in the host's namespace, its cgroup), once the scope stands. Then `go` or
        `cancel`."""
        fd = os.memfd_create("joblet-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            data = plan.to_bytes()
            if os.write(fd, data) != len(data):
                raise InvalidArgument(f"launch job {plan.job}", "its plan does not fit into memory")
            fcntl.fcntl(
                fd,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
            )
            ok, _ = await self._ask("launch", [fd], job=plan.job)
        finally:
            os.close(fd)
        return int(ok.get("pid", 0)), str(ok.get("cgroup", ""))

    async def go(self, job: str) -> socket.socket:
        """The connected `ctl`. Raises why the launch failed."""
        _, fds = await self._ask("go", job=job)
        return _socket(fds)

    async def cancel(self, job: str) -> None:
        if not self._up.is_set():
            raise self._no_link()  # the hang-up has withdrawn it
        await self._ask("cancel", job=job)

    async def connect(self, job: str) -> tuple[str, socket.socket | None]:
        """(state, `ctl` when connected); states are link's. Raises NotFound without a directory."""
        ok, fds = await self._ask("connect", job=job)
        return str(ok.get("state")), (_socket(fds) if fds else None)

    async def list_jobs(self) -> dict[str, tuple[str, int]]:
        """Job -> (LIVE, GONE or NEVER, base of its uids) of every job directory."""
        jobs: dict[str, tuple[str, int]] = {}
        after = ""
        while True:
            ok, _ = await self._ask("list", after=after)
            for entry in ok.get("jobs", ()):
                after = str(entry["job"])
                jobs[after] = (str(entry["state"]), int(entry["uid"]))
            if not ok.get("more"):
                return jobs

    async def results(self, job: str) -> dict[str, int]:
        """Name (exit, out.rest, err.rest) -> descriptor, of what is there; the caller closes
        them."""
        ok, fds = await self._ask("results", job=job)
        return dict(zip(map(str, ok.get("names", ())), fds, strict=False))

    async def stop(self, job: str) -> None:
        """Through systemd; returns when the scope is gone."""
        await self._ask("stop", job=job, answer_s=STOP_S)

    async def kill(self, job: str, signal: int) -> None:
        await self._ask("kill", job=job, signal=signal)

    async def change(self, job: str, properties: Mapping[str, Any]) -> None:
        """Properties of a job's unit; None lifts a limit. Returns when the cgroup has them."""
        await self._ask("change", job=job, properties=properties)

    async def clean_up(self, job: str, *, failed: bool = True) -> None:
        """The directory removed, and the unit forgotten if it may have failed. Raises
        FailedPrecondition while PID 1 lives."""
        await self._ask("clean-up", job=job, failed=failed)

    async def copy_journal(self) -> socket.socket:
        """A channel for plain copies of jobs' lines; init/journal_copy.py says what it speaks."""
        _, fds = await self._ask("copy-journal")
        return _socket(fds)

    async def read_journal(self, job: str, **wanted: Any) -> socket.socket:
        """Frames of what the journal has of the job's unit: init/journal_read.py. Raises
        InvalidArgument."""
        _, fds = await self._ask("read-journal", (), **{"job": job, **wanted})
        return _socket(fds)

    async def sync_journal(self) -> None:
        """Returns when journald has taken in all that was written before."""
        await self._ask("sync-journal")


def _permits(hello: Message) -> Permits:
    """An init mode of before says nothing of it."""
    if not isinstance(said := hello.get("permits"), dict):
        return Permits()
    return Permits(
        uid_first=link.number(said, "uid_first", UID_FIRST, UID_LAST),
        uid_last=link.number(said, "uid_last", UID_FIRST, UID_LAST),
        profiles=frozenset(map(str, said.get("profiles", ()))),
        ceilings={
            str(name): link.number({name: value}, name, 1, 2**63)
            for name, value in said.get("ceilings", {}).items()
        },
    )


def _socket(fds: Sequence[int]) -> socket.socket:
    if len(fds) != 1:
        link.close_all(fds)
        raise Unavailable("ask init mode", "its answer holds no connection")
    with contextlib.suppress(OSError):
        os.set_blocking(fds[0], False)
    return socket.socket(fileno=fds[0])
