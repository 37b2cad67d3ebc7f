# SPDX-License-Identifier: MIT
"""The command line of `rnx run`: rnx's flags, then the job's command. Pure; imports no click.

What begins with the first word that is no flag belongs to the job, whatever it looks like. `--`
ends rnx's flags. As in the published rnx only words with two dashes, and the few short flags
below, are flags; values stand behind `=` or in the next word.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from rnx import quantities
from rnx.errors import UsageError
from rnx.output import is_text, shown

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ENV_VALUE_MAX = 32768  # bytes, as published clients

# The job's own environment has these; a job may set them and should know that it does.
RESERVED = frozenset(
    "PATH HOME USER SHELL TERM PWD OLDPWD HOSTNAME LANG LC_ALL".split()  # noqa: SIM905
)
RESERVED_PREFIX = "JOBLET_"


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """A flag: with `metavar` it takes a value, with `many` several times; else it is a switch.
    values: those that there are, for completion; the server has the last word."""

    name: str
    help: str
    metavar: str = ""
    short: str = ""
    many: bool = False
    values: tuple[str, ...] = ()


FLAGS: Final = (
    Flag("--name", "A name for people; need not be unique.", "NAME"),
    Flag("--env", "Set a variable for the command.", "NAME=VALUE", "-e", many=True),
    Flag(
        "--secret-env",
        "The same, never shown again: *** in its status, masked in its output.",
        "NAME=VALUE",
        "-s",
        many=True,
    ),
    Flag("--work-dir", "Directory in which the command starts; /work if not given.", "DIR"),
    Flag("--max-cpu", "CPU limit in percent of one core: 50, 200%.", "PERCENT"),
    Flag("--cpu-weight", "Share of the CPU beside other jobs, which have 100: 1 to 10000.", "N"),
    Flag("--cpu-cores", "CPUs to run on: 0-3, 1,3.", "LIST"),
    Flag("--max-memory", "Memory limit: 512 (MiB), 512M, 2G.", "SIZE"),
    Flag("--memory-high", "Above it the job is slowed down, and not ended: 512 (MiB), 2G.", "SIZE"),
    Flag("--max-swap", "Swap beside a memory limit; 0, none, unless set: 512 (MiB), 2G.", "SIZE"),
    Flag("--max-iobps", "Limit of bytes/s read, and of bytes/s written: 1048576, 10M.", "RATE"),
    Flag("--max-read-bps", "Limit of bytes/s read; goes before --max-iobps.", "RATE"),
    Flag("--max-write-bps", "Limit of bytes/s written; goes before --max-iobps.", "RATE"),
    Flag("--io-weight", "Share of the disks beside other jobs, which have 100: 1 to 10000.", "N"),
    Flag("--max-tasks", "Limit of processes and threads.", "N"),
    Flag("--nofile", "Open files of each process; 1024, and at most 524288, unless set.", "N"),
    Flag("--core", "Size of each core dump; 0, none, unless set.", "SIZE"),
    Flag("--fsize", "Size of each file that it writes.", "SIZE"),
    Flag("--memlock", "Locked memory of each process.", "SIZE"),
    Flag("--stack", "Stack of each process.", "SIZE"),
    Flag("--timeout", "End the job after this time: 30s, 5m, 1h30m.", "TIME"),
    Flag("--network", "Network to join: host, the only one yet, and the default.", "NAME"),
    Flag(
        "--profile",
        "What the job is let near: default, strict (writes to /work alone), trusted.",
        "PROFILE",
        values=("default", "strict", "trusted"),
    ),
    Flag("--merge", "One pipe for stdout and stderr: their exact order, as one stream."),
    Flag(
        "--log-driver",
        "Where the output goes: journald, the host's journal, instead of the server's store.",
        "DRIVER",
        values=("journald",),
    ),
    Flag(
        "--overflow",
        "If the server's disk is too slow for the output: compress, spill, sample, alert.",
        "STRATEGY",
        values=("compress", "spill", "sample", "alert"),
    ),
    Flag(
        "--on-full",
        "When that has no room left: block (the job waits) or drop.",
        "ACTION",
        values=("block", "drop"),
    ),
    Flag("--follow", "Show the job's output and exit with its exit code.", short="-f"),
    Flag("--wait", "Wait for the job's end and exit with its exit code."),
    Flag("--split", "With --follow: the job's stderr to stderr, not to stdout."),
    Flag("--json", "Machine-readable output."),
    Flag("--config", "Configuration file.", "FILE"),
    Flag("--node", "Node of the configuration.", "NAME"),
    Flag("--help", "Show this text and exit.", short="-h"),
)

# Flags of the published rnx that no server of ours serves yet.
NOT_SERVED = frozenset(
    {"--schedule", "--upload", "--upload-dir", "--volume", "--runtime", "--gpu", "--gpu-memory"}
)

_BY_NAME = {name: flag for flag in FLAGS for name in (flag.name, flag.short) if name}


@dataclasses.dataclass(slots=True)
class RunArgs:
    """What was asked for; units as in RunJobRequest, 0 and "" where nothing was."""

    command: str = ""
    args: list[str] = dataclasses.field(default_factory=list)
    name: str = ""
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secret_env: dict[str, str] = dataclasses.field(default_factory=dict)
    work_dir: str = ""
    max_cpu: int = 0
    max_memory: int = 0
    max_iobps: int = 0
    cpu_cores: str = ""
    max_tasks: int = 0
    cpu_weight: int = 0
    memory_high: int = 0  # bytes
    max_swap: int | None = None  # bytes
    max_read_bps: int = 0
    max_write_bps: int = 0
    io_weight: int = 0
    rlimits: dict[str, int] = dataclasses.field(default_factory=dict)  # by their flags' names
    timeout: str = ""
    network: str = ""
    profile: str = ""
    merge: bool = False
    log_driver: str = ""
    overflow: str = ""
    on_full: str = ""
    follow: bool = False
    wait: bool = False
    split: bool = False
    json: bool = False
    config: str | None = None
    node: str | None = None
    help: bool = False

    @property
    def following(self) -> bool:
        """The job's end becomes rnx's exit code."""
        return self.follow or self.wait

    def warnings(self) -> list[str]:
        """Variables that the job's own environment has too."""
        names = [*self.env, *self.secret_env]
        return [
            f"Warning: {name} replaces what the job's environment has under this name"
            for name in names
            if name in RESERVED or name.startswith(RESERVED_PREFIX)
        ]


