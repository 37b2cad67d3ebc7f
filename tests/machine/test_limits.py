# SPDX-License-Identifier: MIT
"""Limits on a kernel that has the controllers: what was asked is what the cgroup says and the
kernel does."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest

from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.machine.rig import Vm


MIB = 1 << 20
MEASURED_S = 10


@pytest.fixture(scope="module")
def rnx(vm: Vm) -> Rnx:
    # the snapshot was taken without the project
    vm.run("systemctl daemon-reload; systemctl start joblet-init.socket joblet.service").check()
    wait_served(vm)
    return Rnx(vm)


def cgroup_file(vm: Vm, job: str, name: str) -> str:
    return vm.run(["cat", f"/sys/fs/cgroup/joblet.slice/joblet-{job}.scope/{name}"]).check().text


def test_effective_limits_are_what_was_asked(rnx: Rnx, vm: Vm) -> None:
    job = rnx.start("--max-cpu=50", "--max-memory=256M", "--max-iobps=8M", "--max-tasks=77",
                    "--cpu-cores=1", "--memory-high=200M", "--max-read-bps=9M", "--cpu-weight=20",
                    "sleep", "600")  # fmt: skip
    assert cgroup_file(vm, job, "cpu.max") == "50000 100000"
    assert cgroup_file(vm, job, "memory.max") == str(256 * MIB)
    assert cgroup_file(vm, job, "memory.swap.max") == "0"
    assert cgroup_file(vm, job, "pids.max") == "77"
    assert cgroup_file(vm, job, "cpuset.cpus") == "1"
    io = cgroup_file(vm, job, "io.max")
    assert f"rbps={9 * MIB} wbps={8 * MIB}" in io
    assert cgroup_file(vm, job, "memory.high") == str(200 * MIB)
    assert cgroup_file(vm, job, "cpu.weight") == "20"
    status = rnx.status(job)
    effective = status["effectiveLimits"]
    assert effective["maxCPU"] == 50
    assert effective["maxMemoryBytes"] == 256 * MIB
    assert (effective["maxReadBPS"], effective["maxWriteBPS"]) == (9 * MIB, 8 * MIB)
    assert effective["memoryHighBytes"] == 200 * MIB
    assert effective["maxSwapBytes"] == 0
    assert effective["cpuWeight"] == 20
    assert effective["maxTasks"] == 77
    assert effective["cpuCores"] == "1"
    assert not effective["notEnforced"]
    assert rnx("stop", job).code == 0


def test_limits_of_all_jobs_together_reach_the_kernel(rnx: Rnx, vm: Vm) -> None:
    job = rnx.start("sleep", "600")
    pids_max = "/sys/fs/cgroup/joblet.slice/pids.max"
    before = vm.read(pids_max)
    vm.run(["systemctl", "set-property", "--runtime", "joblet.slice", "TasksMax=777"]).check()
    assert vm.read(pids_max) == b"777\n"
    vm.run(["systemctl", "revert", "joblet.slice"]).check()
    assert vm.read(pids_max) == before
    assert rnx("stop", job).code == 0


def scope(job: str) -> str:
    return f"/sys/fs/cgroup/joblet.slice/joblet-{job}.scope"


def counter(vm: Vm, job: str, name: str, key: str) -> int:
    """A number of a cgroup's file, of all lines together: "usage_usec 5", "254:0 rbytes=5"."""
    words = cgroup_file(vm, job, name).replace("=", " ").split()
    return sum(int(value) for word, value in itertools.pairwise(words) if word == key)


def speed(vm: Vm, job: str, name: str, key: str, *, begun: int) -> float:
    """How fast a counter grows in a second, over ten, seen from outside the job; from when it has
    come to `begun`."""
    eventually(lambda: counter(vm, job, name, key) > begun, timeout=60, what=f"{key} of the job")
    read = f"cat {scope(job)}/{name} && echo && cut -d. -f1,2 /proc/uptime"
    script = f"{read}; sleep {MEASURED_S}; echo; {read}"
    text = vm.run(script, timeout=60).check().text
    before, uptime_before, after, uptime_after = text.split("\n\n")

    def sum_of(part: str) -> int:
        words = part.replace("=", " ").split()
        return sum(int(value) for word, value in itertools.pairwise(words) if word == key)

    seconds = float(uptime_after.split()[0]) - float(uptime_before.split()[0])
    return (sum_of(after) - sum_of(before)) / seconds


