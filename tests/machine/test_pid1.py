# SPDX-License-Identifier: MIT
"""A hostile job, through everything: what it tries from inside, and that it ends when it must.

What needs no systemd is in tests/unit/launch/test_pid1.py.
"""

import contextlib
import hashlib
import json
import re
import shlex

import pytest

from tests.machine.client import Rnx, wait_served
from tests.machine.probing import attempts, done, judge_facts, probe_command, run_outside, standing
from tests.machine.rig import Machine, Nspawn, RigError, eventually

FIRST_UID = 0x70000000

# What root may not do in a container either: a VM shows that a job may not
KERNELS = {
    "an_odd_socket",
    "be_spared_by_the_oom_killer",
    "list_the_firmware",
    "load_a_module",
    "load_a_program_into_the_kernel",
    "raise_a_hard_limit",
    "raise_its_limit_of_tasks",
    "read_the_kernels_log",
    "set_the_clock",
    "watch_the_kernel",
    "write_core_pattern",
}


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    wait_served(machine)
    return Rnx(machine)


def test_what_a_job_tries(rnx: Rnx) -> None:
    """In a container, on both suites; on a kernel of its own it is test_sandbox.py's."""
    with standing(rnx) as context:
        outside = run_outside(rnx, context)
        inside = json.loads(rnx("run", "--follow", *probe_command(context)).check().stdout)
    impossible = {name: value for name, value in attempts(outside).items() if value != "ok"}
    assert impossible.keys() <= KERNELS, impossible
    assert done(inside) <= {"chroot", "trace_a_child", "write_temporary_files"}
    judge_facts(outside, inside)


# --- the end --------------------------------------------------------------------------------------

# forks all the time and never has more than 200 processes, so that the machine lives on
FORK_BOMB = """
import os, resource, signal
resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

DAEMONS = """
import os, signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
print("up", flush=True)
time.sleep(600)
"""

SUSPENDED = "trap 'echo bye; exit 4' TERM; (sleep 600 &); echo up; kill -STOP $$; sleep 600"

TRACED = """
import ctypes, signal
ctypes.CDLL(None).ptrace(0, 0, None, None)
print("up", flush=True)
signal.pause()
"""


def of_jobs(machine: Machine) -> list[str]:
    """The processes with ids that are jobs', and the PID 1s."""
    lines = machine.run(["ps", "-eo", "uid=,pid=,comm="]).check().text.splitlines()
    rows = [line.split(maxsplit=2) for line in lines]
    return [" ".join(row) for row in rows if int(row[0]) >= FIRST_UID or row[2] == "joblet-pid1"]


def wait_for_log(rnx: Rnx, job: str, expected: bytes) -> None:
    eventually(lambda: rnx.log(job, "--no-follow") == expected, timeout=30, what=f"job {job}")


def left(machine: Machine) -> list[str]:
    """What of jobs there is: units, processes, directories."""
    words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "joblet-*.scope"]
    units = machine.run(words).check().text.splitlines()
    directories = machine.run(["ls", "/var/lib/joblet/jobs"]).check().text.splitlines()
    return units + of_jobs(machine) + directories


def wait_until_empty(machine: Machine, *, timeout: float = 20) -> None:
    with contextlib.suppress(RigError):
        eventually(lambda: not left(machine), timeout=timeout)
    assert left(machine) == []


def test_whatever_a_job_does_a_stop_ends_it(rnx: Rnx, machine: Nspawn) -> None:
    """A fork bomb, daemons that hear nothing, a suspended and a traced command, all at once."""
    commands = {
        "bomb": ["python3", "-c", FORK_BOMB],
        "daemons": ["python3", "-c", DAEMONS],
        "deaf": ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"],
        "suspended": ["sh", "-c", SUSPENDED],
        "traced": ["python3", "-c", TRACED],
    }
    jobs = {name: rnx.start(f"--name={name}", *command) for name, command in commands.items()}
    for job in jobs.values():
        wait_for_log(rnx, job, b"up\n")
    eventually(lambda: len(of_jobs(machine)) > 200, timeout=30, what="the bomb")
    stops = "; ".join(f"rnx stop {job} & " for job in jobs.values()).replace("& ;", "&")
    stopped = machine.run(f"{stops} wait", timeout=60).check()
    assert stopped.seconds < 40  # the grace is 5 s
    for name, job in jobs.items():
        status = rnx.status(job)
        assert (status["status"], status["reason"]) == ("STOPPED", "stopped"), name
    wait_until_empty(machine)
    assert rnx.log(jobs["suspended"]) == b"up\nbye\n"


def test_what_a_command_leaves_behind_ends_with_it(rnx: Rnx, machine: Nspawn) -> None:
    script = "(setsid setsid sleep 600 &); nohup sleep 600 & (trap '' TERM; sleep 600) & exit 3"
    result = rnx("run", "--follow", "sh", "-c", script)
    assert result.code == 3
    assert result.seconds < 4  # nobody waits for a grace
    wait_until_empty(machine)


