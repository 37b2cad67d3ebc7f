# SPDX-License-Identifier: MIT
"""A disk that really is slow: what each overflow strategy does to jobs, memory and output.

The logs' disk is throttled outside the machine. How long the jobs' own writes took is printed and
no part of the verdict: make bench-slow measures it.
"""

from __future__ import annotations

import base64
import functools
import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from joblet.systemd import messages
from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.machine.rig import Vm

MIB = 1 << 20
DISK_RATE = 6 * MIB
LIMIT = 16 * MIB  # the smallest memory_limit that there is
TOTAL = 32 * MIB
BLOCK = 64 << 10
LINE = b"a line of the job\n"
# Of the stage beside output: a splice of each reader, indexes, ends of what was left out.
BEYOND = 4 * MIB

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
def rnx(vm: Vm) -> Iterator[Rnx]:
    vm.run(DISK, timeout=120).check()
    wait_served(vm)
    vm.throttle(DISK_RATE)
    yield Rnx(vm)
    vm.throttle(0)


def check(rnx: Rnx, job: str, content: str) -> tuple[dict[str, int], Any]:
    """What gaps of each kind cover, and what the job said on stderr."""
    position, report = 0, ""
    gaps: dict[str, int] = {}
    for line in rnx("--json", "log", "--no-follow", job, timeout=120).check().text.splitlines():
        piece = json.loads(line)
        if piece["stream"] == 2:
            report += piece["data"]
        elif "gap" in piece:
            gap = piece["gap"]
            gaps[gap["kind"]] = gaps.get(gap["kind"], 0) + gap["bytes"]
            position += gap["bytes"]
        else:
            raw = piece.get("data_base64")
            data = piece["data"].encode() if raw is None else base64.b64decode(raw)
            assert data == said(content, position, len(data)), position
            position += len(data)
    assert position == TOTAL
    return gaps, json.loads(report)


@pytest.mark.parametrize(
    ("strategy", "content", "what", "kinds"),
    [
        ("compress", "lines", None, set()),
        ("compress", "noise", "block", set()),
        ("spill", "noise", None, set()),
        ("sample", "noise", "sample", {"sampled"}),
        ("alert", "noise", "alert", set()),
    ],
)
def test_a_slow_disk(
    rnx: Rnx, vm: Vm, strategy: str, content: str, what: str | None, kinds: set[str]
) -> None:
    vm.run("rm -f /tmp/enough /tmp/most").check()
    with vm.spawn(["sh", "-c", WATCH]) as watch:
        job = rnx.start(f"--overflow={strategy}", "python3", "-c", PROGRAM, content)
        status = rnx.ended(job, timeout=180)
        vm.run("touch /tmp/enough").check()
        watch.wait()
    assert (status["status"], status["overflow"]) == ("COMPLETED", strategy)
    most = int(vm.read("/tmp/most"))
    gaps, times = check(rnx, job, content)
    print(f"{strategy}, {content}: ms {times}, stage {most / MIB:.1f} MiB, gaps {gaps}")
    assert set(gaps) == kinds
    assert (most > LIMIT + BEYOND) == (strategy == "alert")
    shown = rnx("monitor", "status").check().text
    assert re.search(rf"Overflow: .*\b{what or strategy} [1-9]", shown)
    if what:
        told = f"journalctl -o cat MESSAGE_ID={messages.OVERFLOW} JOBLET_OVERFLOW={what}"
        eventually(lambda: "slower than the jobs" in vm.run(told).text, what="a word of it")
        over = f"journalctl -o cat MESSAGE_ID={messages.OVERFLOW_OVER} JOBLET_OVERFLOW={what}"
        eventually(lambda: "keeps up" in vm.run(over).text, what="that it is over")
    assert vm.run("ls /run/joblet-stage /var/lib/joblet/spill | grep -c -- -.*-").text == "0"
