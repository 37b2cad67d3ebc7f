# SPDX-License-Identifier: MIT
"""Limits: what was asked, which unit properties that is, what the kernel then really enforces.

systemd accepts a limit whose controller the host does not have, and does nothing; so each limit is
looked for before the launch (is there a controller?) and read back after it (does the cgroup say
what was asked?). A limit that a client asked for and nobody enforces refuses the job, unless the
configuration says `warn`; a default of ours is left out and shown as not enforced.
Values read back: Documentation/admin-guide/cgroup-v2.rst.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from joblet.config import MAX_TASKS, MIN_CPU_PERCENT, MIN_MEMORY_MIB, MIN_TASKS
from joblet.errors import FailedPrecondition, InvalidArgument
from joblet.model import Limits
from joblet.systemd.properties import cpu_list

MIB: Final = 1 << 20
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")

# limit -> the controller that enforces it
CONTROLLERS: Final[Mapping[str, str]] = {
    "max_cpu": "cpu",
    "cpu_cores": "cpuset",
    "max_memory": "memory",
    "max_iobps": "io",
    "max_tasks": "pids",
}
FLAGS: Final[Mapping[str, str]] = {
    "max_cpu": "--max-cpu",
    "cpu_cores": "--cpu-cores",
    "max_memory": "--max-memory",
    "max_iobps": "--max-iobps",
    "max_tasks": "--max-tasks",
}


def validate(limits: Limits) -> None:
    """Plain sense, whatever the host. Raises InvalidArgument."""
    what = "run the job"
    for name in ("max_cpu", "max_memory", "max_iobps", "max_tasks"):
        if getattr(limits, name) < 0:
            raise InvalidArgument(what, f"invalid request: {name} is negative")
    if 0 < limits.max_cpu < MIN_CPU_PERCENT:
        raise InvalidArgument(
            what,
            f"max_cpu is {limits.max_cpu} %, and to start and stop a job takes {MIN_CPU_PERCENT} %",
        )
    if 0 < limits.max_memory < MIN_MEMORY_MIB * MIB:
        raise InvalidArgument(
            what,
            f"max_memory is below {MIN_MEMORY_MIB} MiB, which a job's PID 1 and full pipes need",
        )
    if limits.max_tasks and not MIN_TASKS <= limits.max_tasks <= MAX_TASKS:
        raise InvalidArgument(what, f"max_tasks is not between {MIN_TASKS} and {MAX_TASKS}")
    if limits.cpu_cores:
        cpu_list(limits.cpu_cores)


def properties(limits: Limits) -> dict[str, Any]:
    """Unit properties of these limits, as a plan carries them (systemd.resource-control(5))."""
    made: dict[str, Any] = {}
    if limits.max_cpu:
        made["CPUQuotaPerSecUSec"] = limits.max_cpu * 10_000
    if limits.cpu_cores:
        made["AllowedCPUs"] = limits.cpu_cores
    if limits.max_memory:
        made["MemoryMax"] = limits.max_memory
        # a memory limit that leaks into swap is none
        made["MemorySwapMax"] = 0
    if limits.max_iobps:
        made["IOReadBandwidthMax"] = made["IOWriteBandwidthMax"] = limits.max_iobps
    if limits.max_tasks:
        made["TasksMax"] = limits.max_tasks
    return made


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """limits: with the defaults filled in. by_client: names of those that the client asked for."""

    limits: Limits
    by_client: frozenset[str]


def ask(client: Limits, defaults: Limits) -> Asked:
    """The client's limits, and ours where it named none."""
    given = {f.name: getattr(client, f.name) for f in dataclasses.fields(Limits)}
    filled = {name: value or getattr(defaults, name) for name, value in given.items()}
    return Asked(Limits(**filled), frozenset(name for name, value in given.items() if value))


class Enforcement:
    """What this host's kernel enforces."""

    def __init__(self, root: Path = CGROUP_ROOT, *, refuse: bool) -> None:
        """refuse: limits.on_missing_controller; otherwise such a limit is only shown as not
        enforced."""
        self._root = root
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

    def before(self, asked: Asked) -> tuple[Limits, tuple[str, ...]]:
        """(the limits to set, names of those left out). Raises FailedPrecondition for a
        client's."""
        missing = [
            name
            for name, controller in CONTROLLERS.items()
            if getattr(asked.limits, name) and controller not in self.controllers()
        ]
        self._judge(asked, missing, "this host's kernel has no {controller} controller")
        left_out: dict[str, Any] = {name: "" if name == "cpu_cores" else 0 for name in missing}
        return dataclasses.replace(asked.limits, **left_out), tuple(missing)

    def after(self, cgroup: str, asked: Asked, wanted: Limits) -> tuple[Limits, tuple[str, ...]]:
        """(what the kernel says, names of what it did not take). Raises FailedPrecondition for a
        client's."""
        effective = self.read(cgroup)
        untaken = [name for name in CONTROLLERS if _weaker(name, wanted, effective)]
        self._judge(asked, untaken, "the kernel did not take it")
        return effective, tuple(untaken)

    def _judge(self, asked: Asked, names: Sequence[str], why: str) -> None:
        for name in names:
            if self._refuse and name in asked.by_client:
                raise FailedPrecondition(
                    f"run the job with {FLAGS[name]}",
                    f"{name} would not be enforced: {why.format(controller=CONTROLLERS[name])}",
                    hint="leave the limit out, or set limits.on_missing_controller: warn",
                )

    def read(self, cgroup: str) -> Limits:
        """The limits of a cgroup as its files say; 0 and "" where there is none or no file."""
        base = self._root / cgroup.lstrip("/")
        cpu = 0
        quota, _, period = _file(base / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            cpu = int(quota) * 100 // int(period)
        return Limits(
            max_cpu=cpu,
            cpu_cores=_file(base / "cpuset.cpus"),
            max_memory=_number(base / "memory.max"),
            max_iobps=_io(_file(base / "io.max")),
            max_tasks=_number(base / "pids.max"),
        )


def _weaker(name: str, wanted: Limits, effective: Limits) -> bool:
    """Whether the kernel has less than was wanted. It rounds memory down to pages, never up."""
    value, real = getattr(wanted, name), getattr(effective, name)
    if not value:
        return False
    if name == "cpu_cores":
        return not real or cpu_list(str(real)) != cpu_list(str(value))
    return not real or real > value


def _file(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _file(path)
    return int(text) if text.isdigit() else 0


def _io(text: str) -> int:
    """The largest bandwidth over all devices and both ways; 0 when one of them is open."""
    values: list[int] = []
    for line in text.splitlines():
        fields = dict(item.partition("=")[::2] for item in line.split()[1:])
        for key in ("rbps", "wbps"):
            if not fields.get(key, "max").isdigit():
                return 0
            values.append(int(fields[key]))
    return max(values, default=0)
