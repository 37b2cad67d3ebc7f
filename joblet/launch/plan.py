# SPDX-License-Identifier: MIT
"""The plan of one launch: data that the server makes, init mode checks, and PID 1 carries out.

Pure; stdlib alone. It travels as JSON in a sealed memfd (a SEQPACKET message is too small for an
environment), so that what was checked is what is carried out.
"""

import dataclasses
import json
import marshal
import re
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1

JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

UID_COUNT: Final = 65536  # ids of one job
MAX_STRING: Final = 131072  # the kernel's MAX_ARG_STRLEN: execve refuses longer ones
MAX_STRINGS: Final = 65536  # arguments, and variables of the environment
MAX_US: Final = 2**53  # larger times are nonsense, and JSON readers disagree about them

WORK: Final = "/work"

# Limits of each process that a job may ask for
RLIMITS: Final = ("core", "fsize", "memlock", "nofile", "stack")

# Profiles: how much of the machine a job is let near. All have the same namespaces, capabilities
# and masks, but for what is said here; filters of system calls are init mode's, in init/seccomp.py.
DEFAULT: Final = "default"
STRICT: Final = "strict"  # writes to /work alone
TRUSTED: Final = "trusted"  # may make namespaces in its own
PROFILES: Final = (DEFAULT, STRICT, TRUSTED)

# Of system calls, to be loaded in this order: arrays of the machine's struct sock_filter, each with
# the flags of seccomp(2)
Filters = tuple[tuple[bytes, int], ...]


class PlanError(ValueError):
    """A plan that is malformed, with the field's name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """path: what to execute, absolute or relative to cwd, as seen in the job. cwd: absolute, in
    the job.

    properties: unit properties by systemd's names, values in JSON; init mode's policy says which
    and
    how large, and knows their D-Bus types. timeout_us and grace_us: 0 means never and at once.
    rlimits: limits of each of its processes (setrlimit(2)) by RLIMITS' names, soft and hard alike.
    stop_us: the scope's TimeoutStopSec, by which PID 1 must be gone when systemd stops the scope.
    journal: stdout and stderr are streams of the journal, and there are no FIFOs.
    filters: init mode's, for its profile; no plan of a server has any.
    """

    job: str
    path: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    uid_base: int
    cwd: str = WORK
    hostname: str = "joblet"
    description: str = ""
    merge: bool = False
    journal: bool = False
    timeout_us: int = 0
    grace_us: int = 5_000_000
    stop_us: int = 10_000_000
    profile: str = DEFAULT
    properties: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rlimits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    version: int = VERSION
    filters: Filters = ()

    def to_bytes(self) -> bytes:
        fields = dataclasses.asdict(self)
        del fields["filters"]
        for name in ("journal", "rlimits"):
            if not fields[name]:  # an init mode of before knows it not, and need not
                del fields[name]
        return json.dumps(fields, separators=(",", ":")).encode()

    def to_checked(self, filters: Filters = ()) -> bytes:
        """For a PID 1, which is forked from this same program: the fields, without the properties,
        and the filters that the command is to load, as marshal has them.

        Whoever writes this has checked the plan. Not JSON once more: in a process that has just
        been forked every page is copied at its first touch, even of an object that is only looked
        at, and JSON's reader and all checks touch 240 of them (1.4 ms, and they stay).
        """
        names = [field.name for field in dataclasses.fields(self) if field.name != "properties"]
        fields = {name: getattr(self, name) for name in names}
        plain = {"env": {**self.env}, "rlimits": {**self.rlimits}}
        return marshal.dumps(fields | plain | {"filters": filters})

    @classmethod
    def from_checked(cls, data: bytes) -> "Plan":
        """Of what to_checked has made, and of nothing else: marshal takes no care."""
        return cls(**marshal.loads(data))  # noqa: S302

    @property
    def streams(self) -> tuple[str, ...]:
        """The FIFOs of this job."""
        if self.journal:
            return ()
        return ("out",) if self.merge else ("out", "err")

    @property
    def unit(self) -> str:
        return f"joblet-{self.job}.scope"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        """Raises PlanError. Shape and plain sense only: what is permitted is init mode's policy."""
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            raise PlanError("not JSON") from None
        if not isinstance(fields, dict):
            raise PlanError("not an object")
        names = {field.name for field in dataclasses.fields(cls)} - {"filters"}
        if unknown := sorted(fields.keys() - names):
            raise PlanError(f"unknown field {unknown[0]!r:.80}")
        for name in ("job", "path", "argv", "env", "uid_base", "version"):
            if name not in fields:
                raise PlanError(f"{name} is missing")
        if type(fields["version"]) is not int or fields["version"] != VERSION:
            raise PlanError(f"version {fields['version']!r:.80} is not {VERSION}")
        _match(fields, "job", JOB_ID)
        _match(fields, "hostname", HOSTNAME)
        for name in ("path", "cwd", "description", "profile"):
            if name in fields:
                _string(fields[name], name)
        if not fields["path"]:
            raise PlanError("path is empty")
        if not fields.get("cwd", WORK).startswith("/"):
            raise PlanError("cwd is not absolute")
        argv = fields["argv"]
        if not isinstance(argv, list) or not 1 <= len(argv) <= MAX_STRINGS:
            raise PlanError("argv is not a list of at least one string")
        for argument in argv:
            _string(argument, "argv")
        env = fields["env"]
        if not isinstance(env, dict) or len(env) > MAX_STRINGS:
            raise PlanError("env is not an object")
        for name, value in env.items():
            if not ENV_NAME.fullmatch(name):
                raise PlanError(f"env: {name[:80]!r} is not a name")
            _string(value, f"env: {name[:80]}")
        for name in ("uid_base", "timeout_us", "grace_us", "stop_us"):
            if name in fields and (
                type(fields[name]) is not int or not 0 <= fields[name] <= MAX_US
            ):
                raise PlanError(f"{name} is not a number of the allowed size")
        for name in ("merge", "journal"):
            if type(fields.get(name, False)) is not bool:
                raise PlanError(f"{name} is not true or false")
        if not isinstance(fields.get("properties", {}), dict):
            raise PlanError("properties is not an object")
        rlimits = fields.get("rlimits", {})
        if not isinstance(rlimits, dict):
            raise PlanError("rlimits is not an object")
        for name, value in rlimits.items():
            if name not in RLIMITS or type(value) is not int:
                raise PlanError(f"rlimits: {name!r:.80} is {value!r:.80}")
        return cls(**{**fields, "argv": tuple(argv)})


def _string(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise PlanError(f"{name} is not a string")
    if "\0" in value:
        raise PlanError(f"{name} has a NUL in it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise PlanError(f"{name} is not Unicode text") from None
    if size >= MAX_STRING:
        raise PlanError(f"{name} is longer than {MAX_STRING - 1} bytes")


def _match(fields: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> None:
    if name in fields and not (isinstance(fields[name], str) and pattern.fullmatch(fields[name])):
        raise PlanError(f"{name} is {fields[name]!r:.80}")
