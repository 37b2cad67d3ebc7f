# SPDX-License-Identifier: MIT
"""What a sysadmin sees of Joblet and its jobs with the tools of every systemd machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblet.systemd import messages
from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn

UNITS = [
    "joblet.service",
    "joblet-init.service",
    "joblet-init.socket",
    "joblet.slice",
    r"run-joblet\x2dstage.mount",
]
CONFIG = "/etc/joblet/joblet-config.yml"


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    wait_served(machine)
    return Rnx(machine)


def entries(machine: Nspawn, *match: str) -> list[dict[str, Any]]:
    """Of the journal, as journald has them."""
    lines = machine.journal("-o", "json", "--all", *match).splitlines()
    return [json.loads(line) for line in lines]


def show(machine: Nspawn, unit: str, name: str) -> str:
    return machine.run(["systemctl", "show", "-p", name, "--value", unit]).text


# -- unit files ------------------------------------------------------------------------------------


def test_systemd_finds_nothing_to_say_about_the_installed_units(machine: Nspawn) -> None:
    # the man pages are looked for where man is; this machine has none
    done = machine.run(["systemd-analyze", "verify", "--man=no", *UNITS])
    assert (done.code, done.text, done.errors) == (0, "", "")


def test_the_server_is_shut_in_as_it_runs(machine: Nspawn) -> None:
    security = ["systemd-analyze", "security", "--no-pager", "joblet.service"]
    done = machine.run([*security, "--threshold=20"])
    assert done.code == 0, done.text
    # and with a bar that it cannot reach, to see that there is one
    assert machine.run([*security, "--threshold=5"]).code != 0


def test_the_stage_mounts_as_it_says(fresh_machine: Nspawn) -> None:
    unit = UNITS[-1]
    wait_served(fresh_machine)
    assert show(fresh_machine, unit, "ActiveState") == "active"
    found = fresh_machine.run("findmnt -n -o FSTYPE,OPTIONS /run/joblet-stage").check().text
    kind, options = found.split()
    assert kind == "tmpfs"
    assert {"nosuid", "nodev", "noexec", "mode=700"} <= set(options.split(","))
    # of the kernel that these machines share
    large = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists()
    assert ("huge=within_size" in found) is large
    owner = fresh_machine.run(["stat", "-c", "%U:%G %a", "/run/joblet-stage"]).text
    assert owner == "joblet:joblet 700"
    total = int(fresh_machine.run("awk '/MemTotal/ {print $2}' /proc/meminfo").text)
    size = int(fresh_machine.run("df -k --output=size /run/joblet-stage | tail -1").text)
    assert abs(size - total / 2) < total / 100


def test_limits_of_all_jobs_together_stay(fresh_machine: Nspawn) -> None:
    """Both ways that joblet.slice itself recommends, with jobs running, and after a reboot."""
    machine = fresh_machine
    wait_served(machine)
    job = Rnx(machine).start("sleep", "300")
    machine.write("/etc/systemd/system/joblet.slice.d/override.conf", "[Slice]\nTasksMax=777\n")
    machine.run(["systemctl", "daemon-reload"]).check()
    machine.run(["systemctl", "set-property", "joblet.slice", "MemoryMax=700M"]).check()

    def seen() -> tuple[str, str]:
        return show(machine, "joblet.slice", "TasksMax"), show(machine, "joblet.slice", "MemoryMax")

    limits = ("777", str(700 << 20))
    assert seen() == limits
    assert show(machine, f"joblet-{job}.scope", "ActiveState") == "active"
    machine.reboot()
    wait_served(machine)
    assert Rnx(machine)("run", "--follow", "true").code == 0
    assert seen() == limits
    where = machine.run(["systemctl", "cat", "joblet.slice"]).text
    assert "override.conf" in where
    assert "MemoryMax" in where
    machine.run(["systemctl", "revert", "joblet.slice"]).check()
    assert seen()[0] != "777"
    assert seen()[1] == "infinity"


# -- a job's unit ----------------------------------------------------------------------------------


def test_a_units_description_is_one_safe_line_with_its_manual(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start(
        "--name=%n night",
        "--secret-env=TOKEN=hunter2",
        "sh",
        "-c",
        "sleep 300 # hunter2 %n \x1b[31m\u202e\n" + "x" * 3000,
    )
    unit = f"joblet-{job}.scope"
    description = show(machine, unit, "Description")
    assert description.startswith(f"rnx job {job[:8]} (%n night): sh -c sleep 300 # *** %n ?[31m?")
    assert len(description) <= 200
    # systemd 252 quotes them
    assert show(machine, unit, "Documentation").replace('"', "") == "man:rnx(1) man:joblet(8)"
    listed = machine.run("systemctl list-units --plain --no-legend --full 'joblet-*.scope'").text
    assert f"rnx job {job[:8]} (%n night): sh" in listed
    assert "hunter2" not in listed
    assert "\x1b" not in listed
    assert "man:rnx(1)" in machine.run(["systemctl", "status", "--no-pager", unit]).text
    assert "hunter2" not in machine.journal("-u", "joblet.service")
    top = machine.run(["systemd-cgtop", "-b", "-n", "1", "--depth=3"]).check().text
    assert re.search(rf"^joblet\.slice/{unit}\s+\d", top, re.MULTILINE), top
    rnx("stop", job).check()


def test_the_journal_has_a_jobs_lines_under_its_unit_and_its_id(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "echo to-stdout; echo to-stderr >&2; exit 7")
    rnx.ended(job)
    unit = f"joblet-{job}.scope"

    def lines() -> dict[str, dict[str, Any]]:
        return {
            str(entry["MESSAGE"]): entry
            for entry in entries(machine, f"JOBLET_JOB_ID={job}")
            if "JOBLET_STREAM" in entry
        }

    eventually(lambda: len(lines()) == 2, what="the copy of both lines")
    assert lines()["to-stdout"]["JOBLET_STREAM"] == "stdout"
    assert lines()["to-stderr"]["JOBLET_STREAM"] == "stderr"
    of_unit = machine.journal("-u", unit, "-o", "cat").splitlines()
    assert {"to-stdout", "to-stderr"} <= set(of_unit)
    assert any(line.startswith(f"Started {unit} - rnx job {job[:8]}: sh -c") for line in of_unit)
    # the server itself says one line at the start, one at the end, and what was asked for by whom
    said = [
        (entry["MESSAGE_ID"], entry["MESSAGE"])
        for entry in entries(machine, f"JOBLET_JOB_ID={job}", "_SYSTEMD_UNIT=joblet.service")
    ]
    assert sorted(number for number, _ in said) == sorted(
        [messages.JOB_STARTED, messages.JOB_ENDED, messages.CHANGE]
    )
    texts = dict(said)
    assert texts[messages.JOB_STARTED].startswith(f"job {job[:8]} started for admin-client: sh -c")
    assert texts[messages.JOB_ENDED] == f"job {job[:8]} ended: exited(7)"
    assert re.fullmatch(
        rf"admin-client from 127\.0\.0\.1:\d+: RunJob {job[:8]}: ok", texts[messages.CHANGE]
    )
    [end] = entries(machine, f"JOBLET_JOB_ID={job}", f"MESSAGE_ID={messages.JOB_ENDED}")
    assert (end["JOBLET_REASON"], end["JOBLET_EXIT_CODE"]) == ("exited", "7")
    assert end["JOBLET_UNIT"] == unit


def test_lines_beyond_the_rate_are_missed_aloud(rnx: Rnx, machine: Nspawn) -> None:
    """And every byte is there or counted, with the job's last words."""
    many = "yes 0123456789012345678901234567890123456789 | head -c 300000000"
    job = rnx.start("sh", "-c", f"{many}; echo; echo the last word")
    rnx.ended(job)
    match = (f"JOBLET_JOB_ID={job}", f"MESSAGE_ID={messages.LINES_LEFT_OUT}")
    eventually(lambda: entries(machine, *match), timeout=30, what="the note")
    for entry in entries(machine, *match):
        assert int(entry["JOBLET_LEFT_OUT"]) > 0
        assert f"{entry['JOBLET_LEFT_OUT']} bytes left out here" in entry["MESSAGE"]

    def lines() -> list[str]:
        return [
            e["MESSAGE"] for e in entries(machine, f"JOBLET_JOB_ID={job}", "JOBLET_STREAM=stdout")
        ]

    eventually(lambda: lines()[-1] == "the last word", what="the job's last word")
    copied = [line for line in lines() if not line.startswith("joblet: ")]
    left_out = sum(int(entry["JOBLET_LEFT_OUT"]) for entry in entries(machine, *match))
    size = len(rnx.log(job))
    assert sum(len(line) + 1 for line in copied) + left_out == size
    assert left_out > size / 2


