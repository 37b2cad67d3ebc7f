# SPDX-License-Identifier: MIT
"""Server mode: its composition root. Order of start, signals, reverse order of stop.

    configuration, log          before anything that could have something to say
    records, log store          a broken disk is found before a client is told anything
    link to init mode, bus      recovery asks init mode what there is
    recovery                    every record true before the first client reads one
    listener, READY

Every stop step has its own time box; what is still under way after it is the next server's to take
back.
"""

import asyncio
import contextlib
import datetime
import functools
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from joblet import __version__, config
from joblet.config import Loaded, LogPersistence, ServerConfig
from joblet.errors import Internal, JobletError
from joblet.metrics import Registry
from joblet.model import Limits
from joblet.server import access, allocator, events
from joblet.server.budgets import Budget, Shared
from joblet.server.counts import JobCounts
from joblet.server.host import Host
from joblet.server.jobtask import Tools
from joblet.server.journal import Channel, Copier
from joblet.server.journal_log import JournalLogs
from joblet.server.launcher import Launcher
from joblet.server.limits import CONTROLLERS, MIB, Enforcement
from joblet.server.load import Load
from joblet.server.logs import (
    Batching,
    Bounds,
    GapKind,
    Keeping,
    LogMetrics,
    LogStore,
    Swept,
)
from joblet.server.records import Records
from joblet.server.rpc import listener, runtimes
from joblet.server.rpc.jobs import JobService
from joblet.server.rpc.monitoring import MonitoringService
from joblet.server.supervisor import Settings, Supervisor
from joblet.server.troubles import Overflows, Troubles
from joblet.server.units import JobUnits
from joblet.systemd import messages, notify
from joblet.systemd.bus import Bus
from joblet.systemd.journal import setup
from joblet.systemd.notify import Notifier
from joblet.systemd.statusline import StatusLine, count
from joblet.systemd.units import Manager

log = logging.getLogger(__name__)

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
DAY_US: Final = 86_400_000_000
STOP_S: Final = 5.0  # of each step of the stop
STORE_S: Final = 90.0  # of the one that moves what is staged to the disk; less than TimeoutStopSec
IDLE_LOGS: Final = 1024  # that keep their files open: more jobs than a host usually runs at once
CALLS_S: Final = 1.0  # that calls under way have when the server stops


def main(environ: Mapping[str, str]) -> int:
    allocator.keep_spare()
    path = config.find(environ, cwd=Path.cwd())
    loaded = config.load(path, environ=environ, machine_id=config.read_machine_id())
    setup(loaded.config.logging.level, loaded.config.logging.format, "joblet", environ=environ)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    for note in loaded.notes:
        log.debug("%s", note)
    config.require_certificates(loaded)
    security = loaded.config.security
    now = datetime.datetime.now(datetime.UTC)
    for warning in access.check_server(
        security.server_cert, security.server_key, security.ca_cert, now=now
    ):
        log.warning("%s", warning, extra={"fields": {"MESSAGE_ID": messages.CERTIFICATE}})
    try:
        return asyncio.run(_run(loaded, notify.from_environment(environ)))
    except asyncio.CancelledError:  # by `_background`, which has said why
        raise Internal("go on", "a task of the server ended", hint="see its journal") from None


