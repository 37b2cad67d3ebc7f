# SPDX-License-Identifier: MIT
"""Limits: what was asked, which unit properties that is, what the kernel then really enforces.

systemd accepts a limit whose controller the host does not have, and does nothing; so each limit is
looked for before the launch (is there a controller?) and read back after it (does the cgroup say
what was asked?). A limit that a client asked for and nobody enforces refuses the job, unless the
configuration says `warn`; a default of ours is left out and shown as not enforced.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from joblet.config import MAX_TASKS, MIN_CPU_PERCENT, MIN_MEMORY_MIB, MIN_TASKS
from joblet.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from joblet.model import Job, Limits
from joblet.server import cgroup as files
from joblet.systemd.properties import cpu_list

MIB: Final = 1 << 20
MIN_MEMORY: Final = MIN_MEMORY_MIB * MIB
MAX_WEIGHT: Final = 10_000
USUAL_WEIGHT: Final = 100  # what the kernel gives everybody
WHAT: Final = "run the job"

# limit -> the controller that enforces it
CONTROLLERS: Final[Mapping[str, str]] = {
    "max_cpu": "cpu",
    "cpu_weight": "cpu",
    "cpu_cores": "cpuset",
    "max_memory": "memory",
    "memory_high": "memory",
    "max_swap": "memory",
    "max_iobps": "io",
    "max_read_bps": "io",
    "max_write_bps": "io",
    "io_weight": "io",
    "max_tasks": "pids",
}
NAMES: Final = tuple(CONTROLLERS)
WEIGHTS: Final = ("cpu_weight", "io_weight")
# limit -> the unit properties that it makes, and which init mode's ceilings may bound
PROPERTIES: Final[Mapping[str, tuple[str, ...]]] = {
    "max_cpu": ("CPUQuotaPerSecUSec",),
    "cpu_weight": ("CPUWeight",),
    "cpu_cores": ("AllowedCPUs",),
    "max_memory": ("MemoryMax",),
    "memory_high": ("MemoryHigh",),
    "max_swap": ("MemorySwapMax",),
    "max_iobps": ("IOReadBandwidthMax", "IOWriteBandwidthMax"),
    "max_read_bps": ("IOReadBandwidthMax",),
    "max_write_bps": ("IOWriteBandwidthMax",),
    "io_weight": ("IOWeight",),
    "max_tasks": ("TasksMax",),
}
CPU_UNIT: Final = 10_000  # µs of processor time a second, in one percent


def flag(name: str) -> str:
    """A limit as rnx names it."""
    return f"--{name.replace('_', '-')}"


def validate(limits: Limits, *, min_memory: int = MIN_MEMORY, what: str = WHAT) -> None:
    """Plain sense, whatever the host. min_memory: the configuration's smallest memory limit.
    Raises InvalidArgument."""
    for name in NAMES:
        if name != "cpu_cores" and (getattr(limits, name) or 0) < 0:
            raise InvalidArgument(what, f"invalid request: {name} is negative")
    if 0 < limits.max_cpu < MIN_CPU_PERCENT:
        raise InvalidArgument(
            what,
            f"max_cpu is {limits.max_cpu} %, and to start and stop a job takes {MIN_CPU_PERCENT} %",
        )
    for name in ("max_memory", "memory_high"):
        if 0 < getattr(limits, name) < min_memory:
            least = f"{min_memory / MIB:g} MiB"
            why = "which a job's PID 1 and full pipes need"
            if min_memory != MIN_MEMORY:
                why = "the smallest that limits.min_memory allows"
            raise InvalidArgument(what, f"{name} is below {least}, {why}")
    if 0 < limits.max_memory < limits.memory_high:
        raise InvalidArgument(
            what,
            "memory_high is above max_memory, and would never be reached",
            hint="set it below, or leave it out",
        )
    if limits.max_tasks and not MIN_TASKS <= limits.max_tasks <= MAX_TASKS:
        raise InvalidArgument(what, f"max_tasks is not between {MIN_TASKS} and {MAX_TASKS}")
    for name in WEIGHTS:
        if getattr(limits, name) > MAX_WEIGHT:
            raise InvalidArgument(what, f"{name} is not between 1 and {MAX_WEIGHT}")
    if limits.cpu_cores:
        cpu_list(limits.cpu_cores)


def properties(limits: Limits) -> dict[str, Any]:
    """Unit properties of these limits, as a plan carries them (systemd.resource-control(5))."""
    made: dict[str, Any] = {
        "CPUQuotaPerSecUSec": limits.max_cpu * CPU_UNIT,
        "CPUWeight": limits.cpu_weight,
        "AllowedCPUs": limits.cpu_cores,
        "MemoryMax": limits.max_memory,
        "MemoryHigh": limits.memory_high,
        "IOReadBandwidthMax": limits.read_bps,
        "IOWriteBandwidthMax": limits.write_bps,
        "IOWeight": limits.io_weight,
        "TasksMax": limits.max_tasks,
    }
    made = {name: value for name, value in made.items() if value}
    if limits.max_swap is not None:
        made["MemorySwapMax"] = limits.max_swap
    return made


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """limits: with the defaults filled in. by_client: names of those that the client asked for."""

    limits: Limits
    by_client: frozenset[str]


def ask(
    client: Limits,
    defaults: Limits,
    ceilings: Mapping[str, int] | None = None,
    *,
    what: str = WHAT,
) -> Asked:
    """The client's limits, and ours where it named none.

    ceilings: of unit properties, from init mode's policy; what nobody asked for is set to its
    ceiling. Raises PermissionDenied for a client's that is above.
    """
    by_client = frozenset(name for name in NAMES if _wanted(client, name))
    unsaid = {name: getattr(defaults, name) for name in NAMES if name not in by_client}
    filled = dataclasses.replace(client, **unsaid)
    for name, ceiling in (ceilings or {}).items():
        filled = _below(filled, by_client, name, ceiling, what)
    if filled.max_swap is None and (filled.max_memory or filled.memory_high):
        # a memory limit that leaks into swap is none
        filled = dataclasses.replace(filled, max_swap=0)
    return Asked(filled, by_client)


def _below(
    limits: Limits, by_client: Collection[str], name: str, ceiling: int, what: str
) -> Limits:
    """With a property no larger than its ceiling. Raises PermissionDenied."""
    makers = [limit for limit, made in PROPERTIES.items() if name in made]
    most = max(1, ceiling // CPU_UNIT) if name == "CPUQuotaPerSecUSec" else ceiling
    value = properties(limits).get(name)
    if value is not None and value <= ceiling:
        return limits
    if value is not None and (mine := [limit for limit in makers if limit in by_client]):
        raise PermissionDenied(
            what,
            f"{mine[-1]} is {getattr(limits, mine[-1])}, and this host allows {most} at most",
            hint="its administrator sets that, as ceilings in /etc/joblet/init.yml",
        )
    if makers[-1] in WEIGHTS:
        most = min(most, USUAL_WEIGHT)
    if makers[-1] == "max_swap":
        most = 0
    changed: dict[str, Any] = {makers[-1]: most}
    return dataclasses.replace(limits, **changed)


class Enforcement:
    """What this host's kernel enforces."""

    def __init__(
        self, root: Path = files.ROOT, *, refuse: bool, sysfs: Path = Path("/sys")
    ) -> None:
        """refuse: limits.on_missing_controller; otherwise such a limit is only shown as not
        enforced."""
        self._root = root
        self._sysfs = sysfs
        self._refuse = refuse

    def controllers(self) -> frozenset[str]:
        """Raises FailedPrecondition on a host without the unified hierarchy."""
        try:
            return frozenset((self._root / "cgroup.controllers").read_text().split())
        except OSError:
            raise FailedPrecondition(
                "limit jobs",
                f"{self._root} is not a cgroup v2 hierarchy",
                hint="boot with systemd.unified_cgroup_hierarchy=1",
            ) from None

    def before(self, asked: Asked, *, what: str = WHAT) -> tuple[Limits, tuple[str, ...]]:
        """(the limits to set, names of those left out). Raises FailedPrecondition for a
        client's."""
        missing = {
            name: f"this host's kernel has no {controller} controller"
            for name, controller in CONTROLLERS.items()
            if _wanted(asked.limits, name) and controller not in self.controllers()
        }
        weighed = asked.limits.io_weight and "io_weight" not in missing
        if weighed and not files.weighs_io(self._root, self._sysfs):
            missing["io_weight"] = "no disk of this host has the scheduler BFQ, or io.cost"
        self._judge(asked, missing, what)
        nothing: dict[str, Any] = {"cpu_cores": "", "max_swap": None}
        left_out = {name: nothing.get(name, 0) for name in missing}
        if "max_swap" not in asked.by_client:  # it comes with a memory limit, which is named
            missing.pop("max_swap", None)
        return dataclasses.replace(asked.limits, **left_out), tuple(missing)

    def after(
        self, cgroup: str, asked: Asked, wanted: Limits, *, what: str = WHAT
    ) -> tuple[Limits, tuple[str, ...]]:
        """(what the kernel says, names of what it did not take). Raises FailedPrecondition for a
        client's."""
        effective = self.read(cgroup)
        untaken = {
            name: "the kernel did not take it" + _perhaps(name)
            for name in NAMES
            if _weaker(name, wanted, effective)
        }
        self._judge(asked, untaken, what)
        return effective, tuple(untaken)

    def _judge(self, asked: Asked, reasons: Mapping[str, str], what: str) -> None:
        for name, why in reasons.items():
            if self._refuse and name in asked.by_client:
                raise FailedPrecondition(
                    f"{what} with {flag(name)}",
                    f"{name} would not be enforced: {why}",
                    hint="leave the limit out, or set limits.on_missing_controller: warn",
                )

    def read(self, cgroup: str) -> Limits:
        """The limits of a cgroup as its files say; 0, "" and None where there is none or no
        file."""
        return files.read(self._root / cgroup.lstrip("/"))

    def now(self, job: Job) -> Job:
        """A job that runs with what the kernel enforces at the moment; others as they are."""
        directory = self._root / job.cgroup.lstrip("/")
        if job.final or not job.cgroup or not directory.is_dir():
            return job
        return dataclasses.replace(job, effective=files.read(directory))


def _wanted(limits: Limits, name: str) -> bool:
    value = getattr(limits, name)
    return value is not None if name == "max_swap" else bool(value)


def _perhaps(name: str) -> str:
    if CONTROLLERS[name] == "io":
        return "; there may be no disk behind the jobs' directory that it could be set for"
    return ""


def _weaker(name: str, wanted: Limits, effective: Limits) -> bool:
    """Whether the kernel has less than was wanted. It rounds memory down to pages, never up."""
    if not _wanted(wanted, name):
        return False
    value, real = getattr(wanted, name), getattr(effective, name)
    if name == "cpu_cores":
        return not real or cpu_list(str(real)) != cpu_list(str(value))
    if name == "max_swap":
        return real is None or bool(real > value)
    if name in WEIGHTS:
        return bool(real != value)
    if name == "max_iobps":  # for those ways that have no limit of their own
        ways = ((wanted.max_read_bps, effective.max_read_bps),
                (wanted.max_write_bps, effective.max_write_bps))  # fmt: skip
        return any(not real or real > value for own, real in ways if not own)
    return not real or bool(real > value)
