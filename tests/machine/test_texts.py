# SPDX-License-Identifier: MIT
"""What a stranger is told when something is wrong: what it is, what to do next, the right code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.machine.client import Rnx, wait_served
from tests.machine.rig import eventually
from tests.unit.test_imports import RNX_HELP

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn, Result

NOT_THERE = "cannot start the command: /usr/bin/of-nothing: its interpreter /nothing is not there"


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    return Rnx(machine)


def told(result: Result, code: int, *texts: str) -> None:
    """It failed in words: each of the texts, and no traceback."""
    assert result.code == code, result.errors
    for text in texts:
        assert text in result.errors
    assert "Traceback" not in result.errors
    assert "Errno" not in result.errors


def test_a_launch_that_fails_is_told_everywhere(rnx: Rnx, machine: Nspawn) -> None:
    script = "printf '#!/nothing\\n' > /usr/bin/of-nothing; chmod 755 /usr/bin/of-nothing"
    machine.run(script).check()
    try:
        followed = rnx("run", "--follow", "of-nothing")
        told(followed, 125, "launch-failed(exec): " + NOT_THERE)
        assert followed.stdout.decode() == f"{NOT_THERE}\n"
        begun = rnx("run", "of-nothing")
        told(begun, 1, "did not begin: launch-failed(exec): " + NOT_THERE)
        job = begun.text.split("ID: ")[1].split()[0]
        status = rnx.ended(job)
        assert (status["status"], status["exit_code"]) == ("FAILED", 1)
        assert status["reasonText"] == f"launch-failed(exec): {NOT_THERE}"
        assert rnx.log(job).decode() == f"{NOT_THERE}\n"
    finally:
        machine.run(["rm", "/usr/bin/of-nothing"]).check()
    told(
        rnx("run", "--wait", "--work-dir=/etc/passwd", "true"),
        125,
        "cannot enter the work directory: /etc/passwd: Not a directory",
    )


def test_what_cannot_run_is_told_before_it_starts(rnx: Rnx) -> None:
    before = rnx("list").text
    told(rnx("run", "/usr/bin"), 1, "cannot run /usr/bin: it is a directory")
    told(rnx("run", "/usr/lib/os-release"), 1, "is not executable for everybody (mode 0644)")
    told(rnx("run", "./x"), 1, "command not found: ./x; /work is empty when a job begins")
    told(rnx("run", "--wait", "x"), 125, "command not found: x; the job's PATH is /usr/local/bin:")
    assert rnx("list").text == before
    assert rnx("run", "--follow", "--work-dir=/usr/bin", "./echo", "hi").text == "hi"


def test_a_stop_that_comes_too_late_says_how_it_ended(rnx: Rnx) -> None:
    job = rnx.start("sh", "-c", "exit 3")
    rnx.ended(job)
    told(rnx("stop", job), 1, "cannot stop job", "it has ended already, with exit code 3")


def test_a_prefix_of_several_jobs(rnx: Rnx) -> None:
    firsts: set[str] = set()
    while True:  # 17 jobs at most
        job = rnx.start("true")
        if job[0] in firsts:
            break
        firsts.add(job[0])
    refused = rnx("status", job[0])  # of many on this machine it names some
    told(refused, 1, "several ids begin so: ")
    named = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", refused.errors)
    assert len(named) >= 2
    assert all(name[0] == job[0] for name in named)


def test_nonsense(machine: Nspawn, rnx: Rnx) -> None:
    told(rnx("lsit"), 1, "cannot use rnx lsit: there is no such command; did you mean `rnx list`?")
    told(rnx("--node=x", "list"), 1, "node 'x' not found", "it has default, viewer")
    told(rnx("--config=/nope", "list"), 1, "configuration file not found: /nope")
    told(rnx("status", "x" * 100_000), 1, "job not found: xxx")
    told(machine.run("rnx status \"$(printf '\\377')\""), 1, r"'\xff' is not UTF-8 text")
    told(machine.run("rnx --node \"$(printf '\\377')\" list"), 1, r"node '\xff' not found")
    told(machine.run("rnx list > /dev/full"), 1, "cannot write the output: No space left on device")


def test_help_loads_no_more_with_the_suites_own_python_and_click(machine: Nspawn) -> None:
    """The budget of tests/unit/test_imports.py, where it is not this host's versions that count."""
    script = """
import sys
sys.path[:0] = [path for path in ("/usr/lib/python3/dist-packages",) if path not in sys.path]
import rnx.cli
assert rnx.cli.main(["--help"]) == 0
names = {name.partition(".")[0] for name in sys.modules}
names -= {*sys.builtin_module_names, "zipimport", "site", "__main__"}
print(*sorted(name for name in names if not name.startswith("_")), file=sys.stderr)
"""
    result = machine.run(["python3", "-I", "-S", "-c", script]).check()
    assert set(result.errors.split()) - RNX_HELP == set()


def test_without_init_mode(fresh_machine: Nspawn) -> None:
    """Refused within the time that a restart may take, and a restart itself is not seen."""
    wait_served(fresh_machine)
    rnx = Rnx(fresh_machine)
    units = "joblet-init.socket joblet-init.service"
    fresh_machine.run(f"systemctl stop {units}").check()
    for _ in range(2):
        refused = rnx("run", "true")
        told(refused, 1, "init mode is not there", "see `systemctl status joblet-init.service")
    assert rnx("list").code == 0
    fresh_machine.run(f"systemctl start {units}").check()
    wait_served(fresh_machine)
    for _ in range(3):
        during = fresh_machine.run(
            "systemctl restart joblet-init.service & rnx run --follow echo hi; wait"
        )
        assert (during.code, during.text) == (0, "hi")


def test_without_dbus(fresh_machine: Nspawn) -> None:
    """In one command: the rig itself runs commands over D-Bus."""
    wait_served(fresh_machine)
    script = """
    systemctl stop dbus.socket dbus.service 2>/dev/null
    rnx run true; echo $?
    rnx run true; echo $?
    systemctl start dbus.socket dbus.service 2>/dev/null
    """
    refused = fresh_machine.run(script, timeout=60)
    assert refused.text.split() == ["1", "1"]
    told(refused, refused.code, "the D-Bus at", "see `systemctl status dbus.service")
    assert refused.errors.count("the D-Bus at") == 2
    wait_served(fresh_machine)
    rnx = Rnx(fresh_machine)
    back = "the D-Bus connections of both halves"
    eventually(lambda: rnx("run", "--follow", "echo", "hi").text == "hi", what=back)
