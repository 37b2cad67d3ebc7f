# SPDX-License-Identifier: MIT
"""One server's world without init mode and systemd: real records, real logs, real limits."""

import asyncio
import contextlib
import dataclasses
import errno
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
from google.protobuf.message import Message

from joblet.errors import NotFound
from joblet.launch.plan import Plan
from joblet.metrics import Registry
from joblet.model import JOURNALD, Job, JobSpec, JobState, Limits, Reason, unit_name
from joblet.server import jobtask, patience
from joblet.server import supervisor as supervising
from joblet.server.counts import JobCounts
from joblet.server.ending import Witness
from joblet.server.jobtask import JobTask, Tools
from joblet.server.launcher import Launcher
from joblet.server.limits import Asked, Enforcement
from joblet.server.logs import Chunk, Gap, JobLog, LogMetrics, LogStore, core, recovery
from joblet.server.logs import Settings as ReaderSettings
from joblet.server.records import Records
from joblet.server.supervisor import Settings, Supervisor
from joblet_pb import joblet_pb2 as pb
from tests.unit.server.pid1 import Init, Pid1

NOTHING: Final = Limits()
GRACE_US: Final = 60_000_000  # no test waits for it
QUICK: Final = ReaderSettings(pace_s=0, retry_first_s=0.001, retry_last_s=0.002)
BOOT: Final = "5c9b8a4e-0000-4000-8000-000000000000"
OTHER_BOOT: Final = "77777777-0000-4000-8000-000000000000"


def job_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def job(number: int = 1, **more: Any) -> Job:
    spec = more.pop("spec", JobSpec("true"))
    more.setdefault("state", JobState.INITIALIZING)
    return Job(
        id=job_id(number),
        spec=spec,
        created_us=number,
        created_by="tester",
        unit=unit_name(job_id(number)),
        uid_base=0x70000000 + 65536 * number,
        **more,
    )


def plan_of(job: Job) -> Plan:
    return Plan(
        job=job.id, path="/usr/bin/true", argv=("true",), env={}, uid_base=job.uid_base,
        merge=job.spec.merge, journal=job.spec.log_driver == JOURNALD,
    )  # fmt: skip


def log_metrics() -> LogMetrics:
    return LogMetrics.of(Registry(lambda: 0.0))


def started(pid1: Pid1) -> None:
    """For Init.started: a command that begins at once."""
    pid1.start()


def ends_stopped(w: "World", task: JobTask) -> None:
    """The client "me" stopped it, and nothing is left of it."""
    assert task.job.state is JobState.STOPPED
    assert task.job.end is not None
    assert (task.job.end.reason, task.job.end.by) == (Reason.STOPPED, "me")
    assert w.init.jobs == {}


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run an async test; whatever hangs is cut off with a traceback of where."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main(), 40)

    return asyncio.run(bounded())


def decoded(answer: Message | bytes) -> pb.DataChunk:
    """A chunk as the client sees it."""
    encoded = answer if isinstance(answer, bytes) else answer.SerializeToString()
    return pb.DataChunk.FromString(encoded)


async def until(true: Callable[[], object]) -> None:
    """Wait for what other tasks and threads bring about."""
    pause = 0.0
    while not true():
        await asyncio.sleep(pause)
        pause = min(0.002, pause + 0.0001)


class Disk:
    """A disk that can be full for the logs' indexes, and broken for the records."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.refused = 0
        really = recovery.append

        def append(*args: Any) -> None:
            self.check()
            really(*args)

        for module in (core, recovery):
            patch.setattr(module, "append", append)

    def check(self) -> None:
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")


class Store:
    """The records, which a test can make fail, or wait."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.errors: list[Exception] = []  # raised once each
        self.puts: list[Job] = []
        self.gate: asyncio.Event | None = None

    def put(self, job: Job, *, key: str = "") -> Any:
        self.puts.append(job)
        if self.errors:
            return self._refuse(self.errors.pop(0))
        durable = self.records.put(job, key=key)
        return self._later(self.gate, durable) if self.gate else durable

    async def _refuse(self, error: Exception) -> None:
        raise error

    async def _later(self, gate: asyncio.Event, durable: Any) -> None:
        try:
            await gate.wait()
        except BaseException:
            durable.close()
            raise
        await durable


