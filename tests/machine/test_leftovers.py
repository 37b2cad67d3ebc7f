# SPDX-License-Identifier: MIT
"""Nothing is left of jobs that have ended, and a stop at any moment of a launch is recorded as
one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.machine.client import FINAL, Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn

SHORT_JOBS = 200
STOPS = 100

# everything that a job could leave behind, one name a line; of logs that nobody uses the server
# keeps a bounded number open on the disk, and none in the stage once they have ended
TRACES = """
systemctl list-units --all --plain --no-legend 'joblet-*.scope' | cut -d' ' -f1
ls /var/lib/joblet/jobs
ps -eo comm=,args= | grep -E 'joblet-pid1|joblet: ' | grep -v grep
cat /proc/mounts | wc -l
for p in $(systemctl show -p MainPID --value joblet.service joblet-init.service) \
    $(pgrep -x joblet-zygote); do \
    ls -l /proc/$p/fd | grep -vc /var/lib/joblet/logs/; done
ls -d /sys/fs/cgroup/joblet.slice/*.scope 2>/dev/null
"""

# One process for all jobs: most of what an rnx costs is its start.
CLIENT = """
import contextlib, json, os, random, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from joblet_pb import joblet_pb2 as pb
from rnx.client import Client
from rnx.config import load
from rnx.errors import RnxError
client = Client(load(Path("/etc/joblet/rnx-config.yml")).node("default"))
def run(*words):
    return client.run_job(pb.RunJobRequest(command=words[0], args=words[1:]))
"""

SHORT = f"""{CLIENT}
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda n: run("sh", "-c", f"echo {{n}}"), range(int(sys.argv[1]))))
"""

# a job, and a `systemctl stop` 0 to 60 ms after its cgroup is there, again and again
STOPPER = f"""{CLIENT}
def launch():
    with contextlib.suppress(RnxError):
        run("sleep", "300")
SLICE = "/sys/fs/cgroup/joblet.slice"
moments = random.Random(20261124)
def scopes():
    there = os.listdir(SLICE) if os.path.isdir(SLICE) else []
    return {{name for name in there if name.endswith(".scope")}}
stops = []
for _ in range(int(sys.argv[1])):
    before = scopes()
    launching = threading.Thread(target=launch)
    launching.start()
    until = time.monotonic() + 20
    while not (new := scopes() - before) and time.monotonic() < until:
        time.sleep(0.0005)
    unit = new.pop()
    time.sleep(moments.uniform(0, 0.06))
    begun = time.monotonic()
    subprocess.run(["systemctl", "stop", unit], check=False)
    stops.append({{"job": unit[7:-6], "seconds": time.monotonic() - begun}})
    launching.join()
def settled(job):
    until = time.monotonic() + 30
    while (found := client.job_status(job)).status == "STOPPING" and time.monotonic() < until:
        time.sleep(0.05)
    return found
told = [settled(stop["job"]) for stop in stops]
print(json.dumps({{"stops": stops, "told": [(job.status, job.reason) for job in told]}}))
"""


@pytest.fixture
def rnx(fresh_machine: Nspawn) -> Rnx:
    wait_served(fresh_machine)
    return Rnx(fresh_machine)


def traces(machine: Nspawn) -> list[str]:
    return machine.run(TRACES).text.splitlines()


def test_nothing_is_left_after_many_short_jobs(rnx: Rnx, fresh_machine: Nspawn) -> None:
    for _ in range(4):  # what is opened once and kept, the channel for copies of lines too
        rnx("run", "--follow", "echo", "a line").check()
    eventually(lambda: fresh_machine.run("ls /var/lib/joblet/jobs").text == "")
    before = traces(fresh_machine)
    fresh_machine.run(["python3", "-c", SHORT, str(SHORT_JOBS)], timeout=240).check()

    def ended() -> list[dict[str, str]] | None:
        jobs: list[dict[str, str]] = rnx.json("list")
        return jobs if all(job["status"] in FINAL for job in jobs) else None

    jobs = eventually(ended, timeout=30, what="the last job's end") or []
    assert len(jobs) == SHORT_JOBS + 4
    assert {job["status"] for job in jobs} == {"COMPLETED"}

    def same() -> bool:
        return traces(fresh_machine) == before

    try:
        eventually(same, timeout=20)
    finally:
        print("before:", before, "after:", traces(fresh_machine))
        print(fresh_machine.run("ls -l /proc/$(systemctl show -p MainPID --value joblet)/fd").text)


def test_systemctl_stop_at_random_moments_of_a_launch(rnx: Rnx, fresh_machine: Nspawn) -> None:
    """Every record is right, and nobody waits for the grace."""
    stopped = fresh_machine.run(["python3", "-c", STOPPER, str(STOPS)], timeout=240).check()
    stops = json.loads(stopped.stdout)["stops"]
    told = json.loads(stopped.stdout)["told"]
    assert {job["id"] for job in rnx.json("list")} == {stop["job"] for stop in stops}
    assert len(told) == STOPS
    assert {(status, reason) for status, reason in told} == {("STOPPED", "unit-stopped")}
    assert max(stop["seconds"] for stop in stops) < 4  # the grace is 5 s
    eventually(lambda: fresh_machine.run("ls /var/lib/joblet/jobs").text == "", timeout=20)
