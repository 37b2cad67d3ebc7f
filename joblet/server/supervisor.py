# SPDX-License-Identifier: MIT
"""All jobs of this server: their tasks, what clients ask of them, and taking them back at the
start.

A job's task alone writes its state; here is who owns the tasks. Whoever asks gets frozen records:
of a job that lives from its task, of one that has ended from the database.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final

from joblet import link
from joblet.errors import FailedPrecondition, JobletError, NotFound, ResourceExhausted, Unavailable
from joblet.launch.protocol import ProtocolError
from joblet.model import FINAL, Job, JobSpec, JobState, Limits, not_running, unit_name
from joblet.server import admission, audit, events, limits, patience, recovery
from joblet.server.change import WHAT as WHAT_CHANGE
from joblet.server.change import Change, Rules
from joblet.server.ctl import Ctl
from joblet.server.deletion import Deleted, Deletion
from joblet.server.jobtask import JobTask, Tools
from joblet.server.logs import JobLog
from joblet.server.records import Head, Records
from joblet.server.records_deletion import not_ended

log = logging.getLogger(__name__)

# That a job which has just ended has, before it is deleted, for its PID 1 to go and the journal's
# copy to catch up. Neither needs what is deleted.
QUIET_S: Final = 3.0
RETENTION: Final = "retention"  # who deletes, in the audit, where no client asked
DETACH_S: Final = 10.0  # for all tasks together to give their pipes back at a clean stop
# Before the server serves: for jobs that ended meanwhile to be recorded (a full disk is waited out
# longer than that, in the background), and for the PID 1s of those that run to be heard (one that
# is frozen says nothing).
RECORDED_S: Final = 20.0
HEARD_S: Final = 2.0
# After a bug in a job's task it is taken back, with these pauses; if it ran well for long in
# between, they begin anew.
AGAIN_S: Final = (0.1, 1.0, 5.0)
WELL_S: Final = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Defaults and bounds of the configuration. Limits in bytes and percent; 0: none."""

    defaults: Limits
    max_jobs: int
    timeout_us: int
    profile: str
    min_memory: int = limits.MIN_MEMORY


