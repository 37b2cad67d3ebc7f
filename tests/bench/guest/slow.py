# SPDX-License-Identifier: MIT
"""The part that measures what a slow disk does to jobs: how long their own write(2) takes.

Only in a VM: whoever starts this has throttled /dev/vdc, which becomes the logs' disk here. One job
prints faster than the disk takes it, first until memory_limit must be used up, then on. It writes
big blocks: of small ones a pipe takes hundreds before one has to wait, and none of the percentiles
would show it. Each overflow strategy gets a fresh disk and a server of its own.
"""

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import yaml

from rnx.errors import RnxError
from rnx.selection import Selection
from tests.bench.guest import store
from tests.bench.guest.errors import Broken
from tests.bench.guest.keepers import FINAL
from tests.bench.guest.load import BLOCK_BYTES, DATA, REPORTS, Compare, Load
from tests.bench.guest.measure import Row, Table, broken, row
from tests.bench.guest.peers import Joblet, said
from tests.bench.guest.setting import Setting

STRATEGIES: Final = ("compress", "spill", "sample", "alert")
CONFIGURATION: Final = Path("/etc/joblet/joblet-config.yml")
DISK: Final = "/dev/vdc"
DISK_RATE: Final = 5_000_000
"""Bytes a second that the disk takes."""
RATE: Final = 20_000_000
"""That the job prints, if it may: what an emulated processor manages beside the rest."""
MEMORY_LIMIT: Final = 32 << 20
FIRST_BYTES: Final = int(0.7 * MEMORY_LIMIT)
"""As long as the disk is no further behind, nobody can say that memory_limit is used up."""
AFTER_S: Final = 2 * MEMORY_LIMIT / (RATE - DISK_RATE)
"""From then on it is, if nothing was done about it. What is in between does not count."""
TOTAL: Final = 120_000_000
MOST_S: Final = 20.0
DIRTY_BYTES: Final = 8 << 20
"""The page cache may hold so much of what the disk has not: else it would hide the disk."""
READY_S: Final = 120.0
KEPT_S: Final = 180.0

# A write's time goes to the part of the run that it began in.
PROGRAM: Final = f"""
import json, os, sys, time
with open({str(DATA)!r}, "rb") as file:
    data = file.read()
clock = time.monotonic_ns
parts = ([], [], [])
written = at = 0
begin = clock()
while written < {TOTAL}:
    now = clock()
    passed = (now - begin) / 1e9
    if passed > {MOST_S}:
        break
    early = written / {RATE} - passed
    if early > 0.002:
        time.sleep(early)
        continue
    part = 2 if passed > {AFTER_S} else 0 if written - {DISK_RATE} * passed < {FIRST_BYTES} else 1
    before = clock()
    done = os.write(1, data[at : at + {BLOCK_BYTES}])
    parts[part].append(clock() - before)
    written += done
    at = (at + done) % len(data)
took = (clock() - begin) / 1e9
def figures(times):
    times.sort()
    pick = lambda part: times[min(len(times) - 1, int(len(times) * part))] / 1e6
    return dict(n=len(times), median=pick(0.5), p99=pick(0.99), most=times[-1] / 1e6,
                slow=sum(time > 10_000_000 for time in times)) if times else None
answer = json.dumps(dict(written=written, seconds=took, first=figures(parts[0]),
                         after=figures(parts[2])))
os.write(os.open({str(REPORTS)!r}, os.O_WRONLY), answer.encode().ljust(4000))
"""
REPORT_BYTES: Final = 4000
COMMAND: Final = ("/usr/bin/python3", "-IS", "-c", PROGRAM)