@pytest.fixture
def stops(rnx: Rnx) -> Iterator[Callable[..., str]]:
    """Starts jobs that the test's end stops."""
    jobs: list[str] = []

    def start(*words: str) -> str:
        jobs.append(rnx.start(*words))
        return jobs[-1]

    yield start
    for job in jobs:
        rnx.machine.run(["systemctl", "stop", f"joblet-{job}.scope"], timeout=90)


def test_half_a_processor_is_half_a_processor(stops: Callable[..., str], vm: Vm) -> None:
    def share(*limits: str) -> float:
        job = stops(*limits, "sh", "-c", "while :; do :; done")
        used = speed(vm, job, "cpu.stat", "usage_usec", begun=100_000) / 1e6
        vm.run(["systemctl", "stop", f"joblet-{job}.scope"], timeout=60).check()
        return used

    assert 0.5 * 0.85 <= share("--max-cpu=50") <= 0.5 * 1.15
    assert share() > 0.5 * 1.15


# -- memory ----------------------------------------------------------------------------------------

# what is random cannot be shared, and is not left out of the swap because it is nothing
HOG = "import os\nx = [os.urandom(1 << 20) for _ in range(128)]\nprint('all of it')"


@pytest.fixture(scope="module")
def swap(vm: Vm) -> Iterator[None]:
    vm.run("dd if=/dev/zero of=/swap bs=1M count=256 status=none && chmod 600 /swap && mkswap -q"
           " /swap && swapon /swap", timeout=120).check()  # fmt: skip
    yield
    vm.run("swapoff /swap && rm /swap", timeout=120).check()


def swapped(vm: Vm) -> int:
    """Pages that were ever written to swap."""
    return int(vm.run("awk '/^pswpout/{print $2}' /proc/vmstat").check().text)


@pytest.mark.usefixtures("swap")
def test_a_memory_hog_ends_alone_and_takes_no_swap(
    rnx: Rnx, stops: Callable[..., str], vm: Vm
) -> None:
    neighbour = stops("--max-memory=64M", "sh", "-c", "while :; do sleep 1; done")
    services = ["systemctl", "show", "-P", "InvocationID", "joblet", "joblet-init"]
    servers, before = vm.run(services).check().text, swapped(vm)
    script = f"sleep 600 & python3 -c '{HOG.replace(chr(39), chr(34))}'; echo survived; sleep 600"
    result = rnx("run", "--follow", "--max-memory=64M", "sh", "-c", script, timeout=120)
    assert result.code == 137
    assert result.stdout == b""
    job = rnx.json("list")[-1]["id"]
    status = rnx.status(job)
    assert (status["status"], status["reason"]) == ("FAILED", "oom")
    assert status["usage"]["memoryLimitBytes"] == 64 * MIB
    assert 60 * MIB < status["usage"]["memoryPeakBytes"] <= 64 * MIB
    assert status["reasonText"].startswith("oom: memory peak 6")
    assert status["reasonText"].endswith("limit 64.0 MiB")
    assert vm.run(["test", "-e", scope(job)]).code != 0
    assert swapped(vm) == before
    assert rnx.status(neighbour)["status"] == "RUNNING"
    assert vm.run(services).check().text == servers
    # with swap asked for, the same job swaps and lives
    asked = ("--max-memory=64M", "--max-swap=256M")
    result = rnx("run", "--follow", *asked, "python3", "-c", HOG, timeout=180)
    assert (result.code, result.text) == (0, "all of it")
    assert swapped(vm) > before
    # and with no limit at all it needs no swap
    assert rnx("run", "--follow", "python3", "-c", HOG, timeout=120).text == "all of it"


# -- disks -----------------------------------------------------------------------------------------

WRITE = "while :; do dd if=/dev/zero of=/work/f bs=256k count=32 conv=notrunc oflag=direct; done"
READ = "dd if=/dev/zero of=/work/f bs=256k count=32 oflag=direct; "
READ += "while :; do dd if=/work/f of=/dev/null bs=256k iflag=direct; done"


