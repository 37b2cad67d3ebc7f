# SPDX-License-Identifier: MIT
"""What may become a job: the request checked, the command found, a range of ids given. Pure but
for `find_command`.

A command that is neither on the job's path nor in its work directory is refused before anything
starts.
"""

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Collection, Mapping
from typing import Final

from joblet.config import (
    ON_FULL,
    OVERFLOW_STRATEGIES,
    PROFILES,
    RLIMITS,
    UID_FIRST,
    UID_LAST,
    UIDS_PER_JOB,
)
from joblet.errors import InvalidArgument, PermissionDenied, ResourceExhausted, printable
from joblet.launch.plan import DEFAULT, ENV_NAME, MAX_STRING, MAX_STRINGS, STRICT, WORK, Plan
from joblet.model import JOURNALD, Job, JobSpec

WHAT: Final = "run the job"
MAX_ENV_VALUE: Final = 32768  # bytes, as the published clients say
MAX_NAME: Final = 256
# characters of a description: with the id they are fewer than init mode takes
MAX_SHOWN_NAME: Final = 60
MAX_SHOWN_COMMAND: Final = 100
MAX_SHOWN: Final = 200  # characters of a client's word that an error repeats
# bytes of arguments and environment together, as a plan carries them; it has room for 1 MiB
MAX_PLAN_STRINGS: Final = 786_432
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
# host networking under all the names it goes by; everything else is not there, or not yet
HOST_NETWORKS: Final = frozenset({"", "host", "bridge"})
LOG_DRIVERS: Final = frozenset({"", JOURNALD})
# trees of the host that a job sees
SEEN: Final = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/lib32/")
NOT_THERE: Final = "it is not there"
DIRECTORY: Final = "it is a directory"
STOP_MARGIN_US: Final = (
    5_000_000  # TimeoutStopSec beyond the grace: PID 1's record, the server's reading
)


@dataclasses.dataclass(frozen=True, slots=True)
class Permits:
    """What init mode's policy says of jobs, as far as it has said so; it has the last word."""

    uid_first: int = UID_FIRST
    uid_last: int = UID_LAST
    profiles: Collection[str] = PROFILES
    ceilings: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of unit properties

    @property
    def uid_bases(self) -> range:
        """The first ids of the ranges that jobs may have."""
        return range(self.uid_first, self.uid_last + 1, UIDS_PER_JOB)


def validate(spec: JobSpec) -> None:
    """Raises InvalidArgument for what no host could run."""
    if not spec.command:
        raise InvalidArgument(WHAT, "invalid request: command is required")
    for text in (spec.command, *spec.args, spec.work_dir, spec.name):
        _check_text(text)
    if len(spec.name) > MAX_NAME or not spec.name.isprintable():
        raise InvalidArgument(
            WHAT, f"its name is not printable or longer than {MAX_NAME} characters"
        )
    count = max(len(spec.args), len(spec.environment) + len(spec.secret_environment))
    if count > MAX_STRINGS // 2:
        raise InvalidArgument(WHAT, f"{count} arguments or variables, {MAX_STRINGS // 2} at most")
    # the command is its path, too
    total = sum(map(_size, (spec.command, spec.command, *spec.args, spec.work_dir)))
    for variables in (spec.environment, spec.secret_environment):
        for name, value in variables.items():
            if not ENV_NAME.fullmatch(name) or len(name) > MAX_NAME:
                raise InvalidArgument(
                    WHAT, f"{name!r:.80} is not a name for an environment variable"
                )
            _check_text(value)
            if len(value.encode()) > MAX_ENV_VALUE:
                raise InvalidArgument(
                    WHAT, f"environment variable {name} is longer than {MAX_ENV_VALUE} bytes"
                )
            total += _size(name) + _size(value)
    if total > MAX_PLAN_STRINGS:
        raise InvalidArgument(
            WHAT, f"its arguments and environment take {total} bytes, more than {MAX_PLAN_STRINGS}"
        )
    _check_choice("overflow_strategy", spec.overflow_strategy, OVERFLOW_STRATEGIES)
    _check_choice("on_full", spec.on_full, ON_FULL)
    _check_choice("profile", spec.profile, PROFILES)
    for limit, most in spec.rlimits.items():
        _check_rlimit(limit, most)
    if spec.network not in HOST_NETWORKS:
        raise InvalidArgument(
            WHAT,
            f"there is no network {spec.network!r:.80}",
            hint="leave it out: jobs use the host's",
        )
    if spec.log_driver not in LOG_DRIVERS:
        raise InvalidArgument(
            WHAT,
            f"there is no log driver {spec.log_driver!r:.80}",
            hint=f"leave it out for Joblet's own store, or use {JOURNALD} for the host's journal",
        )


