# SPDX-License-Identifier: MIT
"""What a job is: its specification, its state, how it ended. Frozen, pure, no I/O.

The transition table is here and nowhere else; `move` is the only function that changes a
state, and the supervisor is the only caller that stores what it returns.
Times are microseconds since the epoch (int), sizes bytes, unless a name says otherwise.
"""

import dataclasses
import enum
import os
from collections.abc import Mapping
from typing import Final

from joblet.errors import FailedPrecondition, Internal


class JobState(enum.StrEnum):
    PENDING = "PENDING"
    SCHEDULED = "SCHEDULED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    CANCELED = "CANCELED"


S = JobState

# From each state, where a job may go. Final states go nowhere: no late exit overwrites STOPPED.
TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    S.PENDING: frozenset({S.SCHEDULED, S.INITIALIZING, S.FAILED, S.CANCELED}),
    S.SCHEDULED: frozenset({S.INITIALIZING, S.FAILED, S.CANCELED}),
    S.INITIALIZING: frozenset({S.RUNNING, S.STOPPING, S.COMPLETED, S.FAILED, S.STOPPED}),
    S.RUNNING: frozenset({S.STOPPING, S.COMPLETED, S.FAILED, S.STOPPED}),
    S.STOPPING: frozenset({S.COMPLETED, S.FAILED, S.STOPPED}),
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset(),
    S.STOPPED: frozenset(),
    S.CANCELED: frozenset(),
}

FINAL: Final = frozenset(state for state, onward in TRANSITIONS.items() if not onward)


class Reason(enum.StrEnum):
    """Why a job ended."""

    EXITED = "exited"  # code
    SIGNALLED = "signalled"  # signal
    OOM = "oom"  # the job's own memory limit
    TIMEOUT = "timeout"
    STOPPED = "stopped"  # by: a client
    UNIT_STOPPED = "unit-stopped"  # systemctl stop, shutdown
    LAUNCH_FAILED = "launch-failed"  # step, errno
    LOST = "lost"  # the machine went away under it


JOURNALD: Final = "journald"  # a log driver: the journal keeps the output, and not the store

# of a launch that failed: it is the command, or where it was to start, that is wrong
COMMAND_STEPS: Final = frozenset({"chdir", "exec"})


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a job ended. Only the fields that the reason names are set."""

    reason: Reason
    code: int = 0
    signal: int = 0
    by: str = ""
    step: str = ""
    errno: int = 0
    detail: str = ""

    @property
    def state(self) -> JobState:
        match self.reason:
            case Reason.EXITED:
                return S.COMPLETED if self.code == 0 else S.FAILED
            case Reason.STOPPED | Reason.UNIT_STOPPED:
                return S.STOPPED
            case _:
                return S.FAILED

    @property
    def exit_code(self) -> int:
        """What the wire carries: the command's code if it exited by itself, else -1; 1 where all
        was there but the command could not be started, as published clients know it."""
        if self.reason is Reason.LAUNCH_FAILED and self.step in COMMAND_STEPS:
            return 1
        return self.code if self.reason is Reason.EXITED else -1

    def __str__(self) -> str:
        match self.reason:
            case Reason.EXITED:
                text = f"exited({self.code})"
            case Reason.SIGNALLED:
                text = f"signalled({self.signal})"
            case Reason.STOPPED:
                text = f"stopped(by {self.by})" if self.by else "stopped"
            case Reason.LAUNCH_FAILED:
                text = f"launch-failed({self.step})"
            case _:
                text = str(self.reason)
        detail = self.detail or (os.strerror(self.errno) if self.errno else "")
        return f"{text}: {detail}" if detail else text


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Asked-for or effective limits; 0 or "" means none, and for max_swap None does.

    max_cpu: percent of one core. max_memory, memory_high, max_swap: bytes (the wire says MiB of the
    first). max_iobps: bytes/s, reading and writing each; max_read_bps and max_write_bps go before
    it. Weights: 1 to 10000, what a job is given beside others; 100 is everybody's.
    """

    max_cpu: int = 0
    cpu_cores: str = ""
    max_memory: int = 0
    max_iobps: int = 0
    max_tasks: int = 0
    cpu_weight: int = 0
    memory_high: int = 0
    max_swap: int | None = None
    max_read_bps: int = 0
    max_write_bps: int = 0
    io_weight: int = 0

    @property
    def read_bps(self) -> int:
        return self.max_read_bps or self.max_iobps

    @property
    def write_bps(self) -> int:
        return self.max_write_bps or self.max_iobps


@dataclasses.dataclass(frozen=True, slots=True)
class JobSpec:
    """What a client asked for, after validation and defaults; never changes."""

    command: str
    args: tuple[str, ...] = ()
    name: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secret_environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    work_dir: str = ""
    network: str = ""
    limits: Limits = Limits()
    timeout_us: int = 0
    merge: bool = False
    log_driver: str = ""  # where the output goes: "", the store, or JOURNALD
    overflow_strategy: str = ""  # for its output; "": the server's
    on_full: str = ""
    rlimits: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of each process, by name
    profile: str = ""  # what it is let near; "" in a record of before there were any

    @property
    def streams(self) -> tuple[int, ...]:
        """The streams that the store has of the job's output."""
        if self.log_driver == JOURNALD:
            return ()
        return (1,) if self.merge else (1, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A job's record. `asked` is spec.limits; `effective` what the kernel reports."""

    id: str
    spec: JobSpec
    state: JobState
    created_us: int
    created_by: str = ""
    started_us: int = 0
    ended_us: int = 0
    end: End | None = None
    stop_by: str = (
        ""  # who asked for the stop; with it an end is `stopped`, whatever the exit record says
    )
    unit: str = ""
    pid: int = 0  # PID 1 of the job, in the host's PID namespace
    cgroup: str = ""
    uid_base: int = 0
    effective: Limits = Limits()
    not_enforced: tuple[str, ...] = ()  # names of limits that this host's kernel does not enforce
    usage: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # final, from the exit record

    @property
    def final(self) -> bool:
        return self.state in FINAL


def move(job: Job, to: JobState, **changes: object) -> Job:
    """The job in its next state. Raises FailedPrecondition for a final job, Internal for a bug."""
    if to not in TRANSITIONS[job.state]:
        if job.final:
            raise not_running(job, "stop job" if to is S.STOPPING else f"make {to} job")
        raise Internal(f"make job {job.id} {to}", f"it is {job.state}")
    return dataclasses.replace(job, state=to, **changes)  # type: ignore[arg-type]


def not_running(job: Job, what: str = "stop job") -> FailedPrecondition:
    """For a stop that comes too late; the words before the hint are the published server's."""
    hint = "see its status"
    if job.end is not None:
        exited = job.end.reason is Reason.EXITED
        how = f", with exit code {job.end.code}" if exited else f": {job.end}"
        hint = f"it has ended already{how}"
    return FailedPrecondition(
        f"{what} {job.id}", f"job is not running: {job.id} (status: {job.state})", hint=hint
    )


def unit_name(job_id: str) -> str:
    return f"joblet-{job_id}.scope"
