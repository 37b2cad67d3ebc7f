# SPDX-License-Identifier: MIT
"""Properties of a transient scope, as systemd's D-Bus interface takes them. Pure, no dbus_next.

Names, signatures and units are those of org.freedesktop.systemd1(5); SIGNATURES is the one place
that pairs a name with its signature, and every function below builds from it. Whether this host's
systemd knows a property, and whether its kernel enforces it, is found out elsewhere.

Object paths of units and masks of processors are here because they are the same kind of thing:
how a value of ours is spelt in systemd's interface.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from joblet.errors import InvalidArgument

# systemd's "infinity" of every uint64 limit.
INFINITY: Final = 2**64 - 1

# As many processors as Linux can be built for (CONFIG_NR_CPUS of x86-64).
CPUS_MAX: Final = 8192

UNIT_PATH: Final = "/org/freedesktop/systemd1/unit"

SIGNATURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "After": "as",
        "AllowedCPUs": "ay",
        "CPUQuotaPerSecUSec": "t",
        "CPUWeight": "t",
        "CollectMode": "s",
        "DefaultDependencies": "b",
        "Description": "s",
        "Documentation": "as",
        "IOReadBandwidthMax": "a(st)",
        "IOWeight": "t",
        "IOWriteBandwidthMax": "a(st)",
        "KillMode": "s",
        "MemoryHigh": "t",
        "MemoryMax": "t",
        "MemorySwapMax": "t",
        "OOMPolicy": "s",
        "PIDs": "au",
        "SendSIGHUP": "b",
        "SendSIGKILL": "b",
        "Slice": "s",
        "TasksMax": "t",
        "TimeoutStopUSec": "t",
    }
)


class Variant(NamedTuple):
    """A value with its D-Bus signature: what the bus sends where a message says "v"."""

    signature: str
    value: Any


class Property(NamedTuple):
    """One unit property. `value` is plain Python: int, str, bool, bytes, list, tuple."""

    name: str
    value: Any

    @property
    def variant(self) -> Variant:
        """Raises KeyError for a name that is not in SIGNATURES."""
        return Variant(SIGNATURES[self.name], self.value)


def description(text: str) -> Property:
    return Property("Description", text)


def documentation(links: Iterable[str]) -> Property:
    """What `systemctl status` names and `systemctl help` opens: man:rnx(1), https://…"""
    return Property("Documentation", list(links))


def slice_(unit: str) -> Property:
    return Property("Slice", unit)


def after(units: Iterable[str]) -> Property:
    return Property("After", list(units))


def default_dependencies(*, on: bool) -> Property:
    """Off: no Conflicts= and Before= on shutdown.target, no ordering behind the basic targets."""
    return Property("DefaultDependencies", on)


def collect_mode(mode: str) -> Property:
    """`inactive`, or `inactive-or-failed`: a failed unit is forgotten as well."""
    return Property("CollectMode", mode)


def kill_mode(mode: str) -> Property:
    """`control-group`, `mixed`, `process` or `none`."""
    return Property("KillMode", mode)


def send_sighup(*, on: bool) -> Property:
    """On: SIGHUP right after SIGTERM."""
    return Property("SendSIGHUP", on)


def send_sigkill(*, on: bool) -> Property:
    return Property("SendSIGKILL", on)


def timeout_stop(microseconds: int) -> Property:
    """From SIGTERM to SIGKILL. systemd refuses to change it on a running scope."""
    return Property("TimeoutStopUSec", microseconds)


def oom_policy(policy: str) -> Property:
    """`continue`, `stop` or `kill`. Scopes have it since systemd 253."""
    return Property("OOMPolicy", policy)


def cpu_quota(percent: int | None) -> Property:
    """Percent of one processor; 200 is two of them. None lifts the limit.

    systemd counts microseconds of processor time per second: 1 % is 10,000.
    """
    return Property("CPUQuotaPerSecUSec", INFINITY if percent is None else percent * 10_000)


def cpu_weight(weight: int) -> Property:
    """1 to 10000; the kernel's default is 100."""
    return Property("CPUWeight", weight)


def allowed_cpus(cpus: Iterable[int]) -> Property:
    """None at all lifts the limit."""
    return Property("AllowedCPUs", cpu_mask(cpus))