# How a flag's text becomes a value; the others are text.
_READ: dict[str, Callable[[str], Any]] = {
    "--max-cpu": quantities.percent,
    "--max-memory": quantities.mebibytes,
    "--max-iobps": quantities.bytes_per_second,
    "--cpu-cores": quantities.cores,
    "--cpu-weight": quantities.weight,
    "--memory-high": quantities.mebibytes_or_less,
    "--max-swap": quantities.mebibytes_or_less,
    "--max-read-bps": quantities.rate,
    "--max-write-bps": quantities.rate,
    "--io-weight": quantities.weight,
    "--max-tasks": quantities.tasks,
    "--nofile": quantities.files,
    "--core": quantities.size,
    "--fsize": quantities.size,
    "--memlock": quantities.size,
    "--stack": quantities.size,
    "--timeout": quantities.duration,
}


RLIMITS: Final = ("nofile", "core", "fsize", "memlock", "stack")


def parse(words: Sequence[str]) -> RunArgs:
    """Raises UsageError with the first mistake; its `following` is right whatever the mistake."""
    scan = _Scan(words)
    run = RunArgs()
    mistakes = list(scan.mistakes)
    for flag, text in scan.found:
        try:
            _apply(run, flag, text)
        except ValueError as error:
            mistakes.append(str(error))
    if run.help:
        return run
    if not scan.rest:
        mistakes.append("cannot run: no command given; write it behind the flags")
    sent = [
        *scan.rest,
        *(run.name, run.work_dir, run.network, run.profile),
        *(run.log_driver, run.overflow, run.on_full),
        *run.env.values(),
    ]
    mistakes += [
        f"cannot run: {shown(word)} is not UTF-8 text" for word in sent if not is_text(word)
    ]
    if not all(map(is_text, run.secret_env.values())):
        mistakes.append("cannot run: the value of a --secret-env is not UTF-8 text")
    if mistakes:
        raise UsageError(mistakes[0], following=run.following)
    run.command, *run.args = scan.rest
    return run