async def _run(loaded: Loaded, notifier: Notifier) -> int:
    settings = loaded.config
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    boot_id = BOOT_ID.read_text().strip()
    there = _enforcement(settings).controllers()
    unenforced = [name for name, controller in CONTROLLERS.items() if controller not in there]
    faults: list[JobletError] = []

    def died(error: JobletError) -> None:
        log.critical("%s", error.text)
        faults.append(error)
        stop.set()

    async with contextlib.AsyncExitStack() as stack:
        records = await Records.open(Path(settings.paths.state_dir) / "joblet.db")
        records.boot(boot_id)
        stack.push_async_callback(_bounded, "close the records", records.close)
        registry = Registry(time.monotonic)
        counts, metrics = JobCounts.of(registry), LogMetrics.of(registry)
        bounds = _bounds(settings.log_persistence)
        logs = LogStore(
            settings.paths.logs_dir,
            settings.paths.stage_dir,
            clock_us=_clock_us,
            bounds=bounds,
            batching=Batching(flush_s=settings.log_persistence.flush_interval_us / 1e6),
            rotation_bytes=settings.log_persistence.segment_bytes(),
            sync_s=settings.log_persistence.sync_interval_us / 1e6,
            max_idle_logs=IDLE_LOGS,
            boot_id=boot_id,
            strategy=settings.log_persistence.overflow_strategy,
            on_full=settings.log_persistence.on_full,
            spill=settings.log_persistence.spill_directory,
            on_trouble=Troubles(loop.time).tell,
            on_death=died,
            on_wrote=metrics.wrote,
            on_overflow=Overflows(lambda: logs.staged_bytes, loop.time).tell,
        )
        await logs.start()
        stack.push_async_callback(_bounded, "close the log store", logs.stop, STORE_S)
        launcher = Launcher(settings.paths.init_socket)
        await stack.enter_async_context(_background(launcher.run()))
        notifier.status("starting: waiting for init mode (joblet-init.service)")
        await launcher.wait_up()
        notifier.status("starting: taking back jobs of an earlier server")
        bus = Bus()
        await bus.connect()
        stack.push_async_callback(_bounded, "leave the bus", bus.close)
        manager = Manager(bus)
        await manager.start(jobs=False)
        stack.push_async_callback(_bounded, "leave systemd", manager.close)
        units = JobUnits(manager)
        _feed(metrics, logs, bounds)
        channel = Channel(launcher)
        stack.callback(channel.close)
        supervisor = _supervisor(settings, records, logs, launcher, units, channel, counts)
        counts.running.watch(supervisor.running)
        stack.push_async_callback(_bounded, "let go of the jobs", supervisor.close)
        await stack.enter_async_context(_background(units.follow(supervisor.unit_stopping)))
        await supervisor.recover(boot_id)
        await logs.settle()
        jobs = JobService(
            supervisor,
            JournalLogs(launcher),
            node_id=settings.server.node_id,
            chunk_bytes=settings.buffers.chunk_bytes,
            metrics=metrics,
        )
        host = Host(settings.monitoring.interval_us / 1e6, wall_us=_clock_us)
        host.start()
        stack.push_async_callback(
            _bounded, "look away from the host", lambda: asyncio.to_thread(host.stop)
        )
        monitoring = MonitoringService(
            host, registry, node_id=settings.server.node_id, clock_us=_clock_us
        )
        unary = {**jobs.unary, **monitoring.unary, **runtimes.UNARY}
        server = listener.make(
            settings, unary, jobs.streams, on_stalled=metrics.followers_removed.add
        )
        await server.start()
        stack.push_async_callback(_bounded, "end calls", lambda: server.stop(CALLS_S))
        address = f"{settings.server.address}:{settings.server.port}"
        # not before: a start that fails and is tried again need not say it each time
        refused = settings.limits.on_missing_controller == "refuse"
        events.host_enforces_not(unenforced, refused=refused)
        load = Load(supervisor.running, metrics, loop.time)
        line = StatusLine(notifier, load.line, moving=load.moving)
        supervisor.on_change = line.touch
        # before systemd says so, too: the reason why it is ready stands above it
        log.info("ready, joblet %s on %s, configured by %s", __version__, address, loaded.source)
        notifier.ready(load.line())
        await stack.enter_async_context(_background(line.run()))
        await stack.enter_async_context(_background(_watchdog(notifier)))

        def swept(what: Swept) -> None:
            events.output_expired(what)
            if what.shortened:
                metrics.gap(GapKind.EXPIRED, what.shortened_bytes)

        keeper = logs.keeper(_keeping(settings), expire=supervisor.expire, on_swept=swept)
        await stack.enter_async_context(_background(keeper.run()))
        await stop.wait()
        running = supervisor.running()
        left = f"{count(running, 'job')} left running" if running else "no job is running"
        notifier.stopping(f"stopping; {left}")
        log.info("stopping; %s", left)
    if faults:  # systemd starts a server that reads again; the jobs have kept their pipes
        raise faults[0]
    return 0


def _bounds(settings: LogPersistence) -> Bounds:
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Bounds(
        limit_bytes=settings.stage_bytes(ram),
        limit_chunks=settings.queue_chunks,
        batch_chunks=settings.batch_chunks,
    )


