# SPDX-License-Identifier: MIT
"""A change of a running job: other limits, another time-out.

Limits are properties of its unit: init mode sets them, and they are read back from the cgroup. One
that the kernel did not take is taken back, and so are those that came with it. What is asked for
here is from then on what the job asks for. The time-out is PID 1's; the job's task tells it.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Protocol

from joblet.errors import FailedPrecondition, InvalidArgument, JobletError
from joblet.model import Job, Limits
from joblet.server import limits
from joblet.server.limits import Asked, Enforcement

WHAT: Final = "update job"
MAX_TIMEOUT_US: Final = 366 * 86_400_000_000  # of a new job, too


class Units(Protocol):
    """What a change needs of init mode."""

    async def change(self, job: str, properties: Mapping[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """limits: those to change, by model.Limits' names; 0 or "" is the server's default (of max_swap
    it is none). timeout_us: since the job's start, 0 for the server's default; with `more` so much
    longer than now; None: as it is.
    """

    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout_us: int | None = None
    more: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """The configuration's defaults and bounds. ceilings: init mode's, of unit properties."""

    defaults: Limits
    ceilings: Mapping[str, int]
    min_memory: int
    timeout_us: int


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    asked: Limits
    effective: Limits
    not_enforced: tuple[str, ...]


def time_out(job: Job, change: Change, rules: Rules, ran_us: int) -> int:
    """The job's time-out after the change, 0 for none. ran_us: how long it has run.

    Raises InvalidArgument, also for one that has passed: that would be a stop.
    """
    what = f"{WHAT} {job.id}"
    if change.timeout_us is None:
        return job.spec.timeout_us
    if change.more and not job.spec.timeout_us:
        raise InvalidArgument(
            what,
            "it has no time-out that could be longer",
            hint="without + it counts from the job's start, as in --timeout 2h",
        )
    timeout_us = change.timeout_us or rules.timeout_us
    if change.more:
        timeout_us = job.spec.timeout_us + change.timeout_us
    if timeout_us > MAX_TIMEOUT_US:
        raise InvalidArgument(what, "its time-out would be more than a year")
    if 0 < timeout_us <= ran_us:
        raise InvalidArgument(
            what,
            f"it has run for {ran_us // 1_000_000} s, longer than that time-out",
            hint=f"for more time write --timeout +30m; to end it: rnx job stop {job.id}",
        )
    return timeout_us


async def carry_out(
    job: Job, change: Change, rules: Rules, units: Units, enforcement: Enforcement
) -> Changed:
    """The limits set, and read back.

    Raises InvalidArgument, PermissionDenied, FailedPrecondition (nobody would enforce it, or the
    kernel did not take it), and what init mode raises. Then the job is as before.
    """
    what = f"{WHAT} {job.id}"
    before = job.spec.limits
    if not change.limits:
        return Changed(before, enforcement.now(job).effective, job.not_enforced)
    merged = dataclasses.replace(before, **change.limits)
    filled = limits.ask(merged, rules.defaults, rules.ceilings, what=what).limits
    limits.validate(filled, min_memory=rules.min_memory, what=what)
    asked = Asked(filled, frozenset(change.limits))
    wanted, left_out = enforcement.before(asked, what=what)
    old, new = limits.properties(before), limits.properties(wanted)
    # those that were named in any case: a sysadmin may have changed them
    named = {made for name in change.limits for made in limits.PROPERTIES[name]}
    names = sorted(
        named | {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    )
    left = {made for name in left_out for made in limits.PROPERTIES[name]}
    properties = {name: new.get(name) for name in names if name not in left}
    if properties:
        await units.change(job.id, properties)
    try:
        effective, untaken = enforcement.after(job.cgroup, asked, wanted, what=what)
    except FailedPrecondition:
        with contextlib.suppress(JobletError):
            await units.change(job.id, {name: old.get(name) for name in properties})
        raise
    return Changed(filled, effective, tuple(dict.fromkeys((*left_out, *untaken))))
