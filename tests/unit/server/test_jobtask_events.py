# SPDX-License-Identifier: MIT
# mypy: disable-error-code="unreachable,has-type"
# events are tuples of several shapes, told apart by their first word
"""One job, and everything that can happen to it, in any order: the final record is always true.

The truth is what the job's PID 1 did, which the scripted one knows. Checked at the end, when init
mode is there and the disk has room again:

- the record is final, durable, and tells the end that there was
- a stop that was accepted ends as STOPPED, and one that was refused found a job that had ended
- what the job said is in its log, and where it is not, there is a gap
- the command was not run twice, and an error that the client was given means that it never ran
- nothing is left behind
"""

import asyncio
import contextlib
import dataclasses
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joblet.errors import FailedPrecondition, JobletError, NotFound, ResourceExhausted, Unavailable
from joblet.model import Job, Reason
from joblet.server import recovery
from joblet.server.ending import Witness, from_record
from joblet.server.jobtask import JobTask
from joblet.server.logs import Gap
from tests.unit.server.pid1 import Init, Pid1
from tests.unit.server.support import (
    Disk,
    World,
    impatient,
    job,
    job_id,
    run,
    world,
)

ID = job_id(1)
FULL = ResourceExhausted("record job", "the disk is full")

EVENTS = st.one_of(
    st.sampled_from(
        [
            "start",
            "hang-up",
            "kill",
            "terminate",
            "deaf",
            "stop",
            "away",
            "back",
            "full",
            "room",
            "records",
            "restart",
            "close-streams",
        ]
    ),
    st.tuples(st.just("say"), st.sampled_from(["out", "err"]), st.binary(min_size=1, max_size=9)),
    st.tuples(
        st.just("exit"), st.sampled_from(["", "timeout", "oom", "launch"]), st.integers(0, 3)
    ),
    st.tuples(st.just("turns"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.integers(1, 4)),
)


@dataclasses.dataclass
class Story:
    """What happened."""

    w: World
    disk: Disk
    task: JobTask
    said: dict[str, bytes] = dataclasses.field(default_factory=lambda: {"out": b"", "err": b""})
    stops: list[asyncio.Task[Job]] = dataclasses.field(default_factory=list)
    # with these the record on the disk was STOPPING when a server ended
    must_stop: bool = False
    restarted: bool = False
    unheard: bool = False  # no record was ever durable

    @property
    def pid1(self) -> Pid1 | None:
        return self.w.init.jobs.get(ID)

    async def happen(self, event: str | tuple[str, ...]) -> None:
        kind, *arguments = (event,) if isinstance(event, str) else event
        init, pid1 = self.w.init, self.pid1
        runs = pid1 is not None and pid1.alive and pid1.went and pid1.record is None
        match kind, arguments:
            case "turns", [int(count)]:
                for _ in range(count):
                    await asyncio.sleep(0)
            case "wait", [int(ms)]:
                await asyncio.sleep(ms / 4000)  # threads get on, too
            case "away" | "back", _:
                init.away = kind == "away"
            case "full" | "room", _:
                self.disk.full = kind == "full"
            case "records", _:
                self.w.store.errors.append(FULL)
            case "stop", _:
                self.stops.append(asyncio.ensure_future(self.task.stop("me")))
            case "restart", _:
                await self.restart()
            case "hang-up", _ if pid1:
                pid1.hang_up()
            case "kill", _ if pid1 and pid1.went:
                pid1.kill()
            case "terminate", _ if runs and pid1:
                pid1.terminated()
            case "deaf", _ if pid1:
                pid1.obey = None
            case "start", _ if runs and pid1 and not pid1.started_us:
                pid1.start()
            case "close-streams", _ if runs and pid1 and pid1.started_us:
                pid1.hang_up_streams()
            case "say", [str(stream), bytes(data)] if runs and pid1 and pid1.started_us:
                if pid1.pipes[stream][1] >= 0:
                    pid1.say(data, stream)
                    self.said[stream] += data
            case "exit", [str(cause), int(code)] if runs and pid1:
                if pid1.started_us and cause != "launch":
                    pid1.end(ended_by=cause, code=code, oom_own=True)
                elif cause == "launch" and not pid1.started_us:
                    pid1.end(ended_by="launch", step="execve", errno=2, started_us=0)

    async def restart(self) -> None:
        """A clean stop, and the next server."""
        if self.unheard:
            return
        await self.w.let_go()
        for stop in self.stops:
            stop.cancel()
        self.stops.clear()
        await self.w.records.set_meta("behind", "everything that was put")
        self.w.init.away, self.w.store.errors = False, []
        self.restarted = True
        directories = await self.w.init.list_jobs()
        states = {found: state for found, (state, _) in directories.items()}
        try:
            record = await self.w.recorded()
        except NotFound:
            self.unheard = True
            assert self.task.settled.cancelled()
            return
        self.must_stop = self.must_stop or bool(record.stop_by)
        unfinished = [] if record.final else [record]
        todo = recovery.actions(unfinished, [ID] if record.final else [], states)
        for action in todo:
            match action:
                case recovery.TakeBack(found):
                    self.task = self.w.taken_back(found)
                case recovery.ReadResults(found) | recovery.Vanished(found):
                    self.task = self.w.results(found)
                case recovery.CleanUp(found):
                    await self.w.init.clean_up(found)
                case other:
                    # a final record whose PID 1 waits: it is told, and goes
                    assert isinstance(other, recovery.Acknowledge)
                    pid1 = self.pid1
                    assert pid1 is not None
                    assert pid1.record is not None
                    pid1._leave(pid1.record)
                    await self.w.init.clean_up(ID)

    async def calm(self) -> None:
        """Whatever was in the way is gone, and the job comes to its end."""
        self.w.init.away, self.disk.full, self.w.store.errors = False, False, []
        while not self.unheard and not (await self.final()):
            pid1 = self.pid1
            if pid1 is not None and pid1.alive and pid1.went and pid1.record is None:
                if not pid1.started_us:
                    pid1.start()
                pid1.end(code=0)
            await asyncio.sleep(0.0005)
        await self.w.over()

    async def final(self) -> bool:
        with contextlib.suppress(NotFound):
            return (await self.w.recorded()).final
        return self.task.ended.is_set()

    async def check(self) -> None:
        ran = [pid1 for pid1 in self.w.init.all if pid1.started_us]
        assert len(ran) <= 1
        stops = await asyncio.gather(*self.stops, return_exceptions=True)
        settled = self.task.settled
        try:
            final = await self.w.recorded()
        except NotFound:
            # no trace: nobody was told of a job
            assert settled.cancelled() or isinstance(settled.exception(), JobletError)
            assert not ran
            assert not await self.w.logs.list() or self.unheard
            return
        assert final.final
        assert final.end is not None
        assert final.state is final.end.state
        if self.task.ended.is_set():
            assert final == self.task.job
        if not self.restarted and isinstance(settled.exception(), JobletError):
            assert not ran
            assert final.end.reason in {Reason.LAUNCH_FAILED, Reason.STOPPED}

        accepted = [stop for stop in stops if isinstance(stop, Job)]
        for stop in stops:
            if isinstance(stop, Job):
                assert stop == final
            else:
                assert isinstance(stop, FailedPrecondition)
                assert f"(status: {final.state})" in str(stop)
        if accepted or self.must_stop:
            assert (final.end.reason, final.end.by) == (Reason.STOPPED, "me")
        else:
            self.check_reason(final, ran)
        await self.check_log()
        assert ID not in self.w.init.jobs or not self.task.cleaned

    def check_reason(self, final: Job, ran: list[Pid1]) -> None:
        assert final.end is not None
        last = self.w.init.all[-1] if self.w.init.all else None
        record = last.record if last else None
        if record is not None and last is not None and last.went:
            told = from_record(dataclasses.replace(final, stop_by=""), record, Witness(blind=False))
            assert final.end.reason is told.reason
            assert (final.end.code, final.end.signal) == (told.code, told.signal)
        elif ran:
            assert (final.end.reason, final.end.signal) == (Reason.SIGNALLED, 9)
        else:
            assert final.end.reason in {Reason.LAUNCH_FAILED, Reason.SIGNALLED}

    async def check_log(self) -> None:
        log = await self.w.logs.open(ID)
        assert log.ended
        assert not log.attached
        gaps = {item.stream for item in await self.w.said() if isinstance(item, Gap)}
        for number, name in enumerate(("out", "err"), 1):
            text = await self.w.text(stream=number)
            if number in gaps:
                assert any(one.went and one.record is None for one in self.w.init.all)  # killed
                assert self.said[name].startswith(text)
            else:
                assert text == self.said[name]


def prepare(init: Init, *, dead: bool, lost: bool, refused: bool) -> None:
    if refused:
        init.errors["launch"] = [Unavailable("ask init mode", "init mode hung up")]
    if lost:
        init.errors["go-lost"] = [Unavailable("ask init mode", "init mode hung up")]
    if dead:

        def arrive(pid1: Pid1) -> None:
            if len(init.all) == 1:
                pid1.end(ended_by="launch", step="scope", started_us=0)

        init.started = arrive


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    events=st.lists(EVENTS, max_size=14),
    dead=st.booleans(),
    lost=st.booleans(),
    refused=st.just(False) | st.booleans(),
)
def test_whatever_happens_the_record_is_true(
    events: list[str | tuple[str, ...]], dead: bool, lost: bool, refused: bool
) -> None:
    async def main(base: Path, disk: Disk) -> None:
        async with world(base / "world", grace_us=0) as w:
            prepare(w.init, dead=dead, lost=lost, refused=refused)
            story = Story(w, disk, w.new(job()))
            await asyncio.sleep(0)  # it has begun
            for event in events:
                await story.happen(event)
            await story.calm()
            await story.check()

    with impatient() as patch, tempfile.TemporaryDirectory() as directory:
        disk = Disk(patch)
        run(lambda: main(Path(directory), disk))