def _keeping(settings: ServerConfig) -> Keeping:
    how = settings.log_persistence
    disk = os.statvfs(settings.paths.logs_dir)
    return Keeping(
        retention_us=how.retention_days * DAY_US,
        max_bytes_per_job=how.max_bytes_per_job,
        max_bytes=how.all_bytes(disk.f_blocks * disk.f_frsize),
        compress=how.compress,
    )


def _feed(metrics: LogMetrics, logs: LogStore, bounds: Bounds) -> None:
    """What the store counts by itself."""
    metrics.queue_bytes.watch(lambda: logs.staged_bytes)
    metrics.queue_chunks.watch(lambda: logs.statistics().staged_chunks)
    metrics.queue_limit_bytes.watch(lambda: bounds.limit_bytes)
    metrics.bytes_in.watch(logs.bytes_moved)
    metrics.chunks_in.watch(lambda: sum(each.chunks for each in logs.statistics().readers))
    for name in LogMetrics.STRATEGIES:
        metrics.overflow[name].watch(functools.partial(_of, logs.overflow, name))
    for kind in (GapKind.SAMPLED, GapKind.DROPPED):
        metrics.gaps[kind].watch(functools.partial(_of, logs.left_out, f"{kind} gaps"))
        metrics.gap_bytes[kind].watch(functools.partial(_of, logs.left_out, f"{kind} bytes"))
    metrics.pauses.watch(lambda: sum(each.pauses for each in logs.statistics().readers))
    metrics.pauses.watch(lambda: logs.statistics().pauses)
    metrics.logs_open.watch(lambda: logs.statistics().logs_open)


def _of(counts: Callable[[], Mapping[str, int]], name: str) -> int:
    return counts().get(name, 0)


def _enforcement(settings: ServerConfig) -> Enforcement:
    return Enforcement(refuse=settings.limits.on_missing_controller == "refuse")


def _supervisor(
    settings: ServerConfig,
    records: Records,
    logs: LogStore,
    launcher: Launcher,
    units: JobUnits,
    channel: Channel,
    counts: JobCounts,
) -> Supervisor:
    journal = settings.journal
    copier = Copier(
        channel,
        rate=journal.rate,
        burst=journal.burst,
        of_all=Shared(Budget(journal.rate_of_all, journal.burst_of_all, time.monotonic)),
        wall_us=_clock_us,
    )
    tools = Tools(
        records=records,
        logs=logs,
        launcher=launcher,
        enforcement=_enforcement(settings),
        clock_us=_clock_us,
        grace_us=settings.cgroup.grace_us,
        witness=units.witness,
        sync=launcher.sync_journal,
        copy=copier.copy,
        counts=counts,
    )
    defaults = Limits(
        max_cpu=settings.joblet.default_cpu_limit,
        max_memory=settings.joblet.default_memory_limit * MIB,
        max_iobps=settings.joblet.default_io_limit,
        max_tasks=settings.limits.default_max_tasks,
    )
    bounds = Settings(
        defaults=defaults,
        max_jobs=settings.joblet.max_concurrent_jobs,
        timeout_us=settings.joblet.job_timeout_us,
        profile=settings.isolation.profile,
        min_memory=settings.limits.min_memory,
    )
    return Supervisor(records, tools, bounds, new_id=lambda: str(uuid.uuid4()))


async def _watchdog(notifier: Notifier) -> None:
    """The signs of life, from the loop that does the work; none if systemd waits for none."""
    while notifier.interval_us:
        notifier.watchdog()
        await asyncio.sleep(notifier.interval_us / 1e6)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A task of the daemon; that it ends by itself is a bug, and ends the daemon."""
    owner = asyncio.current_task()

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and owner is not None:
            log.critical("a task of the server ended: %r", task.exception())
            owner.cancel()

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.remove_done_callback(ended)
        task.cancel()
        await asyncio.wait([task], timeout=STOP_S)


async def _bounded(
    what: str, step: Callable[[], Awaitable[None]], seconds: float | None = None
) -> None:
    """seconds: STOP_S unless a step needs longer."""
    seconds = STOP_S if seconds is None else seconds
    try:
        async with asyncio.timeout(seconds):
            await step()
    except TimeoutError:
        log.error("could not %s within %g s", what, seconds)
    except Exception:
        log.exception("could not %s", what)


def _clock_us() -> int:
    return time.time_ns() // 1000
