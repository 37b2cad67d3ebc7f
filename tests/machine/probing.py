# SPDX-License-Identifier: MIT
"""What a hostile job tries (joblet/launch/probe.py, which is installed with the server and which
jobs see beneath /usr), how it is run in a machine, and what must come of it.

Each attempt must succeed outside, as root of the same machine: one that fails there proves nothing.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.machine.client import Rnx

PROBE = "/usr/share/joblet/joblet/launch/probe.py"
SUID = "/usr/local/lib/joblet-tests/suid-id"  # beneath /usr, which jobs see
MARK = "joblet-probe-mark"
PROBE_S = 240.0

# "You may not", "read-only", "there is no such thing here", "no more namespaces", "no such id",
# "there is no such call"
REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSPC", "EINVAL", "ESRCH", "ENOKEY", "ENOSYS"}

FACTS = {
    "inherited_descriptors",
    "processes",
    "pid1",
    "devices",
    "what_is_masked",
    "top",
    "etc",
    "cgroup",
    "owners_of_the_machines_files",
    "privileges",
}
# fmt: off
DEVICES = ["fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
           "stdout", "tty", "urandom", "zero"]
TOP = ["bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr", "var",
       "work"]
# fmt: on


@contextlib.contextmanager
def standing(rnx: Rnx) -> Iterator[dict[str, Any]]:
    """What there is to be reached: a process, shared memory, a queue, a key, another job."""
    vm = rnx.machine
    vm.run(f"mkdir -p $(dirname {SUID}) && cp /usr/bin/id {SUID} && chmod 4755 {SUID}").check()
    script = "echo mine > /work/secret; echo ready; exec sleep 3600"
    job = rnx.start(f"--env=A={MARK}", "sh", "-c", script)
    scope = f"/sys/fs/cgroup/joblet.slice/joblet-{job}.scope/cgroup.procs"
    vm.wait_for(["sh", "-c", f"rnx log --no-follow {job} | grep -q ready"])
    pids = vm.run(f"for p in $(cat {scope}); do echo $p $(cat /proc/$p/comm); done").check().text
    [job_pid] = [line.split()[0] for line in pids.splitlines() if line.endswith(" sleep")]
    with vm.spawn(["python3", "-I", PROBE, "stand", MARK], stdin=True) as found:
        made = json.loads(found.wait_for(b"\n"))
        yield {**made, "job": job, "job_pid": int(job_pid), "suid": SUID}
    rnx("stop", job).check()


def probe_command(context: dict[str, Any], *more: str) -> list[str]:
    return ["python3", "-I", PROBE, "run", "--context", json.dumps(context), *more]


def run_outside(rnx: Rnx, context: dict[str, Any]) -> dict[str, Any]:
    """What comes of each as root of the machine; its output goes to a pipe, as a job's does."""
    command = f"{shlex.join(probe_command(context))} 7</etc/hostname | cat"
    found: dict[str, Any] = json.loads(rnx.machine.run(command, timeout=PROBE_S).check().stdout)
    assert found.keys() > FACTS
    return found


def attempts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in FACTS}


def done(found: dict[str, Any]) -> set[str]:
    """The attempts that succeeded; each of the others was refused, and did not just go wrong."""
    strange = {n: v for n, v in attempts(found).items() if v != "ok" and v not in REFUSED}
    assert strange == {}
    return {name for name, value in attempts(found).items() if value == "ok"}


def judge_facts(outside: dict[str, Any], inside: dict[str, Any]) -> None:
    assert outside["processes"] > 5
    assert inside["processes"] == 3  # PID 1, the probe, the probe's child that looks
    assert inside["pid1"].startswith("joblet: ")
    assert not outside["pid1"].startswith("joblet: ")
    assert inside["devices"] == DEVICES
    assert set(outside["devices"]) - set(DEVICES)
    assert set(outside["what_is_masked"].values()) == {False}
    assert set(inside["what_is_masked"].values()) == {True}
    assert outside["what_is_masked"].keys() == inside["what_is_masked"].keys()
    assert [name for name in inside["top"] if name not in ("lib32", "libx32")] == TOP
    assert {"boot", "home", "root"} <= set(outside["top"])
    assert not {"joblet", "shadow", "machine-id", "hostname", "systemd"} & set(inside["etc"])
    assert {"joblet", "shadow"} <= set(outside["etc"])
    assert inside["inherited_descriptors"] == []
    assert outside["inherited_descriptors"] == ["/etc/hostname"]
    assert inside["cgroup"] == "/"
    assert outside["cgroup"] != "/"
    assert outside["owners_of_the_machines_files"] == [0, 0]
    assert inside["owners_of_the_machines_files"] == [65534, 65534]  # nobody it could be
    kept = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))
    has = inside["privileges"]
    assert int(has["CapBnd"], 16) == kept
    assert int(has["CapEff"], 16) in (kept, 0)
    assert int(has["CapInh"], 16) == int(has["CapAmb"], 16) == 0
    assert (has["NoNewPrivs"], has["Seccomp"], has["Groups"]) == ("1", "2", "")
    assert outside["privileges"]["NoNewPrivs"] == "0"
