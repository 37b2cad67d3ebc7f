# SPDX-License-Identifier: MIT
"""What a setting may be: kinds of values that say in words what they allow, and the bounds of jobs.

Pure; stdlib alone.
"""

import contextlib
import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Protocol

UID_FIRST: Final = 0x7000_0000  # above the range that systemd gives to its containers
UID_LAST: Final = 0x7FFD_FFFF  # some ids near 2^31 have a meaning of their own
UIDS_PER_JOB: Final = 65536
MAX_JOBS: Final = (UID_LAST + 1 - UID_FIRST) // UIDS_PER_JOB  # 4,094, a range of ids each

# A job's PID 1 and its two pipes are charged to the job: 1.7 MB, and 2 MiB when the pipes are full.
# 16 MiB leaves room for a small command beside them; with much less, a job ends before it starts.
MIN_MEMORY_MIB: Final = 16
# At 5 %, the 50 ms of CPU time that a small Python program needs to start take a second. Below it,
# PID 1 itself may need longer to end a job than systemd gives it.
MIN_CPU_PERCENT: Final = 5
# PID 1, the child that unpacks uploads, the command, and a small pipeline of its own.
MIN_TASKS: Final = 8
MAX_TASKS: Final = 4_194_304  # the kernel's PID_MAX_LIMIT
# Always on: a fork bomb must not take the host's process table. 2,048 is enough for a large
# parallel build or a JVM with many threads, and a quarter of what the kernel allows a machine of
# 1 GiB in all (threads-max is about 7,900 there).
DEFAULT_MAX_TASKS: Final = 2048

# Limits of each process of a job that a client may ask for: the least and the most. With fewer
# descriptors or less stack no command starts; fs.nr_open of most hosts is a million.
_BYTES: Final = (0, 2**62)
RLIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "core": _BYTES,
    "fsize": _BYTES,
    "memlock": _BYTES,
    "nofile": (16, 1_048_576),
    "stack": (1 << 17, 2**62),
}
# What a job is let near, from the widest fence to the narrowest; `trusted` may nest namespaces, and
# is off unless init.yml names it. (joblet.launch.plan says more; it imports nothing of joblet, and
# a test holds the two together.)
PROFILES: Final = ("default", "strict", "trusted")

MAX_INT32: Final = 2**31 - 1


class Kind(Protocol):
    """Turns what YAML gave into a setting. Raises ValueError for what `allowed` leaves out."""

    @property
    def allowed(self) -> str: ...

    def __call__(self, value: object, /) -> Any: ...


def setting(key: str, kind: Kind, default: object, *, secret: bool = False) -> Any:
    """A dataclass field: its key in YAML, its kind, its default as one would write it in the file.
    The value of a `secret` one appears in no message and no repr.
    """
    metadata = {"key": key, "kind": kind, "secret": secret, "default": default}
    if isinstance(default, Mapping):
        return dataclasses.field(
            default_factory=lambda: kind(default), metadata=metadata, repr=not secret
        )
    return dataclasses.field(default=kind(default), metadata=metadata, repr=not secret)


@dataclasses.dataclass(frozen=True, slots=True)
class Whole:
    """A whole number. With `zero` (what 0 means), 0 is allowed below `low` too."""

    low: int
    high: int
    zero: str = ""

    @property
    def allowed(self) -> str:
        return f"a number from {self.low} to {self.high}" + _or_zero("0", self.zero)

    def __call__(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(value)
        if self.low <= value <= self.high or (self.zero and value == 0):
            return value
        raise ValueError(value)


_UNITS_US: Final = {
    "ns": Decimal("0.001"),
    "us": Decimal(1),
    "µs": Decimal(1),  # Go takes both signs for micro
    "μs": Decimal(1),
    "ms": Decimal(1000),
    "s": Decimal(10**6),
    "m": Decimal(60 * 10**6),
    "h": Decimal(3600 * 10**6),
}
_DURATION_PART: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,9})?)(" + "|".join(_UNITS_US) + ")")
_DURATION: Final = re.compile(f"(?:{_DURATION_PART.pattern})+")