# -- the services ----------------------------------------------------------------------------------


def test_the_status_lines_are_alive(rnx: Rnx, machine: Nspawn) -> None:
    def status(unit: str) -> str:
        return show(machine, unit, "StatusText")

    eventually(lambda: status("joblet.service") == "0 jobs running", what="an idle server")
    before = status("joblet-init.service")
    assert re.fullmatch(r"ready; \d+ jobs? launched(, \d+ failed)? since the start", before)
    quiet = rnx.start("sleep", "300")
    eventually(lambda: status("joblet.service") == "1 job running", what="a job")
    loud = rnx.start(
        "sh", "-c", "while :; do head -c 100000 /dev/zero | tr '\\0' '\\n'; sleep 0.1; done"
    )
    text = re.compile(r"2 jobs running, [\d.]+ [kM]B/s of output")
    eventually(lambda: text.fullmatch(status("joblet.service")), timeout=30, what="a rate")
    shown = machine.run(["systemctl", "status", "--no-pager", "joblet.service"]).text
    assert re.search(r'Status: "2 jobs running, ', shown), shown
    eventually(lambda: status("joblet-init.service") != before, what="the count of launches")
    for job in (quiet, loud):
        rnx("stop", job).check()
    eventually(lambda: status("joblet.service") == "0 jobs running", what="an idle server")