class Supervisor:
    def __init__(
        self,
        records: Records,
        tools: Tools,
        settings: Settings,
        *,
        new_id: Callable[[], str],
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        """step(name): called behind every step of a deletion that a kill could part from the
        next."""
        self._records = records
        self._tools = tools
        self._settings = settings
        self._new_id = new_id
        self._tasks: dict[str, JobTask] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._uids: dict[str, int] = {}  # of every job with a directory, and of those on their way
        self._by_key: dict[tuple[str, str], asyncio.Task[Job]] = {}
        self._closing = False
        self._deletion = Deletion(records, tools.logs, quiet=self._quiet, step=step)
        self.on_change: Callable[[], None] = lambda: None  # how many are running has changed

    # -- what clients ask ------------------------------------------------------------------------

    async def run(self, spec: JobSpec, *, by: str, key: str = "") -> Job:
        """Launch a job; returns when it runs or has ended. With the same key, the same client's
        same job.

        Raises InvalidArgument, FailedPrecondition (a limit that is not enforced, a key whose job
        was deleted), PermissionDenied (its profile), ResourceExhausted, and why the launch failed.
        """
        if not key:
            return await self._run(spec, by, key)
        # two calls with one key at the same time are one launch
        running = self._by_key.get((by, key))
        if running is None:
            running = asyncio.ensure_future(self._run_once(spec, by, key))
            self._by_key[by, key] = running
            running.add_done_callback(lambda _: self._by_key.pop((by, key), None))
        return await asyncio.shield(running)

    async def _run_once(self, spec: JobSpec, by: str, key: str) -> Job:
        known = await self._records.idempotent(by, key)
        if known is None:
            return await self._run(spec, by, key)
        try:
            return await self.get(known)
        except NotFound:
            # what was asked for has been done once: it must not be done again unasked
            raise FailedPrecondition(
                admission.WHAT,
                f"its idempotency key stands for job {known}, which has been deleted",
                hint="to run it once more, take another key",
            ) from None

    async def _run(self, spec: JobSpec, by: str, key: str) -> Job:
        self._check_open()
        permits = self._tools.launcher.permits
        asked = limits.ask(spec.limits, self._settings.defaults, permits.ceilings)
        limits.validate(asked.limits, min_memory=self._settings.min_memory)
        spec = dataclasses.replace(
            spec,
            limits=asked.limits,
            timeout_us=spec.timeout_us or self._settings.timeout_us,
            profile=spec.profile or self._settings.profile,
        )
        admission.validate(spec)
        admission.check_profile(spec.profile, permits)
        job_id = self._new_id()
        path = await asyncio.to_thread(
            admission.find_command,
            spec.command,
            admission.environment(job_id, spec),
            admission.work_dir(spec.work_dir),
        )
        wanted, left_out = self._tools.enforcement.before(asked)
        self._check_open()  # it may have been closed while we looked for the command
        running = self.running()  # without those that have ended and are being cleaned up
        if self._settings.max_jobs and running >= self._settings.max_jobs:
            raise ResourceExhausted(
                admission.WHAT,
                f"{running} jobs are running, as many as joblet.maxConcurrentJobs allows",
                hint="wait until jobs have ended, or raise it",
            )
        uid_base = admission.free_uid_base(set(self._uids.values()), permits.uid_bases)
        self._uids[job_id] = uid_base
        job = Job(
            id=job_id,
            spec=spec,
            state=JobState.INITIALIZING,
            created_us=self._tools.clock_us(),
            created_by=by,
            unit=unit_name(job_id),
            uid_base=uid_base,
            not_enforced=left_out,
        )
        plan = admission.plan(job, path, limits.properties(wanted), grace_us=self._tools.grace_us)
        task = JobTask(job, self._tools, key=key)
        self._tools.counts.began()
        self._start(task, task.run_new(plan, asked, wanted))
        # a client that hangs up does not take its job along
        return await asyncio.shield(task.settled)

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable(admission.WHAT, "the server is stopping", hint="try again")

    async def get(self, job_id: str) -> Job:
        """By id or a prefix that only one job has. Raises NotFound."""
        task = self._tasks.get(job_id)
        if task is not None and not task.job.final:  # one that has ended may have been deleted
            return task.job
        found = await self._records.get(job_id)
        task = self._tasks.get(found.id)
        return task.job if task is not None else found

    async def status(self, job_id: str) -> Job:
        """The same, with what holds for it now: a sysadmin may have changed its unit."""
        return self._tools.enforcement.now(await self.get(job_id))

    async def heads(self, cursor: int, limit: int, *, newest_first: bool) -> Sequence[Head]:
        """Numbers and ids of up to `limit` jobs, behind or before `cursor`; see Records.heads."""
        return await self._records.heads(cursor=cursor, limit=limit, newest_first=newest_first)

    def living(self, job_id: str) -> Job | None:
        """The job, if there is a task for it."""
        task = self._tasks.get(job_id)
        return task.job if task is not None else None

    async def load(self, ids: Collection[str]) -> Mapping[str, Job]:
        """The jobs with these ids, as far as they are there."""
        return await self._records.load(ids)

    async def stop(self, job_id: str, *, by: str) -> Job:
        """The job, ended. Raises NotFound, FailedPrecondition for one that has ended already."""
        job = await self.get(job_id)
        task = self._tasks.get(job.id)
        if task is None:
            job = await self.get(job.id)  # it may have ended while we looked
            raise not_running(job)
        if task.fault is not None:
            await self._stop_unattended(task, by)
        return await task.stop(by)

    async def change(self, job_id: str, change: Change) -> Job:
        """Limits and time-out of a running job changed, as far as they are named.

        Raises NotFound, InvalidArgument, PermissionDenied (a ceiling), FailedPrecondition (it does
        not run, or the kernel did not take it: then it is as before), Unavailable.
        """
        job = await self.get(job_id)
        task = self._tasks.get(job.id)
        if task is None or task.fault is not None:
            job = await self.get(job.id)  # it may have ended while we looked
            raise not_running(job, WHAT_CHANGE)
        settings = self._settings
        rules = Rules(
            defaults=settings.defaults,
            ceilings=self._tools.launcher.permits.ceilings,
            min_memory=settings.min_memory,
            timeout_us=settings.timeout_us,
        )
        return await task.change(change, rules)

    async def _stop_unattended(self, task: JobTask, by: str) -> None:
        """Ends the scope of a job that was given up; then what it left is tried once more."""
        job_id = task.job.id
        task.mark_stopping(by)
        await self._tools.launcher.stop(job_id)
        if task.fault is not None:  # else another client asked, too
            task.fault = None
            task.ended.clear()
            self._own(self._see_through(task, task.run_again(), again=False), job_id)

    async def delete(self, job_id: str) -> Job:
        """The job that was deleted: its record and its log are gone. By id, or by a prefix that
        only one job has.

        Raises NotFound, FailedPrecondition for one that has not ended, and why its log cannot be
        removed; then the job is there as before.
        """
        job = await self.get(job_id)
        if not job.final and job.id not in self._tasks:
            job = await self.get(job.id)  # it may have ended while we looked
        if not job.final:
            raise not_ended(job.id, job.state)
        await self._deletion.delete(job.id)
        return job

    async def delete_ended(self, tell: Callable[[Sequence[str]], None]) -> Deleted:
        """Delete every job that has ended; see Deletion.delete_ended."""
        return await self._deletion.delete_ended(tell)

    async def expire(self, job_id: str) -> None:
        """Delete a job because its log has outlived its time, not because a client asked.

        An id, no prefix. Audited. Raises as `delete` does.
        """

        def tell(result: str) -> None:
            audit.record(RETENTION, "this server", "DeleteJob", result, job=job_id)

        try:
            await self._deletion.delete(job_id)
        except JobletError as error:
            tell(str(error))
            raise
        except asyncio.CancelledError:
            tell("not waited for: the server was stopped")
            raise
        tell("ok")

    async def _quiet(self, ids: Collection[str]) -> None:
        """Returns when the tasks of these jobs, which have ended, are over; bounded."""
        tasks = [self._tasks[job_id] for job_id in ids if job_id in self._tasks]
        await _late([task.left for task in tasks], QUIET_S)

    async def open_log(self, job_id: str) -> JobLog:
        """The log of a job that has a record. Raises NotFound, also when only the log is gone."""
        job = await self.get(job_id)
        if not job.final and job.id not in self._tasks:
            job = await self.get(job.id)  # it may have ended while we looked
        # one that has ended has its log, or will never have one
        task = self._tasks.get(job.id)
        lives = task is not None and not task.job.final
        try:
            job_log = await self._tools.logs.open(job.id, create=lives)
        except JobletError:
            await self.get(job.id)  # raises NotFound if it was deleted while we looked
            raise
        if not lives:
            await self._still_there(job.id)
        job_log.hide(job.spec.secret_environment.values())
        task = self._tasks.get(job.id)
        if task is None:
            await self._close_log(job, job_log)
        elif task.fault is not None:
            job_log.give_up(task.fault)
        return job_log

    async def _still_there(self, job_id: str) -> None:
        """Behind the opening of a log: whether its job was deleted meanwhile; then what the opening
        made anew must not stay. Raises NotFound."""
        try:
            await self.get(job_id)
        except NotFound:
            with contextlib.suppress(JobletError):  # the deletion itself may be at it
                await self._tools.logs.remove(job_id)
            raise

    async def _close_log(self, job: Job, job_log: JobLog) -> None:
        """A log that nobody writes has an end, also when its disk lost that."""
        if job_log.ended:
            return
        if not (await self.get(job.id)).final:
            job_log.give_up(_unattended(job.id))
            return
        if job_log.expected is None:
            await job_log.expect(job.spec.streams)
        for stream in job_log.expected or ():
            await job_log.finish(stream)

    async def wait_ended(self, job_id: str) -> None:
        """Returns when the job's final record is safe; at once for a job that has none to come.

        Raises FailedPrecondition for a job that nobody attends to any more.
        """
        task = self._tasks.get(job_id)
        if task is not None:
            await task.wait()

    def output_trouble(self, job_id: str) -> str:
        """Why reading a job's output rests at the moment; "" if it does not."""
        trouble = self._tools.logs.trouble(job_id)
        return "" if trouble is None else trouble.text

    def running(self) -> int:
        """Jobs that have not ended."""
        return sum(1 for task in self._tasks.values() if not task.job.final)

    def unit_stopping(self, unit: str) -> None:
        """systemd has begun to stop a unit; by itself it says nothing about why."""
        task = self._tasks.get(unit.removeprefix("joblet-").removesuffix(".scope"))
        if task is not None and not task.job.stop_by and not task.unit_stopping:
            task.unit_stopping = True
            log.debug("systemd is stopping %s", unit, extra={"job": task.job.id})

    # -- tasks -----------------------------------------------------------------------------------

    def _start(self, task: JobTask, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[task.job.id] = task
        self._own(self._see_through(task, work), task.job.id)
        self.on_change()

    def _own(self, work: Coroutine[Any, Any, None], job_id: str) -> None:
        async def owned() -> None:
            try:
                await work
            except Exception:
                log.exception("lost sight of what was left of the job", extra={"job": job_id})

        running = asyncio.create_task(owned(), name=f"job {job_id}")
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _see_through(
        self, task: JobTask, work: Coroutine[Any, Any, None], *, again: bool = True
    ) -> None:
        """A bug of ours does not cost a job: its task is begun again, and at last given up.

        Given up, the job itself runs on, its record stays as it is, and the next server takes it
        back.
        """
        job_id = task.job.id
        clock = asyncio.get_running_loop().time
        pauses = iter(AGAIN_S if again else ())
        while True:
            begun = clock()
            try:
                await work
                break
            except Exception:
                log.exception("a fault in the task of the job", extra={"job": job_id})
            if clock() - begun > WELL_S:
                pauses = iter(AGAIN_S)
            pause = next(pauses, None)
            if pause is None and task.job.final:
                break  # what is left of it is the next server's to remove
            if pause is None:
                await self._give_up(task)
                return
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                task.settled.cancel()
                raise
            work = task.run_again()
        self._tasks.pop(job_id, None)
        task.left.set()
        self.on_change()
        if task.cleaned:  # else init mode would refuse its ids to every other job
            self._uids.pop(job_id, None)

    async def _give_up(self, task: JobTask) -> None:
        error = _unattended(task.job.id)
        log.error("%s", error, extra={"job": task.job.id})
        task.give_up(error)
        try:
            job_log = await self._tools.logs.open(task.job.id, create=False)
        except JobletError as no_log:
            log.warning("%s", no_log, extra={"job": task.job.id})
        else:
            job_log.give_up(error)

    async def close(self) -> None:
        """A clean stop: every task gives its pipes back and hangs up. Bounded."""
        self._closing = True
        deleting = asyncio.ensure_future(self._deletion.close())
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=DETACH_S)
        for job_task in self._tasks.values():
            job_task.left.set()  # nobody works on it any more
        await deleting

    # -- recovery --------------------------------------------------------------------------------

    async def recover(self, boot_id: str) -> None:
        """Every record true again: jobs that run are taken back, those that ended are recorded.

        Returns when that is done, but for what takes too long: such a job is served as its record
        says, and its end recorded when it can be.
        """
        await self._deletion.finish()
        await self._report_orphans()
        directories = await self._tools.launcher.list_jobs()
        unfinished = await self._records.load_unfinished()
        boots = await self._records.boots()
        finished = await self._finished(directories.keys() - {job.id for job in unfinished})
        self._uids.update({job: uid for job, (_, uid) in directories.items() if uid >= 0})
        states = {job: state for job, (state, _) in directories.items()}
        todo = recovery.actions(unfinished, finished, states)
        to_end: list[JobTask] = []
        to_hear: list[JobTask] = []
        for action in todo:
            match action:
                case recovery.TakeBack(job):
                    task = JobTask(job, self._tools)
                    to_hear.append(task)
                    self._start(task, task.run_taken_back())
                case recovery.ReadResults(job) | recovery.Vanished(job):
                    task = JobTask(job, self._tools)
                    to_end.append(task)
                    same_boot = boots.get(job.id) == boot_id
                    self._start(task, task.run_results(same_boot=same_boot))
                case recovery.Acknowledge(job_id):
                    self._own(self._acknowledge(job_id), job_id)
                case recovery.CleanUp(job_id):
                    self._own(self._remove(job_id), job_id)
                case recovery.Abandon(job_id):
                    self._own(self._abandon(job_id), job_id)
        late = await _late([task.ended for task in to_end], RECORDED_S)
        late += await _late([task.heard for task in to_hear], HEARD_S)
        if late:
            log.warning("%d of them take their time, and are served as their records say", late)
        taken_back = sum(isinstance(action, recovery.TakeBack) for action in todo)
        ended = sum(isinstance(action, recovery.ReadResults) for action in todo)
        events.taken_back(taken_back, ended)

    async def _report_orphans(self) -> None:
        """Logs without a record. A deletion leaves none, so they are not ours to remove: with a
        database from a backup every later job's log is one."""
        try:
            orphans = set(await self._tools.logs.list()) - await self._records.ids()
        except JobletError as error:
            log.warning("%s", error)
        else:
            events.logs_without_record(sorted(orphans))

    async def _finished(self, job_ids: Sequence[str] | set[str]) -> list[str]:
        found = []
        for job_id in job_ids:
            with contextlib.suppress(NotFound):
                if (await self._records.get(job_id)).state in FINAL:
                    found.append(job_id)
        return found

    async def _acknowledge(self, job_id: str) -> None:
        """The record is committed; the PID 1 that waits for somebody to know it may go."""
        try:
            _, connection = await self._tools.launcher.connect(job_id)
            if connection is not None:
                ctl = Ctl(connection)
                try:
                    link.close_all(list((await ctl.hello() or {}).values()))
                    # whatever it says: there is nothing to be learned from it
                    ctl.acknowledge()
                    while await ctl.receive() is not None:
                        ctl.acknowledge()
                finally:
                    ctl.close()
        except ProtocolError as error:
            log.error("its PID 1 is not understood: %s", error, extra={"job": job_id})
            await patience.insist(job_id, self._tools.launcher.stop, job_id)
        except JobletError as error:
            log.warning("%s", error, extra={"job": job_id})
        await self._remove(job_id)

    async def _abandon(self, job_id: str) -> None:
        await patience.insist(job_id, self._tools.launcher.stop, job_id)
        await self._remove(job_id)

    async def _remove(self, job_id: str) -> None:
        if await patience.clean_up(job_id, self._tools.launcher):
            self._uids.pop(job_id, None)


def _unattended(job_id: str) -> FailedPrecondition:
    # no Unavailable or Internal: clients would try for ever
    return FailedPrecondition(
        f"see job {job_id} through",
        "the server lost sight of it by a fault of its own; the job and its output are kept",
        hint="restart joblet.service, which takes it up again, and report what its journal says",
    )


async def _late(events: Sequence[asyncio.Event], timeout_s: float) -> int:
    """Waits for all of them, so long together; how many are not there."""
    try:
        async with asyncio.timeout(timeout_s):
            for event in events:
                await event.wait()
    except TimeoutError:
        pass
    return sum(not event.is_set() for event in events)