def duration_us(text: str) -> int:
    """Microseconds of a Go duration without a sign ("1h", "100ms", "1m30s", "1.5s", "0").

    Rounded up: what is not zero must not become zero, which often means "for ever".
    Raises ValueError.
    """
    if text == "0":
        return 0
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    parts = _DURATION_PART.findall(text)
    total = sum((Decimal(number) * _UNITS_US[unit] for number, unit in parts), Decimal(0))
    return int(total) + (total != int(total))


@dataclasses.dataclass(frozen=True, slots=True)
class Duration:
    """A Go duration; `low` and `high` are Go durations too, the value is in microseconds."""

    low: str
    high: str
    zero: str = ""

    @property
    def allowed(self) -> str:
        return f'a duration such as "1m30s", from {self.low} to {self.high}' + _or_zero(
            "0s", self.zero
        )

    def __call__(self, value: object) -> int:
        # A bare number has no unit; guessing one is worse than asking.
        if isinstance(value, bool) or not (isinstance(value, str) or value == 0):
            raise ValueError(value)
        microseconds = duration_us(str(value).strip())
        return Whole(duration_us(self.low), duration_us(self.high), self.zero)(microseconds)


_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*(?:([KMGT])(?:I?B)?|B)?")
_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """Bytes: a number, or text such as "64MB" or "64MiB", both with the factor 1024."""

    low: int
    high: int
    zero: str = ""

    @property
    def allowed(self) -> str:
        return f'a size such as 67108864 or "64MB", from {self.low} to {self.high}' + _or_zero(
            "0", self.zero
        )

    def __call__(self, value: object) -> int:
        if isinstance(value, str):
            match = _SIZE.fullmatch(value.strip().upper())
            if not match:
                raise ValueError(value)
            value = int(Decimal(match[1]) * (1 << _SHIFTS[match[2] or ""]))
        return Whole(self.low, self.high, self.zero)(value)


def _or_zero(number: str, meaning: str) -> str:
    return f", or {number} for {meaning}" if meaning else ""


class Flag:
    """true or false, as YAML has them."""

    allowed: Final = "true or false"

    def __call__(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(value)
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words; with `any_case`, in capitals or small letters alike."""

    words: tuple[str, ...]
    any_case: bool = False

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(self.words)

    def __call__(self, value: object) -> str:
        for word in self.words:
            if value == word:
                return word
            if self.any_case and isinstance(value, str) and value.lower() == word.lower():
                return word
        raise ValueError(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Text that matches `pattern` as a whole."""

    pattern: str
    allowed: str

    def __call__(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value, re.ASCII):
            raise ValueError(value)
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Pem:
    """PEM text with `label` in its BEGIN line, or "". What it holds is not checked here."""

    label: str
    allowed: str

    def __call__(self, value: object) -> str:
        if value == "":
            return ""
        if not isinstance(value, str) or "ENCRYPTED" in value:
            raise ValueError
        if not re.search(rf"^-----BEGIN (?:[A-Z]+ )?{self.label}-----\s", value, re.MULTILINE):
            raise ValueError
        return value


HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)


def host(value: str) -> str:
    """An IP address (an IPv6 one with or without brackets) in its usual form, or a host name.
    Raises ValueError.
    """
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(bare))
    # What has only digits and dots, or had brackets, and is no address is a slip of the hand.
    if bare != value or re.fullmatch(r"[0-9.]+", value) or not HOST_NAME.fullmatch(value):
        raise ValueError(value)
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    allowed: str = "an IP address or a host name (the port is server.port)"

    def __call__(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(value)
        return host(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """A list of words out of `known`."""

    known: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return "a list of some of " + ", ".join(self.known)

    def __call__(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(word in self.known for word in value):
            raise ValueError(value)
        return tuple(dict.fromkeys(value))


PATH: Final = Text(r"(?:/[^/\0\n]+)+", "an absolute path, without a slash at its end")
LEVEL: Final = Choice(("DEBUG", "INFO", "WARN", "ERROR"), any_case=True)
FORMAT: Final = Choice(("text", "json"), any_case=True)