@pytest.mark.parametrize(
    ("limits", "script", "key", "asked"),
    [
        (["--max-iobps=4M"], WRITE, "wbytes", 4 * MIB),
        (["--max-iobps=4M"], READ, "rbytes", 4 * MIB),
        (["--max-iobps=1M", "--max-write-bps=6M"], WRITE, "wbytes", 6 * MIB),
        (["--max-iobps=4M", "--max-read-bps=2M"], READ, "rbytes", 2 * MIB),
    ],
    ids=["write", "read", "write-bps", "read-bps"],
)
def test_bandwidth_is_what_was_asked_for(
    stops: Callable[..., str], vm: Vm, limits: list[str], script: str, key: str, asked: int
) -> None:
    limited = stops(*limits, "sh", "-c", f"exec 2>/dev/null; {script}")
    assert 0.7 <= speed(vm, limited, "io.stat", key, begun=asked // 2) / asked <= 1.05


@pytest.mark.parametrize(("script", "field"), [(WRITE, 7), (READ, 3)], ids=["write", "read"])
def test_without_a_limit_there_is_more_bandwidth(
    stops: Callable[..., str], vm: Vm, script: str, field: int
) -> None:
    """The disk itself is not what the test above has measured. Without a limit there is no io.stat,
    so the disk's own counter of sectors is read."""
    stops("sh", "-c", f"exec 2>/dev/null; {script}")
    read = f"awk '{{print ${field}}}' /sys/block/vda/stat; cut -d' ' -f1 /proc/uptime"
    text = vm.run(f"{read}; sleep {MEASURED_S}; {read}", timeout=60).check().text
    first, begun, last, ended = map(float, text.split())
    assert (last - first) * 512 / (ended - begun) > 6 * MIB * 1.05


def test_a_weight_that_nobody_heeds_is_refused(rnx: Rnx, stops: Callable[..., str], vm: Vm) -> None:
    refused = rnx("run", "--io-weight=50", "true")
    assert refused.code == 1
    assert "no disk of this host has the scheduler BFQ, or io.cost" in refused.errors
    qos = "/sys/fs/cgroup/io.cost.qos"
    vm.run(f"echo $(cat /sys/block/vda/dev) enable=1 > {qos}").check()
    try:
        job = stops("--io-weight=50", "--cpu-weight=20", "sleep", "600")
        assert cgroup_file(vm, job, "io.weight").splitlines()[0] == "default 50"
        assert cgroup_file(vm, job, "cpu.weight") == "20"
        effective = rnx.status(job)["effectiveLimits"]
        assert (effective["ioWeight"], effective["cpuWeight"]) == (50, 20)
        assert effective["notEnforced"] == []
    finally:
        vm.run(f"echo $(cat /sys/block/vda/dev) enable=0 > {qos}").check()


# -- processes -------------------------------------------------------------------------------------


def processors(vm: Vm, job: str) -> set[str]:
    """Where the processes of a job were seen to run, from outside."""
    look = f"for p in $(cat {scope(job)}/cgroup.procs); do cut -d')' -f2- /proc/$p/stat; done"
    # PID 1 sleeps, and stays where it slept in before it came into the scope
    script = f"for i in $(seq 40); do {look}; sleep 0.05; done | awk '$1 == \"R\" {{print $37}}'"
    return set(vm.run(script, timeout=60).check().text.split())


BUSY = """
import os
try:
    os.sched_setaffinity(0, {0})
    print("moved", flush=True)
except OSError as error:
    print("not moved", flush=True)
os.sched_setaffinity(0, range(os.cpu_count()))
for _ in range(3):
    os.fork()
while True:
    pass
"""


def test_a_job_runs_on_its_processors_alone(rnx: Rnx, stops: Callable[..., str], vm: Vm) -> None:
    def where(*limits: str) -> tuple[str, set[str]]:
        job = stops(*limits, "python3", "-c", BUSY)
        said = eventually(lambda: rnx.log(job, "--no-follow"), timeout=60, what="its first line")
        seen = processors(vm, job)
        rnx("stop", job).check()
        return said.decode().strip(), seen

    assert where("--cpu-cores=1") == ("not moved", {"1"})
    assert where() == ("moved", {"0", "1"})


def test_processors_that_there_are_not_refuse_the_job(rnx: Rnx) -> None:
    """By effect: there is a controller, and the kernel did not take the list."""
    refused = rnx("run", "--cpu-cores=700", "true")
    assert refused.code == 1
    assert "cannot run the job with --cpu-cores: cpu_cores would not be enforced" in refused.errors


TREE = """
trap '' TERM
setsid sh -c 'trap "" TERM; (sleep 7311 & wait) & while :; do sleep 1; done' &
while :; do sleep 1; done
"""


def test_a_time_out_ends_the_whole_tree(rnx: Rnx, stops: Callable[..., str], vm: Vm) -> None:
    control = stops("sh", "-c", TREE)  # it begins first, and goes on
    sleepers = ["pgrep", "-cf", "^sleep 7311"]
    eventually(lambda: vm.run(sleepers).text == "1", timeout=30, what="the tree")
    result = rnx("run", "--follow", "--timeout=3s", "sh", "-c", TREE, timeout=90)
    assert result.code == 124
    ended = rnx.status(rnx.json("list")[-1]["id"])
    assert (ended["status"], ended["reason"], ended["timeout"]) == ("FAILED", "timeout", "3s")
    assert vm.run(["test", "-e", scope(ended["id"])]).code != 0
    assert rnx.status(control)["status"] == "RUNNING"
    assert vm.run(sleepers).text == "1"
    rnx("stop", control).check()
    assert vm.run(sleepers).text == "0"


# -- changes ---------------------------------------------------------------------------------------


def test_a_running_job_is_changed(rnx: Rnx, stops: Callable[..., str], vm: Vm) -> None:
    job = stops("--max-memory=64M", "--timeout=10m", "sleep", "600")
    unit = f"joblet-{job}.scope"
    vm.run(["systemctl", "set-property", unit, "MemoryMax=96M", "TasksMax=50"]).check()
    status = rnx.status(job)
    assert status["maxMemory"] == 64  # asked
    assert status["effectiveLimits"]["maxMemoryBytes"] == 96 * MIB
    assert status["effectiveLimits"]["maxTasks"] == 50
    assert "Memory: 96 MB (asked: 64 MB)" in rnx("status", job).check().text
    changed = rnx("--json", "job", "update", job, "--max-memory=128M", "--max-cpu=50",
                  "--max-write-bps=3M", "--cpu-cores=1", "--timeout=+30m").check()  # fmt: skip
    effective = json.loads(changed.stdout)["effectiveLimits"]
    assert (effective["maxMemoryBytes"], effective["maxCPU"]) == (128 * MIB, 50)
    assert json.loads(changed.stdout)["timeout"] == "40m"
    assert cgroup_file(vm, job, "memory.max") == str(128 * MIB)
    assert cgroup_file(vm, job, "memory.swap.max") == "0"
    assert cgroup_file(vm, job, "cpu.max") == "50000 100000"
    assert cgroup_file(vm, job, "cpuset.cpus") == "1"
    assert cgroup_file(vm, job, "pids.max") == "50"  # not named
    assert f"rbps=max wbps={3 * MIB}" in cgroup_file(vm, job, "io.max")
    lifted = ("--max-cpu=0", "--max-write-bps=0", "--cpu-cores=all", "--max-tasks=0")
    rnx("job", "update", job, *lifted).check()
    assert cgroup_file(vm, job, "cpu.max") == "max 100000"
    # its controller is not needed any more, so the file may be gone
    assert vm.run(f"cat {scope(job)}/cpuset.cpus").text == ""
    pids = cgroup_file(vm, job, "cgroup.procs").split()
    allowed = vm.run(f"grep Cpus_allowed_list: /proc/{pids[0]}/status").check().text
    assert allowed.split()[1] == "0-1"
    assert cgroup_file(vm, job, "pids.max") == "2048"
    assert "wbps=3" not in vm.run(f"cat {scope(job)}/io.max").text
    effective = rnx.status(job)["effectiveLimits"]
    assert (effective["cpuCores"], effective["maxWriteBPS"], effective["maxCPU"]) == ("", 0, 0)
    # what is refused changes nothing
    for flag, why in (("--max-memory=4M", "16 MiB"), ("--cpu-cores=700", "did not take it")):
        refused = rnx("job", "update", job, "--max-cpu=70", flag)
        assert refused.code == 1
        assert why in refused.errors
        assert cgroup_file(vm, job, "cpu.max") == "max 100000"
    # the next server knows what holds
    vm.run(["systemctl", "restart", "joblet.service"], timeout=90).check()
    wait_served(vm)
    status = rnx.status(job)
    assert (status["maxMemory"], status["timeout"], status["status"]) == (128, "40m", "RUNNING")
    rnx("stop", job).check()
    assert vm.run(f"find /run/systemd /etc/systemd -name '*{job}*'").check().text == ""
    entries = vm.run(["journalctl", "-o", "json", "JOBLET_WHAT=UpdateJob", f"JOBLET_JOB_ID={job}"])
    first, *_, last = map(json.loads, entries.check().stdout.splitlines())
    assert first["JOBLET_RESULT"] == "ok"
    assert first["JOBLET_WHO"] == status["createdBy"]
    assert first["JOBLET_FROM"].startswith("127.0.0.1:")
    assert f"max_memory_bytes={128 * MIB}" in first["JOBLET_CHANGE"]
    assert "timeout=+30m" in first["JOBLET_CHANGE"]
    assert last["JOBLET_RESULT"].startswith("cannot update job")


def test_a_time_out_can_be_changed_both_ways(rnx: Rnx, stops: Callable[..., str]) -> None:
    longer = stops("--timeout=20s", "sleep", "600")
    rnx("job", "update", longer, "--timeout=+1h").check()
    shorter = stops("--timeout=1h", "sleep", "600")
    refused = rnx("job", "update", shorter, "--timeout=1ms")
    assert refused.code == 1
    assert "longer than that time-out" in refused.errors
    rnx("job", "update", shorter, "--timeout=25s").check()
    ended = rnx.ended(shorter, timeout=60)
    assert (ended["status"], ended["reason"], ended["timeout"]) == ("FAILED", "timeout", "25s")
    # it began earlier, and was to end earlier
    assert rnx.status(longer)["status"] == "RUNNING"


def test_limits_below_what_a_job_needs_are_refused(rnx: Rnx) -> None:
    for limit, words in (("--max-memory=4M", "16 MiB"), ("--max-cpu=1", "5 %")):
        refused = rnx("run", limit, "true")
        assert refused.code == 1
        assert words in refused.errors


# every child forks, too; without the limit they stop at some number, for the sake of the machine
BOMB = """
import os, sys, time
most, gate = int(sys.argv[1]), os.open("/work/count", os.O_RDWR | os.O_CREAT | os.O_APPEND)
while True:
    if os.fstat(gate).st_size >= most:
        time.sleep(600)
    try:
        if os.fork() == 0:
            os.write(gate, b"x")
    except OSError:
        time.sleep(0.1)
"""


def test_a_fork_bomb_stops_at_its_limit(rnx: Rnx, stops: Callable[..., str], vm: Vm) -> None:
    bomb = stops("--max-tasks=64", "python3", "-c", BOMB, str(10**9))
    eventually(
        lambda: counter(vm, bomb, "pids.events", "max") > 100, timeout=120, what="the bomb's end"
    )
    assert int(cgroup_file(vm, bomb, "pids.current")) == 64
    # the machine is there, and other jobs run
    assert rnx("run", "--follow", "echo", "here", timeout=120).text == "here"
    assert int(cgroup_file(vm, bomb, "pids.current")) == 64
    rnx("stop", bomb).check()
    assert vm.run(["pgrep", "-f", "/work/count"]).code == 1  # nothing is left of it
    free = stops("python3", "-c", BOMB, "150")
    eventually(
        lambda: int(cgroup_file(vm, free, "pids.current")) > 128,
        timeout=60,
        what="more processes than the limited job had",
    )
