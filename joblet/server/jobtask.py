# SPDX-License-Identifier: MIT
"""One job, from its launch (or from where an earlier server left it) to its final record.

One task a job; it alone changes the job's state. What must survive is written before what depends
on
it is done: the intent before the launch goes, the log and the final record before PID 1 is told
that
it may leave, the directory removed last. Cancelled (a clean stop of the server), it gives the pipes
back and hangs up; the job runs on, and the next server finds it.
"""

import asyncio
import contextlib
import dataclasses
import enum
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

from joblet import link
from joblet.errors import Internal, JobletError, NotFound, Unavailable
from joblet.launch import protocol
from joblet.launch.plan import Plan
from joblet.launch.protocol import ExitRecord, ProtocolError
from joblet.model import JOURNALD, End, Job, JobState, Limits, Reason, move, not_running
from joblet.server import change as changes
from joblet.server import ending, events, patience, results
from joblet.server.change import Change, Rules
from joblet.server.counts import JobCounts
from joblet.server.ctl import Ctl
from joblet.server.ending import Witness
from joblet.server.launcher import Launcher
from joblet.server.limits import Asked, Enforcement
from joblet.server.logs import JobLog, LogStore

log = logging.getLogger(__name__)

T = TypeVar("T")

STREAM_NUMBERS: Final = {name: number for number, name in enumerate(protocol.STREAMS, 1)}
HANG_UP_S: Final = 10.0  # from the acknowledgement to PID 1's end; about 1 ms
SENSELESS_TRIES: Final = 3  # connections that bring nonsense before systemd ends the scope
BACKSTOP_S: Final = 2.0  # that PID 1 has beyond the grace before systemd ends its scope
SYNC_S: Final = 5.0  # that a job's end may wait for the journal, if its output goes there
COPY_S: Final = 2.0  # that the journal's copy may take to catch up with a job that has ended


class Store(Protocol):
    """What a job's task needs of the records."""

    async def put(self, job: Job, *, key: str = "") -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Tools:
    records: Store
    logs: LogStore
    launcher: Launcher
    enforcement: Enforcement
    clock_us: Callable[[], int]
    grace_us: int
    # what systemd was asked to do with a unit; called when a record leaves it open
    witness: Callable[[str], Awaitable[Witness]]
    # returns when the journal has all that was written to it
    sync: Callable[[], Awaitable[None]]
    # a plain copy of the job's lines for the journal, from an offset to the log's end; the event
    # is the job's end
    copy: Callable[[Job, JobLog, int, asyncio.Event], Awaitable[None]]
    counts: JobCounts


class Outcome(enum.Enum):
    ENDED = enum.auto()
    HUNG_UP = enum.auto()
    SENSELESS = enum.auto()  # what its PID 1 said is no message of the protocol
    DEAD_ON_ARRIVAL = enum.auto()


