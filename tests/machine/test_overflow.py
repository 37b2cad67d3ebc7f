# SPDX-License-Identifier: MIT
"""A disk that really is slow: what each overflow strategy does to jobs, memory and output.

The logs' disk is throttled outside the machine. How long the jobs' own writes took is printed and
no part of the verdict: make bench-slow measures it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
from typing import TYPE_CHECKING

import pytest

from joblet.systemd import messages
from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from tests.machine.rig import Vm

MIB = 1 << 20
DISK_RATE = MIB // 4  # until the stage has had to take all of it, or has no room left
LIMIT = 16 * MIB  # the smallest memory_limit that there is
TOTAL = 24 * MIB
BLOCK = 64 << 10
LINE = b"a line of the job\n"
# Of the stage beside output: a splice of each reader, indexes, ends of what was left out.
BEYOND = 3 * MIB

CONFIGURATION = "/etc/joblet/joblet-config.yml"
# Else the page cache would hide the disk.
DISK = f"""
set -e
systemctl daemon-reload
systemctl stop joblet.service
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=1 /dev/vdc
mount /dev/vdc /var/lib/joblet/logs
rmdir /var/lib/joblet/logs/lost+found
chown joblet:joblet /var/lib/joblet/logs
chmod 0700 /var/lib/joblet/logs
echo {4 * MIB} >/proc/sys/vm/dirty_bytes
echo {2 * MIB} >/proc/sys/vm/dirty_background_bytes
printf 'log_persistence: {{memory_limit: %s}}\\n' {LIMIT} >>{CONFIGURATION}
# Else journald, drowned in copies of output, would not take what the server says itself.
echo 'journal: {{copy_rate: 0}}' >>{CONFIGURATION}
systemctl start joblet-init.socket joblet.service
"""

# Says on stderr how long its writes took, in ms: those until memory_limit, and those behind.
PROGRAM = f"""
import json, os, random, sys, time
rest = ({LINE!r} * {BLOCK})[:{BLOCK} - 16]
if sys.argv[1] == "noise":
    rest = random.Random(1).randbytes({BLOCK} - 16)
times = [], []
for number in range({TOTAL // BLOCK}):
    block = memoryview(b"%015d\\n" % number + rest)
    while block:
        begin = time.monotonic()
        block = block[os.write(1, block):]
        times[number * {BLOCK} >= {LIMIT}].append((time.monotonic() - begin) * 1000)
print(json.dumps([[round(sorted(part)[int(len(part) * at)], 1) for at in (0.5, 0.99, 0.9999)]
                  for part in times]), file=sys.stderr)
"""

WATCH = """
most=0
while ! test -e /tmp/enough; do
    now=$(du -s --block-size=1 /run/joblet-stage | cut -f1)
    test "$now" -le "$most" || most=$now
    echo "$most" >/tmp/most
    sleep 0.05
done
"""


@functools.cache
def rest(content: str) -> bytes:
    """What a block holds behind its number."""
    if content == "noise":
        return random.Random(1).randbytes(BLOCK - 16)
    return (LINE * BLOCK)[: BLOCK - 16]


def said(content: str, position: int, count: int) -> bytes:
    """What the program prints there."""
    first, last = position // BLOCK, (position + count - 1) // BLOCK
    text = b"".join(b"%015d\n" % number + rest(content) for number in range(first, last + 1))
    return text[position - first * BLOCK :][:count]


@pytest.fixture(scope="module")
def rnx(vm: Vm) -> Rnx:
    vm.run(DISK, timeout=120).check()
    wait_served(vm)
    return Rnx(vm)


def read(rnx: Rnx) -> int:
    """Bytes that the server has read from jobs' pipes."""
    return int(rnx.json("monitor", "status")["logsInfo"]["bytesIn"])


def check(vm: Vm, job: str, content: str) -> None:
    """Every byte is as it was printed, and none is missing."""
    whole = f"rnx log --no-follow --strict --stdout {job} >/tmp/out && sha256sum </tmp/out"
    told = vm.run(whole, timeout=120).check().text.split()[0]
    assert told == hashlib.sha256(said(content, 0, TOTAL)).hexdigest()


def check_sampled(rnx: Rnx, job: str, content: str) -> None:
    """Every byte is as it was printed, or in a gap that says so."""
    position = missing = 0
    words = ("--json", "log", "--no-follow", "--stdout", job)
    for line in rnx(*words, timeout=120).check().text.splitlines():
        piece = json.loads(line)
        if "gap" in piece:
            assert piece["gap"]["kind"] == "sampled"
            position += piece["gap"]["bytes"]
            missing += piece["gap"]["bytes"]
        else:
            data = piece["data"].encode()
            assert data == said(content, position, len(data)), position
            position += len(data)
    assert position == TOTAL
    assert 0 < missing < TOTAL


@pytest.mark.parametrize(
    ("strategy", "content", "what"),
    [
        ("compress", "lines", None),
        ("compress", "noise", "block"),
        ("spill", "noise", None),
        ("sample", "lines", "sample"),
        ("alert", "noise", "alert"),
    ],
)
def test_a_slow_disk(rnx: Rnx, vm: Vm, strategy: str, content: str, what: str | None) -> None:
    vm.run("rm -f /tmp/enough /tmp/most").check()
    with vm.spawn(["sh", "-c", WATCH]) as watch:
        before = read(rnx)
        vm.throttle(DISK_RATE)
        job = rnx.start(f"--overflow={strategy}", "python3", "-c", PROGRAM, content)
        if what == "block":
            told = "the disk is slower than the jobs"
            eventually(lambda: told in rnx.status(job)["outputTrouble"], timeout=60, what=told)
        else:
            eventually(lambda: read(rnx) >= before + TOTAL, timeout=60, what="all that it prints")
        vm.throttle(0)
        status = rnx.ended(job, timeout=180)
        vm.run("touch /tmp/enough").check()
        watch.wait()
    assert (status["status"], status["overflow"]) == ("COMPLETED", strategy)
    most = int(vm.read("/tmp/most"))
    times = rnx.log(job, "--no-follow", "--stderr").decode().strip()
    print(f"{strategy}, {content}: ms {times}, stage {most / MIB:.1f} MiB")
    if strategy == "sample":
        check_sampled(rnx, job, content)
    else:
        check(vm, job, content)
    if strategy != "alert":
        assert most <= LIMIT + BEYOND
    shown = rnx("monitor", "status").check().text
    assert re.search(rf"Overflow: .*\b{what or strategy} [1-9]", shown)
    if what:
        told = f"journalctl -o cat MESSAGE_ID={messages.OVERFLOW} JOBLET_OVERFLOW={what}"
        eventually(lambda: "slower than the jobs" in vm.run(told).text, what="a word of it")
        over = f"journalctl -o cat MESSAGE_ID={messages.OVERFLOW_OVER} JOBLET_OVERFLOW={what}"
        eventually(lambda: "keeps up" in vm.run(over).text, what="that it is over")
    assert vm.run("ls /run/joblet-stage /var/lib/joblet/spill | grep -c -- -.*-").text == "0"
