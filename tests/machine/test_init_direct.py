# SPDX-License-Identifier: MIT
"""Init mode, talked to directly by a server that was taken over: what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.machine.client import Rnx

if TYPE_CHECKING:
    from tests.machine.rig import Nspawn

# Reads a list of requests (each with a plan or none), prints the list of answers.
TALK = """
import asyncio, fcntl, json, os, socket, sys
sys.path.insert(0, "/usr/share/joblet")
from joblet import link

def memfd(request):
    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    plan = request.pop("plan")
    os.write(fd, (plan if isinstance(plan, str) else json.dumps(plan)).encode())
    if request.pop("sealed", True):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
    return fd

async def main():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect("/run/joblet-init.sock")
    talk = link.Link(sock)
    answers = []
    await talk.send({**link.hello(), **json.loads(sys.argv[1])})
    if await talk.recv() is None:
        print(json.dumps(["dropped"]))
        return
    for number, request in enumerate(json.load(sys.stdin)):
        fds = [memfd(request)] if "plan" in request else []
        try:
            await talk.send({"id": number, **request}, fds)
            received = await talk.recv()
        except link.Unavailable:
            received = None
        if received is None:
            answers.append("dropped")
            break
        answers.append({**received[0], "fds": len(received[1])})
    print(json.dumps(answers))

asyncio.run(main())
"""

JOB = "11111111-2222-4333-8444-555555555555"
PLAN: dict[str, Any] = {
    "version": 1,
    "job": JOB,
    "path": "/bin/true",
    "argv": ["true"],
    "env": {},
    "uid_base": 0x7000_0000 + 4000 * 65536,
}


def talk(
    machine: Nspawn, requests: list[dict[str, Any]], *, user: str = "joblet", hello: str = "{}"
) -> list[Any]:
    command = ["python3", "-I", "-c", TALK, hello]
    result = machine.run(command, stdin=json.dumps(requests), user=user, timeout=30)
    answers: list[Any] = json.loads(result.check().stdout)
    return answers


def launch(**changes: Any) -> dict[str, Any]:
    return {"verb": "launch", "job": JOB, "plan": {**PLAN, **changes}}


REFUSED = {
    "a job id that is no unit's name": {"verb": "launch", "job": "../x", "plan": PLAN},
    "another job's plan": {"verb": "launch", "job": JOB[:-1] + "6", "plan": PLAN},
    "a slice": launch(properties={"Slice": "system.slice"}),
    "a property": launch(properties={"ExecStart": "/bin/sh"}),
    "a property of the wrong type": launch(properties={"MemoryMax": "lots"}),
    "CPUs that are none": launch(properties={"AllowedCPUs": "0-x"}),
    "root's ids": launch(uid_base=0),
    "ids beside a boundary": launch(uid_base=0x7000_0001),
    "ids beyond the range": launch(uid_base=0x7FFE_0000),
    "a profile": launch(profile="trusted"),
    "a stop that lasts": launch(stop_us=10**13),
    "a field": launch(command="x"),
    "a relative current directory": launch(cwd="etc"),
    "an oversized plan": launch(
        env={"A": "x" * 100_000} | {f"A{n}": "x" * 100_000 for n in range(11)}
    ),
    "no JSON": {"verb": "launch", "job": JOB, "plan": "{"},
    "an unsealed plan": {**launch(), "sealed": False},
    "no plan": {"verb": "launch", "job": JOB},
    "a verb": {"verb": "exec", "job": JOB},
    "somebody else's go": {"verb": "go", "job": JOB},
    "results of no job": {"verb": "results", "job": JOB},
    "a signal": {"verb": "kill", "job": JOB, "signal": 999},
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(machine: Nspawn, what: str) -> None:
    [answer] = talk(machine, [REFUSED[what]])
    assert "error" in answer, answer
    assert answer["error"]["code"] != "INTERNAL", answer
    assert answer["fds"] == 0
    assert machine.run(["ls", "/var/lib/joblet/jobs"]).text.count(JOB[:8]) == 0
    assert JOB not in machine.run(["systemctl", "list-units", "--all", "joblet-*"]).text


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_drops_whoever_is_not_the_server(machine: Nspawn, user: str) -> None:
    script = """
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    s.connect("/run/joblet-init.sock")
    print(len(s.recv(100)))
except OSError as error:
    print(error.errno)
"""
    said = machine.run(["python3", "-c", script], user=user).check().text
    # dropped without a word; nobody may not even connect
    assert said in ("0", "104", "13")


def test_drops_a_version_it_does_not_speak(machine: Nspawn) -> None:
    future = json.dumps({"hello": 99, "oldest": 98})
    assert "dropped" in talk(machine, [{"verb": "list"}], hello=future)[:1]


def test_ids_of_a_job_are_nobody_elses(machine: Nspawn) -> None:
    rnx = Rnx(machine)
    job = rnx.start("sleep", "300")
    uid = int(machine.run(["stat", "-c", "%u", f"/var/lib/joblet/jobs/{job}/work"]).text)
    [answer] = talk(machine, [launch(uid_base=uid)])
    assert answer["error"]["code"] == "ALREADY_EXISTS"
    rnx("stop", job).check()


def test_a_hang_up_withdraws_the_launch(machine: Nspawn) -> None:
    [answer] = talk(machine, [launch()])
    assert "ok" in answer, answer
    unit = f"joblet-{JOB}.scope"
    machine.wait_for(["sh", "-c", f"! systemctl is-active {unit}"])
    assert f"joblet: {JOB[:8]}" not in machine.run(["ps", "-eo", "args="]).text
    # the directory waits for the server; nothing lives in it
    listed, cleaned = talk(machine, [{"verb": "list"}, {"verb": "clean-up", "job": JOB}])
    assert {"job": JOB, "state": "gone", "uid": PLAN["uid_base"]} in listed["ok"]["jobs"]
    assert "ok" in cleaned, cleaned


def test_the_second_on_ctl_gets_no_hello_before_the_first_has_hung_up(machine: Nspawn) -> None:
    script = """
import socket, sys
path = f"/var/lib/joblet/jobs/{sys.argv[1]}/ctl"
def connect():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(1); s.connect(path)
    return s
first, second = connect(), None
try:
    print(first.recv(4096))
except TimeoutError:
    print("none")
"""
    rnx = Rnx(machine)
    job = rnx.start("sleep", "300")
    # the server holds it
    assert machine.run(["python3", "-c", script, job]).check().text == "none"
    machine.run(["systemctl", "stop", "joblet.service"]).check()
    assert '"hello"' in machine.run(["python3", "-c", script, job]).check().text
    machine.run(["systemctl", "start", "joblet.service"]).check()
    rnx("stop", job).check()


def test_a_job_has_no_descriptors_beyond_its_own(machine: Nspawn) -> None:
    shown = Rnx(machine)("run", "--follow", "ls", "-l", "/proc/self/fd").check().text
    names = {line.split()[8] for line in shown.splitlines() if "->" in line}
    assert names == {"0", "1", "2", "3"}  # 3 is ls's own
