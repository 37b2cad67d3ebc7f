# SPDX-License-Identifier: MIT
"""systemd's manager over the bus: scopes are started, units stopped, killed, changed, watched.

Both modes use it. Init mode, as root, starts and changes; the server, without a privilege, reads
and follows signals. Interface: org.freedesktop.systemd1(5). Must not import dbus_next.

Invariants:
- A job of systemd is waited for by its JobRemoved signal, subscribed to once, before the first
  call. The signal may come before the answer that names the job.
- daemon-reload and daemon-reexec are normal. systemd then announces the removal of every unit,
  between Reloading(true) and Reloading(false): nothing in between is believed, and afterwards
  whoever waits or watches learns the state from a listing. A call that finds nobody on the bus
  waits, within its deadline, for systemd to come back; one that may have been lost on the way is
  made again where making it twice does no harm.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from joblet.errors import (
    AlreadyExists,
    FailedPrecondition,
    JobletError,
    NotFound,
    Unavailable,
)
from joblet.systemd.bus import NAME_HAS_NO_OWNER, SERVICE_UNKNOWN, Bus, BusError, Lost
from joblet.systemd.properties import UNIT_PATH, Property, Variant, unit_of_path, unit_path
from joblet.systemd.signals import Match, Signal
from joblet.systemd.watch import UnitStatus, Watch

SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER_PATH: Final = "/org/freedesktop/systemd1"
MANAGER: Final = f"{SYSTEMD}.Manager"
UNIT: Final = f"{SYSTEMD}.Unit"
SCOPE: Final = f"{SYSTEMD}.Scope"
SLICE: Final = f"{SYSTEMD}.Slice"
JOB: Final = f"{SYSTEMD}.Job"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"

NOBODY: Final = (NAME_HAS_NO_OWNER, SERVICE_UNKNOWN)

# systemd answers in milliseconds, and stands still while it reloads.
CALL_SECONDS: Final = 25.0
# A stop lasts TimeoutStopSec of the unit, and as long again after its SIGKILL.
STOP_SECONDS: Final = 90.0
# Between two tries while systemd is on its way back.
AGAIN_SECONDS: Final = 0.02
RESYNC_AGAIN_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class NoSuchUnit(NotFound):
    """The unit is not loaded: it never was, or it is over and forgotten."""


class JobFailed(FailedPrecondition):
    """systemd's job for the unit ended otherwise than "done"; `result` says how."""

    def __init__(self, what: str, result: str) -> None:
        super().__init__(what, f"systemd's job ended as {result!r}")
        self.result = result


@dataclasses.dataclass(eq=False, slots=True)
class _Waiter:
    """Somebody who waits for the end of a job of one unit."""

    future: asyncio.Future[str]
    wanted: str  # the ActiveState that the job leads to
    job: str = ""  # its object path, as soon as the answer is there
    early: dict[str, str] = dataclasses.field(default_factory=dict)  # ended before that

    def begin(self, job: str) -> None:
        self.job = job
        if job in self.early:
            self.end(self.early[job])

    def removed(self, job: str, result: str) -> None:
        if not self.job:
            self.early[job] = result
        elif job == self.job:
            self.end(result)

    def end(self, result: str) -> None:
        if not self.future.done():
            self.future.set_result(result)

    async def ended(self, what: str, until: float) -> str:
        try:
            async with asyncio.timeout_at(until):
                return await self.future
        except TimeoutError:
            raise Lost(what, "systemd has not ended its job in time") from None


