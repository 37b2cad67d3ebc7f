# SPDX-License-Identifier: MIT
"""init.yml, the policy of init mode: what it does for the server, and for whom.

It is all that holds a server that was taken over. So it is read from one place, never from the
environment or another directory; a file that anyone but root could have written is refused, and so
is a key that nobody knows: a slip in a list of permissions must not permit. Without the file the
defaults hold. The file can only narrow them, except that it may name the profile `trusted`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from joblet.config.kinds import (
    FORMAT,
    LEVEL,
    MAX_TASKS,
    PATH,
    PROFILES,
    UID_FIRST,
    UID_LAST,
    UIDS_PER_JOB,
    Duration,
    Flag,
    Size,
    Text,
    Whole,
    Words,
    setting,
)
from joblet.config.reading import ConfigurationError, document, fill, read_owned, unknown

INIT_POLICY: Final = "/etc/joblet/init.yml"

# What the server may set on a job's scope, and how large: 0 is no bound, None no number at all.
PROPERTIES: Final[Mapping[str, int | None]] = {
    "CPUQuotaPerSecUSec": 0,
    "CPUWeight": 10_000,  # systemd's own bound
    "AllowedCPUs": None,
    "MemoryMax": 0,
    "MemoryHigh": 0,
    "MemorySwapMax": 0,
    "IOReadBandwidthMax": 0,  # for each device
    "IOWriteBandwidthMax": 0,
    "IOWeight": 10_000,
    "TasksMax": MAX_TASKS,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """Numbers for some of PROPERTIES, each no larger than the bound there."""

    @property
    def allowed(self) -> str:
        names = [
            name if not most else f"{name} (at most {most})"
            for name, most in PROPERTIES.items()
            if most is not None
        ]
        return f"a mapping to numbers above 0 of some of {', '.join(names)}"

    def __call__(self, value: object) -> Mapping[str, int]:
        if not isinstance(value, Mapping):
            raise ValueError
        ceilings = {}
        for name, raw in value.items():
            most = PROPERTIES.get(name)
            if most is None:
                raise ValueError(name)
            ceilings[name] = Size(1, most or 2**63 - 1)(raw)
        return ceilings


@dataclasses.dataclass(frozen=True, slots=True)
class InitPolicy:
    """ceilings: by property, in the property's own unit. A ceiling is a demand too: a launch that
    does not set the property at all asks for more.
    """

    server_user: str = setting(
        "server_user", Text(r"[a-z_][a-z0-9_-]{0,30}", "a user's name"), "joblet"
    )
    uid_first: int = setting("uid_first", Whole(UID_FIRST, UID_LAST), UID_FIRST)
    uid_last: int = setting("uid_last", Whole(UID_FIRST, UID_LAST), UID_LAST)
    slice: str = setting(
        "slice",
        Text(r"joblet(?:-[a-z0-9]+)*\.slice", "joblet.slice or one below it"),
        "joblet.slice",
    )
    profiles: tuple[str, ...] = setting("profiles", Words(PROFILES), ["default", "strict"])
    properties: tuple[str, ...] = setting("properties", Words(tuple(PROPERTIES)), list(PROPERTIES))
    ceilings: Mapping[str, int] = setting("ceilings", Ceilings(), {})
    # A scope's TimeoutStopSec: a shutdown of the host waits for it.
    max_stop_us: int = setting("max_stop", Duration("1s", "1h"), "10m")
    max_plan_bytes: int = setting("max_plan_bytes", Size(65536, 16 << 20), 1 << 20)
    jobs_dir: str = setting("jobs_dir", PATH, "/var/lib/joblet/jobs")
    log_denied_calls: bool = setting("log_denied_calls", Flag(), default=True)
    log_level: str = setting("log_level", LEVEL, "INFO")
    log_format: str = setting("log_format", FORMAT, "text")

    def uid_bases(self) -> range:
        """The first ids of the ranges that jobs may have."""
        return range(self.uid_first, self.uid_last + 1, UIDS_PER_JOB)


def load_policy(path: str = INIT_POLICY, *, owner: int = 0) -> InitPolicy:
    """Init mode's policy: from `path` if it exists, else the defaults.

    Raises ConfigurationError, also for a file or directory that others than `owner` can write.
    """
    text = read_owned(Path(path), owner)
    return InitPolicy() if text is None else parse_policy(text, path)


def parse_policy(text: str, source: str = INIT_POLICY) -> InitPolicy:
    """Like load_policy, from text."""
    raw = document(text, source)
    policy = fill(InitPolicy, raw, "", source)
    known = [field.metadata["key"] for field in dataclasses.fields(InitPolicy)]
    if raw:
        raise ConfigurationError(
            unknown(next(iter(raw)), known, "", source), hint=f"its keys are {', '.join(known)}"
        )
    if (policy.uid_first - UID_FIRST) % UIDS_PER_JOB or (
        policy.uid_last + 1 - UID_FIRST
    ) % UIDS_PER_JOB:
        raise ConfigurationError(
            f"uid_first {policy.uid_first:#x} and uid_last {policy.uid_last:#x} in {source} do not"
            f" hold whole ranges of {UIDS_PER_JOB} ids, counted from {UID_FIRST:#x}"
        )
    if not policy.uid_bases():
        raise ConfigurationError(f"uid_last in {source} is below uid_first")
    if stray := [name for name in policy.ceilings if name not in policy.properties]:
        raise ConfigurationError(f"ceilings in {source} names {stray[0]}, but properties does not")
    return policy