def _check_choice(field: str, given: str, known: Collection[str]) -> None:
    if given and given not in known:
        raise InvalidArgument(
            WHAT,
            f"there is no {field} {given!r:.80}",
            hint=f"{', '.join(known)}; leave it out for the server's own",
        )


def _check_rlimit(name: str, value: int) -> None:
    if name not in RLIMITS:
        hint = f"those that there are: {', '.join(RLIMITS)}"
        raise InvalidArgument(WHAT, f"there is no limit {name!r:.80} of a process", hint=hint)
    low, high = RLIMITS[name]
    if not low <= value <= high:
        raise InvalidArgument(WHAT, f"its limit {name} is {value}, not between {low} and {high}")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise InvalidArgument(WHAT, "a text of the request has a NUL character in it")
    if len(text.encode(errors="surrogatepass")) >= MAX_STRING:
        raise InvalidArgument(WHAT, f"a text of the request is longer than {MAX_STRING - 1} bytes")


def _size(text: str) -> int:
    """Bytes of a text in a plan: as JSON, where other letters than ASCII's take six and more."""
    return len(json.dumps(text)) + 1


def work_dir(asked: str) -> str:
    """The job's current directory, absolute, as the job sees it; relative ones lie in /work."""
    return os.path.normpath(os.path.join(WORK, asked))  # noqa: PTH118


def environment(job_id: str, spec: JobSpec) -> dict[str, str]:
    """Built from nothing, never inherited; the client's on top, its secrets last."""
    made = {
        "PATH": DEFAULT_PATH,
        "HOME": WORK,
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "JOB_ID": job_id,
    }
    if spec.profile == STRICT:  # it has no other place to write to
        made["TMPDIR"] = WORK
    return {**made, **spec.environment, **spec.secret_environment}


def find_command(command: str, env: Mapping[str, str], cwd: str = WORK) -> str:
    """The path to execute. Blocking. Raises InvalidArgument when the job could not execute it.

    A job sees the host's /usr (and what of / points there) and its own work directory, which is
    empty before it runs. cwd: where the job begins, as `work_dir` gives it.
    """
    seen = "a job sees /usr, /bin, /sbin and /lib of this host"
    if "/" in command:
        path = _absolute(cwd, command)
        if f"{path}/".startswith(f"{WORK}/"):
            hint = f"{WORK} is empty when a job begins, and uploads are not served yet"
            raise _not_found(command, hint)
        why = _why_not(path) if path.startswith(SEEN) else NOT_THERE
        if not why:
            return path
        raise _refused(command, why) if why != NOT_THERE else _not_found(command, seen)
    refused = None
    for directory in env.get("PATH", DEFAULT_PATH).split(":"):
        path = _absolute(cwd, directory, command)
        if not path.startswith(SEEN):
            continue
        why = _why_not(path)
        if not why:
            return path
        # as shells do it: the next directory may have a better one
        if why not in (NOT_THERE, DIRECTORY) and refused is None:
            refused = _refused(command, f"{path}: {why}")
    raise refused or _not_found(command, f"the job's PATH is {env.get('PATH', DEFAULT_PATH):.400}")