class Manager:
    """systemd, as seen over one bus. `start`, use, `close`; does not own the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, list[_Waiter]] = {}
        self._watches: list[Watch] = []
        self._reloading = False
        self._stale = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, *, jobs: bool = True) -> None:
        """Follow systemd's jobs. Raises Unavailable if there is no systemd on the bus.

        jobs: whether units will be started, stopped or wholly watched. A server does none of it,
        and is spared the signals of every job that systemd has.
        """
        for member in ("JobRemoved", "Reloading") if jobs else ("Reloading",):
            match = Match(SYSTEMD, MANAGER, member, MANAGER_PATH)
            await self._bus.add_match(match, self._manager_signal)
        if not self._bus.owner(SYSTEMD):
            raise Unavailable(
                "follow systemd's units",
                "systemd is not on the bus",
                hint="Joblet runs jobs as units of systemd, which must be PID 1 of this machine",
            )
        await self._subscribe()
        self._bus.on_owner(SYSTEMD, self._owner_changed)
        self._bus.on_resync(self._missed_signals)
        self._keeper = asyncio.create_task(self._keep(), name="systemd resync")

    async def close(self) -> None:
        """Ends every watch; who waits for a job goes on until its deadline."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        for watch in list(self._watches):
            watch.close()

    async def start_scope(
        self,
        name: str,
        properties: Sequence[Property],
        pids: Sequence[int],
        *,
        timeout: float = CALL_SECONDS,  # noqa: ASYNC109
    ) -> None:
        """Make a scope of running processes; returns when systemd's job is done.

        `pids` are numbers of this process's PID namespace, which must be systemd's. Raises
        JobFailed, AlreadyExists, BusError for what systemd refuses, Unavailable. After Lost the
        scope may stand or come to stand: stop it.
        """
        what = f"start {name}"
        until = _now() + timeout
        given = [[item.name, item.variant] for item in properties]
        given.append(["PIDs", Variant("au", list(pids))])
        lost = False
        with self._wait_for(name, "active") as waiter:
            while not waiter.job:
                try:
                    [job] = await self._call(
                        what,
                        "StartTransientUnit",
                        "ssa(sv)a(sa(sv))",
                        [name, "fail", given, []],
                        again=False,
                        until=until,
                    )
                    waiter.begin(job)
                except (AlreadyExists, Lost) as error:
                    if not lost and isinstance(error, AlreadyExists):
                        raise
                    # Did systemd still hear the call that was lost? The name is the caller's
                    # alone, so a scope that stands is the one that was asked for.
                    lost = True
                    await asyncio.sleep(AGAIN_SECONDS)
                    [unit] = await self._units_by_name([name], until=until)
                    if unit.active_state == "active":
                        return
                    if unit.job_id:
                        waiter.begin(_job_path(unit.job_id))
            result = await waiter.ended(what, until)
        if result != "done":
            raise JobFailed(what, result)

    async def stop_unit(
        self,
        name: str,
        mode: str = "replace",
        *,
        timeout: float = STOP_SECONDS,  # noqa: ASYNC109
    ) -> str:
        """Stop a unit and wait until it has stopped; the result of systemd's job, as "done".

        Raises NoSuchUnit, Unavailable, BusError.
        """
        what = f"stop {name}"
        until = _now() + timeout
        with self._wait_for(name, "inactive") as waiter:
            [job] = await self._call(what, "StopUnit", "ss", [name, mode], until=until)
            waiter.begin(job)
            return await waiter.ended(what, until)

    async def kill_unit(self, name: str, who: str, signal: int) -> None:
        """Send a signal to `all` processes of a unit, or to `main` or `control`.

        Raises NoSuchUnit, Unavailable, BusError. Lost: it may have been sent.
        """
        await self._call(
            f"send signal {signal} to {name}", "KillUnit", "ssi", [name, who, signal], again=False
        )

    async def reset_failed(self, name: str) -> None:
        """Let systemd forget that the unit failed. No error if it has forgotten the unit."""
        with contextlib.suppress(NoSuchUnit):
            await self._call(f"reset {name}", "ResetFailedUnit", "s", [name])

    async def set_unit_properties(self, name: str, properties: Sequence[Property]) -> None:
        """Change a running unit, until it stops. Raises NoSuchUnit, Unavailable, BusError."""
        given = [[item.name, item.variant] for item in properties]
        await self._call(f"change {name}", "SetUnitProperties", "sba(sv)", [name, True, given])

    async def get_unit_properties(
        self, name: str, interface: str, names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Properties of a loaded unit, all or those in `names`, as systemd has them.

        `interface` is UNIT, SCOPE or SLICE. What this systemd does not know is not in the result.
        Raises NoSuchUnit, Unavailable, BusError.
        """
        what = f"read the properties of {name}"
        # Reading an object that does not exist makes systemd load a unit of that name, and give
        # its defaults: so ask as well whether it is loaded. Both go out together.
        loaded = self._call(what, "GetUnit", "s", [name])
        values = self._call(
            what, "GetAll", "s", [interface], path=unit_path(name), interface=PROPERTIES
        )
        answers: list[list[Any]] = []
        for answer in await asyncio.gather(loaded, values, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        found: dict[str, Any] = answers[1][0]
        return {key: found[key] for key in names if key in found} if names else found

    async def list_units_by_patterns(self, patterns: Sequence[str]) -> list[UnitStatus]:
        """The loaded units whose names match a shell pattern. Raises Unavailable, BusError."""
        [rows] = await self._call(
            f"list the units {' '.join(patterns)}",
            "ListUnitsByPatterns",
            "asas",
            [[], list(patterns)],
        )
        return [UnitStatus.of(row) for row in rows]

    async def watch(self, prefix: str, *, state: str = "") -> Watch:
        """Follow the units whose names begin with `prefix`. Close the watch when done.

        state: an ActiveState; then only changes into it are told, and snapshots. All events need
        `start` with jobs. Raises Unavailable, BusError.
        """
        for member in () if state else ("UnitNew", "UnitRemoved", "JobNew"):
            match = Match(SYSTEMD, MANAGER, member, MANAGER_PATH)
            await self._bus.add_match(match, self._manager_signal)
        changes = Match(
            SYSTEMD,
            PROPERTIES,
            "PropertiesChanged",
            path_namespace=UNIT_PATH,
            arg0=UNIT,
            glimpse=state,
        )
        await self._bus.add_match(changes, self._unit_signal)
        watch = Watch(
            prefix,
            state=state,
            list_units=lambda: self.list_units_by_patterns([f"{prefix}*"]),
            job_type=self._job_type,
            on_close=self._forget,
        )
        self._watches.append(watch)
        return watch

    def _forget(self, watch: Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)

    def _manager_signal(self, signal: Signal) -> None:
        body = signal.body
        if signal.member == "Reloading":
            [self._reloading] = body
            if not self._reloading:
                self._missed_signals()
        elif self._reloading:
            return
        elif signal.member == "JobRemoved":
            job_id, job, unit, result = body
            for waiter in self._waiting.get(unit, []):
                waiter.removed(job, result)
            for watch in self._watches:
                watch.job_removed(unit, job_id, result)
        elif signal.member == "JobNew":
            job_id, job, unit = body
            for watch in self._watches:
                watch.job_new(unit, job_id, job)
        elif signal.member == "UnitNew":
            for watch in self._watches:
                watch.unit_new(body[0])
        elif signal.member == "UnitRemoved":
            for watch in self._watches:
                watch.unit_removed(body[0])

    def _unit_signal(self, signal: Signal) -> None:
        _, changed, _ = signal.body
        name = unit_of_path(signal.path)
        if name is None or self._reloading or "ActiveState" not in changed:
            return
        job_id, _ = changed.get("Job", (0, "/"))
        for watch in self._watches:
            watch.unit_changed(name, changed["ActiveState"], changed.get("SubState", ""), job_id)

    def _owner_changed(self, owner: str) -> None:
        if owner:
            self._missed_signals()

    def _missed_signals(self) -> None:
        """Whoever sent Reloading(true) and was replaced will not send the other one."""
        self._reloading = False
        self._stale.set()

    async def _keep(self) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._resync()
            except JobletError as error:
                log.warning("Could not catch up with systemd: %s", error)
                self._stale.set()
                await asyncio.sleep(RESYNC_AGAIN_SECONDS)

    async def _resync(self) -> None:
        """Find out what the signals that were missed would have said."""
        await self._subscribe()
        for watch in self._watches:
            watch.resync()
        names = [name for name, some in self._waiting.items() if any(w.job for w in some)]
        if not names:
            return
        for unit in await self._units_by_name(names):
            for waiter in self._waiting.get(unit.name, []):
                if waiter.job and waiter.job != _job_path(unit.job_id):
                    ended = unit.active_state == waiter.wanted or (
                        waiter.wanted == "inactive" and unit.active_state == "failed"
                    )
                    waiter.end("done" if ended else "canceled")

    async def _subscribe(self) -> None:
        """systemd signals only while somebody has asked for it."""
        try:
            await self._call("follow systemd's units", "Subscribe", "", [])
        except BusError as error:
            if error.name != f"{SYSTEMD}.AlreadySubscribed":
                raise

    async def _units_by_name(
        self, names: Sequence[str], *, until: float | None = None
    ) -> list[UnitStatus]:
        """One status for each name, `not-found` and `inactive` for what is not loaded."""
        [rows] = await self._call(
            "list units", "ListUnitsByNames", "as", [list(names)], until=until
        )
        return [UnitStatus.of(row) for row in rows]

    async def _job_type(self, job: str) -> str:
        [kind] = await self._call(
            "read a job's type", "Get", "ss", [JOB, "JobType"], path=job, interface=PROPERTIES
        )
        return str(kind)

    @contextlib.contextmanager
    def _wait_for(self, name: str, wanted: str) -> Iterator[_Waiter]:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), wanted)
        self._waiting.setdefault(name, []).append(waiter)
        try:
            yield waiter
        finally:
            others = self._waiting[name]
            others.remove(waiter)
            if not others:
                del self._waiting[name]

    async def _call(
        self,
        what: str,
        member: str,
        signature: str,
        body: list[Any],
        *,
        path: str = MANAGER_PATH,
        interface: str = MANAGER,
        again: bool = True,
        until: float | None = None,
    ) -> list[Any]:
        """Call systemd. `again`: a call that may have been lost may be made twice.

        `until` is the event loop's time.
        """
        if until is None:
            until = _now() + CALL_SECONDS
        trouble: JobletError | None = None
        while True:
            left = until - _now()
            if trouble is not None and left <= AGAIN_SECONDS:
                raise trouble
            try:
                return await self._bus.call(
                    SYSTEMD, path, interface, member, signature, body, timeout=max(left, 0)
                )
            except BusError as error:
                if error.name not in NOBODY:
                    _raise(what, error)
                trouble = Unavailable(what, "systemd is not on the bus")
            except Lost as error:
                if not again:
                    raise Lost(what, error.why) from None
                # that time ran out says less than what went on before
                if trouble is None or _now() < until:
                    trouble = Lost(what, error.why)
            except Unavailable as error:
                raise trouble or Unavailable(what, error.why, hint=error.hint) from None
            await asyncio.sleep(AGAIN_SECONDS)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _job_path(job_id: int) -> str:
    return f"{MANAGER_PATH}/job/{job_id}"


def _raise(what: str, error: BusError) -> NoReturn:
    """What systemd answers, in our words where callers act on it."""
    match error.name.removeprefix(f"{SYSTEMD}."):
        case "NoSuchUnit":
            raise NoSuchUnit(what, error.why) from None
        case "UnitExists":
            raise AlreadyExists(what, error.why) from None
        case _:
            raise BusError(what, error.why, name=error.name) from None