def memory_max(size: int | None) -> Property:
    """Bytes; None lifts the limit."""
    return Property("MemoryMax", INFINITY if size is None else size)


def memory_high(size: int | None) -> Property:
    """Bytes; None lifts the limit."""
    return Property("MemoryHigh", INFINITY if size is None else size)


def memory_swap_max(size: int | None) -> Property:
    """Bytes, 0 for no swap at all; None lifts the limit."""
    return Property("MemorySwapMax", INFINITY if size is None else size)


def tasks_max(count: int | None) -> Property:
    """Processes and threads; None lifts the limit."""
    return Property("TasksMax", INFINITY if count is None else count)


def io_weight(weight: int) -> Property:
    """1 to 10000; the kernel's default is 100."""
    return Property("IOWeight", weight)


def io_read_bandwidth_max(devices: Mapping[str, int]) -> Property:
    """Device node or a path on its filesystem -> bytes/s. An empty mapping lifts every limit."""
    return Property("IOReadBandwidthMax", list(devices.items()))


def io_write_bandwidth_max(devices: Mapping[str, int]) -> Property:
    """Device node or a path on its filesystem -> bytes/s. An empty mapping lifts every limit."""
    return Property("IOWriteBandwidthMax", list(devices.items()))


def pids(numbers: Iterable[int]) -> Property:
    """The processes that a scope starts with, as this process numbers them."""
    return Property("PIDs", list(numbers))


def unit_path(name: str) -> str:
    """The object path of a unit: every byte but ASCII letters and digits becomes `_xx`.

    A digit in front is escaped too, because no element of an object path's label may start
    with one. Inverse: `unit_of_path`.
    """
    label = []
    for place, byte in enumerate(name.encode()):
        letter = chr(byte)
        plain = byte < 0x80 and letter.isalnum() and not (place == 0 and letter.isdigit())
        label.append(letter if plain else f"_{byte:02x}")
    return f"{UNIT_PATH}/{''.join(label) or '_'}"


def unit_of_path(path: str) -> str | None:
    """The unit whose object path this is; None if it is no unit's."""
    label = path.removeprefix(f"{UNIT_PATH}/")
    if label == path or not label or "/" in label:
        return None
    if label == "_":
        return ""
    head, *escapes = label.split("_")
    name = bytearray(head.encode())
    for part in escapes:
        try:
            name += bytes.fromhex(part[:2]) + part[2:].encode()
        except ValueError:
            return None
        if len(part) < 2:
            return None
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def cpu_list(text: str) -> frozenset[int]:
    """Processors of a list like `0-3,7`. Raises InvalidArgument, naming the part that is wrong."""
    what = f"use the processors {text[:64]!r}"
    hint = "write numbers and ranges, separated by commas, like 0-3,7"
    cpus: set[int] = set()
    # Longer than any list that makes sense: without it "0-8191," a million times costs seconds.
    if len(text) > 4096:
        raise InvalidArgument(what, "the list is longer than 4096 characters", hint=hint)
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = _cpu(first), _cpu(last if dash else first)
        if low is None or high is None:
            raise InvalidArgument(what, f"{part!r} is neither a number nor a range", hint=hint)
        if low > high:
            raise InvalidArgument(what, f"the range {part!r} ends before it begins", hint=hint)
        if high >= CPUS_MAX:
            raise InvalidArgument(what, f"Linux has no processor {high}, {CPUS_MAX - 1} at most")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def cpu_list_text(cpus: Iterable[int]) -> str:
    """The shortest list with these processors, as the kernel writes it: `0-3,7`."""
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def cpu_mask(cpus: Iterable[int]) -> bytes:
    """systemd's byte mask: processor n is bit n % 8 of byte n // 8."""
    number = 0
    for cpu in cpus:
        number |= 1 << cpu
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


def cpus_of_mask(mask: bytes) -> frozenset[int]:
    """The processors of a byte mask (`EffectiveCPUs`, `AllowedCPUs`)."""
    return frozenset(
        8 * place + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1
    )


def _cpu(text: str) -> int | None:
    """A processor's number. int() alone would take "1_0", "+1" and digits of every script."""
    return int(text) if text.isascii() and text.isdigit() else None
