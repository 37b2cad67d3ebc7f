# SPDX-License-Identifier: MIT
"""Limits as people write them: percent, sizes, rates, durations, lists of CPUs. Pure.

This is the one place where rnx reads them. Each function takes the text of a flag and returns what
goes into RunJobRequest, or raises ValueError with the reason, without the flag's name.
K, M, G and T are powers of 1024, in either case, with or without B or iB behind them.
"""

import re
from decimal import Decimal

INT32_MAX = 2**31 - 1  # the contract's limits are int32
INT64_MAX = 2**63 - 1  # and ours
WEIGHT_MAX = 10_000

MIB = 1024**2
UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_CORES = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*")
_GO_DURATION = re.compile(r"(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+|0")


def percent(text: str) -> int:
    """Percent of one core, 200 being two cores: "50", "50%"."""
    return _whole(text.removesuffix("%"), "write percent of one core, as in 50 or 150%")


def tasks(text: str) -> int:
    """Processes and threads: "100"."""
    return _whole(text, "write how many processes and threads, as in 100")


def mebibytes(text: str) -> int:
    """Memory in MiB: "512" and "512M" are the same, "2G", "1.5G"."""
    size = _size(text, bare=MIB)
    if size % MIB:
        raise ValueError("memory is counted in whole MiB; write it as in 512M or 2G")
    return _int32(size // MIB)


def size(text: str) -> int:
    """Bytes: "65536", "64K", "8M"."""
    return _int64(_size(text, bare=1))


def weight(text: str) -> int:
    """A share beside others, who have 100: "200" is twice as much."""
    value = _whole(text, "write a number from 1 to 10000; 100 is what everybody has")
    if not 1 <= value <= WEIGHT_MAX:
        raise ValueError("a weight is 1 to 10000; 100 is what everybody has")
    return value


def mebibytes_or_less(text: str) -> int:
    """Bytes; a bare number is MiB, as of the other limits of memory: "512", "512M", "64K"."""
    return _int64(_size(text, bare=MIB))


def files(text: str) -> int:
    """Open files and sockets: "4096"."""
    return _whole(text, "write how many files, as in 4096")


def bytes_per_second(text: str) -> int:
    """I/O bandwidth in bytes/s: "1048576", "10M", "10MB/s"."""
    return _int32(_size(text.removesuffix("/s"), bare=1))


def rate(text: str) -> int:
    """The same for limits of ours, which may be larger: "10G"."""
    return _int64(_size(text.removesuffix("/s"), bare=1))


def cores(text: str) -> str:
    """CPUs by number: "0-3", "1,3", "0-1,4"."""
    if not _CORES.fullmatch(text):
        raise ValueError("write CPU numbers and ranges, as in 0-3 or 1,3")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ValueError(f"the range {part} ends before it begins")
    return text


def duration(text: str) -> str:
    """A Go duration: "30s", "5m", "1h30m"; a bare number is seconds. Returned as Go text."""
    if text.isascii() and text.isdigit():
        return f"{int(text)}s"
    if not _GO_DURATION.fullmatch(text):
        raise ValueError("write it as in 30s, 5m or 1h30m")
    return text


def longer(text: str) -> str:
    """A duration, or "+30m": so much more than now."""
    plus = "+" if text.startswith("+") else ""
    try:
        return plus + duration(text.removeprefix("+"))
    except ValueError:
        raise ValueError("write it as in 2h, or +30m for so much more") from None


def _whole(text: str, how: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(how)
    return _int32(int(text))


def _size(text: str, *, bare: int) -> int:
    """Bytes; a number without a unit counts `bare` bytes each."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a number with K, M, G or T, as in 512M or 2G")
    number, letters = match.groups()
    unit = letters.upper().removesuffix("B").removesuffix("I")
    if unit not in UNITS or letters.upper() in {"I", "IB"}:
        raise ValueError(f"{letters!r} is no unit; write K, M, G or T, as in 512M or 2G")
    size = Decimal(number) * (UNITS[unit] if letters else bare)
    if size != size.to_integral_value():
        raise ValueError("it is not a whole number of bytes")
    return int(size)


def _int64(value: int) -> int:
    if value > INT64_MAX:
        raise ValueError("it is too large")
    return value


def _int32(value: int) -> int:
    if value > INT32_MAX:
        raise ValueError(f"it is too large, the most is {INT32_MAX} of its unit")
    return value