def test_zombies_are_reaped(rnx: Rnx) -> None:
    orphans = "for i in $(seq 30); do (true &); done; sleep 0.5; grep -c '^State:.Z' /proc/*/status"
    counts = rnx("run", "--follow", "sh", "-c", orphans).stdout.decode().splitlines()
    assert counts
    assert {line.rpartition(":")[2] for line in counts} == {"0"}


def test_exit_codes(rnx: Rnx, machine: Nspawn) -> None:
    codes = [0, 1, 2, 51, 124, 125, 126, 127, 128, 129, 137, 143, 200, 255]
    script = "rnx run --follow sh -c 'exit N'; echo N $?"
    words = " ".join(str(code) for code in codes)
    lines = machine.run(
        f"printf '%s\\n' {words} | xargs -P 4 -I N sh -c {shlex.quote(script)}"
    ).text
    told = sorted(tuple(map(int, line.split())) for line in lines.splitlines())
    assert told == [(code, code) for code in codes]


def test_a_time_out_of_a_month(rnx: Rnx) -> None:
    job = rnx.start("--timeout=720h", "sleep", "300")
    assert rnx.status(job)["status"] == "RUNNING"
    rnx("stop", job).check()
    assert rnx.status(job)["reason"] == "stopped"


# --- what a job is given --------------------------------------------------------------------------

# runs rnx with the words of a JSON list, which no shell and no unit's command line have seen
RUN = """
import json, os, subprocess, sys
words = [os.fsencode(word) for word in json.load(sys.stdin)]
done = subprocess.run([b"rnx", *words], capture_output=True)
print(json.dumps([done.returncode, done.stdout.decode(errors="surrogateescape"),
                  done.stderr.decode(errors="surrogateescape")]))
"""


def run_exactly(machine: Machine, words: list[str]) -> tuple[int, str, str]:
    """rnx's code, stdout and stderr; bytes that are no UTF-8 are surrogates, as Python has them."""
    result = machine.run(["python3", "-c", RUN], stdin=json.dumps(words), timeout=60).check()
    code, out, err = json.loads(result.stdout)
    return code, out, err


ODD = ["", " ", "a b", "'\"$HOME`id`\\", "*", "-n", "--", "--json", "\n\t\x01\x7f", "ü☃\U0001f600"]
SHOW = "import os, sys; sys.stdout.buffer.write(b'|'.join(map(os.fsencode, sys.argv[1:])))"


def test_arguments_arrive_as_they_are(rnx: Rnx, machine: Nspawn) -> None:
    code, out, err = run_exactly(machine, ["run", "--follow", "python3", "-c", SHOW, *ODD])
    assert code == 0, err
    assert out.split("|") == ODD


@pytest.mark.parametrize("bad", ["\udcff", "a\udcc3b"])
def test_arguments_that_are_no_text_are_refused(rnx: Rnx, machine: Nspawn, bad: str) -> None:
    before = rnx("list").text
    for words in (["run", "echo", bad], ["run", f"--env=A={bad}", "true"], ["run", bad]):
        code, _, err = run_exactly(machine, words)
        assert code == 1
        assert err.startswith("Error: cannot ")
        assert "Traceback" not in err
    assert rnx("list").text == before


def test_a_large_environment(rnx: Rnx, machine: Nspawn) -> None:
    values = {f"VARIABLE_{n}": chr(ord("a") + n) * 30_000 for n in range(25)}
    given = [f"--env={name}={value}" for name, value in values.items()]
    show = "import hashlib, os; mine = sorted(n for n in os.environ if n.startswith('VARIABLE_'));"
    show += "print(hashlib.sha256(''.join(os.environ[n] for n in mine).encode()).hexdigest())"
    code, out, err = run_exactly(machine, ["run", "--follow", *given, "python3", "-c", show])
    assert code == 0, err
    whole = "".join(value for _, value in sorted(values.items()))
    assert len(whole) == 750_000
    assert out.strip() == hashlib.sha256(whole.encode()).hexdigest()


def test_a_mebibyte_of_environment_is_refused_before_anything_starts(
    rnx: Rnx, machine: Nspawn
) -> None:
    before = rnx("list").text
    given = [f"--env=VARIABLE_{n}={'x' * 30_000}" for n in range(35)]
    code, _, err = run_exactly(machine, ["run", *given, "true"])
    assert code == 1
    assert re.search(r"arguments and environment .*\d+ bytes, more than \d+", err)
    assert rnx("list").text == before


def test_deeply_nested_directories_are_cleaned_up(rnx: Rnx, machine: Nspawn) -> None:
    """Deeper than a stack, longer than a path: what a job can make, its end must remove."""
    nest = "import os\nfor _ in range(3000):\n os.mkdir('d' * 20)\n os.chdir('d' * 20)"
    assert rnx("run", "--follow", "python3", "-c", nest).code == 0
    wait_until_empty(machine)
