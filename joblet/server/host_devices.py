# SPDX-License-Identifier: MIT
"""Disks and network interfaces of the host, from /proc, /sys and the socket interface.

Blocking, and bounded: a host with a thousand mounts or interfaces shows the first MOST of them.
Numbers are counters since the boot; who wants a rate keeps the ones before.
"""

import contextlib
import dataclasses
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections import defaultdict
from pathlib import Path
from typing import Final

MOST: Final = 64
SECTOR_BYTES: Final = 512  # in /proc/diskstats, whatever the disk's own are

SIOCGIFADDR: Final = 0x8915
_IFREQ: Final = struct.Struct("16s24s")  # the name, and room for a sockaddr_in
_ADDRESS: Final = slice(20, 24)

# What mountinfo(5) writes instead of spaces, line ends and backslashes.
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    name: str
    bytes_in: int
    packets_in: int
    errors_in: int
    drops_in: int
    bytes_out: int
    packets_out: int
    errors_out: int
    drops_out: int
    mac: str = ""
    addresses: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    device: str
    point: str
    kind: str  # of filesystem


@dataclasses.dataclass(frozen=True, slots=True)
class Filesystem:
    """A filesystem on a disk, in bytes and inodes. free: for users who are not root."""

    mount: Mount
    total: int
    used: int
    free: int
    inodes: int
    inodes_free: int


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    name: str
    reads: int
    read_bytes: int
    read_ms: int
    writes: int
    write_bytes: int
    write_ms: int
    busy_ms: int


# -- network interfaces ----------------------------------------------------------------------------


def interfaces(proc: Path, sys: Path) -> tuple[Interface, ...]:
    """Raises OSError."""
    six: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):  # a kernel without IPv6
        six = ip6((proc / "net/if_inet6").read_text())
    return tuple(
        dataclasses.replace(
            interface,
            mac=_mac(sys / "class/net" / interface.name),
            addresses=(*_ip4(interface.name), *six.get(interface.name, ())),
        )
        for interface in counters((proc / "net/dev").read_text())[:MOST]
    )


def counters(dev: str) -> list[Interface]:
    """/proc/net/dev"""
    found = []
    for line in dev.splitlines():
        name, colon, rest = line.rpartition(":")  # a name may have one itself
        if not colon:
            continue  # the head
        numbers = [int(word) for word in rest.split()]
        received, sent = numbers[:8], numbers[8:]
        found.append(
            Interface(
                name.strip(),
                bytes_in=received[0],
                packets_in=received[1],
                errors_in=received[2],
                drops_in=received[3],
                bytes_out=sent[0],
                packets_out=sent[1],
                errors_out=sent[2],
                drops_out=sent[3],
            )
        )
    return found


def ip6(if_inet6: str) -> dict[str, list[str]]:
    """/proc/net/if_inet6: addresses by interface, without those that mean nothing elsewhere."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in if_inet6.splitlines():
        digits, *_, name = line.split()
        address = ipaddress.IPv6Address(int(digits, 16))
        if not address.is_link_local:
            found[name].append(str(address))
    return found


def _ip4(name: str) -> list[str]:
    """The first address of an interface. Not asked over netlink, which is closed to a hardened
    server."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFADDR, _IFREQ.pack(name.encode(), b""))
        return [socket.inet_ntoa(answer[_ADDRESS])]
    return []  # it has none


def _mac(directory: Path) -> str:
    """The hardware's address; none of what is no hardware."""
    with contextlib.suppress(OSError):
        text = (directory / "address").read_text().strip()
        return text if text.strip("0:") else ""
    return ""


# -- filesystems -----------------------------------------------------------------------------------


def filesystems(proc: Path) -> tuple[Filesystem, ...]:
    """Those on disks of this host. Not those of the network: a server that does not answer would
    hold up who asks. Raises OSError."""
    found = []
    for mount in mounts((proc / "self/mountinfo").read_bytes())[:MOST]:
        with contextlib.suppress(OSError):
            size = os.statvfs(mount.point)
            unit = size.f_frsize
            found.append(
                Filesystem(
                    mount,
                    total=size.f_blocks * unit,
                    used=(size.f_blocks - size.f_bfree) * unit,
                    free=size.f_bavail * unit,
                    inodes=size.f_files,
                    inodes_free=size.f_ffree,
                )
            )
    return tuple(found)


def mounts(mountinfo: bytes) -> list[Mount]:
    """/proc/PID/mountinfo: the first mount of each device that has a name in /dev, where no other
    filesystem was mounted over it."""
    points: dict[str, Mount] = {}
    for line in mountinfo.splitlines():
        before, _, behind = line.partition(b" - ")
        place, kind, device = before.split()[4], *behind.split()[:2]
        point = _unescaped(place)
        points[point] = Mount(_unescaped(device), point, kind.decode(errors="replace"))
    first: dict[str, Mount] = {}
    for mount in points.values():
        if mount.device.startswith("/dev/"):
            first.setdefault(mount.device, mount)
    return list(first.values())


def _unescaped(word: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), word))


# -- disks -----------------------------------------------------------------------------------------


def disks(proc: Path, sys: Path) -> tuple[Disk, ...]:
    """Whole disks with hardware, or a hypervisor, behind them: what lies on top of those, and
    parts of them, would be counted twice. Raises OSError."""
    there = traffic((proc / "diskstats").read_text())
    return tuple(disk for disk in there if (sys / "block" / disk.name / "device").exists())[:MOST]


def traffic(diskstats: str) -> list[Disk]:
    """/proc/diskstats"""
    found = []
    for line in diskstats.splitlines():
        words = line.split()
        if len(words) < 14:
            continue
        reads, _, sectors_in, read_ms, writes, _, sectors_out, write_ms, _, busy_ms = map(
            int, words[3:13]
        )
        found.append(
            Disk(
                words[2],
                reads,
                sectors_in * SECTOR_BYTES,
                read_ms,
                writes,
                sectors_out * SECTOR_BYTES,
                write_ms,
                busy_ms,
            )
        )
    return found
