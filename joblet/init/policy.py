# SPDX-License-Identifier: MIT
"""What init mode permits: a plan is checked against the root-owned policy before anything is done.

A server that was taken over must not become root through here, so nothing of a plan reaches
systemd,
the kernel or a path without having passed `check`. Pure but for `read_plan`.
"""

import fcntl
import os
from typing import Final

from joblet.config import PROPERTIES, RLIMITS, InitPolicy
from joblet.errors import InvalidArgument, PermissionDenied, printable
from joblet.launch.plan import Plan, PlanError
from joblet.systemd.properties import cpu_list

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
MAX_DESCRIPTION: Final = 200  # characters of a unit's description
MAX_NUMBER: Final = 2**63


def read_plan(fd: int, policy: InitPolicy) -> Plan:
    """The plan in a sealed memfd: what is checked is what is carried out.

    Raises InvalidArgument for what is no sealed memfd, too large or malformed.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size = os.fstat(fd).st_size
    except OSError:
        raise InvalidArgument("read the plan", "it is not in a memfd") from None
    if seals & SEALS != SEALS:
        raise InvalidArgument("read the plan", "its memfd is not sealed")
    if size > policy.max_plan_bytes:
        raise InvalidArgument(
            "read the plan",
            f"{size} bytes are more than {policy.max_plan_bytes}",
            hint="shorten the arguments and the environment, or raise max_plan_bytes in init.yml",
        )
    try:
        return Plan.from_bytes(os.pread(fd, size, 0))
    except (OSError, PlanError) as error:  # OSError: the descriptor is one for writing only
        raise InvalidArgument("read the plan", str(error)) from None


def check(plan: Plan, policy: InitPolicy) -> None:
    """Raises PermissionDenied, naming what the policy forbids; InvalidArgument for a malformed
    property."""
    what = f"launch job {plan.job}"
    bases = policy.uid_bases()
    if plan.uid_base not in bases:
        raise PermissionDenied(
            what,
            f"uid {plan.uid_base} does not begin a range of {bases.start} to {bases.stop - 1}",
        )
    if plan.profile not in policy.profiles:
        raise PermissionDenied(
            what,
            f"profile {plan.profile!r:.80} is not permitted",
            hint="name it under profiles in /etc/joblet/init.yml",
        )
    if not plan.grace_us <= plan.stop_us <= policy.max_stop_us:
        raise PermissionDenied(
            what, f"its stop time-out is not between its grace and {policy.max_stop_us} µs"
        )
    for name, number in plan.rlimits.items():
        low, high = RLIMITS[name]
        if not low <= number <= high:
            raise PermissionDenied(what, f"rlimit {name} is not between {low} and {high}")
    for name, value in plan.properties.items():
        _check_property(what, name, value, policy)
    for name, ceiling in policy.ceilings.items():
        if name not in plan.properties:
            raise PermissionDenied(
                what, f"{name} is not set, and the policy's ceiling is {ceiling}"
            )


def check_change(job: str, properties: object, policy: InitPolicy) -> None:
    """The same for properties of a running job's unit; None lifts a limit, if there is no ceiling.
    Raises PermissionDenied, InvalidArgument."""
    what = f"change job {job}"
    if not isinstance(properties, dict) or not properties:
        raise InvalidArgument(what, "its properties are no object, or none")
    for name, value in properties.items():
        if value is not None:
            _check_property(what, name, value, policy)
        elif name not in policy.properties:
            raise PermissionDenied(what, f"property {name!r:.80} is not permitted")
        elif name in policy.ceilings:
            ceiling = policy.ceilings[name]
            raise PermissionDenied(
                what, f"{name} is to be lifted, and the policy's ceiling is {ceiling}"
            )


def _check_property(what: str, name: str, value: object, policy: InitPolicy) -> None:
    if name not in policy.properties:
        raise PermissionDenied(what, f"property {name!r:.80} is not permitted")
    bound = PROPERTIES[name]
    if bound is None:
        if not isinstance(value, str):
            raise InvalidArgument(what, f"property {name} is not a list of CPUs")
        cpu_list(value)
        return
    if type(value) is not int or not 0 <= value < MAX_NUMBER:
        raise InvalidArgument(what, f"property {name} is {value!r:.80}")
    ceiling = policy.ceilings.get(name) or bound
    if ceiling and value > ceiling:
        raise PermissionDenied(what, f"property {name} is {value}, more than {ceiling}")


def of_jobs(policy: InitPolicy) -> dict[str, object]:
    """What the server must know of it, to choose ids and to refuse what would be refused here."""
    return {
        "uid_first": policy.uid_first,
        "uid_last": policy.uid_last,
        "profiles": list(policy.profiles),
        "ceilings": dict(policy.ceilings),
    }


def description(plan: Plan) -> str:
    """What systemctl shows: one line, nothing that a terminal obeys."""
    return (printable(plan.description) or plan.job)[:MAX_DESCRIPTION]
