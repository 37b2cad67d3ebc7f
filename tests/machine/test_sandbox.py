# SPDX-License-Identifier: MIT
"""What a hostile job tries, on a kernel of its own: under each profile, as "root" and as somebody
else, and once more with a fence taken away, so that it is the fence that says no. The attempts are
those of probing.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.machine.client import Rnx
from tests.machine.probing import (
    MARK,
    PROBE,
    PROBE_S,
    attempts,
    done,
    judge_facts,
    probe_command,
    run_outside,
    standing,
)
from tests.machine.rig import Cache, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNFENCED = Path(__file__).with_name("unfenced.py")
PROFILES = ("default", "strict", "trusted")

# What each profile lets its jobs do of it; nothing of it reaches beyond the job
NAMESPACES_OF_ITS_OWN = {"unshare_user", "unshare_user_and_mount", "unshare_user_and_network"}
DOORS = {
    "add_a_key",
    "an_odd_socket",
    "call_by_the_32_bit_door",
    "clone_by_a_struct",
    "handle_page_faults",
    "io_uring",
}
ORDINARY = {"chroot", "trace_a_child", "write_temporary_files"}
MAY: dict[str, set[str]] = {
    "default": ORDINARY,
    "strict": set(),
    "trusted": ORDINARY | DOORS | NAMESPACES_OF_ITS_OWN,
}
ROOT_ALONE = {"chroot"}


@pytest.fixture(scope="module")
def vm(vm_suite: str, cache: Cache, installed: Callable[[str], list[Path]]) -> Iterator[Vm]:
    """One whose kernel tells of what is denied."""
    with Vm(vm_suite, payload=installed(vm_suite), cache=cache, audit=True) as made:
        yield made


@pytest.fixture(scope="module")
def rnx(vm: Vm) -> Rnx:
    vm.write("/etc/joblet/init.yml", b"profiles: [default, strict, trusted]\n", mode=0o600)
    # the snapshot was taken without the project
    vm.run("systemctl daemon-reload; systemctl start joblet-init.socket joblet.service").check()
    vm.run("systemctl restart joblet-init.service").check()  # it may have started without the file
    vm.wait_for(["rnx", "run", "--follow", "--profile=trusted", "true"])
    return Rnx(vm)


@pytest.fixture(scope="module")
def context(rnx: Rnx) -> Iterator[dict[str, Any]]:
    with standing(rnx) as made:
        yield made


@pytest.fixture(scope="module")
def outside(rnx: Rnx, context: dict[str, Any]) -> dict[str, Any]:
    return run_outside(rnx, context)


def test_outside_all_of_it_can_be_done(outside: dict[str, Any]) -> None:
    assert outside["privileges"]["Seccomp"] == "0"
    assert {name: value for name, value in attempts(outside).items() if value != "ok"} == {}


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_job_tries(
    rnx: Rnx, context: dict[str, Any], outside: dict[str, Any], profile: str, uid: int
) -> None:
    command = probe_command(context, "--as", str(uid))
    answer = rnx("run", "--follow", f"--profile={profile}", *command, timeout=PROBE_S)
    inside = json.loads(answer.check().stdout)
    assert inside.keys() == outside.keys()
    assert done(inside) == MAY[profile] - (ROOT_ALONE if uid else set())
    judge_facts(outside, inside)


# --- fences taken away ----------------------------------------------------------------------------

# What the machine's root can do and a job without this fence can do as well
OPENED = {
    "none": set[str](),
    "seccomp": DOORS,
    "seccomp and capabilities": DOORS
    | {"unshare_mount", "unshare_uts", "unshare_ipc", "unshare_pid", "unshare_network"}
    | {"unshare_cgroup", "mount_tmpfs", "bind_mount", "set_hostname"},
    "masks": {"list_the_firmware", "read_the_keys"},
}


@pytest.mark.parametrize("fence", OPENED)
def test_it_is_the_fence_that_says_no(
    rnx: Rnx, context: dict[str, Any], outside: dict[str, Any], fence: str
) -> None:
    rnx.machine.write("/root/unfenced.py", UNFENCED.read_bytes())
    command = ["python3", "-I", "/root/unfenced.py", fence, *probe_command(context)]
    inside = json.loads(rnx.machine.run(command, timeout=PROBE_S).check().stdout)
    opened = done(inside) - ORDINARY
    assert opened >= OPENED[fence]
    if fence != "seccomp and capabilities":  # what comes of all of them is much
        assert opened == OPENED[fence]
    assert ("seccomp" in fence) == (inside["privileges"]["Seccomp"] == "0")
    assert ("masks" in fence) == (set(inside["what_is_masked"].values()) == {False})


# --- what else a job must not ---------------------------------------------------------------------


def test_what_is_denied_is_logged(rnx: Rnx) -> None:
    """By the kernel, with the job's user id and the program; clone3 is asked for all the time."""
    vm = rnx.machine
    rnx("run", "--follow", "python3", "-I", PROBE, "run", "add_a_key", "clone_by_a_struct").check()
    log = "journalctl -o cat --no-pager -g 'type=1326|SECCOMP' -b"
    found = vm.run(log).check().text
    assert "syscall=248" in found
    assert "syscall=435" not in found
    assert 'exe="/usr/bin/python3' in found


NEST = """
import os, subprocess
subprocess.run(["unshare", "-Urm", "sh", "-c",
                "mount -t tmpfs none /tmp && echo nested > /tmp/x && cat /tmp/x"], check=True)
"""


def test_trusted_may_nest(rnx: Rnx) -> None:
    nested = rnx("run", "--follow", "--profile=trusted", "python3", "-c", NEST)
    assert nested.check().text == "nested"
    refused = rnx("run", "--follow", "python3", "-c", NEST)
    assert refused.code == 1
    assert b"unshare failed: Operation not permitted" in refused.stdout


def test_limits_of_a_process_above_the_services_own(rnx: Rnx) -> None:
    show = ["bash", "-c", "for n in n l; do ulimit -S$n; ulimit -H$n; done; ulimit -Hl 999999"]
    plain = rnx("run", "--follow", *show)
    assert plain.code == 1  # raised inside it cannot be
    files, _, locked, most = (int(line) for line in plain.text.splitlines()[:4])
    assert files == 1024
    assert max(locked, most) < 300 << 10
    raised = rnx("run", "--follow", "--nofile=600000", "--memlock=300M", *show)
    assert raised.text.splitlines()[:4] == ["600000", "600000", "307200", "307200"]
    status = rnx.status(rnx.json("list")[-1]["id"])
    assert status["rlimits"] == {"nofile": 600_000, "memlock": 300 << 20}


def test_an_end_that_a_stranger_holds_open(rnx: Rnx) -> None:
    """A job hands its output away and goes: it has ended all the same, and so has its log."""
    vm = rnx.machine
    with vm.spawn(["python3", "-I", PROBE, "take", MARK], stdin=True) as taker:
        taker.wait_for(b"listening\n")
        job = rnx.start("python3", "-I", PROBE, "give-away", MARK)
        taker.wait_for(b"the giver is gone\n")
        assert rnx.ended(job)["status"] == "COMPLETED"
        assert rnx.log(job) == b"given away\n"
        taker.write(b"now\n")
        taker.wait_for(b"\n", timeout=30)
        taker.wait(30)
        assert taker.stdout.endswith((b"written\n", b"EPIPE\n"))
    assert rnx.log(job) == b"given away\n"