def test_the_catalog_explains(rnx: Rnx, machine: Nspawn) -> None:
    machine.run(["journalctl", "--update-catalog"]).check()
    listed = machine.run(["journalctl", "--list-catalog"]).check().text
    for name, number in vars(messages).items():
        if name.isupper():
            assert re.search(rf"^{number} +Joblet: ", listed, re.MULTILINE), name
    job = rnx.start("sh", "-c", "exit 7")
    rnx.ended(job)
    assert rnx("--node", "viewer", "stop", job).code == 1
    told = machine.journal("-x", "-u", "joblet.service", "-n", "20")
    assert f"Subject: Job {job} has ended: exited" in told
    assert f"rnx job status {job}" in told
    assert "Subject: viewer-client is not allowed to do this: StopJob" in told
    refused = entries(machine, f"MESSAGE_ID={messages.CHANGE_REFUSED}")
    assert refused[-1]["JOBLET_WHO"] == "viewer-client"
    assert refused[-1]["PRIORITY"] == "4"


def test_a_restart_is_told_once(fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    wait_served(machine)
    job = Rnx(machine).start("sleep", "300")
    machine.run(["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "joblet.service"]).check()
    match = f"MESSAGE_ID={messages.JOBS_TAKEN_BACK}"
    eventually(lambda: entries(machine, match), timeout=30, what="another server")
    wait_served(machine)
    [entry] = entries(machine, match)
    assert entry["MESSAGE"] == "took back 1 running job of an earlier server"
    assert entry["JOBLET_JOBS"] == "1"
    # the start of the job is not told again
    assert len(entries(machine, f"JOBLET_JOB_ID={job}", f"MESSAGE_ID={messages.JOB_STARTED}")) == 1


# -- what is missing -------------------------------------------------------------------------------


def failed_start(machine: Nspawn, unit: str, reason: str) -> str:
    """What `systemctl status` shows of a unit once its log has a reason for not starting."""

    def shown() -> str | None:
        text = machine.run(["systemctl", "status", "--no-pager", "-n", "30", unit]).text
        return text if reason in text else None

    return eventually(shown, timeout=30, what=f"{unit} to say {reason!r}") or ""


def test_a_broken_configuration_is_told_and_not_tried_again(fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    wait_served(machine)
    whole = machine.read(CONFIG)
    machine.write(CONFIG, b"server: [\n", mode=0o640, owner="root:joblet")
    assert machine.run(["systemctl", "restart", "joblet.service"]).code != 0
    shown = failed_start(machine, "joblet.service", "cannot ")
    assert "status=78/CONFIG" in shown
    assert CONFIG in shown
    assert 'Status: "cannot ' in shown
    assert show(machine, "joblet.service", "ActiveState") == "failed"
    assert show(machine, "joblet.service", "NRestarts") == "0"
    [entry] = entries(machine, "_SYSTEMD_UNIT=joblet.service", "-p", "err", "--grep=^cannot ")
    assert entry["PRIORITY"] == "3"
    machine.write(CONFIG, whole, mode=0o640, owner="root:joblet")
    machine.run(["systemctl", "restart", "joblet.service"]).check()
    assert Rnx(machine)("run", "--follow", "true").code == 0


def test_a_taken_port_is_told_and_tried_again(fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    wait_served(machine)
    machine.run(["systemctl", "stop", "joblet.service"]).check()
    taker = (
        "import socket, time; s = socket.create_server(('', 50051));"
        " print('taken', flush=True); time.sleep(600)"
    )
    with machine.spawn(["python3", "-c", taker]) as taken:
        taken.wait_for(b"taken")
        machine.run(["systemctl", "start", "--no-block", "joblet.service"]).check()
        shown = failed_start(machine, "joblet.service", "cannot listen on 0.0.0.0:50051: ")
        assert "ss -ltnp" in shown
    wait_served(machine)
    assert Rnx(machine)("run", "--follow", "true").code == 0


def test_a_bus_that_is_away_is_told_and_tried_again(fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    wait_served(machine)
    drop_in = "/etc/systemd/system/joblet.service.d/no-bus.conf"
    machine.write(drop_in, "[Service]\nInaccessiblePaths=/run/dbus\n")
    machine.run(["systemctl", "daemon-reload"]).check()
    machine.run(["systemctl", "restart", "--no-block", "joblet.service"]).check()
    shown = failed_start(machine, "joblet.service", "cannot reach the bus at ")
    assert "see `systemctl status dbus.service dbus.socket`" in shown
    machine.run(f"rm {drop_in}; systemctl daemon-reload").check()
    wait_served(machine)
    assert Rnx(machine)("run", "--follow", "true").code == 0


def test_an_init_mode_that_is_away_is_told_once(fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    wait_served(machine)
    halves = ["joblet-init.socket", "joblet-init.service"]
    match = ("_SYSTEMD_UNIT=joblet.service", f"MESSAGE_ID={messages.INIT_MODE_AWAY}")
    machine.run(["systemctl", "restart", halves[1]]).check()
    assert Rnx(machine)("run", "--follow", "true").code == 0
    assert entries(machine, *match) == []  # a restart is nothing to tell
    machine.run(["systemctl", "stop", *halves]).check()
    eventually(lambda: entries(machine, *match), what="the warning")
    refused = Rnx(machine)("run", "true")
    assert refused.code == 1
    assert "(/run/joblet-init.sock: No such file or directory); see `systemctl" in refused.errors
    machine.run(["systemctl", "start", *halves]).check()
    told = "--grep=^init mode is there again"
    eventually(lambda: entries(machine, "-u", "joblet.service", told), what="the all-clear")
    assert len(entries(machine, *match)) == 1
    assert Rnx(machine)("run", "--follow", "true").code == 0


def test_a_broken_policy_is_told_by_both_halves(fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    wait_served(machine)
    machine.write("/etc/joblet/init.yml", "no_such_key: 1\n", mode=0o600)
    machine.run(["systemctl", "restart", "--no-block", "joblet-init.service"]).check()
    shown = failed_start(machine, "joblet-init.service", "cannot ")
    assert "no_such_key" in shown
    machine.run(["rm", "/etc/joblet/init.yml"]).check()
    wait_served(machine)
    eventually(lambda: Rnx(machine)("run", "--follow", "true").code == 0, timeout=60)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("JOBLET_MODE=init joblet", "systemd has passed none; start it with"),
        ("JOBLET_MODE=other joblet", "JOBLET_MODE is 'other'; it is server"),
        (
            "unshare -m sh -c 'mount -t tmpfs none /run/systemd; JOBLET_MODE=init exec joblet'",
            "systemd is not running here; ",
        ),
        (
            "unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup; JOBLET_MODE=init exec joblet'",
            "is not a cgroup v2 hierarchy; boot with",
        ),
        (
            "unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup; exec joblet'",
            "is not a cgroup v2 hierarchy; boot with",
        ),
        ("setpriv --reuid=nobody --clear-groups env JOBLET_MODE=init joblet", "this is not root"),
        ("JOBLET_CONFIG_PATH=/nowhere.yml joblet", "/nowhere.yml"),
        ("setpriv --reuid=nobody --clear-groups joblet", CONFIG),
        ("joblet", "cannot "),
    ],
)
def test_by_hand_it_says_what_is_missing(machine: Nspawn, command: str, words: str) -> None:
    wait_served(machine)
    done = machine.run(command)
    assert done.code not in (0, 127)
    assert re.match(r"joblet: cannot [^:]+: .", done.errors.splitlines()[-1]), done.errors
    assert words in done.errors
    assert "Traceback" not in done.errors
    assert show(machine, "joblet.service", "ActiveState") == "active"