def slow(setting: Setting) -> list[Table]:
    """A row for each overflow strategy, in each of the tables."""
    del setting  # one run of each: they are long
    if not Path(DISK).exists():
        raise Broken(f"no {DISK}: this is measured in a VM, make bench-slow")
    Path("/proc/sys/vm/dirty_bytes").write_text(str(DIRTY_BYTES))
    Path("/proc/sys/vm/dirty_background_bytes").write_text(str(DIRTY_BYTES // 2))
    first: list[Row] = []
    after: list[Row] = []
    rates: list[Row] = []
    late: list[Row] = []
    for strategy in STRATEGIES:
        name = f"joblet: {strategy}"
        try:
            found = _run(strategy)
        except Broken as error:
            first.append(broken(name, str(error)))
            continue
        for rows, key in ((first, "first"), (after, "after")):
            if (figures := found[key]) is not None:
                note = (
                    f"median {figures['median']:.2f}, most {figures['most']:.0f}; "
                    f"{figures['slow']} of {figures['n']} writes above 10 ms"
                )
                rows.append(row(name, [figures["p99"]], ours=True, note=note))
            else:
                rows.append(broken(name, "it did not come so far", known=True))
        rate = found["written"] / 1e6 / found["seconds"]
        rates.append(row(name, [rate], unit="MB/s", ours=True, note=found["note"]))
        late.append(row(name, [found["late_s"]], unit="s", ours=True))
    what = f"a job's own write of {BLOCK_BYTES} bytes, the disk at {DISK_RATE / 1e6:.0f} MB/s"
    limit = f"memory_limit ({MEMORY_LIMIT >> 20} MiB)"
    return [
        {"title": f"{what}, p99: until {limit}", "rows": first},
        {"title": f"{what}, p99: after it", "rows": after},
        {"title": f"the job's rate, of {RATE / 1e6:.0f} MB/s asked for", "rows": rates},
        {"title": "until all is in files, after the job's last write", "rows": late},
    ]


def _run(strategy: str) -> dict[str, Any]:
    """What the job reported, `late_s` and `note`. Raises Broken."""
    _fresh(strategy)
    REPORTS.unlink(missing_ok=True)
    os.mkfifo(REPORTS)
    REPORTS.chmod(0o622)
    reports = os.open(REPORTS, os.O_RDWR | os.O_CLOEXEC)
    joblet = _served()
    try:
        job = joblet.start(*COMMAND)
        found = _report(reports, job)
    finally:
        os.close(reports)
    begin = time.monotonic()
    _ended(joblet, job)
    found["late_s"] = time.monotonic() - begin
    found["note"] = _check(joblet, job, found["written"])
    return found


def _fresh(strategy: str) -> None:
    """An empty disk for the logs, and a server with that strategy."""
    said(["systemctl", "stop", "joblet.service"])
    subprocess.run(["umount", str(store.LOGS)], check=False, capture_output=True)
    said(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=1", DISK])
    said(["mount", DISK, str(store.LOGS)])
    said(["rmdir", str(store.LOGS / "lost+found")])
    said(["chown", "joblet:joblet", str(store.LOGS)])
    said(["chmod", "0700", str(store.LOGS)])
    settings = yaml.safe_load(CONFIGURATION.read_text())
    settings["log_persistence"] = {
        "memory_limit": MEMORY_LIMIT,
        "overflow_strategy": strategy,
    }
    CONFIGURATION.write_text(yaml.safe_dump(settings))
    said(["sync"])
    said(["systemctl", "start", "joblet.service"])


def _served() -> Joblet:
    end = time.monotonic() + READY_S
    while True:
        try:
            return Joblet()
        except Broken:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _report(reports: int, job: str) -> dict[str, Any]:
    data = b""
    end = time.monotonic() + KEPT_S
    while len(data) < REPORT_BYTES:
        left = end - time.monotonic()
        if left <= 0 or not select.select([reports], [], [], left)[0]:
            raise Broken(f"job {job} did not report within {KEPT_S:.0f} s")
        data += os.read(reports, REPORT_BYTES - len(data))
    answer: dict[str, Any] = json.loads(data)
    return answer


def _ended(joblet: Joblet, job: str) -> None:
    end = time.monotonic() + KEPT_S
    try:
        while joblet.client.job_status(job).status not in FINAL:
            if time.monotonic() > end:
                raise Broken(f"job {job} has not ended after {KEPT_S:.0f} s")
            time.sleep(0.1)
    except RnxError as error:
        raise Broken(str(error)) from None


def _check(joblet: Joblet, job: str, total: int) -> str:
    """Whether what is not missing is as printed, and a word on what is."""
    compare = Compare(Load(0, total, BLOCK_BYTES))
    gaps: dict[str, int] = {}
    try:
        for chunk in joblet.client.job_logs(job, Selection(no_follow=True)):
            if chunk.HasField("gap"):
                gaps[chunk.gap.kind] = gaps.get(chunk.gap.kind, 0) + chunk.gap.bytes
                compare.skip(chunk.offset_end - compare.length)
            else:
                compare.update(chunk.payload)
    except RnxError as error:
        raise Broken(str(error)) from None
    if compare.length != total:
        raise Broken(f"{compare.length} of {total} bytes are there or missing as said")
    if not gaps:
        return f"{total / 1e6:.0f} MB, every byte as printed"
    said_gaps = ", ".join(f"{count / 1e6:.1f} MB {kind}" for kind, count in gaps.items())
    return f"{total / 1e6:.0f} MB, of which {said_gaps}; the others as printed"