def next_word(words: Sequence[str]) -> tuple[Flag | None, bool]:
    """What one more word behind these would be: the flag that it is the value of, if it is one, and
    whether it could be a flag itself."""
    probe = "\0"  # no word of a command line
    scan = _Scan([*words, probe])
    awaiting = next((flag for flag, text in scan.found if text == probe), None)
    return awaiting, awaiting is None and scan.rest == [probe] and "--" not in words


def option(words: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, whatever else is wrong with these words."""
    found = [text for flag, text in _Scan(words).found if flag.name == name]
    return found[-1] if found else None


class _Scan:
    """Words told apart: flags with their values, mistakes, and the rest, which is the job's."""

    def __init__(self, words: Sequence[str]) -> None:
        self.found: list[tuple[Flag, str]] = []
        self.mistakes: list[str] = []
        self.rest: list[str] = []
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if word == "--":
                break
            name, equals, value = word.partition("=")
            flag = _BY_NAME.get(name)
            if flag is None:
                if not word.startswith("--"):
                    at -= 1
                    break
                self.mistakes.append(_unknown(name))
            elif not flag.metavar:
                if equals:
                    self.mistakes.append(f"cannot use {word}: {name} takes no value")
                self.found.append((flag, ""))
            elif equals:
                self.found.append((flag, value))
            elif at < len(words) and not words[at].startswith("--"):
                self.found.append((flag, words[at]))
                at += 1
            else:
                self.mistakes.append(f"cannot use {name}: it needs a value, as in {name}=…")
        self.rest = list(words[at:])


def _unknown(name: str) -> str:
    if name in NOT_SERVED:
        return f"cannot use {name}: it is part of the published rnx, and not served yet"
    from difflib import get_close_matches

    near = get_close_matches(name[:80], _BY_NAME, 1)
    hint = f"did you mean {near[0]}? A" if near else "a"
    return f"unknown flag: {name:.80}; {hint} flag of the job's command goes behind the command"


def _apply(run: RunArgs, flag: Flag, text: str) -> None:
    field = flag.name.removeprefix("--").replace("-", "_")
    if flag.many:
        name, value = _variable(flag, text)
        getattr(run, field)[name] = value
    elif not flag.metavar:
        setattr(run, field, True)
    else:
        try:
            value = _READ.get(flag.name, str)(text)
        except ValueError as error:
            raise ValueError(f"cannot use {flag.name} {text!r}: {error}") from None
        if field in RLIMITS:
            run.rlimits[field] = value
        else:
            setattr(run, field, value)


def _variable(flag: Flag, text: str) -> tuple[str, str]:
    """Errors name the variable and never its value, which may be a secret."""
    name, equals, value = text.partition("=")
    if not equals:
        what = "it" if flag.name == "--secret-env" else repr(text)
        raise ValueError(f"cannot use {flag.name}: {what} is not NAME=VALUE")
    if not ENV_NAME.fullmatch(name):
        raise ValueError(
            f"cannot use {flag.name} {name!r}: a name has letters, digits and _, "
            "and does not begin with a digit"
        )
    if len(value.encode(errors="surrogateescape")) > ENV_VALUE_MAX:
        raise ValueError(
            f"cannot use {flag.name} {name}: its value is longer than {ENV_VALUE_MAX} bytes"
        )
    return name, value
