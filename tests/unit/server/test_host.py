# SPDX-License-Identifier: MIT
"""What the server sees of its host: files as kernels write them, and as hostile jobs make them."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from joblet.server import host, host_devices, host_facts, host_proc
from joblet.server.host import PAGE_BYTES, SHARE, TICKS_S, TOP, Host
from joblet.server.host_facts import Cloud
from joblet.server.host_proc import CpuShares, CpuTimes
from tests.unit.server.host_tree import DEV, IF_INET6, MEMINFO, MOUNTINFO, PASSWD, HostTree

# names that a process may give itself, 15 bytes at most
NAMES = [
    "sh",
    "",
    "with space",
    "tmux: server",
    "(sd-pam)",
    ")",
    ") R 0 (",
    "a) Z 1 1 1 1 (b",
    "line\nend",
    "\n1 (x) R 0",
    "tab\tand\\",
    "\x1b[31mred",
    "ü",
    "%n{0}",
]


@pytest.fixture
def tree(tmp_path: Path) -> HostTree:
    return HostTree(tmp_path)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def looking(tree: HostTree, clock: Clock) -> Host:
    return Host(10, wall_us=lambda: 1_700_000_100_000_000, clock=clock, root=tree.root)


# -- parsers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_process_is_read_whatever_it_calls_itself(name: str, tree: HostTree) -> None:
    tree.process(77, name, state="D", ticks=31, started=1234, pages=99)
    stat = host_proc.stat((tree.root / "proc/77/stat").read_bytes())
    assert (stat.pid, stat.name, stat.state, stat.ppid) == (77, name, "D", 1)
    assert (stat.ticks, stat.threads, stat.started, stat.resident_pages) == (31, 3, 1234, 99)


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_the_kernel_writes_names_as_the_parser_takes_them(name: str) -> None:
    rename = "open('/proc/self/comm', 'w', newline='').write(sys.argv[1])"
    code = f"import sys; {rename}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stat = host_proc.stat(Path(f"/proc/{process.pid}/stat").read_bytes())
        process.kill()
    assert stat.name == name
    assert (stat.pid, stat.ppid) == (process.pid, os.getpid())
    assert stat.threads == 1


def test_a_name_that_is_no_text_is_shown_all_the_same(tree: HostTree) -> None:
    tree.process(77)
    path = tree.root / "proc/77/stat"
    path.write_bytes(path.read_bytes().replace(b"(sh)", b"(\xff\xfe)"))
    assert host_proc.stat(path.read_bytes()).name == "\ufffd\ufffd"


@pytest.mark.parametrize("raw", [b"", b"77", b"77 (sh", b"77 (sh) S 1 1", b"x (sh) S" + b" 1" * 30])
def test_what_is_no_process_is_refused(raw: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        host_proc.stat(raw)


def test_memory() -> None:
    memory = host_proc.memory(MEMINFO.encode())
    assert (memory.total, memory.used, memory.free) == (8_192_000_000, 2_048_000_000, 1_024_000_000)
    assert (memory.cached, memory.buffers) == (3_174_400_000, 204_800_000)
    assert (memory.swap_total, memory.swap_free) == (2_048_000_000, 1_536_000_000)
    assert host_proc.memory(b"MemTotal: 10 kB\nMemFree: 4 kB\n").available == 4096
    assert host_proc.memory(b"nonsense\n").total == 0


def test_cpu_times_of_old_kernels_and_of_guests() -> None:
    """Fields that are not there are 0; what guests used is in `user` already."""
    times = host_proc.cpu_times(b"cpu  1 2 3 4\ncpu0 1 2 3 4 5 6 7 8 9 10 11\nother 1\n")
    assert times == {"cpu": CpuTimes(3, 3, 4), "cpu0": CpuTimes(3, 16, 4, 5, 8)}


def test_shares_of_a_time() -> None:
    before, now = CpuTimes(100, 50, 800, 30, 20), CpuTimes(130, 70, 840, 29, 30)
    assert host_proc.shares(before, now) == CpuShares(30, 20, 40, 0, 10)  # waiting went back
    assert host_proc.shares(before, before) == CpuShares(idle=100)
    assert host_proc.shares(before, now).busy == 60


def test_a_core_that_is_switched_on() -> None:
    before = {"cpu": CpuTimes(), "cpu0": CpuTimes(10, 0, 10)}
    now = {"cpu": CpuTimes(), "cpu0": CpuTimes(20, 0, 10), "cpu1": CpuTimes(10, 0, 30)}
    assert host_proc.per_core(before, now) == (100, 25)


def test_the_program_alone_is_shown() -> None:
    assert host_proc.program(b"/usr/bin/mysql\0--password=x\0") == "/usr/bin/mysql"
    assert host_proc.program(b"") == ""
    assert host_proc.program(b"no end\xff") == "no end\ufffd"


def test_users() -> None:
    assert host_proc.users(PASSWD.encode()) == {0: "root"}


def test_interfaces_may_have_odd_names() -> None:
    found = host_devices.counters(DEV.format(received=1000, sent=2000))
    assert [one.name for one in found] == ["lo", "fake0", "odd:0"]
    fake0 = found[1]
    assert (fake0.bytes_in, fake0.packets_in, fake0.errors_in, fake0.drops_in) == (1000, 10, 1, 2)
    assert (fake0.bytes_out, fake0.packets_out, fake0.errors_out, fake0.drops_out) == (
        2000,
        20,
        3,
        4,
    )


def test_addresses_that_mean_something_elsewhere() -> None:
    assert host_devices.ip6(IF_INET6) == {"fake0": ["2001:db8::7"], "lo": ["::1"]}


def test_one_mount_of_each_disk_that_can_be_seen() -> None:
    found = [(mount.device, mount.point, mount.kind) for mount in host_devices.mounts(MOUNTINFO)]
    assert found == [
        ("/dev/vda1", "/", "ext4"),
        ("/dev/mapper/vg-a b", "/mnt/a b\\c", "xfs"),
    ]


def test_what_a_cloud_writes_into_the_firmware() -> None:
    known = {
        ("Amazon EC2", "m5.large"): Cloud("aws", "m5.large", "kvm"),
        ("Google", "Google Compute Engine"): Cloud("gcp", "", "kvm"),
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)"): Cloud("", "", "kvm"),
        ("VMware, Inc.", "VMware7,1"): Cloud("", "", "vmware"),
        ("Dell Inc.", "PowerEdge"): Cloud(),
    }
    for (vendor, product), cloud in known.items():
        assert host_facts.cloud({"sys_vendor": vendor, "product_name": product}) == cloud
    azure = {
        "sys_vendor": "Microsoft Corporation",
        "product_name": "Virtual Machine",
        "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
    }
    assert host_facts.cloud(azure) == Cloud("azure", "", "hyperv")


def test_facts_of_a_host(tree: HostTree) -> None:
    facts = host_facts.gather(tree.root)
    assert (facts.system, facts.distribution) == ("Debian GNU/Linux 12 (bookworm)", "debian")
    assert (facts.family, facts.version) == ("debian", "12")
    assert facts.kernel == os.uname().release
    assert facts.cloud == Cloud()


def test_facts_of_a_host_that_says_nothing(tmp_path: Path) -> None:
    facts = host_facts.gather(tmp_path)
    assert (facts.system, facts.distribution, facts.version) == ("Linux", "", "")


# -- samples ---------------------------------------------------------------------------------------


def test_the_first_sample_is_of_the_time_since_the_boot(tree: HostTree) -> None:
    tree.process(5, ticks=10 * TICKS_S, started=50 * TICKS_S)
    sample = looking(tree, Clock()).look()
    assert (sample.cores, sample.load) == (2, (0.25, 1.5, 12.0))
    assert sample.cpu == CpuShares(10, 5, 80, 3, 2)
    assert sample.per_core == pytest.approx((17, 200 / 3))
    assert (sample.at_us, sample.boot_us) == (1_700_000_100_000_000, 1_700_000_000_000_000)
    assert sample.uptime_s == 100
    assert (sample.rates, sample.busy) == ({}, {})
    assert sample.own.memory == 40_960_000
    (one,) = sample.processes.by_cpu
    assert one.cpu == pytest.approx(10)  # 10 s of 100
    assert one.started_us == 1_700_000_050_000_000


def test_the_next_sample_is_of_the_time_since_the_first(tree: HostTree) -> None:
    clock = Clock()
    seeing = looking(tree, clock)
    tree.process(5, ticks=1000, started=5000)
    tree.process(6, ticks=1000, started=5000)
    seeing.look()
    tree.later()
    tree.process(5, ticks=1000 + 5 * TICKS_S, started=5000)
    tree.process(6, ticks=TICKS_S, started=9000)  # another one, with the same number
    tree.process(7, ticks=2 * TICKS_S, started=9000)
    clock.now += 10
    sample = seeing.look()
    assert sample.cpu == CpuShares(15, 10, 70, 0, 5)
    assert list(sample.per_core) == [70, 0]
    assert sample.rates["fake0"] == (500.0, 0.0)
    assert sample.rates["vda"] == (102_400.0, 10_240.0)
    assert sample.busy == {"vda": 50.0}
    assert [disk.name for disk in sample.disks] == ["vda"]
    assert {p.pid: p.cpu for p in sample.processes.by_cpu} == {5: 50, 7: 20, 6: 10}
    fake0 = sample.interfaces[1]
    assert (fake0.mac, fake0.addresses) == ("52:54:00:12:34:56", ("2001:db8::7",))


def test_processes_are_counted_and_the_largest_shown(tree: HostTree) -> None:
    for pid in range(100, 160):
        tree.process(pid, state="SSSIDRTtZX"[pid % 10], ticks=pid, pages=1000 - pid)
    tree.process(3, NAMES[6], ticks=9999, pages=0, cmdline=b"")
    (tree.root / "proc/160").mkdir()  # it has ended
    (tree.root / "proc/161").mkdir()
    tree.write("proc/161/stat", "")
    seen = looking(tree, Clock()).look().processes
    assert (seen.total, seen.threads) == (61, 183)
    assert seen.states == {
        "sleeping": 19, "idle": 6, "waiting": 6, "running": 6, "stopped": 6, "traced": 6,
        "zombie": 6, "other": 6,
    }  # fmt: skip
    assert [p.pid for p in seen.by_cpu] == [3, *range(159, 159 - TOP + 1, -1)]
    assert [p.pid for p in seen.by_memory] == list(range(100, 100 + TOP))
    first = seen.by_memory[0]
    assert (first.memory, first.command) == (900 * PAGE_BYTES, "/bin/sh")
    assert first.user in {"root", str(os.getuid())}
    assert (seen.by_cpu[0].name, seen.by_cpu[0].command) == (NAMES[6], "")


def test_a_look_at_all_processes_has_its_share_of_the_time(
    tree: HostTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: the more, the less often; everything else comes on time."""
    clock = Clock()
    seeing = looking(tree, clock)
    looks = 0
    really = Host._stats

    def slow(self: Host) -> list[host_proc.Stat]:
        nonlocal looks
        looks += 1
        clock.now += 2.0  # so many processes
        return really(self)

    monkeypatch.setattr(Host, "_stats", slow)
    begun = clock.now
    for number in range(100):
        tree.write("proc/loadavg", f"{number} 0 0 1/2 3\n")
        assert seeing.look().load[0] == number
        clock.now += 10
    assert looks == pytest.approx((clock.now - begun) / (2 * SHARE), abs=1.5)


