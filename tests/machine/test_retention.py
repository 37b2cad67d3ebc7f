# SPDX-License-Identifier: MIT
"""What is kept: beyond a machine's death, within bounds, and compressed."""

from __future__ import annotations

from tests.machine.client import Rnx, wait_served
from tests.machine.rig import Nspawn, Vm, eventually

CONFIG = "/etc/joblet/joblet-config.yml"
LOGS = "/var/lib/joblet/logs"
NUMBERS = 6_000_000


def test_a_dead_machine_costs_no_more_than_the_interval(fresh_vm: Vm) -> None:
    wait_served(fresh_vm)
    rnx = Rnx(fresh_vm)
    command = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done"
    job = rnx.start("sh", "-c", command)

    def lines() -> list[bytes]:
        return rnx("log", "--no-follow", job).check().stdout.splitlines()

    eventually(lambda: len(lines()) > 100, timeout=60, what="output")
    said = lines()
    # Stored after flush_interval, 0.1 s, and durable after sync_interval, 1 s; this is no waiting
    # for either, but the time that the promise is about.
    fresh_vm.run(["sleep", "3"])
    fresh_vm.crash()
    fresh_vm.again()
    wait_served(fresh_vm)
    assert rnx.ended(job)["reason"] == "lost"
    shown = rnx("log", "--no-follow", job).check()
    kept = shown.stdout.splitlines()
    assert kept[: len(said)] == said
    whole = kept if shown.stdout.endswith(b"\n") else kept[:-1]
    assert whole == [b"line %d" % number for number in range(1, len(whole) + 1)]
    assert b"lost" in shown.stderr


def test_a_job_keeps_within_its_bound_and_what_is_complete_is_compressed(
    fresh_machine: Nspawn,
) -> None:
    # without copies of its lines, which would push the server's own out of a small journal
    settings = r"log_persistence:\n  max_bytes_per_job: 16MB\njournal:\n  copy_rate: 0\n"
    bound = f"printf '{settings}' >> {CONFIG}"
    fresh_machine.run(bound).check()
    fresh_machine.run(["systemctl", "restart", "joblet.service"]).check()
    wait_served(fresh_machine)
    rnx = Rnx(fresh_machine)
    job = rnx.start("sh", "-c", f"seq 1 {NUMBERS}; sleep 600")
    files = f"{LOGS}/{job}"
    tail = f"tail -c 8 {files}/out.0*[0-9] 2>/dev/null | tail -n 1"
    eventually(lambda: fresh_machine.run(tail).text == str(NUMBERS), timeout=60, what="its output")
    # a sweep looks at all logs when a server starts
    fresh_machine.run(["systemctl", "restart", "joblet.service"]).check()
    wait_served(fresh_machine)
    left = f"ls {files} | grep -c '^out[.][0-9]*$'"
    eventually(lambda: fresh_machine.run(left).text == "1", timeout=60, what="compression")
    size = int(fresh_machine.run(f"du -cb {files}/out.* | tail -n 1 | cut -f 1").check().text)
    assert size < 18 << 20
    rnx("stop", job).check()
    shown = rnx("log", "--no-follow", job).check()
    expected = "".join(f"{number}\n" for number in range(1, NUMBERS + 1)).encode()
    assert expected.endswith(shown.stdout)
    assert len(shown.stdout) > 8 << 20
    missing = len(expected) - len(shown.stdout)
    assert b"expired" in shown.stderr
    assert str(missing).encode() in shown.stderr.replace(b",", b"")
    told = ["journalctl", "-u", "joblet.service", "-o", "cat", "-g", "^retention: "]
    # when the sweep is over, which compresses at leisure
    eventually(lambda: "removed the oldest" in fresh_machine.run(told).text, timeout=60)


def test_a_job_goes_when_its_time_has_come(fresh_machine: Nspawn) -> None:
    wait_served(fresh_machine)
    rnx = Rnx(fresh_machine)
    old, young = (rnx.start("echo", name) for name in ("old", "young"))
    running = rnx.start("sh", "-c", "echo running; sleep 600")
    eventually(lambda: rnx("log", "--no-follow", running).stdout == b"running\n", what="output")
    for job in (old, young):
        rnx.ended(job)
    eventually(lambda: fresh_machine.run("ls /var/lib/joblet/jobs | wc -l").text == "1")
    for job in (old, running):
        fresh_machine.run(["touch", "-d", "8 days ago", f"{LOGS}/{job}/index"]).check()
    fresh_machine.run(["systemctl", "restart", "joblet.service"]).check()
    wait_served(fresh_machine)
    eventually(lambda: rnx("status", old).code != 0, what="the end of its record")
    assert fresh_machine.run(["test", "-e", f"{LOGS}/{old}"]).code != 0
    assert rnx.log(young) == b"young\n"
    assert rnx.status(running)["status"] == "RUNNING"
    audit = ["journalctl", "-u", "joblet.service", "-o", "cat", "JOBLET_WHO=retention"]
    told = fresh_machine.run(audit).check().text
    assert old in told or old[:8] in told
    assert running[:8] not in told
    rnx("stop", running).check()