def _absolute(*parts: str) -> str:
    return os.path.normpath(os.path.join(*parts))  # noqa: PTH118


def _why_not(path: str) -> str:
    """Why a job cannot execute a file of the host; "" if it can."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        nowhere = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
        return NOT_THERE if error.errno in nowhere else os.strerror(error.errno or 0)
    if stat.S_ISDIR(mode):
        return DIRECTORY
    if not stat.S_ISREG(mode):
        return "it is not a file"
    # to a job everybody else's file is a stranger's, as it is to this server
    if not os.access(path, os.X_OK):
        return f"it is not executable for everybody (mode {stat.S_IMODE(mode):04o})"
    return ""


def _refused(command: str, why: str) -> InvalidArgument:
    hint = "name a program, or for a script its interpreter: python3 FILE"
    return InvalidArgument(f"run {quoted(command)}", why, hint=hint)


def _not_found(command: str, hint: str) -> InvalidArgument:
    return InvalidArgument(WHAT, f"command not found: {quoted(command)}", hint=hint)


def quoted(text: str) -> str:
    """A client's word in a sentence of ours."""
    return printable(text[:MAX_SHOWN])


def check_profile(profile: str, permits: Permits) -> None:
    """Raises PermissionDenied, before anything is recorded."""
    if profile not in permits.profiles:
        raise PermissionDenied(
            WHAT,
            f"profile {profile} is not permitted on this host",
            hint="its administrator can name it under profiles in /etc/joblet/init.yml",
        )


def free_uid_base(taken: Collection[int], bases: range) -> int:
    """The lowest free range of ids, of those that begin at `bases`. Raises ResourceExhausted."""
    for base in bases:
        if base not in taken:
            return base
    raise ResourceExhausted(
        WHAT,
        f"all {len(bases)} ranges of user ids are in use, one for each job",
        hint="wait until jobs have ended; uid_first and uid_last in /etc/joblet/init.yml say how"
        " many there are",
    )


def describe(job: Job) -> str:
    """What systemctl shows of a job: `rnx job 4f1c2a90: python3 train.py`."""
    name, command = shown(job)
    return f"rnx job {job.id[:8]}{f' ({name})' if name else ''}: {command}"


def shown(job: Job) -> tuple[str, str]:
    """A job's name ("" for none) and what it runs, for people: short, each on one line, without its
    secrets and without what a terminal obeys."""
    spec = job.spec
    command = os.path.basename(masked(spec, spec.command))  # noqa: PTH119
    words = masked(spec, " ".join([command, *spec.args])).split()
    # again: without its spaces and what is no letter, a text may have become a secret
    text = masked(spec, printable(" ".join(words)))
    return f"{masked(spec, spec.name):.{MAX_SHOWN_NAME}}", f"{text:.{MAX_SHOWN_COMMAND}}"


def masked(spec: JobSpec, text: str) -> str:
    """A text without the job's secrets."""
    # longer ones first: one may be a part of another
    for secret in sorted(filter(None, spec.secret_environment.values()), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def plan(job: Job, path: str, properties: Mapping[str, object], *, grace_us: int) -> Plan:
    """The plan of a job's launch."""
    spec = job.spec
    return Plan(
        job=job.id,
        path=path,
        argv=(spec.command, *spec.args),
        env=environment(job.id, spec),
        uid_base=job.uid_base,
        cwd=work_dir(spec.work_dir),
        hostname=f"job-{job.id[:8]}",
        description=describe(job),
        merge=spec.merge,
        journal=spec.log_driver == JOURNALD,
        timeout_us=spec.timeout_us,
        grace_us=grace_us,
        stop_us=grace_us + STOP_MARGIN_US,
        profile=spec.profile or DEFAULT,
        properties=properties,
        rlimits=spec.rlimits,
    )