def test_this_host() -> None:
    """As it is: its kernel's own files."""
    seeing = Host(10, wall_us=lambda: time.time_ns() // 1000)
    seeing.look()
    sample = seeing.look()
    assert sample.cores >= 1
    assert len(sample.per_core) == sample.cores
    assert 0 <= sample.cpu.busy <= 100
    assert sample.memory.total > sample.memory.available > 0
    assert sample.processes.total >= sum(sample.processes.states.values()) > 0
    assert sample.processes.by_memory[0].memory >= sample.processes.by_memory[-1].memory
    assert sample.own.memory > 1 << 20
    assert [one.name for one in sample.interfaces].count("lo") == 1
    (lo,) = [one for one in sample.interfaces if one.name == "lo"]
    assert "127.0.0.1" in lo.addresses


# -- the thread ------------------------------------------------------------------------------------


def test_what_was_seen_is_there_at_once_and_a_fault_is_told_once(
    tree: HostTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "FIRST_S", 0.001)
    seeing = Host(0.001, wall_us=lambda: 7, root=tree.root)
    looks = threading.Semaphore(0)
    really = Host.look

    def look(self: Host) -> host.Sample:
        looks.release()
        return really(self)

    def wait(times: int) -> None:
        for _ in range(times):
            assert looks.acquire(timeout=30)

    monkeypatch.setattr(Host, "look", look)
    assert not seeing.latest
    caplog.set_level(logging.ERROR)
    seeing.start()
    wait(3)
    assert seeing.latest is not None
    load = tree.root / "proc/loadavg"
    load.rename(load.with_suffix(".away"))
    wait(5)
    assert seeing.latest is not None  # the last one that was whole
    load.with_suffix(".away").rename(load)
    wait(3)
    seeing.stop()
    assert not seeing._thread.is_alive()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "cannot look at the host" in caplog.text