class JobTask:
    def __init__(self, job: Job, tools: Tools, *, key: str = "") -> None:
        """key: the client's idempotency key, recorded with the job."""
        self.job = job
        self._key = key
        self.ended = asyncio.Event()  # for good, with a final record or with `fault`
        self.fault: JobletError | None = None  # why nobody attends to the job any more
        # what its PID 1 had to say when this server came has been heard, or its end is recorded
        self.heard = asyncio.Event()
        # the job once it runs, or has ended; an exception when it could not be launched
        self.settled: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self.settled.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._tools = tools
        self._ctl: Ctl | None = None
        self._ending = False
        self._launched = False
        self._went = False  # the go was said, as far as this server knows
        self._recorded = False
        self._launch_error: JobletError | None = None  # why there was no go, for the client
        self.cleaned = False  # nothing is left of it: its directory, its unit, its ids
        self.left = asyncio.Event()  # whoever owns this task has let go of it
        self._group: asyncio.TaskGroup | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._copying: asyncio.Task[None] | None = None
        self._deadline: asyncio.Task[None] | None = None
        self._began = 0.0  # when its command started, by the event loop's clock
        self._told_us: int | None = None  # the time-out that its PID 1 knows of, if that is known
        self._changing = asyncio.Lock()
        self._retried = False
        self._same_boot = True  # as far as anybody knows, the job began in this boot
        self._overdue = False
        self._senseless = 0  # connections on which its PID 1 talked nonsense
        # systemd was seen stopping the unit, which we did not ask for
        self.unit_stopping = False
        # a scope fails when systemd had to end it; one that went by itself needs no ResetFailed
        self._may_have_failed = True

    # -- the ways of a job -----------------------------------------------------------------------

    async def run_new(self, plan: Plan, asked: Asked, wanted: Limits) -> None:
        """Launch it and see it through. Errors of the launch end the job, and are in `settled`."""
        self._told_us = plan.timeout_us
        async with self._owning():
            while True:
                try:
                    ctl = await self._launch(plan, asked, wanted)
                except JobletError as error:
                    await self._launch_failed(error)
                    return
                if await self._attend(ctl) is not Outcome.DEAD_ON_ARRIVAL:
                    return
                await self._clean_up()

    async def run_taken_back(self) -> None:
        """The job lives, without a holder."""
        self._launched = self._recorded = True
        self._retried = True  # there is no plan any more
        async with self._owning():
            if self.job.state is JobState.STOPPING:
                self._help(self._backstop(self._tools.grace_us))
            await self._attend(None)

    async def run_results(self, *, same_boot: bool) -> None:
        """The job has ended without a server; what it left is in its directory, if there is one."""
        self._launched = self._recorded = True
        self._same_boot = same_boot
        async with self._owning():
            await self._end_from_results()

    async def run_again(self) -> None:
        """After a bug: whatever the job does by now, as if another server had come."""
        if not self._went:  # unless its PID 1 is found to serve
            self._launch_error = Internal(f"launch job {self.job.id}", "a fault of the server")
        self._copying = self._deadline = None  # they ended with the helpers
        if self.job.final:  # there was nothing left to do but that
            self._hear_of_the_end()
            await self._clean_up()
            return
        self._ending = False
        await self.run_taken_back()

    def give_up(self, error: JobletError) -> None:
        """Nobody attends to the job any more: whoever waits for it hears of that."""
        self.fault = error
        self._ending = False
        self._settle(error)
        self.ended.set()
        self.heard.set()

    async def wait(self) -> Job:
        """The job, ended. Raises `fault`."""
        await self.ended.wait()
        if self.fault is not None and not self.job.final:
            raise self.fault
        return self.job

    @contextlib.asynccontextmanager
    async def _owning(self) -> AsyncIterator[None]:
        """Helpers of this task end with it."""
        try:
            async with asyncio.TaskGroup() as self._group:
                try:
                    yield
                    if self._copying is not None:
                        await asyncio.wait([self._copying], timeout=COPY_S)
                finally:
                    for helper in self._helpers:
                        helper.cancel()
        except Exception:  # a bug: whoever owns this task begins it again or gives it up
            self._group = None
            raise
        except BaseException:
            self.settled.cancel()
            raise

    def _help(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def helper() -> None:
            try:
                await work
            except JobletError as error:
                log.warning("%s", error, extra={"job": self.job.id})

        assert self._group  # noqa: S101
        begun = helper()
        try:
            task = self._group.create_task(begun)
        except RuntimeError:  # the group is ending, and so is the server
            for unawaited in (begun, work):
                if asyncio.iscoroutine(unawaited):
                    unawaited.close()
            raise Unavailable(
                f"see job {self.job.id} through", "the server is stopping", hint="try again"
            ) from None
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
        if asyncio.iscoroutine(work):  # a helper cancelled before its first step never awaits it
            task.add_done_callback(lambda _: work.close())
        return task

    # -- launch ----------------------------------------------------------------------------------

    async def _launch(self, plan: Plan, asked: Asked, wanted: Limits) -> socket.socket | None:
        """`ctl`, connected, after the go; None when nobody knows whether it was said. Raises
        JobletError; nothing runs then."""
        tools = self._tools
        self._launched = self._went = self.cleaned = False
        launching = asyncio.ensure_future(tools.launcher.launch(plan))
        going: asyncio.Future[socket.socket] | None = None
        try:
            # beside each other: the intent on disk, the log's files, the scope
            if not self._recorded:
                await tools.records.put(self.job, key=self._key)
                self._recorded = True
            await self._open_log()
            early = tools.launcher.linked and not launching.done()
            if early and not asked.by_client and not self.job.stop_by:
                # nothing that is read back can refuse it: the go waits for the scope in init mode
                going = asyncio.ensure_future(tools.launcher.go(self.job.id))
            pid, cgroup = await launching
            self._launched = True
            effective, untaken = tools.enforcement.after(cgroup, asked, wanted)
            self.job = dataclasses.replace(
                self.job,
                pid=pid,
                cgroup=cgroup,
                effective=effective,
                not_enforced=tuple(dict.fromkeys((*self.job.not_enforced, *untaken))),
            )
            events.not_enforced(self.job, asked.by_client)
            if going is None:
                if self.job.stop_by:
                    raise Unavailable(f"launch job {self.job.id}", "it was stopped")
                going = asyncio.ensure_future(tools.launcher.go(self.job.id))
            try:
                ctl = await going
            except Unavailable as error:
                # init mode went away with the answer: the job's directory tells whether it runs
                log.warning("%s", error, extra={"job": self.job.id})
                self._launch_error = error
                with contextlib.suppress(JobletError):
                    await tools.launcher.cancel(self.job.id)  # refused if the go was said
                return None
            self._went = True
            return ctl
        except BaseException as error:
            with contextlib.suppress(JobletError):
                await tools.launcher.cancel(self.job.id)
            launching.cancel()
            with contextlib.suppress(JobletError, asyncio.CancelledError):
                await launching
            if going is not None and await self._went_meanwhile(going, error):
                return None
            raise

    async def _went_meanwhile(
        self, going: "asyncio.Future[socket.socket]", error: BaseException
    ) -> bool:
        """After a launch that failed with its go on the way: whether the job may run all the same,
        because init mode went away with both answers."""
        if not isinstance(error, JobletError):
            going.cancel()
        try:
            (await going).close()  # it will be connected again
        except (JobletError, asyncio.CancelledError):
            if not isinstance(error, Unavailable):
                return False
        if isinstance(error, JobletError):
            self._launch_error = error
            return True
        return False

    async def _launch_failed(self, error: JobletError) -> None:
        if not self._recorded:  # no client hears of this job, so it leaves no trace
            self._ending = True
            await self._clean_up()
            with contextlib.suppress(JobletError):
                await self._tools.logs.remove(self.job.id)
            self._settle(error)
            self.ended.set()
            return
        end = _not_launched(error)
        if self.job.stop_by:
            end = End(Reason.STOPPED, by=self.job.stop_by)
        self._launch_error = error
        try:
            job_log = await self._open_log()
        except JobletError:
            self._settle(error)  # the client need not wait until the disk has room
            job_log = await self._insist(self._open_log)
        await self._end(end, job_log)
        await self._clean_up()

    async def _open_log(self) -> JobLog:
        job_log = await self._tools.logs.open(self.job.id, from_earlier_boot=not self._same_boot)
        job_log.attended()
        job_log.hide(self.job.spec.secret_environment.values())
        job_log.handle_overflow(self.job.spec.overflow_strategy, self.job.spec.on_full)
        if job_log.expected is None:
            await job_log.expect(self.job.spec.streams)
        return job_log

    # -- holding `ctl` ---------------------------------------------------------------------------

    async def _attend(self, connected: socket.socket | None) -> Outcome:
        """Hold `ctl`, again and again if need be, until the end is recorded."""
        job_log = await self._insist(self._open_log)
        connection = connected
        pauses = patience.pauses()
        while True:
            if connection is None:
                connection = await self._connect()
            if connection is None:
                await self._end_from_results()
                return Outcome.ENDED
            ctl, connection = Ctl(connection), None
            fds: dict[str, int] = {}
            try:
                hello = await ctl.hello()
                outcome = Outcome.HUNG_UP
                if hello is not None:
                    fds = hello
                    outcome = await self._hold(ctl, fds, job_log)
            except ProtocolError as error:
                log.error("its PID 1 is not understood: %s", error, extra={"job": self.job.id})
                await self._give_back(job_log)
                outcome = Outcome.SENSELESS
            except BaseException:
                await self._give_back(job_log)
                raise
            finally:
                link.close_all(list(fds.values()))
                self._ctl = None
                ctl.close()
            if outcome is Outcome.ENDED:
                await self._clean_up()
            if outcome is Outcome.SENSELESS:
                self._bear_with_it()
            elif outcome is not Outcome.HUNG_UP:
                return outcome
            await asyncio.sleep(next(pauses))

    async def _give_back(self, job_log: JobLog) -> None:
        """It is we who hang up: the pipes first, `ctl` last, for its end gives them back."""
        with contextlib.suppress(JobletError):  # a reader that died reads nothing any more
            await job_log.detach()

    def _bear_with_it(self) -> None:
        """Its PID 1 talks nonsense (it is of another version, or broken), and we have hung up.

        Nothing is lost by that: a job that runs keeps its pipes, and the PID 1 of one that has
        ended puts everything aside and goes; its files tell the rest. But a job that nobody can
        stop must not stay for ever: after some tries systemd ends the scope.
        """
        self._senseless += 1
        if self._senseless == SENSELESS_TRIES:
            log.error("its PID 1 makes no sense; asking systemd", extra={"job": self.job.id})
            self._help(self._insist(self._tools.launcher.stop, self.job.id))

    @property
    def _given_notice(self) -> bool:
        """Whether systemd ends the scope because its PID 1 makes no sense."""
        return self._senseless >= SENSELESS_TRIES

    async def _hold(self, ctl: Ctl, fds: dict[str, int], job_log: JobLog) -> Outcome:
        """Raises ProtocolError for a message that is none."""
        self._ctl = ctl
        self._went = True  # PID 1 serves from its go on
        self._launch_error = None
        if self.job.state is JobState.STOPPING:
            ctl.stop(self._tools.grace_us)
        if self._given_notice:
            self._attach(fds, job_log)  # whatever it says: what is in them is read to the end
        while True:
            try:
                message = await ctl.receive()
                if message is None:
                    return Outcome.HUNG_UP
                kind, fields = message
                record = (
                    ExitRecord.from_json(fields.get("record")) if kind == protocol.EXIT else None
                )
            except ProtocolError:
                if self._given_notice:  # systemd ends it; what it leaves behind tells how
                    continue
                raise
            if kind == protocol.STARTED:
                read = job_log.size
                self._attach(fds, job_log)
                self._running(fields)
                if self._copying is None and self.job.spec.streams:
                    self._copying = self._help(self._copy(job_log, read))
            elif record is not None:
                dead = (
                    record.ended_by == "launch" and record.step == "scope" and not job_log.attached
                )
                if dead and not self.job.stop_by and not self._retried:
                    self._retried = True
                    # a scope can be dead on arrival (systemd 252): once more
                    log.warning("%s, launching it again", record.detail, extra={"job": self.job.id})
                    ctl.acknowledge()
                    await self._hung_up(ctl)
                    return Outcome.DEAD_ON_ARRIVAL
                self._attach(fds, job_log)
                await self._end(await self._judge(record), job_log, record)
                ctl.acknowledge()
                await self._hung_up(ctl)
                return Outcome.ENDED
            if not ctl.has_more():
                self.heard.set()

    async def _copy(self, job_log: JobLog, from_offset: int) -> None:
        try:
            await self._tools.copy(self.job, job_log, from_offset, self.ended)
        except JobletError:
            raise
        except Exception:  # a bug in what is only a copy must not cost the job its supervision
            log.exception("lost the journal's copy of the job", extra={"job": self.job.id})

    def _attach(self, fds: dict[str, int], job_log: JobLog) -> None:
        """The log's readers take over; a stream that has ended or is read already needs no second
        end."""
        for name in [name for name in protocol.STREAMS if name in fds]:  # stdout first
            number, fd = STREAM_NUMBERS[name], fds.pop(name)
            if number in job_log.attached:
                os.close(fd)
            else:
                job_log.attach(number, fd)

    def _running(self, fields: dict[str, object]) -> None:
        try:
            started = protocol.number(fields, "at_us")
        except ProtocolError:
            started = self._tools.clock_us()
        if self.job.state is JobState.INITIALIZING:
            self.job = move(self.job, JobState.RUNNING, started_us=started)
            events.started(self.job)
            # it can be told again by PID 1 at any time, so nobody waits for the disk
            self._help(self._tools.records.put(self.job))
        try:
            ran = protocol.number(fields, "ran_us")
        except ProtocolError:  # a PID 1 of before; a clock that was set is believed
            ran = self._tools.clock_us() - started
        self._began = asyncio.get_running_loop().time() - ran / 1e6
        if self._deadline is None:
            self._await_time_out()
        self._tell_time_out()
        self._settle(None)

    def _await_time_out(self) -> None:
        """Our own deadline, should its PID 1 let the time-out pass."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.job.spec.timeout_us:
            left_us = self.job.spec.timeout_us + self._tools.grace_us - self._ran_us()
            self._deadline = self._help(self._backstop(left_us, overdue=True))

    def _ran_us(self) -> int:
        return round((asyncio.get_running_loop().time() - self._began) * 1e6)

    def _tell_time_out(self) -> None:
        """Its PID 1 may know another time-out: an earlier server may have recorded a change, and
        died before it could say so."""
        if self._ctl is not None and self._told_us != self.job.spec.timeout_us:
            self._told_us = self.job.spec.timeout_us
            self._ctl.time_out(self._told_us)

    async def _connect(self) -> socket.socket | None:
        """`ctl` through init mode; None when PID 1 is gone. Waits as long as that is not known."""
        for pause in patience.pauses():
            try:
                state, connection = await self._tools.launcher.connect(self.job.id)
            except NotFound:
                return None
            except JobletError as error:
                log.debug("%s", error, extra={"job": self.job.id})
            else:
                if connection is not None:
                    return connection
                if state in (link.GONE, link.NEVER):
                    return None
            await asyncio.sleep(pause)
        return None

    async def _hung_up(self, ctl: Ctl) -> None:
        with contextlib.suppress(TimeoutError, ProtocolError):
            async with asyncio.timeout(HANG_UP_S):
                while await ctl.receive() is not None:
                    pass

    # -- change ----------------------------------------------------------------------------------

    async def change(self, wanted: Change, rules: Rules) -> Job:
        """The job as it is then. Raises FailedPrecondition for one that does not run, and what
        `changes.carry_out` raises; then it is as before."""
        async with self._changing:
            self._check_runs()
            timeout_us = changes.time_out(self.job, wanted, rules, self._ran_us())
            limits = await changes.carry_out(
                self.job, wanted, rules, self._tools.launcher, self._tools.enforcement
            )
            self._check_runs()
            spec = dataclasses.replace(self.job.spec, limits=limits.asked, timeout_us=timeout_us)
            self.job = dataclasses.replace(
                self.job, spec=spec, effective=limits.effective, not_enforced=limits.not_enforced
            )
            try:
                # PID 1 is told behind that: whoever takes the job back tells it what is recorded
                await self._tools.records.put(self.job)
            finally:
                if not self._ending:
                    self._await_time_out()
                    self._tell_time_out()
            return self.job

    def _check_runs(self) -> None:
        if self.job.state is not JobState.RUNNING or self._ending:
            raise not_running(self.job, changes.WHAT)

    # -- stop ------------------------------------------------------------------------------------

    async def stop(self, by: str) -> Job:
        """The ended job. Raises FailedPrecondition for one that has ended already, and `fault`."""
        if self._ending:
            await self.wait()
            move(self.job, JobState.STOPPING)  # raises, with the state it has
        if self.mark_stopping(by):
            if self._ctl is not None:
                self._ctl.stop(self._tools.grace_us)
            elif self._group is not None and not self._launched:
                # before the go; when it is too late for that, `_hold` tells PID 1
                self._help(self._tools.launcher.cancel(self.job.id))
            if self._group is not None:  # else it is begun again soon, and looks at the state
                self._help(self._backstop(self._tools.grace_us))
            # in order behind what was put before, and before the final record, which alone must be
            # durable: the job is being stopped, whatever the disk says
            try:
                await self._tools.records.put(self.job)
            except JobletError as error:
                log.warning("%s", error, extra={"job": self.job.id})
        return await self.wait()

    def mark_stopping(self, by: str) -> bool:
        """Whether it is the first who asks. Raises FailedPrecondition when it has ended."""
        if self.job.state is JobState.STOPPING:
            return False
        self.job = move(self.job, JobState.STOPPING, stop_by=by)
        return True

    async def _backstop(self, after_us: int, *, overdue: bool = False) -> None:
        """A PID 1 that does not end the job in time is ended with its scope, by systemd."""
        await asyncio.sleep(max(0, after_us) / 1e6 + BACKSTOP_S)
        if self._ending:
            return
        events.not_answering(self.job)
        self._overdue = self._overdue or overdue
        await self._insist(self._tools.launcher.stop, self.job.id)

    # -- the end ---------------------------------------------------------------------------------

    async def _judge(self, record: ExitRecord) -> End:
        witness = Witness()
        if record.ended_by == "signal" and not self.job.stop_by:
            witness = await self._tools.witness(self.job.unit)
        return ending.from_record(self.job, record, witness)

    async def _end_from_results(self) -> None:
        """PID 1 is gone: its files are final, and what is in the pipes is read out if we hold
        them."""
        files = await results.fetch(self.job.id, self._tools.launcher)
        with results.of(files) as found:
            record = found.record
            job_log = await self._insist(self._open_log)
            # STOPPING alone says nothing: it may have been stopped before its go
            ran = self.job.state is JobState.RUNNING or self.job.started_us > 0
            went = self._went or ran
            missing = []
            for name, number in STREAM_NUMBERS.items():
                if number not in self.job.spec.streams or number in job_log.attached:
                    continue
                if (rest := found.rest(name)) is not None:
                    await self._insist(job_log.import_rest, number, *rest)
                else:
                    missing.append(number)
            # it was ended before it put aside what was in the pipes
            if missing and not found.counted and (record.started_us if record else went):
                await self._insist(job_log.lose_tail, missing)
            if record is not None:
                await self._end(await self._judge(record), job_log, record)
            elif found.unreadable and not self.job.stop_by:
                detail = "its exit record cannot be read"
                await self._end(End(Reason.LOST, detail=detail), job_log)
            else:
                end = ending.without_record(
                    self.job,
                    same_boot=self._same_boot,
                    went=went,
                    stopping=self.unit_stopping,
                )
                if end.reason is Reason.LAUNCH_FAILED and self._launch_error is not None:
                    end = _not_launched(self._launch_error)
                await self._end(end, job_log)
        await self._clean_up()

    async def _end(self, end: End, job_log: JobLog, record: ExitRecord | None = None) -> None:
        """Everything read, everything on disk, then the world hears of it."""
        for stream in self.job.spec.streams:
            await self._insist(job_log.finish, stream)
        if self.job.spec.log_driver == JOURNALD:
            await self._sync_journal()
        self._ending = True
        self._may_have_failed = (
            record is None
            or record.ended_by != ""
            or bool(self.job.stop_by)
            or self._overdue
            or self.unit_stopping
        )
        usage = dict(record.usage) if record else {}
        if self._overdue and (record is None or record.ended_by == "signal"):
            # it was systemd's signal, and we who asked for it
            end = End(Reason.TIMEOUT, signal=end.signal, detail="its PID 1 did not answer")
        elif self._given_notice and (record is None or record.ended_by == "signal"):
            detail = "its PID 1 was not understood, so that systemd ended it"
            end = End(Reason.SIGNALLED, signal=end.signal or signal.SIGKILL, detail=detail)
        ended_us = record.ended_us if record and record.ended_us else self._tools.clock_us()
        started_us = record.started_us if record else self.job.started_us
        if self.job.stop_by and not end.by:  # a stop that came meanwhile
            end = End(Reason.STOPPED, code=end.code, signal=end.signal, by=self.job.stop_by)
        job = move(
            self.job,
            end.state,
            end=end,
            started_us=started_us,
            ended_us=ended_us,
            usage=usage,
            pid=0,
        )
        await asyncio.gather(self._insist(job_log.sync), self._insist(self._tools.records.put, job))
        self.job = job
        self._hear_of_the_end()
        self._tools.counts.ended(job)
        events.ended(job)

    async def _sync_journal(self) -> None:
        """Who hears of the end can read what was printed before it. Not at any price: a journal
        that does not answer has the rest a little later, or says nothing of it."""
        try:
            async with asyncio.timeout(SYNC_S):
                await self._tools.sync()
        except (JobletError, TimeoutError) as error:
            log.warning("the journal may lack the end: %s", error, extra={"job": self.job.id})

    def _hear_of_the_end(self) -> None:
        """Whoever waits for the final record, which is safe."""
        end = self.job.end
        failed = end is not None and end.reason is Reason.LAUNCH_FAILED
        self._settle(self._launch_error if failed else None)
        self.ended.set()
        self.heard.set()

    async def _insist(self, do: Callable[..., Awaitable[T]], *args: Any, **named: Any) -> T:
        return await patience.insist(self.job.id, do, *args, **named)

    async def _clean_up(self) -> None:
        self.cleaned = await patience.clean_up(
            self.job.id, self._tools.launcher, failed=self._may_have_failed
        )

    def _settle(self, error: JobletError | None) -> None:
        if self.settled.done():
            return
        if error is not None:
            self.settled.set_exception(error)
        else:
            self.settled.set_result(self.job)


def _not_launched(error: JobletError) -> End:
    return End(Reason.LAUNCH_FAILED, step="launch", detail=f"{error.what}: {error.why}")
