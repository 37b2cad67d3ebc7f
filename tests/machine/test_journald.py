# SPDX-License-Identifier: MIT
"""Jobs whose output the journal keeps (--log-driver=journald), with a real journald."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from joblet.launch.journal import END
from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn

JOURNALD = "--log-driver=journald"
COUNTER = "i=0; while [ ! -e /work/enough ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit 5"
LIMITS = "[Journal]\nRateLimitIntervalSec=3s\nRateLimitBurst=100\n"


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    wait_served(machine)
    return Rnx(machine)


@pytest.fixture
def fresh(fresh_machine: Nspawn) -> Rnx:
    wait_served(fresh_machine)
    return Rnx(fresh_machine)


def unit(job: str) -> str:
    return f"joblet-{job}.scope"


def chunks(rnx: Rnx, job: str, *words: str) -> list[dict[str, Any]]:
    lines = rnx("--json", "log", *words, job).check().stdout.splitlines()
    return [json.loads(line) for line in lines]


def enough(machine: Nspawn, job: str) -> None:
    """Ends a COUNTER."""
    machine.run(["touch", f"/var/lib/joblet/jobs/{job}/work/enough"]).check()


def numbers(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(1, count + 1))


# -- what a client sees ----------------------------------------------------------------------------


def test_its_output_is_the_journals(rnx: Rnx, machine: Nspawn) -> None:
    script = "echo to-out; echo to-err >&2; printf 'a\\tb\\033[1m\\n'; printf 'no newline'; exit 7"
    done = rnx("run", JOURNALD, "--follow", "--split", "sh", "-c", script)
    assert done.code == 7
    assert done.stdout == b"to-out\na\tb\x1b[1m\nno newline"
    assert done.stderr.startswith(b"rnx: job ")
    assert done.stderr.endswith(b"\nto-err\n")
    job = done.stderr.split()[2].decode()
    assert rnx.log(job, "--split") == done.stdout
    status = rnx.status(job)
    assert (status["logDriver"], status["reason"], status["exitCode"]) == ("journald", "exited", 7)
    assert "Log Driver: journald" in rnx("status", job).text
    # the store has nothing of it, and journalctl everything
    logs = machine.run(f"cat /var/lib/joblet/logs/{job}/out").stdout
    assert logs == b""
    lines = machine.journal("-u", unit(job), "-o", "cat", "--all").splitlines()
    assert {"to-out", "to-err", "a\tb\x1b[1m", "no newline"} <= set(lines)
    assert lines.count(END) == 2
    of_err = machine.journal(f"_SYSTEMD_UNIT={unit(job)}", "-p", "warning", "-o", "cat")
    assert of_err.splitlines() == ["to-err", END]


def test_any_bytes_and_long_lines(rnx: Rnx) -> None:
    script = (
        "import os, sys\n"
        "w = sys.stdout.buffer.write\n"
        "w(b'\\xff\\xfe\\x01 control\\n'); w(b'nul\\0between\\n')\n"
        "w('gr\\u00fc\\u00df\\n'.encode())\n"
        "w(b'x' * 200_000 + b'\\n'); w(b'\\n\\nbehind two that are empty\\n')\n"
    )
    job = rnx.start(JOURNALD, "--merge", "python3", "-c", script)
    rnx.ended(job)
    long = b"x" * 200_000 + b"\n"
    assert rnx.log(job) == (
        b"\xff\xfe\x01 control\nnul\0between\n"
        + "grüß\n".encode()
        + long
        + b"behind two that are empty\n"
    )
    assert {chunk["stream"] for chunk in chunks(rnx, job)} == {1}


def test_it_is_read_on_behind_a_cursor(rnx: Rnx) -> None:
    job = rnx.start(JOURNALD, "sh", "-c", "echo one; echo two >&2; echo three >&2; echo four")
    rnx.ended(job)
    found = chunks(rnx, job)
    assert [chunk["data"] for chunk in found].count("two\nthree\n") == 1
    assert all(chunk["cursor"] and "offset_end" not in chunk for chunk in found)
    whole = "".join(chunk["data"] for chunk in found)
    for number, chunk in enumerate(found):
        rest = "".join(one["data"] for one in found[number + 1 :])
        got = rnx("log", "--from-cursor", chunk["cursor"], job).check()
        assert (got.stdout.decode(), got.errors) == (rest, "")
    assert rnx.log(job).decode() == whole
    refused = rnx("log", "--from-offset=3", job)
    assert refused.code == 1
    assert "positions are cursors" in refused.errors
    refused = rnx("log", "--from-cursor=nonsense", job)
    assert refused.code == 1
    assert "cursor is 'nonsense'" in refused.errors
    other = rnx.start("echo", "stored")
    assert "positions are offsets" in rnx("log", "--from-cursor", found[0]["cursor"], other).errors
    unknown = rnx("run", "--log-driver=syslog", "true")
    assert unknown.code == 1
    assert "there is no log driver 'syslog'" in unknown.errors


def test_parts_of_it(rnx: Rnx, machine: Nspawn) -> None:
    script = "echo a; echo b >&2; while [ ! -e /work/enough ]; do sleep 0.01; done; echo c; echo d"
    job = rnx.start(JOURNALD, "sh", "-c", script)
    eventually(lambda: len(rnx.log(job, "--no-follow")) == 4, what="the first lines")
    between = machine.run("sleep 0.1; date -u +%FT%T.%6NZ").check().text
    enough(machine, job)
    rnx.ended(job)
    assert rnx.log(job, "--tail=3", "--stdout") == b"a\nc\nd\n"
    assert rnx.log(job, "--tail=1") == b"d\n"
    assert rnx.log(job, "--tail=0") == b""
    assert rnx.log(job, "--tail=99").count(b"\n") == 4
    assert rnx.log(job, "--stderr") == b"b\n"
    assert rnx.log(job, "--since", between) == b"c\nd\n"
    assert sorted(rnx.log(job, "--until", between)) == sorted(b"a\nb\n")
    stamped = rnx("log", "-t", "--stdout", job).check().text.splitlines()
    assert [line.split()[1] for line in stamped] == ["a", "c", "d"]
    assert [line.split()[0] for line in stamped] == sorted(line.split()[0] for line in stamped)
    assert rnx("log", "--strict", job).code == 0


def test_the_tail_of_one_that_runs_goes_on(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start(JOURNALD, "sh", "-c", COUNTER)
    eventually(lambda: b"line 5\n" in rnx.log(job, "--no-follow"), what="some lines")
    with machine.spawn(["rnx", "log", "--tail=2", job]) as following:
        eventually(lambda: following.stdout.count(b"\n") > 5, what="more lines")
        enough(machine, job)
        done = following.wait(30)
    first = int(done.stdout.split()[1])
    assert first > 1
    whole = rnx.log(job)
    assert whole.endswith(b"\n" + done.stdout)


def test_a_launch_that_fails_says_so_in_its_log(rnx: Rnx) -> None:
    done = rnx("--json", "run", JOURNALD, "--work-dir=/nowhere", "true")
    job = json.loads(done.stdout)["job_uuid"]
    assert rnx.ended(job)["reason"] == "launch-failed"
    assert b"cannot enter the work directory: /nowhere" in rnx.log(job)


def test_secrets_are_covered(rnx: Rnx, machine: Nspawn) -> None:
    """In what is read; the journal itself has them, as the manual says."""
    job = rnx.start(JOURNALD, "--secret-env=TOKEN=hunter2", "sh", "-c", "echo it is $TOKEN")
    rnx.ended(job)
    assert rnx.log(job) == b"it is *******\n"
    assert "it is hunter2" in machine.journal("-u", unit(job), "-o", "cat")


def test_nobody_else_can_speak_for_a_job(rnx: Rnx, machine: Nspawn) -> None:
    """Not even root, who may say OBJECT_SYSTEMD_UNIT; and the job itself cannot end its log."""
    job = rnx.start(JOURNALD, "sh", "-c", f"echo '{END}'; echo true; read x < /dev/null; sleep 300")
    eventually(lambda: rnx.log(job, "--no-follow").endswith(b"true\n"), what="its lines")
    other = rnx.start("sh", "-c", "sleep 300")
    forge = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        f"s.sendto(b'MESSAGE=forged\\nPRIORITY=6\\nOBJECT_SYSTEMD_UNIT={unit(job)}\\n'"
        f" b'UNIT={unit(job)}\\n', '/run/systemd/journal/socket')"
    )
    machine.run(["python3", "-c", forge]).check()
    machine.run(["systemd-cat", "-t", job[:8], "echo", "also forged"]).check()
    shown = machine.journal("-u", unit(job), "-o", "cat")
    assert "forged" in shown  # of the first journalctl believes it
    assert rnx.log(job, "--no-follow").decode().splitlines() == [END, "true"]
    assert rnx.log(other, "--no-follow") == b""
    for one in (job, other):
        rnx("stop", one).check()
    done = rnx("log", job).check()
    assert (done.text.splitlines(), done.errors) == ([END, "true"], "")


# -- what goes away under it -----------------------------------------------------------------------


def test_everything_is_restarted_under_it(fresh: Rnx, fresh_machine: Nspawn) -> None:
    """Server, init mode and journald, killed too: one follower sees each line once."""
    machine = fresh_machine
    job = fresh.start(JOURNALD, "sh", "-c", COUNTER)
    with machine.spawn(["rnx", "log", job]) as following:
        following.wait_for(b"line 5\n")
        restarts = (
            "systemctl restart systemd-journald",
            "systemctl kill --kill-whom=main -s KILL joblet.service",
            "systemctl restart joblet-init.service",
            "systemctl kill --kill-whom=main -s KILL systemd-journald.service",
            "systemctl restart joblet.service",
            "pkill -KILL -x joblet-read",
        )
        for command in restarts:
            machine.run(command).check()
            wait_served(machine)
            seen = following.stdout.count(b"\n")
            following.wait_for(b"line %d\n" % (seen + 20), timeout=30)
        enough(machine, job)
        done = following.wait(30)
    assert done.code == 0
    count = done.stdout.count(b"\n")
    assert done.stdout == numbers(count)
    assert "missing" not in done.errors
    assert fresh.ended(job)["exitCode"] == 5
    assert fresh.log(job) == done.stdout


def test_a_job_that_ends_without_a_server(fresh: Rnx, fresh_machine: Nspawn) -> None:
    job = fresh.start(JOURNALD, "sh", "-c", COUNTER)
    eventually(lambda: b"line 9\n" in fresh.log(job, "--no-follow"), what="its lines")
    fresh_machine.run(["systemctl", "stop", "joblet.service"]).check()
    enough(fresh_machine, job)
    eventually(
        lambda: fresh_machine.run(["systemctl", "is-active", unit(job)]).text != "active",
        what="the scope's end",
    )
    fresh_machine.run(["systemctl", "start", "joblet.service"]).check()
    assert fresh.ended(job)["exitCode"] == 5
    done = fresh("log", job).check()
    assert done.stdout == numbers(done.stdout.count(b"\n"))
    assert done.errors == ""


def test_what_journald_drops_is_a_gap(fresh: Rnx, fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    machine.write("/etc/systemd/journald.conf.d/limits.conf", LIMITS)
    machine.run(["systemctl", "restart", "systemd-journald"]).check()
    script = (
        "seq 1 2000; while [ ! -e /work/enough ]; do sleep 0.01; done; echo later;"
        " while [ ! -e /work/more ]; do sleep 0.01; done; seq 1 2000"
    )
    job = fresh.start(JOURNALD, "sh", "-c", script)
    eventually(lambda: b"100\n" in fresh.log(job, "--no-follow"), what="the first lines")
    # journald tells before the first line that it takes again, some seconds later
    machine.run(["sleep", "3.5"])
    enough(machine, job)
    eventually(lambda: b"later" in fresh.log(job, "--no-follow"), what="the line behind the gap")
    found = chunks(fresh, job, "--no-follow")
    [gap] = [chunk for chunk in found if "gap" in chunk]
    before = "".join(chunk["data"] for chunk in found[: found.index(gap)])
    assert gap["gap"]["kind"] == "dropped"
    assert before.split() == [str(n) for n in range(1, 2001 - gap["gap"]["lines"])]
    assert "".join(chunk["data"] for chunk in found[found.index(gap) + 1 :]) == "later\n"
    told = fresh("log", "--no-follow", job).errors
    assert f"rnx: {gap['gap']['lines']} lines of the log are missing here (dropped)" in told
    # behind the last ones comes no line that could tell of them
    machine.run(["touch", f"/var/lib/joblet/jobs/{job}/work/more"]).check()
    fresh.ended(job)
    last = chunks(fresh, job)[-1]
    assert last["gap"] == {"kind": "lost", "bytes": -1, "lines": -1}
    assert last["stream"] == 1
    tail = fresh("log", job).errors.splitlines()[-1]
    assert tail == "rnx: an unknown number of lines of the log are missing here (lost)"


def test_what_the_journal_has_forgotten_is_a_gap(fresh: Rnx, fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    job = fresh.start(
        JOURNALD, "sh", "-c", "echo old; while [ ! -e /work/enough ]; do sleep 0.01; done; echo new"
    )
    eventually(lambda: fresh.log(job, "--no-follow") == b"old\n", what="its line")
    [old] = chunks(fresh, job, "--no-follow")
    machine.run("journalctl --rotate && sleep 1.1 && journalctl --vacuum-time=1s").check()
    enough(machine, job)
    fresh.ended(job)
    gap, line = chunks(fresh, job)
    assert (gap["gap"]["kind"], line["data"]) == ("expired", "new\n")
    again, same = chunks(fresh, job, "--from-cursor", old["cursor"])
    # a gap is dated when it is found
    assert {**again, "timestamp": gap["timestamp"]} == gap
    assert same == line
    assert chunks(fresh, job, "--from-cursor", line["cursor"]) == []


def test_a_unit_that_is_killed_may_have_lost_its_end(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start(JOURNALD, "sh", "-c", "echo said; sleep 300")
    eventually(lambda: rnx.log(job, "--no-follow") == b"said\n", what="its line")
    machine.run(["systemctl", "kill", "-s", "KILL", unit(job)]).check()
    assert rnx.ended(job)["reason"] == "signalled"
    done = rnx("log", job).check()
    assert done.stdout == b"said\n"
    assert re.fullmatch(r"rnx: an unknown number of lines .* \(lost\)", done.errors)


def test_without_journald_nothing_is_launched(fresh: Rnx, fresh_machine: Nspawn) -> None:
    machine = fresh_machine
    sockets = machine.run("systemctl list-units --plain --no-legend 'systemd-journald*.socket'")
    names = [line.split()[0] for line in sockets.text.splitlines()]
    machine.run(["systemctl", "stop", *names, "systemd-journald.service"]).check()
    machine.run(["rm", "-f", "/run/systemd/journal/stdout"]).check()
    done = fresh("run", JOURNALD, "true")
    machine.run(["systemctl", "start", *names, "systemd-journald.service"]).check()
    assert done.code == 1
    assert "cannot open the journal for the job's output: No such file" in done.errors
    assert fresh("run", JOURNALD, "--follow", "sh", "-c", "exit 7").code == 7


# -- who reads -------------------------------------------------------------------------------------


def test_readers_are_nobody_and_go_with_whoever_reads(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start(JOURNALD, "sh", "-c", "echo here; sleep 300")
    eventually(lambda: rnx.log(job, "--no-follow") == b"here\n", what="its line")

    def readers() -> list[str]:
        return machine.run(["ps", "-C", "joblet-read", "-o", "pid=,user="]).text.splitlines()

    eventually(lambda: readers() == [], what="no reader")
    with machine.spawn(["rnx", "log", job]) as following:
        following.wait_for(b"here\n")
        [reader] = readers()
        pid, user = reader.split()
        assert user == "nobody"
        status = machine.read(f"/proc/{pid}/status").decode()
        assert re.search(r"^CapEff:\t0000000000000004$", status, re.MULTILINE)  # DAC_READ_SEARCH
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        following.kill()
        following.wait(10)
    eventually(lambda: readers() == [], what="the reader's end")
    rnx("stop", job).check()
