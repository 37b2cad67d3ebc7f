# SPDX-License-Identifier: MIT
"""Changes of a running job: what is set, read back, taken back, recorded, and told its PID 1."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from joblet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from joblet.model import JobSpec, JobState, Limits
from joblet.server import change as changes
from joblet.server.admission import Permits
from joblet.server.change import Change, Rules
from joblet.server.limits import MIB, MIN_MEMORY
from joblet.server.supervisor import Supervisor
from tests.unit.server.pid1 import Pid1
from tests.unit.server.support import (
    BOOT,
    World,
    job,
    job_id,
    jobs_of,
    run,
    supervisor,
    until,
    world,
)

MINUTE = 60_000_000
HOUR = 60 * MINUTE
pytestmark = pytest.mark.usefixtures("no_leaks", "patch")

FILES = {
    "MemoryMax": "memory.max",
    "MemoryHigh": "memory.high",
    "MemorySwapMax": "memory.swap.max",
    "TasksMax": "pids.max",
    "CPUWeight": "cpu.weight",
    "AllowedCPUs": "cpuset.cpus",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "world"


def kernel(cgroup: Path, properties: Mapping[str, Any]) -> None:
    """Takes everything."""
    for name, value in properties.items():
        if name == "CPUQuotaPerSecUSec":
            text = "max" if value is None else str(value // 10)
            (cgroup / "cpu.max").write_text(f"{text} 100000\n")
        elif name in FILES:
            (cgroup / FILES[name]).write_text(f"{'max' if value is None else value}\n")


async def running(w: World, made: Supervisor, **spec: Any) -> Pid1:
    w.init.started = lambda pid1: pid1.start(ran_us=0)
    w.init.on_change = lambda properties: kernel(w.cgroup(), properties)
    for name, value in {"memory.max": 64 * MIB, "memory.swap.max": 0, "pids.max": 100}.items():
        (w.cgroup() / name).write_text(f"{value}\n")
    await made.run(JobSpec("true", **spec), by="alice")
    return w.pid1()


# -- the time-out ----------------------------------------------------------------------------------

RULES = Rules(defaults=Limits(), ceilings={}, min_memory=MIN_MEMORY, timeout_us=0)


@pytest.mark.parametrize(
    ("now", "change", "then"),
    [
        (HOUR, Change(), HOUR),
        (0, Change(), 0),
        (0, Change(timeout_us=HOUR), HOUR),
        (HOUR, Change(timeout_us=11 * MINUTE), 11 * MINUTE),
        (HOUR, Change(timeout_us=30 * MINUTE, more=True), 90 * MINUTE),
        (HOUR, Change(timeout_us=0), 0),
    ],
)
def test_time_out(now: int, change: Change, then: int) -> None:
    made = job(spec=JobSpec("true", timeout_us=now))
    assert changes.time_out(made, change, RULES, 10 * MINUTE) == then


@pytest.mark.parametrize(
    ("now", "change", "why"),
    [
        (0, Change(timeout_us=MINUTE, more=True), "no time-out that could be longer"),
        (HOUR, Change(timeout_us=10 * MINUTE), "it has run for 600 s"),
        (HOUR, Change(timeout_us=366 * 24 * HOUR, more=True), "more than a year"),
    ],
)
def test_a_time_out_that_is_none(now: int, change: Change, why: str) -> None:
    made = job(spec=JobSpec("true", timeout_us=now))
    with pytest.raises(InvalidArgument, match=why):
        changes.time_out(made, change, RULES, 10 * MINUTE)


def test_without_one_it_is_the_servers() -> None:
    rules = dataclasses.replace(RULES, timeout_us=2 * HOUR)
    made = job(spec=JobSpec("true", timeout_us=HOUR))
    assert changes.time_out(made, Change(timeout_us=0), rules, MINUTE) == 2 * HOUR


def test_its_pid1_is_told_behind_the_record(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            pid1 = await running(w, made, timeout_us=HOUR)
            assert pid1.time_outs == []  # it has it from its plan
            changed = await made.change(job_id(1), Change(timeout_us=MINUTE, more=True))
            assert changed.spec.timeout_us == HOUR + MINUTE
            await until(lambda: pid1.time_outs)
            assert pid1.time_outs == [HOUR + MINUTE]
            assert (await w.recorded()).spec.timeout_us == HOUR + MINUTE
            assert w.init.changes == []
            pid1.hang_up()  # and again when it is held again: no, it knows
            await until(lambda: pid1.said_hello == 2)
            pid1.end(code=0)
            await made.wait_ended(job_id(1))
            assert pid1.time_outs == [HOUR + MINUTE]
            await made.close()

    run(main)


def test_the_server_dies_between_the_record_and_its_pid1(base: Path) -> None:
    """The next one tells it."""

    async def main() -> None:
        with jobs_of(base) as init:
            async with world(base, init=init) as w:
                made = supervisor(w)
                pid1 = await running(w, made, timeout_us=HOUR)
                there = await w.durable(JobState.RUNNING)
                spec = dataclasses.replace(there.spec, timeout_us=2 * HOUR)
                await w.records.put(dataclasses.replace(there, spec=spec))
                await made.close()
            async with world(base, init=init) as w:
                made = supervisor(w)
                await made.recover(BOOT)
                await until(lambda: pid1.time_outs)
                assert pid1.time_outs == [2 * HOUR]
                await made.close()

    run(main)


def test_our_own_deadline_moves_along(base: Path) -> None:
    async def main() -> None:
        async with world(base, grace_us=0) as w:
            made = supervisor(w)
            await running(w, made, timeout_us=HOUR)
            made._tasks[job_id(1)]._began -= 3599.9  # so long ago, to be due in a moment
            await made.change(job_id(1), Change(timeout_us=1, more=True))
            await made.wait_ended(job_id(1))  # though its PID 1 lets the time-out pass
            assert w.init.count("stop") == 1
            await made.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("joblet.server.jobtask.BACKSTOP_S", 0)
        run(main)


# -- limits ----------------------------------------------------------------------------------------


def test_limits_are_set_read_back_and_recorded(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w, defaults=Limits(max_tasks=100))
            await running(w, made, limits=Limits(max_memory=64 * MIB))
            change = Change({"max_memory": 128 * MIB, "max_cpu": 200, "max_swap": 0})
            changed = await made.change(job_id(1)[:8], change)
            [properties] = w.init.changes
            assert properties == {
                "CPUQuotaPerSecUSec": 2_000_000, "MemoryMax": 128 * MIB, "MemorySwapMax": 0,
            }  # fmt: skip
            asked = Limits(max_memory=128 * MIB, max_cpu=200, max_swap=0, max_tasks=100)
            assert changed.spec.limits == asked
            assert changed.effective == asked
            assert (await w.recorded()).spec.limits == asked
            assert (await made.status(job_id(1))).effective == asked
            # 0: as if nobody had asked
            await made.change(job_id(1), Change({"max_cpu": 0, "max_tasks": 0}))
            assert w.init.changes[1] == {"CPUQuotaPerSecUSec": None, "TasksMax": 100}
            assert (await made.get(job_id(1))).spec.limits.max_cpu == 0
            # what is named is set, whatever a sysadmin has done meanwhile; what is not stays
            (w.cgroup() / "memory.max").write_text("max\n")
            (w.cgroup() / "pids.max").write_text("77\n")
            again = await made.change(job_id(1), Change({"max_memory": 128 * MIB}))
            assert w.init.changes[2] == {"MemoryMax": 128 * MIB}
            assert (again.effective.max_memory, again.effective.max_tasks) == (128 * MIB, 77)
            await made.close()

    run(main)


def test_the_first_memory_limit_comes_without_swap(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            await running(w, made)
            await made.change(job_id(1), Change({"memory_high": 64 * MIB}))
            assert w.init.changes == [{"MemoryHigh": 64 * MIB, "MemorySwapMax": 0}]
            await made.close()

    run(main)


def test_what_the_kernel_does_not_take_is_taken_back(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            await running(w, made, limits=Limits(max_memory=64 * MIB))
            before = await made.get(job_id(1))

            def deaf(properties: Mapping[str, Any]) -> None:
                kernel(w.cgroup(), {k: v for k, v in properties.items() if k != "CPUWeight"})

            w.init.on_change = deaf
            with pytest.raises(FailedPrecondition, match=r"--cpu-weight: .*did not take it"):
                await made.change(
                    job_id(1), Change({"cpu_weight": 5, "max_memory": 96 * MIB}, timeout_us=HOUR)
                )
            assert w.init.changes == [
                {"CPUWeight": 5, "MemoryMax": 96 * MIB},
                {"CPUWeight": None, "MemoryMax": 64 * MIB},
            ]
            after = await made.get(job_id(1))
            assert after.spec == before.spec
            assert w.pid1().time_outs == []
            await made.close()

    run(main)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (Change({"max_memory": MIB}), InvalidArgument, "below 16 MiB"),
        (Change({"max_cpu": -1}), InvalidArgument, "negative"),
        (Change({"cpu_cores": "x"}), InvalidArgument, "neither a number"),
        (Change({"max_tasks": 301}), PermissionDenied, "allows 300 at most"),
        (Change({"io_weight": 10}), FailedPrecondition, "scheduler BFQ"),
        (Change(timeout_us=1), InvalidArgument, "it has run for"),
    ],
)
def test_a_change_that_is_refused_changes_nothing(
    base: Path, change: Change, error: type[Exception], why: str
) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            w.init.permits = Permits(ceilings={"TasksMax": 300})
            await running(w, made)
            made._tasks[job_id(1)]._began -= 1.0
            with pytest.raises(error, match=why) as caught:
                await made.change(job_id(1), change)
            assert job_id(1) in str(caught.value) or "processors" in str(caught.value)
            assert w.init.changes == []
            await made.close()

    run(main)


def test_only_a_job_that_runs(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            with pytest.raises(NotFound):
                await made.change(job_id(1), Change())
            pid1 = await running(w, made)
            pid1.end(code=0)
            await made.wait_ended(job_id(1))
            with pytest.raises(FailedPrecondition, match=r"cannot update job .*not running"):
                await made.change(job_id(1), Change({"max_cpu": 50}))
            await made.close()

    run(main)


def test_a_job_that_ends_meanwhile_stays_ended(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            pid1 = await running(w, made)
            w.init.block("change")
            changing = w.own(_refused(made))
            await w.init.reached("change")
            pid1.end(code=0)
            await made.wait_ended(job_id(1))
            w.init.unblock("change")
            await changing
            assert (await w.recorded()).state is JobState.COMPLETED
            await made.close()

    run(main)


async def _refused(made: Supervisor) -> None:
    with pytest.raises(FailedPrecondition, match="not running"):
        await made.change(job_id(1), Change({"max_memory": 96 * MIB}))


def test_a_disk_that_is_full_is_said_and_the_change_holds(base: Path) -> None:
    async def main() -> None:
        async with world(base) as w:
            made = supervisor(w)
            pid1 = await running(w, made, timeout_us=HOUR)
            w.store.errors = [ResourceExhausted("record job", "the disk is full")]
            with pytest.raises(ResourceExhausted):
                await made.change(job_id(1), Change(timeout_us=2 * HOUR))
            await until(lambda: pid1.time_outs)
            assert (await made.get(job_id(1))).spec.timeout_us == 2 * HOUR
            w.init.errors["change"] = [Unavailable("ask init mode", "it is away")]
            with pytest.raises(Unavailable):
                await made.change(job_id(1), Change({"max_memory": 96 * MIB}))
            assert (await made.get(job_id(1))).spec.limits == Limits()
            await made.close()

    run(main)
