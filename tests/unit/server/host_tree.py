# SPDX-License-Identifier: MIT
"""A host made of files, beneath a directory: its /proc, /sys and /etc, for the tests to change."""

from pathlib import Path

CPUINFO = """\
cpu  {cpu}
cpu0 {cpu0}
cpu1 {cpu1}
intr 12345 0 0
ctxt 999
btime 1700000000
processes 4242
procs_running 2
"""
MEMINFO = """\
MemTotal:        8000000 kB
MemFree:         1000000 kB
MemAvailable:    6000000 kB
Buffers:          200000 kB
Cached:          3000000 kB
SwapCached:            0 kB
SReclaimable:     100000 kB
SwapTotal:       2000000 kB
SwapFree:        1500000 kB
HugePages_Total:       0
"""
DEV = """\
Inter-|   Receive                              |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:     500       5    0    0    0     0    0    0     500       5    0    0    0     0    0   0
  fake0: {received}   10    1    2    0     0    0    0 {sent}   20    3    4    0     0    0   0
 odd:0:       1       1    0    0    0     0    0    0       1       1    0    0    0     0    0   0
"""
IF_INET6 = """\
20010db8000000000000000000000007 02 40 00 80     fake0
fe80000000000000505400fffe123456 02 40 20 80     fake0
00000000000000000000000000000001 01 80 10 80       lo
"""
DISKSTATS = """\
   7       0 loop0 10 0 80 1 0 0 0 0 0 1 1 0 0 0 0 0 0
 254       0 vda 100 5 {read} 30 200 7 {written} 60 0 {busy} 90 0 0 0 0 0 0
 254       1 vda1 90 5 800 30 200 7 1600 60 0 70 90 0 0 0 0 0 0
 253       0 dm-0 90 5 800 30 200 7 1600 60 0 70 90
"""
MOUNTINFO = rb"""22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
29 28 254:1 /var/x /srv/x rw,relatime shared:1 - ext4 /dev/vda1 rw
30 28 254:2 / /home rw - ext4 /dev/vda2 rw
31 28 254:3 / /mnt/a\040b\134c rw shared:3 master:2 - xfs /dev/mapper/vg-a\040b rw
32 28 0:50 / /mnt/far rw - nfs4 server:/export rw
33 30 0:60 / /home ro - tmpfs inaccessible ro
"""
OS_RELEASE = """\
# a comment
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
ID=debian
BROKEN="never closed
"""
PASSWD = "root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/:/bin/sh\n\nbad line\n"


class HostTree:
    """Ten seconds pass with `later`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("proc/self", "proc/net", "proc/1x", "sys/block", "etc", "sys/class/net/fake0"):
            (root / name).mkdir(parents=True)
        for disk in ("vda", "dm-0", "loop0"):
            (root / "sys/block" / disk).mkdir()
        (root / "sys/block/vda/device").mkdir()
        self.write("sys/class/net/fake0/address", "52:54:00:12:34:56\n")
        self.write("proc/loadavg", "0.25 1.50 12.00 2/345 6789\n")
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/net/if_inet6", IF_INET6)
        self.write("proc/self/status", "Name:\tx\nVmRSS:\t 90000 kB\nRssAnon:\t   40000 kB\n")
        self.write("etc/os-release", OS_RELEASE)
        self.write("etc/passwd", PASSWD)
        (root / "proc/self/mountinfo").write_bytes(MOUNTINFO)
        self.at_first()

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def at_first(self) -> None:
        self._moving(
            (
                "1000 0 500 8000 300 0 0 200 0 0",
                "500 0 250 4000 150 0 0 100",
                "1 0 1 1 0 0 0 0",
            ),
            network=(1000, 2000),
            disk=(800, 1600, 70),
        )
        self.write("proc/uptime", "100.00 160.00\n")

    def later(self) -> None:
        """cpu0 worked half of the time, cpu1 not at all."""
        self._moving(
            (
                "1300 0 700 9400 300 0 0 300 0 0",
                "800 0 450 4300 150 0 0 300",
                "1 0 1 1001 0 0 0 0",
            ),
            network=(6000, 1000),  # what was sent began anew
            disk=(2800, 1800, 5070),
        )
        self.write("proc/uptime", "110.00 170.00\n")

    def _moving(
        self, cpu: tuple[str, str, str], network: tuple[int, int], disk: tuple[int, int, int]
    ) -> None:
        self.write("proc/stat", CPUINFO.format(cpu=cpu[0], cpu0=cpu[1], cpu1=cpu[2]))
        self.write("proc/net/dev", DEV.format(received=network[0], sent=network[1]))
        read, written, busy = disk
        self.write("proc/diskstats", DISKSTATS.format(read=read, written=written, busy=busy))

    def process(
        self,
        pid: int,
        name: str = "sh",
        *,
        state: str = "S",
        ticks: int = 0,
        started: int = 5000,
        pages: int = 10,
        cmdline: bytes = b"/bin/sh\0-c\0secret\0",
    ) -> None:
        """A process, or what it is now."""
        place = self.root / "proc" / str(pid)
        place.mkdir(exist_ok=True)
        (place / "stat").write_bytes(
            f"{pid} ({name}) {state} 1 {pid} {pid} 0 -1 4194560 100 0 0 0 {ticks - ticks // 2}"
            f" {ticks // 2} 7 7 20 0 3 0 {started} 1000000 {pages} 18446744073709551615"
            " 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n".encode()
        )
        (place / "cmdline").write_bytes(cmdline)