@dataclasses.dataclass
class World:
    """Everything that a job's task talks to, and the tasks that a test has started."""

    base: Path
    init: Init
    store: Store
    logs: LogStore
    tools: Tools
    clock: Iterator[int]
    witnessed: Witness = dataclasses.field(default_factory=lambda: Witness(blind=False))
    syncs: int = 0
    copies: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = dataclasses.field(default_factory=list)

    @property
    def records(self) -> Records:
        return self.store.records

    def new(self, job: Job, *, key: str = "") -> JobTask:
        """A job that is launched now."""
        task = JobTask(job, self.tools, key=key)
        self.own(task.run_new(plan_of(job), Asked(NOTHING, frozenset()), NOTHING))
        return task

    def taken_back(self, job: Job) -> JobTask:
        task = JobTask(job, self.tools)
        self.own(task.run_taken_back())
        return task

    def results(self, job: Job, *, same_boot: bool = True) -> JobTask:
        task = JobTask(job, self.tools)
        self.own(task.run_results(same_boot=same_boot))
        return task

    def own(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def over(self) -> None:
        """All tasks have come to their own end. Raises what they raised."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def let_go(self) -> None:
        """A clean stop of the server."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def pid1(self, number: int = 1) -> Pid1:
        return self.init.jobs[job_id(number)]

    async def recorded(self, number: int = 1) -> Job:
        return await self.records.get(job_id(number))

    async def durable(self, state: JobState, number: int = 1) -> Job:
        """The record, once it is on the disk with this state."""
        while True:
            with contextlib.suppress(NotFound):
                if (found := await self.recorded(number)).state is state:
                    return found
            await asyncio.sleep(0)

    async def said(self, number: int = 1) -> list[Chunk | Gap]:
        """The log of a job as it is now."""
        log = await self.logs.open(job_id(number))
        return [item async for item in log.follow(follow=False)]

    async def text(self, number: int = 1, stream: int = 1) -> bytes:
        items = await self.said(number)
        return b"".join(i.data for i in items if isinstance(i, Chunk) and i.stream == stream)

    def cgroup(self, number: int = 1) -> Path:
        """The cgroup of a job, whose files a test writes."""
        path = self.base / "cgroup" / "joblet.slice" / unit_name(job_id(number))
        path.mkdir(parents=True, exist_ok=True)
        return path


@contextlib.contextmanager
def jobs_of(base: Path) -> Iterator[Init]:
    """Init mode and its jobs, which outlive a server."""
    base.mkdir(exist_ok=True)
    (base / "jobs").mkdir(exist_ok=True)
    init = Init(base / "jobs")
    try:
        yield init
    finally:
        init.leave()


@contextlib.asynccontextmanager
async def world(
    base: Path, *, init: Init | None = None, boot: str = BOOT, **tools: Any
) -> AsyncIterator[World]:
    """init: of a server before this one, whose jobs are still there."""
    base.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test may block
    (base / "jobs").mkdir(exist_ok=True)
    (base / "cgroup").mkdir(exist_ok=True)
    (base / "cgroup" / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    clock = itertools.count(1_000_000)
    records = await Records.open(base / "joblet.db")
    records.boot(boot)
    logs = LogStore(
        base / "logs",
        base / "stage",
        clock_us=lambda: next(clock),
        settings=QUICK,
        readers=1,
        boot_id=boot,
    )
    await logs.start()
    mine = init is None
    init = init or Init(base / "jobs")
    store = Store(records)

    async def witness(unit: str) -> Witness:
        return made.witnessed

    async def sync() -> None:
        made.syncs += 1

    async def copy(job: Job, log: JobLog, offset: int, ended: asyncio.Event) -> None:
        made.copies.append((job.id, offset))

    options: dict[str, Any] = {
        "records": store,
        "logs": logs,
        "launcher": cast(Launcher, init),
        "enforcement": Enforcement(base / "cgroup", refuse=True),
        "clock_us": lambda: next(clock),
        "grace_us": GRACE_US,
        "witness": witness,
        "sync": sync,
        "copy": copy,
        "counts": JobCounts.of(Registry(lambda: 0.0)),
    }
    made = World(base, init, store, logs, Tools(**{**options, **tools}), clock)
    try:
        yield made
    finally:
        await made.let_go()
        await logs.stop()
        await records.close()
        if mine:
            init.leave()


def supervisor(
    world: World,
    *,
    defaults: Limits = NOTHING,
    max_jobs: int = 0,
    profile: str = "default",
    **more: Any,
) -> Supervisor:
    """Its jobs are numbered from 1 on, or behind those that there are."""
    used = len(world.init.all)
    numbers = itertools.count(used + 1)
    settings = Settings(defaults=defaults, max_jobs=max_jobs, timeout_us=0, profile=profile)
    return Supervisor(
        world.records, world.tools, settings, new_id=lambda: job_id(next(numbers)), **more
    )


async def all_jobs(supervisor: Supervisor) -> list[Job]:
    """All jobs, in order of their creation."""
    ids = [job_id for _, job_id in await supervisor.heads(0, 10_000, newest_first=False)]
    found = await supervisor.load(ids)
    return [supervisor.living(job_id) or found[job_id] for job_id in ids]


@contextlib.contextmanager
def impatient() -> Iterator[pytest.MonkeyPatch]:
    """No pauses between tries, and no time for PID 1 beyond the grace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "RETRY_S", (0.0005,))
        patch.setattr(jobtask, "BACKSTOP_S", 0)
        patch.setattr(supervising, "AGAIN_S", (0, 0, 0))
        patch.setattr(supervising, "HEARD_S", 0.01)
        yield patch
